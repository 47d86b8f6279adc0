"""Codecs: each wire turns bytes into operations and messages into bytes, and does no I/O."""

from __future__ import annotations

__all__: list[str] = []
