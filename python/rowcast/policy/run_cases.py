"""Runs cases: policies, channels and fixtures in a transaction that never commits.

Each case is asked under its real role. Then comes the control, without which a case may pass for
a reason that has nothing to do with the policies: with all policies dropped nobody may do
anything, so a `can` that still can is none of theirs; and a `cannot` that is refused because there
is no such channel would be refused under any policy.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from xml.etree import ElementTree

from rowcast.postgres.connect import DatabaseError

from .cases import Case, CaseFile
from .check import Answer, ask
from .database import Workbench
from .explain import explain
from .render import as_text

__all__ = ["Result", "junit", "run"]

EITHER_WAY = "passes either way"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a case; `failure` is empty when it passed, `explained` says why it failed."""

    case: Case
    answer: Answer
    seconds: float
    failure: str = ""
    explained: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is as the case says."""
        return not self.failure


def run(workbench: Workbench, file: CaseFile) -> list[Result]:
    """Run the cases of a file; the database is afterwards as before.

    Raises:
        DatabaseError: the policies or the fixtures cannot be applied, or a role cannot be had.
    """
    with workbench.trial():
        _prepare(workbench, file)
        for role in {case.persona.role for case in file.cases}:
            workbench.become(role)
        results = [_run(workbench, case) for case in file.cases]
        workbench.drop_policies()
        return [_controlled(workbench, result) for result in results]


def _prepare(workbench: Workbench, file: CaseFile) -> None:
    if file.policies:
        workbench.drop_policies()
    workbench.run(file.setup, f"{file.path}: setup")
    for path in file.policies:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as problem:
            raise DatabaseError(f"{path} cannot be read: {problem}.") from problem
        workbench.run(text, str(path))
    for columns in file.channels:
        workbench.add_channel(columns)
    workbench.run(file.fixtures, f"{file.path}: fixtures")


def _run(workbench: Workbench, case: Case) -> Result:
    begun = time.perf_counter()
    answer = ask(workbench, case.question)
    result = Result(case, answer, time.perf_counter() - begun)
    failure = _failure(case, answer)
    if not failure:
        return result
    why = as_text(explain(workbench, case.question), str(case.persona))
    return replace(result, failure=failure, explained=why)


def _failure(case: Case, answer: Answer) -> str:
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
            f"{EITHER_WAY}: no policy refuses this, it is {answer}; if that is meant, write "
            f'because = "{answer.reason}"'
        )
    return ""


def _controlled(workbench: Workbench, result: Result) -> Result:
    """Repeat what may be done, now without policies."""
    if result.failure or not result.case.expected:
        return result
    if not ask(workbench, result.case.question).allowed:
        return result
    why = as_text(explain(workbench, result.case.question), str(result.case.persona))
    return replace(
        result,
        failure=f"{EITHER_WAY}: it is allowed with all policies dropped, so none of them lets it "
        "through",
        explained=why,
    )


def junit(runs: Iterable[tuple[CaseFile, list[Result]]]) -> str:
    """Return the results in the form that continuous integration reads."""
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
