"""The AND, OR and NOT of a policy's expression, as a tree of expressions to evaluate one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rowcast.errors import RowcastError

from .optional import load_pglast, parse_expression

__all__ = ["ExpressionNode", "UnreadableError", "parse_tree"]

COMPARISONS = {"=", "<>", "<", ">", "<=", ">=", "~~", "~"}


class UnreadableError(RowcastError):
    """pglast does not know the grammar of an expression."""


@dataclass(slots=True)
class ExpressionNode:
    """One node: an operator over its arms, or a leaf; and what it said.

    Attributes:
        operator: "AND", "OR", "NOT", or nothing for a leaf.
        text: SQL of the whole node.
        arms: what the operator joins.
        sides: of a leaf that compares: SQL of the left and of the right side.
        said: "true", "false", None for NULL, "error".
        error: SQLSTATE and message.
        values: what the sides were.
    """

    operator: str
    text: str
    arms: list[ExpressionNode] = field(default_factory=list)
    sides: tuple[str, ...] = ()
    said: str | None = None
    error: str = ""
    values: tuple[str | None, ...] = ()

    def nodes(self) -> Iterator[ExpressionNode]:
        """Yield this node and all below it."""
        yield self
        for arm in self.arms:
            yield from arm.nodes()

    def shown(self) -> Mapping[str, Any]:
        """Return it as it stands in JSON."""
        found: dict[str, Any] = {"value": self.said, "text": self.text}
        if self.operator:
            found |= {"operator": self.operator, "arms": [arm.shown() for arm in self.arms]}
        if self.error:
            found["error"] = self.error
        if self.values:
            found["sides"] = list(self.values)
        return found


def parse_tree(expression: str) -> ExpressionNode:
    """Parse what the server deparsed.

    Raises:
        MissingExtraError: pglast is not installed.
        UnreadableError: the server is newer than pglast, and so is the expression.
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
