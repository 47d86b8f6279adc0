"""Webhooks through the real bridge: verifiable, delivered at least once under one id."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psycopg
import pytest
import standardwebhooks

from rowcast.bridge.database import Database
from rowcast.bridge.webhooks import outbox
from rowcast.bridge.webhooks.egress import Guard, Sender
from rowcast.config import Settings
from support import javascript, pg
from support.bridge_process import SECRET, Daemon, daemon
from support.deliveries import alter_settings, attempts, deliveries, endpoints
from support.messages import add_channel, messages, only, publish
from support.waiting import eventually
from support.webhook_receiver import Heard, Receiver, receiver

pytestmark = pytest.mark.acceptance

Connection = psycopg.Connection[Any]

LEASED = "select count(*) from rowcast.delivery where lease_by is not null"
ALLOWED = {"webhook_allow_cidrs": "127.0.0.0/8", "drain_timeout": 2}


def settled(db: Connection, state: str = "delivered", count: int = 1) -> None:
    """Wait until `count` deliveries are in this state."""
    query = "select count(*) from rowcast.delivery where state = %s"
    eventually(lambda: only(db, query, [state]) >= count, what=f"{count} {state}")


def verified(secret: str, heard: Heard) -> Any:
    return standardwebhooks.Webhook(secret).verify(heard.body, heard.headers)


def test_a_message_is_posted_signed_and_settled(db: Connection, database: pg.Database) -> None:
    with receiver() as hook, daemon(database, **ALLOWED):
        channel = add_channel(db, "room:*", webhook_urls=[hook.url("/hook?a=b%20c")])
        sent = publish(db, "room:1", "message.new", payload='{"text": "Hi ü", "n": 1e3}')
        (heard,) = hook.wait(1)
        settled(db)
    (endpoint,) = endpoints(db)
    body = verified(endpoint.secret, heard)
    (message,) = messages(db, "room:1")
    assert heard.path == "/hook?a=b%20c"
    assert body == {
        "event": "message.new",
        "channelName": "room:1",
        "channelId": str(channel),
        "payload": {"text": "Hi ü", "n": 1000},
        "senderId": None,
        "timestamp": body["timestamp"],
    }
    assert list(body) == ["event", "channelName", "channelId", "payload", "senderId", "timestamp"]
    assert heard.id == f"msg_{sent}"
    assert heard.headers["content-type"] == "application/json"
    assert heard.headers["user-agent"].startswith("rowcast/")
    assert heard.headers["x-rowcast-event"] == "message.new"
    assert heard.headers["x-rowcast-channel"] == "room:1"
    assert heard.headers["x-rowcast-message-id"] == str(sent)
    assert message.wh_audience_count == 1
    (row,) = deliveries(db)
    assert attempts(db, row.id) == [(1, 200, None, None)]


def test_names_in_headers_are_safe_and_can_be_read_back(
    db: Connection, database: pg.Database
) -> None:
    with receiver() as hook, daemon(database, **ALLOWED):
        add_channel(db, "room:*", webhook_urls=[hook.url()])
        publish(db, "room:zoë%41", "größer 💥 100%")
        (heard,) = hook.wait(1)
    assert heard.headers["x-rowcast-event"].isascii()
    assert unquote(heard.headers["x-rowcast-event"]) == "größer 💥 100%"
    assert unquote(heard.headers["x-rowcast-channel"]) == "room:zoë%41"
    assert json.loads(heard.body)["event"] == "größer 💥 100%"


def test_a_channel_may_ask_for_the_body_of_insforge(db: Connection, database: pg.Database) -> None:
    with receiver() as hook, daemon(database, **ALLOWED):
        add_channel(db, "room:*", webhook_urls=[hook.url()], options='{"webhookBody": "payload"}')
        sent = publish(db, "room:1", "message.new", payload='{"a": [1, 2]}')
        (heard,) = hook.wait(1)
        verified(endpoints(db)[0].secret, heard)
    assert heard.body == b'{"a": [1, 2]}'
    assert heard.headers["x-insforge-event"] == "message.new"
    assert heard.headers["x-insforge-channel"] == "room:1"
    assert heard.headers["x-insforge-message-id"] == str(sent)


def test_a_payload_passes_through_as_postgres_wrote_it(
    db: Connection, database: pg.Database
) -> None:
    """With a depth and numbers that Python's json cannot handle."""
    deep = '{"d": ' + "[" * 3000 + "]" * 3000 + ', "n": 1' + "0" * 400 + "}"
    with receiver() as hook, daemon(database, **ALLOWED):
        add_channel(db, "room:*", webhook_urls=[hook.url()])
        publish(db, "room:1", payload=deep)
        (heard,) = hook.wait(1)
    assert f'"payload":{deep}'.encode() in heard.body


