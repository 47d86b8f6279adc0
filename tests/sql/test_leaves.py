"""Leaves: always ahead, named only as long as a cursor needs them, dropped with a memory."""

from __future__ import annotations

import statistics
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from support import pg
from support.feed_reader import Cursor, ask, drain, insert_raw, replay
from support.messages import add_channel, only, publish
from support.waiting import eventually

Connection = psycopg.Connection[Any]

LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def room(db: Connection) -> None:
    add_channel(db, "room:*")
    only(db, "select rowcast.boot_id()::text")


def leaves(db: Connection) -> list[tuple[Any, ...]]:
    return db.execute("select name, from_at, to_at from rowcast.leaf order by from_at").fetchall()


def needed(db: Connection, cursor: Cursor) -> list[str]:
    """The leaves that a drain from this cursor names."""
    found: list[str] = only(db, "select rowcast.leaves_for(%s::xid8, null)", [cursor.xmin])
    return found


def leaf_of(db: Connection, event: str) -> str:
    found: str = only(
        db,
        "select tableoid::regclass::text from public.realtime_messages where event_name = %s",
        [event],
    )
    return found.removeprefix("rowcast.")


def pretend_past(db: Connection, name: str, age: timedelta) -> None:
    """Let the registry believe that a leaf's range ended so long ago."""
    db.execute(
        "update rowcast.leaf set to_at = clock_timestamp() - %s::interval,"
        " from_at = clock_timestamp() - %s::interval where name = %s",
        [age, age + DAY, name],
    )


def close(db: Connection) -> None:
    """Close all leaves of the past; another database's transaction can make it wait."""
    db.execute("select rowcast.close_leaves()")
    unclosed = "select count(*) from rowcast.leaf where to_at < now() and closed_xid is null"

    def closed() -> bool:
        db.execute("select rowcast.close_leaves()")
        return bool(only(db, unclosed) == 0)

    eventually(closed, what="the leaves of the past are closed")


def test_leaves_reach_a_week_ahead_without_gaps(db: Connection) -> None:
    found = leaves(db)
    now = datetime.now(UTC)
    assert found[0][1] <= now
    assert found[-1][2] > now + timedelta(days=7)
    assert [row[2] for row in found[:-1]] == [row[1] for row in found[1:]]


def test_making_leaves_again_makes_none(db: Connection) -> None:
    before = leaves(db)
    assert only(db, "select rowcast.make_leaves()") == 0
    assert leaves(db) == before


def test_the_registry_is_what_is_attached(db: Connection) -> None:
    attached = db.execute(
        "select inhrelid::regclass::text from pg_inherits"
        " where inhparent = 'rowcast.messages_durable'::regclass"
    ).fetchall()
    registered = [f"rowcast.{name}" for name, _, _ in leaves(db)]
    assert sorted(name for (name,) in attached) == sorted([*registered, "rowcast.messages_default"])


@pytest.mark.parametrize("zone", ["Pacific/Auckland", "America/St_Johns"])
def test_the_time_zone_of_the_session_changes_nothing(db: Connection, zone: str) -> None:
    before = [(name, low.astimezone(UTC), high.astimezone(UTC)) for name, low, high in leaves(db)]
    for name, _, _ in before:
        db.execute(f"drop table rowcast.{name}")  # type: ignore[arg-type]
    db.execute("delete from rowcast.leaf")
    db.execute(f"set timezone = '{zone}'")  # type: ignore[arg-type]
    db.execute("select rowcast.make_leaves()")
    after = [(name, low.astimezone(UTC), high.astimezone(UTC)) for name, low, high in leaves(db)]
    assert after == before


