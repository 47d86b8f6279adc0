"""A delivery is written exactly when its message is, and counts never drift."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from support import pg
from support.deliveries import alter_settings, attempts, claim, deliveries, endpoints, settle
from support.messages import add_channel, messages, only, publish, refused
from support.pg import as_role

Connection = psycopg.Connection[Any]

ONE = "https://one.example/hook"
TWO = "https://two.example/hook"
WORKER = uuid4()


def counts(tx: Connection) -> tuple[int, int]:
    """Audience and delivered of all messages together."""
    audience = only(tx, "select coalesce(sum(wh_audience_count), 0)::int from realtime_messages")
    return audience, only(tx, "select count(*)::int from rowcast.delivery where state='delivered'")


def again(tx: Connection) -> None:
    """The pauses are over."""
    tx.execute("update rowcast.delivery set next_at = clock_timestamp() where next_at is not null")
    tx.execute("update rowcast.endpoint set pause_until = '-infinity'")


def test_a_message_is_written_once_for_each_active_endpoint(tx: Connection) -> None:
    channel = add_channel(tx, "room:*", webhook_urls=[ONE, TWO])
    publish(tx, "room:1")
    (message,) = messages(tx, "room:1")
    assert message.wh_audience_count == 2
    found = deliveries(tx)
    assert {d.endpoint_id for d in found} == {e.id for e in endpoints(tx)}
    for delivery in found:
        assert (delivery.message_seq, delivery.message_id) == (message.seq, message.id)
        assert (delivery.channel_id, delivery.state, delivery.attempt) == (channel, "pending", 0)


def test_webhooks_need_a_message_and_an_address(tx: Connection) -> None:
    """Broadcasts, and channels without addresses, do not have webhooks."""
    add_channel(tx, "room:*", webhook_urls=[ONE])
    add_channel(tx, "hall:*")
    add_channel(tx, "yard:*", webhook_urls=[])
    publish(tx, "room:1", type="broadcast")
    publish(tx, "hall:1")
    publish(tx, "yard:1")
    assert deliveries(tx) == []
    for name in ("room:1", "hall:1", "yard:1"):
        assert messages(tx, name)[0].wh_audience_count == 0


def test_every_row_of_a_statement_is_written_for(tx: Connection) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    add_channel(tx, "hall:*")
    tx.execute(
        "insert into realtime_messages (channel_name, event_name)"
        " select case n %% 2 when 0 then 'room:' else 'hall:' end || n, 'said'"
        " from generate_series(1, 100) as n",
        [],
    )
    assert len({d.message_seq for d in deliveries(tx)}) == 50


def test_what_is_not_committed_leaves_no_delivery(db: Connection) -> None:
    add_channel(db, "room:*", webhook_urls=[ONE])
    with db.transaction(force_rollback=True):
        publish(db, "room:1")
    assert deliveries(db) == []
    with db.transaction():
        publish(db, "room:1", "kept")
        with db.transaction(force_rollback=True):
            publish(db, "room:1", "taken back")
    assert len(deliveries(db)) == 1


def test_an_insert_that_does_nothing_leaves_no_delivery(tx: Connection) -> None:
    """Neither one that ON CONFLICT leaves out, nor a repeat of a publish."""
    add_channel(tx, "room:*", webhook_urls=[ONE])
    tx.execute("create unique index once on rowcast.messages_default (event_name)")
    tx.execute("alter table rowcast.messages_default disable trigger user")
    tx.execute("alter table rowcast.messages_default enable trigger user")
    leaf = only(
        tx,
        "select name from rowcast.leaf where clock_timestamp() between from_at and to_at",
    )
    tx.execute(f"create unique index once_here on rowcast.{leaf} (event_name)")
    insert = (
        "insert into public.realtime_messages (channel_name, event_name)"
        " values ('room:1', 'said') on conflict do nothing"
    )
    tx.execute(insert)
    tx.execute(insert)
    assert len(messages(tx, "room:1")) == len(deliveries(tx)) == 1
    key = uuid4()
    publish(tx, "room:1", "keyed", id=key)
    publish(tx, "room:1", "keyed", id=key)
    assert len(deliveries(tx)) == 2


def test_a_caller_publishes_without_rights_on_our_tables(tx: Connection) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    tx.execute("create policy p on realtime_messages for insert to authenticated with check (true)")
    with as_role(tx, "authenticated", {"sub": "alice", "role": "authenticated"}, "room:1"):
        publish(tx, "room:1")
    assert len(deliveries(tx)) == 1


def test_the_body_is_the_envelope_in_its_order(tx: Connection) -> None:
    channel = add_channel(tx, "room:*", webhook_urls=[ONE])
    tx.execute("create policy p on realtime_messages for insert to authenticated with check (true)")
    payload = '{"text": "Hi \\"you\\" ü", "n": 1e300, "deep": [1, {"a": null}]}'
    with as_role(tx, "authenticated", {"sub": 'al"ice', "role": "authenticated"}):
        tx.execute("select rowcast.publish('room:ü\"1', 'message.new', %s)", [payload])
    (claimed,) = claim(tx, WORKER)
    (message,) = messages(tx, 'room:ü"1')
    body = json.loads(claimed.body)
    assert list(body) == ["event", "channelName", "channelId", "payload", "senderId", "timestamp"]
    assert body["event"] == "message.new"
    assert body["channelName"] == 'room:ü"1'
    assert body["channelId"] == str(channel)
    assert body["payload"] == message.payload
    assert body["senderId"] == 'al"ice'
    assert body["timestamp"].endswith("Z")
    assert len(body["timestamp"]) == 24
    assert claimed.message_id == message.id
    assert (claimed.event_name, claimed.channel_name) == ("message.new", 'room:ü"1')


def test_a_channel_may_ask_for_the_bare_payload(tx: Connection) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE], options='{"webhookBody": "payload"}')
    publish(tx, "room:1", payload='{"a": 1}')
    (claimed,) = claim(tx, WORKER)
    assert claimed.bare
    assert claimed.body == '{"a": 1}'


def test_a_system_message_has_a_null_sender(tx: Connection) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    publish(tx, "room:1")
    (claimed,) = claim(tx, WORKER)
    assert json.loads(claimed.body)["senderId"] is None


def test_success_is_2xx_and_nothing_else(tx: Connection) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    expected = {200: "delivered", 204: "delivered", 299: "delivered"} | dict.fromkeys(
        (100, 301, 302, 307, 308, 400, 404, 429, 500, 503, 999), "pending"
    )
    for status, state in expected.items():
        publish(tx, "room:1", str(status))
        again(tx)
        claimed = [c for c in claim(tx, WORKER) if c.event_name == str(status)]
        assert settle(tx, WORKER, claimed, status) == 1
        tx.execute("update rowcast.endpoint set failures = 0, room = 64, pause_until = '-infinity'")
        assert deliveries(tx)[-1].state == state, status


@pytest.mark.parametrize(
    ("tries", "status", "error", "retry_after", "least", "most"),
    [
        (1, 500, None, None, 4, 6),
        (2, 500, None, None, 240, 360),
        (9, 500, None, None, 24 * 3600 * 0.8, 24 * 3600),
        (1, 429, None, None, 60, 60),
        (1, 502, None, None, 60, 60),
        (1, 503, None, None, 60, 60),
        (1, 504, None, None, 60, 60),
        (1, None, "timeout", None, 60, 60),
        (1, None, "refused", None, 4, 6),
        (1, 429, None, 120, 120, 120),
        (1, 500, None, 3, 4, 6),
        (1, 503, None, 10 * 365 * 86400, 24 * 3600, 24 * 3600),
        (2, 503, None, 5, 240, 360),
    ],
)
def test_the_pause_follows_the_schedule_and_the_receiver(
    tx: Connection,
    tries: int,
    status: int | None,
    error: str | None,
    retry_after: int | None,
    least: float,
    most: float,
) -> None:
    for _ in range(20):
        pause = only(
            tx,
            "select extract(epoch from rowcast.retry_pause(%s, %s, %s, %s))::float",
            [tries, status, error, retry_after],
        )
        assert least <= pause <= most


def test_after_the_last_attempt_there_is_none(tx: Connection) -> None:
    assert only(tx, "select rowcast.retry_pause(10, 500, null, null)") is None
    alter_settings(tx, webhook_schedule="{}")
    assert only(tx, "select rowcast.retry_pause(1, 500, null, null)") is None


def test_a_delivery_that_fails_to_the_end_is_a_dead_letter(tx: Connection) -> None:
    alter_settings(tx, webhook_schedule="{1 s,1 s}")
    add_channel(tx, "room:*", webhook_urls=[ONE])
    publish(tx, "room:1")
    for number in (1, 2, 3):
        again(tx)
        (claimed,) = claim(tx, WORKER)
        assert claimed.attempt == number
        settle(tx, WORKER, [claimed], 500, snippet="no")
    (row,) = deliveries(tx)
    assert (row.state, row.reason, row.next_at) == ("failed", "exhausted", None)
    assert attempts(tx, row.id) == [(n, 500, None, "no") for n in (1, 2, 3)]
    assert claim(tx, WORKER) == []
    assert counts(tx) == (1, 0)


def test_a_410_disables_the_endpoint(tx: Connection) -> None:
    """An endpoint that is gone is disabled, and its waiting deliveries are cancelled."""
    add_channel(tx, "room:*", webhook_urls=[ONE])
    for _ in range(3):
        publish(tx, "room:1")
    settle(tx, WORKER, claim(tx, WORKER, 1), 410)
    (endpoint,) = endpoints(tx)
    assert (endpoint.state, endpoint.reason) == ("disabled", "gone")
    assert [(d.state, d.reason) for d in deliveries(tx)] == [("cancelled", "gone")] * 3
    publish(tx, "room:1")
    assert messages(tx, "room:1")[-1].wh_audience_count == 0
    assert len(deliveries(tx)) == 3
    assert only(tx, "select rowcast.enable_endpoint(%s)", [endpoint.id])
    publish(tx, "room:1")
    assert len(claim(tx, WORKER)) == 1


def test_upkeep_cancels_deliveries_of_disabled_endpoints(
    database: pg.Database,
) -> None:
    """Upkeep cancels deliveries that were written while the endpoint was being disabled."""
    with database.connect() as one, database.connect() as other:
        add_channel(one, "room:*", webhook_urls=[ONE])
        with one.transaction():
            publish(one, "room:1")
            other.execute("select rowcast.disable_endpoint(id, 'admin') from rowcast.endpoint")
        assert deliveries(one)[0].state == "pending"
        assert claim(one, WORKER) == []
        one.execute("select rowcast.upkeep()")
        assert [(d.state, d.reason) for d in deliveries(one)] == [("cancelled", "admin")]


def test_an_endpoint_that_only_fails_for_days_is_disabled(tx: Connection) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    add_channel(tx, "rowcast:webhooks")
    publish(tx, "room:1")
    settle(tx, WORKER, claim(tx, WORKER), 500)
    tx.execute("update rowcast.endpoint set failing_since = failing_since - interval '6 days'")
    again(tx)
    settle(tx, WORKER, claim(tx, WORKER), 500)
    (endpoint,) = endpoints(tx)
    assert (endpoint.state, endpoint.reason) == ("disabled", "failing")
    event = messages(tx, "rowcast:webhooks")[-1]
    assert (event.event_name, event.payload["url"]) == ("webhook.disabled", ONE)


def test_a_message_that_was_deleted_is_not_sent(tx: Connection) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    sent = publish(tx, "room:1")
    tx.execute("select rowcast.delete_message(%s)", [sent])
    (claimed,) = claim(tx, WORKER)
    assert claimed.body is None
    settle(tx, WORKER, [claimed], None, error="message_deleted")
    (row,) = deliveries(tx)
    assert (row.state, row.reason) == ("cancelled", "message_deleted")


def test_a_message_that_expires_is_still_sent(db: Connection) -> None:
    """The schedule may reach beyond a short retention."""
    add_channel(db, "room:*", webhook_urls=[ONE])
    publish(db, "room:1", "late", payload='{"a": 1}')
    body = claim(db, WORKER, lease="0 s")[0].body
    leaf = only(
        db, "select tableoid::regclass::name from realtime_messages where event_name = 'late'"
    )
    db.execute("select rowcast.copy_bodies_of_leaf(%s)", [leaf.removeprefix("rowcast.")])
    db.execute("delete from realtime_messages")
    (claimed,) = claim(db, WORKER)
    assert claimed.body == body
    assert (claimed.event_name, claimed.channel_name) == ("late", "room:1")


def test_a_replayed_success_counts_once_whatever_comes_of_it(tx: Connection) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    publish(tx, "room:1")
    settle(tx, WORKER, claim(tx, WORKER), 200)
    (row,) = deliveries(tx)
    for status in (200, 500, 410):
        assert counts(tx) == (1, 1)
        assert only(tx, "select rowcast.redeliver(%s)", [row.id])
        assert counts(tx) == (1, 1)
        (claimed,) = claim(tx, WORKER)
        assert only(tx, "select rowcast.redeliver(%s)", [row.id]) is False
        settle(tx, WORKER, [claimed], status)
        assert counts(tx) == (1, 1)
        tx.execute("update rowcast.endpoint set failures = 0, pause_until = '-infinity'")
    assert deliveries(tx)[0].state == "delivered"


def test_redelivery_restarts_the_schedule(tx: Connection) -> None:
    """A failed delivery that is sent again begins the schedule anew."""
    alter_settings(tx, webhook_schedule="{1 s}")
    add_channel(tx, "room:*", webhook_urls=[ONE])
    publish(tx, "room:1")
    for _ in range(2):
        again(tx)
        settle(tx, WORKER, claim(tx, WORKER), 500)
    (row,) = deliveries(tx)
    assert row.state == "failed"
    tx.execute("select rowcast.redeliver(%s)", [row.id])
    settle(tx, WORKER, claim(tx, WORKER), 500)
    assert deliveries(tx)[0].state == "pending"
    again(tx)
    settle(tx, WORKER, claim(tx, WORKER), 200)
    assert deliveries(tx)[0].state == "delivered"
    assert [a[0] for a in attempts(tx, row.id)] == [1, 2, 3, 4]
    assert counts(tx) == (1, 1)


def test_all_that_failed_since_a_time_is_sent_again_at_once(tx: Connection) -> None:
    alter_settings(tx, webhook_schedule="{}")
    add_channel(tx, "room:*", webhook_urls=[ONE])
    for _ in range(3):
        publish(tx, "room:1")
    settle(tx, WORKER, claim(tx, WORKER), 500)
    endpoint = endpoints(tx)[0].id
    call = "select rowcast.redeliver_failed(%s, clock_timestamp() + %s::interval)"
    assert only(tx, call, [endpoint, "1 h"]) == 0
    assert only(tx, call, [endpoint, "-1 h"]) == 3
    assert [d.state for d in deliveries(tx)] == ["pending"] * 3
    assert claim(tx, WORKER)


def test_redelivery_refuses_in_words_what_cannot_be_sent(tx: Connection) -> None:
    channel = add_channel(tx, "room:*", webhook_urls=[ONE])
    with refused(tx, "RCW03", "no delivery 77"):
        tx.execute("select rowcast.redeliver(77)")
    publish(tx, "room:1")
    (row,) = deliveries(tx)
    with tx.transaction(force_rollback=True):
        tx.execute("delete from realtime_messages")
        with refused(tx, "RCW05", "expired or was deleted"):
            tx.execute("select rowcast.redeliver(%s)", [row.id])
    tx.execute("delete from realtime_channels where id = %s", [channel])
    with refused(tx, "RCW04", ONE, "retired"):
        tx.execute("select rowcast.redeliver(%s)", [row.id])


def test_a_refused_event_for_operators_does_not_lose_the_outcome(tx: Connection) -> None:
    tx.execute(
        "create function public.no() returns trigger language plpgsql as"
        " $$ begin if new.channel_name = 'rowcast:webhooks' then raise 'no'; end if;"
        " return new; end $$"
    )
    tx.execute(
        "create trigger zz before insert on realtime_messages"
        " for each row execute function public.no()"
    )
    add_channel(tx, "rowcast:webhooks")
    add_channel(tx, "room:*", webhook_urls=[ONE])
    publish(tx, "room:1")
    settle(tx, WORKER, claim(tx, WORKER), 410)
    assert deliveries(tx)[0].state == "cancelled"


def test_events_for_operators_are_told_on_exactly_their_channel(tx: Connection) -> None:
    add_channel(tx, "**")
    add_channel(tx, "room:*", webhook_urls=[ONE])
    alter_settings(tx, webhook_schedule="{}")
    for _ in range(6):
        publish(tx, "room:1")
    settle(tx, WORKER, claim(tx, WORKER, 1), 500)
    assert messages(tx, "rowcast:webhooks") == []
    # Its own endpoint is down too, and it does not tell itself.
    add_channel(tx, "rowcast:webhooks", webhook_urls=[TWO])
    tx.execute("update rowcast.endpoint set room = 64")
    claimed = claim(tx, WORKER)
    settle(tx, WORKER, [c for c in claimed if c.url == ONE], 500)
    told = messages(tx, "rowcast:webhooks")
    assert [m.event_name for m in told] == ["webhook.failing", "webhook.exhausted"]
    assert len(told[1].payload["deliveries"]) == 5
    settle(tx, WORKER, claim(tx, WORKER), 410)
    assert len(messages(tx, "rowcast:webhooks")) == 2


def test_old_deliveries_and_attempts_expire_but_not_what_waits(tx: Connection) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    publish(tx, "room:1")
    settle(tx, WORKER, claim(tx, WORKER), 200)
    publish(tx, "room:1")
    settle(tx, WORKER, claim(tx, WORKER), 500)
    tx.execute("update rowcast.attempt set at = at - interval '8 days'")
    tx.execute("update rowcast.delivery set created_at = created_at - interval '31 days'")
    tx.execute("select rowcast.webhook_upkeep()")
    assert [d.state for d in deliveries(tx)] == ["pending"]
    assert only(tx, "select count(*) from rowcast.attempt") == 0
