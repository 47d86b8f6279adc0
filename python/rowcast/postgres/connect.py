"""A short synchronous connection, for the commands; its errors are sentences.

The daemon has its own connections (`bridge.database`), and so do migrations (`install.runner`).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, LiteralString, TypeAlias

import psycopg
from psycopg import errors, sql
from psycopg.rows import dict_row

from rowcast.errors import RowcastError

from .diagnose import connection_error, server_sentence

__all__ = ["Connection", "DatabaseError", "ShortConnection", "connect", "hears", "open_connection"]

Connection: TypeAlias = "psycopg.Connection[Any]"
Query: TypeAlias = "LiteralString | sql.Composed"

HAS_DATABASE = "select exists (select from pg_database where datname = %s)"

CONNECT_TIMEOUT = 10  # seconds


class DatabaseError(RowcastError):
    """The database cannot be reached, or refused a statement of a command."""


class ShortConnection:
    """An open connection on which every statement commits.

    Each method raises `DatabaseError` when the database refuses the statement.

    Args:
        connection: in autocommit mode; see `connect`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def user(self) -> str:
        """The name of the login."""
        return self._connection.info.user

    def execute(self, query: Query, *parameters: Any) -> None:
        """Run a statement without a result."""
        with self._errors():
            self._connection.execute(query, parameters or None)

    def execute_many(self, query: Query, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement once for each row of parameters."""
        with self._errors(), self._connection.cursor() as cursor:
            cursor.executemany(query, rows)

    def value(self, query: Query, *parameters: Any) -> Any:
        """Return the first column of the first row."""
        with self._errors():
            row = self._connection.execute(query, parameters or None).fetchone()
        assert row is not None
        return row[0]

    def rows(self, query: Query, *parameters: Any) -> list[dict[str, Any]]:
        """Return all rows, each as column name → value."""
        with self._errors(), self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, parameters or None).fetchall()

    def create_database(self, name: str) -> None:
        """Create a database unless it exists."""
        if not self.value(HAS_DATABASE, name):
            self.execute(sql.SQL("create database {}").format(sql.Identifier(name)))

    def pooled(self) -> bool:
        """Say whether a pooler stands between this connection and the server.

        A pooler makes up the process id that it sends in the handshake.
        """
        pid: int = self.value("select pg_backend_pid()")
        return pid != self._connection.info.backend_pid

    def listen(self, channel: str) -> None:
        """Subscribe to the notifications of a channel."""
        self.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))

    def notified(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for one notification; say whether it came."""
        with self._errors():
            return any(True for _ in self._connection.notifies(timeout=timeout, stop_after=1))

    @contextmanager
    def _errors(self) -> Iterator[None]:
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
                "login meant for it, or run `rowcast migrate --reapply` to restore its grants."
            ) from refused
        except psycopg.Error as error:
            raise DatabaseError(server_sentence(error)) from error


@contextmanager
def open_connection(url: str, application_name: str) -> Iterator[Connection]:
    """Open a connection in autocommit mode for the length of a block.

    Args:
        url: of the database.
        application_name: shown in `pg_stat_activity`.

    Raises:
        DatabaseError: the connection failed; the message says why.
    """
    try:
        connection = psycopg.connect(
            url,
            autocommit=True,
            prepare_threshold=None,  # a pooler may run a prepared statement in another session
            connect_timeout=CONNECT_TIMEOUT,
            application_name=application_name,
        )
    except psycopg.Error as error:
        raise DatabaseError(connection_error(error, url).sentence) from error
    with connection:
        yield connection


@contextmanager
def connect(url: str) -> Iterator[ShortConnection]:
    """Connect to `url` for the length of a block.

    Raises:
        DatabaseError: the connection failed, or the database refused a statement of the block.
    """
    with open_connection(url, "rowcast command") as connection:
        yield ShortConnection(connection)


def hears(url: str, timeout: float = 3.0) -> bool:
    """Say whether a LISTEN through `url` receives what another connection notifies.

    A pooler that gives each transaction another session swallows notifications.

    Raises:
        DatabaseError: the connection failed.
    """
    channel = f"rowcast_doctor_{secrets.token_hex(6)}"
    with connect(url) as listener, connect(url) as other:
        listener.listen(channel)
        other.execute("select pg_notify(%s, '')", channel)
        return listener.notified(timeout)
