"""The linter of `rowcast policy lint`: each rule is a function that documents itself."""

from __future__ import annotations

__all__: list[str] = []
