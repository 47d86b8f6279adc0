"""The edges: aiohttp applications and WebSockets over the session, which knows neither."""

from __future__ import annotations

__all__: list[str] = []
