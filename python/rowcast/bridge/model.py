"""Values that the parts of the bridge hand to each other. They know nothing of the parts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

__all__ = ["FAR_FUTURE", "Caller", "Delivery", "Message", "Response", "timestamp"]

FAR_FUTURE = 253_402_300_800  # the year 10000: what is later is a mistake or an attack


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
    """A verified token: role, subject, all claims as JSON text, its end in epoch seconds."""

    role: str
    subject: str | None
    claims: str
    expires: float

    @property
    def cursor_subject(self) -> str:
        """Whom a cursor is signed for."""
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
    """What came of one request; without a status `error` says why."""

    ms: int
    status: int | None = None
    error: str | None = None
    snippet: str | None = None
    retry_after: int | None = None