def test_the_npm_library_verifies_during_a_secret_rotation(
    db: Connection, database: pg.Database, tmp_path: Path
) -> None:
    """Both secrets sign meanwhile."""
    node = javascript.Node(tmp_path)
    with receiver() as hook, daemon(database, **ALLOWED):
        add_channel(db, "room:*", webhook_urls=[hook.url()])
        (before,) = endpoints(db)
        publish(db, "room:1", payload='{"text": "ü"}')
        hook.wait(1)
        new = only(db, "select rowcast.rotate_secret(%s)", [before.id])
        publish(db, "room:1", payload='{"text": "ü"}')
        hook.wait(2)
        db.execute("update rowcast.endpoint set previous_until = now()")
        publish(db, "room:1", payload='{"text": "ü"}')
        hook.wait(3)
    expected = [(before.secret, 0, True), (before.secret, 1, True), (new, 1, True),
                (new, 2, True), (before.secret, 2, False), (new, 0, False)]  # fmt: skip
    lines = []
    for secret, index, good in expected:
        heard = hook.heard[index]
        if good:
            verified(secret, heard)
        else:
            with pytest.raises(standardwebhooks.WebhookVerificationError):
                verified(secret, heard)
        names = {k: v for k, v in heard.headers.items() if k.startswith("webhook-")}
        lines.append(json.dumps({"secret": secret, "headers": names, "body": heard.body.decode()}))
    with node.started("verify.js") as process:
        said, _ = process.communicate("\n".join(lines) + "\n", timeout=30)
    assert [line == "ok" for line in said.splitlines()] == [good for *_, good in expected]


def test_a_failed_delivery_is_retried_under_the_same_id(
    db: Connection, database: pg.Database
) -> None:
    """With a new time and signature."""
    alter_settings(db, webhook_schedule="{1.3 s,1.3 s}")
    statuses = iter([500, 302, 200])
    elsewhere = {"Location": "/elsewhere"}
    with (
        receiver(lambda _: (next(statuses), elsewhere, b"the \0 answer")) as hook,
        daemon(database, **ALLOWED),
    ):
        add_channel(db, "room:*", webhook_urls=[hook.url()])
        publish(db, "room:1")
        heard = list(hook.wait(3))
        settled(db)
    assert len({h.id for h in heard}) == len({h.body for h in heard}) == 1
    assert len({h.headers["webhook-timestamp"] for h in heard}) > 1
    assert {h.path for h in heard} == {"/hook"}
    for one in heard:
        verified(endpoints(db)[0].secret, one)
    (row,) = deliveries(db)
    assert [a[1] for a in attempts(db, row.id)] == [500, 302, 200]
    assert attempts(db, row.id)[0][3] == "the \N{REPLACEMENT CHARACTER} answer"


def test_410_stops_after_one_attempt(db: Connection, database: pg.Database) -> None:
    with receiver(lambda _: 410) as hook, daemon(database, **ALLOWED):
        add_channel(db, "room:*", webhook_urls=[hook.url()])
        publish(db, "room:1")
        settled(db, "cancelled")
        publish(db, "room:1")
        with receiver() as other:
            add_channel(db, "hall:*", webhook_urls=[other.url()])
            publish(db, "hall:1")
            other.wait(1)
    assert len(hook.heard) == 1
    assert endpoints(db)[0].state == "disabled"


