"""The door for InsForge's clients: Socket.IO over Engine.IO."""

from __future__ import annotations

__all__: list[str] = []