@pytest.mark.parametrize(
    ("retention", "width", "ahead"),
    [
        ("2 hours", timedelta(hours=6), DAY),
        ("7 days", DAY, 4 * DAY),
        ("400 days", 40 * DAY, 7 * DAY),
        (None, 30 * DAY, 7 * DAY),
    ],
)
def test_another_retention_changes_the_width_of_new_leaves(
    db: Connection, retention: str | None, width: timedelta, ahead: timedelta
) -> None:
    old = leaves(db)
    db.execute("delete from rowcast.leaf where from_at > now()")
    for name, _, _ in old[1:]:
        db.execute(f"drop table rowcast.{name}")  # type: ignore[arg-type]
    db.execute("update rowcast.settings set retention = %s::interval", [retention])
    db.execute("select rowcast.make_leaves()")
    found = leaves(db)
    assert found[0] == old[0], "what exists stays as it is"
    assert [row[2] for row in found[:-1]] == [row[1] for row in found[1:]]
    assert {high - low for _, low, high in found[1:]} <= {width}
    assert found[-1][2] >= datetime.now(UTC) + ahead
    assert len(found) <= 16


def test_a_shorter_retention_counts_from_the_next_leaf(db: Connection) -> None:
    """Leaves that were made ahead for a longer one would keep everything for days."""
    before = ask(db)
    publish(db, "room:1", "here")
    present, *_ = leaves(db)
    db.execute("update rowcast.settings set retention = '6 hours'")
    only(db, "select rowcast.upkeep()")
    found = leaves(db)
    assert found[0] == present
    assert {high - low for _, low, high in found[1:]} <= {timedelta(hours=6)}
    assert [row[2] for row in found[:-1]] == [row[1] for row in found[1:]]
    assert len(found) <= 16
    assert drain(db, before).events == ["here"]


def test_four_hundred_leaves_do_not_slow_an_empty_drain(db: Connection) -> None:
    hour = timedelta(hours=1)
    first, last = leaves(db)[0][1], leaves(db)[-1][2]
    for n in range(200):
        for low in (first - (n + 1) * hour, last + n * hour):
            db.execute("select rowcast.make_leaf(%s, %s)", [low, low + hour])
    close(db)
    cursor = ask(db)
    assert len(leaves(db)) > 400
    assert len(needed(db, cursor)) <= 4
    db.execute("select pg_current_xact_id()")  # something ended, so leaves are really read
    took = []
    for _ in range(100):
        begun = time.perf_counter()
        assert drain(db, cursor).rows == []
        took.append(time.perf_counter() - begun)
    print(f"an empty drain with {len(leaves(db))} leaves: {statistics.median(took) * 1000:.2f} ms")
    assert statistics.quantiles(took)[0] < 0.005, "a quarter is done in 5 ms on any machine"
    publish(db, "room:1", "said")
    assert drain(db, cursor).events == ["said"]


@pytest.mark.parametrize("age", [timedelta(minutes=2), timedelta(days=2)], ids=str)
def test_a_leaf_stays_open_for_the_transaction_that_wrote_to_it(
    database: pg.Database, db: Connection, age: timedelta
) -> None:
    before = ask(db)
    with database.connect(autocommit=False) as writer:
        publish(writer, "room:1", "late")
        name = leaf_of(writer, "late")
        pretend_past(db, name, age)
        closed = "select closed_xid::text from rowcast.leaf where name = %s"
        for _ in range(3):
            db.execute("select rowcast.close_leaves()")
            assert only(db, closed, [name]) is None
        during = ask(db)
        assert name in needed(db, during)
        db.execute("update rowcast.settings set retention = '1 hour'")
        assert only(db, "select rowcast.drop_leaves()") == 0, "and it is not dropped either"
        writer.commit()
    close(db)
    assert name in needed(db, before)
    assert name in needed(db, during)
    assert drain(db, before).events == ["late"]
    found = drain(db, during)
    assert found.events == ["late"]
    eventually(lambda: name not in needed(db, ask(db)), what="a new cursor needs it no more")
    assert drain(db, found.cursor).events == []