@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_a_killed_bridge_sends_at_most_twice_under_one_id(
    db: Connection, database: pg.Database, moment: str
) -> None:
    """Killed before the request is answered, after it, and at random times in between."""
    killed = threading.Event()

    def answer(_: Heard) -> int:
        if moment == "during":
            killed.wait(10)  # the request is in flight when the bridge dies
        return 200

    settings = {**ALLOWED, "webhook_timeout": 0.5}
    with receiver(answer) as hook, daemon(database, **settings) as bridge:
        add_channel(db, "room:*", webhook_urls=[hook.url()])
        publish(db, "room:0")
        if moment != "during":
            settled(db)
        for number in range(1, 6):
            publish(db, f"room:{number}")
            if moment == "before":
                eventually(lambda n=number: only(db, LEASED) or len(hook.heard) > n)
            elif moment == "after":
                eventually(lambda n=number: len(hook.heard) > n)
        hook.wait(1 if moment == "during" else 0)
        bridge.kill()
        killed.set()
        bridge.start()
        settled(db, count=6)
    times = Counter(h.id for h in hook.heard)
    assert set(times) == {f"msg_{d.message_id}" for d in deliveries(db)}
    assert set(times.values()) <= {1, 2}
    assert {d.state for d in deliveries(db)} == {"delivered"}


def test_three_bridges_send_each_delivery_once(db: Connection, database: pg.Database) -> None:
    with (
        receiver() as hook,
        daemon(database, **ALLOWED),
        daemon(database, **ALLOWED),
        daemon(database, **ALLOWED),
    ):
        for number in range(5):
            add_channel(db, f"room{number}:*", webhook_urls=[hook.url(f"/{number}")])
        db.execute(
            "insert into realtime_messages (channel_name, event_name)"
            " select 'room' || n % 5 || ':1', 'said' from generate_series(1, 600) as n"
        )
        settled(db, count=600)
    assert len(hook.heard) == 600
    assert len({h.id for h in hook.heard}) == 600
    assert only(db, "select count(*) from rowcast.attempt") == 600


def test_sigterm_finishes_requests_in_flight_and_begins_none(
    db: Connection, database: pg.Database
) -> None:
    go_on = threading.Event()

    def answer(_: Heard) -> int:
        go_on.wait(10)
        return 200

    with receiver(answer) as hook, daemon(database, **{**ALLOWED, "drain_timeout": 8}) as bridge:
        add_channel(db, "room:*", webhook_urls=[hook.url()])
        for _ in range(10):
            publish(db, "room:1")
        hook.wait(4)  # the concurrency of a new endpoint
        bridge.signal(signal.SIGTERM)
        eventually(lambda: "event=draining" in bridge.log)
        go_on.set()
        assert bridge.wait() == 0
    assert len(hook.heard) == 4
    assert Counter(d.state for d in deliveries(db)) == {"delivered": 4, "pending": 6}
    assert {d.lease_by for d in deliveries(db)} == {None}


@pytest.mark.parametrize("patience", [0, 0.3])
def test_requests_that_do_not_end_in_time_are_released(
    db: Connection, database: pg.Database, patience: float
) -> None:
    with (
        receiver(lambda _: hang()) as hook,
        daemon(database, **{**ALLOWED, "drain_timeout": patience}) as bridge,
    ):
        add_channel(db, "room:*", webhook_urls=[hook.url()])
        publish(db, "room:1")
        hook.wait(1)
        assert bridge.terminate() == 0
    (row,) = deliveries(db)
    assert (row.state, row.attempt, row.lease_by) == ("pending", 0, None)


