"""Rules of the Python package: what may do I/O, hold SQL, construct, print, or catch everything.

Which folder may import which is checked by import-linter; its layers are in pyproject.toml.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pglast
import pytest

import rowcast
import rowcast_client
from rowcast.bridge.subscription import Subscription
from style.package import (
    CLIENT,
    PACKAGE,
    calls,
    imports,
    modules,
    offered,
    source,
    sql_texts,
    swallowed,
    top,
    written_elsewhere,
)
from style.sources import ROOT, nodes

# Modules that may hold SQL text. Those of the daemon only call functions; the others install, or
# query one row to show at the command line.
SQL_MODULES = {
    "bridge.database",
    "bridge.rest.calls",
    "cli.queries",
    "dev.database",
    "install.migrate",
    "install.runner",
    "install.script",
    "policy.database",
    "policy.diff",
    "postgres.connect",
}

# imported by pytest itself, so pytest is installed
PLUGINS = {"policy.pytest_plugin": {"pytest"}}

# Modules without sockets, queries or clocks of their own: bytes in, commands out.
PURE = re.compile(
    r"errors|bridge\.(cursor|facts|hub|model|names|rate_limit|session|subscription"
    r"|presence\.roster|wire\..+"
    r"|phoenix\.(codec|frames)|socketio\.(codec|packets))"
)
IO = {"aiohttp", "asyncio", "asyncpg", "psycopg", "select", "socket", "ssl", "subprocess"}

# packages that write to a terminal
SPEAK = {"__main__", "cli", "dev", "policy"}

# The composition root: the parts it constructs are constructed nowhere else.
ROOT_MODULE = "bridge.app"
VALUES = {"asyncio", "collections.abc", "rowcast.errors", "typing", "wire.protocol"}


def daemon() -> list[str]:
    return [name for name in modules() if top(name) == "bridge"]


@pytest.mark.parametrize("name", [name for name in modules() if PURE.fullmatch(name)])
def test_pure_modules_do_no_io(name: str) -> None:
    found = {top(imported) for imported, _ in imports(name)}
    assert not found & IO


def test_importing_the_hub_imports_no_driver_and_no_server() -> None:
    """Nor indirectly, through an imported module."""
    program = "import sys, rowcast.bridge.hub; print(*{m.partition('.')[0] for m in sys.modules})"
    environment = {"PYTHONPATH": str(PACKAGE.parent)}
    loaded = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"aiohttp", "asyncpg", "psycopg"} & set(loaded)


def test_sql_text_is_only_in_the_listed_modules() -> None:
    found = [
        f"{name}:{line}: {text[:60]!r}"
        for name, tree in modules().items()
        for line, text in sql_texts(tree)
        if name not in SQL_MODULES
    ]
    assert not found, "\n".join(found)


def test_the_listed_modules_hold_sql_text() -> None:
    assert {name for name in SQL_MODULES if list(sql_texts(modules()[name]))} == SQL_MODULES


def test_the_daemon_only_calls_functions() -> None:
    """Decisions about rows belong to sql/, so the daemon has no statement of its own."""
    texts = [text for name in SQL_MODULES & set(daemon()) for _, text in sql_texts(modules()[name])]
    assert len(texts) > 20
    for text in texts:
        tree = pglast.parse_sql(text)
        for node in nodes(tree):
            assert not isinstance(node, pglast.ast.RangeVar), text
            if isinstance(node, pglast.ast.FuncCall):
                assert node.funcname[0].sval in ("rowcast", "set_config"), text


def test_only_the_composition_root_constructs_parts() -> None:
    """The classes that `bridge/app.py` constructs, except values, are constructed nowhere else."""
    root = modules()[ROOT_MODULE]
    imported = {
        alias.name
        for node in ast.walk(root)
        if isinstance(node, ast.ImportFrom) and (node.module or "") not in VALUES
        for alias in node.names
    }
    parts = {name for name, _ in calls(root) if name in imported and name[0].isupper()}
    assert len(parts) > 15
    found = [
        f"{name}:{call.lineno}: {called}(…)"
        for name in daemon()
        for called, call in calls(modules()[name])
        if called in parts and name != ROOT_MODULE
    ]
    assert not found, "\n".join(found)


def test_only_its_own_module_writes_a_subscription() -> None:
    """Its state machine can be read in one file only if nothing else moves it.

    A module that has a subscription imports the type of it, or of what holds it: mypy is strict.
    """
    holders = re.compile(r"(rowcast\.)?bridge\.(hub|session|subscription)")
    handling = [
        name
        for name in daemon()
        if any(holders.fullmatch(imported) for imported, _ in imports(name))
        and name != "bridge.subscription"
    ]
    assert len(handling) > 8
    found = [
        f"{name}:{line}: {field}"
        for name in handling
        for line, field in written_elsewhere(modules()[name], Subscription.__slots__)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "subscription.state = State.LIVE",
        "s.publishing += 1",
        "before.held, before.held_bytes = [], 0",
        "del self._subscriptions[0].request",
        "for entry.stale in (True, False): pass",
        "setattr(subscription, 'state', State.LIVE)",
        "subscription.held.append(entry)",
    ],
)
def test_writing_a_subscription_is_recognised(text: str) -> None:
    assert list(written_elsewhere(ast.parse(text), Subscription.__slots__))


@pytest.mark.parametrize("text", ["self.state = 1", "state = s.state", "s.state.name", "s.end()"])
def test_reading_a_subscription_is_not_taken_for_writing(text: str) -> None:
    assert not list(written_elsewhere(ast.parse(text), Subscription.__slots__))


def test_imported_distributions_are_declared() -> None:
    """A package that is only installed by chance would be missing on the user's machine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    client = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        found = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
        return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match}

    always = names(project["dependencies"])
    sometimes = always | names(extras["policy"]) | names(extras["dev"])
    distributions = {**packages_distributions(), CLIENT.name: ["rowcast-client"]}
    for name in modules():
        for imported, own in imports(name):
            if top(imported) in PLUGINS.get(name, ()):
                continue
            if own or top(imported) in sys.stdlib_module_names or top(imported) == "rowcast":
                continue
            owners = {d.lower().replace("_", "-") for d in distributions.get(top(imported), [])}
            if top(name) == CLIENT.name:
                declared = names(client["dependencies"])
            else:
                declared = always if name in daemon() else sometimes
            assert owners & declared, f"{name} imports {imported}"


