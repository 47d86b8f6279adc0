"""The REST API for a new user: every refusal says what was wrong and what to do."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from rowcast.bridge.rest.calls import Calls
from rowcast.bridge.rest.routes import BASE, ROUTES
from support import pg
from support.bridge_process import Daemon, daemon, open_bridge, open_channels, token
from support.messages import only
from support.rest_client import ADMIN, Reply, request
from support.waiting import eventually
from support.wire_client import connect

pytestmark = pytest.mark.acceptance

ALICE = token("alice")
POLICIES = """
insert into realtime_channels (pattern, webhook_urls)
    values ('hidden:*', '{https://hook.example/}'), ('hooked:*', '{https://hook.example/}');
insert into realtime_channels (pattern) values ('slow:*'), ('raises:*');
create function public.raises() returns boolean language plpgsql as $$
begin raise exception 'the secret inside'; end $$;
create policy hides on public.realtime_channels as restrictive for select to authenticated
    using (pattern <> 'hidden:*');
create policy keeps on public.realtime_messages as restrictive for select to authenticated
    using (case when channel_name like 'slow:%' then pg_sleep(60) is null
        when channel_name like 'raises:%' then public.raises()
        else channel_name not like 'hidden:%' end);
create policy closed on public.realtime_messages as restrictive for insert to authenticated
    with check (channel_name not like 'hidden:%');
