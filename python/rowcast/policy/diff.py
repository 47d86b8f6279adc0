"""From the policies that stand to those that the files want, by the fewest statements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql

__all__ = ["Change", "Policy", "Table", "changes", "create", "drop", "enable"]

# What belongs to rowcast, and no file of a team mentions.
OURS = {"rowcast_publisher"}


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy in words of the server."""

    name: str
    permissive: bool
    command: str
    roles: tuple[str, ...]
    using: str | None
    check: str | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table by its full name."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        """For statements."""
        return sql.Identifier(self.schema, self.name)


@dataclass(frozen=True, slots=True)
class Change:
    """What has to be done for one policy."""

    table: Table
    policy: str
    statements: tuple[sql.Composed, ...]


def changes(
    table: Table,
    live: Mapping[str, Policy],
    wanted: Mapping[str, Policy],
    dropped: set[str],
    prune: bool,
) -> tuple[list[Change], list[str]]:
    """Compare the policies of a table.

    Args:
        table: of both.
        live: those that stand.
        wanted: those that the files make.
        dropped: names that the files drop.
        prune: also drop what the files do not mention.

    Returns:
        What to do, and the names of policies that are left alone, unmentioned.
    """
    found: list[Change] = []
    kept: list[str] = []
    for name in live:
        if name in wanted or name in OURS:
            continue
        if name in dropped or prune:
            found.append(Change(table, name, (drop(table, name),)))
        else:
            kept.append(name)
    for name, policy in wanted.items():
        before = live.get(name)
        if before is None:
            found.append(Change(table, name, (create(table, policy),)))
        elif before != policy:
            found.append(Change(table, name, tuple(_between(table, before, policy))))
    return found, kept


def create(table: Table, policy: Policy) -> sql.Composed:
    """Return the statement that makes a policy."""
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


def _between(table: Table, before: Policy, after: Policy) -> list[sql.Composed]:
    """ALTER POLICY changes neither kind nor command, and takes no expression away."""
    stuck = (before.permissive, before.command) != (after.permissive, after.command)
    taken = (before.using and not after.using) or (before.check and not after.check)
    if stuck or taken:
        return [drop(table, after.name), create(table, after)]
    to = sql.SQL(" to {}").format(_roles(after.roles)) if before.roles != after.roles else None
    using = _clause(" using ({})", after.using) if before.using != after.using else None
    check = _clause(" with check ({})", after.check) if before.check != after.check else None
    head = sql.SQL("alter policy {} on {}").format(sql.Identifier(after.name), table.identifier)
    return [sql.Composed([head, *(part for part in (to, using, check) if part is not None)])]


def drop(table: Table, name: str) -> sql.Composed:
    """Return the statement that drops a policy."""
    return sql.SQL("drop policy {} on {}").format(sql.Identifier(name), table.identifier)


def enable(table: Table) -> sql.Composed:
    """Return the statement that makes policies count."""
    return sql.SQL("alter table {} enable row level security").format(table.identifier)


def _roles(roles: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("public") if role == "public" else sql.Identifier(role) for role in roles
    )


def _clause(template: str, expression: str | None) -> sql.Composable:
    # The server's own text, in which a brace is a brace.
    if expression is None:
        return sql.SQL("")
    before, _, after = template.partition("{}")
    return sql.Composed([sql.SQL(before), sql.SQL(expression), sql.SQL(after)])