def test_a_leaf_closed_by_a_fast_clock_reopens(database: pg.Database, db: Connection) -> None:
    """The clock was set back, and what is written now belongs into it."""
    present, *_ = [name for name, _, _ in leaves(db)]
    db.execute("update rowcast.leaf set closed_xid = pg_current_xact_id(), closing_xid = '3'")
    before = ask(db)
    publish(db, "room:1", "written again")
    assert leaf_of(db, "written again") == present
    assert drain(db, before).events == ["written again"]
    with database.connect(autocommit=False) as slow:
        publish(slow, "room:1", "slow")
        only(db, "select rowcast.upkeep()")
        before = ask(db)
        pretend_past(db, present, timedelta(minutes=5))
        slow.commit()
    assert drain(db, before).events == ["slow"]


def test_after_a_crash_leaves_are_named_by_time_as_well(db: Connection) -> None:
    publish(db, "room:1", "said")
    name = leaf_of(db, "said")
    pretend_past(db, name, timedelta(minutes=2))
    close(db)
    cursor = eventually(lambda: name not in needed(db, found := ask(db)) and found)
    by_time = "select %s = any(rowcast.leaves_for(%s::xid8, clock_timestamp() - %s::interval))"
    assert only(db, by_time, [name, cursor.xmin, timedelta(minutes=5)]) is True
    assert only(db, by_time, [name, cursor.xmin, timedelta(minutes=1)]) is False


def covered(db: Connection, cursor: Cursor, at: str = "clock_timestamp()") -> bool:
    """Whether the compiled query reads all that a drain from this cursor needs at that time."""
    query = (
        "select exists(select from rowcast.read_new_range("
        " array[%(x)s::xid8], array[%(x)s::xid8], 0,"
        f" (select o.leaves from rowcast.origin as o), %(x)s::xid8, {at}) as f"
        " where f.kind = 'covers')"
    )
    found: bool = db.execute(query.encode(), {"x": cursor.xmin}).fetchall()[0][0]
    return found


def test_the_compiled_query_covers_present_cursors(
    db: Connection,
) -> None:
    """The compiled query covers a present cursor until an hour before the next leaf."""
    only(db, "select rowcast.upkeep()")
    cursor = ask(db)
    following = "(select min(l.from_at) from rowcast.leaf as l where l.from_at > now() + '1 hour')"
    assert covered(db, cursor)
    assert covered(db, cursor, f"{following} - interval '61 minutes'")
    assert not covered(db, cursor, f"{following} - interval '59 minutes'")


def test_an_upkeep_that_changes_no_leaf_keeps_the_compiled_query(db: Connection) -> None:
    only(db, "select rowcast.upkeep()")
    compiled = "select p.xmin::text from pg_proc as p where p.proname = 'read_new_range'"
    version = only(db, "select o.leaves from rowcast.origin as o")
    before = only(db, compiled)
    assert only(db, "select rowcast.upkeep()")["compiled"] is False
    assert only(db, compiled) == before
    assert only(db, "select o.leaves from rowcast.origin as o") == version


def test_compiler_and_reader_may_differ_in_datestyle(database: pg.Database, db: Connection) -> None:
    """The compiling and the reading session may write times differently."""
    before = compiled(db)
    with database.connect() as administrator:
        administrator.execute("set datestyle = 'SQL, DMY'")
        administrator.execute("set timezone = 'Asia/Kolkata'")
        only(administrator, "select rowcast.upkeep()")
    assert compiled(db) == before
    since = ask(db)
    publish(db, "room:1", "heard")
    assert drain(db, since).events == ["heard"]


def compiled(db: Connection) -> list[Any]:
    return db.execute(
        "select proname, prosrc from pg_proc where proname in ('read_new_range', 'read_new_ranges')"
        " order by 1"
    ).fetchall()


