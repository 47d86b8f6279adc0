"""Presence and audience: members and counts, in the database and told to clients."""

from __future__ import annotations

__all__: list[str] = []
