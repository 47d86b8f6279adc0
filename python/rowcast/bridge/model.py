"""Values that the parts of a bridge pass to each other; they depend on none of the parts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

__all__ = ["FAR_FUTURE", "Caller", "Delivery", "Message", "Response", "timestamp"]

FAR_FUTURE = 253_402_300_800  # the year 10000: a later time is a mistake or an attack


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


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a verified token: role, subject, claims as JSON text, end in epoch seconds."""

    role: str
    subject: str | None
    claims: str
    expires: float

    @property
    def cursor_subject(self) -> str:
        """The subject for which this caller's cursors are signed."""
        return f"{self.role}:{self.subject or ''}"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One claimed delivery. `body` is the text that is signed and sent, and never parsed here;
    it is None when the message was deleted."""

    id: int
    attempt: int
    message_id: UUID
    endpoint_id: UUID
    url: str
    secrets: tuple[str, ...]
    bare: bool
    event: str
    channel: str
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Response:
    """The outcome of one webhook request; without a status, `error` says why."""

    ms: int
    status: int | None = None
    error: str | None = None
    snippet: str | None = None
    retry_after: int | None = None
