"""Prints an explanation as text and as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .explain import Explanation, PolicyReport
from .expression_tree import ExpressionNode

__all__ = ["explanation_json", "explanation_text"]

SIDE = 60
# pglast prints the type of every constant.
CONSTANT = re.compile(r"CAST\(('(?:[^']|'')*') AS text\)")


def explanation_text(explanation: Explanation, who: str) -> str:
    """Return the explanation as lines of text."""
    return "\n".join(_lines(explanation, who))


def explanation_json(explanation: Explanation, who: str) -> dict[str, Any]:
    """Return the explanation as an object."""
    request, answer = explanation.request, explanation.answer
    asked = {"action": request.action, "channel": request.channel, "as": who}
    if request.action == "publish":
        asked |= {"event": request.event, "type": request.type}
    return {
        **asked,
        "role": request.role,
        "channels": [
            {key: str(row[key]) if key == "channel_id" else row[key] for key in row}
            for row in explanation.channels
        ],
        "barriers": explanation.barriers,
        "table": explanation.table,
        "policies": [
            {
                "name": policy.name,
                "permissive": policy.permissive,
                "command": policy.command,
                "roles": policy.roles,
                "applies": policy.applies,
                "expression": policy.expression,
                "value": policy.said,
                "error": policy.error or None,
                "ms": policy.ms,
                "tree": policy.tree.shown() if policy.tree else None,
                "warnings": policy.warnings,
            }
            for policy in explanation.policies
        ],
        "verdict": explanation.verdict,
        "answer": {
            "allowed": answer.allowed,
            "reason": answer.reason,
            "detail": answer.detail or None,
        },
        "agrees": explanation.agrees,
    }


def _lines(explanation: Explanation, who: str) -> Iterator[str]:
    request = explanation.request
    what = f' "{request.event}"' if request.action == "publish" else ""
    yield f"{request.action}{what} {request.channel} as {who}"
    yield ""
    yield "channel"
    for row in explanation.channels:
        state = "" if row["enabled"] else ", disabled"
        role = "governs: the most specific pattern" if row["governs"] else "shadowed by it"
        yield f"  {'>' if row['governs'] else ' '} {row['pattern']}: {role}{state}"
    if not explanation.channels:
        yield "  no pattern matches the name"
    for barrier in explanation.barriers:
        if not barrier["ok"]:
            yield f"  ! {barrier['finding']}"
    yield ""
    yield f"policies of {explanation.table}"
    for policy in explanation.policies:
        yield from _policy(policy)
    if not explanation.policies:
        yield "  none: default deny"
    if explanation.without_tree:
        yield f"  ({explanation.without_tree})"
    yield ""
    yield f"by the policies: {' or '.join(explanation.verdict)}{_why(explanation)}"
    yield f"by the database: {explanation.answer}"
    if not explanation.agrees:
        yield "MISMATCH: the database does not decide as its policies say."


def _policy(policy: PolicyReport) -> Iterator[str]:
    kind = "permissive" if policy.permissive else "RESTRICTIVE"
    if not policy.counts:
        yield f"  - {policy.name} [{kind}] {policy.why_not}"
        return
    took = "" if policy.ms is None else f"  {policy.ms:.2f} ms"
    said = _said(policy.said, policy.error) if policy.asked else "not asked"
    yield f"  - {policy.name} [{kind}] {said}{took}"
    if policy.tree is None:
        yield f"      {' '.join((policy.expression or '').split())}"
    else:
        yield from _arm(policy.tree, "      ")
    for warning in policy.warnings:
        yield f"      ! {warning}"


def _arm(arm: ExpressionNode, indent: str) -> Iterator[str]:
    said = f"error {arm.error.partition(' ')[0]}" if arm.error else arm.said or "NULL"
    if arm.operator:
        yield f"{indent}{said:5}  {arm.operator}"
        for part in arm.arms:
            yield from _arm(part, indent + "  ")
        return
    sides = ""
    if arm.values:
        left, right = (_short(value) for value in arm.values)
        sides = f"   [{left} | {right}]"
    yield f"{indent}{said:5}  {CONSTANT.sub(_only_constant, arm.text)}{sides}"


def _said(said: str | None, error: str) -> str:
    if said is None:
        return "NULL (not true: a deny)"
    return f"ERROR {error}" if said == "error" else said


def _only_constant(match: re.Match[str]) -> str:
    return match[1]


def _short(value: str | None) -> str:
    if value is None:
        return "NULL"
    return value if len(value) <= SIDE else value[: SIDE - 1] + "…"


def _why(explanation: Explanation) -> str:
    if explanation.reason:
        return f" ({explanation.reason})"
    counted = [policy for policy in explanation.policies if policy.counts]
    if any(policy.said == "error" for policy in counted):
        return " (a policy raised an error; whether it is reached depends on the plan)"
    for policy in counted:
        if not policy.permissive and policy.said != "true":
            return f" (the restrictive policy {policy.name} is not true)"
    if not any(policy.permissive for policy in counted):
        return " (no permissive policy applies: default deny)"
    granted = [p.name for p in counted if p.permissive and p.said == "true"]
    return f" ({', '.join(granted)})" if granted else " (no permissive policy is true)"
