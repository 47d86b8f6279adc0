"""Short connections to PostgreSQL, and sentences for the errors of connecting."""

from __future__ import annotations

__all__: list[str] = []
