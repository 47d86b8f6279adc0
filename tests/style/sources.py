"""Reads the project's files for the gates: tracked files, SQL statements, functions.

Statements are parsed with the server's grammar (pglast), plpgsql bodies with its plpgsql compiler,
and every expression inside them with the grammar again, so that a syntax error in a branch that no
test reaches is found without a database.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pglast import ast, enums, parse_plpgsql, parse_sql, parser

__all__ = [
    "ROOT",
    "Function",
    "Statement",
    "all_files",
    "embedded_queries",
    "functions",
    "line_of",
    "nodes",
    "plpgsql_nodes",
    "sql_files",
    "statements",
    "tokens",
    "tracked_files",
    "type_name",
]

ROOT = Path(__file__).resolve().parents[2]
# The compiler has no database, so it does not know tables and their row types.
ROW_TYPE = re.compile(r"\b(v_\w+(?: constant)?) (?:rowcast|public|pg_catalog)\.\w+(?=[ ;])")
ROW_TYPES = re.compile(r"\b(?:rowcast|public)\.\w+\[\]")
RETURNED_ROWS = re.compile(r"\breturns setof rowcast\.\w+")
IGNORED = {"__pycache__", "build", "dist", "node_modules"}


@cache
def tracked_files() -> tuple[Path, ...]:
    """Return the files that git tracks; in an unpacked sdist, all files."""
    git = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z"]
    try:
        listed = subprocess.run(git, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        return tuple(all_files())
    return tuple(path for name in listed.split("\0") if name and (path := ROOT / name).exists())


def all_files() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = any(p in IGNORED or (p.startswith(".") and p != ".ci") for p in parts)
        if path.is_file() and not hidden and not any(p.endswith(".egg-info") for p in parts):
            yield path


def sql_files(folder: str) -> list[Path]:
    """Return the ``.sql`` files of `folder` in the order in which they are applied."""
    return sorted((ROOT / folder).glob("*.sql"))


@dataclass(frozen=True, slots=True)
class Statement:
    """One top-level statement, with the comment directly above it."""

    file: str
    line: int
    text: str
    comment: str
    node: Any

    @property
    def kind(self) -> str:
        return type(self.node).__name__

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


def statements(text: str, file: str = "snippet.sql") -> list[Statement]:
    """Split and parse `text`.

    Raises:
        pglast.parser.ParseError: a statement is not valid SQL.
    """
    found = []
    for raw in parse_sql(text):
        start = raw.stmt_location
        length = raw.stmt_len or len(text) - start
        above = re.search(r"(?:^--[^\n]*\n)*\Z", text[:start], re.MULTILINE)
        comment = " ".join(line[2:].strip() for line in (above[0] if above else "").splitlines())
        statement = text[start : start + length].rstrip()
        found.append(Statement(file, line_of(text, start), statement, comment.strip(), raw.stmt))
    return found


def line_of(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


@dataclass(frozen=True, slots=True)
class Function:
    """The properties of a ``create function`` or a ``do`` block that the rules check."""

    statement: Statement

    @property
    def name(self) -> str:
        """Qualified name; ``do`` for a block without one."""
        if isinstance(self.statement.node, ast.DoStmt):
            return "do"
        return ".".join(part.sval for part in self.statement.node.funcname)

    @property
    def parameters(self) -> list[Any]:
        """The parameters that a caller passes."""
        returned = (
            enums.FunctionParameterMode.FUNC_PARAM_OUT,
            enums.FunctionParameterMode.FUNC_PARAM_TABLE,
        )
        given = getattr(self.statement.node, "parameters", None) or ()
        return [p for p in given if p.mode not in returned]

    @property
    def signature(self) -> str:
        return f"{self.name}({', '.join(type_name(p.argType) for p in self.parameters)})"

    def option(self, name: str) -> Any:
        """Return the value of an option, or None if it is not written."""
        node = self.statement.node
        for given in (node.args if isinstance(node, ast.DoStmt) else node.options) or ():
            if given.defname == name:
                return given.arg
        return None

    @property
    def place(self) -> str:
        """The key in lists of exceptions: the name, or ``<file> do`` for a block."""
        return f"{self.statement.file} do" if self.name == "do" else self.name

    @property
    def language(self) -> str:
        written = self.option("language")
        if written is None:
            return "plpgsql" if self.name == "do" else "sql"
        return str(written.sval)

    @property
    def volatility(self) -> str | None:
        written = self.option("volatility")
        return None if written is None else str(written.sval)

    @property
    def definer(self) -> bool | None:
        """Whether it is a security definer; None if that is not written."""
        written = self.option("security")
        return None if written is None else bool(written.boolval)

    @property
    def settings(self) -> dict[str, str]:
        """The settings that ``set name = value`` clauses pin."""
        clauses = getattr(self.statement.node, "options", None) or ()
        return {
            o.arg.name: ", ".join(_constant(value) for value in o.arg.args or ())
            for o in clauses
            if o.defname == "set"
        }

    @property
    def body(self) -> str:
        """The text between the dollar quotes; empty for ``return …`` and ``begin atomic``."""
        written = self.option("as")
        if written is None:
            return ""
        return str(written[0].sval) if isinstance(written, tuple) else str(written.sval)

    @property
    def compiled(self) -> dict[str, Any]:
        """The plpgsql compiler's tree.

        Raises:
            pglast.parser.ParseError: the body is not plpgsql.
        """
        known = ROW_TYPES.sub("text[]", ROW_TYPE.sub(r"\1 record", self.statement.text))
        known = RETURNED_ROWS.sub("returns setof record", known)
        tree: dict[str, Any] = parse_plpgsql(known + ";")[0]["PLpgSQL_function"]
        return tree


def functions(found: list[Statement], *, blocks: bool = False) -> list[Function]:
    """Return the functions among statements, and with `blocks` also the ``do`` blocks."""
    kinds = (ast.CreateFunctionStmt, ast.DoStmt) if blocks else (ast.CreateFunctionStmt,)
    return [Function(s) for s in found if isinstance(s.node, kinds)]


def type_name(node: ast.TypeName) -> str:
    """``text[]`` for ``text []``, ``int4`` for ``integer``."""
    names = [part.sval for part in node.names if part.sval != "pg_catalog"]
    return ".".join(names) + "[]" * len(node.arrayBounds or ())


def _constant(node: Any) -> str:
    value = node.val
    return str(getattr(value, "sval", None) or getattr(value, "ival", "") or "")


def plpgsql_nodes(tree: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every node of a compiled body: its kind and its fields."""
    if isinstance(tree, dict):
        for kind, fields in tree.items():
            if kind.startswith("PLpgSQL_"):
                yield kind, fields
            yield from plpgsql_nodes(fields)
    elif isinstance(tree, list):
        for element in tree:
            yield from plpgsql_nodes(element)


def embedded_queries(function: Function) -> Iterator[Any]:
    """Parse every statement and expression inside a plpgsql body.

    Raises:
        pglast.parser.ParseError: one of them is not SQL.
    """
    for kind, fields in plpgsql_nodes(function.compiled):
        if kind == "PLpgSQL_expr":
            query = fields["query"]
            if fields["parseMode"] > 2:  # target := expression
                query = re.split(r":=|=", query, maxsplit=1)[1]
            yield from parse_sql(query if fields["parseMode"] == 0 else f"select {query}")


def nodes(tree: Any) -> Iterator[Any]:
    """Yield every node of a parsed statement, including the tree itself."""
    if isinstance(tree, ast.Node):
        yield tree
        for name in tree:
            yield from nodes(getattr(tree, name))
    elif isinstance(tree, tuple | list):
        for element in tree:
            yield from nodes(element)


def tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield kind, text and line of every token of the SQL scanner."""
    for token in parser.scan(text):
        yield token.name, text[token.start : token.end + 1], line_of(text, token.start)
