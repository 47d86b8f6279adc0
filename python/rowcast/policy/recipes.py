"""Copies recipes with their cases into a team's folder.

Policies are renamed after the new file. Otherwise two copies of one recipe would drop each other's
policies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rowcast.errors import UsageError
from rowcast.files import policy_files

__all__ = ["Recipe", "recipes", "write"]

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
CREATE = re.compile(
    r'create policy (?P<name>"[^"]+"|\w+)\s+on (?:\w+\.)?(?P<table>\w+)'
    r"\s+(?:as \w+\s+)?for (?P<command>\w+)"
)
QUESTIONS = {
    ("realtime_channels", "select"): "subscribe",
    ("realtime_messages", "insert"): "publish",
    ("realtime_messages", "select"): "history",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A policy file that ships with rowcast, and its cases."""

    name: str
    sql: str
    cases: str

    @property
    def story(self) -> str:
        """The first sentence of the comment at the top of the file."""
        comment = " ".join(
            line.removeprefix("--").strip()
            for line in self.sql.partition("\n\n")[0].splitlines()
            if line.startswith("--")
        )
        return re.split(r"(?<=[^A-Z]\.) ", comment)[0]


def recipes() -> dict[str, Recipe]:
    """Return the recipes by name."""
    found = {}
    for path in policy_files():
        cases = path.with_suffix(".test.toml")
        found[path.stem] = Recipe(path.stem, path.read_text(), cases.read_text())
    return found


def write(name: str, template: str, folder: Path) -> tuple[Path, Path]:
    """Write ``NAME.sql`` and ``NAME.test.toml`` into a folder; return their paths.

    Raises:
        UsageError: the name is not valid, the recipe does not exist, or a file exists already.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a policy file: use lower-case letters, digits and _."
        )
    known = recipes()
    if template not in known:
        raise UsageError(f"Recipe {template} does not exist; use one of {', '.join(known)}.")
    files = folder / f"{name}.sql", folder / f"{name}.test.toml"
    for path in files:
        if path.exists():
            raise UsageError(f"{path} exists already: choose another name, or remove it.")
    sql, cases = _renamed(known[template], name)
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in zip(files, (sql, cases), strict=True):
        with path.open("x", encoding="utf-8") as new:
            new.write(text)
    return files


def _renamed(recipe: Recipe, name: str) -> tuple[str, str]:
    sql = recipe.sql
    for match in CREATE.finditer(recipe.sql):
        old, table, command = match["name"], match["table"], match["command"]
        new = f"{name}_{QUESTIONS.get((table, command), f'{table}_{command}')}"
        sql = re.sub(rf"(policy (?:if exists )?){re.escape(old)}(?=\s)", rf"\g<1>{new}", sql)
    return sql, recipe.cases.replace(f'"{recipe.name}.sql"', f'"{name}.sql"')
