"""Finds the SQL files that ship with the package.

A wheel has the folders inside the package; a checkout, an unpacked sdist and an editable
installation have them beside ``python/``.
"""

from __future__ import annotations

from pathlib import Path

from .errors import RowcastError

__all__ = ["migration_files", "policy_files", "sql_files", "style_config"]


def sql_files() -> tuple[Path, ...]:
    """Return functions, triggers, views and grants, in the order in which they are applied."""
    return _files("sql")


def migration_files() -> tuple[Path, ...]:
    """Return the numbered migrations, each applied once, in order."""
    return _files("migrations")


def policy_files() -> tuple[Path, ...]:
    """Return the policy recipes; `Path.stem` is the name of a recipe.

    The test cases of a recipe are beside it, in a file with the suffix ``.test.toml``.
    """
    return _files("policies")


def style_config() -> Path:
    """Return the sqlfluff configuration for policy files."""
    return policy_files()[0].parent / ".sqlfluff"


def _files(folder: str) -> tuple[Path, ...]:
    package = Path(__file__).resolve().parent
    for base in (package / "_sql", package.parents[1]):
        found = sorted((base / folder).glob("*.sql"))
        if found:
            return tuple(found)
    raise RowcastError(
        f"The {folder}/ files of rowcast are missing beside {package}: install rowcast again."
    )
