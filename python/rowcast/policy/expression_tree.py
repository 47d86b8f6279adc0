"""Splits a policy's expression at AND, OR and NOT into parts that are evaluated one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rowcast.errors import RowcastError

from .optional import load_pglast, parse_expression

__all__ = ["ExpressionNode", "UnreadableError", "parse_tree"]

COMPARISONS = {"=", "<>", "<", ">", "<=", ">=", "~~", "~"}


class UnreadableError(RowcastError):
    """pglast cannot parse an expression."""


@dataclass(slots=True)
class ExpressionNode:
    """One node, an operator with its arms or a leaf, and its value.

    Attributes:
        operator: "AND", "OR", "NOT", or "" for a leaf.
        text: SQL of the whole node.
        arms: the operands.
        sides: SQL of the left and the right side, if the leaf is a comparison.
        said: the value: "true", "false", None for NULL, "error".
        error: SQLSTATE and message.
        values: the values of the sides.
    """

    operator: str
    text: str
    arms: list[ExpressionNode] = field(default_factory=list)
    sides: tuple[str, ...] = ()
    said: str | None = None
    error: str = ""
    values: tuple[str | None, ...] = ()

    def nodes(self) -> Iterator[ExpressionNode]:
        """Yield this node and all nodes below it."""
        yield self
        for arm in self.arms:
            yield from arm.nodes()

    def shown(self) -> Mapping[str, Any]:
        """Return the node as a JSON object."""
        found: dict[str, Any] = {"value": self.said, "text": self.text}
        if self.operator:
            found |= {"operator": self.operator, "arms": [arm.shown() for arm in self.arms]}
        if self.error:
            found["error"] = self.error
        if self.values:
            found["sides"] = list(self.values)
        return found


def parse_tree(expression: str) -> ExpressionNode:
    """Parse an expression that the server deparsed.

    Raises:
        MissingExtraError: pglast is not installed.
        UnreadableError: the server is newer than pglast, and the expression uses newer syntax.
    """
    pglast = load_pglast()
    try:
        tree = parse_expression(expression)
    except pglast.parser.ParseError as problem:
        raise UnreadableError(f"pglast cannot read an expression: {problem.args[0]}") from problem
    return _arm(pglast, tree)


def _arm(pglast: Any, node: Any) -> ExpressionNode:
    text = pglast.stream.RawStream()(node)
    kinds = pglast.enums.BoolExprType
    if isinstance(node, pglast.ast.BoolExpr):
        names = {kinds.AND_EXPR: "AND", kinds.OR_EXPR: "OR", kinds.NOT_EXPR: "NOT"}
        return ExpressionNode(names[node.boolop], text, [_arm(pglast, part) for part in node.args])
    simple = isinstance(node, pglast.ast.A_Expr) and node.lexpr is not None
    if simple and node.name[-1].sval in COMPARISONS and node.rexpr is not None:
        sides = (node.lexpr, node.rexpr)
        if node.kind == pglast.enums.A_Expr_Kind.AEXPR_OP:
            return ExpressionNode(
                "", text, sides=tuple(pglast.stream.RawStream()(side) for side in sides)
            )
    return ExpressionNode("", text)
