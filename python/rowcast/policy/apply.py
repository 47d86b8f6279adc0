"""Compares policy files with a database, and makes the database match them.

The server itself says what a file means. The policies of the files are created on an empty
temporary table of the same shape, read back and rolled back. Live tables are touched only where
something differs, because each statement about a policy takes an exclusive lock on its table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors, sql

from rowcast.install.runner import attempt
from rowcast.postgres.connect import DatabaseError
from rowcast.postgres.diagnose import server_sentence

from .database import Workbench, database_errors
from .diff import (
    PolicyChange,
    PolicyDefinition,
    TableName,
    create_policy,
    create_scratch_table,
    diff_policies,
    drop_policy,
    enable_row_security,
    find_table,
    has_row_security,
    read_policies,
)
from .statements import PolicyStatement, Script, SideStatement

__all__ = ["PolicyDiff", "apply", "apply_in_transaction", "compare"]

Connection = psycopg.Connection[Any]

OUR_TABLES = (("public", "realtime_channels"), ("public", "realtime_messages"))


@dataclass(frozen=True, slots=True)
class PolicyDiff:
    """What has to change so that a database matches the files.

    Args:
        changes: one per policy that differs.
        enable: tables on which row level security has to be enabled.
        kept: (table, policy) pairs that no file mentions and that stay.
        sides: the number of statements beside the policies; every `apply` runs them.
    """

    changes: tuple[PolicyChange, ...]
    enable: tuple[TableName, ...]
    kept: tuple[tuple[TableName, str], ...]
    sides: int

    def __bool__(self) -> bool:
        return bool(self.changes or self.enable)

    def statements(self) -> list[sql.Composed]:
        """Return the statements that make the database match the files."""
        return [
            *(enable_row_security(table) for table in self.enable),
            *(statement for change in self.changes for statement in change.statements),
        ]


def compare(workbench: Workbench, script: Script, *, prune: bool) -> PolicyDiff:
    """Compare files with the database; nothing that this runs stays.

    Raises:
        DatabaseError: a statement failed; the message names it.
    """
    connection = workbench.connection
    with database_errors(connection), workbench.trial():
        _run_sides(connection, script.sides)
        return _compare(connection, script, prune)


def apply(
    workbench: Workbench, script: Script, tell: Callable[[str], None], *, prune: bool
) -> tuple[PolicyDiff, bool]:
    """Make the database match the files in one transaction, with short and repeated lock waits.

    Returns:
        What was changed, and whether bridges were told to recheck their clients.

    Raises:
        MigrationError: a statement failed, or other sessions held their locks for too long.
    """
    connection = workbench.connection

    def work() -> PolicyDiff:
        workbench.set_timeouts()
        return apply_in_transaction(connection, script, prune=prune)

    diff = attempt(connection, "policies", work, tell)
    with database_errors(connection):
        return diff, workbench.recheck()


def apply_in_transaction(connection: Connection, script: Script, *, prune: bool) -> PolicyDiff:
    """Make the database match the files within the current transaction.

    Returns:
        What was changed.

    Raises:
        DatabaseError: a statement of the files failed; the message names it.
        psycopg.Error: another statement failed, or other sessions held their locks for too long.
    """
    _run_sides(connection, script.sides)
    with connection.transaction(force_rollback=True):
        diff = _compare(connection, script, prune)
    for statement in diff.statements():
        connection.execute(statement)
    return diff


def _run_sides(connection: Connection, sides: Iterable[SideStatement]) -> None:
    for side in sides:
        if not side.enables:
            _run(connection, side.text, side.where)


def _run(connection: Connection, text: str, where: str) -> None:
    try:
        connection.execute(text.encode())
    except (errors.LockNotAvailable, errors.DeadlockDetected):
        raise  # another session is in the way: `attempt` tries again
    except psycopg.Error as problem:
        raise DatabaseError(f"{where}: {server_sentence(problem)}") from problem


def _compare(connection: Connection, script: Script, prune: bool) -> PolicyDiff:
    statements: dict[TableName, list[PolicyStatement]] = {
        TableName(*names): [] for names in OUR_TABLES
    }
    for statement in script.policies:
        table = _existing(connection, statement.table, statement.where)
        statements.setdefault(table, []).append(statement)
    changes: list[PolicyChange] = []
    kept: list[tuple[TableName, str]] = []
    for table, about in statements.items():
        live = read_policies(connection, table)
        wanted, dropped = _wanted(connection, table, about, live)
        needed, unmentioned = diff_policies(table, live, wanted, dropped, prune)
        changes += needed
        kept += ((table, name) for name in unmentioned)
    off: list[TableName] = []
    for side in script.sides:
        if side.enables:
            table = _existing(connection, side.enables, side.where)
            if table not in off and not has_row_security(connection, table):
                off.append(table)
    return PolicyDiff(tuple(changes), tuple(off), tuple(kept), len(script.sides))


def _existing(connection: Connection, names: tuple[str, ...], where: str) -> TableName:
    table = find_table(connection, names)
    if table is None:
        ours = ("public", names[-1]) in OUR_TABLES
        raise DatabaseError(
            f"{where}: table {'.'.join(names)} does not exist."
            f"{' Run `rowcast migrate` first.' if ours else ''}"
        )
    return table


def _wanted(
    connection: Connection,
    table: TableName,
    about: Sequence[PolicyStatement],
    live: dict[str, PolicyDefinition],
) -> tuple[dict[str, PolicyDefinition], set[str]]:
    """Create the policies of the files on a scratch table; also return the names they drop."""
    if not about:
        return {}, set()
    scratch = TableName("pg_temp", table.name)
    made: set[str] = set()
    dropped: set[str] = set()
    with connection.transaction(force_rollback=True):
        create_scratch_table(connection, table)
        for statement in about:
            name = statement.policy
            if statement.verb == "drop":
                if name in made:
                    connection.execute(drop_policy(scratch, name))
                made.discard(name)
                dropped.add(name)
                continue
            if statement.verb == "alter" and name not in made:
                if name not in live or name in dropped:
                    raise DatabaseError(
                        f"{statement.where}: policy {name} does not exist and cannot be altered."
                    )
                connection.execute(create_policy(scratch, live[name]))
            _run(connection, statement.on_scratch(table.name), statement.where)
            made.add(name)
        wanted = read_policies(connection, scratch)
    return wanted, dropped - made