def test_leaves_outside_the_compiled_query_are_read(database: pg.Database, db: Connection) -> None:
    """A leaf outside the compiled query is read for an older cursor and an earlier clock."""
    before = ask(db)
    with database.connect(autocommit=False) as slow:
        publish(slow, "room:1", "late")
        name = leaf_of(slow, "late")
        during = ask(db)
        slow.commit()
    pretend_past(db, name, timedelta(minutes=5))
    close(db)
    eventually(lambda: name not in needed(db, ask(db)), what="a new cursor needs it no more")
    assert only(db, "select rowcast.upkeep()")["compiled"] is True
    after = ask(db)
    assert covered(db, after)
    assert not covered(db, after, "clock_timestamp() - interval '10 minutes'")
    for cursor in (before, during):
        assert not covered(db, cursor)
        assert drain(db, cursor).events == ["late"]


def test_a_leaf_counts_from_the_moment_a_snapshot_shows_it(
    database: pg.Database, db: Connection
) -> None:
    """Rows move into a new leaf; the query that is compiled reads either too little or too much."""
    for name, _, _ in leaves(db):
        db.execute(f"drop table rowcast.{name}")  # type: ignore[arg-type]
    db.execute("delete from rowcast.leaf")
    only(db, "select rowcast.upkeep()")
    for name, _, _ in leaves(db):
        db.execute(f"drop table rowcast.{name}")  # type: ignore[arg-type]
    db.execute("delete from rowcast.leaf")
    only(db, "select rowcast.compile_read_new()")
    before = ask(db)
    assert covered(db, before)
    publish(db, "room:1", "fallen")
    assert leaf_of(db, "fallen") == "messages_default"
    with database.connect(autocommit=False) as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select 1")  # its snapshot; a drain would hold a lock on the default leaf, too
        assert only(db, "select rowcast.make_leaves()") > 0
        assert not covered(db, before), "nothing is compiled yet"
        assert drain(db, before).events == ["fallen"]
        assert only(db, "select rowcast.compile_read_new()") is True
        assert covered(db, before)
        assert drain(db, before).events == ["fallen"]
        assert not covered(old, before), "it is compiled for leaves of which this knows nothing"
        assert drain(old, before).events == ["fallen"]


def test_a_registry_changed_during_adopt_is_versioned(
    database: pg.Database, db: Connection
) -> None:
    """A registry that changes while a restore is adopted has its next version."""
    version = "select o.leaves from rowcast.origin as o"
    db.execute("update rowcast.origin set system_identifier = 1")
    with database.connect(autocommit=False) as adopting, database.connect() as other:
        assert only(adopting, "select rowcast.adopt()") is True
        adopted = only(adopting, version)
        change = "insert into rowcast.leaf (name, from_at, to_at) values ('new', now(), 'infinity')"
        waiting = threading.Thread(target=other.execute, args=(change,))
        waiting.start()
        blocked = "select count(*) from pg_locks where not granted and pid = %s"
        eventually(lambda: only(db, blocked, [other.info.backend_pid]), what="it waits")
        adopting.commit()
        waiting.join()
    assert only(db, version) > adopted


def test_a_leaf_past_midnight_holds_both_sides_of_it(db: Connection) -> None:
    midnight = LONG_AGO + DAY
    hour = timedelta(hours=1)
    name = only(db, "select rowcast.make_leaf(%s, %s)", [midnight - hour, midnight + hour])
    assert name == "messages_20010101_2300"
    cursor = ask(db)
    for event, at in {
        "outside": midnight - hour - timedelta(microseconds=1),
        "first": midnight - hour,
        "before": midnight - timedelta(microseconds=1),
        "midnight": midnight,
        "end": midnight + hour,
    }.items():
        insert_raw(db, "room:1", event, created_at=at)
    where = {
        event: leaf_of(db, event) for event in ["outside", "first", "before", "midnight", "end"]
    }
    assert [event for event, leaf in where.items() if leaf == name] == [
        "first",
        "before",
        "midnight",
    ]
    assert drain(db, cursor).events == ["outside", "first", "before", "midnight", "end"]


