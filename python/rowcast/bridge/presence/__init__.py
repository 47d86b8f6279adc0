"""Who is in a channel: counted, written to the database, and told to clients."""

from __future__ import annotations

__all__: list[str] = []
