"""Formats findings as text, JSON, SARIF, or annotations of GitHub."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from rowcast import __version__

from .findings import RULES, Finding, Level, Rule

__all__ = ["FORMATS", "explain_rule", "github", "sarif", "text", "to_json"]

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
SARIF_LEVELS = {Level.ERROR: "error", Level.WARNING: "warning", Level.INFO: "note"}
GITHUB_LEVELS = {Level.ERROR: "error", Level.WARNING: "warning", Level.INFO: "notice"}


def text(findings: Sequence[Finding]) -> str:
    """Return one line per finding with its hint below, and a summary as the last line."""
    lines = []
    for finding in _open(findings):
        lines.append(f"{finding.where}: {finding.level} {finding.code} {finding.message}")
        if finding.hint:
            lines.append(f"    {finding.hint}")
    return "\n".join([*lines, summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    """Return the number of findings of each level."""
    shown = _open(findings)
    disabled = len(findings) - len(shown)
    tail = f" ({disabled} disabled)" if disabled else ""
    if not shown:
        return f"nothing found{tail}"
    counts = []
    for level in reversed(Level):
        number = sum(f.level == level for f in shown)
        if number:
            plural = "s" if number > 1 and level is not Level.INFO else ""
            counts.append(f"{number} {level}{plural}")
    return f"found: {', '.join(counts)}{tail}"


def to_json(findings: Sequence[Finding]) -> str:
    """Return an object: ``findings`` in text order, ``summary`` with counts per level."""
    shown = _open(findings)
    listed = [
        {
            "code": finding.code,
            "level": str(finding.level),
            "message": finding.message,
            "hint": finding.hint or None,
            "file": finding.file,
            "line": finding.line or None,
            "column": finding.column or None,
            "object": finding.object,
            "disabled": finding.disabled,
        }
        for finding in findings
    ]
    counts = {str(level): sum(f.level == level for f in shown) for level in reversed(Level)}
    return json.dumps({"findings": listed, "summary": counts}, indent=2)


def github(findings: Sequence[Finding]) -> str:
    """Return workflow commands, which GitHub shows beside the lines of a pull request.

    Escapes follow GitHub's toolkit: percent signs and line ends in messages, and also commas and
    colons in properties.
    """
    lines = []
    for finding in _open(findings):
        properties = {"title": f"{finding.code} {_title(finding)}"}
        if finding.file:
            properties = {
                "file": PurePath(finding.file).as_posix(),
                "line": str(finding.line),
                "col": str(finding.column),
            } | properties
        told = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
        message = f"{finding.message}. {finding.hint}" if finding.hint else finding.message
        if not finding.file:
            message = f"{finding.object}: {message}"
        lines.append(f"::{GITHUB_LEVELS[finding.level]} {told}::{_data(message)}")
    return "\n".join(lines)


def sarif(findings: Sequence[Finding]) -> str:
    """Return a SARIF 2.1.0 log; disabled findings are suppressed in source with their reason."""
    codes = sorted({finding.code for finding in findings})
    rules = [_sarif_rule(code, RULES.get(code)) for code in codes]
    results = [_sarif_result(finding, codes.index(finding.code)) for finding in findings]
    run = {
        "tool": {
            "driver": {"name": "rowcast", "semanticVersion": _semantic(__version__), "rules": rules}
        },
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def explain_rule(rule: Rule) -> str:
    """Return the documentation of a rule, with a snippet that breaks it and one that does not."""
    places = {"files": "in files", "database": "in a database", "psql": "by policy_lint()"}
    found = " and ".join(places[place] for place in rule.found_in)
    parts = [
        f"{rule.code} ({rule.level}): {rule.title}.",
        f"Found {found}.",
        rule.why,
        "Bad:\n\n" + _indented(rule.bad),
        "Good:\n\n" + _indented(rule.good),
    ]
    return "\n\n".join(parts)


FORMATS: Mapping[str, Callable[[Sequence[Finding]], str]] = {
    "text": text,
    "json": to_json,
    "sarif": sarif,
    "github": github,
}


def _open(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.disabled is None]


def _title(finding: Finding) -> str:
    rule = RULES.get(finding.code)
    return rule.title if rule else "style"


def _indented(snippet: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in snippet.splitlines())


def _data(value: str) -> str:
    return value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(value: str) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")


def _semantic(version: str) -> str:
    numbers = version.split(".")[:3]
    return ".".join([*numbers, "0", "0"][:3]) if all(n.isdigit() for n in numbers) else "0.0.0"


def _sarif_rule(code: str, rule: Rule | None) -> dict[str, Any]:
    if rule is None:
        return {"id": code, "shortDescription": {"text": "A rule of sqlfluff."}}
    return {
        "id": code,
        "shortDescription": {"text": f"{rule.title}."},
        "fullDescription": {"text": rule.why or rule.title},
        "help": {
            "text": explain_rule(rule),
            "markdown": f"{rule.why}\n\nBad:\n\n```sql\n{rule.bad}\n```\n\n"
            f"Good:\n\n```sql\n{rule.good}\n```",
        },
        "defaultConfiguration": {"level": SARIF_LEVELS[rule.level]},
    }


def _sarif_result(finding: Finding, index: int) -> dict[str, Any]:
    message = f"{finding.message}. {finding.hint}" if finding.hint else finding.message
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": SARIF_LEVELS[finding.level],
        "message": {"text": message},
    }
    if finding.file:
        path = PurePath(finding.file)
        uri = path.as_uri() if path.is_absolute() else quote(path.as_posix())
        region = {"startLine": finding.line, "startColumn": finding.column}
        place = {"artifactLocation": {"uri": uri}, "region": region}
        result["locations"] = [{"physicalLocation": place}]
    else:
        named = {"fullyQualifiedName": finding.object}
        result["locations"] = [{"logicalLocations": [named]}]
    if finding.disabled is not None:
        result["suppressions"] = [{"kind": "inSource", "justification": finding.disabled}]
    return result
