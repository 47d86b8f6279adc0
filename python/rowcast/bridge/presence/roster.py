"""Who is present in one channel, made of rows that may come twice, late, and from many bridges.

A member is in one row per bridge; of these the newest speaks. What clients were told is kept
beside it, so that the difference of both is what they have to be told next, however many changes
lie in between. No I/O.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

__all__ = ["Room", "Row"]

REMEMBERED = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """A member at one bridge; `state` is JSON text, None when it left. A higher seq is newer."""

    key: str
    node: UUID
    seq: int
    state: str | None


class Room:
    """One channel."""

    def __init__(self) -> None:
        self.due = 0.0  # when clients may be told again
        self.told: dict[str, str] = {}
        # Who left within the last minute, for clients that were told of it neither then nor since.
        self.gone: dict[str, float] = {}
        self._rows: dict[str, dict[UUID, Row]] = {}
        self._changed: set[str] = set()
        # What came by itself while the whole list was being read, which may be older or newer.
        self._meanwhile: dict[tuple[str, UUID], int] | None = None

    def take(self, row: Row) -> None:
        """A row has changed."""
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

    def expect(self) -> None:
        """The whole list is going to be read."""
        self._meanwhile = {}

    def fill(self, rows: Iterable[Row], *, complete: bool) -> None:
        """Take the whole list, read after `expect`.

        Args:
            rows: all rows of members who are present.
            complete: whether who is not among them has left.
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

    def doubt(self) -> None:
        """Postgres crashed: members are there until they fail to be written anew, by numbers that
        may be lower than before."""
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
    def restless(self) -> bool:
        """Whether something may have changed since clients were told."""
        return bool(self._changed)

    def news(self) -> list[tuple[str, str, str, str | None]]:
        """What clients have to be told now, as (type, key, state, what they were told last); they
        count as told."""
        events = []
        now = time.monotonic()
        self.gone = {key: left for key, left in self.gone.items() if left > now - REMEMBERED}
        for key in self._changed:
            before = self.told.get(key)
            rows = self._rows.get(key)
            if rows:
                state = max(rows.values(), key=lambda row: row.seq).state
                assert state is not None
                if state != before:
                    events.append(("join" if before is None else "update", key, state, before))
                    self.told[key] = state
                    self.gone.pop(key, None)
            elif before is not None:
                events.append(("leave", key, self.told.pop(key), before))
                self.gone[key] = now
        self._changed.clear()
        return events