def test_a_row_of_the_default_leaf_is_moved_once(db: Connection) -> None:
    """A row of the default leaf is moved with its xid and comes once."""
    for name, _, _ in leaves(db):
        db.execute(f"drop table rowcast.{name}")  # type: ignore[arg-type]
    db.execute("delete from rowcast.leaf")
    before = ask(db)
    publish(db, "room:1", "fallen")
    assert leaf_of(db, "fallen") == "messages_default"
    fallen = drain(db, before)
    assert fallen.events == ["fallen"]
    stamped = "select (xid, seq, id)::text from public.realtime_messages"
    was = only(db, stamped)
    assert only(db, "select rowcast.make_leaves()") > 0
    assert leaf_of(db, "fallen") == leaves(db)[0][0]
    assert only(db, stamped) == was
    assert drain(db, before).events == ["fallen"]
    assert drain(db, fallen.cursor).events == [], "moving is not news"


def test_a_long_pause_is_covered_by_a_leaf(
    db: Connection,
) -> None:
    """After a long pause the gap gets a leaf, and the default leaf is emptied."""
    for name, _, _ in leaves(db):
        db.execute(f"drop table rowcast.{name}")  # type: ignore[arg-type]
    db.execute("delete from rowcast.leaf")
    now = datetime.now(UTC)
    db.execute("select rowcast.make_leaf(%s, %s)", [now - 40 * DAY, now - 36 * DAY])
    for days in (39, 30, 20, 1, 0):
        insert_raw(db, "room:1", f"{days} days old", created_at=now - days * DAY)
    assert only(db, "select count(*) from rowcast.messages_default") == 4
    db.execute("select rowcast.make_leaves()")
    assert only(db, "select count(*) from rowcast.messages_default") == 0
    found = leaves(db)
    assert [row[2] for row in found[:-1]] == [row[1] for row in found[1:]]


def dropped(db: Connection) -> int:
    count: int = only(db, "select rowcast.drop_leaves()")
    return count


def long_ago(db: Connection, days: int = 0) -> str:
    """A leaf far in the past with one message of a channel that bears its name."""
    low = LONG_AGO + days * DAY
    name: str = only(db, "select rowcast.make_leaf(%s, %s)", [low, low + DAY])
    insert_raw(db, f"room:{days}", f"day {days}", created_at=low)
    return name


def test_only_closed_leaves_are_dropped(db: Connection) -> None:
    """Only closed leaves are dropped, and what was lost is remembered."""
    first, second = long_ago(db, 0), long_ago(db, 1)
    xid = only(db, "select xid::text from public.realtime_messages where channel_name = 'room:0'")
    publish(db, "room:0", "fresh")
    db.execute("update rowcast.leaf set closed_xid = pg_current_xact_id() where name = %s", [first])
    assert dropped(db) == 1
    names = [name for name, _, _ in leaves(db)]
    assert first not in names
    assert second in names
    assert only(db, "select to_regclass(%s)::text", [f"rowcast.{first}"]) is None
    lost = db.execute("select channel_name, xid::text from rowcast.expired").fetchall()
    assert lost == [("room:0", xid)]
    close(db)
    assert dropped(db) == 1
    assert only(db, "select count(*) from rowcast.expired") == 2


def test_nothing_is_dropped_when_history_is_kept_for_ever(db: Connection) -> None:
    long_ago(db)
    close(db)
    db.execute("update rowcast.settings set retention = null")
    assert dropped(db) == 0


def test_a_long_reader_delays_the_drop_and_breaks_nothing(
    database: pg.Database, db: Connection
) -> None:
    name = long_ago(db)
    close(db)
    with database.connect(autocommit=False) as reader:
        reader.execute("select count(*) from public.realtime_messages")
        assert dropped(db) == 0
        assert only(db, "select count(*) from rowcast.expired") == 0
        assert name in [found for found, _, _ in leaves(db)]
        publish(db, "room:1", "said")
    assert dropped(db) == 1
    assert only(db, "select count(*) from rowcast.expired") == 1


