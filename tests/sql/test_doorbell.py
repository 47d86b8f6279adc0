"""The doorbell: it rings for who sleeps, costs nothing while all are awake, and never jams."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from support import pg
from support.messages import add_channel, only, publish
from support.waiting import eventually

Connection = psycopg.Connection[Any]

CANCELS = 150
# Several inserts a millisecond, so that a cancel meets the doorbell's own expression.
RING_ON = """
do $$
begin
    loop
        insert into rowcast.signal (kind, body) values ('ring', '{}');
    end loop;
end
$$
"""


@pytest.fixture
def bridge(database: pg.Database, db: Connection) -> Iterator[Connection]:
    """A bridge's LISTEN connection."""
    add_channel(db, "room:*")
    with database.connect(database.bridge_url) as connection:
        connection.execute("listen rowcast")
        yield connection


def rings(db: Connection, bridge: Connection) -> list[str]:
    """What the bridge heard up to now; a mark of our own shows that no more is on its way."""
    db.execute("select pg_notify('rowcast', 'mark')")
    heard: list[str] = []
    for notification in bridge.notifies(timeout=15):
        if notification.payload == "mark":
            return heard
        heard.append(notification.payload)
    pytest.fail("the mark was not heard")


def locks(db: Connection) -> list[tuple[Any, ...]]:
    return db.execute(
        "select pid, mode from pg_locks where locktype = 'advisory' and classid = 1919903587"
    ).fetchall()


def test_it_rings_only_when_a_session_sleeps(db: Connection, bridge: Connection) -> None:
    publish(db, "room:1")
    assert rings(db, bridge) == []
    assert only(bridge, "select rowcast.sleep_begin()") is True
    publish(db, "room:1")
    assert rings(db, bridge) == [""], "with an empty payload"
    assert only(bridge, "select rowcast.sleep_end()") is True
    publish(db, "room:1")
    assert rings(db, bridge) == []


def test_it_rings_when_sleeper_and_listener_differ(
    database: pg.Database, db: Connection, bridge: Connection
) -> None:
    """It rings when the session that sleeps is not the one that listens."""
    with database.connect(database.bridge_url) as other:
        only(other, "select rowcast.sleep_begin()")
        only(bridge, "select rowcast.sleep_begin()")
        only(bridge, "select rowcast.sleep_end()")
        publish(db, "room:1")
        assert rings(db, bridge) == [""]


@pytest.mark.parametrize("type_", ["message", "broadcast"])
def test_it_rings_once_for_a_statement_and_for_a_transaction(
    db: Connection, bridge: Connection, type_: str
) -> None:
    only(bridge, "select rowcast.sleep_begin()")
    with db.transaction():
        for _ in range(2):
            db.execute(
                "insert into public.realtime_messages (type, channel_name, event_name)"
                " select %s, 'room:1', 'said' from generate_series(1, 100)",
                [type_],
            )
    assert rings(db, bridge) == [""]


def test_it_rings_for_a_deletion_but_not_a_rollback(db: Connection, bridge: Connection) -> None:
    """It rings for a deletion, and not for a transaction that was rolled back."""
    message = publish(db, "room:1")
    only(bridge, "select rowcast.sleep_begin()")
    with db.transaction(force_rollback=True):
        publish(db, "room:1")
    assert rings(db, bridge) == []
    only(db, "select rowcast.delete_message(%s)", [message])
    assert rings(db, bridge) == [""]


def test_many_may_sleep_and_publishers_hold_nobody_up(
    database: pg.Database, db: Connection, bridge: Connection
) -> None:
    with database.connect(database.bridge_url) as other:
        assert only(bridge, "select rowcast.sleep_begin()") is True
        assert only(other, "select rowcast.sleep_begin()") is True
        assert {mode for _, mode in locks(db)} == {"ShareLock"}
    publish(db, "room:1")
    assert rings(db, bridge) == [""]
    # A backend ends a moment after its connection.
    eventually(lambda: [pid for pid, _ in locks(db)] == [bridge.info.backend_pid])


def test_sleeping_does_not_wait_for_a_publisher(db: Connection, bridge: Connection) -> None:
    """Falling asleep does not wait for a publisher that holds the lock."""
    only(db, "select pg_try_advisory_lock(1919903587, 1)")
    assert only(bridge, "select rowcast.sleep_begin()") is False
    db.execute("select pg_advisory_unlock(1919903587, 1)")
    assert only(bridge, "select rowcast.sleep_begin()") is True


def test_a_login_that_waits_for_the_lock_silences_no_publisher(
    database: pg.Database, db: Connection, bridge: Connection
) -> None:
    """No publisher gets a share behind a session that waits for the exclusive lock, also beside a
    sleeper."""
    assert only(bridge, "select rowcast.sleep_begin()")
    with database.connect() as hostile:
        hostile.execute("set role authenticated")
        waiting = threading.Thread(target=_wait_for_the_lock, args=[hostile])
        waiting.start()
        try:
            eventually(lambda: len(locks(db)) == 2)
            publish(db, "room:1")
            assert rings(db, bridge) == [""]
        finally:
            hostile.cancel_safe()
            waiting.join()
    assert only(bridge, "select rowcast.sleep_end()")
    publish(db, "room:1")
    assert rings(db, bridge) == []


