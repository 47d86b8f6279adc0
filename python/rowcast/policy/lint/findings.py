"""What a rule is, and what it says when it is broken."""

from __future__ import annotations

import enum
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rowcast.policy.source import Statement

    from .files import Files

__all__ = ["RULES", "Finding", "Level", "Mark", "Rule", "in_database", "rule"]


class Level(enum.IntEnum):
    """How bad it is; higher is worse."""

    INFO = 1
    WARNING = 2
    ERROR = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Mark:
    """What a check found: where, what, and what to do.

    Attributes:
        node: the part of the statement that is meant; the statement itself when None.
        level: only where it differs from that of the rule.
    """

    statement: Statement
    message: str
    hint: str = ""
    node: Any = None
    level: Level | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken rule, in a file (`file`, `line`, `column`) or in a database (`object`).

    Attributes:
        disabled: the reason given in the file for living with it; None when it counts.
    """

    code: str
    level: Level
    message: str
    hint: str = ""
    file: str | None = None
    line: int = 0
    column: int = 0
    object: str | None = None
    disabled: str | None = None

    @property
    def where(self) -> str:
        """``file:line:column``, or the object in the database."""
        return f"{self.file}:{self.line}:{self.column}" if self.file else str(self.object)


Check = Callable[["Files"], Iterator[Mark]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule with its explanation.

    Attributes:
        check: finds it in files; None where only a database shows it, or the linter itself.
        database: ``rowcast.policy_lint()`` finds it, too.
    """

    code: str
    level: Level
    title: str
    why: str
    bad: str
    good: str
    check: Check | None
    database: bool


RULES: dict[str, Rule] = {}

PARTS = re.compile(r"(?P<why>.+?)\n+Bad:\n(?P<bad>.+?)\nGood:\n(?P<good>.+)", re.DOTALL)


def rule(code: str, level: Level, *, database: bool = False) -> Callable[[Check], Check]:
    """Register a check. Its docstring is the documentation of the rule.

    The first line is the title; then come the reason, a snippet under ``Bad:`` that breaks the
    rule, and one under ``Good:`` that does not.
    """

    def register(check: Check) -> Check:
        _register(code, level, check.__doc__, check, database)
        return check

    return register


def in_database(code: str, level: Level) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a rule that only `rowcast.policy_lint()` checks; the function only documents it."""

    def register(described: Callable[[], None]) -> Callable[[], None]:
        _register(code, level, described.__doc__, None, True)
        return described

    return register


def _register(
    code: str, level: Level, text: str | None, check: Check | None, database: bool
) -> None:
    # Under `python -OO` there are no docstrings: rules work, and explain nothing.
    title, _, rest = textwrap.dedent("    " + (text or code)).strip().partition("\n")
    parts = PARTS.fullmatch(textwrap.dedent(rest).strip() + "\n")
    why, bad, good = (
        (textwrap.dedent(parts[name]).strip() for name in ("why", "bad", "good"))
        if parts
        else ("", "", "")
    )
    RULES[code] = Rule(
        code, level, title.rstrip("."), " ".join(why.split()), bad, good, check, database
    )
