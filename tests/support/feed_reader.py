"""The feed and the replay as a bridge asks for them, with cursors as it carries them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import namedtuple_row

__all__ = ["Answer", "Cursor", "Drain", "ask", "drain", "insert_raw", "reboot", "replay"]

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the feed: a snapshot, the life of the cluster it is from, and its time."""

    snapshot: str
    boot: UUID | None
    issued_at: datetime

    @property
    def xmin(self) -> str:
        return self.snapshot.split(":")[0]

    @property
    def xmax(self) -> int:
        return int(self.snapshot.split(":")[1])


@dataclass(frozen=True, slots=True)
class Drain:
    """What one call of the feed answered."""

    cursor: Cursor
    rows: list[Any]
    more: bool

    @property
    def events(self) -> list[str]:
        return [row.event_name for row in self.rows if row.kind == "message"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one pair of a replay was answered."""

    state: str
    rows: list[Any]

    @property
    def events(self) -> list[str]:
        return [row.event_name for row in self.rows]


def ask(connection: Connection) -> Cursor:
    """Return the present cursor."""
    return drain(connection, None).cursor


def drain(
    connection: Connection,
    since: Cursor | None,
    *,
    rows: int | None = None,
    size: int | None = None,
) -> Drain:
    """Read what is new since a cursor, up to a number of rows and bytes."""
    values = [None, None, None] if since is None else [since.snapshot, since.boot, since.issued_at]
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        found = cursor.execute(
            "select * from rowcast.feed(%s, %s::uuid, %s::timestamptz, %s::integer, %s::integer)",
            [*values, rows, size],
        ).fetchall()
    head, *rest = found
    assert head.kind == "snapshot", "the first row is the snapshot"
    more = bool(rest) and rest[-1].kind == "more"
    return Drain(Cursor(head.payload, head.id, head.created_at), rest[:-1] if more else rest, more)


def replay(
    connection: Connection, pairs: Sequence[tuple[str, Cursor]], until: Cursor
) -> list[Answer]:
    """Ask for many (channel, cursor) pairs in one call; one answer for each, in their order."""
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        found = cursor.execute(
            "select * from rowcast.replay(%s::text[], %s::text[], %s::uuid[], %s::timestamptz[],"
            " %s, %s)",
            [
                [channel for channel, _ in pairs],
                [since.snapshot for _, since in pairs],
                [since.boot for _, since in pairs],
                [since.issued_at for _, since in pairs],
                until.snapshot,
                until.boot,
            ],
        ).fetchall()
    answers: list[Answer] = []
    for row in found:
        if row.state is not None:
            assert row.pair in (0, len(answers) + 1)
            answers.append(Answer(row.state, []))
        else:
            assert row.pair == len(answers), "rows stand below the state of their pair"
            answers[-1].rows.append(row)
    return answers


def insert_raw(connection: Connection, channel: str, event: str, **columns: Any) -> None:
    """Insert a durable row as a restore does: no trigger stamps it. Needs a superuser."""
    named = {"channel_name": channel, "event_name": event, **columns}
    names = ", ".join(named)
    with connection.transaction():
        connection.execute("set local session_replication_role = replica")
        connection.execute(
            f"insert into public.realtime_messages (seq, id, {names}) values"  # type: ignore[arg-type]
            " (nextval('rowcast.message_seq'), rowcast.message_id(clock_timestamp(), 0),"
            f" {', '.join(['%s'] * len(named))})",
            list(named.values()),
        )


def reboot(connection: Connection) -> UUID:
    """Do to the boot row what a crash recovery does, and return the new id."""
    connection.execute("delete from rowcast.boot")
    row = connection.execute("select rowcast.boot_id()").fetchone()
    assert row is not None
    boot: UUID = row[0]
    return boot
