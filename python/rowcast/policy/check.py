"""May somebody subscribe or publish: what the database answers, and the class of its reason.

A subscribe is `rowcast.check_subscribe`, a publish is `rowcast.publish_as`, as bridges call them.
The transaction around them is rolled back.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors

from .database import AccessRequest, Workbench, error_sentence

__all__ = ["Decision", "check", "check_times"]

# Our refusals, by SQLSTATE (sql/README.md), and Postgres' for a \u0000 in JSON.
REASONS = {
    "RCN02": "invalid channel",
    "RCM01": "invalid message",
    "RCM02": "invalid message",
    "RCM03": "invalid message",
    "RCM05": "denied",
    "22P05": "invalid message",
}
SPOKEN = {
    "allowed": "",
    "denied": "no policy lets this through",
    "no channel": "no channel matches the name",
    "disabled": "the channel that governs the name is disabled",
    "invalid channel": "this is not a channel name",
    "timeout": "a policy took too long: clients are told to try again",
}


@dataclass(frozen=True, slots=True)
class Decision:
    """Yes or no, the class of the reason, and what the database said.

    Reasons are "allowed", "denied", "no channel", "disabled", "invalid channel",
    "invalid message", "policy error" and "timeout".
    """

    allowed: bool
    reason: str
    detail: str = ""

    def __bool__(self) -> bool:
        return self.allowed

    def __str__(self) -> str:
        if self.allowed:
            return "allow"
        return f"deny: {self.reason}" + (f" ({self.detail})" if self.detail else "")

    @property
    def outcome(self) -> str:
        """What it is in the words of `rowcast.verdict`: allow, deny or error."""
        return "allow" if self.allowed else "error" if self.reason == "policy error" else "deny"


def check(workbench: Workbench, question: AccessRequest) -> Decision:
    """Ask the database; a trial must be under way, and the role must be one it can become."""
    try:
        with workbench.connection.transaction(force_rollback=True):
            if question.action == "subscribe":
                row = workbench.check_subscribe(
                    question.role, [question.claims], [question.channel]
                )[0]
            else:
                workbench.publish_as(question)
                return Decision(True, "allowed")
    except errors.QueryCanceled:
        return _answer("timeout")
    except psycopg.Error as problem:
        return _refused(workbench, question, problem)
    return _of_check(workbench, question, row)


def check_times(workbench: Workbench, question: AccessRequest, repeat: int) -> tuple[float, float]:
    """Return the median and the least of the milliseconds of a question, round trip included."""
    taken = []
    for _ in range(repeat):
        begun = time.perf_counter()
        if question.action == "subscribe":
            workbench.check_subscribe(question.role, [question.claims], [question.channel])
        else:
            workbench.publish_as(question)
        taken.append((time.perf_counter() - begun) * 1000)
    return statistics.median(taken), min(taken)


def _of_check(workbench: Workbench, question: AccessRequest, row: dict[str, Any]) -> Decision:
    if row["allowed"]:
        return Decision(True, "allowed")
    # For a subscription a pattern that has no row is no channel; for a person it is no name.
    if row["error"] == "RCN02" or (
        row["channel_id"] is None and not row["error"] and not workbench.is_name(question.channel)
    ):
        return _answer("invalid channel")
    if row["error"]:
        return Decision(False, "policy error", row["error"])
    # A pattern is judged by its own row, which is not the one that governs a name.
    enabled = row["enabled"] if "enabled" in row else workbench.enabled(question)
    return _answer("no channel" if enabled is None else "denied" if enabled else "disabled")


def _refused(workbench: Workbench, question: AccessRequest, problem: psycopg.Error) -> Decision:
    state = problem.sqlstate or ""
    text = str(problem.diag.message_primary or problem)
    if state == "RCN01":
        enabled = workbench.enabled(question)
        return _answer("no channel" if enabled is None else "disabled")
    if state in REASONS:
        return Decision(False, REASONS[state], error_sentence(problem))
    if problem.diag.source_function == "ExecWithCheckOptions":
        restrictive = text.partition('"')[2].partition('"')[0] if text.count('"') > 2 else ""
        return _answer("denied", f'the restrictive policy "{restrictive}"' if restrictive else "")
    return Decision(False, "policy error", f"{state} {text}")


def _answer(reason: str, detail: str = "") -> Decision:
    return Decision(False, reason, detail or SPOKEN[reason])
