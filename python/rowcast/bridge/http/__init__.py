"""The HTTP server: routes, WebSockets, static files."""

from __future__ import annotations

__all__: list[str] = []