def test_foreign_xids_are_not_remembered_as_losses(db: Connection) -> None:
    """They can be far above those of this cluster, and would call every cursor too old."""
    name = long_ago(db)
    db.execute(
        "update public.realtime_messages set xid = '999999999999' where event_name = 'day 0'"
    )
    db.execute("update rowcast.origin set seq_floor = (select last_value from rowcast.message_seq)")
    close(db)
    assert dropped(db) == 1
    assert name not in [found for found, _, _ in leaves(db)]
    assert only(db, "select count(*) from rowcast.expired") == 0


def test_upkeep_is_one_callers_at_a_time(database: pg.Database, db: Connection) -> None:
    long_ago(db)
    close(db)
    with database.connect(database.bridge_url, autocommit=False) as first:
        done = only(first, "select rowcast.upkeep()")
        assert done["dropped"] == 1
        parts = {"made", "closed", "compiled", "dropped", "broadcasts", "again", "deliveries"}
        assert done.keys() == parts
        assert only(db, "select rowcast.upkeep()") is None
    assert only(db, "select rowcast.upkeep()")["dropped"] == 0


def test_no_caller_can_keep_upkeep_from_its_work(database: pg.Database, db: Connection) -> None:
    with database.connect() as hostile:
        hostile.execute("set role anon")
        hostile.execute("select pg_advisory_lock(1919903587, n) from generate_series(2, 9) as n")
        assert only(db, "select rowcast.upkeep()") is not None
        assert only(db, "select rowcast.statistics_update()") is True
        db.execute("update rowcast.origin set system_identifier = 7")
        assert only(db, "select rowcast.adopt()") is True


def test_deletes_work_with_logical_replication(db: Connection) -> None:
    """Postgres refuses to delete from a published table that has no replica identity."""
    db.execute("create publication everything for all tables")
    insert_raw(db, "room:1", "moved", created_at=LONG_AGO)
    only(db, "select rowcast.make_leaf(%s, %s)", [LONG_AGO, LONG_AGO + DAY])
    assert leaf_of(db, "moved") == "messages_20010101_0000"
    for kind in ("message", "broadcast"):
        assert only(db, "select rowcast.delete_message(%s)", [publish(db, "room:1", type=kind)])
    assert only(db, "select rowcast.statistics_update()") is True
    assert only(db, "select rowcast.upkeep()") is not None


def test_racing_upkeep_fails_for_nobody(database: pg.Database, db: Connection) -> None:
    for days in range(3):
        long_ago(db, days)
    close(db)
    barrier = threading.Barrier(4)
    answers: list[Any] = []

    def call() -> None:
        with database.connect() as connection:
            barrier.wait()
            for _ in range(3):
                answers.append(only(connection, "select rowcast.upkeep()"))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        publish(db, "room:1", "meanwhile")
    assert len(answers) == 12
    assert sum(answer["dropped"] for answer in answers if answer) <= 3
    eventually(lambda: only(db, "select rowcast.upkeep()") is not None)
    assert only(db, "select count(*) from rowcast.leaf where to_at < now() - interval '1 y'") == 0


def test_upkeep_forgets_old_keys_signals_and_losses(db: Connection) -> None:
    for name, values in {
        "signal (created_at, kind, body)": "'x', '{}'",
        "publish_key (created_at, sender, key, message_id, seq)": (
            "'x', gen_random_uuid(), gen_random_uuid(), 1"
        ),
        "expired (expired_at, channel_name, xid)": "age::text, '7'",
        "expired_broadcast (expired_at, channel_name, xid)": "age::text, '7'",
    }.items():
        db.execute(f"truncate rowcast.{name.partition(' ')[0]}")  # channels leave signals, too
        db.execute(
            f"insert into rowcast.{name} select now() - age, {values}"  # type: ignore[arg-type]
            " from unnest('{0 days,40 days}'::interval[]) as age"
        )
        table = name.partition(" ")[0]
        assert only(db, f"select count(*) from rowcast.{table}") == 2
        only(db, "select rowcast.upkeep()")
        assert only(db, f"select count(*) from rowcast.{table}") == 1, table


