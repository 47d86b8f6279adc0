"""Checks all personas on all channels, prints the result as a table, and compares snapshots."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence

from .check import check
from .database import AccessRequest, Workbench
from .personas import Persona

__all__ = ["ACTIONS", "Matrix", "as_csv", "as_json", "as_table", "compare", "measure"]

ACTIONS = ("subscribe", "publish")
WORDS = {"subscribe": "sub", "publish": "pub"}

# persona → channel → action → "allow" or the reason of the refusal
Matrix = Mapping[str, Mapping[str, Mapping[str, str]]]


def measure(
    workbench: Workbench,
    personas: Sequence[Persona],
    channels: Sequence[str],
    event: str,
    payload: str,
) -> Matrix:
    """Check each persona on each channel; the caller must be in a `Workbench.trial`.

    Raises:
        DatabaseError: this login may not become the role of a persona.
    """
    for role in sorted({persona.role for persona in personas}):
        workbench.ensure_role(role)
    found: dict[str, dict[str, dict[str, str]]] = {}
    for persona in personas:
        for channel in channels:
            answers = {}
            for action in ACTIONS:
                request = AccessRequest(action, persona.role, persona.text, channel, event, payload)
                answer = check(workbench, request)
                answers[action] = "allow" if answer.allowed else answer.reason
            found.setdefault(persona.name, {})[channel] = answers
    return found


def as_table(matrix: Matrix, *, markdown: bool) -> str:
    """Return a row for each channel and a column for each persona.

    A cell has sub and pub for what is allowed, and ! if a policy raised an error.
    """
    channels = list(dict.fromkeys(channel for row in matrix.values() for channel in row))
    rows = [["channel", *matrix]]
    rows += [[channel, *(_cell(row[channel]) for row in matrix.values())] for channel in channels]
    if markdown:
        rows.insert(1, ["---"] * len(rows[0]))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _cell(answers: Mapping[str, str]) -> str:
    words = [WORDS[action] for action, said in answers.items() if said == "allow"]
    failed = any(said in ("policy error", "timeout") for said in answers.values())
    return " ".join(words + ["!"] * failed) or "-"


def as_json(matrix: Matrix) -> str:
    """Return the matrix as a snapshot: sorted and indented, so that reviews show changes."""
    return json.dumps(matrix, indent=2, sort_keys=True, ensure_ascii=False)


def as_csv(matrix: Matrix) -> str:
    """Return a line for each persona and channel."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["persona", "channel", *ACTIONS])
    for persona, row in matrix.items():
        for channel, answers in row.items():
            writer.writerow([persona, channel, *(answers[action] for action in ACTIONS)])
    return text.getvalue().rstrip("\n")


def compare(before: Matrix, now: Matrix) -> list[str]:
    """Return a line for each answer that differs."""
    was, is_now = _flat(before), _flat(now)
    lines = []
    for key in sorted(was.keys() | is_now.keys()):
        old, new = was.get(key), is_now.get(key)
        if old != new:
            persona, channel, action = key
            lines.append(f"{persona} {action} {channel}: {old or 'not there'} -> {new or 'gone'}")
    return lines


def _flat(matrix: Matrix) -> dict[tuple[str, str, str], str]:
    return {
        (persona, channel, action): said
        for persona, row in matrix.items()
        for channel, answers in row.items()
        for action, said in answers.items()
    }
