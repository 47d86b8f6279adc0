"""Installs rowcast in a database or upgrades it: migrations, then the SQL code."""

from __future__ import annotations

__all__: list[str] = []
