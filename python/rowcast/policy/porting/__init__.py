"""Rewrites policies of other systems as policies of rowcast, for `rowcast policy port`."""

from __future__ import annotations

__all__: list[str] = []