"""


@pytest.fixture(scope="module")
def bridge(module_database: pg.Database) -> Iterator[Daemon]:
    with open_bridge(module_database, POLICIES, query_timeout=2, max_frame=300_000) as bridge:
        yield bridge


def ask(bridge: Daemon, method: str, path: str, body: Any = None, **more: Any) -> Reply:
    return request(bridge.url, method, f"/api/realtime{path}", body, **more)


def assert_problem(reply: Reply, status: int, code: str, *words: str) -> None:
    """Check that an error has the common form and contains these words."""
    assert (reply.status, reply.json["error"]) == (status, code), reply.text
    assert set(reply.json) <= {"error", "message", "statusCode", "nextActions"}
    assert reply.json["statusCode"] == status
    assert reply.json["message"].endswith((".", "?"))
    assert reply.headers["content-type"] == "application/json; charset=utf-8"
    assert [word for word in words if word not in reply.text] == [], reply.text


# Authentication


def test_a_request_without_a_token_is_refused(bridge: Daemon) -> None:
    for route in ROUTES:
        path = route.path.replace("{id}", str(uuid.uuid4()) if route.key is uuid.UUID else "1")
        reply = ask(bridge, route.method, path, key=None)
        assert_problem(reply, 401, "unauthorized", "Authorization: Bearer")
        assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("nonsense", "invalid_token"),
        (token("alice", exp=1), "token_expired"),
        (token("alice", "postgres"), "invalid_token"),
        (token("alice", "none"), "invalid_token"),
        (token("alice", "rowcast_bridge"), "invalid_token"),
        (token("alice", "rowcast_admin", exp=1), "token_expired"),
    ],
)
def test_an_invalid_token_is_refused(bridge: Daemon, key: str, code: str) -> None:
    assert_problem(ask(bridge, "GET", "/channels", key=key), 401, code)


def test_a_token_may_come_in_the_header_apikey(bridge: Daemon) -> None:
    assert ask(bridge, "GET", "/channels", key=None, apikey=ADMIN).status == 200
    assert ask(bridge, "GET", "/channels", key=None, Authorization=f"bearer {ADMIN}").status == 200
    assert ask(bridge, "GET", f"/channels?apikey={ADMIN}", key=None).status == 401


def test_only_administrators_may_administer(bridge: Daemon) -> None:
    for route in ROUTES:
        if route.admin:
            path = route.path.replace("{id}", str(uuid.uuid4()) if route.key is uuid.UUID else "1")
            reply = ask(bridge, route.method, path, {}, key=ALICE)
            assert_problem(reply, 403, "forbidden", "nextActions", "admin_roles")


async def test_administrators_cannot_connect_by_websocket(bridge: Daemon) -> None:
    """Their role would have to be one whose policies are evaluated."""
    async with connect(bridge.url, None) as wire:
        ref = await wire.send(op="auth", token=ADMIN)
        answer = await wire.until(lambda frame: frame.get("ref") == ref)
        assert answer["code"] == "invalid_token"


def test_the_roles_of_administrators_are_a_setting(
    bridge: Daemon, module_db: psycopg.Connection[Any]
) -> None:
    """The database applies it at once; bridges read new roles when they connect."""
    module_db.execute("update rowcast.settings set admin_roles = '{}'")
    try:
        assert_problem(ask(bridge, "GET", "/config"), 403, "forbidden", "may not administer")
    finally:
        module_db.execute("update rowcast.settings set admin_roles = '{rowcast_admin}'")
    assert ask(bridge, "GET", "/config").status == 200


# Requests


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"pattern": "a:*",}', ("trailing comma", "byte 18")),
        (b'{"pattern": "a:*"', ("too early", "byte 17")),
        (b"", ("too early", "byte 0")),
        (b'{"pattern": "a:*"} x', ("trailing characters", "byte 20")),
        (b'{"pattern": "\xff"}', ("not UTF-8", "byte 13")),
        (b'{"pattern": "a:*", "patern": 1}', ("unknown field `patern`",)),
        (b'{"description": "a"}', ("missing required field `pattern`",)),
        (b'{"pattern": 7}', ("Expected `str`", "$.pattern")),
        (b'{"pattern": "a:*", "enabled": "yes"}', ("Expected `bool`", "$.enabled")),
        (b'{"pattern": "a:*", "webhookUrls": ["ftp://x"]}', ("$.webhookUrls[0]",)),
        (b"[]", ("Expected `object`",)),
        (b'{"pattern": ' + b"[" * 100_000, ("Expected `str`",)),
    ],
)
def test_a_refused_body_is_explained(bridge: Daemon, body: bytes, words: tuple[str, ...]) -> None:
    assert_problem(ask(bridge, "POST", "/channels", body), 400, "invalid_request", *words)


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("limt=5", "`limt`"),
        ("limit=0", "$.limit"),
        ("limit=1001", "$.limit"),
        ("limit=", "$.limit"),
        ("limit=ten", "$.limit"),
        ("limit=1&limit=2", "limit is given twice"),
        ("offset=-1", "$.offset"),
        ("since=yesterday", "$.since"),
        ("since=2024-01-15T10:30:00", "$.since"),
        ("since=null", "since cannot be null"),
        ("since=0001-01-01T00:00:00%2B05:00", "out of range"),
        ("channelId=550e840", "$.channelId"),
        ("channelId=zzzzzzzz", "$.channelId"),
        ("cursor=%21", "cursor"),
        ("cursor=MS4y.", "cursor"),
        ("channelName=a%00b", "0x00"),
    ],
)
def test_a_refused_query_is_explained(bridge: Daemon, query: str, word: str) -> None:
    assert_problem(ask(bridge, "GET", f"/messages?{query}"), 400, "invalid_request", word)


def test_a_body_over_the_limit_is_not_read(bridge: Daemon) -> None:
    reply = ask(bridge, "POST", "/messages", b"x" * 300_001)
    assert_problem(reply, 413, "payload_too_large", "300000 bytes")


def test_a_payload_over_the_limit_is_refused_by_the_database(bridge: Daemon, room: str) -> None:
    body = {"channel": room, "event": "e", "payload": "x" * 262_145}
    for key in (ADMIN, ALICE):
        assert_problem(ask(bridge, "POST", "/messages", body, key=key), 413, "payload_too_large")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/channels", "GET, OPTIONS, POST"),
        ("POST", f"/channels/{uuid.uuid4()}", "DELETE, GET, OPTIONS, PUT"),
        ("PUT", "/messages", "GET, OPTIONS, POST"),
        ("PUT", "/openapi.json", "GET, OPTIONS"),
    ],
)
def test_an_unknown_method_gets_the_list_of_methods(
    bridge: Daemon, method: str, path: str, allowed: str
) -> None:
    reply = ask(bridge, method, path)
    assert_problem(reply, 405, "method_not_allowed")
    assert reply.headers["allow"] == allowed


def test_an_unknown_path_is_not_found(bridge: Daemon) -> None:
    assert_problem(ask(bridge, "GET", "/chanels"), 404, "not_found", "/api/realtime/chanels")


@pytest.mark.parametrize("text", ["abc", "%00", "550e8400", str(uuid.uuid4()).replace("-", "")])
def test_an_invalid_id_is_explained(bridge: Daemon, text: str) -> None:
    assert_problem(ask(bridge, "GET", f"/channels/{text}"), 400, "invalid_request")


# Channels


def test_a_channel_is_created_read_changed_and_deleted(bridge: Daemon) -> None:
    pattern = f"made:{uuid.uuid4().hex}:*"
    made = ask(bridge, "POST", "/channels?full=true", {"pattern": pattern, "isPublic": True}).json
    assert list(made) == [
        "id", "pattern", "description", "webhookUrls", "enabled", "createdAt", "updatedAt",
        "isPublic", "ownerId", "wildcard",
    ]  # fmt: skip
    path = f"/channels/{made['id']}"
    assert (made["isPublic"], made["ownerId"], made["wildcard"]) == (True, None, False)
    assert ask(bridge, "GET", f"{path}?full=true").json == made
    changed = ask(bridge, "PUT", path, {"description": "now", "enabled": False}).json
    assert (changed["description"], changed["enabled"]) == ("now", False)
    assert changed["pattern"] == pattern
    assert changed["updatedAt"] >= made["updatedAt"]
    assert ask(bridge, "PUT", path, {"description": None}).json["description"] is None
    assert ask(bridge, "PUT", path, {}).status == 200
    deleted = ask(bridge, "DELETE", path)
    assert (deleted.status, deleted.json) == (200, {"message": "Channel deleted"})
    for method in ("GET", "DELETE"):
        assert_problem(ask(bridge, method, path), 404, "not_found")
    assert_problem(ask(bridge, "PUT", path, {}), 404, "not_found")


def test_the_creator_is_the_owner_unless_another_is_named(bridge: Daemon) -> None:
    carol = token("carol", "rowcast_admin")
    for given, owner in (({}, "carol"), ({"ownerId": "bob"}, "bob"), ({"ownerId": None}, None)):
        body = {"pattern": f"owned:{uuid.uuid4().hex}", **given}
        made = ask(bridge, "POST", "/channels?full=true", body, key=carol).json
        assert made["ownerId"] == owner


def test_a_pattern_is_unique(bridge: Daemon) -> None:
    reply = ask(bridge, "POST", "/channels", {"pattern": "room:*"})
    assert_problem(reply, 409, "conflict", "room:*", "nextActions")
    other = ask(bridge, "POST", "/channels", {"pattern": f"other:{uuid.uuid4().hex}"}).json["id"]
    assert_problem(ask(bridge, "PUT", f"/channels/{other}", {"pattern": "room:*"}), 409, "conflict")


@pytest.mark.parametrize("pattern", ["", "a b", "a:", "**:a", "a\u0000b", "x" * 256, "a*"])
def test_an_invalid_pattern_is_explained(bridge: Daemon, pattern: str) -> None:
    reply = ask(bridge, "POST", "/channels", {"pattern": pattern})
    assert reply.status == 400, reply.text
    assert reply.json["error"] in ("invalid_channel", "invalid_request")


def test_callers_see_the_channels_that_policies_show(bridge: Daemon) -> None:
    everything = {channel["pattern"]: channel for channel in ask(bridge, "GET", "/channels").json}
    seen = {c["pattern"]: c for c in ask(bridge, "GET", "/channels", key=ALICE).json}
    assert everything["hooked:*"]["webhookUrls"] == ["https://hook.example/"]
    assert "hidden:*" in everything.keys() - seen.keys()
    assert "webhookUrls" not in seen["hooked:*"]
    hooked, hidden = everything["hooked:*"]["id"], everything["hidden:*"]["id"]
    assert ask(bridge, "GET", f"/channels/{hooked}", key=ALICE).json == seen["hooked:*"]
    denied = ask(bridge, "GET", f"/channels/{hidden}", key=ALICE)
    absent = ask(bridge, "GET", f"/channels/{uuid.uuid4()}", key=ALICE)
    assert (denied.status, denied.text) == (absent.status, absent.text)
    assert_problem(denied, 404, "not_found")


# Messages


async def test_a_published_message_is_delivered_and_readable(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url) as wire:
        await wire.subscribe(room)
        one = ask(bridge, "POST", "/messages", {"channel": room, "event": "a"}, key=ALICE)
        both = [{"channel": room, "event": event, "payload": [1]} for event in ("b", "c")]
        two = ask(bridge, "POST", "/messages", both, key=ALICE)
        three = ask(bridge, "POST", "/messages", {"channel": room, "event": "d"})
        assert [one.status, two.status, three.status] == [201] * 3
        heard = await wire.messages(4)
    ids = [one.json["id"], *[receipt["id"] for receipt in two.json], three.json["id"]]
    assert [message["id"] for message in heard] == ids
    read = ask(bridge, "GET", f"/messages?channelName={room}", key=ALICE).json
    assert [message["id"] for message in read] == ids[::-1]
    assert [message["senderId"] for message in read] == [None, "alice", "alice", "alice"]
    assert [message["senderType"] for message in read] == ["system", "user", "user", "user"]


def test_a_batch_is_published_whole_or_not_at_all(bridge: Daemon, room: str) -> None:
    for key, code in ((ALICE, 403), (ADMIN, 404)):
        batch = [{"channel": room, "event": "a"}, {"channel": "nowhere:1", "event": "b"}]
        assert ask(bridge, "POST", "/messages", batch, key=key).status == code
    assert ask(bridge, "GET", f"/messages?channelName={room}").json == []
    assert_problem(ask(bridge, "POST", "/messages", []), 400, "invalid_request")
    many = [{"channel": room, "event": "a"}] * 1001
    assert_problem(ask(bridge, "POST", "/messages", many), 400, "invalid_request")


def test_denied_and_absent_are_answered_alike(bridge: Daemon) -> None:
    def told(name: str) -> list[tuple[int, str]]:
        replies = (
            ask(bridge, "POST", "/messages", {"channel": name, "event": "e"}, key=ALICE),
            ask(bridge, "GET", f"/messages?channelName={name}", key=ALICE),
            ask(bridge, "GET", f"/messages/stats?channelName={name}", key=ALICE),
        )
        return [(reply.status, reply.text) for reply in replies]

    assert ask(bridge, "POST", "/messages", {"channel": "hidden:1", "event": "e"}).status == 201
    assert told("hidden:1") == told("nowhere:1")


def test_a_repeated_id_is_answered_with_the_first_message(bridge: Daemon, room: str) -> None:
    body = {"channel": room, "event": "e", "id": str(uuid.uuid4())}
    for key in (ALICE, ADMIN):
        first = ask(bridge, "POST", "/messages", body, key=key).json
        assert ask(bridge, "POST", "/messages", body, key=key).json == first
        assert ask(bridge, "POST", "/messages", [body], key=key).json == [first]


@pytest.mark.parametrize(
    "payload", ["12345678901234567890.12345678901234567890", "[" * 3000 + "]" * 3000]
)
def test_payloads_pass_through_unread(bridge: Daemon, room: str, payload: str) -> None:
    """The numbers do not survive a float, nor the depth Python's parser."""
    body = f'{{"channel": "{room}", "event": "e", "payload": {payload}}}'.encode()
    sent = ask(bridge, "POST", "/messages", body, key=ALICE)
    if payload.startswith("["):
        assert sent.status in (201, 400), sent.text
        return
    assert sent.status == 201
    assert payload in ask(bridge, "GET", f"/messages?channelName={room}", key=ALICE).text


