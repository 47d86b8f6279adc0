"""The daemon: carries committed messages to clients and webhooks, and decides nothing."""

from __future__ import annotations

__all__: list[str] = []
