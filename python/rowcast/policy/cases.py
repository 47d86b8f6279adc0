"""Cases of a policy, as a team writes them beside it: who can do what, and who cannot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rowcast.errors import UsageError

from .database import Question
from .personas import Persona, channels_of, personas_of, read_toml

__all__ = ["Case", "CaseFile", "find", "read"]

KEYS = {
    "personas", "setup", "setup_file", "fixtures", "fixtures_file", "policies", "channels", "case",
}  # fmt: skip
CASE_KEYS = {"as", "can", "cannot", "to", "event", "payload", "type", "because"}
CHANNEL_KEYS = {
    "pattern", "description", "enabled", "is_public", "owner_id", "wildcard", "options",
}  # fmt: skip
ACTIONS = ("subscribe", "publish")


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the specification.

    Args:
        persona: who.
        expected: whether he can.
        question: what is asked for him.
        because: the class of the reason of a refusal, or a word of its text.
    """

    persona: Persona
    expected: bool
    question: Question
    because: str = ""

    def __str__(self) -> str:
        q = self.question
        what = "" if q.action == "subscribe" else f" {q.event}"
        kind = "" if q.type == "message" else f" ({q.type})"
        can = "can" if self.expected else "cannot"
        return f"{self.persona.name} {can} {q.action} {q.channel}{what}{kind}"


@dataclass(frozen=True, slots=True)
class CaseFile:
    """A file of cases, and what has to be there for them.

    Args:
        path: of the file.
        policies: files of SQL, which replace the policies of the two tables for the length of the
            test; none tests those that the database has.
        setup: SQL that runs first: tables that the policies need.
        channels: rows of realtime_channels.
        fixtures: SQL that runs last: rows that the cases need.
        cases: what is asked.
    """

    path: Path
    policies: tuple[Path, ...]
    setup: str
    channels: tuple[Mapping[str, Any], ...]
    fixtures: str
    cases: tuple[Case, ...]


def find(paths: Sequence[Path]) -> list[Path]:
    """Return the case files among `paths`; of a directory all ``*.test.toml``.

    Raises:
        UsageError: there is none.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(path.glob("*.test.toml"))
        else:
            found.append(path)
    if not found:
        raise UsageError(
            f"There are no cases in {', '.join(map(str, paths))}: write [[case]] tables into "
            "chat.test.toml beside chat.sql."
        )
    return found


def read(path: Path) -> CaseFile:
    """Read a file of cases; personas of a ``personas.toml`` beside it are known, too.

    Raises:
        UsageError: it cannot be read, or is not what it should be.
    """
    document = read_toml(path)
    if unknown := document.keys() - KEYS:
        raise UsageError(f"{path}: there is no key {', '.join(sorted(unknown))}.")
    shared = path.with_name("personas.toml")
    personas = personas_of(read_toml(shared), shared) if shared.exists() else {}
    personas |= personas_of(document, path)
    tables = document.get("case", [])
    if not isinstance(tables, list) or not tables:
        raise UsageError(f"{path}: write at least one [[case]].")
    return CaseFile(
        path,
        _policies(document, path),
        _sql(document, "setup", path),
        tuple(_channel(given, path) for given in channels_of(document, path)),
        _sql(document, "fixtures", path),
        tuple(_case(table, personas, f"{path}, case {n}") for n, table in enumerate(tables, 1)),
    )


def _policies(document: Mapping[str, Any], path: Path) -> tuple[Path, ...]:
    own = path.with_name(path.name.removesuffix(".toml").removesuffix(".test") + ".sql")
    given = document.get("policies", [own.name] if own.exists() else None)
    if not isinstance(given, list):
        raise UsageError(
            f'{path}: name the files of the policies: policies = ["chat.sql"]; an empty list '
            "tests those of the database."
        )
    files = tuple(path.parent / str(name) for name in given)
    for file in files:
        if not file.is_file():
            raise UsageError(f"{path}: there is no file {file}.")
    return files


def _sql(document: Mapping[str, Any], key: str, path: Path) -> str:
    text = document.get(key, "")
    if not isinstance(text, str):
        raise UsageError(f"{path}: {key} is SQL as text.")
    if file := document.get(f"{key}_file"):
        try:
            return (path.parent / str(file)).read_text() + "\n" + text
        except OSError as problem:
            raise UsageError(f"{path}: {file} cannot be read: {problem.strerror}.") from problem
    return text


def _channel(given: Any, path: Path) -> Mapping[str, Any]:
    columns = {"pattern": given} if isinstance(given, str) else given
    if not isinstance(columns, dict) or "pattern" not in columns or columns.keys() - CHANNEL_KEYS:
        raise UsageError(
            f"{path}: a channel is a pattern, or a table with some of "
            f"{', '.join(sorted(CHANNEL_KEYS))}."
        )
    if "options" in columns:
        columns = {**columns, "options": json.dumps(columns["options"])}
    return columns


def _case(table: Any, personas: Mapping[str, Persona], where: str) -> Case:
    if not isinstance(table, dict) or table.keys() - CASE_KEYS:
        raise UsageError(f"{where}: the keys are {', '.join(sorted(CASE_KEYS))}.")
    if ("can" in table) == ("cannot" in table):
        raise UsageError(f'{where}: write either can = "subscribe" or cannot = "subscribe".')
    action = table.get("can", table.get("cannot"))
    if action not in ACTIONS:
        raise UsageError(f"{where}: {action!r} is neither subscribe nor publish.")
    if table.get("as") not in personas:
        raise UsageError(f"{where}: {table.get('as')!r} is none of {', '.join(personas)}.")
    if not isinstance(table.get("to"), str):
        raise UsageError(f'{where}: name a channel: to = "chat:room1".')
    if action == "subscribe" and table.keys() & {"event", "payload", "type"}:
        raise UsageError(f"{where}: a subscribe has no event, payload or type.")
    if "can" in table and "because" in table:
        raise UsageError(f"{where}: because is the reason of a refusal.")
    persona = personas[table["as"]]
    question = Question(
        action,
        persona.role,
        persona.text,
        table["to"],
        str(table.get("event", "message")),
        _payload(table.get("payload", {}), where),
        str(table.get("type", "message")),
    )
    return Case(persona, "can" in table, question, str(table.get("because", "")))


def _payload(given: Any, where: str) -> str:
    """A table is the payload; a text is its JSON, for what TOML cannot say."""
    if not isinstance(given, str):
        return json.dumps(given, default=str)
    try:
        json.loads(given)
    except json.JSONDecodeError as problem:
        raise UsageError(f"{where}: payload as text is JSON: {problem}.") from problem
    return given
