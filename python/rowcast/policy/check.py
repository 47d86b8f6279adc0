"""Asks a database whether a caller may subscribe or publish, and classifies the reason.

It calls `rowcast.check_subscribe` and `rowcast.publish_as` as bridges do, in a transaction that is
rolled back.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors

from rowcast.postgres.diagnose import server_sentence

from .database import AccessRequest, Workbench

__all__ = ["Decision", "check", "check_times"]

# Refusals of rowcast by SQLSTATE (sql/README.md); 22P05 is Postgres' own for \u0000 in JSON.
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
    "denied": "no policy allows this",
    "no channel": "no channel matches the name",
    "disabled": "the channel that governs the name is disabled",
    "invalid channel": "this is not a channel name",
    "timeout": "a policy took too long: clients are told to try again",
}


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision of the database; true if the access is allowed.

    Args:
        allowed: whether the caller may do it.
        reason: the class of the reason, see below.
        detail: the message of the database.

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
        """Return "allow", "deny" or "error", as `rowcast.verdict` does."""
        return "allow" if self.allowed else "error" if self.reason == "policy error" else "deny"


def check(workbench: Workbench, request: AccessRequest) -> Decision:
    """Return the decision of the database.

    The caller must be in a `Workbench.trial` and have called `Workbench.ensure_role`.
    """
    try:
        with workbench.connection.transaction(force_rollback=True):
            if request.action == "subscribe":
                row = workbench.check_subscribe(request.role, [request.claims], [request.channel])[
                    0
                ]
            else:
                workbench.publish_as(request)
                return Decision(True, "allowed")
    except errors.QueryCanceled:
        return _answer("timeout")
    except psycopg.Error as problem:
        return _refused(workbench, request, problem)
    return _of_check(workbench, request, row)


def check_times(workbench: Workbench, request: AccessRequest, repeat: int) -> tuple[float, float]:
    """Return the median and the minimum of `repeat` checks in ms, round trips included."""
    taken = []
    for _ in range(repeat):
        begun = time.perf_counter()
        if request.action == "subscribe":
            workbench.check_subscribe(request.role, [request.claims], [request.channel])
        else:
            workbench.publish_as(request)
        taken.append((time.perf_counter() - begun) * 1000)
    return statistics.median(taken), min(taken)


def _of_check(workbench: Workbench, request: AccessRequest, row: dict[str, Any]) -> Decision:
    if row["allowed"]:
        return Decision(True, "allowed")
    # Bridges answer "no channel" for a pattern without a row; here it is an invalid name.
    if row["error"] == "RCN02" or (
        row["channel_id"] is None and not row["error"] and not workbench.is_name(request.channel)
    ):
        return _answer("invalid channel")
    if row["error"]:
        return Decision(False, "policy error", row["error"])
    # The row of a pattern itself decides, not the one that would govern it as a name.
    enabled = row["enabled"] if "enabled" in row else workbench.enabled(request)
    return _answer("no channel" if enabled is None else "denied" if enabled else "disabled")


def _refused(workbench: Workbench, request: AccessRequest, problem: psycopg.Error) -> Decision:
    state = problem.sqlstate or ""
    text = str(problem.diag.message_primary or problem)
    if state == "RCN01":
        enabled = workbench.enabled(request)
        return _answer("no channel" if enabled is None else "disabled")
    if state in REASONS:
        return Decision(False, REASONS[state], server_sentence(problem))
    if problem.diag.source_function == "ExecWithCheckOptions":
        restrictive = text.partition('"')[2].partition('"')[0] if text.count('"') > 2 else ""
        return _answer("denied", f'the restrictive policy "{restrictive}"' if restrictive else "")
    return Decision(False, "policy error", f"{state} {text}")


def _answer(reason: str, detail: str = "") -> Decision:
    return Decision(False, reason, detail or SPOKEN[reason])