@contextlib.asynccontextmanager
async def own_outbox(database: pg.Database) -> AsyncIterator[outbox.Outbox]:
    """Run an outbox in this process, so that a test can delay it."""
    settings = Settings.from_env(
        {
            "ROWCAST_DATABASE_URL": database.bridge_url,
            "ROWCAST_CALLER_URL": database.caller_url,
            "ROWCAST_JWT_SECRET": SECRET,
        }
    )
    own = Database(settings)
    await own.open()
    box = outbox.Outbox(own, Sender(Guard(["127.0.0.0/8"]), 15.0), settings)
    running = asyncio.create_task(box.run())
    try:
        yield box
        await asyncio.wait_for(box.finish(), 10)
    finally:
        running.cancel()
        await own.close()


async def test_claimed_deliveries_not_begun_are_released(
    db: Connection, database: pg.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "PORTION", 0)
    with receiver() as hook:
        add_channel(db, "room:*", webhook_urls=[hook.url()])
        publish(db, "room:1")
        async with own_outbox(database):
            await asyncio.to_thread(eventually, lambda: only(db, LEASED))
    (row,) = deliveries(db)
    assert (row.state, row.attempt, row.lease_by) == ("pending", 0, None)
    assert hook.heard == []


async def test_deliveries_not_begun_are_released_first(
    db: Connection, database: pg.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other bridges need not wait for requests in flight, nor for the lease if it is killed."""
    go_on = threading.Event()

    def answer(_: Heard) -> int:
        go_on.wait(20)
        return 200

    with receiver(answer) as hook, receiver() as other:
        add_channel(db, "room:*", webhook_urls=[hook.url()])
        add_channel(db, "hall:*", webhook_urls=[other.url()])
        async with own_outbox(database) as box:
            publish(db, "room:1")
            await asyncio.to_thread(hook.wait, 1)
            monkeypatch.setattr(outbox, "PORTION", 0)
            publish(db, "hall:1")
            await asyncio.to_thread(eventually, lambda: only(db, LEASED) == 2)
            ending = asyncio.create_task(box.finish())
            await asyncio.to_thread(eventually, lambda: only(db, LEASED) == 1, timeout=5)
            assert not ending.done()
            # no request begins any more, although the loop could run
            monkeypatch.setattr(outbox, "PORTION", 16)
            go_on.set()
            await ending
    assert (len(hook.heard), other.heard) == (1, [])
    assert sorted((d.state, d.attempt) for d in deliveries(db)) == [
        ("delivered", 1),
        ("pending", 0),
    ]


def hang() -> int:
    threading.Event().wait(30)
    return 200


def test_a_hanging_endpoint_does_not_slow_the_others(db: Connection, database: pg.Database) -> None:
    """The p95 of 49 endpoints, while the fiftieth answers and while it hangs."""

    def latencies(hook: Receiver, run: str) -> list[float]:
        began = {}
        for _ in range(4):
            for number in range(50):
                began[f"msg_{publish(db, f'c{number}:1', run)}"] = time.monotonic()
        mine = lambda: [h for h in hook.heard if h.id in began and h.path != "/49"]  # noqa: E731
        eventually(lambda: len(mine()) >= 49 * 4, timeout=30)
        return sorted(h.at - began[h.id] for h in mine())

    hanging = False
    with receiver(lambda h: hang() if hanging and h.path == "/49" else 200) as hook:
        for number in range(50):
            add_channel(db, f"c{number}:*", webhook_urls=[hook.url(f"/{number}")])
        with daemon(database, **ALLOWED):
            latencies(hook, "warm")
            well = latencies(hook, "well")
            hanging = True
            ill = latencies(hook, "ill")
    p95 = [found[int(len(found) * 0.95)] for found in (well, ill)]
    assert p95[1] < p95[0] * 2 + 0.1, p95


def test_a_lost_database_connection_loses_no_outcome(db: Connection, database: pg.Database) -> None:
    """The backends end while a request is in flight; its outcome is still recorded."""
    go_on = threading.Event()

    def answer(_: Heard) -> int:
        go_on.wait(10)
        return 200

    with receiver(answer) as hook, daemon(database, **ALLOWED):
        add_channel(db, "room:*", webhook_urls=[hook.url()])
        publish(db, "room:1")
        hook.wait(1)
        db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and usename like 'rowcast_%%'"
        )
        go_on.set()
        settled(db)
    assert len(hook.heard) == 1


def test_a_bridge_stopped_past_its_lease_settles_nothing(
    db: Connection, database: pg.Database
) -> None:
    settings = {**ALLOWED, "webhook_timeout": 0.3}
    with (
        receiver(lambda _: hang() if len(hook.heard) == 1 else 200) as hook,
        daemon(database, **settings) as first,
    ):
        add_channel(db, "room:*", webhook_urls=[hook.url()])
        publish(db, "room:1")
        hook.wait(1)
        first.signal(signal.SIGSTOP)
        with daemon(database, **settings) as second:
            settled(db)
            first.signal(signal.SIGCONT)
            eventually(lambda: first.metric("rowcast_webhooks_lost_total") == 1)
            assert second.metric('rowcast_webhooks_total{outcome="delivered"}') == 1
    (row,) = deliveries(db)
    assert row.state == "delivered"
    assert [a[2] for a in attempts(db, row.id)] == ["lost", None]


def test_a_claim_received_after_its_lease_is_not_begun(
    db: Connection, database: pg.Database
) -> None:
    """The bridge is stopped while the database makes the claim, and another bridge sends."""
    settings = {**ALLOWED, "webhook_timeout": 0.1}
    with receiver() as hook, daemon(database, **settings) as first:
        add_channel(db, "room:*", webhook_urls=[hook.url()])
        first.signal(signal.SIGSTOP)
        publish(db, "room:1")
        with database.connect() as holder, holder.transaction():
            holder.execute("lock table rowcast.delivery in share mode")
            first.signal(signal.SIGCONT)
            eventually(
                lambda: only(db, "select count(*) from pg_locks where not granted") > 0,
                what="a claim that waits",
            )
            first.signal(signal.SIGSTOP)
        with daemon(database, **settings):
            settled(db)
        first.signal(signal.SIGCONT)
        # deliveries claimed first would be begun first
        publish(db, "room:2")
        settled(db, count=2)
    assert sorted(json.loads(heard.body)["channelName"] for heard in hook.heard) == [
        "room:1",
        "room:2",
    ]


def test_a_bridge_with_webhooks_disabled_sends_none(db: Connection, database: pg.Database) -> None:
    with receiver() as hook, daemon(database, **ALLOWED, webhook_concurrency=0) as bridge:
        add_channel(db, "room:*", webhook_urls=[hook.url()])
        publish(db, "room:1")
        eventually(lambda: bridge.metric("rowcast_messages_total") == 1)
        with daemon(database, **ALLOWED):
            settled(db)
        assert bridge.metric('rowcast_webhooks_total{outcome="delivered"}') == 0
        assert bridge.terminate() == 0


def test_the_log_contains_no_secret(db: Connection, database: pg.Database) -> None:
    with receiver(lambda _: 500) as hook, daemon(database, **ALLOWED) as bridge:
        add_channel(db, "room:*", webhook_urls=[hook.url()])
        publish(db, "room:1", payload='{"word": "confidential"}')
        hook.wait(1)
        log = bridge.log
    assert "whsec_" not in log
    assert "confidential" not in log


def test_an_invalid_network_is_refused_with_a_reason(database: pg.Database) -> None:
    bridge = Daemon(database, webhook_allow_cidrs="127.0.0.1/8")
    try:
        bridge.launch()
        assert bridge.process is not None
        assert bridge.wait() == 1
        assert "ROWCAST_WEBHOOK_ALLOW_CIDRS" in bridge.log
    finally:
        bridge.remove()
