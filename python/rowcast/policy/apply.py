"""Policy files against a database: what differs, and how to make it the same.

The server itself says what a file means: its policies are made on an empty temporary table of the
same shape, read back, and rolled back. The live tables are touched only where something differs,
because every statement about a policy locks its table against everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import errors, sql

from rowcast.install.runner import attempt
from rowcast.postgres.connect import DatabaseError

from .database import Workbench, explained, sentence
from .diff import Change, Policy, Table, changes, create, drop, enable
from .statements import PolicyStatement, Script

__all__ = ["Difference", "apply", "difference", "make"]

OUR_TABLES = (("public", "realtime_channels"), ("public", "realtime_messages"))


@dataclass(frozen=True, slots=True)
class Difference:
    """What the files want and the database has not.

    Args:
        changes: of policies.
        enable: tables whose row level security is off.
        kept: (table, policy) that no file mentions.
        sides: statements of the files beside the policies, run by every `apply`.
    """

    changes: tuple[Change, ...]
    enable: tuple[Table, ...]
    kept: tuple[tuple[Table, str], ...]
    sides: int

    def __bool__(self) -> bool:
        return bool(self.changes or self.enable)

    def statements(self) -> list[sql.Composed]:
        """Return what makes the database the same."""
        return [
            *(enable(table) for table in self.enable),
            *(statement for change in self.changes for statement in change.statements),
        ]


def difference(workbench: Workbench, script: Script, *, prune: bool) -> Difference:
    """Compare; the statements beside the policies are run, and rolled back with all else.

    Raises:
        DatabaseError: a statement failed; the message says which.
    """
    with explained(workbench.connection), workbench.trial():
        _run_sides(workbench, script)
        return _compare(workbench, script, prune)


def apply(
    workbench: Workbench, script: Script, tell: Callable[[str], None], *, prune: bool
) -> tuple[Difference, bool]:
    """Make the database the same, in one transaction; wait for locks briefly and repeatedly.

    Returns:
        What was changed, and whether bridges were told to ask again for their clients.

    Raises:
        MigrationError: a statement failed, or others held their locks for too long.
    """
    connection = workbench.connection

    def work() -> Difference:
        workbench.limit()
        return make(workbench, script, prune=prune)

    found = attempt(connection, "policies", work, tell)
    with explained(connection):
        return found, workbench.recheck()


def make(workbench: Workbench, script: Script, *, prune: bool) -> Difference:
    """Make the database the same in the transaction that is under way.

    Returns:
        What was changed.

    Raises:
        DatabaseError: a statement of the files failed; the message says which.
        psycopg.Error: another statement failed, or others held their locks for too long.
    """
    _run_sides(workbench, script)
    with workbench.connection.transaction(force_rollback=True):
        found = _compare(workbench, script, prune)
    for statement in found.statements():
        workbench.connection.execute(statement)
    return found


def _run_sides(workbench: Workbench, script: Script) -> None:
    for side in script.sides:
        if not side.enables:
            _run(workbench, side.text, side.where)


def _run(workbench: Workbench, text: str, where: str) -> None:
    try:
        workbench.connection.execute(text.encode())
    except (errors.LockNotAvailable, errors.DeadlockDetected):
        raise  # others are in the way: `attempt` repeats it
    except psycopg.Error as problem:
        raise DatabaseError(f"{where}: {sentence(problem)}") from problem


def _compare(workbench: Workbench, script: Script, prune: bool) -> Difference:
    statements: dict[Table, list[PolicyStatement]] = {Table(*names): [] for names in OUR_TABLES}
    for statement in script.policies:
        table = workbench.table(statement.table)
        if table is None:
            ours = ("public", statement.table[-1]) in OUR_TABLES
            raise DatabaseError(
                f"{statement.where}: there is no table {'.'.join(statement.table)}."
                f"{' Run `rowcast migrate` first.' if ours else ''}"
            )
        statements.setdefault(table, []).append(statement)
    found: list[Change] = []
    kept: list[tuple[Table, str]] = []
    for table, about in statements.items():
        live = workbench.policies_of(table)
        wanted, dropped = _wanted(workbench, table, about, live)
        todo, unmentioned = changes(table, live, wanted, dropped, prune)
        found += todo
        kept += ((table, name) for name in unmentioned)
    off: list[Table] = []
    for side in script.sides:
        if side.enables:
            table = workbench.table(side.enables)
            if table is None:
                raise DatabaseError(f"{side.where}: there is no table {'.'.join(side.enables)}.")
            if table not in off and not workbench.is_enabled(table):
                off.append(table)
    return Difference(tuple(found), tuple(off), tuple(kept), len(script.sides))


def _wanted(
    workbench: Workbench,
    table: Table,
    about: Sequence[PolicyStatement],
    live: dict[str, Policy],
) -> tuple[dict[str, Policy], set[str]]:
    """Make the policies of the files on a scratch table; also return the names they drop."""
    if not about:
        return {}, set()
    scratch = Table("pg_temp", table.name)
    made: set[str] = set()
    dropped: set[str] = set()
    with workbench.connection.transaction(force_rollback=True):
        workbench.make_scratch(table)
        for statement in about:
            name = statement.policy
            if statement.verb == "drop":
                if name in made:
                    workbench.connection.execute(drop(scratch, name))
                made.discard(name)
                dropped.add(name)
                continue
            if statement.verb == "alter" and name not in made:
                if name not in live or name in dropped:
                    raise DatabaseError(f"{statement.where}: there is no policy {name} to alter.")
                workbench.connection.execute(create(scratch, live[name]))
            _run(workbench, statement.on_scratch(table.name), statement.where)
            made.add(name)
        found = workbench.policies_of(scratch)
    return found, dropped - made
