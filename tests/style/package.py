"""Reads the Python package for the gates: modules, imports, calls, SQL texts."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import pglast

from style.sources import ROOT

__all__ = [
    "CLIENT",
    "PACKAGE",
    "calls",
    "imports",
    "modules",
    "offered",
    "source",
    "sql_texts",
    "swallowed",
    "top",
    "written_elsewhere",
]

PACKAGE = ROOT / "python" / "rowcast"
# methods that change a list
CHANGING = {"append", "clear", "extend", "insert", "pop", "remove"}
CLIENT = ROOT / "python" / "rowcast_client"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def modules() -> dict[str, ast.Module]:
    """Name → tree: names within `rowcast`, and those of the client with `rowcast_client` before."""
    found = {}
    for package, prefix in ((PACKAGE, ()), (CLIENT, (CLIENT.name,))):
        for path in sorted(package.rglob("*.py")):
            parts = (*prefix, *path.relative_to(package).with_suffix("").parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"
            found[name] = ast.parse(path.read_text(), str(path))
    return found


def source(name: str) -> Path:
    if name == "__init__":
        folder = PACKAGE
    elif top(name) == CLIENT.name:
        folder = CLIENT.parent / name.replace(".", "/")
    else:
        folder = PACKAGE / name.replace(".", "/")
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def top(name: str) -> str:
    return name.partition(".")[0]


def imports(name: str) -> Iterator[tuple[str, bool]]:
    """Yield what a module imports as (name, ours); ours are relative, named within the package."""
    package = name if source(name).name == "__init__.py" else name.rpartition(".")[0]
    package = "" if package == "__init__" else package
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or "", False
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            prefix = [part for part in [*base, node.module] if part]
            if node.module:
                yield ".".join(prefix), True
            else:
                yield from ((".".join([*prefix, alias.name]), True) for alias in node.names)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            yield name, node


def sql_texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the strings that PostgreSQL parses; docstrings are left out."""
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, DOCUMENTED) and node.body and isinstance(node.body[0], ast.Expr)
    }
    inside = {id(part) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for part in n.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "x" for p in node.values)
            text = "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in prose or id(node) in inside:
                continue
            text = node.value
        else:
            continue
        if is_sql(text):
            yield node.lineno, text


def is_sql(text: str) -> bool:
    if len(text.split()) < 2:
        return False
    for filling in ("x", "'x'", "1"):  # a placeholder may stand for a name, a text or a number
        filled = re.sub(r"\{[^{}]*\}|%s|%\(\w+\)s", filling, text)
        with contextlib.suppress(pglast.parser.ParseError):
            return bool(pglast.parse_sql(filled))
    return False


def offered(tree: ast.Module) -> set[str] | None:
    """The names in ``__all__``; None when there is none."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if ast.unparse(target) == "__all__":
                return set(ast.literal_eval(node.value))
    return None


def swallowed(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that catch every exception and do nothing with it."""
    everything = {"Exception", "BaseException"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = (
                {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
                if node.type
                else everything
            )
            if caught & everything and all(
                isinstance(s, ast.Pass | ast.Continue | ast.Break)
                or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
                for s in node.body
            ):
                yield node.lineno
    for called, call in calls(tree):
        if called == "suppress" and any(
            isinstance(a, ast.Name) and a.id in everything for a in call.args
        ):
            yield call.lineno


def written_elsewhere(tree: ast.AST, fields: Collection[str]) -> Iterator[tuple[int, str]]:
    """Where attributes of these names are written, of another object than ``self``.

    Written is what is assigned or deleted, and what one of a list's methods changes.
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not is_foreign(node, fields):
            continue
        if isinstance(node.ctx, ast.Store | ast.Del):
            yield node.lineno, node.attr
    for called, call in calls(tree):
        if called in ("setattr", "__setattr__"):
            named = {a.value for a in call.args if isinstance(a, ast.Constant)}
            yield from ((call.lineno, str(name)) for name in named & set(fields))
        elif called in CHANGING and isinstance(call.func, ast.Attribute):
            changed = call.func.value
            if isinstance(changed, ast.Attribute) and is_foreign(changed, fields):
                yield call.lineno, changed.attr


def is_foreign(node: ast.Attribute, fields: Collection[str]) -> bool:
    own = isinstance(node.value, ast.Name) and node.value.id == "self"
    return node.attr in fields and not own