@pytest.mark.parametrize("payload", [b'"\\u0000"', b'"\xff"', b'"\\ud800"', b"1e999999"])
@pytest.mark.parametrize("key", [ALICE, ADMIN])
def test_payloads_that_jsonb_cannot_hold_are_refused(
    bridge: Daemon, room: str, payload: bytes, key: str
) -> None:
    body = f'{{"channel": "{room}", "event": "e", "payload": '.encode() + payload + b"}"
    reply = ask(bridge, "POST", "/messages", body, key=key)
    assert reply.status == 400, reply.text


def test_pages_are_linked(bridge: Daemon, room: str) -> None:
    events = [f"e{number}" for number in range(7)]
    ask(bridge, "POST", "/messages", [{"channel": room, "event": event} for event in events])
    path, seen = f"/api/realtime/messages?channelName={room}&limit=3&offset=1", []
    for _ in range(3):
        reply = request(bridge.url, "GET", path)
        seen += [message["eventName"] for message in reply.json]
        if "link" not in reply.headers:
            break
        assert reply.headers["x-next-cursor"] in reply.headers["link"]
        path = reply.headers["link"].removeprefix("<").removesuffix('>; rel="next"')
        ask(bridge, "POST", "/messages", {"channel": room, "event": "late"})
    assert seen == events[5::-1]


