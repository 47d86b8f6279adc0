"""Reads policy files for `apply`: the policies, and the statements beside them.

Statements beside the policies must be repeatable, because every `apply` runs them: functions,
views, grants, comments, blocks, and tables that are created if they do not exist. Everything else
belongs in a migration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rowcast.errors import UsageError

from .optional import load_pglast
from .source import Source, find_sql_files, read_source

__all__ = ["PolicyStatement", "Script", "SideStatement", "read_script"]

AGAIN = (
    "AlterDefaultPrivilegesStmt",
    "AlterFunctionStmt",
    "CommentStmt",
    "DoStmt",
    "GrantStmt",
    "GrantRoleStmt",
)
IF_ABSENT = ("CreateStmt", "IndexStmt", "CreateSchemaStmt")
REPLACED = ("CreateFunctionStmt", "CreateTrigStmt", "ViewStmt")


@dataclass(frozen=True, slots=True)
class PolicyStatement:
    """CREATE, ALTER or DROP POLICY.

    Args:
        where: file and line.
        verb: "create", "alter" or "drop".
        table: the name of the table as written.
        policy: the name of the policy.
        node: the parsed statement.
    """

    where: str
    verb: str
    table: tuple[str, ...]
    policy: str
    node: Any

    def on_scratch(self, name: str) -> str:
        """Return the statement for a temporary table called `name`."""
        pglast = load_pglast()
        table = self.node.table
        table.schemaname, table.relname = "pg_temp", name
        for reference in _references(pglast, self.node):
            # public.t.column refers to public.t, but the scratch table is not in public
            if len(reference.fields) == 3 and reference.fields[1].sval == name:
                reference.fields = reference.fields[1:]
        return str(pglast.stream.RawStream()(self.node))


@dataclass(frozen=True, slots=True)
class SideStatement:
    """A statement beside the policies, which runs as it is written.

    Args:
        where: file and line.
        text: the statement.
        enables: the table, if the statement is only ENABLE ROW LEVEL SECURITY.
    """

    where: str
    text: str
    enables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Script:
    """The statements of all files, in order."""

    policies: tuple[PolicyStatement, ...]
    sides: tuple[SideStatement, ...]


def read_script(paths: Sequence[Path]) -> Script:
    """Read files, and all ``*.sql`` of directories.

    Raises:
        UsageError: a file cannot be read or parsed, or a statement belongs in a migration.
        MissingExtraError: pglast is not installed.
    """
    policies: list[PolicyStatement] = []
    sides: list[SideStatement] = []
    for source in map(read_source, find_sql_files(paths)):
        for fault in source.faults:
            line, _ = source.place(fault.offset)
            raise UsageError(f"{source.name}, line {line}: {fault.message}.")
        for statement in _statements(source):
            if isinstance(statement, PolicyStatement):
                policies.append(statement)
            else:
                sides.append(statement)
    return Script(tuple(policies), tuple(sides))


def _statements(source: Source) -> Iterator[PolicyStatement | SideStatement]:
    pglast = load_pglast()
    for statement in source.statements:
        if not statement.inside:
            where = f"{source.name}, line {source.place(statement.start)[0]}"
            text = source.text[source.slices[statement.index]]
            yield from _of(pglast, statement.node, text, where)


def _of(pglast: Any, node: Any, text: str, where: str) -> Iterator[PolicyStatement | SideStatement]:
    kind = type(node).__name__
    if kind in ("CreatePolicyStmt", "AlterPolicyStmt"):
        verb = "create" if kind.startswith("Create") else "alter"
        yield PolicyStatement(where, verb, _table(node.table), node.policy_name, node)
    elif kind == "DropStmt" and node.removeType == pglast.enums.ObjectType.OBJECT_POLICY:
        for names in node.objects:
            *table, policy = (part.sval for part in names)
            yield PolicyStatement(where, "drop", tuple(table), policy, node)
    elif enabled := _enabled(pglast, node):
        yield SideStatement(where, text, enabled)
    elif (
        kind in AGAIN
        or (kind in IF_ABSENT and node.if_not_exists)
        or (kind in REPLACED and node.replace)
        or (kind == "DropStmt" and node.missing_ok)
    ):
        yield SideStatement(where, text)
    else:
        raise UsageError(
            f"{where}: this statement is not repeatable. Write CREATE OR REPLACE, IF EXISTS or "
            "IF NOT EXISTS, or move it into a migration."
        )


def _enabled(pglast: Any, node: Any) -> tuple[str, ...]:
    """Return the table of ``alter table … enable row level security``, or nothing."""
    if not isinstance(node, pglast.ast.AlterTableStmt) or len(node.cmds) != 1:
        return ()
    enables = node.cmds[0].subtype == pglast.enums.AlterTableType.AT_EnableRowSecurity
    return _table(node.relation) if enables else ()


def _table(node: Any) -> tuple[str, ...]:
    return (node.schemaname, node.relname) if node.schemaname else (node.relname,)


def _references(pglast: Any, node: Any) -> Iterator[Any]:
    if isinstance(node, pglast.ast.Node):
        if isinstance(node, pglast.ast.ColumnRef):
            yield node
        for name in node:
            yield from _references(pglast, getattr(node, name))
    elif isinstance(node, tuple | list):
        for part in node:
            yield from _references(pglast, part)
