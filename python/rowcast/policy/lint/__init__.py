"""`rowcast policy lint`: rules over policy files, each a function that documents itself."""

from __future__ import annotations

__all__: list[str] = []
