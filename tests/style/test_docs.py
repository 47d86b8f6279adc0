"""The documents agree with the code: every setting, code, route and command is described once."""

from __future__ import annotations

import ast
import dataclasses
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

import rowcast
from rowcast.bridge.rest.routes import ROUTES
from rowcast.config import Settings, variable
from rowcast.errors import CATALOGUE, CLOSE
from rowcast.observe import EVENTS
from style.package import PACKAGE, calls, modules
from style.sources import ROOT, sql_files, tracked_files

FOLDERS = sorted(
    {path.relative_to(ROOT).parts[0] for path in tracked_files() if path.parent != ROOT} - {".ci"}
)

# Prefix of the variables that only tests read; tests/README.md describes them.
OF_TESTS = "ROWCAST_TEST"


@cache
def read(document: str) -> str:
    return (ROOT / document).read_text()


@cache
def documents() -> dict[Path, str]:
    return {path: path.read_text() for path in tracked_files() if path.suffix == ".md"}


def table(document: str, heading: str) -> list[list[str]]:
    """Return the rows of the first table after a heading, without the table's head."""
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", read(document), re.M | re.S)
    assert section, f"{document} has no section {heading!r}"
    rows = [line for line in section[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def shown(value: Any) -> str:
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    return f"`{text}`" if text else ""


def test_the_table_of_settings_is_that_of_the_code() -> None:
    assert table("python/docs/settings.md", "Settings") == [
        [f"`{variable(field.name)}`", shown(field.default), field.metadata["about"]]
        for field in dataclasses.fields(Settings)
        if field.metadata["public"]
    ]


def test_the_table_of_error_codes_is_that_of_the_code() -> None:
    assert table("python/docs/protocol.md", "Error codes") == [
        [f"`{code}`", str(entry.status), "yes" if entry.retry else "no", entry.text]
        for code, entry in CATALOGUE.items()
    ]


def test_the_table_of_close_codes_is_that_of_the_code() -> None:
    assert table("python/docs/protocol.md", "Close codes") == [
        [str(code), f"`{name}`: {reason}"] for name, (code, reason) in CLOSE.items()
    ]


def test_the_table_of_events_is_that_of_the_code() -> None:
    assert table("python/docs/operations.md", "Events") == [
        [f"`{event}`", logging.getLevelName(level).lower(), text]
        for event, (level, text) in EVENTS.items()
    ]


def test_the_table_of_routes_is_that_of_the_code() -> None:
    assert table("python/docs/rest.md", "REST") == [
        [
            f"`{r.method} {r.path}`",
            "administrators" if r.admin else "callers, administrators",
            r.about,
        ]
        for r in ROUTES
    ]


def test_every_refusal_has_a_code_of_the_catalogue() -> None:
    """And the code can return every code of the catalogue."""
    codes = {
        node.value
        for name, tree in modules().items()
        if name != "errors"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert CATALOGUE.keys() <= codes | {"unsupported"}
    for name, tree in modules().items():
        for called, call in calls(tree):
            if called == "Refusal" and isinstance(call.args[0], ast.Constant):
                assert call.args[0].value in CATALOGUE, f"{name}:{call.lineno}"


def test_every_observation_is_an_event_of_the_table() -> None:
    observed = {
        str(call.args[0].value)
        for tree in modules().values()
        for called, call in calls(tree)
        if called == "observe" and isinstance(call.args[0], ast.Constant)
    }
    assert observed == EVENTS.keys()


def variables(text: str) -> set[str]:
    return {
        name
        for name in re.findall(r"\bROWCAST_[A-Z]+(?:_[A-Z]+)*\b(?!_)", text)
        if not name.startswith(OF_TESTS)
    }


def test_documented_variables_are_those_that_are_read() -> None:
    fields = dataclasses.fields(Settings)
    internal = {variable(field.name) for field in fields if not field.metadata["public"]}
    settings = {variable(field.name) for field in fields}
    code = settings | variables("\n".join(path.read_text() for path in PACKAGE.rglob("*.py")))
    tests = variables("\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py")))
    described = variables("\n".join(documents().values()))
    assert code - internal - described == set(), "described nowhere"
    assert described - code - tests == set(), "read nowhere"


@cache
def help_of(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "rowcast", *command, "--help"],
        env={"PYTHONPATH": str(PACKAGE.parent), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def commands() -> Iterator[str]:
    listed = help_of().partition("COMMAND\n")[2].partition("\n\n")[0]
    for line in listed.splitlines():
        if match := re.match(r" {4}(\w+)(?: |$)", line):
            yield match[1]


def test_every_command_is_documented_with_an_example() -> None:
    found = list(commands())
    assert len(found) > 8
    prose = read("README.md") + read("python/docs/operations.md")
    for command in found:
        assert re.search(rf"\browcast {command}\b", prose), command
        text = help_of(command)
        assert re.search(rf"^ +(\w+=\S+ )*rowcast {command}\b", text, re.M), f"{command}: example"


def test_every_option_is_explained() -> None:
    for command in commands():
        explained = help_of(command).partition("options:")[2]
        for option in re.findall(r"^  (?:-\w, )?--[\w-]+.*(?:\n {10,}\S.*)*", explained, re.M):
            assert re.search(r"(  +|\n +)[a-zA-Z`].*\w", option), f"{command}: {option}"


def test_every_function_granted_to_callers_is_documented(tx: psycopg.Connection[Any]) -> None:
    rows = tx.execute(
        """
        select distinct n.nspname || '.' || p.proname
        from pg_catalog.pg_proc as p join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
        where n.nspname in ('rowcast', 'realtime', 'auth') and exists (
            select from unnest('{authenticated,anon,rowcast_publisher}'::name[]) as r (role)
            where has_function_privilege(r.role, p.oid, 'execute')
        )
        """
    ).fetchall()
    assert len(rows) > 20
    text = read("sql/README.md")
    assert [name for (name,) in rows if f"{name}(" not in text] == []


def test_documented_sqlstates_are_those_that_are_raised() -> None:
    raised = set(re.findall(r"\bRC[A-Z]\d\d\b", "".join(p.read_text() for p in sql_files("sql"))))
    assert set(re.findall(r"\bRC[A-Z]\d\d\b", read("sql/README.md"))) == raised


def test_every_setting_in_the_database_is_documented(tx: psycopg.Connection[Any]) -> None:
    columns = tx.execute(
        "select attname::text from pg_catalog.pg_attribute"
        " where attrelid = 'rowcast.settings'::regclass and attnum > 0 and not attisdropped"
        " and attname not in ('one', 'shapes')"
    ).fetchall()
    text = read("sql/README.md") + read("README.md")
    assert [name for (name,) in columns if f"`{name}`" not in text] == []


def test_every_recipe_is_documented() -> None:
    text = read("policies/README.md")
    assert [path.name for path in sql_files("policies") if path.name not in text] == []


def test_every_sql_file_is_in_the_map_of_its_folder() -> None:
    text = read("sql/README.md")
    assert [path.name for path in sql_files("sql") if path.name not in text] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_has_a_chapter_that_the_first_page_links(folder: str) -> None:
    assert (ROOT / folder / "README.md").is_file()
    assert f"({folder}/README.md)" in read("README.md")


def test_every_link_between_documents_leads_somewhere() -> None:
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path, text in documents().items()
        for target in re.findall(r"\]\(([^)#\s]+)", re.sub(r"```.*?```", "", text, flags=re.S))
        if "://" not in target and not (path.parent / target).exists()
    ]
    assert not broken


def test_the_changelog_begins_with_this_version_or_the_next() -> None:
    newest = re.search(r"^## \[?([\w.]+)", read("CHANGELOG.md"), re.M)
    assert newest is not None
    assert newest[1] in (rowcast.__version__, "Unreleased")


def test_the_first_page_gives_the_command_that_runs_the_tests() -> None:
    assert re.search(
        r"pip install .*-e python/rowcast_client -e '\.\[test\]' && .*python -m pytest",
        read("README.md"),
    )


def names_in(module: Path) -> set[str]:
    """Return the functions and `Class.method` names that a module defines."""
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    found = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, functions):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, functions)}
    return found


def test_the_walks_of_the_architecture_name_code_that_exists() -> None:
    page = read("python/docs/ARCHITECTURE.md")
    walked = re.findall(r"([\w/]+\.py): (\w+(?:\.\w+)?(?:, \w+\.\w+)*)", page)
    assert len(walked) > 30
    bridge = PACKAGE / "bridge"
    gone = [
        f"{file}: {name}"
        for file, names in walked
        for name in names.split(", ")
        if name not in names_in(bridge / file)
    ]
    assert gone == []
