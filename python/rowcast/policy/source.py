"""Parses policy files: statements with their places, and comments that disable lint rules.

The grammar is the server's own (pglast). Statements are split before they are parsed, because the
parser stops at its first error, and a file may have several.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rowcast.errors import UsageError

from .optional import need

__all__ = [
    "Disable",
    "Source",
    "Statement",
    "SyntaxFault",
    "find_sql_files",
    "parse_source",
    "read_source",
    "walk",
]

DISABLE = re.compile(r"--\s*rowcast:disable=([\w,]+)[ \t]*(.*)")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a file, or one inside a ``do`` block.

    Attributes:
        source: the file.
        index: the number of the top-level statement that it is, or is inside.
        node: the parsed tree.
        start: its offset in the text of the file.
        inside: whether it is inside a block, whose tree has no offsets within a line.
    """

    source: Source
    index: int
    node: Any
    start: int
    inside: bool = False

    def at(self, node: Any = None) -> int:
        """Return the offset of a node of this statement in the file."""
        if self.inside or node is None:
            return self.start
        offsets = [n.location for n, _ in walk(node) if getattr(n, "location", None) is not None]
        return self.source.slices[self.index].start + min(offsets) if offsets else self.start


@dataclass(frozen=True, slots=True)
class Disable:
    """A comment ``-- rowcast:disable=CODES reason`` and the statement that it applies to."""

    codes: tuple[str, ...]
    reason: str
    offset: int
    statement: int | None


@dataclass(frozen=True, slots=True)
class SyntaxFault:
    """A statement that cannot be parsed."""

    message: str
    offset: int


@dataclass(slots=True)
class Source:
    """The text of a file and its parsed statements.

    Attributes:
        slices: from the first to the last token of each top-level statement.
        ends: the offset after the semicolon of each.
        lines: the offsets at which lines begin.
    """

    name: str
    text: str
    statements: list[Statement] = field(default_factory=list)
    faults: list[SyntaxFault] = field(default_factory=list)
    disables: list[Disable] = field(default_factory=list)
    slices: tuple[slice, ...] = ()
    ends: tuple[int, ...] = ()
    lines: list[int] = field(default_factory=list)

    def place(self, offset: int) -> tuple[int, int]:
        """Return line and column of an offset, both counted from 1."""
        line = bisect.bisect_right(self.lines, offset)
        return line, offset - self.lines[line - 1] + 1


def find_sql_files(paths: Sequence[Path]) -> list[Path]:
    """Return the SQL files among `paths` and in the folders among them.

    Raises:
        UsageError: a path does not exist, or a folder has no SQL file.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            files = sorted(path.rglob("*.sql"))
            if not files:
                raise UsageError(f"{path} does not contain a .sql file.")
            found += files
        elif path.exists():
            found.append(path)
        else:
            raise UsageError(f"{path} does not exist: name policy files, or their folder.")
    return list(dict.fromkeys(found))


def read_source(path: Path) -> Source:
    """Read and parse a file; statements that cannot be parsed are in its `faults`.

    Raises:
        MissingExtraError: pglast is not installed.
        UsageError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"{path} cannot be read: {problem}.") from problem
    return parse_source(str(path), text)


def parse_source(name: str, text: str) -> Source:
    """Parse SQL text.

    Args:
        name: the name of the file, or of the object in a database, for findings.
        text: the statements.

    Raises:
        MissingExtraError: pglast is not installed.
    """
    pglast = need("pglast")
    source = Source(name, text)
    source.lines = [0, *(match.end() for match in re.finditer("\n", text))]
    try:
        tokens = pglast.scan(text)
        pieces = list(_split(tokens))
        source.slices = tuple(piece for piece, _ in pieces)
        source.ends = tuple(end for _, end in pieces)
    except pglast.parser.ParseError as error:
        source.faults.append(_fault(error, slice(0, len(text))))
        return source
    for index, piece in enumerate(source.slices):
        try:
            parsed = pglast.parse_sql(text[piece])
        except pglast.parser.ParseError as error:
            source.faults.append(_fault(error, piece))
            continue
        for raw in parsed:
            statement = Statement(source, index, raw.stmt, piece.start)
            source.statements.append(statement)
            source.statements += _block(pglast, statement, text[piece])
    source.disables = list(_disables(source, tokens))
    return source