async def test_a_deleted_message_leaves_clients_and_history(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url) as wire:
        await wire.subscribe(room)
        sent = ask(bridge, "POST", "/messages", {"channel": room, "event": "e"}).json["id"]
        assert ask(bridge, "DELETE", f"/messages/{sent}").json == {"message": "Message deleted"}
        assert (await wire.until(lambda frame: frame["op"] == "deleted"))["id"] == sent
    assert ask(bridge, "GET", f"/messages?channelName={room}").json == []
    assert_problem(ask(bridge, "DELETE", f"/messages/{sent}"), 404, "not_found")


def test_callers_get_statistics_of_channels_they_may_hear(bridge: Daemon, room: str) -> None:
    ask(bridge, "POST", "/messages", [{"channel": room, "event": "e"}] * 3)
    reply = ask(bridge, "GET", f"/messages/stats?channelName={room}", key=ALICE)
    assert reply.json == {
        "totalMessages": 3, "whDeliveryRate": 0, "topEvents": [{"eventName": "e", "count": 3}],
    }  # fmt: skip
    assert reply.text == ask(bridge, "GET", f"/messages/stats?channelName={room}").text
    for query in ("", "?channelId=550e8400", "?channelName=hidden:1"):
        assert_problem(ask(bridge, "GET", f"/messages/stats{query}", key=ALICE), 403, "forbidden")
    both = f"/messages/stats?channelName={room}&channelId=550e8400"
    assert_problem(ask(bridge, "GET", both), 400, "invalid_request", "not both")


