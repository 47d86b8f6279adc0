"""Findings as JSON, SARIF 2.1.0 and annotations of GitHub, valid for their readers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from rowcast.files import policy_files
from rowcast.policy.lint import report
from rowcast.policy.lint.findings import Finding, Level
from rowcast.policy.lint.linting import lint_sources
from rowcast.policy.lint.rules import RULES
from rowcast.policy.source import parse_source

TEXT = """\
create policy a on public.realtime_channels for select to anon using (true);
-- rowcast:disable=RCL101 the lobby, 100% open
create policy b on public.realtime_channels for select to anon using (true);
create policy c on public.realtime_channels for select using (owner_id = null);
create policy d on public.realtime_channels for select to anon using (owner_id like 'a%');
"""
IN_DATABASE = Finding(
    "RCL302", Level.WARNING, "looks for a, b", "create index …;", object="policy p on public.t"
)


@pytest.fixture
def findings() -> list[Finding]:
    return [*lint_sources([parse_source("policies/chat, room.sql", TEXT)]), IN_DATABASE]


def test_text_is_a_line_a_finding_with_its_hint(findings: list[Finding]) -> None:
    lines = report.text(findings).splitlines()
    assert lines[0].startswith("policies/chat, room.sql:1:1: error RCL101 policy 'a' allows")
    assert lines[1].startswith("    ")
    assert "policy p on public.t: warning RCL302 looks for a, b" in lines
    assert lines[-1] == "found: 2 errors, 2 warnings, 1 info (1 disabled)"
    assert "policy 'b'" not in "\n".join(lines)


def test_nothing_is_said_to_be_nothing() -> None:
    assert report.text([]) == "nothing found"
    assert report.github([]) == ""
    assert json.loads(report.to_json([]))["findings"] == []
    assert json.loads(report.sarif([]))["runs"][0]["results"] == []


def test_json_has_every_finding_with_the_same_keys(findings: list[Finding]) -> None:
    said = json.loads(report.to_json(findings))
    keys = {"code", "level", "message", "hint", "file", "line", "column", "object", "disabled"}
    assert {frozenset(finding) for finding in said["findings"]} == {frozenset(keys)}
    assert said["summary"] == {"error": 2, "warning": 2, "info": 1}
    assert [f["disabled"] for f in said["findings"] if f["disabled"]] == ["the lobby, 100% open"]
    assert said["findings"][-1]["object"] == "policy p on public.t"
    assert said["findings"][-1]["line"] is None


def test_annotations_are_commands_of_a_workflow(findings: list[Finding]) -> None:
    """One line each: characters that end a property or the line are escaped."""
    lines = report.github(findings).splitlines()
    assert len(lines) == len([f for f in findings if f.disabled is None])
    for line in lines:
        match = re.fullmatch(r"::(error|warning|notice) ([^:]*)::(.+)", line)
        assert match is not None, line
        properties = dict(part.split("=", 1) for part in match[2].split(","))
        assert properties.keys() <= {"file", "line", "col", "title"}
    assert lines[0].startswith("::error file=policies/chat%2C room.sql,line=1,col=1,title=RCL101")
    assert any("treats %25 and _ as" in line for line in lines)
    assert lines[-1].startswith("::warning title=RCL302")
    assert "policy p on public.t: looks for a, b" in lines[-1]


def demand(value: Any, shape: Any, where: str = "$") -> None:
    """Compare a value with a shape: types, literals, required and optional (?) keys."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), where
        required = {key for key in shape if not key.endswith("?")}
        allowed = {key.rstrip("?") for key in shape}
        assert required <= value.keys() <= allowed, (where, value.keys())
        for key, inner in value.items():
            demand(inner, shape.get(key, shape.get(f"{key}?")), f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), where
        for number, element in enumerate(value):
            demand(element, shape[0], f"{where}[{number}]")
    elif isinstance(shape, set):
        assert value in shape, (where, value)
    elif isinstance(shape, re.Pattern):
        assert shape.fullmatch(value), (where, value)
    else:
        assert type(value) is shape, (where, value)


# The objects that we write, from sections 3.13 to 3.35 of the specification.
LEVELS = {"error", "warning", "note", "none"}
MESSAGE = {"text": str, "markdown?": str}
LOG = {
    "version": {"2.1.0"},
    "$schema?": re.compile(r"https://.*sarif.*2\.1\.0.*\.json"),
    "runs": [
        {
            "tool": {
                "driver": {
                    "name": str,
                    "semanticVersion?": re.compile(r"\d+\.\d+\.\d+"),
                    "rules?": [
                        {
                            "id": str,
                            "shortDescription?": MESSAGE,
                            "fullDescription?": MESSAGE,
                            "help?": MESSAGE,
                            "defaultConfiguration?": {"level": LEVELS},
                        }
                    ],
                }
            },
            "columnKind?": {"utf16CodeUnits", "unicodeCodePoints"},
            "results": [
                {
                    "ruleId": str,
                    "ruleIndex?": int,
                    "level?": LEVELS,
                    "message": {"text": str},
                    "locations?": [
                        {
                            "physicalLocation?": {
                                "artifactLocation": {"uri": re.compile(r"[^\\ ]+")},
                                "region?": {"startLine": int, "startColumn": int},
                            },
                            "logicalLocations?": [{"fullyQualifiedName": str}],
                        }
                    ],
                    "suppressions?": [{"kind": {"inSource", "external"}, "justification?": str}],
                }
            ],
        }
    ],
}


def test_sarif_has_the_shape_of_the_specification(findings: list[Finding]) -> None:
    log = json.loads(report.sarif(findings))
    demand(log, LOG)
    run = log["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        for location in result["locations"]:
            region = location.get("physicalLocation", {}).get("region", {})
            assert all(number >= 1 for number in region.values())
    assert len(run["results"]) == len(findings)


def test_sarif_says_what_was_disabled_and_why(findings: list[Finding]) -> None:
    results = json.loads(report.sarif(findings))["runs"][0]["results"]
    assert [r["suppressions"] for r in results if "suppressions" in r] == [
        [{"kind": "inSource", "justification": "the lobby, 100% open"}]
    ]


def test_sarif_knows_a_rule_of_sqlfluff() -> None:
    finding = Finding("LT01", Level.INFO, "expected a blank", file="a.sql", line=1, column=1)
    demand(json.loads(report.sarif([finding])), LOG)


def test_the_table_of_rules_is_that_of_the_code() -> None:
    """If the table differs the failure prints it, ready to be pasted."""
    rows = []
    for code, rule in sorted(RULES.items()):
        rows.append(f"| `{code}` | {rule.level} | {rule.title} | {', '.join(rule.found_in)} |")
    text = (policy_files()[0].parent / "README.md").read_text()
    written = [line for line in text.splitlines() if line.startswith("| `RCL")]
    assert written == rows, "\n".join(rows)


@pytest.mark.parametrize("code", sorted(RULES))
def test_an_explanation_has_all_parts(code: str) -> None:
    rule = RULES[code]
    text = report.explain_rule(rule)
    assert text.startswith(f"{code} ({rule.level}): {rule.title}.")
    for part in (rule.why, "Bad:", "Good:", rule.good.splitlines()[0]):
        assert part in text
