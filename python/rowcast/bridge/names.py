"""Tells which names a pattern matches, only to find subscriptions that a change concerns.

Everything else about patterns is decided in SQL.
"""

from __future__ import annotations

__all__ = ["is_pattern", "matches"]


def is_pattern(name: str) -> bool:
    """Whether it is a pattern: a name never contains a ``*``."""
    return "*" in name


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a name, segment by segment; see "Patterns" in sql/README.md.

    A pattern matches itself, too: its row concerns the subscriptions to it.
    """
    if not is_pattern(pattern):
        return pattern == name
    wanted, given = pattern.split(":"), name.split(":")
    if wanted[-1] == "**":
        if len(given) < len(wanted):
            return False
    elif len(given) != len(wanted):
        return False
    return all(want in ("*", "**", have) for want, have in zip(wanted, given, strict=False))
