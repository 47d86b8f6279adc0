"""Webhook deliveries as tests claim, settle and read them, the way a bridge does."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row

from support.messages import only

__all__ = ["ADMIN", "alter_settings", "attempts", "claim", "deliveries", "endpoints", "settle"]

Connection = psycopg.Connection[Any]

ADMIN = '{"role": "rowcast_admin"}'


def endpoints(connection: Connection, channel: UUID | None = None) -> list[Any]:
    """The endpoints of a channel or of all, oldest first, with columns as attributes."""
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(
            "select id, channel_id, url, secret, state, reason, room, failures"
            " from rowcast.endpoint where %(c)s::uuid is null or channel_id = %(c)s"
            " order by created_at, id",
            {"c": channel},
        ).fetchall()


def deliveries(connection: Connection) -> list[Any]:
    """All deliveries, oldest first, with columns as attributes."""
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute("select * from rowcast.delivery order by id").fetchall()


def attempts(connection: Connection, delivery: int) -> list[tuple[Any, ...]]:
    """(attempt, status, error, snippet) of a delivery."""
    return connection.execute(
        "select attempt, status, error, snippet from rowcast.attempt"
        " where delivery_id = %s order by attempt",
        [delivery],
    ).fetchall()


def claim(
    connection: Connection,
    worker: UUID,
    limit: int = 100,
    *,
    lease: str = "30 s",
    busy: dict[UUID, int] | None = None,
) -> list[Any]:
    """What a bridge of this id gets."""
    busy = busy or {}
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(
            "select * from rowcast.claim_deliveries(%s, %s, %s::interval, %s::uuid[], %s::int[])",
            [worker, limit, lease, list(busy), list(busy.values())],
        ).fetchall()


def settle(
    connection: Connection,
    worker: UUID,
    claimed: list[Any],
    status: int | None = 200,
    *,
    error: str | None = None,
    snippet: str | None = None,
    retry_after: int | None = None,
    ms: int = 7,
) -> int:
    """Say that all of these were answered alike; returns how many were still held."""
    n = len(claimed)
    count: int = only(
        connection,
        "select rowcast.settle_deliveries(%s, %s::bigint[], %s::int[], %s::int[], %s::int[],"
        " %s::text[], %s::text[], %s::int[])",
        [
            worker,
            [c.id for c in claimed],
            [c.attempt for c in claimed],
            [status] * n,
            [ms] * n,
            [error] * n,
            [snippet] * n,
            [retry_after] * n,
        ],
    )
    return count


def alter_settings(connection: Connection, **values: Any) -> None:
    """Change settings of the database."""
    connection.execute(
        sql.SQL("update rowcast.settings set {}").format(
            sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in values)
        ),
        list(values.values()),
    )
