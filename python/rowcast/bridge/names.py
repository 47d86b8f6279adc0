"""Which names a pattern matches: only to find whom a change concerns. SQL decides the rest."""

from __future__ import annotations

__all__ = ["is_pattern", "matches"]


def is_pattern(name: str) -> bool:
    """Whether it stands for many names: no name contains a ``*``."""
    return "*" in name


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a name, segment by segment; see "Patterns" in sql/README.md.

    A pattern is matched by itself, too: who subscribed to it is concerned by its row.
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
