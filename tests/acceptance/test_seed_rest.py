"""Every request of the product page as written there; only host and token are ours."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from support import pg
from support.bridge_process import Daemon, daemon, token
from support.messages import only
from support.recipes import PAGE_POLICIES
from support.rest_client import ADMIN, request

pytestmark = pytest.mark.acceptance

HOST = "https://your-app.region.insforge.app"
TOKEN = "YOUR_TOKEN"

CREATE = r"""
curl -X POST https://your-app.region.insforge.app/api/realtime/channels \
  -H "Authorization: Bearer YOUR_TOKEN" \
  -H "Content-Type: application/json" \
  -d '{
    "pattern": "chat:*",
    "description": "Chat room messages",
    "webhookUrls": ["https://example.com/webhook"],
    "enabled": true
  }'
"""
CREATED = """
{
  "id": "550e8400-e29b-41d4-a716-446655440000",
  "pattern": "chat:*",
  "description": "Chat room messages",
  "webhookUrls": ["https://example.com/webhook"],
  "enabled": true,
  "createdAt": "2024-01-15T10:30:00Z",
  "updatedAt": "2024-01-15T10:30:00Z"
}
"""
LIST = r"""
curl https://your-app.region.insforge.app/api/realtime/channels \
  -H "Authorization: Bearer YOUR_TOKEN"
"""
MESSAGES = r"""
curl "https://your-app.region.insforge.app/api/realtime/messages?channelId=550e8400&limit=50" \
  -H "Authorization: Bearer YOUR_TOKEN"
"""
FOUND = """
[
  {
    "id": "660e8400-e29b-41d4-a716-446655440000",
    "eventName": "message.new",
    "channelId": "550e8400-e29b-41d4-a716-446655440000",
    "channelName": "chat:room1",
    "payload": {
      "text": "Hello!",
      "userId": "123"
    },
    "senderType": "user",
    "senderId": "770e8400-e29b-41d4-a716-446655440000",
    "wsAudienceCount": 5,
    "whAudienceCount": 1,
    "whDeliveredCount": 1,
    "createdAt": "2024-01-15T10:30:00Z"
  }
]
"""
STATISTICS = r"""
curl "https://your-app.region.insforge.app/api/realtime/messages/stats?channelId=550e8400" \
  -H "Authorization: Bearer YOUR_TOKEN"
"""
COUNTED = """
{
  "totalMessages": 1250,
  "whDeliveryRate": 0.98,
  "topEvents": [
    { "eventName": "message.new", "count": 450 },
    { "eventName": "message.edit", "count": 120 }
  ]
}
"""
PERMISSIONS = r"""
curl https://your-app.region.insforge.app/api/realtime/permissions \
  -H "Authorization: Bearer YOUR_TOKEN"
"""
CHANNEL = "550e8400-e29b-41d4-a716-446655440000"
PAYLOAD = {"text": "Hello!", "userId": "123"}
SENDER = "770e8400-e29b-41d4-a716-446655440000"


@pytest.fixture(scope="module")
def bridge(module_database: pg.Database) -> Iterator[Daemon]:
    with module_database.connect() as db:
        db.execute("create table public.channel_members (channel_id uuid, user_id text)")
        db.execute("grant select on public.channel_members to authenticated")
        db.execute(PAGE_POLICIES.encode())
    with daemon(module_database) as bridge:
        yield bridge


def shell(bridge: Daemon, command: str) -> tuple[Any, str]:
    """Run a request in a shell; return its answer as JSON and as text."""
    done = subprocess.run(
        ["sh", "-c", command.strip().replace("curl ", "curl -sS --fail-with-body ", 1)
         .replace(HOST, bridge.url).replace(TOKEN, ADMIN)],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    return json.loads(done.stdout), done.stdout


def kinds(value: Any) -> Any:
    """Reduce an answer to names, order and types; ids and times to their format."""
    if isinstance(value, dict):
        return [(name, kinds(inner)) for name, inner in value.items()]
    if isinstance(value, list):
        return [kinds(inner) for inner in value[:1]]
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value):
        return "uuid"
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", value):
        return "time"
    return (
        "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value)
    )


def test_the_requests_of_the_page_in_order(bridge: Daemon, module_database: pg.Database) -> None:
    created, _ = shell(bridge, CREATE)
    assert kinds(created) == kinds(json.loads(CREATED))
    assert {k: v for k, v in created.items() if k not in ("id", "createdAt", "updatedAt")} == {
        k: v for k, v in json.loads(CREATED).items() if k not in ("id", "createdAt", "updatedAt")
    }
    listed, _ = shell(bridge, LIST)
    assert listed == [created]

    with module_database.connect() as db:
        # the id of the page, so that its prefix identifies this channel
        db.execute("update public.realtime_channels set id = %s", [CHANNEL])
        db.execute("insert into public.channel_members values (%s, %s)", [CHANNEL, SENDER])
    for event in ("message.new", "message.new", "message.edit"):
        sent = request(
            bridge.url, "POST", "/api/realtime/messages",
            {"channel": "chat:room1", "event": event, "payload": PAYLOAD},
            key=token(SENDER),
        )  # fmt: skip
        assert sent.status == 201, sent.text

    found, text = shell(bridge, MESSAGES)
    assert kinds(found) == kinds(json.loads(FOUND))
    wanted = json.loads(FOUND)[0]
    for name in ("channelId", "channelName", "payload", "senderType", "senderId"):
        assert found[0][name] == wanted[name]
    assert text.index('"text"') < text.index('"userId"')
    assert [message["eventName"] for message in found] == [
        "message.edit", "message.new", "message.new",
    ]  # fmt: skip

    counted, _ = shell(bridge, STATISTICS)
    assert kinds(counted) == kinds(json.loads(COUNTED))
    assert counted["totalMessages"] == 3
    assert counted["topEvents"] == [
        {"eventName": "message.new", "count": 2},
        {"eventName": "message.edit", "count": 1},
    ]

    permissions, _ = shell(bridge, PERMISSIONS)
    assert list(permissions) == ["subscribe", "publish"]
    assert [policy["policyName"] for policy in permissions["subscribe"]["policies"]] == [
        "Users can subscribe to public channels",
        "Users can subscribe to their own channels",
    ]
    (publish,) = permissions["publish"]["policies"]
    assert publish["policyName"] == "Users can publish to their channels"
    assert publish["tableName"] == "realtime_messages"
    assert publish["command"] == "INSERT"
    assert publish["roles"] == ["public"]
    assert publish["using"] is None
    assert "channel_members" in publish["withCheck"]


def test_a_sender_that_is_not_a_member_is_refused(bridge: Daemon) -> None:
    sent = request(
        bridge.url, "POST", "/api/realtime/messages",
        {"channel": "chat:room1", "event": "message.new"}, key=token("mallory"),
    )  # fmt: skip
    assert (sent.status, sent.json["error"]) == (403, "forbidden")


def test_the_helper_of_the_use_cases_is_one_request(
    bridge: Daemon, module_database: pg.Database
) -> None:
    """``createChannel({pattern, description})`` of the page is a POST of exactly that."""
    created = request(
        bridge.url, "POST", "/api/realtime/channels",
        {"pattern": "talk:*", "description": "Chat rooms"},
    )  # fmt: skip
    assert created.status == 201
    assert created.json["webhookUrls"] is None
    assert created.json["enabled"] is True
    with module_database.connect() as db:
        assert (
            only(db, "select description from public.realtime_channels where pattern = 'talk:*'")
            == "Chat rooms"
        )
