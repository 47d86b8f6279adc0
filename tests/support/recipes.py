"""The recipes of policies/, for tests of other folders."""

from __future__ import annotations

from pathlib import Path

__all__ = ["recipe"]


def recipe(name: str) -> bytes:
    """The text of a recipe."""
    return (Path(__file__).parents[2] / "policies" / f"{name}.sql").read_bytes()
