"""Runs SQL files on a database that applications use at the same time.

It gives `migrate` a connection with known settings, a lock so that one runner at a time works on a
database, and transactions that are retried after conflicts with other sessions.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus

from rowcast.errors import MigrationError
from rowcast.postgres.diagnose import connection_error

from .release import SqlFile

__all__ = [
    "LOCK",
    "SETTINGS",
    "Connection",
    "Tell",
    "alone",
    "attempt",
    "connect_primary",
    "run_file",
    "value",
]

Connection = psycopg.Connection[Any]
Tell = Callable[[str], None]
T = TypeVar("T")

CONNECT_TIMEOUT = 10  # seconds
# seconds for which a transaction is retried after conflicts
PATIENCE = 60.0

# Settings that a login or a database may have changed, and that affect the meaning of the files.
SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    "statement_timeout": "0",
    "lock_timeout": "2s",
    "idle_in_transaction_session_timeout": "0",
    "client_min_messages": "warning",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "check_function_bodies": "on",
    "standard_conforming_strings": "on",
}
LOCK = "hashtextextended('rowcast.migrate', 0)"


@contextmanager
def connect_primary(url: str) -> Iterator[Connection]:
    """Connect to a primary server for the length of a block, and set known settings.

    Raises:
        MigrationError: the connection failed, the server or the database is not suitable, or the
            connection is through a pooler in transaction mode.
    """
    with _open(url) as conn:
        if conn.info.server_version < 150000:
            version = conn.info.parameter_status("server_version")
            raise MigrationError(f"rowcast needs PostgreSQL 15 or newer, this is {version}.")
        if conn.info.parameter_status("server_encoding") != "UTF8":
            raise MigrationError(
                "rowcast needs a database with encoding UTF8: create one, with template template0."
            )
        _refuse_transaction_pooler(conn, url)
        for name, setting in SETTINGS.items():
            conn.execute("select set_config(%s, %s, false)", [name, setting])
        if value(conn, "select pg_is_in_recovery()"):
            raise MigrationError("This server is a standby: connect to the primary.")
        yield conn


@contextmanager
def alone(conn: Connection, tell: Tell) -> Iterator[None]:
    """Wait until no other runner works on this database; the lock ends with `conn`."""
    if not value(conn, f"select pg_try_advisory_lock({LOCK})"):
        tell("waiting for another `rowcast migrate` that works on this database")
        conn.execute("set lock_timeout = 0")  # it applies to advisory locks, too
        conn.execute(f"select pg_advisory_lock({LOCK})".encode())
        conn.execute("select set_config('lock_timeout', %s, false)", [SETTINGS["lock_timeout"]])
    yield


def attempt(conn: Connection, what: str, work: Callable[[], T], tell: Tell) -> T:
    """Do `work` in a transaction, and retry it after conflicts with other sessions.

    Raises:
        MigrationError: `work` failed, or the conflicts lasted too long.
    """
    deadline, pause = time.monotonic() + PATIENCE, 0.1
    while True:
        try:
            with conn.transaction():
                return work()
        except psycopg.Error as problem:
            if not _conflict(problem):
                raise MigrationError(_failure(what, problem)) from problem
            reason = str(problem.diag.message_primary or problem)
            if time.monotonic() > deadline:
                raise MigrationError(
                    f"{what} was blocked for {PATIENCE:.0f} s ({reason}): end the old transactions "
                    "in pg_stat_activity, then run this again."
                ) from problem
        tell(f"{what} tries again: {reason}")
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(pause * 2, 5.0)


def run_file(conn: Connection, file: SqlFile) -> None:
    """Execute a whole file in the present transaction.

    Raises:
        psycopg.Error: a conflict with another session; `attempt` retries it.
        MigrationError: the file failed; the message says at which line.
    """
    try:
        conn.execute(file.text.encode())
    except psycopg.Error as problem:
        if _conflict(problem):
            raise
        at = problem.diag.statement_position
        place = f" line {file.text.count(chr(10), 0, int(at) - 1) + 1}" if at else ""
        raise MigrationError(_failure(file.label + place, problem)) from problem
    if conn.info.transaction_status is not TransactionStatus.INTRANS:
        raise MigrationError(f"{file.label} ended its transaction: remove its COMMIT.")


def value(conn: Connection, query: str) -> Any:
    """Return the first column of the first row."""
    row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def _open(url: str) -> Connection:
    try:
        # A file of several statements cannot be prepared.
        return psycopg.connect(
            url,
            autocommit=True,
            prepare_threshold=None,
            client_encoding="utf8",
            connect_timeout=CONNECT_TIMEOUT,
        )
    except psycopg.Error as problem:
        raise MigrationError(connection_error(problem, url).sentence) from problem


def _refuse_transaction_pooler(conn: Connection, url: str) -> None:
    # A pooler makes up the process id in the handshake. If a second connection gets the same
    # backend, sessions are shared between statements, and so is the session's lock.
    pid = value(conn, "select pg_backend_pid()")
    if pid == conn.info.backend_pid:
        return
    with _open(url) as other:
        if value(other, "select pg_backend_pid()") == pid:
            raise MigrationError(
                "This connection goes through a pooler in transaction mode, which cannot hold "
                "the lock of a migration: use the address of the server itself."
            )


def _conflict(problem: psycopg.Error) -> bool:
    if isinstance(problem, errors.UniqueViolation):  # two sessions create the same name
        return problem.diag.schema_name == "pg_catalog"
    # InternalError_: "tuple concurrently updated", when another database grants the same roles
    return isinstance(
        problem, errors.LockNotAvailable | errors.DeadlockDetected | errors.InternalError_
    )


def _failure(what: str, problem: psycopg.Error) -> str:
    message = " ".join(str(problem.diag.message_primary or problem).split()).rstrip(".")
    hint = problem.diag.message_hint
    return f"{what}: {message}." + (f" {hint}" if hint else "")
