"""The name of the channel, in the words of rowcast: whole, and its segments."""

from __future__ import annotations

from typing import Any

from rowcast.policy.lint.expressions import called
from rowcast.policy.lint.files import MESSAGES
from rowcast.policy.optional import need

from .trees import call, column, parts, text_of

__all__ = ["name_of", "segments"]

CASTS = {
    "uuid": "rowcast.segment_uuid",
    **dict.fromkeys(("int2", "int4", "int8"), "rowcast.segment_int"),
}
SEGMENT = "rowcast.segment"


def name_of(table: str) -> Any:
    """Return what tells the name in a policy on a table: on messages it is the row's."""
    if table == MESSAGES:
        return column("realtime_messages", "channel_name")
    return call("rowcast.channel_name")


def segments(node: Any, table: str) -> Any:
    """Replace ``split_part(name, ':', n)``, and casts of it, by helpers that never fail."""
    ast, enums = need("pglast.ast"), need("pglast.enums")
    if called(node) == "split_part" and len(node.args) == 3:
        name, separator, number = node.args
        if _is_name(name, table) and text_of(separator) == ":":
            return call(SEGMENT, *((name,) if table == MESSAGES else ()), number)
    if isinstance(node, ast.A_Expr) and node.kind == enums.A_Expr_Kind.AEXPR_NULLIF:
        empty = isinstance(node.rexpr, ast.A_Const) and text_of(node.rexpr) == ""
        # Where the part is missing the helper is NULL already.
        return node.lexpr if called(node.lexpr) == SEGMENT and empty else node
    if isinstance(node, ast.TypeCast) and not node.typeName.arrayBounds:
        argument, kind = _unwrapped(node.arg), node.typeName.names[-1].sval
        if called(argument) == SEGMENT:
            if kind == "text":
                return argument
            if kind in CASTS:
                return call(CASTS[kind], *argument.args)
    return node


def _unwrapped(node: Any) -> Any:
    """What a sub-select without a table yields."""
    ast = need("pglast.ast")
    if isinstance(node, ast.SubLink) and not node.subselect.fromClause:
        targets = list(node.subselect.targetList or ())
        return targets[0].val if len(targets) == 1 else node
    return node


def _is_name(node: Any, table: str) -> bool:
    node = _unwrapped(node)
    if table == MESSAGES:
        return parts(node)[-1:] == ("channel_name",)
    return called(node) == "rowcast.channel_name"
