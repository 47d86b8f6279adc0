"""Reads `*.test.toml` files, which say who can do what, and runs their cases.

Policies, channels and fixtures of a file live in a transaction that never commits. Each case is
checked under its real role, and then there is a control, because a case may pass for a reason that
has nothing to do with the policies. With all policies dropped every caller must be refused, so a
`can` that is still allowed does not depend on them. A `cannot` that is refused because its channel
does not exist would be refused under any policy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rowcast.errors import UsageError
from rowcast.postgres.connect import DatabaseError

from .check import Decision, check
from .database import AccessRequest, Workbench
from .explain import explain_access
from .personas import Persona, channels_of, personas_of, read_toml
from .render import explanation_text

__all__ = [
    "Case",
    "CaseFile",
    "CaseResult",
    "find_case_files",
    "junit_xml",
    "read_case_file",
    "run_cases",
]

KEYS = {
    "personas", "setup", "setup_file", "fixtures", "fixtures_file", "policies", "channels", "case",
}  # fmt: skip
CASE_KEYS = {"as", "can", "cannot", "to", "event", "payload", "type", "because"}
CHANNEL_KEYS = {
    "pattern", "description", "enabled", "is_public", "owner_id", "wildcard", "options",
}  # fmt: skip
ACTIONS = ("subscribe", "publish")
EITHER_WAY = "passes either way"


@dataclass(frozen=True, slots=True)
class Case:
    """One ``[[case]]`` of a file.

    Args:
        persona: the caller.
        expected: whether the caller can do it.
        request: the request to check.
        because: the expected class of the refusal's reason, or a word of its text.
    """

    persona: Persona
    expected: bool
    request: AccessRequest
    because: str = ""

    def __str__(self) -> str:
        r = self.request
        what = "" if r.action == "subscribe" else f" {r.event}"
        kind = "" if r.type == "message" else f" ({r.type})"
        can = "can" if self.expected else "cannot"
        return f"{self.persona.name} {can} {r.action} {r.channel}{what}{kind}"


@dataclass(frozen=True, slots=True)
class CaseFile:
    """A file of cases with everything that they need.

    Args:
        path: the path of the file.
        policies: SQL files that replace the policies of the two tables during the test. If empty,
            the test uses the policies of the database.
        setup: SQL that runs first, for tables that the policies need.
        channels: rows of realtime_channels.
        fixtures: SQL that runs last, for rows that the cases need.
        cases: the cases in order.
    """

    path: Path
    policies: tuple[Path, ...]
    setup: str
    channels: tuple[Mapping[str, Any], ...]
    fixtures: str
    cases: tuple[Case, ...]


def find_case_files(paths: Sequence[Path]) -> list[Path]:
    """Return the case files among `paths`, and all ``*.test.toml`` of directories among them.

    Raises:
        UsageError: no case file was found.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(path.glob("*.test.toml"))
        else:
            found.append(path)
    if not found:
        raise UsageError(
            f"{', '.join(map(str, paths))} has no case files: write [[case]] tables into "
            "chat.test.toml beside chat.sql."
        )
    return found


def read_case_file(path: Path) -> CaseFile:
    """Read a file of cases, with the personas of a ``personas.toml`` beside it.

    Raises:
        UsageError: the file cannot be read, or has mistakes.
    """
    document = read_toml(path)
    if unknown := document.keys() - KEYS:
        raise UsageError(f"{path}: unknown key {', '.join(sorted(unknown))}.")
    shared = path.with_name("personas.toml")
    personas = personas_of(read_toml(shared), shared) if shared.exists() else {}
    personas |= personas_of(document, path)
    tables = document.get("case", [])
    if not isinstance(tables, list) or not tables:
        raise UsageError(f"{path}: write at least one [[case]].")
    return CaseFile(
        path,
        _policies(document, path),
        _sql(document, "setup", path),
        tuple(_channel(given, path) for given in channels_of(document, path)),
        _sql(document, "fixtures", path),
        tuple(_case(table, personas, f"{path}, case {n}") for n, table in enumerate(tables, 1)),
    )


def _policies(document: Mapping[str, Any], path: Path) -> tuple[Path, ...]:
    own = path.with_name(path.name.removesuffix(".toml").removesuffix(".test") + ".sql")
    given = document.get("policies", [own.name] if own.exists() else None)
    if not isinstance(given, list):
        raise UsageError(
            f'{path}: name the policy files, like policies = ["chat.sql"]; an empty list '
            "tests the policies of the database."
        )
    files = tuple(path.parent / str(name) for name in given)
    for file in files:
        if not file.is_file():
            raise UsageError(f"{path}: file {file} does not exist.")
    return files


def _sql(document: Mapping[str, Any], key: str, path: Path) -> str:
    text = document.get(key, "")
    if not isinstance(text, str):
        raise UsageError(f"{path}: {key} must be a string of SQL.")
    if file := document.get(f"{key}_file"):
        try:
            return (path.parent / str(file)).read_text() + "\n" + text
        except OSError as problem:
            raise UsageError(f"{path}: {file} cannot be read: {problem.strerror}.") from problem
    return text


def _channel(given: Any, path: Path) -> Mapping[str, Any]:
    columns = {"pattern": given} if isinstance(given, str) else given
    if not isinstance(columns, dict) or "pattern" not in columns or columns.keys() - CHANNEL_KEYS:
        raise UsageError(
            f"{path}: a channel must be a pattern, or a table with keys of "
            f"{', '.join(sorted(CHANNEL_KEYS))}."
        )
    if "options" in columns:
        columns = {**columns, "options": json.dumps(columns["options"])}
    return columns


