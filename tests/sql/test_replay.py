"""Replay: what a channel got between a cursor and the moment it went live again, and no more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from support import pg
from support.feed_reader import Answer, Cursor, ask, drain, insert_raw, reboot, replay
from support.messages import add_channel, only, publish, refused
from support.waiting import eventually

Connection = psycopg.Connection[Any]

LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


@pytest.fixture
def bridge(database: pg.Database, db: Connection) -> Iterator[Connection]:
    add_channel(db, "room:*")
    only(db, "select rowcast.boot_id()::text")
    with database.connect(database.bridge_url) as connection:
        yield connection


def one(bridge: Connection, since: Cursor, until: Cursor, channel: str = "room:1") -> Answer:
    (answer,) = replay(bridge, [(channel, since)], until)
    return answer


def past(db: Connection, bridge: Connection) -> Cursor:
    """A cursor for which all before it is past, also for transactions of other tests beside."""
    now = int(only(db, "select pg_current_xact_id()::text"))
    eventually(lambda: int(ask(bridge).xmin) > now)
    return ask(bridge)


def test_it_is_what_was_published_between_the_two_snapshots(
    db: Connection, bridge: Connection
) -> None:
    publish(db, "room:1", "before")
    since = ask(bridge)
    publish(db, "room:1", "first")
    publish(db, "room:2", "elsewhere")
    publish(db, "room:1", "second", type="broadcast")
    until = ask(bridge)
    publish(db, "room:1", "after")
    answer = one(bridge, since, until)
    assert answer.state == "complete"
    assert answer.events == ["first", "second"]
    assert [row.type for row in answer.rows] == ["message", "broadcast"]
    assert {row.channel_name for row in answer.rows} == {"room:1"}


def test_replay_and_live_together_are_everything_once(
    database: pg.Database, db: Connection, bridge: Connection
) -> None:
    """Transactions that are open at either end come on exactly one side of it."""
    with (
        database.connect(autocommit=False) as at_cursor,
        database.connect(autocommit=False) as at_both,
        database.connect(autocommit=False) as at_live,
        database.connect(autocommit=False) as undone,
    ):
        publish(at_cursor, "room:1", "open at the cursor")
        publish(at_both, "room:1", "open at both")
        publish(undone, "room:1", "rolled back")
        since = ask(bridge)
        publish(at_live, "room:1", "open when live")
        at_cursor.commit()
        undone.rollback()
        publish(db, "room:1", "between")
        until = ask(bridge)
        at_both.commit()
        at_live.commit()
        publish(db, "room:1", "live")
    replayed = one(bridge, since, until).events
    live = drain(bridge, until).events
    assert replayed == ["open at the cursor", "between"]
    assert live == ["open at both", "open when live", "live"]
    assert sorted(drain(bridge, since).events) == sorted(replayed + live)


def test_nothing_between_is_complete_and_empty(db: Connection, bridge: Connection) -> None:
    publish(db, "room:1", "before")
    since = ask(bridge)
    assert one(bridge, since, since) == Answer("complete", [])
    assert one(bridge, since, ask(bridge)) == Answer("complete", [])


@pytest.mark.parametrize("limit", ["replay_rows", "replay_bytes"])
def test_over_a_limit_it_is_too_far_and_not_a_half(
    db: Connection, bridge: Connection, limit: str
) -> None:
    db.execute("update rowcast.settings set replay_rows = 3, replay_bytes = 30")
    since = ask(bridge)
    body = "{}" if limit == "replay_rows" else '{"n": 123}'
    for n in range(3):
        publish(db, "room:1", str(n), payload=body)
    assert one(bridge, since, ask(bridge)).events == ["0", "1", "2"], "exactly the limit"
    publish(db, "room:1", "one more", payload="1")
    assert one(bridge, since, ask(bridge)) == Answer("too_far", [])
    db.execute("update rowcast.settings set replay_rows = 10, replay_bytes = 100")
    assert one(bridge, since, ask(bridge)).state == "complete"


def lose(db: Connection, channel: str) -> None:
    """Publish to the channel in a leaf that expires at once."""
    name = only(db, "select rowcast.make_leaf(%s, %s)", [LONG_AGO, LONG_AGO + timedelta(days=1)])
    insert_raw(db, channel, "lost", created_at=LONG_AGO)
    db.execute("update rowcast.leaf set closed_xid = pg_current_xact_id() where name = %s", [name])

    eventually(lambda: only(db, "select rowcast.drop_leaves()") == 1)


def test_only_a_channel_that_lost_messages_is_expired(db: Connection, bridge: Connection) -> None:
    since = ask(bridge)
    lose(db, "room:1")
    publish(db, "room:1", "kept")
    publish(db, "room:2", "kept")
    until = past(db, bridge)
    lost, quiet, other = replay(
        bridge, [("room:1", since), ("room:3", since), ("room:2", since)], until
    )
    assert lost == Answer("expired", [])
    assert quiet == Answer("complete", [])
    assert (other.state, other.events) == ("complete", ["kept"])
    assert one(bridge, until, ask(bridge)) == Answer("complete", []), (
        "a younger cursor lost nothing"
    )


def leaf_of_now(db: Connection, event: str) -> str:
    return str(
        only(
            db,
            "select tableoid::regclass::text from public.realtime_messages where event_name = %s",
            [event],
        )
    )


@pytest.mark.parametrize("emptied", ["public.realtime_messages", "its leaf", "nothing"])
def test_what_was_truncated_is_not_called_complete(
    emptied: str, db: Connection, bridge: Connection
) -> None:
    since = ask(bridge)
    publish(db, "room:1", "lost")
    table = leaf_of_now(db, "lost") if emptied == "its leaf" else emptied
    lost = emptied != "nothing"
    with db.transaction():
        # Its xid is older than that of what is lost meanwhile.
        only(db, "select pg_current_xact_id()::text")
        with psycopg.connect(db.info.dsn, password=db.info.password, autocommit=True) as other:
            publish(other, "room:1", "lost late")
        between = ask(bridge)
        if lost:
            db.execute(f"truncate {table}".encode())
    until = past(db, bridge)
    for cursor in (since, between):
        for channel in ("room:1", "room:*", "room:2"):
            assert one(bridge, cursor, until, channel).state == ("expired" if lost else "complete")
    publish(db, "room:1", "kept")
    assert one(bridge, until, ask(bridge)).events == ["kept"]
    assert one(bridge, until, ask(bridge)).state == "complete"


def test_a_truncate_that_is_rolled_back_loses_nothing(db: Connection, bridge: Connection) -> None:
    since = ask(bridge)
    publish(db, "room:1", "kept")
    with db.transaction(force_rollback=True):
        db.execute("truncate public.realtime_messages")
    answer = one(bridge, since, ask(bridge))
    assert (answer.state, answer.events) == ("complete", ["kept"])


def test_truncated_broadcasts_leave_messages_recovered(db: Connection, bridge: Connection) -> None:
    since = ask(bridge)
    publish(db, "room:1", "broadcast", type="broadcast")
    publish(db, "room:1", "message")
    db.execute("truncate rowcast.messages_broadcast")
    answer = one(bridge, since, past(db, bridge))
    assert (answer.state, answer.events) == ("durable", ["message"])


@pytest.mark.parametrize(("noted", "broadcasts"), [("expired", False), ("expired_broadcast", True)])
def test_of_two_losses_at_once_the_newer_one_counts(
    database: pg.Database, db: Connection, noted: str, broadcasts: bool
) -> None:
    lose = "select rowcast.lose_everything(%s)"
    newest = f"select xid::text::bigint from rowcast.{noted} where channel_name = '**'"
    db.execute(lose, [broadcasts])
    with database.connect(autocommit=False) as newer, database.connect() as older:
        newer.execute(f"update rowcast.{noted} set xid = xid".encode())
        waiting = threading.Thread(target=older.execute, args=(lose, [broadcasts]))
        waiting.start()
        blocked = "select count(*) from pg_locks where not granted and pid = %s"
        eventually(lambda: only(db, blocked, [older.info.backend_pid]), what="it waits")
        only(db, "select pg_current_xact_id()::text")
        newer.execute(lose, [broadcasts])
        wanted = only(newer, newest)
        newer.commit()
        waiting.join()
    assert only(db, newest) == wanted


def test_truncate_needs_read_committed(db: Connection) -> None:
    """A snapshot that may be older than what is lost cannot truncate."""
    db.execute("set default_transaction_isolation = 'repeatable read'")
    with refused(db, "25001", "cannot be truncated", "repeatable read"):
        db.execute("truncate public.realtime_messages")


@pytest.mark.parametrize("how", ["drop table", "detach"])
def test_a_leaf_that_somebody_took_away_is_lost_to_replay(
    how: str, db: Connection, bridge: Connection
) -> None:
    since = ask(bridge)
    publish(db, "room:1", "lost")
    leaf = leaf_of_now(db, "lost")
    if how == "drop table":
        db.execute(f"drop table {leaf}".encode())
    else:
        db.execute(f"alter table rowcast.messages_durable detach partition {leaf}".encode())
    assert one(bridge, since, ask(bridge)).state == "expired"
    only(db, "select rowcast.upkeep()")
    until = past(db, bridge)
    assert one(bridge, since, until).state == "expired"
    publish(db, "room:1", "kept")
    only(db, "select rowcast.upkeep()")
    assert one(bridge, until, past(db, bridge)).state == "complete"


def test_every_leaf_notes_that_it_is_truncated(db: Connection) -> None:
    only(db, "select rowcast.make_leaf('2001-01-01', '2001-01-02')")
    unwatched = db.execute(
        "select t.relid::regclass::text from pg_partition_tree('public.realtime_messages') as t"
        " where (t.isleaf or t.level = 0) and not exists ("
        "  select from pg_trigger as g where g.tgrelid = t.relid"
        "  and g.tgfoid = 'rowcast.messages_lost()'::regprocedure)"
    ).fetchall()
    assert unwatched == []


def test_a_channel_that_lost_broadcasts_is_durable(db: Connection, bridge: Connection) -> None:
    since = ask(bridge)
    publish(db, "room:1", "broadcast", type="broadcast")
    publish(db, "room:1", "message")
    db.execute("insert into rowcast.tick (at) values (now() - interval '10 minutes')")
    assert only(db, "select rowcast.expire_broadcasts()") == 1
    until = past(db, bridge)
    answer = one(bridge, since, until)
    assert (answer.state, answer.events) == ("durable", ["message"])
    assert one(bridge, since, until, "room:2").state == "complete"
    assert one(bridge, until, until).state == "complete"


def test_a_quiet_channel_with_an_old_cursor_is_complete(db: Connection, bridge: Connection) -> None:
    old = replace(ask(bridge), issued_at=datetime.now(UTC) - timedelta(days=29))
    for _ in range(10):
        publish(db, "room:2", "elsewhere")
    assert one(bridge, old, ask(bridge)) == Answer("complete", [])


def test_a_cursor_older_than_what_is_remembered_is_expired(
    db: Connection, bridge: Connection
) -> None:
    old = replace(ask(bridge), issued_at=datetime.now(UTC) - timedelta(days=31))
    assert one(bridge, old, ask(bridge)) == Answer("expired", [])
    db.execute("update rowcast.settings set cursor_retention = '32 days'")
    assert one(bridge, old, ask(bridge)).state == "complete"


def test_a_bridge_from_before_a_crash_is_told_to_drain_first(
    db: Connection, bridge: Connection
) -> None:
    since = ask(bridge)
    publish(db, "room:1", "said")
    reboot(db)
    assert replay(bridge, [("room:1", since), ("room:2", since)], since) == [Answer("stale", [])]


def test_a_cursor_from_before_a_crash_uses_time(db: Connection, bridge: Connection) -> None:
    """A cursor from before a crash is served by time and without broadcasts."""
    db.execute("update rowcast.settings set clock_skew = '0'")
    publish(db, "room:1", "before")
    since = ask(bridge)
    boot = reboot(db)
    insert_raw(db, "room:1", "reused", xid="10")
    publish(db, "room:1", "fresh")
    until = ask(bridge)
    answer = one(bridge, since, until)
    assert (answer.state, answer.events) == ("durable", ["reused", "fresh"])
    assert one(bridge, replace(since, boot=boot), until).events == ["fresh"]


def test_after_a_crash_the_span_of_the_clock_skew_is_repeated(
    db: Connection, bridge: Connection
) -> None:
    publish(db, "room:1", "before")
    since = ask(bridge)
    reboot(db)
    publish(db, "room:1", "after")
    assert one(bridge, since, ask(bridge)).events == ["before", "after"]


def test_deleted_messages_are_absent(db: Connection, bridge: Connection) -> None:
    since = ask(bridge)
    message = publish(db, "room:1", "gone")
    publish(db, "room:1", "kept")
    until = ask(bridge)
    assert only(db, "select rowcast.delete_message(%s)", [message]) is True
    assert one(bridge, since, until).events == ["kept"]


def test_what_is_at_or_below_the_floor_is_history(db: Connection, bridge: Connection) -> None:
    since = ask(bridge)
    publish(db, "room:1", "restored")
    db.execute("update rowcast.origin set seq_floor = (select last_value from rowcast.message_seq)")
    publish(db, "room:1", "new")
    assert one(bridge, since, ask(bridge)).events == ["new"]


def test_many_pairs_are_answered_in_one_call_and_in_their_order(
    db: Connection, bridge: Connection
) -> None:
    cursors = [ask(bridge)]
    for n in range(20):
        publish(db, f"room:{n % 5}", str(n))
        cursors.append(ask(bridge))
    until = cursors[-1]
    pairs = [(f"room:{channel}", since) for since in cursors for channel in range(5)]
    answers = replay(bridge, pairs, until)
    assert [answer.state for answer in answers] == ["complete"] * len(pairs)
    assert [answer.events for answer in answers] == [
        [str(n) for n in range(20) if n % 5 == channel and n >= position]
        for position in range(len(cursors))
        for channel in range(5)
    ]


def test_one_call_mixes_every_state(db: Connection, bridge: Connection) -> None:
    db.execute("update rowcast.settings set replay_rows = 1")
    since = ask(bridge)
    lose(db, "room:1")
    for n in range(2):
        publish(db, "room:2", str(n))
    publish(db, "room:3", "said")
    publish(db, "room:4", "said", type="broadcast")
    until = ask(bridge)
    foreign = replace(since, boot=None)
    pairs = [(f"room:{n}", since) for n in (1, 2, 3, 4, 5)] + [("room:3", foreign)]
    assert [(answer.state, answer.events) for answer in replay(bridge, pairs, until)] == [
        ("expired", []),
        ("too_far", []),
        ("complete", ["said"]),
        ("complete", ["said"]),
        ("complete", []),
        ("durable", ["said"]),
    ]


def test_a_pattern_replays_what_its_row_governed(db: Connection, bridge: Connection) -> None:
    db.execute("update realtime_channels set wildcard = true")
    add_channel(db, "room:secret")
    publish(db, "room:1", "before")
    since = ask(bridge)
    publish(db, "room:1", "first")
    publish(db, "room:secret", "of another row")
    publish(db, "room:2", "second", type="broadcast")
    until = ask(bridge)
    publish(db, "room:1", "after")
    pairs = [("room:*", since), ("room:1", since), ("room:*", since), ("hall:*", since)]
    whole, one_name, again, unknown = replay(bridge, pairs, until)
    assert whole.state == "complete"
    assert [(row.channel_name, row.event_name) for row in whole.rows] == [
        ("room:1", "first"),
        ("room:2", "second"),
    ]
    assert one_name.events == ["first"]
    assert again.events == whole.events
    assert unknown.rows == []


def test_a_pattern_has_lost_what_any_of_its_names_has(db: Connection, bridge: Connection) -> None:
    add_channel(db, "hall:*")
    since = ask(bridge)
    publish(db, "room:1", type="broadcast")
    publish(db, "hall:1")
    db.execute(
        "insert into rowcast.expired_broadcast (channel_name, xid)"
        " values ('room:9', pg_current_xact_id())"
    )
    db.execute(
        "insert into rowcast.expired (channel_name, xid) values ('hall:9', pg_current_xact_id())"
    )
    until = ask(bridge)
    states = [a.state for a in replay(bridge, [("room:*", since), ("hall:*", since)], until)]
    assert states == ["durable", "expired"]


def test_replay_of_a_pattern_reads_an_index_and_not_the_leaf(
    db: Connection, bridge: Connection
) -> None:
    """Neither a quiet row among many new messages nor a busy one reads all there is."""
    add_channel(db, "hall:*")
    db.execute(
        "insert into realtime_messages (channel_name, event_name)"
        " select 'room:' || n % 50, 'old' from generate_series(1, 20000) n"
    )
    publish(db, "hall:1", "old")
    since = ask(bridge)
    publish(db, "room:1", "new")
    publish(db, "hall:1", "new")
    until = ask(bridge)
    leaf = only(
        db,
        "select tableoid::regclass::text from realtime_messages"
        " where type = 'message' order by seq desc limit 1",
    )
    db.execute(f"analyze {leaf}".encode())
    for channel in ("room:*", "hall:*"):
        row = only(db, "select id from realtime_channels where pattern = %s", [channel])
        query = only(db, "select rowcast.replay_query(%s, true)", [[leaf.removeprefix("rowcast.")]])
        values = {
            "$1": "null::text",
            "$2": f"'{since.xmin}'::xid8",
            "$3": "0",
            "$4": f"'{until.snapshot}'::pg_snapshot",
            "$5": f"'{since.snapshot}'::pg_snapshot",
            "$6": "null::timestamptz",
            "$7": f"'{row}'::uuid",
        }
        for name, value in values.items():
            query = query.replace(name, value)
        with db.transaction():
            db.execute("set local enable_seqscan = off")
            [plan] = only(db, f"explain (analyze, buffers, format json) {query}".encode())
        assert plan["Plan"]["Actual Rows"] == 1
        assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 100
        assert one(bridge, since, until, channel).events == ["new"]
