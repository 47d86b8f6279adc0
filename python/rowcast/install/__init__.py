"""Brings a database to this version: migrations, then the SQL code."""

from __future__ import annotations

__all__: list[str] = []
