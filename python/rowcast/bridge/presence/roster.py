"""The members of one channel, made of rows that may come twice, late, and from many bridges.

A member has one row per bridge, and the newest one shows its state. What clients were told is kept
beside the rows: the difference of both is what they have to be told next, however many changes lie
in between. No I/O.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

__all__ = ["Roster", "Row"]

# Seconds for which a member that left is remembered.
REMEMBERED = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """A member at one bridge; `state` is JSON text, None when it left. A higher seq is newer."""

    key: str
    node: UUID
    seq: int
    state: str | None


class Roster:
    """The members of one channel, and what its clients were told of them."""

    def __init__(self) -> None:
        # monotonic time from which on clients may be told again
        self.due = 0.0
        # key and state of the members that clients were told of
        self.announced: dict[str, str] = {}
        # keys of members that left within the last minute, and when; for clients that were not
        # told of it, and speak a wire without whole lists
        self.recently_left: dict[str, float] = {}
        self._rows: dict[str, dict[UUID, Row]] = {}
        self._changed: set[str] = set()
        # seq of rows that the feed brought during a load, whose list may be older or newer
        self._meanwhile: dict[tuple[str, UUID], int] | None = None

    def take(self, row: Row) -> None:
        """Take a row that has changed."""
        if self._meanwhile is not None:
            self._meanwhile[row.key, row.node] = row.seq
        self._put(row)

    def _put(self, row: Row) -> None:
        rows = self._rows.setdefault(row.key, {})
        known = rows.get(row.node)
        if known is None or known.seq < row.seq:
            rows[row.node] = row
            self._forget(row.key, row.node, left=row.state is None)

    def _forget(self, key: str, node: UUID, *, left: bool) -> None:
        self._changed.add(key)
        rows = self._rows[key]
        if left:
            del rows[node]
        if not rows:
            del self._rows[key]

    def begin_load(self) -> None:
        """Note that the whole list is going to be read."""
        self._meanwhile = {}

    def finish_load(self, rows: Iterable[Row], *, complete: bool) -> None:
        """Take the whole list, read after `begin_load`.

        Args:
            rows: all rows of members that are present.
            complete: whether members without a row have left.
        """
        meanwhile, self._meanwhile = self._meanwhile or {}, None
        present = set()
        for row in rows:
            present.add((row.key, row.node))
            if meanwhile.get((row.key, row.node), -1) < row.seq:
                self._put(row)
        if complete:
            mine = [(key, node) for key, nodes in self._rows.items() for node in nodes]
            for key, node in mine:
                if (key, node) not in present and (key, node) not in meanwhile:
                    self._forget(key, node, left=True)

    def expect_new_rows(self) -> None:
        """Keep all members, and let any row replace theirs.

        After a crash of Postgres, bridges write their members again, with numbers that may be
        lower than before.
        """
        for rows in self._rows.values():
            for node, row in rows.items():
                rows[node] = Row(row.key, node, -1, row.state)
        self._meanwhile = {} if self._meanwhile is not None else None

    def holds(self, key: str) -> bool:
        """Whether this member is present."""
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def has_changes(self) -> bool:
        """Whether something may have changed since clients were told."""
        return bool(self._changed)

    def take_changes(self) -> list[tuple[str, str, str, str | None]]:
        """Return what clients have to be told, and count them as told.

        Returns:
            (type, key, state, the state that they were told last or None) each.
        """
        events = []
        now = time.monotonic()
        self.recently_left = {
            key: left for key, left in self.recently_left.items() if left > now - REMEMBERED
        }
        for key in self._changed:
            before = self.announced.get(key)
            rows = self._rows.get(key)
            if rows:
                state = max(rows.values(), key=lambda row: row.seq).state
                assert state is not None
                if state != before:
                    events.append(("join" if before is None else "update", key, state, before))
                    self.announced[key] = state
                    self.recently_left.pop(key, None)
            elif before is not None:
                events.append(("leave", key, self.announced.pop(key), before))
                self.recently_left[key] = now
        self._changed.clear()
        return events