def _wait_for_the_lock(hostile: Connection) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled):
        hostile.execute("select pg_advisory_lock(1919903587, 1)")


def test_a_leaf_that_is_named_itself_rings_and_counts_as_written(
    database: pg.Database, db: Connection, bridge: Connection
) -> None:
    leaf = only(db, "select name from rowcast.leaf where now() >= from_at and now() < to_at")
    insert = f"insert into rowcast.{leaf} (channel_name, event_name) values ('room:1', 'said')"
    with database.connect(autocommit=False) as early:
        early.execute(insert.encode())
        assert only(bridge, "select rowcast.sleep_begin()")
        assert only(bridge, "select cardinality(rowcast.open_writers())") == 1
    db.execute(insert.encode())
    assert rings(db, bridge) == [""]


def test_cancelled_publishers_leave_no_lock_behind(
    database: pg.Database, db: Connection, bridge: Connection
) -> None:
    """A lock left over would make every later publish ring, and let no bridge sleep."""
    cancelled = 0

    def ring_on(publisher: Connection) -> None:
        nonlocal cancelled
        while cancelled < CANCELS:
            try:
                publisher.execute(RING_ON)
            except psycopg.errors.QueryCanceled:
                cancelled += 1

    dice = random.Random(1)
    with database.connect() as publisher:
        thread = threading.Thread(target=ring_on, args=(publisher,))
        thread.start()
        while thread.is_alive():
            db.execute(
                "select pg_sleep(%s), pg_cancel_backend(%s)",
                [dice.random() / 200, publisher.info.backend_pid],
            )
        assert cancelled == CANCELS
        assert locks(db) == []
        assert only(bridge, "select rowcast.sleep_begin()") is True


def test_publishers_that_run_into_a_timeout_leave_no_lock_behind(
    database: pg.Database, db: Connection, bridge: Connection
) -> None:
    with database.connect() as publisher:
        for n in range(30):
            publisher.execute(f"set statement_timeout = '{1 + n % 5}ms'")  # type: ignore[arg-type]
            with pytest.raises(psycopg.errors.QueryCanceled):
                publisher.execute(RING_ON)
        assert locks(db) == []


def test_writers_are_those_with_an_open_transaction_that_wrote(
    database: pg.Database, db: Connection, bridge: Connection
) -> None:
    def open_writers() -> set[str]:
        return set(only(bridge, "select rowcast.open_writers()"))

    def virtual(connection: Connection) -> set[str]:
        pid = connection.info.backend_pid
        query = "select virtualtransaction from pg_locks where pid = %s limit 1"
        return {only(db, query, [pid])}

    with (
        database.connect(autocommit=False) as idle,
        database.connect(autocommit=False) as reader,
        database.connect(autocommit=False) as writer,
        database.connect(autocommit=False) as deleter,
    ):
        idle.execute("select pg_current_xact_id()")
        reader.execute("select count(*) from public.realtime_messages")
        reader.execute("select count(*) from rowcast.signal")
        assert open_writers() == set()
        publish(writer, "room:1")
        assert open_writers() == virtual(writer)
        deleter.execute("insert into rowcast.signal (kind, body) values ('x', '{}')")
        assert open_writers() == virtual(writer) | virtual(deleter)
        writer.rollback()
        assert open_writers() == virtual(deleter)
        deleter.commit()
        assert open_writers() == set()


def test_writers_of_another_database_are_not_ours(
    server: pg.Server, database: pg.Database, db: Connection, bridge: Connection
) -> None:
    with (
        pg.create_database(server) as other,
        other.connect(autocommit=False) as stranger,
    ):
        stranger.execute("create table public.realtime_messages (n integer)")
        stranger.execute("insert into public.realtime_messages values (1)")
        assert only(bridge, "select rowcast.open_writers()") == []


def test_a_probe_is_heard_and_tells_whether_the_lock_is_held(bridge: Connection) -> None:
    for held in (False, True):
        if held:
            only(bridge, "select rowcast.sleep_begin()")
        assert only(bridge, "select rowcast.probe('nonce')") is held
        heard = next(bridge.notifies(timeout=15))
        assert (heard.payload, heard.pid) == ("nonce", bridge.info.backend_pid)


def test_a_probe_asks_for_the_lock_of_its_own_session(
    database: pg.Database, bridge: Connection
) -> None:
    with database.connect(database.bridge_url) as other:
        only(other, "select rowcast.sleep_begin()")
        assert only(bridge, "select rowcast.probe('nonce')") is False
