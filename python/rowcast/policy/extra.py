"""What the workbench needs beyond the daemon, loaded when it is needed: pglast is GPL."""

from __future__ import annotations

from typing import Any

from ..errors import RowcastError

__all__ = ["MissingExtraError", "load_pglast", "parse_expression"]


class MissingExtraError(RowcastError):
    """pglast is not installed; the message says how to install it."""


def load_pglast() -> Any:
    """Return the module `pglast`, with its printer.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pglast
        import pglast.stream
        import pglast.visitors
    except ImportError:
        raise MissingExtraError("Reading SQL needs pglast: install 'rowcast[policy]'.") from None
    return pglast


def parse_expression(text: str) -> Any:
    """Return the tree of an expression.

    Raises:
        MissingExtraError: pglast is not installed.
        pglast.parser.ParseError: it is none.
    """
    (statement,) = load_pglast().parse_sql("select " + text)
    return statement.stmt.targetList[0].val
