"""Loads pglast and sqlfluff on demand. They are optional, because pglast is under the GPL."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rowcast.errors import RowcastError

__all__ = ["MissingExtraError", "load_pglast", "need", "parse_expression"]


class MissingExtraError(RowcastError):
    """A library of the extra `policy` is not installed; the message says how to install it."""


def need(name: str) -> Any:
    """Return a module of the extra `policy`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        library = name.partition(".")[0]
        raise MissingExtraError(
            f"This command needs {library}: install 'rowcast[policy]'."
        ) from None


def load_pglast() -> Any:
    """Return the module `pglast`, with its printer.

    Raises:
        MissingExtraError: it is not installed.
    """
    need("pglast.stream")
    return need("pglast")


def parse_expression(text: str) -> Any:
    """Return the tree of an expression.

    Raises:
        MissingExtraError: pglast is not installed.
        pglast.parser.ParseError: it is not an expression.
    """
    (statement,) = load_pglast().parse_sql("select " + text)
    return statement.stmt.targetList[0].val
