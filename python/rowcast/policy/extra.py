"""The libraries of the extra `policy`, which nobody needs to run a bridge."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import RowcastError

__all__ = ["MissingExtra", "need"]


class MissingExtra(RowcastError):
    """A library of the extra `policy` is not installed."""


def need(name: str) -> Any:
    """Import a module of the extra.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as absent:
        if absent.name is None or absent.name.partition(".")[0] != name.partition(".")[0]:
            raise
        raise MissingExtra(
            f"This command needs {name.partition('.')[0]}: pip install 'rowcast[policy]'."
        ) from absent
