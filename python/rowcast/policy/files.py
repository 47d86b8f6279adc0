"""Policy files: which statements are about policies, and what stands beside them.

What a file may hold besides can run again and again, because `apply` runs it each time: functions,
views, grants, comments, blocks, and tables that are created if they do not exist. Everything else
belongs into a migration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .extra import load_pglast

__all__ = ["PolicyStatement", "Script", "SideStatement", "read"]

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
        table: as written.
        policy: its name.
        node: the parsed statement; of its own for each policy.
    """

    where: str
    verb: str
    table: tuple[str, ...]
    policy: str
    node: Any

    def on_scratch(self, name: str) -> str:
        """Return the statement for a temporary table of the name of the table."""
        pglast = load_pglast()
        table = self.node.table
        table.schemaname, table.relname = "pg_temp", name
        for reference in _references(pglast, self.node):
            # public.t.column is the row of public.t, and the scratch table is not in public
            if len(reference.fields) == 3 and reference.fields[1].sval == name:
                reference.fields = reference.fields[1:]
        return str(pglast.stream.RawStream()(self.node))


@dataclass(frozen=True, slots=True)
class SideStatement:
    """What is run as it stands; `enables` is the table of an ENABLE ROW LEVEL SECURITY."""

    where: str
    text: str
    enables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Script:
    """The statements of all files, in order."""

    policies: tuple[PolicyStatement, ...]
    sides: tuple[SideStatement, ...]


def read(paths: Sequence[Path]) -> Script:
    """Read files, and of directories all ``*.sql``.

    Raises:
        UsageError: one cannot be read or parsed, or holds what belongs into a migration.
        MissingExtraError: pglast is not installed.
    """
    policies: list[PolicyStatement] = []
    sides: list[SideStatement] = []
    for file in _files(paths):
        for statement in _statements(file):
            if isinstance(statement, PolicyStatement):
                policies.append(statement)
            else:
                sides.append(statement)
    return Script(tuple(policies), tuple(sides))


def _files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob("*.sql")) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"There are no .sql files in {', '.join(map(str, paths))}.")
    return files


def _statements(file: Path) -> Iterator[PolicyStatement | SideStatement]:
    pglast = load_pglast()
    try:
        text = file.read_text()
        parsed = pglast.parse_sql(text)
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"{file} cannot be read: {problem}.") from problem
    except pglast.parser.ParseError as problem:
        line = text.count("\n", 0, problem.args[1] or 0) + 1 if len(problem.args) > 1 else 1
        raise UsageError(f"{file}, line {line}: {problem.args[0]}.") from problem
    for raw in parsed:
        written = text[raw.stmt_location :][: raw.stmt_len or None]
        begins = raw.stmt_location + len(written) - len(_without_comments(written))
        where = f"{file}, line {text.count(chr(10), 0, begins) + 1}"
        yield from _of(pglast, raw.stmt, written.strip(), where)


def _without_comments(text: str) -> str:
    rest = text.lstrip()
    while rest.startswith("--"):
        rest = rest.partition("\n")[2].lstrip()
    return rest


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
            f"{where}: this cannot run again and again (write CREATE OR REPLACE, IF EXISTS or "
            "IF NOT EXISTS), or it belongs into a migration."
        )


def _enabled(pglast: Any, node: Any) -> tuple[str, ...]:
    """The table of ``alter table … enable row level security``."""
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
