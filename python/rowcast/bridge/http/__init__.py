"""The HTTP application: doors, WebSockets, responses, health and static files."""

from __future__ import annotations

__all__: list[str] = []
