"""What the feed reads and every wire encodes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

__all__ = ["Message", "timestamp"]


@dataclass(frozen=True, slots=True)
class Message:
    """One committed message. `payload` is JSON text as Postgres wrote it and is never parsed
    here: Postgres accepts depths and numbers that Python does not."""

    seq: int
    id: str
    type: str
    channel: str
    channel_id: str | None
    event: str
    payload: str
    sender_type: str
    sender_id: str | None
    timestamp: str


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds, as JavaScript writes it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
