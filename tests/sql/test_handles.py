"""Handles: the cursors of clients that keep none."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from support.messages import only, refused
from support.pg import as_role

Connection = psycopg.Connection[Any]


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def keep(connection: Connection, **cursors: str) -> None:
    keys = [key(name) for name in cursors]
    connection.execute("select rowcast.keep_handles(%s, %s)", [keys, list(cursors.values())])


def find(connection: Connection, *names: str) -> Any:
    return only(connection, "select rowcast.find_handles(%s)", [[key(name) for name in names]])


def test_the_newest_cursor_is_found_in_the_order_that_was_asked(tx: Connection) -> None:
    keep(tx, a="1", b="1")
    keep(tx, b="2")
    assert find(tx, "b", "unknown", "a", "b") == ["2", None, "1", "2"]
    assert find(tx) == []


def test_what_nobody_used_for_an_hour_is_forgotten(tx: Connection) -> None:
    keep(tx, old="1", used="1")
    tx.execute("update rowcast.handle set kept_at = kept_at - interval '61 minutes'")
    keep(tx, used="2")
    assert find(tx, "old", "used") == [None, "2"]


def test_two_bridges_that_keep_the_same_handles_do_not_deadlock(database: Any) -> None:
    names = [f"n{n}" for n in range(200)]

    def bridge(backwards: bool) -> None:
        with database.connect(database.bridge_url) as connection:
            for _ in range(30):
                keep(connection, **dict.fromkeys(reversed(names) if backwards else names, "c"))

    with ThreadPoolExecutor() as pool:
        list(pool.map(bridge, (False, True, False, True)))


@pytest.mark.parametrize("role", ["anon", "authenticated", "rowcast_publisher"])
def test_only_the_bridge_may_see_them(tx: Connection, role: str) -> None:
    for statement in (
        "select rowcast.find_handles('{}')",
        "select rowcast.keep_handles('{}', '{}')",
        "select * from rowcast.handle",
    ):
        with refused(tx, "42501"), as_role(tx, role):
            tx.execute(statement)
