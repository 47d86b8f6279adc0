"""`rowcast dev` and the PostgreSQL server that it starts."""

from __future__ import annotations

__all__: list[str] = []