def test_all_packages_have_one_version() -> None:
    """Also the one on npm; `rowcast` depends on exactly its own version of the client."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    script = json.loads((PACKAGE / "web" / "package.json").read_text())
    assert rowcast_client.__version__ == rowcast.__version__ == script["version"]
    assert f"rowcast-client=={rowcast.__version__}" in project["dependencies"]


def test_the_former_name_of_the_client_still_works() -> None:
    former = importlib.import_module("rowcast.client")
    for name in set(rowcast_client.__all__) - {"__version__"}:
        assert getattr(former, name) is getattr(rowcast_client, name)


@pytest.mark.parametrize("name", list(modules()))
def test_a_module_has_a_docstring_and_lists_its_names(name: str) -> None:
    tree = modules()[name]
    assert ast.get_docstring(tree), "the module docstring is missing"
    if name == "__main__":
        return
    bare = source(name).name == "__init__.py" and len(tree.body) <= 2
    assert bare or offered(tree) is not None, "__all__ is missing"


def test_only_commands_print() -> None:
    """The daemon reports events instead, so that logs have one form."""
    found = [
        f"{name}:{call.lineno}"
        for name, tree in modules().items()
        for called, call in calls(tree)
        if called == "print" and top(name) not in SPEAK
    ]
    assert not found


def test_no_exception_is_swallowed() -> None:
    found = [f"{name}:{line}" for name, tree in modules().items() for line in swallowed(tree)]
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "select 1",
        "select * from rowcast.feed($1, $2)",
        "insert into t values (%s)",
        "listen rowcast",
        "alter role {} nologin",
    ],
)
def test_sql_is_recognised(text: str) -> None:
    assert list(sql_texts(ast.parse(repr(text) + ".strip()")))


@pytest.mark.parametrize("text", ["Set ROWCAST_PORT to a free one.", "select", "update the page"])
def test_prose_is_not_taken_for_sql(text: str) -> None:
    assert not list(sql_texts(ast.parse(repr(text) + ".strip()")))


@pytest.mark.parametrize(
    "text",
    [
        "try: f()\nexcept Exception: pass",
        "try: f()\nexcept: ...",
        "for x in y:\n try: f()\n except (OSError, BaseException): continue",
        "with contextlib.suppress(Exception): f()",
    ],
)
def test_swallowing_is_recognised(text: str) -> None:
    assert list(swallowed(ast.parse(text)))
