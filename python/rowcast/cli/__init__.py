"""The command ``rowcast``: one module per group of commands."""

from __future__ import annotations

__all__: list[str] = []
