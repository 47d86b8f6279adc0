"""Facts about the database that a bridge reads whenever its feed connects.

They come from `rowcast.identity()`. Modules that need a fact hold the small `Facts`, so that they
do not depend on the feed or on the whole database.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from .cursor import CursorKey

__all__ = ["DatabaseFacts", "Facts"]

# Seconds by which messages are remembered longer than clocks may differ.
OVERLAP_MARGIN = 5.0


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """One answer of `rowcast.identity()`; the defaults hold until the first one.

    Args:
        cursor_key: signs cursors; the same for all bridges of a database.
        caller_roles: role claims of which the policies are asked.
        admin_roles: role claims of administrators.
        payload_limit: bytes of a payload; 0 while it is not known.
        clock_skew: how far behind a clock may be when a position is compared by time, after a
            crash of Postgres.
        seq_floor: newest sequence number of the cluster from which this data was restored, or 0.
        doorbell: whether bridges may sleep; not where prepared transactions are possible.
    """

    cursor_key: CursorKey | None = None
    caller_roles: tuple[str, ...] = ()
    admin_roles: tuple[str, ...] = ()
    payload_limit: int = 0
    clock_skew: timedelta = timedelta(seconds=5)
    seq_floor: int = 0
    doorbell: bool = True

    @property
    def replay_overlap(self) -> float:
        """Seconds of which messages may come twice after a crash of Postgres."""
        return self.clock_skew.total_seconds() + OVERLAP_MARGIN

    def exceeds_payload_limit(self, payload: bytes) -> bool:
        """Whether a payload is so far over the limit that the database need not be asked.

        Postgres judges JSON as it writes it, which may be shorter than what a client sent.
        """
        return bool(self.payload_limit) and len(payload) > 4 * self.payload_limit


class Facts:
    """Holds the facts that the feed read last."""

    __slots__ = ("current",)

    def __init__(self, current: DatabaseFacts | None = None) -> None:
        self.current = current or DatabaseFacts()
