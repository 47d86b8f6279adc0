"""Channels and messages: create, publish and read them, and expect refusals with a hint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb

__all__ = ["add_channel", "messages", "only", "publish", "publish_json", "refused"]

Connection = psycopg.Connection[Any]


def add_channel(connection: Connection, pattern: str, **columns: Any) -> UUID:
    """Insert a channel and return its id."""
    columns = {"pattern": pattern, **columns}
    query = sql.SQL("insert into public.realtime_channels ({}) values ({}) returning id").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL(", ").join(sql.Placeholder() * len(columns)),
    )
    found: UUID = only(connection, query, list(columns.values()))
    return found


def publish(connection: Connection, channel: str, event: str = "said", **arguments: Any) -> Any:
    """Call ``rowcast.publish`` with named arguments and return what it returns."""
    names = sql.SQL("").join(
        sql.SQL(", {} => %s").format(sql.Identifier(name)) for name in arguments
    )
    query = sql.SQL("select rowcast.publish(%s, %s{})").format(names)
    return only(connection, query, [channel, event, *arguments.values()])


def publish_json(
    connection: Connection, channel: str, *payloads: Any, event: str = "e", kind: str = "message"
) -> None:
    """Publish each of `payloads` as JSON; `kind` is the type, ``message`` or ``broadcast``."""
    for payload in payloads:
        publish(connection, channel, event, payload=Jsonb(payload), type=kind)


def messages(connection: Connection, channel: str) -> list[Any]:
    """Return the messages of a channel, oldest first, with columns as attributes."""
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(
            "select * from public.realtime_messages where channel_name = %s order by seq", [channel]
        ).fetchall()


def only(connection: Connection, query: Any, values: Any = ()) -> Any:
    """Return the value of a query with one row of one column."""
    rows = connection.execute(query, values).fetchall()
    assert len(rows) == 1
    assert len(rows[0]) == 1
    return rows[0][0]


@contextlib.contextmanager
def refused(connection: Connection, sqlstate: str, *words: str) -> Iterator[None]:
    """Expect an error with this SQLSTATE whose message contains `words`; ours also have a hint.

    The block is a savepoint or a transaction, so the connection stays usable.
    """
    with pytest.raises(psycopg.Error) as refusal, connection.transaction():
        yield
    said = refusal.value.diag
    assert said.sqlstate == sqlstate, refusal.value
    assert [word for word in words if word not in str(said.message_primary)] == []
    assert said.message_hint or not sqlstate.startswith("RC"), "a refusal of ours has a hint"
