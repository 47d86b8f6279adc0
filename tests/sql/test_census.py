"""The census: who may ask, answer and read, and that nothing of it stays."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from support import pg
from support.messages import only, refused
from support.pg import as_role

Connection = psycopg.Connection[Any]

ANSWER = "select rowcast.census_answer(%s, %s, %s, %s, %s, %s, %s)"
WAIT = "select bridges, answered, left_out from rowcast.census_wait(%s, %s)"
READ = (
    "select role, claims, channel, sessions from rowcast.census_read(%s)"
    ' order by claims collate "C", channel'
)
KEPT = "select count(*) from rowcast.census_request as r full join rowcast.census as c on true"


def alive(connection: Connection, lease: str = "1 minute") -> UUID:
    node = uuid4()
    connection.execute("select rowcast.node_beat(%s, %s)", [node, lease])
    return node


def ask(connection: Connection) -> Any:
    return only(connection, "select rowcast.census_ask()")


def answer(
    connection: Connection, node: UUID, request: Any, *pairs: tuple[str, str, int], left: Any = 0
) -> Any:
    columns: list[list[Any]] = [
        ["authenticated" for _ in pairs],
        [claims for claims, _, _ in pairs],
        [channel for _, channel, _ in pairs],
        [count for _, _, count in pairs],
    ]
    return only(connection, ANSWER, [node, request, *columns, left])


def test_sessions_are_added_up_over_bridges_and_portions(tx: Connection) -> None:
    first, second = alive(tx), alive(tx)
    request = ask(tx)
    signals = tx.execute("select kind, body from rowcast.signal where kind = 'census'").fetchall()
    assert signals == [("census", {"request": str(request)})]
    assert answer(tx, first, request, ("{}", "a", 2), left=None)
    assert tx.execute(WAIT, [request, "0"]).fetchone() == (2, 0, 0)
    assert answer(tx, first, request, ("{}", "b", 1), left=3)
    assert answer(tx, second, request, ("{}", "a", 1), ("{1}", "a", 1))
    assert tx.execute(WAIT, [request, "1 minute"]).fetchone() == (2, 2, 3)
    assert tx.execute(READ, [request]).fetchall() == [
        ("authenticated", "{1}", "a", 1),
        ("authenticated", "{}", "a", 3),
        ("authenticated", "{}", "b", 1),
    ]


def test_a_signal_that_is_read_twice_counts_once(tx: Connection) -> None:
    node = alive(tx)
    request = ask(tx)
    assert answer(tx, node, request, ("{}", "a", 2)) is True
    assert answer(tx, node, request, ("{}", "a", 2)) is False
    assert [row[3] for row in tx.execute(READ, [request])] == [2]


def test_what_was_read_is_gone_and_nothing_is_written_after_it(tx: Connection) -> None:
    node = alive(tx)
    request = ask(tx)
    answer(tx, node, request, ("{}", "a", 2), left=None)
    assert tx.execute(READ, [request]).rowcount == 1
    assert answer(tx, node, request, ("{}", "a", 2)) is False
    assert answer(tx, node, uuid4(), ("{}", "a", 2)) is False
    assert only(tx, KEPT) == 0
    assert tx.execute(READ, [request]).fetchall() == []


@pytest.mark.parametrize("by", ["rowcast.upkeep()", "rowcast.census_ask()", "rowcast.adopt()"])
def test_what_nobody_read_goes_after_two_minutes(tx: Connection, by: str) -> None:
    node = alive(tx)
    request = ask(tx)
    answer(tx, node, request, ("{}", "a", 2))
    if by == "rowcast.adopt()":
        tx.execute("update rowcast.origin set system_identifier = 1")
    else:
        tx.execute(f"select {by}".encode())
        assert only(tx, "select count(*) from rowcast.census") == 1
        tx.execute(
            "update rowcast.census_request as r set asked_at = r.asked_at - interval '121 s'"
            " where r.id = %s",
            [request],
        )
    tx.execute(f"select {by}".encode())
    for table in ("census", "census_answer"):
        assert only(tx, f"select count(*) from rowcast.{table}") == 0
    assert only(tx, "select count(*) from rowcast.census_request where id = %s", [request]) == 0


def test_without_a_living_bridge_nobody_is_asked(tx: Connection) -> None:
    tx.execute("delete from rowcast.node")
    assert ask(tx) is None
    tx.execute("insert into rowcast.node values (%s, now(), now() - interval '1 s')", [uuid4()])
    assert ask(tx) is None
    assert only(tx, "select count(*) from rowcast.signal where kind = 'census'") == 0


def test_it_waits_for_the_last_bridge_and_not_for_a_dead_one(database: pg.Database) -> None:
    with database.connect() as connection, database.connect() as other:
        living, dying = alive(connection), alive(connection)
        request = ask(connection)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(connection.execute, WAIT, [request, "1 minute"])
            answer(other, living, request, ("{}", "a", 1))
            assert not waiting.done()
            other.execute("update rowcast.node set expires_at = now() where id = %s", [dying])
            assert waiting.result(30).fetchone() == (2, 1, 0)


def test_it_waits_no_longer_than_it_is_told(tx: Connection) -> None:
    alive(tx)
    request = ask(tx)
    began = time.monotonic()
    assert tx.execute(WAIT, [request, "0.2 s"]).fetchone() == (1, 0, 0)
    assert 0.2 <= time.monotonic() - began < 5


def test_reading_waits_for_who_is_answering_and_loses_none_of_it(database: pg.Database) -> None:
    """Rows of an answer that began before and ended after would otherwise stay for ever."""
    with database.connect() as reader, database.connect(autocommit=False) as bridge:
        node = alive(reader)
        request = ask(reader)
        answer(bridge, node, request, ("{}", "a", 1))
        with ThreadPoolExecutor() as pool:
            reading = pool.submit(lambda: reader.execute(READ, [request]).fetchall())
            blocked = "select count(*) from pg_locks where not granted"
            with database.connect() as watcher:
                while not only(watcher, blocked):
                    assert not reading.done()
            bridge.commit()
            assert [row[2] for row in reading.result(30)] == ["a"]
        assert only(reader, KEPT) == 0


@pytest.mark.parametrize("role", ["anon", "authenticated", "rowcast_publisher", "rowcast_caller"])
def test_nobody_else_may_see_or_say_anything(tx: Connection, role: str) -> None:
    for statement in (
        "select rowcast.census_ask()",
        "select rowcast.census_wait(null, '0')",
        "select rowcast.census_read(null)",
        "select rowcast.census_answer(null, null, null, null, null, null, null)",
        "select * from rowcast.census",
        "select * from rowcast.census_request",
        "select * from rowcast.census_answer",
    ):
        with refused(tx, "42501"), as_role(tx, role):
            tx.execute(statement.encode())


def test_a_bridge_answers_and_neither_asks_nor_reads(tx: Connection) -> None:
    node = alive(tx)
    request = ask(tx)
    with as_role(tx, "rowcast_bridge"):
        assert answer(tx, node, request, ("{}", "a", 1))
    for call in ("census_ask()", "census_read(null)", "census_wait(null, '0')"):
        with refused(tx, "42501"), as_role(tx, "rowcast_bridge"):
            tx.execute(f"select rowcast.{call}".encode())


def test_claims_are_never_in_the_wal(tx: Connection) -> None:
    persistent = (
        "select relname from pg_class where relnamespace = 'rowcast'::regnamespace"
        " and relname like 'census%' and relpersistence <> 'u'"
    )
    assert tx.execute(persistent).fetchall() == []
