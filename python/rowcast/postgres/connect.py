"""The SQL of the commands: each statement one call, each connection short.

The daemon's is in `database`, that of migrations in `migrate`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg import errors, sql
from psycopg.rows import dict_row

from rowcast.errors import RowcastError
from rowcast.postgres.diagnose import explain

__all__ = ["CommandDatabase", "DatabaseError", "Login", "connect", "hears"]

STATUS = "select rowcast.status()"
DOCTOR = "select * from rowcast.doctor()"
LOGIN = "select * from rowcast.login_report()"
PUBLISH = "select rowcast.publish(%s, %s, %s::jsonb, %s, %s)"
PUBLISH_MANY = "select rowcast.publish_many(%s::jsonb)"
CLOCK = "select extract(epoch from clock_timestamp())::float8"
BACKEND = "select pg_backend_pid()"
NOTIFY = "select pg_notify(%s, '')"
HAS_DATABASE = "select exists (select from pg_database where datname = %s)"
HAS_CHANNELS = "select exists (select from public.realtime_channels)"
POLICIES = "select policyname from pg_policies where schemaname = 'public' and tablename = any(%s) and policyname <> 'rowcast_publisher' order by 1"  # noqa: E501
ADD_CHANNEL = "insert into public.realtime_channels (pattern, description) values (%s, %s) on conflict do nothing"  # noqa: E501
DROP_OPEN = (
    "drop policy if exists open_subscribe on public.realtime_channels",
    "drop policy if exists open_publish on public.realtime_messages",
    "drop policy if exists open_history on public.realtime_messages",
)
ENDPOINTS = "select rowcast.admin_endpoints(%s, null)"
DELIVERIES = "select rowcast.admin_deliveries(%s, %s::uuid, %s, %s, %s)"
ATTEMPTS = "select rowcast.admin_delivery_attempts(%s, %s)"
REDELIVER = "select rowcast.admin_redeliver(%s, %s)"
ROTATE = "select rowcast.admin_rotate_secret(%s, %s)"
# Whoever has the URL of the owner or of the bridge is the administrator.
ADMIN = '{"role": "rowcast_admin"}'
TABLES = ["realtime_channels", "realtime_messages"]

CONNECT_TIMEOUT = 10
# One statement of publish_many carries so many messages.
BATCH = 500


class DatabaseError(RowcastError):
    """The database cannot be reached, or refused what a command asked."""


@dataclass(frozen=True, slots=True)
class Login:
    """What is wrong with a login: as any of the daemon's, as the bridge's, as the callers'."""

    name: str
    faults: tuple[str, ...]
    bridge_faults: tuple[str, ...]
    caller_faults: tuple[str, ...]


