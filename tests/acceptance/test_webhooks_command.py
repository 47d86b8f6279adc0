"""`rowcast webhooks`, and `rowcast dev` with a receiver on the same machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import standardwebhooks

from support import pg
from support.bridge_process import daemon
from support.command import environment, rowcast, started
from support.deliveries import alter_settings, deliveries, endpoints
from support.messages import add_channel, publish
from support.waiting import eventually
from support.webhook_receiver import receiver

pytestmark = pytest.mark.acceptance

Connection = psycopg.Connection[Any]
Run = Callable[..., Any]

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
HERE = "127.0.0.0/8"


@pytest.fixture
def run(database: pg.Database, tmp_path: Path) -> Run:
    """Run `rowcast webhooks …` with the login of the bridge; return what it printed."""

    def run(*arguments: str, code: int = 0, **settings: Any) -> str:
        env = environment(tmp_path, database_url=database.bridge_url, **settings)
        done = rowcast("webhooks", *arguments, env=env)
        assert done.returncode == code, done.stderr
        return done.stdout or done.stderr

    return run


def test_endpoints_and_deliveries_are_listed(db: Connection, run: Run) -> None:
    assert "no endpoints" in run("list")
    channel = add_channel(db, "room:*", webhook_urls=["https://one.example/hook"])
    sent = publish(db, "room:1")
    (endpoint,) = endpoints(db)
    (found,) = json.loads(run("list", "--json"))
    assert found == {
        "id": str(endpoint.id),
        "channelId": str(channel),
        "pattern": "room:*",
        "url": "https://one.example/hook",
        "state": "active",
        "reason": None,
        "failures": 0,
        "failingSince": None,
        "pausedUntil": None,
        "pending": 1,
        "oldSecretUntil": None,
        "createdAt": found["createdAt"],
    }
    assert str(endpoint.id) in run("list", "--channel", "room:*")
    assert "no endpoints" in run("list", "--channel", "hall:*")
    page = json.loads(run("deliveries", "--json"))
    assert page["next"] is None
    (delivery,) = page["deliveries"]
    assert delivery["messageId"] == str(sent)
    assert (delivery["state"], delivery["attempts"]) == ("pending", 0)
    assert "https://one.example/hook" in run("deliveries", "--channel", "room:*")
    assert "one.example" not in run("deliveries", "--state", "failed")


def test_pages_of_deliveries_meet_without_gap_or_overlap(db: Connection, run: Run) -> None:
    add_channel(db, "room:*", webhook_urls=["https://one.example/hook"])
    for _ in range(5):
        publish(db, "room:1")
    seen: list[int] = []
    after: list[str] = []
    while True:
        page = json.loads(run("deliveries", "--json", "--limit", "2", *after))
        seen += [d["id"] for d in page["deliveries"]]
        publish(db, "room:1")
        if page["next"] is None:
            break
        after = ["--after", page["next"]]
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == len(set(seen)) == 5


def test_a_dead_letter_is_found_looked_at_and_sent_again(
    db: Connection, database: pg.Database, run: Run
) -> None:
    alter_settings(db, webhook_schedule="{}")
    statuses = iter([500, 200])
    with (
        receiver(lambda _: (next(statuses), {}, b"because")) as hook,
        daemon(database, webhook_allow_cidrs=HERE),
    ):
        add_channel(db, "room:*", webhook_urls=[hook.url()])
        publish(db, "room:1")
        eventually(lambda: [d.state for d in deliveries(db)] == ["failed"])
        (dead,) = json.loads(run("deliveries", "--state", "failed", "--json"))["deliveries"]
        assert (dead["reason"], dead["lastStatus"]) == ("exhausted", 500)
        number = str(dead["id"])
        assert "because" in run("deliveries", "--attempts", number)
        assert "is queued" in run("redeliver", number)
        eventually(lambda: [d.state for d in deliveries(db)] == ["delivered"])
    assert len({h.id for h in hook.heard}) == 1
    attempts = json.loads(run("deliveries", "--attempts", number, "--json"))
    assert [(a["attempt"], a["status"]) for a in attempts] == [(1, 500), (2, 200)]


def test_mistakes_are_explained(db: Connection, run: Run) -> None:
    assert "There is no delivery 7." in run("redeliver", "7", code=1)
    assert "There is no delivery 7." in run("deliveries", "--attempts", "7", code=1)
    assert "There is no endpoint" in run("rotate", str(uuid4()), code=1)
    assert "is not the id of an endpoint" in run("rotate", "x", code=2)
    assert "no delivery state" in run("deliveries", "--state", "lost", code=1)
    assert "cursor" in run("deliveries", "--after", "x", code=1)
    assert "has webhooks" in run("deliveries", "--channel", "hall:*", code=1)
    assert "whsec_" in run("test", "http://127.0.0.1:1/", "--secret", "x", code=1)


def test_a_rotated_secret_is_printed_and_nothing_else(db: Connection, run: Run) -> None:
    add_channel(db, "room:*", webhook_urls=["https://one.example/hook"])
    (before,) = endpoints(db)
    printed = run("rotate", str(before.id)).strip()
    (after,) = endpoints(db)
    assert printed == after.secret != before.secret
    assert json.loads(run("list", "--json"))[0]["oldSecretUntil"] is not None


def test_a_request_to_try_a_receiver_with_is_signed(run: Run) -> None:
    with receiver(lambda _: (200, {}, b'{"received": true}')) as hook:
        said = run("test", hook.url(), "--secret", SECRET, webhook_allow_cidrs=HERE)
        (heard,) = hook.heard
    assert "delivered: status 200" in said
    assert '{"received": true}' in said
    body = standardwebhooks.Webhook(SECRET).verify(heard.body, heard.headers)
    assert list(body) == ["event", "channelName", "channelId", "payload", "senderId", "timestamp"]


def test_a_try_reaches_no_more_than_a_bridge_would(run: Run) -> None:
    with receiver() as hook:
        said = run("test", hook.url(), code=1)
        assert "ROWCAST_WEBHOOK_ALLOW_CIDRS" in said
        assert json.loads(run("test", hook.url(), "--json", code=1))["error"] == "denied_address"
        assert hook.heard == []
    assert "https://example.com/webhook" in run("test", "nowhere", code=1)


def test_dev_delivers_to_a_receiver_on_the_same_machine(tmp_path: Path) -> None:
    env = environment(tmp_path)
    with receiver() as hook, started("dev", "--ephemeral", "--port", "0", "--json", env=env) as dev:
        ready = dev.json()
        with psycopg.connect(ready["database_url"], autocommit=True) as db:
            db.execute(
                "update realtime_channels set webhook_urls = %s where pattern = 'chat:*'",
                [[hook.url()]],
            )
            assert hook.url() in rowcast("webhooks", "list", env=env).stdout
            publish(db, "chat:room1")
            hook.wait(1)
