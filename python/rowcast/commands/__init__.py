"""The commands, one module per subject. Each has `add`, which describes its commands to the
parser; what takes long to import is imported when a command runs."""

from __future__ import annotations

__all__: list[str] = []
