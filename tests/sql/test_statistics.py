"""Statistics are what a plain count would say at the same moment, without counting."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from support import pg
from support.feed_reader import insert_raw
from support.messages import add_channel, only, publish
from support.waiting import eventually

Connection = psycopg.Connection[Any]

PLAIN = """
with counted as (
    select event_name, count(*) as n from public.realtime_messages
    where type = 'message' and (%(channel)s::uuid is null or channel_id = %(channel)s)
        and (%(name)s::text is null or channel_name = %(name)s)
        and (%(since)s::timestamptz is null or created_at >= %(since)s)
    group by 1
)
select coalesce(sum(n), 0)::int, coalesce((
    select json_agg(json_build_array(t.event_name, t.n) order by t.n desc, t.event_name)
    from (select * from counted order by n desc, event_name limit 10) as t
), '[]') from counted
"""
RATE = """
select coalesce(trim_scale(round(count(*) filter (where state = 'delivered')
    / nullif(count(*) filter (where state in ('delivered', 'failed')), 0)::numeric, 4)), 0)
from rowcast.delivery
where (%(channel)s::uuid is null or channel_id = %(channel)s)
    and (%(since)s::timestamptz is null or message_at >= %(since)s)
"""


@pytest.fixture(autouse=True)
def room(db: Connection) -> Any:
    only(db, "select rowcast.boot_id()::text")
    return add_channel(db, "room:*")


def statistics(
    db: Connection, channel: Any = None, name: str | None = None, since: datetime | None = None
) -> tuple[int, list[list[Any]], float]:
    said = json.loads(only(db, "select rowcast.statistics(%s, %s, %s)", [channel, name, since]))
    assert list(said) == ["totalMessages", "whDeliveryRate", "topEvents"]
    events = [[event["eventName"], event["count"]] for event in said["topEvents"]]
    return said["totalMessages"], events, said["whDeliveryRate"]


def plain(
    db: Connection, channel: Any = None, name: str | None = None, since: datetime | None = None
) -> tuple[int, list[list[Any]], float]:
    values = {"channel": channel, "name": name, "since": since}
    total, events = db.execute(PLAIN, values).fetchone() or (0, [])
    if name is not None:
        values["channel"] = only(db, "select rowcast.governing_channel(%s)", [name])
    return total, events, float(only(db, RATE, values))


def assert_same(db: Connection, *, total: int | None = None) -> None:
    """In every scope, at one moment."""
    channels = [row[0] for row in db.execute("select id from public.realtime_channels")]
    now = datetime.now(UTC)
    times = [None, now - timedelta(minutes=1), now - timedelta(hours=3), now + timedelta(hours=1)]
    for since in times:
        for scope in ({}, *({"channel": c} for c in channels), {"name": "room:1"}):
            assert statistics(db, since=since, **scope) == plain(db, since=since, **scope), (
                scope,
                since,
            )
    if total is not None:
        assert statistics(db)[0] == total


def update_statistics(db: Connection) -> None:
    assert only(db, "select rowcast.statistics_update()") is True


@contextlib.contextmanager
def session(database: pg.Database) -> Iterator[Connection]:
    """A connection in a transaction of its own."""
    connection = database.connect(autocommit=False)
    try:
        yield connection
    finally:
        connection.close()


def say(db: Connection, channel: str = "room:1", event: str = "said", **arguments: Any) -> Any:
    return publish(db, channel, event, **arguments)


def test_messages_are_counted_before_and_after_an_update(db: Connection) -> None:
    add_channel(db, "hall:*")
    for number in range(30):
        say(db, f"{'hall' if number % 3 else 'room'}:{number % 2}", f"e{number % 4}")
    assert_same(db, total=30)
    update_statistics(db)
    assert_same(db, total=30)
    say(db)
    assert_same(db, total=31)
    update_statistics(db)
    update_statistics(db)
    assert_same(db, total=31)


def test_only_what_is_committed_and_durable_is_counted(db: Connection) -> None:
    with db.transaction(force_rollback=True):
        say(db)
    with db.transaction():
        say(db, event="kept")
        with db.transaction(force_rollback=True):
            say(db, event="undone")
    key = uuid4()
    assert say(db, id=key) == say(db, id=key)
    say(db, type="broadcast")
    assert_same(db, total=2)
    update_statistics(db)
    assert_same(db, total=2)


def test_a_long_pause_is_counted_in_steps(db: Connection, database: pg.Database) -> None:
    ids = [say(db, event=f"e{number % 3}") for number in range(20)]
    snapshots = set()
    for step in range(10):
        only(db, "select rowcast.statistics_update(4)")
        snapshots.add(only(db, "select snapshot::text from rowcast.rollup"))
        assert_same(db, total=20 - step)
        only(db, "select rowcast.delete_message(%s)", [ids[-step - 1 if step % 2 else step]])
    assert len(snapshots) > 3
    with db.transaction():
        for _ in range(9):
            say(db)
    for _ in range(2):  # what stands before it, then a transaction larger than a step
        only(db, "select rowcast.statistics_update(4)")
        assert_same(db, total=19)
    assert only(db, "select messages from rowcast.message_rollup"
                " where scope = 'name' and event_name = 'said'") == 9  # fmt: skip


def test_late_commits_are_counted(db: Connection, database: pg.Database) -> None:
    """A transaction that commits after an update that did not see it is counted."""
    with session(database) as slow:
        say(slow, event="slow")
        say(db, event="quick")
        update_statistics(db)
        assert_same(db, total=1)
        slow.commit()
        assert_same(db, total=2)
    update_statistics(db)
    assert_same(db, total=2)


def test_a_transaction_counts_what_it_wrote_itself(db: Connection, database: pg.Database) -> None:
    say(db)
    update_statistics(db)
    with session(database) as own:
        say(own)
        assert_same(own, total=2)
        say(db)
        assert_same(own, total=3)
        assert_same(db, total=2)
        own.rollback()
    assert_same(db, total=2)


def test_an_update_does_not_count_its_own_writes(db: Connection, database: pg.Database) -> None:
    """An update does not count what its own transaction has yet to write."""
    with session(database) as own:
        say(own, event="before")
        say(db, event="later than the xid of the other")
        update_statistics(own)
        say(own, event="after")
        assert_same(own, total=3)
        own.commit()
    assert_same(db, total=3)
    update_statistics(db)
    assert_same(db, total=3)


@pytest.mark.parametrize("folded", [False, True])
def test_deleted_messages_are_not_counted(db: Connection, folded: bool) -> None:
    gone = say(db)
    say(db)
    if folded:
        update_statistics(db)
    assert only(db, "select rowcast.delete_message(%s)", [gone]) is True
    assert_same(db, total=1)
    update_statistics(db)
    assert_same(db, total=1)
    assert only(db, "select count(*) from rowcast.removal") == 0


def test_a_message_gone_before_an_update_is_not_counted(
    db: Connection, database: pg.Database
) -> None:
    """A message that came and went between two updates is not counted."""
    say(db)
    with db.transaction():
        only(db, "select rowcast.delete_message(%s)", [say(db)])
    assert_same(db, total=1)
    update_statistics(db)
    assert_same(db, total=1)


def test_a_late_deletion_is_taken_out(db: Connection, database: pg.Database) -> None:
    """A deletion that an update could not see yet is taken out later."""
    gone = say(db)
    with session(database) as deleting:
        assert only(deleting, "select rowcast.delete_message(%s)", [gone]) is True
        update_statistics(db)
        assert_same(db, total=1)
        deleting.commit()
    assert_same(db, total=0)
    update_statistics(db)
    assert_same(db, total=0)


def test_deletions_by_the_owner_count_too(db: Connection) -> None:
    for number in range(5):
        say(db, event=f"e{number}")
    update_statistics(db)
    db.execute("delete from public.realtime_messages where event_name in ('e1', 'e2')")
    assert_same(db, total=3)
    db.execute("truncate public.realtime_messages")
    assert_same(db, total=0)
    say(db)
    assert_same(db, total=1)
    update_statistics(db)
    assert_same(db, total=1)


@pytest.mark.parametrize("folded", [False, True])
def test_what_expires_with_its_leaf_is_no_longer_counted(
    db: Connection, database: pg.Database, room: UUID, folded: bool
) -> None:
    low = datetime(2001, 1, 1, tzinfo=UTC)
    leaf = only(db, "select rowcast.make_leaf(%s, %s)", [low, low + timedelta(days=1)])
    for event in ("expires", "expires too", "is deleted"):
        insert_raw(db, "room:1", event, created_at=low, channel_id=room)
    say(db, event="stays")
    if folded:
        update_statistics(db)
    assert_same(db, total=4)
    db.execute("delete from public.realtime_messages where event_name = 'is deleted'")
    db.execute(
        "update rowcast.leaf set closing_xid = '3', closed_xid = '3' where name = %s", [leaf]
    )
    with session(database) as deleting:
        # Neither lost nor taken out twice: the leaf is not dropped under a deletion.
        deleting.execute("delete from public.realtime_messages where event_name = 'expires too'")
        assert only(db, "select rowcast.drop_leaves()") == 0
        deleting.commit()
    assert_same(db, total=2)
    assert only(db, "select rowcast.drop_leaves()") == 1
    assert_same(db, total=1)
    update_statistics(db)
    assert_same(db, total=1)
    assert only(db, "select count(*) from rowcast.message_rollup where messages < 0") == 0


def test_publishers_do_not_wait_for_an_update(db: Connection, database: pg.Database) -> None:
    say(db)
    with session(database) as folding:
        update_statistics(folding)
        db.execute("set lock_timeout = '50ms'")
        deleted = say(db)
        only(db, "select rowcast.delete_message(%s)", [deleted])
        assert_same(db, total=1)
        assert only(db, "select rowcast.statistics_update()") is False
        folding.commit()
    assert_same(db, total=1)


def test_after_a_restore_everything_is_counted_anew(db: Connection) -> None:
    """Rows have the xids of another cluster, some far ahead of ours and some behind."""
    for number in range(6):
        say(db, event=f"e{number}")
    update_statistics(db)
    db.execute("update public.realtime_messages set xid = '1099511627776' where event_name = 'e1'")
    db.execute("update public.realtime_messages set xid = '5' where event_name = 'e2'")
    db.execute("update rowcast.origin set system_identifier = 1")
    assert only(db, "select rowcast.adopt()") is True
    assert_same(db, total=6)
    say(db)
    assert_same(db, total=7)
    update_statistics(db)
    assert_same(db, total=7)
    gone = only(db, "select id from public.realtime_messages where event_name = 'e1'")
    only(db, "select rowcast.delete_message(%s)", [gone])
    assert_same(db, total=6)
    update_statistics(db)
    say(db)
    assert_same(db, total=7)


def settle(db: Connection, state: str, where: str = "true") -> None:
    db.execute(
        f"update rowcast.delivery set state = '{state}', next_at = null where {where}".encode()
    )


def test_the_rate_is_that_of_settled_deliveries(db: Connection) -> None:
    hooked = add_channel(
        db, "hook:*", webhook_urls=["https://one.example/", "https://two.example/"]
    )
    for number in range(10):
        say(db, f"hook:{number}")
    assert only(db, "select count(*) from rowcast.delivery") == 20
    assert statistics(db, hooked)[2] == 0
    settle(db, "delivered", "id % 2 = 0")
    settle(db, "failed", "id % 5 = 1")
    assert_same(db)
    update_statistics(db)
    assert_same(db)
    settle(db, "delivered", "state = 'failed' and id % 3 = 0")
    settle(db, "cancelled", "state = 'failed'")
    assert_same(db)
    db.execute("delete from rowcast.delivery where id % 4 = 0")
    assert_same(db)
    update_statistics(db)
    assert_same(db)
    assert 0 < statistics(db, hooked)[2] <= 1
    assert statistics(db, name="hook:1")[2] == statistics(db, hooked)[2]


def test_what_was_counted_is_not_read_again(db: Connection) -> None:
    db.execute(
        "insert into public.realtime_messages (channel_name, event_name)"
        " select 'room:' || i % 5, 'e' || i % 3 from generate_series(1, 20000) as i"
    )
    update_statistics(db)
    channel = only(db, "select id from public.realtime_channels")
    for values in ((None, None), (channel, None), (None, "room:1")):
        statistics(db, *values)
        plan = only(
            db,
            "explain (analyze, buffers, format json)"
            f" select rowcast.statistics({', '.join(_literal(v) for v in values)}, null)",
        )
        top = plan[0]["Plan"]
        assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] < 200


def _literal(value: Any) -> str:
    return "null" if value is None else f"'{value}'"


@pytest.mark.stress
def test_statistics_equal_a_plain_count(db: Connection, database: pg.Database) -> None:
    """Writers commit, roll back, hold transactions open and delete; updates run all the time.
    A reader sees the same number both ways, within one snapshot."""
    add_channel(db, "hook:*", webhook_urls=["https://one.example/"])
    stop = threading.Event()
    faults: list[BaseException] = []

    def guarded(work: Any) -> threading.Thread:
        def run() -> None:
            try:
                with session(database) as own:
                    while not stop.is_set():
                        work(own)
            except BaseException as error:
                faults.append(error)
                stop.set()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    chance = random.Random(7)

    def write(own: Connection) -> None:
        ids = []
        for _ in range(chance.randint(1, 5)):
            name = chance.choice(["room:1", "room:2", "hook:1"])
            ids.append(say(own, name, f"e{chance.randint(0, 3)}"))
            if chance.random() < 0.3:
                with own.transaction(force_rollback=True):
                    say(own, name)
        if chance.random() < 0.3:
            own.execute("select rowcast.delete_message(%s)", [chance.choice(ids)])
        if chance.random() < 0.2:
            own.execute(
                "update rowcast.delivery set state = %s, next_at = null where id in"
                " (select id from rowcast.delivery order by random() limit 3"
                " for update skip locked)",
                [chance.choice(["delivered", "failed", "cancelled"])],
            )
        if chance.random() < 0.2:
            stop.wait(chance.random() * 0.1)  # a transaction that stays open
        own.rollback() if chance.random() < 0.2 else own.commit()

    def remove(own: Connection) -> None:
        own.execute(
            "select rowcast.delete_message(id) from public.realtime_messages"
            " where type = 'message' order by random() limit 2"
        )
        own.commit()
        stop.wait(0.02)

    def folding(own: Connection) -> None:
        own.execute("select rowcast.statistics_update(%s)", [chance.choice([5, 1000])])
        own.commit()

    threads = [guarded(write) for _ in range(4)] + [guarded(remove), guarded(folding)]
    looked = 0
    deadline = time.monotonic() + 6
    try:
        with session(database) as reader:
            reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            while time.monotonic() < deadline and not stop.is_set():
                assert_same(reader)
                reader.rollback()
                looked += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert not faults, faults
    assert looked > 5
    eventually(lambda: only(db, "select rowcast.statistics_update()"), what="the last update")
    assert_same(db)
    assert statistics(db)[0] > 20


def test_deletes_wait_while_a_leaf_is_uncounted(
    db: Connection, database: pg.Database, room: UUID
) -> None:
    """No message is deleted from a leaf while the leaf is taken out of the counts."""
    low = datetime(2001, 1, 1, tzinfo=UTC)
    leaf = only(db, "select rowcast.make_leaf(%s, %s)", [low, low + timedelta(days=1)])
    insert_raw(db, "room:1", "expires", created_at=low, channel_id=room)
    update_statistics(db)
    with session(database) as dropping:
        dropping.execute("select rowcast.rollup_forget(%s)", [leaf])
        db.execute("set lock_timeout = '50ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            db.execute("delete from public.realtime_messages where event_name = 'expires'")


def test_counts_survive_a_crash_that_reuses_xids(
    own_server: pg.OwnServer,
) -> None:
    """The snapshot up to which was counted is in the log, and so is every xid that it covers."""
    with own_server.database() as database:
        with database.connect() as db:
            add_channel(db, "room:*")
            for _ in range(5):
                say(db)
                say(db, type="broadcast")
            update_statistics(db)
            for _ in range(200):
                say(db, type="broadcast")
        own_server.crash()
        with database.connect() as db:
            for _ in range(20):
                say(db, event="after")
            assert_same(db, total=25)
            update_statistics(db)
            assert_same(db, total=25)
