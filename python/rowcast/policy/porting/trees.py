"""Rewrites expression trees, and folds parts that are then known to be true or false."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rowcast.policy.lint.expressions import called
from rowcast.policy.lint.files import MESSAGES
from rowcast.policy.optional import need

__all__ = [
    "boolean",
    "call",
    "column",
    "fold",
    "literal",
    "name_of",
    "parts",
    "segments",
    "text_of",
    "transform",
]

CASTS = {
    "uuid": "rowcast.segment_uuid",
    **dict.fromkeys(("int2", "int4", "int8"), "rowcast.segment_int"),
}
SEGMENT = "rowcast.segment"

Above = tuple[Any, ...]
Rewrite = Callable[[Any, Above], Any]


def transform(node: Any, change: Rewrite, above: Above = ()) -> Any:
    """Return a tree in which `change` has replaced nodes, inner nodes first.

    The given tree is modified.
    """
    if isinstance(node, tuple):
        return tuple(transform(element, change, above) for element in node)
    if not isinstance(node, need("pglast.ast").Node):
        return node
    for name in node:
        value = getattr(node, name)
        if value is not None and not isinstance(value, str | int):
            setattr(node, name, transform(value, change, (*above, node)))
    return change(node, above)


def parts(node: Any) -> tuple[str, ...]:
    """Return the parts of a column name; empty for other nodes."""
    if not isinstance(node, need("pglast.ast").ColumnRef):
        return ()
    return tuple(getattr(part, "sval", "*") for part in node.fields)


def column(*names: str) -> Any:
    """Return a column reference as a node."""
    ast = need("pglast.ast")
    return ast.ColumnRef(fields=tuple(ast.String(sval=name) for name in names))


def call(name: str, *arguments: Any) -> Any:
    """Return a call of a function as a node."""
    ast = need("pglast.ast")
    return ast.FuncCall(
        funcname=tuple(ast.String(sval=part) for part in name.split(".")),
        args=arguments,
        funcformat=need("pglast.enums").CoercionForm.COERCE_EXPLICIT_CALL,
    )


def literal(value: str | bool) -> Any:
    """Return a constant as a node."""
    ast = need("pglast.ast")
    made = ast.Boolean(boolval=value) if isinstance(value, bool) else ast.String(sval=value)
    return ast.A_Const(isnull=False, val=made)


def boolean(node: Any) -> bool | None:
    """Return the value of a boolean constant; None for other nodes."""
    if not isinstance(node, need("pglast.ast").A_Const) or node.isnull:
        return None
    value = getattr(node.val, "boolval", None)
    return None if value is None else bool(value)


def text_of(node: Any) -> str | None:
    """Return the value of a text constant, also with a cast to text; None for other nodes."""
    ast = need("pglast.ast")
    if isinstance(node, ast.TypeCast) and node.typeName.names[-1].sval in ("text", "varchar"):
        node = node.arg
    return getattr(node.val, "sval", None) if isinstance(node, ast.A_Const) else None


def fold(node: Any, above: Above) -> Any:
    """Replace a node by its constant value; for `transform`.

    It folds comparisons of constants, AND, OR, NOT, EXISTS without rows, and sub-selects that only
    contain a constant or a name.
    """
    ast, enums = need("pglast.ast"), need("pglast.enums")
    if isinstance(node, ast.A_Expr):
        return _compared(node)
    if isinstance(node, ast.BoolExpr):
        return _joined(node)
    if isinstance(node, ast.SubLink):
        select = node.subselect
        bare = not any((select.fromClause, select.whereClause, select.groupClause, select.op))
        if node.subLinkType == enums.SubLinkType.EXPR_SUBLINK and bare:
            targets = list(select.targetList or ())
            value = targets[0].val if len(targets) == 1 else None
            if isinstance(value, ast.A_Const | ast.ColumnRef):
                return value
        if node.subLinkType == enums.SubLinkType.EXISTS_SUBLINK:
            if boolean(select.whereClause) is False:
                return literal(False)
            if boolean(select.whereClause) is True:
                select.whereClause = None
    return node


def _compared(node: Any) -> Any:
    ast, kind = need("pglast.ast"), need("pglast.enums").A_Expr_Kind
    left = text_of(node.lexpr)
    if node.kind == kind.AEXPR_IN:
        values = [text_of(element) for element in node.rexpr]
    elif node.kind == kind.AEXPR_OP_ANY and isinstance(node.rexpr, ast.A_ArrayExpr):
        values = [text_of(element) for element in node.rexpr.elements or ()]
    elif node.kind == kind.AEXPR_OP:
        values = [text_of(node.rexpr)]
        told = boolean(node.lexpr), boolean(node.rexpr)
        if None not in told and node.name[-1].sval in ("=", "<>"):
            return literal((told[0] == told[1]) == (node.name[-1].sval == "="))
    else:
        return node
    if left is None or None in values or node.name[-1].sval not in ("=", "<>"):
        return node
    return literal((left in values) == (node.name[-1].sval == "="))


def _joined(node: Any) -> Any:
    kinds = need("pglast.enums").BoolExprType
    values = [boolean(arm) for arm in node.args]
    if node.boolop == kinds.NOT_EXPR:
        return node if values[0] is None else literal(not values[0])
    absorbing = node.boolop == kinds.OR_EXPR  # true decides an OR, false an AND
    if absorbing in values:
        return literal(absorbing)
    left = tuple(arm for arm, value in zip(node.args, values, strict=True) if value is None)
    if not left:
        return literal(not absorbing)
    node.args = left
    return left[0] if len(left) == 1 else node


def name_of(table: str) -> Any:
    """Return the channel name in a policy on a table: for messages that of the row."""
    if table == MESSAGES:
        return column("realtime_messages", "channel_name")
    return call("rowcast.channel_name")


def segments(node: Any, table: str) -> Any:
    """Replace ``split_part(name, ':', n)`` and casts of it by helpers that never fail."""
    ast, enums = need("pglast.ast"), need("pglast.enums")
    if called(node) == "split_part" and len(node.args) == 3:
        name, separator, number = node.args
        if _is_name(name, table) and text_of(separator) == ":":
            return call(SEGMENT, *((name,) if table == MESSAGES else ()), number)
    if isinstance(node, ast.A_Expr) and node.kind == enums.A_Expr_Kind.AEXPR_NULLIF:
        empty = isinstance(node.rexpr, ast.A_Const) and text_of(node.rexpr) == ""
        # The helper is already NULL if the part is missing.
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
    """Return the value of a sub-select without a table, or the node itself."""
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