async def test_presence_and_audience_need_the_right_to_subscribe(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url, ALICE) as wire:
        await wire.subscribe(room)
        assert (await wire.ask(op="track", channel=room, state={"at": 1}))["op"] == "ok"
        for key in (ALICE, ADMIN):
            audience = await asyncio.to_thread(
                ask, bridge, "GET", f"/audience?channelName={room}", key=key
            )
            assert audience.json == {"channel": room, "wsAudienceCount": 1}
            present = await asyncio.to_thread(
                ask, bridge, "GET", f"/presence?channelName={room}", key=key
            )
            (member,) = present.json["presence"]
            assert member.pop("joinedAt").endswith("Z")
            assert member == {
                "key": "alice", "presence": {"at": 1}, "anonymous": False, "sessions": 1,
            }  # fmt: skip
    for path in ("/audience", "/presence"):
        denied = ask(bridge, "GET", f"{path}?channelName=hidden:1", key=ALICE)
        assert_problem(denied, 403, "forbidden")
        assert_problem(ask(bridge, "GET", path, key=ALICE), 400, "invalid_request", "channelName")


def test_a_failing_policy_reveals_nothing(bridge: Daemon) -> None:
    ask(bridge, "POST", "/messages", {"channel": "raises:1", "event": "e"})
    reply = ask(bridge, "GET", "/messages?channelName=raises:1", key=ALICE)
    assert_problem(reply, 403, "forbidden")
    assert "secret" not in reply.text
    assert "the secret inside" in bridge.log


