"""Connecting to PostgreSQL, and saying why that failed."""

from __future__ import annotations

__all__: list[str] = []
