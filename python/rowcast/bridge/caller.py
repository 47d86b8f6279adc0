"""Who a verified token speaks for: a value that sessions keep and that SQL is asked with."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAR_FUTURE", "Caller"]

FAR_FUTURE = 253_402_300_800  # the year 10000: what is later is a mistake or an attack


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
