"""Answers questions about expressions: which helper is called, which table a column belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rowcast.policy.optional import need
from rowcast.policy.source import walk

from .files import Files, Policy, qualified, table_name

__all__ = [
    "CONTEXT",
    "IDENTITY",
    "called",
    "calls",
    "columns",
    "comparisons",
    "constant",
    "in_subselect",
    "is_false",
    "is_helper",
    "is_true",
    "kind_of",
    "names_channel",
    "nullable",
    "resolve",
    "wrapped",
]

IDENTITY = {
    f"{schema}.{name}"
    for schema in ("auth", "rowcast")
    for name in ("uid", "user_id", "jwt", "role", "email")
}
# Helpers that return the name being subscribed to, for all rows; with their number of arguments.
CONTEXT = {"rowcast.channel_name": 0, "realtime.channel_name": 0, "realtime.topic": 0} | {
    f"rowcast.{name}": 1 for name in ("segment", "segment_uuid", "segment_int")
}

TEXT, UUID, NUMBER = "text", "uuid", "number"
KINDS = {
    **dict.fromkeys(("text", "varchar", "bpchar", "name", "citext"), TEXT),
    "uuid": UUID,
    **dict.fromkeys(("int2", "int4", "int8", "numeric", "bigserial", "serial"), NUMBER),
}
RESULTS = {
    "uid": UUID,
    "segment_uuid": UUID,
    "segment_int": NUMBER,
    **dict.fromkeys(("user_id", "role", "email", "segment", "channel_name", "topic"), TEXT),
    **dict.fromkeys(("split_part", "lower", "upper", "current_setting", "substring"), TEXT),
}

Above = tuple[Any, ...]


def called(node: Any) -> str:
    """Return the name of the called function without pg_catalog; empty for other nodes."""
    if not isinstance(node, need("pglast.ast").FuncCall):
        return ""
    return qualified(node.funcname).removeprefix("pg_catalog.")


def calls(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and node of every call in a tree."""
    for node, _ in walk(tree):
        if name := called(node):
            yield name, node


def is_helper(node: Any) -> bool:
    """Say whether a node identifies the caller or the channel: the same for all rows."""
    return called(node) in IDENTITY or names_channel(node)


def names_channel(node: Any) -> bool:
    """Say whether a node returns the channel name of the statement, not of the row."""
    name = called(node)
    if name == "current_setting":
        return constant((node.args or (None,))[0]) in ("rowcast.channel_name", "realtime.topic")
    return name in CONTEXT and len(node.args or ()) == CONTEXT[name]


def nullable(tree: Any) -> bool:
    """Say whether a helper in a tree can be NULL, for example without a token."""
    return any(is_helper(node) for node, _ in walk(tree))


def constant(node: Any) -> str | None:
    """Return the text of a literal, or None."""
    return getattr(getattr(node, "val", None), "sval", None)


def is_true(node: Any) -> bool:
    """Say whether an expression is true for every row and every caller."""
    ast, enums = need("pglast.ast"), need("pglast.enums")
    if isinstance(node, ast.A_Const):
        return getattr(node.val, "boolval", False) is True
    if isinstance(node, ast.BoolExpr):
        if node.boolop == enums.BoolExprType.NOT_EXPR:
            return False
        test = any if node.boolop == enums.BoolExprType.OR_EXPR else all
        return test(is_true(arm) for arm in node.args)
    for left, right, operator, _ in comparisons(node, deep=False):
        if operator == "=" and isinstance(left, ast.A_Const) and isinstance(right, ast.A_Const):
            return bool(left(skip_none=True) == right(skip_none=True)) and not left.isnull
    return False


def is_false(node: Any) -> bool:
    """Say whether an expression is the constant false."""
    constant = isinstance(node, need("pglast.ast").A_Const)
    return constant and getattr(node.val, "boolval", None) is False


def comparisons(tree: Any, *, deep: bool = True) -> Iterator[tuple[Any, Any, str, Above]]:
    """Yield left, right, operator and ancestors of each comparison, including those of IN."""
    ast, kind = need("pglast.ast"), need("pglast.enums").A_Expr_Kind
    for node, above in walk(tree):
        if isinstance(node, ast.A_Expr) and node.name[-1].sval in ("=", "<>", "<", ">", "<=", ">="):
            if node.kind in (kind.AEXPR_OP, kind.AEXPR_DISTINCT, kind.AEXPR_NOT_DISTINCT):
                yield node.lexpr, node.rexpr, node.name[-1].sval, (*above, node)
            elif node.kind == kind.AEXPR_IN:
                for element in node.rexpr:
                    yield node.lexpr, element, node.name[-1].sval, (*above, node)
        if not deep:
            return


