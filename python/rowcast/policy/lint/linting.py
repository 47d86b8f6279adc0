"""Runs the rules on policy files, and on the policies of a database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rowcast.policy.source import Source, parse_source, read_source

from .files import Files
from .findings import Finding, Level, Mark, Rule
from .rules import RULES

if TYPE_CHECKING:
    from rowcast.policy.database import Workbench

__all__ = ["lint_database", "lint_files", "lint_sources", "open_findings"]

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


def lint_database(workbench: Workbench) -> list[Finding]:
    """Lint the policies of a database; findings name the object instead of a place in a file.

    `rowcast.policy_lint()` finds what only the catalogue shows. The rules for text read the
    policies as statements, with the functions that they call and the views around them.

    Raises:
        DatabaseError: the database has no rowcast, or an older one, or refused the login.
        MissingExtraError: pglast is not installed.
    """
    found = [
        Finding(
            code=row["code"],
            level=Level[row["level"].upper()],
            message=row["message"],
            hint=row["hint"],
            object=row["object"],
        )
        for row in workbench.policy_lint()
    ]
    sources = [parse_source(name, text) for name, text in workbench.policy_texts()]
    context = (parse_source(name, text) for name, text in workbench.policy_context_texts())
    # A newer server may print a function that this grammar does not know. That is not a mistake.
    sources += [source for source in context if not source.faults]
    # Where both find a mistake, the catalogue knows more about it.
    known = {(finding.object, finding.code) for finding in found}
    texts = (
        replace(finding, object=finding.file, file=None, line=0, column=0)
        for finding in lint_sources(sources)
    )
    found += [f for f in dict.fromkeys(texts) if (f.object, f.code) not in known]
    return found


def open_findings(findings: Iterable[Finding], least: Level) -> list[Finding]:
    """Return the findings that are not disabled and have at least this level."""
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
            # Other rules cannot check a file that does not parse.
            if code in RULES and (source.name, disable.offset, code) not in used | _unread(source):
                line, column = source.place(disable.offset)
                yield Finding(
                    code=NEEDED,
                    level=rule.level,
                    message=f"{code} finds nothing here",
                    hint="Remove the comment, or move it above the statement that it is for.",
                    file=source.name,
                    line=line,
                    column=column,
                )


def _unread(source: Source) -> set[tuple[str, int, str]]:
    if not source.faults:
        return set()
    return {(source.name, d.offset, code) for d in source.disables for code in d.codes}