class CommandDatabase:
    """One connection; every call commits.

    Args:
        connection: an open one, see `connect`.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    @property
    def user(self) -> str:
        """The name of the login."""
        return self._connection.info.user

    def status(self) -> dict[str, Any]:
        """Return `rowcast.status()`."""
        answer: dict[str, Any] = self._value(STATUS)
        return answer

    def doctor(self) -> list[dict[str, Any]]:
        """Return the rows of `rowcast.doctor()`."""
        with self._explained(), self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(DOCTOR).fetchall()

    def login(self) -> Login:
        """Ask what this login may do that a login of the daemon should not."""
        with self._explained():
            row = self._connection.execute(LOGIN).fetchone()
        assert row is not None
        return Login(row[0], *(tuple(faults) for faults in row[1:]))

    def publish(self, channel: str, event: str, payload: str, kind: str, key: UUID | None) -> UUID:
        """Publish one message with this login's rights; return its id."""
        with self._may_publish():
            message_id: UUID = self._value(PUBLISH, channel, event, payload, kind, key)
        return message_id

    def publish_many(self, channel: str, event: str, payload: str, kind: str, count: int) -> int:
        """Publish the same message `count` times; return how many were published."""
        names = {"channel": channel, "event": event, "type": kind}
        # The payload goes through as text: numbers of any size stay what they are.
        message = f'{json.dumps(names)[:-1]}, "payload": {payload}}}'
        published = 0
        while published < count:
            batch = ", ".join([message] * min(BATCH, count - published))
            with self._may_publish():
                published += self._value(PUBLISH_MANY, f"[{batch}]")
        return published

    def clock(self) -> float:
        """Return by how many seconds the clock of the database is ahead of ours."""
        before = time.time()
        theirs: float = self._value(CLOCK)
        return theirs - (before + time.time()) / 2

    def has_channels(self) -> bool:
        """Say whether there is any channel."""
        return bool(self._value(HAS_CHANNELS))

    def policies(self) -> tuple[str, ...]:
        """Return the names of the policies that somebody wrote for our tables."""
        with self._explained():
            rows = self._connection.execute(POLICIES, [TABLES]).fetchall()
        return tuple(name for (name,) in rows)

    def drop_open_policies(self) -> None:
        """Take the recipe `open` back."""
        with self._explained():
            for statement in DROP_OPEN:
                self._connection.execute(statement)

    def add_channels(self, channels: Sequence[tuple[str, str]]) -> None:
        """Create channels, each a pattern and a description; those that exist stay."""
        with self._explained(), self._connection.cursor() as cursor:
            cursor.executemany(ADD_CHANNEL, channels)

    def create_database(self, name: str) -> None:
        """Create a database unless it exists."""
        if not self._value(HAS_DATABASE, name):
            with self._explained():
                self._connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))

    def pooled(self) -> bool:
        """Say whether another program stands between us and the server.

        The process id that the handshake told is then made up.
        """
        pid: int = self._value(BACKEND)
        return pid != self._connection.info.backend_pid

    def listen(self, channel: str) -> None:
        """Ask for the notifications of a channel."""
        with self._explained():
            self._connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))

    def notify(self, channel: str) -> None:
        """Notify a channel."""
        self._value(NOTIFY, channel)

    def notified(self, timeout: float) -> bool:
        """Wait for one notification; say whether it came."""
        with self._explained():
            return any(True for _ in self._connection.notifies(timeout=timeout, stop_after=1))

    def endpoints(self) -> list[dict[str, Any]]:
        """Return the webhook endpoints of all channels."""
        found: list[dict[str, Any]] = json.loads(self._value(ENDPOINTS, ADMIN))
        return found

    def deliveries(
        self, channel: UUID | None, state: str | None, limit: int, after: str | None
    ) -> dict[str, Any]:
        """Return one page of webhook deliveries, newest first."""
        page: dict[str, Any] = json.loads(
            self._value(DELIVERIES, ADMIN, channel, state, limit, after)
        )
        return page

    def delivery_attempts(self, delivery: int) -> list[dict[str, Any]]:
        """Return the attempts of one delivery."""
        found: list[dict[str, Any]] = json.loads(self._value(ATTEMPTS, ADMIN, delivery))
        return found

    def redeliver(self, delivery: int) -> dict[str, Any]:
        """Send a delivery again."""
        done: dict[str, Any] = json.loads(self._value(REDELIVER, ADMIN, delivery))
        return done

    def rotate_secret(self, endpoint: UUID) -> dict[str, Any]:
        """Give an endpoint a new secret; return it."""
        done: dict[str, Any] = json.loads(self._value(ROTATE, ADMIN, endpoint))
        return done

    def _value(self, query: str, *parameters: Any) -> Any:
        with self._explained():
            # Through a pooler a prepared statement may land elsewhere: none is prepared.
            row = self._connection.execute(query.encode(), parameters).fetchone()
        assert row is not None
        return row[0]

    @contextmanager
    def _may_publish(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as problem:
            if isinstance(problem.__cause__, errors.InsufficientPrivilege):
                reason = problem.__cause__.diag.message_primary
                raise DatabaseError(
                    f"The login {self.user} may not publish ({reason}): give --database-url of the "
                    "owner, or of a role granted rowcast_publisher."
                ) from problem
            raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (errors.UndefinedFunction, errors.UndefinedTable, errors.InvalidSchemaName) as gone:
            raise DatabaseError(
                f"The database {self._connection.info.dbname} has no rowcast, or an older one: "
                "run `rowcast migrate` first."
            ) from gone
        except errors.InsufficientPrivilege as refused:
            raise DatabaseError(
                f"The login {self.user} may not do this ({refused.diag.message_primary}): use the "
                "one that is meant for it, or run `rowcast migrate --reapply` to grant it anew."
            ) from refused
        except psycopg.Error as problem:
            raise DatabaseError(_sentence(problem)) from problem


@contextmanager
def connect(url: str) -> Iterator[CommandDatabase]:
    """Connect to `url` for the length of a block.

    Raises:
        DatabaseError: no connection, or what was asked in the block was refused.
    """
    try:
        connection = psycopg.connect(
            url,
            autocommit=True,
            prepare_threshold=None,
            connect_timeout=CONNECT_TIMEOUT,
            application_name="rowcast command",
        )
    except psycopg.Error as problem:
        raise DatabaseError(explain(problem, url).sentence) from problem
    with connection:
        yield CommandDatabase(connection)


def hears(url: str, timeout: float = 3.0) -> bool:
    """Say whether a LISTEN through `url` hears what another connection notifies.

    A pooler that gives each transaction another session swallows it.

    Raises:
        DatabaseError: no connection.
    """
    channel = f"rowcast_doctor_{secrets.token_hex(6)}"
    with connect(url) as listener, connect(url) as other:
        listener.listen(channel)
        other.notify(channel)
        return listener.notified(timeout)


def _sentence(problem: psycopg.Error) -> str:
    message = " ".join(str(problem.diag.message_primary or problem).split()).rstrip(".")
    hint = problem.diag.message_hint
    return f"{message[:1].upper()}{message[1:]}." + (f" {hint}" if hint else "")
