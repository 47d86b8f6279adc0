"""The policy workbench: what a policy says before a change, and why it said no."""

from __future__ import annotations

__all__: list[str] = []
