"""Operations, events and the native JSON frames. No I/O."""

from __future__ import annotations

__all__: list[str] = []
