"""Webhooks: claim deliveries, sign, send, settle."""

from __future__ import annotations

__all__: list[str] = []
