"""The policies of one table: as a database has them, and the fewest statements to other ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

__all__ = [
    "PolicyChange",
    "PolicyDefinition",
    "TableName",
    "create_policy",
    "create_scratch_table",
    "diff_policies",
    "drop_policy",
    "enable_row_security",
    "find_table",
    "has_row_security",
    "read_policies",
]

Connection = psycopg.Connection[Any]

POLICIES = "select policy, permissive, command, roles, using_text, check_text from rowcast.policies_of(%s::regclass)"  # noqa: E501
TABLE = "select n.nspname, c.relname from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace where c.oid = to_regclass(%s)"  # noqa: E501
ENABLED = "select c.relrowsecurity from pg_catalog.pg_class as c where c.oid = %s::regclass"
TEMP_LAST = "select set_config('search_path', current_setting('search_path') || ', pg_temp', true)"
SCRATCH = "create temporary table {} (like {}) on commit drop"

# Policies of rowcast itself, which files of a team do not mention.
OURS = {"rowcast_publisher"}


@dataclass(frozen=True, slots=True)
class PolicyDefinition:
    """A policy with its expressions as the server deparses them."""

    name: str
    permissive: bool
    command: str
    roles: tuple[str, ...]
    using: str | None
    check: str | None


@dataclass(frozen=True, slots=True)
class TableName:
    """A table name with its schema."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        """The quoted name for statements."""
        return sql.Identifier(self.schema, self.name)


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """The statements that change one policy."""

    table: TableName
    policy: str
    statements: tuple[sql.Composed, ...]


def find_table(connection: Connection, names: Sequence[str]) -> TableName | None:
    """Return the full name of a table that is written as `names`; None if it does not exist."""
    written = sql.Identifier(*names).as_string(connection)
    row = connection.execute(TABLE, [written]).fetchone()
    return TableName(*row) if row else None


def read_policies(connection: Connection, table: TableName) -> dict[str, PolicyDefinition]:
    """Return the policies of a table by name."""
    rows = connection.execute(POLICIES, [_quoted(connection, table)])
    return {
        name: PolicyDefinition(name, permissive, command, tuple(roles), using, check)
        for name, permissive, command, roles, using, check in rows
    }


def has_row_security(connection: Connection, table: TableName) -> bool:
    """Say whether row level security is enabled on a table."""
    row = connection.execute(ENABLED, [_quoted(connection, table)]).fetchone()
    return bool(row and row[0])


def create_scratch_table(connection: Connection, table: TableName) -> None:
    """Create an empty temporary table with the name and the columns of `table`.

    Its schema comes last on the search path, so that policies which read `table` do not find the
    temporary one instead.
    """
    connection.execute(TEMP_LAST)
    names = sql.Identifier("pg_temp", table.name), table.identifier
    connection.execute(sql.SQL(SCRATCH).format(*names))


def diff_policies(
    table: TableName,
    live: Mapping[str, PolicyDefinition],
    wanted: Mapping[str, PolicyDefinition],
    dropped: set[str],
    prune: bool,
) -> tuple[list[PolicyChange], list[str]]:
    """Compare the policies of a table.

    Args:
        table: their table.
        live: the policies of the database, by name.
        wanted: the policies of the files, by name.
        dropped: names that the files drop.
        prune: whether to drop policies that the files do not mention.

    Returns:
        The changes, and the names of unmentioned policies that stay.
    """
    found: list[PolicyChange] = []
    kept: list[str] = []
    for name in live:
        if name in wanted or name in OURS:
            continue
        if name in dropped or prune:
            found.append(PolicyChange(table, name, (drop_policy(table, name),)))
        else:
            kept.append(name)
    for name, policy in wanted.items():
        before = live.get(name)
        if before is None:
            found.append(PolicyChange(table, name, (create_policy(table, policy),)))
        elif before != policy:
            found.append(PolicyChange(table, name, tuple(_between(table, before, policy))))
    return found, kept


def create_policy(table: TableName, policy: PolicyDefinition) -> sql.Composed:
    """Return the CREATE POLICY statement of a policy."""
    kind = "permissive" if policy.permissive else "restrictive"
    return sql.SQL("create policy {} on {} as {} for {} to {}{}{}").format(
        sql.Identifier(policy.name),
        table.identifier,
        sql.SQL(kind),
        sql.SQL(policy.command),
        _roles(policy.roles),
        _clause(" using ({})", policy.using),
        _clause(" with check ({})", policy.check),
    )


def _between(
    table: TableName, before: PolicyDefinition, after: PolicyDefinition
) -> list[sql.Composed]:
    """Return ALTER POLICY, or DROP and CREATE where that cannot express the change.

    ALTER POLICY cannot change kind or command, and cannot remove an expression.
    """
    stuck = (before.permissive, before.command) != (after.permissive, after.command)
    taken = (before.using and not after.using) or (before.check and not after.check)
    if stuck or taken:
        return [drop_policy(table, after.name), create_policy(table, after)]
    to = sql.SQL(" to {}").format(_roles(after.roles)) if before.roles != after.roles else None
    using = _clause(" using ({})", after.using) if before.using != after.using else None
    check = _clause(" with check ({})", after.check) if before.check != after.check else None
    head = sql.SQL("alter policy {} on {}").format(sql.Identifier(after.name), table.identifier)
    return [sql.Composed([head, *(part for part in (to, using, check) if part is not None)])]


def drop_policy(table: TableName, name: str) -> sql.Composed:
    """Return the DROP POLICY statement of a policy."""
    return sql.SQL("drop policy {} on {}").format(sql.Identifier(name), table.identifier)


def enable_row_security(table: TableName) -> sql.Composed:
    """Return the statement that enables row level security."""
    return sql.SQL("alter table {} enable row level security").format(table.identifier)


def _roles(roles: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("public") if role == "public" else sql.Identifier(role) for role in roles
    )


def _clause(template: str, expression: str | None) -> sql.Composable:
    # The text of the server may contain braces, so it is not formatted.
    if expression is None:
        return sql.SQL("")
    before, _, after = template.partition("{}")
    return sql.Composed([sql.SQL(before), sql.SQL(expression), sql.SQL(after)])


def _quoted(connection: Connection, table: TableName) -> str:
    return table.identifier.as_string(connection)