def test_broadcasts_expire_by_the_ticks_and_are_remembered(db: Connection) -> None:
    publish(db, "room:1", "old", type="broadcast")
    publish(db, "room:1", "durable")
    xid = only(db, "select xid::text from rowcast.messages_broadcast")
    assert only(db, "select rowcast.expire_broadcasts()") == 0, "there is no tick yet"
    db.execute("insert into rowcast.tick (at) values (now() - interval '4 minutes')")
    assert only(db, "select rowcast.expire_broadcasts()") == 0
    db.execute("insert into rowcast.tick (at) values (now() - interval '6 minutes')")
    publish(db, "room:2", "new", type="broadcast")
    assert only(db, "select rowcast.expire_broadcasts()") == 1
    left = db.execute("select event_name from public.realtime_messages order by seq").fetchall()
    assert left == [("durable",), ("new",)]
    lost = db.execute("select channel_name, xid::text from rowcast.expired_broadcast").fetchall()
    assert lost == [("room:1", xid)]
    assert only(db, "select count(*) from rowcast.expired") == 0


def replayed(db: Connection, since: Cursor) -> list[str]:
    [answer] = replay(db, [("room:1", since)], ask(db))
    return answer.events


def test_a_leaf_dropped_by_hand_is_made_again(
    db: Connection,
) -> None:
    """A leaf that was dropped by hand does not stop reads or writes and is made again."""
    before = ask(db)
    publish(db, "room:1", "lost")
    name = leaf_of(db, "lost")
    db.execute(f"drop table rowcast.{name}")  # type: ignore[arg-type]
    publish(db, "room:1", "kept")
    assert drain(db, before).events == ["kept"]
    assert replayed(db, before) == [], "expired, before upkeep has noticed"
    only(db, "select rowcast.upkeep()")
    assert leaf_of(db, "kept") == name
    publish(db, "room:1", "after")
    assert drain(db, before).events == ["kept", "after"]
    assert replayed(db, before) == [], "what was in it is missing: expired"


def test_a_detached_leaf_is_left_alone(db: Connection) -> None:
    """An old leaf that an owner detached is theirs from then on."""
    name = long_ago(db)
    close(db)
    db.execute(f"alter table rowcast.messages_durable detach partition rowcast.{name}")  # type: ignore[arg-type]
    only(db, "select rowcast.upkeep()")
    assert name not in [found for found, _, _ in leaves(db)]
    assert only(db, f"select count(*) from rowcast.{name}") == 1


def test_added_columns_are_in_new_leaves(
    db: Connection,
) -> None:
    """Columns that a team adds are in new leaves and move with their rows."""
    db.execute(
        "alter table public.realtime_messages add column gone text,"
        " add column said text generated always as (payload ->> 'said') stored,"
        " add column mood text default 'calm' check (mood <> '')"
    )
    db.execute("alter table public.realtime_messages drop column gone")
    for name, _, _ in leaves(db):
        db.execute(f"drop table rowcast.{name}")  # type: ignore[arg-type]
    publish(db, "room:1", "fallen", payload='{"said": "hi"}')
    assert leaf_of(db, "fallen") == "messages_default"
    assert only(db, "select rowcast.make_leaves()") > 0
    assert leaf_of(db, "fallen") != "messages_default"
    assert db.execute("select said, mood from public.realtime_messages").fetchall() == [
        ("hi", "calm")
    ]
