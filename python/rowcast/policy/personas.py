"""Personas: named callers, each a role with the claims of a token."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rowcast.errors import UsageError

__all__ = [
    "DEFAULT_FILE",
    "Persona",
    "channels_of",
    "from_claims",
    "personas_of",
    "read_personas",
    "read_toml",
]

DEFAULT_FILE = Path("policies/personas.toml")


@dataclass(frozen=True, slots=True)
class Persona:
    """A caller with a readable name, a role, and the claims of its token."""

    name: str
    role: str
    claims: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The claims as bridges pass them to the database: JSON text that includes the role."""
        return json.dumps({**self.claims, "role": self.role}, default=str)

    def __str__(self) -> str:
        return self.name if self.name == self.role else f"{self.name} ({self.role})"


def from_claims(claims: Mapping[str, Any], role: str | None, name: str = "") -> Persona:
    """Create a persona from claims; the role is the given one, or that of the claims.

    Without either it is `authenticated` if there is a `sub`, and otherwise `anon`.

    Raises:
        UsageError: the role is not a string.
    """
    chosen = role or claims.get("role") or ("authenticated" if claims.get("sub") else "anon")
    if not isinstance(chosen, str):
        raise UsageError(f"The role {chosen!r} is not a name.")
    return Persona(name or str(claims.get("sub") or chosen), chosen, dict(claims))


def read_personas(path: Path) -> dict[str, Persona]:
    """Read the personas of a file.

    Raises:
        UsageError: the file cannot be read, or has mistakes.
    """
    return personas_of(read_toml(path), path)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UsageError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as problem:
        raise UsageError(f"{path} cannot be read: {problem.strerror}.") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise UsageError(f"{path} is not TOML: {problem}.") from problem


def channels_of(document: Mapping[str, Any], path: Path) -> list[Any]:
    """Return the list `channels` of a document, empty if it is missing.

    Raises:
        UsageError: it is not a list.
    """
    channels = document.get("channels", [])
    if not isinstance(channels, list):
        raise UsageError(f'{path}: channels is a list, like channels = ["chat:room1"].')
    return channels


def personas_of(document: Mapping[str, Any], path: Path) -> dict[str, Persona]:
    """Return the `[personas.NAME]` tables of a document, and `anon`, which always exists.

    Raises:
        UsageError: one of them has mistakes.
    """
    found = {"anon": Persona("anon", "anon", {})}
    tables = document.get("personas", {})
    if not isinstance(tables, dict):
        raise UsageError(f"{path}: write personas as [personas.alice].")
    for name, table in tables.items():
        if not isinstance(table, dict) or table.keys() - {"role", "claims"}:
            raise UsageError(f"{path}: persona {name} may only have a role and claims.")
        claims = table.get("claims", {})
        if not isinstance(claims, dict):
            raise UsageError(f'{path}: claims of {name} are a table, like {{ sub = "alice" }}.')
        found[name] = from_claims(claims, table.get("role"), name)
    return found
