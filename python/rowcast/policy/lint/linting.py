"""Linting policy files: the rules are asked, disabled findings set aside, the rest put in order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ...errors import UsageError
from .files import Files
from .findings import Finding, Level, Mark, Rule
from .rules import RULES
from .source import Source, read

__all__ = ["find_files", "lint_files", "lint_sources", "lint_statements", "open_findings"]

NEEDED = "RCL003"


def find_files(paths: Sequence[Path]) -> list[Path]:
    """Return the SQL files among `paths` and in the folders among them.

    Raises:
        UsageError: a path does not exist, or a folder has no SQL file.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            files = sorted(path.rglob("*.sql"))
            if not files:
                raise UsageError(f"There is no .sql file in {path}.")
            found += files
        elif path.exists():
            found.append(path)
        else:
            raise UsageError(f"There is no file {path}: name policy files, or their folder.")
    return list(dict.fromkeys(found))


def lint_files(paths: Iterable[Path]) -> list[Finding]:
    """Lint files together; the findings are in the order of the text.

    Raises:
        MissingExtraError: pglast is not installed.
        UsageError: a file cannot be read.
    """
    sources = []
    for path in paths:
        try:
            sources.append(read(str(path), path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as problem:
            raise UsageError(f"{path} cannot be read: {problem}.") from problem
    return lint_sources(sources)


def lint_sources(sources: Iterable[Source]) -> list[Finding]:
    """Lint what was read already."""
    files = Files.of(sources)
    findings: list[Finding] = []
    used: set[tuple[str, int, str]] = set()
    for rule in RULES.values():
        for mark in rule.check(files) if rule.check else ():
            findings.append(_finding(rule, mark, used))
    for source in files.sources:
        findings += _unused(source, used)
    return sorted(set(findings), key=lambda f: (f.file or "", f.line, f.column, f.code))


def lint_statements(statements: Iterable[tuple[str, str]]) -> list[Finding]:
    """Lint policies of a database: pairs of a name and a statement; findings name the object."""
    found = lint_sources(read(name, statement) for name, statement in statements)
    return [replace(finding, object=finding.file, file=None, line=0, column=0) for finding in found]


def open_findings(findings: Iterable[Finding], least: Level) -> list[Finding]:
    """Return the findings that count: not disabled, and at least of this level."""
    return [f for f in findings if f.disabled is None and f.level >= least]


def _finding(rule: Rule, mark: Mark, used: set[tuple[str, int, str]]) -> Finding:
    source = mark.statement.source
    line, column = source.place(mark.statement.at(mark.node))
    reason = None
    for disable in source.disables:
        if rule.code in disable.codes and disable.statement == mark.statement.index:
            used.add((source.name, disable.offset, rule.code))
            reason = disable.reason
    return Finding(
        code=rule.code,
        level=mark.level or rule.level,
        message=mark.message,
        hint=mark.hint,
        file=source.name,
        line=line,
        column=column,
        disabled=reason,
    )


def _unused(source: Source, used: set[tuple[str, int, str]]) -> Iterable[Finding]:
    rule = RULES[NEEDED]
    for disable in source.disables:
        for code in disable.codes:
            # Of a file that cannot be read nobody knows what it would break.
            if code in RULES and (source.name, disable.offset, code) not in used | _unread(source):
                line, column = source.place(disable.offset)
                yield Finding(
                    code=NEEDED,
                    level=rule.level,
                    message=f"{code} finds nothing here",
                    hint="Remove the comment, or put it above the statement that it is for.",
                    file=source.name,
                    line=line,
                    column=column,
                )


def _unread(source: Source) -> set[tuple[str, int, str]]:
    if not source.faults:
        return set()
    return {(source.name, d.offset, code) for d in source.disables for code in d.codes}
