"""Explains a decision: the channel, each policy, the verdict, and what the database does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from psycopg import errors

from .check import Decision, check
from .database import AccessRequest, Workbench
from .expression_tree import ExpressionNode, UnreadableError, parse_tree
from .optional import MissingExtraError
from .plan_warnings import warnings

__all__ = ["Explanation", "PolicyReport", "explain_access"]

# Barriers that make the database skip the policies, which allows.
PASSES = ("row level security", "bypass")
# Reasons for which policies are not evaluated at all.
UNASKED = {"no channel", "disabled", "invalid channel", "invalid message"}


@dataclass(slots=True)
class PolicyReport:
    """One policy of the table and its value for this caller."""

    name: str
    permissive: bool
    command: str
    roles: list[str]
    applies: bool
    expression: str | None
    said: str | None = None
    error: str = ""
    ms: float | None = None
    tree: ExpressionNode | None = None
    warnings: list[str] = field(default_factory=list)
    asked: bool = True

    @property
    def counts(self) -> bool:
        """Whether the policy takes part in the decision."""
        return self.applies and self.expression is not None

    @property
    def why_not(self) -> str:
        """Why the policy does not take part; empty if it does."""
        if not self.applies:
            return f"does not apply: for {self.command} to {', '.join(self.roles)}"
        return "" if self.expression is not None else "has no effect: it has no expression"


@dataclass(slots=True)
class Explanation:
    """The parts of an explanation; `agrees` compares the verdict with the real decision."""

    request: AccessRequest
    table: str
    channels: list[dict[str, Any]]
    barriers: list[dict[str, Any]]
    policies: list[PolicyReport]
    verdict: list[str]
    reason: str
    answer: Decision
    without_tree: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the database decides as the policies say."""
        if self.answer.reason == "timeout":
            return any(p.error.startswith("57014") for p in self.policies)
        # A missing grant is an error for Postgres and a refusal for the caller.
        seen = {"error": "deny"}.get(self.answer.outcome, self.answer.outcome)
        return self.answer.outcome in self.verdict or (bool(self.reason) and seen in self.verdict)


def explain_access(
    workbench: Workbench, request: AccessRequest, *, plans: bool = True
) -> Explanation:
    """Explain the decision about a request.

    The caller must be in a `Workbench.trial` and have called `Workbench.ensure_role`.

    Args:
        workbench: an open workbench.
        request: the request.
        plans: whether to look for expensive expressions, too.
    """
    channels = [
        {**row, "governs": row["place"] == 1}
        for row in workbench.matching_channels(request.channel)
    ]
    barriers = workbench.barriers(request.action, request.role)
    policies = [
        PolicyReport(
            row["policy"],
            row["permissive"],
            row["command"],
            row["roles"],
            row["applies"],
            row["expression"],
        )
        for row in workbench.policies(request.action, request.role)
    ]
    lacking = ""
    for policy in policies:
        policy.asked = bool(channels)
        if policy.counts and policy.asked:
            lacking = _look(workbench, request, policy, plans) or lacking
    answer = check(workbench, request)
    counted = [policy for policy in policies if policy.counts]
    verdict, reason = _decided(request.channel, channels, barriers, answer)
    return Explanation(
        request,
        "realtime_messages" if request.action == "publish" else "realtime_channels",
        channels,
        barriers,
        policies,
        verdict or workbench.verdict([p.permissive for p in counted], [p.said for p in counted]),
        reason,
        answer,
        lacking,
    )


def _look(workbench: Workbench, request: AccessRequest, policy: PolicyReport, plans: bool) -> str:
    """Evaluate one policy; return why its tree is missing, or nothing."""
    assert policy.expression is not None
    lacking = ""
    try:
        policy.tree = parse_tree(policy.expression)
    except MissingExtraError:
        lacking = "install 'rowcast[policy]' to see the value of each AND, OR and NOT"
    except UnreadableError as problem:
        lacking = str(problem)
    nodes = list(policy.tree.nodes()) if policy.tree else []
    try:
        # Alone first: a slow arm must not hide the value of the whole expression.
        (whole,) = workbench.evaluate(request, [policy.expression])
        policy.said, policy.ms, policy.error = whole["said"], whole["ms"], _error(whole)
        for node, row in zip(nodes, _evaluated(workbench, request, nodes), strict=True):
            node.said, node.error = row["said"], _error(row)
        _look_at_sides(workbench, request, nodes)
    except errors.QueryCanceled as late:
        if policy.ms is None:
            policy.said, policy.error = "error", f"57014 {late.diag.message_primary}"
    if plans and policy.tree is not None:
        policy.warnings = warnings(workbench.plan(request, policy.expression), workbench.rows_of)
    return lacking


def _evaluated(
    workbench: Workbench, request: AccessRequest, nodes: list[ExpressionNode]
) -> list[dict[str, Any]]:
    return workbench.evaluate(request, [node.text for node in nodes]) if nodes else []


def _look_at_sides(
    workbench: Workbench, request: AccessRequest, nodes: list[ExpressionNode]
) -> None:
    """Evaluate both sides of comparisons that are not true, for the reader."""
    puzzling = [node for node in nodes if node.sides and node.said != "true"]
    texts = [side for node in puzzling for side in node.sides]
    if texts:
        rows = workbench.evaluate(request, texts)
        values = [f"raises {row['state']}" if row["state"] else row["said"] for row in rows]
        for node in puzzling:
            node.values, values = tuple(values[:2]), values[2:]


def _error(row: dict[str, Any]) -> str:
    return f"{row['state']} {row['error']}" if row["state"] else ""


def _decided(
    channel: str, channels: list[dict[str, Any]], barriers: list[dict[str, Any]], answer: Decision
) -> tuple[list[str], str]:
    """Return outcome and reason of a decision without policies; empty if they decide."""
    if not channels:
        return ["deny"], "no channel matches the name"
    if not channels[0]["enabled"]:
        return ["deny"], "the channel that governs the name is disabled"
    if "*" in channel and not channels[0]["wildcard"]:
        return ["deny"], "callers may not subscribe to the pattern itself: its wildcard is false"
    if answer.reason in UNASKED:
        return ["deny"], answer.detail
    for barrier in barriers:
        if not barrier["ok"]:
            outcome = "allow" if barrier["subject"] in PASSES else "deny"
            return [outcome], barrier["finding"]
    return [], ""
