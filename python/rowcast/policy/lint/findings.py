"""Rules, the registry of them, and the findings that they report."""

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

__all__ = ["RULES", "Finding", "Level", "Mark", "Rule", "catalogue_rule", "rule"]


class Level(enum.IntEnum):
    """Severity of a finding; a higher value is more severe."""

    INFO = 1
    WARNING = 2
    ERROR = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Mark:
    """The place of a mistake with a message and a hint, as a check reports it.

    Attributes:
        node: the part of the statement that is wrong; None for the whole statement.
        level: the level, if it differs from that of the rule.
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
        disabled: the reason from the comment that disables it; None if it is not disabled.
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
        check: finds it in SQL text; None for a rule that only the catalogue shows.
        database: whether a database can break it. False for mistakes in the file itself, and for
            those that Postgres refuses.
        catalogue: whether ``rowcast.policy_lint()`` finds it.
    """

    code: str
    level: Level
    title: str
    why: str
    bad: str
    good: str
    check: Check | None
    database: bool
    catalogue: bool

    @property
    def found_in(self) -> tuple[str, ...]:
        """Return where it is found: "files", "database", and "psql" for `policy_lint()`."""
        places = {"files": self.check, "database": self.database, "psql": self.catalogue}
        return tuple(place for place, found in places.items() if found)


RULES: dict[str, Rule] = {}

PARTS = re.compile(r"(?P<why>.+?)\n+Bad:\n(?P<bad>.+?)\nGood:\n(?P<good>.+)", re.DOTALL)


def rule(
    code: str, level: Level, *, database: bool = True, catalogue: bool = False
) -> Callable[[Check], Check]:
    """Register a check of SQL text: files, and the policies of a database with what they call.

    Its docstring documents the rule. The first line is the title; then come the reason, a snippet
    under ``Bad:`` that breaks the rule, and one under ``Good:`` that does not.

    Args:
        code: the code of the rule.
        level: the level of its findings, unless a `Mark` has another.
        database: whether a database can break it.
        catalogue: whether `rowcast.policy_lint()` finds it, too.
    """

    def register(check: Check) -> Check:
        _register(code, level, check.__doc__, check, database=database, catalogue=catalogue)
        return check

    return register


def catalogue_rule(code: str, level: Level) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a rule that only `rowcast.policy_lint()` checks; the function only documents it."""

    def register(described: Callable[[], None]) -> Callable[[], None]:
        _register(code, level, described.__doc__, None, database=True, catalogue=True)
        return described

    return register


def _register(
    code: str,
    level: Level,
    text: str | None,
    check: Check | None,
    *,
    database: bool,
    catalogue: bool,
) -> None:
    # `python -OO` strips docstrings: rules then work without explanations.
    title, _, rest = textwrap.dedent("    " + (text or code)).strip().partition("\n")
    parts = PARTS.fullmatch(textwrap.dedent(rest).strip() + "\n")
    why, bad, good = (
        (textwrap.dedent(parts[name]).strip() for name in ("why", "bad", "good"))
        if parts
        else ("", "", "")
    )
    RULES[code] = Rule(
        code=code,
        level=level,
        title=title.rstrip("."),
        why=" ".join(why.split()),
        bad=bad,
        good=good,
        check=check,
        database=database,
        catalogue=catalogue,
    )
