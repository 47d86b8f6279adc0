"""Linting policy files: the rules are asked, disabled findings set aside, the rest put in order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rowcast.policy.source import Source, parse_source, read_source

from .files import Files
from .findings import Finding, Level, Mark, Rule
from .rules import RULES

__all__ = ["lint_files", "lint_sources", "lint_statements", "open_findings"]

NEEDED = "RCL003"


def lint_files(paths: Iterable[Path]) -> list[Finding]:
    """Lint files together; the findings are in the order of the text.

    Raises:
        MissingExtraError: pglast is not installed.
        UsageError: a file cannot be read.
    """
    return lint_sources([read_source(path) for path in paths])


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
    found = lint_sources(parse_source(name, statement) for name, statement in statements)
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