def test_a_slow_policy_is_unavailable_not_denied(bridge: Daemon) -> None:
    ask(bridge, "POST", "/messages", {"channel": "slow:1", "event": "e"})
    reply = ask(bridge, "GET", "/messages?channelName=slow:1", key=ALICE)
    assert_problem(reply, 503, "unavailable", "too long")
    assert reply.headers["retry-after"] == "1"


def test_slow_reads_of_one_caller_do_not_block_publishers(bridge: Daemon, room: str) -> None:
    with ThreadPoolExecutor(12) as pool:
        slow = [
            pool.submit(ask, bridge, "GET", "/messages?channelName=slow:1", key=ALICE)
            for _ in range(12)
        ]
        for _ in range(3):
            started = time.monotonic()
            sent = ask(bridge, "POST", "/messages", {"channel": room, "event": "e"}, key=ALICE)
            assert sent.status == 201
            assert time.monotonic() - started < 1.5
            assert not all(reading.done() for reading in slow)
        for reading in slow:
            assert_problem(reading.result(), 503, "unavailable")


# Administration and HTTP


def test_settings_are_read_and_changed(bridge: Daemon, module_db: psycopg.Connection[Any]) -> None:
    before = ask(bridge, "GET", "/config").json
    assert before["retentionDays"] == 30
    changed = ask(bridge, "PATCH", "/config", {"retentionDays": 2.5, "replayRows": 7}).json
    assert changed == {**before, "retentionDays": 2.5, "replayRows": 7}
    assert only(
        module_db, "select retention = '60 hours' and replay_rows = 7 from rowcast.settings"
    )
    assert ask(bridge, "PATCH", "/config", {"retentionDays": None}).json["retentionDays"] is None
    assert ask(bridge, "PATCH", "/config", before).json == before
    for wrong in ({"retentionDays": 0}, {"retentionDays": "30"}, {"retention": 1}):
        assert_problem(ask(bridge, "PATCH", "/config", wrong), 400, "invalid_request")


def test_webhooks_are_administered(bridge: Daemon) -> None:
    ask(bridge, "POST", "/messages", {"channel": "hooked:1", "event": "e"})
    channel = next(
        c["id"] for c in ask(bridge, "GET", "/channels").json if c["pattern"] == "hooked:*"
    )
    (endpoint,) = ask(bridge, "GET", f"/webhooks/endpoints?channelId={channel}").json
    assert endpoint["url"] == "https://hook.example/"
    assert "secret" not in endpoint
    rotated = ask(bridge, "POST", f"/webhooks/endpoints/{endpoint['id']}/rotate").json
    assert rotated["secret"].startswith("whsec_")
    page = ask(bridge, "GET", f"/webhooks/deliveries?channelId={channel}&limit=1").json
    (delivery,) = page["deliveries"]
    path = f"/webhooks/deliveries/{delivery['id']}"
    assert isinstance(ask(bridge, "GET", f"{path}/attempts").json, list)
    assert ask(bridge, "POST", f"{path}/redeliver").json["id"] == delivery["id"]
    for absent in ("/webhooks/deliveries/999999/attempts", "/webhooks/deliveries/9999/redeliver"):
        method = "GET" if absent.endswith("attempts") else "POST"
        assert_problem(ask(bridge, method, absent), 404, "not_found")
    unknown = f"/webhooks/endpoints/{uuid.uuid4()}/rotate"
    assert_problem(ask(bridge, "POST", unknown), 404, "not_found")
    for wrong in ("+1", "1_0", "-1", "9" * 30):
        reply = ask(bridge, "GET", f"/webhooks/deliveries/{wrong}/attempts")
        assert reply.status in (400, 404), reply.text