def wrapped(above: Above) -> bool:
    """Say whether a node is inside a scalar sub-select that does not read a table."""
    ast, scalar = need("pglast.ast"), need("pglast.enums").SubLinkType.EXPR_SUBLINK
    return any(
        isinstance(node, ast.SubLink)
        and node.subLinkType == scalar
        and not getattr(node.subselect, "fromClause", None)
        for node in above
    )


def in_subselect(above: Above) -> bool:
    """Say whether a node is inside a sub-select that reads a table."""
    select = need("pglast.ast").SelectStmt
    return any(isinstance(node, select) and node.fromClause for node in above)


def scopes(above: Above) -> Iterator[dict[str, str | None]]:
    """Yield the relations (alias to table) of the enclosing sub-selects, innermost first.

    The table of an alias is None if it is a function or a sub-select.
    """
    select = need("pglast.ast").SelectStmt
    for node in reversed(above):
        if isinstance(node, select) and node.fromClause:
            yield dict(_relations(node.fromClause))


def _relations(items: Any) -> Iterator[tuple[str, str | None]]:
    ast = need("pglast.ast")
    for item in items:
        alias = item.alias.aliasname if getattr(item, "alias", None) else None
        if isinstance(item, ast.JoinExpr):
            yield from _relations((item.larg, item.rarg))
        elif isinstance(item, ast.RangeVar):
            yield alias or item.relname, table_name(item)
        elif alias:
            yield alias, None


def columns(policy: Policy) -> Iterator[tuple[tuple[str, ...], Any, Above]]:
    """Yield name parts, node and ancestors of each column in the expressions of a policy."""
    column = need("pglast.ast").ColumnRef
    for node, above in policy.walk():
        if isinstance(node, column):
            yield tuple(getattr(part, "sval", "*") for part in node.fields), node, above


def resolve(
    parts: tuple[str, ...], above: Above, policy: Policy, files: Files
) -> tuple[str | None, str]:
    """Return the table and column that a name refers to; the table is None if unknown."""
    relation = policy.table.partition(".")[2]
    *qualifier, column = parts
    for scope in scopes(above):
        if qualifier:
            if len(qualifier) == 1 and qualifier[0] in scope:
                return scope[qualifier[0]], column
            continue
        known = [files.columns(table) if table else None for table in scope.values()]
        for table, names in zip(scope.values(), known, strict=True):
            if names is not None and column in names:
                return table, column
        if None in known:
            return None, column
    if qualifier and qualifier[-1] != relation:
        return None, column
    return policy.table, column


def kind_of(node: Any, above: Above, policy: Policy, files: Files) -> str | None:
    """Return ``uuid``, ``text`` or ``number``; None if the files do not show the type."""
    ast, enums = need("pglast.ast"), need("pglast.enums")
    if isinstance(node, ast.TypeCast):
        return None if node.typeName.arrayBounds else KINDS.get(node.typeName.names[-1].sval)
    if isinstance(node, ast.FuncCall):
        name = called(node)
        schema, _, last = name.rpartition(".")
        return RESULTS.get(last) if schema in ("", "auth", "rowcast", "realtime") else None
    if isinstance(node, ast.A_Expr):
        return TEXT if node.name[-1].sval in ("->>", "#>>", "||") and node.lexpr else None
    if isinstance(node, ast.SQLValueFunction):
        return TEXT if node.op >= enums.SQLValueFunctionOp.SVFOP_CURRENT_ROLE else None
    if isinstance(node, ast.SubLink) and node.subLinkType == enums.SubLinkType.EXPR_SUBLINK:
        targets = list(node.subselect.targetList or ())
        return (
            kind_of(targets[0].val, (*above, node, node.subselect), policy, files)
            if len(targets) == 1
            else None
        )
    if isinstance(node, ast.ColumnRef):
        parts = tuple(getattr(part, "sval", "*") for part in node.fields)
        table, column = resolve(parts, above, policy, files)
        known = files.columns(table) if table else None
        return KINDS.get((known or {}).get(column, ""))
    return None