def walk(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield every node of a tree with its ancestors, the outermost first."""
    if isinstance(node, tuple | list):
        for element in node:
            yield from walk(element, above)
    elif isinstance(node, need("pglast.ast").Node):
        yield node, above
        for name in node:
            value = getattr(node, name)
            if value is not None and not isinstance(value, str | int):
                yield from walk(value, (*above, node))


def _split(tokens: Any) -> Iterator[tuple[slice, int]]:
    """Yield the slice of each statement, first to last token, and the end of its semicolon.

    pglast's own splitter drops text that does not begin with a keyword, such as a mistyped one. A
    semicolon within ``begin atomic … end`` or within the parentheses of a rule does not end a
    statement. Anywhere else it does, because a parenthesis may be missing.
    """
    first: int | None = None
    words: list[str] = []
    inside = parentheses = last = 0
    for token in tokens:
        if token.name in ("SQL_COMMENT", "C_COMMENT"):
            continue
        if token.name == "ASCII_59" and not inside and not (parentheses and "RULE" in words[:4]):
            if first is not None:
                yield slice(first, last), token.end + 1
            first, words, parentheses = None, [], 0
            continue
        if first is None:
            first = token.start
        parentheses += {"ASCII_40": 1, "ASCII_41": -1}.get(token.name, 0)
        if token.name == "ATOMIC" and words[-1:] == ["BEGIN_P"]:
            inside = 1
        elif inside:
            inside += {"CASE": 1, "END_P": -1}.get(token.name, 0)
        words.append(token.name)
        last = token.end + 1
    if first is not None:
        yield slice(first, last), last


def _fault(error: Any, piece: slice) -> SyntaxFault:
    message, location = str(error.args[0]), error.args[1] if len(error.args) > 1 else None
    if location is None or message.endswith("at end of input"):
        return SyntaxFault(message, piece.stop - 1)
    return SyntaxFault(message, piece.start + location)


def _block(pglast: Any, statement: Statement, text: str) -> Iterator[Statement]:
    """Yield the statements of a ``do`` block in plpgsql, except dynamic SQL."""
    if not isinstance(statement.node, pglast.ast.DoStmt):
        return
    try:
        compiled = pglast.parse_plpgsql(text + ";")
    except pglast.parser.ParseError as error:
        statement.source.faults.append(SyntaxFault(str(error.args[0]), statement.start))
        return
    first = statement.source.place(statement.start)[0]
    opening = text[: text.find("$")].count("\n")
    for query, line in _queries(compiled, 1):
        try:
            parsed = pglast.parse_sql(query)
        except pglast.parser.ParseError:
            continue
        number = min(first + opening + line - 1, len(statement.source.lines))
        for raw in parsed:
            start = statement.source.lines[number - 1]
            yield Statement(statement.source, statement.index, raw.stmt, start, inside=True)


def _queries(tree: Any, line: int) -> Iterator[tuple[str, int]]:
    if isinstance(tree, list):
        for element in tree:
            yield from _queries(element, line)
    elif isinstance(tree, dict):
        here = tree.get("lineno", line)
        if "query" in tree and tree.get("parseMode") == 0:
            yield tree["query"], here
        for value in tree.values():
            yield from _queries(value, here)


def _disables(source: Source, tokens: Any) -> Iterator[Disable]:
    for token in tokens:
        if token.name != "SQL_COMMENT":
            continue
        match = DISABLE.match(source.text[token.start : token.end + 1])
        if match:
            codes = tuple(code for code in match[1].split(",") if code)
            yield Disable(codes, match[2].strip(), token.start, _owner(source, token.start))


def _owner(source: Source, offset: int) -> int | None:
    """Return the index of the statement around a comment, before it in its line, or after it."""
    line = source.place(offset)[0]
    for index, piece in enumerate(source.slices):
        if offset < piece.stop or source.place(source.ends[index])[0] == line:
            return index
    return None