def test_every_route_has_a_handler_and_a_place_in_the_document(bridge: Daemon) -> None:
    document = ask(bridge, "GET", "/openapi.json", key=None).json
    described = {
        (method.upper(), path.removeprefix(BASE), operation["operationId"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert described == {(route.method, route.path, route.name) for route in ROUTES}
    assert all(callable(getattr(Calls, route.name)) for route in ROUTES)


def test_pages_of_any_origin_are_allowed_by_default(bridge: Daemon) -> None:
    plain = ask(bridge, "GET", "/channels")
    assert "access-control-allow-origin" not in plain.headers
    for reply in (
        ask(bridge, "GET", "/channels", Origin="https://app.example"),
        ask(bridge, "GET", "/channels", key=None, Origin="https://app.example"),
        ask(bridge, "GET", "/openapi.json", key=None, Origin="https://app.example"),
        ask(bridge, "GET", "/nothing", Origin="https://app.example"),
        ask(bridge, "PUT", "/messages", Origin="https://app.example"),
    ):
        assert reply.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in reply.headers
        assert "X-Next-Cursor" in reply.headers["access-control-expose-headers"]
    preflight = ask(
        bridge, "OPTIONS", f"/channels/{uuid.uuid4()}", key=None,
        Origin="https://app.example", Access_Control_Request_Method="PUT",
        Access_Control_Request_Headers="authorization",
    )  # fmt: skip
    assert preflight.status == 204
    assert "PUT" in preflight.headers["access-control-allow-methods"]
    assert "Authorization" in preflight.headers["access-control-allow-headers"]


def test_a_list_of_origins_excludes_all_others(module_database: pg.Database) -> None:
    with daemon(module_database, allowed_origins="https://a.example,https://b.example") as bridge:
        for method in ("GET", "OPTIONS"):
            good = ask(bridge, method, "/channels", Origin="https://b.example")
            assert good.headers["access-control-allow-origin"] == "https://b.example"
            bad = ask(bridge, method, "/channels", Origin="https://c.example")
            assert not [name for name in bad.headers if name.startswith("access-control")]
            assert good.headers["vary"] == bad.headers["vary"] == "Origin"


def test_a_client_over_the_rate_is_told_when_to_retry(
    module_database: pg.Database,
) -> None:
    with daemon(module_database, frame_rate=1, frame_burst=3) as bridge:
        replies = [ask(bridge, "GET", "/channels", key=ALICE) for _ in range(6)]
        assert [reply.status for reply in replies[:3]] == [200] * 3
        assert_problem(replies[-1], 429, "rate_limited")
        assert replies[-1].headers["retry-after"] == "1"
        assert ask(bridge, "GET", "/channels", key=token("bob")).status == 200
        assert ask(bridge, "GET", "/channels", key=token(None, "anon")).status == 200


def test_a_missing_database_is_unavailable_not_denied(own_server: pg.OwnServer) -> None:
    with own_server.database() as database:
        open_channels(database, "room:*")
        with daemon(database, query_timeout=2) as bridge:
            assert ask(bridge, "GET", "/channels", key=ALICE).status == 200
            own_server.stop("immediate")
            for key in (ALICE, ADMIN):
                for method, path, body in (
                    ("GET", "/channels", None),
                    ("GET", "/messages", None),
                    ("GET", "/messages/stats?channelName=room:1", None),
                    ("POST", "/messages", {"channel": "room:1", "event": "e"}),
                    ("POST", "/messages", [{"channel": "room:1", "event": "e"}]),
                ):
                    reply = ask(bridge, method, path, body, key=key)
                    assert_problem(reply, 503, "unavailable")
                    assert reply.headers["retry-after"] == "1"
            assert_problem(ask(bridge, "GET", "/config"), 503, "unavailable")
            own_server.start()
            eventually(lambda: ask(bridge, "GET", "/channels", key=ALICE).status == 200)
