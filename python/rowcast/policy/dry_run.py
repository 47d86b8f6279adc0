"""Finds callers that a change of policies would take a channel from, or give one to.

It checks them before and after the change, in a transaction that is rolled back. The change locks
its tables until all checks have run, so the time for checks of connected callers, which may be
many, is limited.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import inf

import psycopg

from rowcast.postgres.connect import DatabaseError

from .apply import PolicyDiff, apply_in_transaction
from .census import Listener
from .database import BRIEF, Workbench, database_errors
from .statements import Script

__all__ = ["AccessChange", "DryRun", "describe_changes", "dry_run"]

# Checks in one statement, as many as bridges use.
BATCH = 200
# Lines printed about callers that lose or gain a channel.
MOST = 50


@dataclass(frozen=True, slots=True)
class AccessChange:
    """Whether a listener may subscribe before and after the change."""

    listener: Listener
    before: bool
    after: bool


@dataclass(frozen=True, slots=True)
class DryRun:
    """The effect of a change on listeners.

    Args:
        difference: the changes that `apply` would make.
        access: one entry for each listener that was checked.
        unasked: the number of sessions that there was no time for.
        refused: roles that this login cannot become, with the reason.
    """

    difference: PolicyDiff
    access: list[AccessChange]
    unasked: int
    refused: dict[str, str]


def dry_run(
    workbench: Workbench,
    script: Script,
    listeners: Sequence[Listener],
    *,
    prune: bool,
    limit: float | None = None,
) -> DryRun:
    """Apply the files, check each listener before and after, and roll back.

    Args:
        workbench: a workbench of the migrating role.
        script: the files.
        listeners: the listeners to check.
        prune: whether to drop policies that the files do not mention.
        limit: seconds that each of the two rounds of checks may take. With a limit, listeners that
            cannot be checked are counted instead of raising an error.

    Raises:
        DatabaseError: a statement failed; or, without a limit, this login cannot become a role.
    """
    with database_errors(workbench.connection), workbench.trial():
        refused: dict[str, str] = {}
        for role in {listener.role for listener in listeners}:
            try:
                workbench.ensure_role(role)
            except DatabaseError as reason:
                if limit is None:
                    raise
                refused[role] = str(reason)
        fit = [listener for listener in listeners if listener.role not in refused]
        before = _ask(workbench, fit, limit)
        found = apply_in_transaction(workbench.connection, script, prune=prune)
        after = _ask(workbench, before, limit)
    access = [
        AccessChange(listener, before[listener], after[listener])
        for listener in listeners
        if listener in after
    ]
    unasked = sum(listener.sessions for listener in fit if listener not in after)
    return DryRun(found, access, unasked, refused)


def describe_changes(access: Sequence[AccessChange]) -> Iterator[str]:
    """Yield a line for each caller that loses or gains a channel, most sessions first."""
    changed: Counter[str] = Counter()
    for entry in access:
        if entry.before != entry.after:
            what = "gains" if entry.after else "loses"
            line = f"{entry.listener.who} {what} {entry.listener.channel}"
            changed[line] += entry.listener.sessions
    for line, sessions in changed.most_common(MOST):
        yield line if sessions == 1 else f"{line} ({sessions} sessions)"
    if len(changed) > MOST:
        yield f"and {len(changed) - MOST} more"
    if access and not changed:
        number = sum(entry.listener.sessions for entry in access)
        yield f"none of {number} sessions loses or gains a channel"


def _ask(
    workbench: Workbench, listeners: Iterable[Listener], limit: float | None
) -> dict[Listener, bool]:
    """Check listeners until the time is up; those with the most sessions come first."""
    until = inf if limit is None else time.monotonic() + limit
    if limit is not None:
        workbench.set_timeouts(BRIEF)
    found: dict[Listener, bool] = {}
    waiting = list(_batches(listeners))[::-1]
    while waiting and time.monotonic() < until:
        batch = waiting.pop()
        try:
            found.update(zip(batch, _check(workbench, batch), strict=True))
        except psycopg.Error:
            # One listener took too long. Check them one by one, so that it only decides for itself.
            if len(batch) > 1:
                waiting += [[one] for one in reversed(batch)]
            else:
                found[batch[0]] = False
    workbench.set_timeouts()
    return found


def _batches(listeners: Iterable[Listener]) -> Iterator[list[Listener]]:
    ordered = sorted(listeners, key=lambda one: (one.role, -one.sessions))
    for _, group in groupby(ordered, key=lambda one: one.role):
        of_role = list(group)
        for at in range(0, len(of_role), BATCH):
            yield of_role[at : at + BATCH]


def _check(workbench: Workbench, batch: Sequence[Listener]) -> list[bool]:
    with workbench.connection.transaction(force_rollback=True):
        rows = workbench.check_subscribe(
            batch[0].role, [one.claims for one in batch], [one.channel for one in batch]
        )
    return [bool(row["allowed"]) for row in rows]