def _case(table: Any, personas: Mapping[str, Persona], where: str) -> Case:
    if not isinstance(table, dict) or table.keys() - CASE_KEYS:
        raise UsageError(f"{where}: a case may only have the keys {', '.join(sorted(CASE_KEYS))}.")
    if ("can" in table) == ("cannot" in table):
        raise UsageError(f'{where}: write either can = "subscribe" or cannot = "subscribe".')
    action = table.get("can", table.get("cannot"))
    if action not in ACTIONS:
        raise UsageError(f"{where}: {action!r} is neither subscribe nor publish.")
    if table.get("as") not in personas:
        raise UsageError(
            f"{where}: persona {table.get('as')!r} does not exist; use {', '.join(personas)}."
        )
    if not isinstance(table.get("to"), str):
        raise UsageError(f'{where}: name a channel: to = "chat:room1".')
    if action == "subscribe" and table.keys() & {"event", "payload", "type"}:
        raise UsageError(f"{where}: a subscribe cannot have an event, a payload or a type.")
    if "can" in table and "because" in table:
        raise UsageError(f"{where}: because is only for cannot: it is the reason of a refusal.")
    persona = personas[table["as"]]
    request = AccessRequest(
        action,
        persona.role,
        persona.text,
        table["to"],
        str(table.get("event", "message")),
        _payload(table.get("payload", {}), where),
        str(table.get("type", "message")),
    )
    return Case(persona, "can" in table, request, str(table.get("because", "")))


def _payload(given: Any, where: str) -> str:
    """Return the payload as JSON: a TOML table, or JSON text for what TOML cannot express."""
    if not isinstance(given, str):
        return json.dumps(given, default=str)
    try:
        json.loads(given)
    except json.JSONDecodeError as problem:
        raise UsageError(f"{where}: a payload string must be JSON: {problem}.") from problem
    return given


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The result of a case: `failure` is empty if it passed, `explained` has the explanation."""

    case: Case
    answer: Decision
    seconds: float
    failure: str = ""
    explained: str = ""

    @property
    def passed(self) -> bool:
        """Whether the decision is the expected one."""
        return not self.failure


def run_cases(workbench: Workbench, file: CaseFile) -> list[CaseResult]:
    """Run the cases of a file; nothing stays in the database.

    Raises:
        DatabaseError: policies or fixtures cannot be applied, or this login cannot become a role.
    """
    with workbench.trial():
        _prepare(workbench, file)
        for role in {case.persona.role for case in file.cases}:
            workbench.ensure_role(role)
        results = [_run(workbench, case) for case in file.cases]
        workbench.drop_policies()
        return [_controlled(workbench, result) for result in results]


def _prepare(workbench: Workbench, file: CaseFile) -> None:
    if file.policies:
        workbench.drop_policies()
    workbench.run_sql(file.setup, f"{file.path}: setup")
    for path in file.policies:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as problem:
            raise DatabaseError(f"{path} cannot be read: {problem}.") from problem
        workbench.run_sql(text, str(path))
    for columns in file.channels:
        workbench.add_channel(columns)
    workbench.run_sql(file.fixtures, f"{file.path}: fixtures")


def _run(workbench: Workbench, case: Case) -> CaseResult:
    begun = time.perf_counter()
    answer = check(workbench, case.request)
    result = CaseResult(case, answer, time.perf_counter() - begun)
    failure = _failure(case, answer)
    if not failure:
        return result
    why = explanation_text(explain_access(workbench, case.request), str(case.persona))
    return replace(result, failure=failure, explained=why)


def _failure(case: Case, answer: Decision) -> str:
    if answer.reason == "timeout":
        return f"a policy took too long: {answer.detail}"
    if case.expected:
        return "" if answer.allowed else f"expected allow, got {answer}"
    if answer.allowed:
        return "expected deny, got allow"
    if case.because:
        said = f"{answer.reason} {answer.detail}"
        return "" if case.because in said else f"denied, but not because {case.because}: {said}"
    if answer.reason != "denied":
        return (
            f"{EITHER_WAY}: the refusal does not come from a policy, it is {answer}; if that is "
            "intended, write "
            f'because = "{answer.reason}"'
        )
    return ""


def _controlled(workbench: Workbench, result: CaseResult) -> CaseResult:
    """Check an allowed case again without policies: it must now be refused."""
    if result.failure or not result.case.expected:
        return result
    if not check(workbench, result.case.request).allowed:
        return result
    why = explanation_text(explain_access(workbench, result.case.request), str(result.case.persona))
    return replace(
        result,
        failure=f"{EITHER_WAY}: it is still allowed with all policies dropped, so it does not "
        "depend on them",
        explained=why,
    )


def junit_xml(runs: Iterable[tuple[CaseFile, list[CaseResult]]]) -> str:
    """Return the results as JUnit XML, for continuous integration."""
    root = ElementTree.Element("testsuites", name="rowcast policy test")
    for file, results in runs:
        failed = sum(not result.passed for result in results)
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=str(file.path),
            tests=str(len(results)),
            failures=str(failed),
            errors="0",
            time=f"{sum(result.seconds for result in results):.3f}",
        )
        for result in results:
            case = ElementTree.SubElement(
                suite,
                "testcase",
                classname=str(file.path),
                name=str(result.case),
                time=f"{result.seconds:.3f}",
            )
            if result.failure:
                failure = ElementTree.SubElement(case, "failure", message=result.failure)
                failure.text = result.explained
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
