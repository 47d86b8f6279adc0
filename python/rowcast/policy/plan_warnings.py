"""Finds in a query plan what makes a policy expensive: missing indexes, calls for each row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from .optional import load_pglast, parse_expression

__all__ = ["warnings"]

# References of plans to sub-plans, which are not SQL.
SUBPLAN = re.compile(r"\((?:hashed )?(?:Sub|Init)Plan \d+\)(?:\.col\d+)?|\$\d+")
# What remains of inlined helpers, and the helpers that the author of the policy wrote.
HELPERS = {"current_setting": "auth.user_id() or the like"}


def warnings(plan: Any, rows_of: Callable[[str], int]) -> list[str]:
    """Return sentences about what makes an expression expensive.

    Args:
        plan: a plan of `rowcast.plan_policy`: a sequential scan in it has no index to replace it.
        rows_of: returns the estimated number of rows of a table, -1 if unknown.
    """
    found: list[str] = []
    for node in _nodes(plan[0]["Plan"]) if plan else ():
        condition = node.get("Filter")
        if node["Node Type"] != "Seq Scan" or not condition:
            continue
        table = f"{node['Schema']}.{node['Relation Name']}"
        columns, calls = _parts(condition, node["Alias"])
        rows = rows_of(table)
        size = f"about {rows} rows" if rows >= 0 else "never analysed"
        named = ", ".join(sorted(columns)) or condition
        found.append(f"no index of {table} serves {named}: each check reads the table ({size})")
        found += [
            f"{HELPERS.get(call, call + '()')} is evaluated for each row of {table}: "
            "write it as (select …)"
            for call in sorted(calls)
        ]
    return list(dict.fromkeys(found))


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for part in node.get("Plans", ()):
        yield from _nodes(part)


def _parts(condition: str, alias: str) -> tuple[set[str], set[str]]:
    """Return the columns of `alias` in a condition, and calls in it that use no column."""
    pglast = load_pglast()
    ast = pglast.ast
    try:
        tree = parse_expression(SUBPLAN.sub("null", condition))
    except pglast.parser.ParseError:
        return set(), set()
    columns: set[str] = set()
    calls: set[str] = set()

    def columns_in(node: Any) -> set[str]:
        inside: set[str] = set()
        if isinstance(node, ast.ColumnRef):
            path = [str(getattr(part, "sval", "*")) for part in node.fields]
            inside.add(path[-1])
            if path[0] == alias:
                columns.add(path[-1])
        if isinstance(node, ast.Node):
            for name in node:
                inside |= columns_in(getattr(node, name))
        elif isinstance(node, tuple | list):
            for part in node:
                inside |= columns_in(part)
        if isinstance(node, ast.FuncCall) and not inside:
            calls.add(".".join(part.sval for part in node.funcname))
        return inside

    columns_in(tree)
    # Only the innermost call names the helper: split_part(current_setting(…)) reads a setting.
    if "current_setting" in calls:
        calls = {"current_setting"} | {c for c in calls if "." in c}
    return columns, {c for c in calls if "." in c or c in HELPERS}
