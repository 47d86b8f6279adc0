"""The arrows between modules, and the habits that keep each of them small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pglast
import pytest

from style.package import (
    PACKAGE,
    calls,
    code_lines,
    imports,
    modules,
    offered,
    source,
    sql_texts,
    swallowed,
    top,
)
from style.sources import ROOT, nodes

# What is no part of the daemon: commands, installation, the server of `rowcast dev`, clients.
# A module that nobody has named yet belongs to the daemon, and has to find its part there.
COMMANDS = {
    "__main__",
    "cli",
    "client_commands",
    "command_database",
    "commands",
    "dev",
    "devdatabase",
    "devstate",
    "doctor",
    "policy",
    "tokens",
    "workers",
}
INSTALLATION = {"migrate", "release", "resources", "runner", "script"}
EMBEDDED = {"binaries", "datadir", "embedded", "keeper"}
CLIENTS = {"client"}
BESIDE = COMMANDS | INSTALLATION | EMBEDDED | CLIENTS

# Modules that may hold SQL text. Those of the daemon only call functions; the others install, or
# ask for one row that a person at the command line wants to see.
SQL_MODULES = {
    "command_database",
    "database",
    "administration",
    "migrate",
    "policy.changes",
    "policy.database",
    "runner",
    "script",
}

# Loaded by pytest, so pytest is there.
PLUGINS = {"policy.pytest_plugin": {"pytest"}}

# No socket, no query, no clock but what they are given: bytes in, commands out.
PURE = re.compile(r"wire(\..+)?|hub|session|room|message|caller|errors|pattern|allowance")
IO = {"aiohttp", "asyncio", "asyncpg", "psycopg", "select", "socket", "ssl", "subprocess"}
EDGES = {
    "access",
    "bridge",
    "database",
    "doorbell",
    "feed",
    "http",
    "identity",
    "migrate",
    "recheck",
    "service",
    "subscribing",
}

# Parts with a life of their own; whoever constructs one decides how it ends.
PARTS = {
    "Access",
    "Attendance",
    "Audience",
    "Broadcasts",
    "Census",
    "Database",
    "Doorbell",
    "Feed",
    "Guard",
    "Handlers",
    "Handles",
    "Hub",
    "Identities",
    "Node",
    "Outbox",
    "PhoenixDoor",
    "Presence",
    "Rechecks",
    "Rest",
    "Administration",
    "Sender",
    "Service",
    "SocketIODoor",
    "Sockets",
    "Subscribing",
    "Tracking",
    "Verifier",
}

# What each part of the daemon may have, by its modules. One number for all would tell nobody which
# part has grown, and let one door live on what another saved.
LINES_OF_PARTS = {
    r"__init__|bridge|census|http(\.app|\.sockets)?|listening|node|unreachable": 817,
    r"database|doorbell|feed": 639,
    r"hub|session|wire(\.(base|events|frames|native|operations|salvage))?": 737,
    r"access|batch|handles|identity|recheck|service|subscribing": 1040,
    r"attendance|audience|presence|room|tracking": 638,
    r"egress|outbox|signing": 436,
    r"administration|http\.(handlers|openapi|problems|rest|routes)|sqlstates": 1031,
    r"http\.(broadcast|phoenix)|wire\.phoenix\w*": 711,
    r"http\.(engineio|socketio)|wire\.(engineio|socketio\w*)": 789,
    r"allowance|auth|caller|config|cursor|errors|message|observe|pattern": 700,
}
LINES_OF_FILE = 350


def daemon() -> list[str]:
    return [name for name in modules() if top(name) not in BESIDE]


@pytest.mark.parametrize("name", [name for name in modules() if PURE.fullmatch(name)])
def test_the_core_does_no_input_and_no_output(name: str) -> None:
    found = {top(imported) for imported, _ in imports(name)}
    assert not found & (IO | EDGES)


def test_loading_the_core_loads_no_driver_and_no_server() -> None:
    """Also not by way of a module in between."""
    program = "import sys, rowcast.hub; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    environment = {"PYTHONPATH": str(PACKAGE.parent)}
    loaded = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"aiohttp", "asyncpg", "psycopg"} & set(loaded)


def test_sql_stands_only_where_it_may() -> None:
    found = [
        f"{name}:{line}: {text[:60]!r}"
        for name, tree in modules().items()
        for line, text in sql_texts(tree)
        if name not in SQL_MODULES
    ]
    assert not found, "\n".join(found)


def test_modules_that_may_hold_sql_do() -> None:
    assert {name for name in SQL_MODULES if list(sql_texts(modules()[name]))} == SQL_MODULES


def test_the_daemon_only_calls_functions() -> None:
    """No statement of its own: what is decided about rows is decided in sql/."""
    texts = [
        text
        for name in SQL_MODULES & set(daemon()) - INSTALLATION
        for _, text in sql_texts(modules()[name])
    ]
    assert len(texts) > 20
    for text in texts:
        tree = pglast.parse_sql(text)
        for node in nodes(tree):
            assert not isinstance(node, pglast.ast.RangeVar), text
            if isinstance(node, pglast.ast.FuncCall):
                assert node.funcname[0].sval in ("rowcast", "set_config"), text


def test_only_the_bridge_constructs_parts() -> None:
    found = [
        f"{name}:{call.lineno}: {called}(…)"
        for name in daemon()
        for called, call in calls(modules()[name])
        if called in PARTS and name != "bridge"
    ]
    assert not found, "\n".join(found)


def test_the_bridge_constructs_every_part() -> None:
    """A part that it does not know would be a name in this file only."""
    assert {called for called, _ in calls(modules()["bridge"])} >= PARTS


def test_the_daemon_knows_neither_commands_nor_the_embedded_server() -> None:
    for name in daemon():
        ours = {top(imported) for imported, own in imports(name) if own}
        assert not ours & (COMMANDS | EMBEDDED | CLIENTS | {"migrate", "runner"}), name


def test_clients_need_nothing_of_the_daemon() -> None:
    for name in (name for name in modules() if top(name) in CLIENTS):
        ours = {top(imported) for imported, own in imports(name) if own}
        assert ours <= CLIENTS | {"errors", "message", "wire"}, name


def test_what_is_imported_is_declared() -> None:
    """Something installed by chance would be missing on the user's machine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        found = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
        return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match}

    always = names(project["dependencies"])
    sometimes = always | names(extras["policy"]) | names(extras["dev"])
    distributions = packages_distributions()
    for name in modules():
        for imported, own in imports(name):
            if top(imported) in PLUGINS.get(name, ()):
                continue
            if own or top(imported) in sys.stdlib_module_names or top(imported) == "rowcast":
                continue
            owners = {d.lower().replace("_", "-") for d in distributions.get(top(imported), [])}
            declared = always if name in daemon() else sometimes
            assert owners & declared, f"{name} imports {imported}"


@pytest.mark.parametrize("part", LINES_OF_PARTS)
def test_the_daemon_stays_thin(part: str) -> None:
    names = [name for name in daemon() if re.fullmatch(part, name)]
    counted = {name: code_lines(source(name).read_text()) for name in names}
    assert 0 < sum(counted.values()) <= LINES_OF_PARTS[part], counted


def test_each_module_of_the_daemon_counts_once() -> None:
    parts = {name: [p for p in LINES_OF_PARTS if re.fullmatch(p, name)] for name in daemon()}
    assert all(len(found) == 1 for found in parts.values()), parts


@pytest.mark.parametrize("name", list(modules()))
def test_a_module_is_one_subject(name: str) -> None:
    assert code_lines(source(name).read_text()) <= LINES_OF_FILE


@pytest.mark.parametrize("name", list(modules()))
def test_a_module_says_what_it_is_and_what_it_offers(name: str) -> None:
    tree = modules()[name]
    docstring = ast.get_docstring(tree) or ""
    assert docstring.split("\n\n")[0].endswith((".", ":")), "begin with a sentence"
    if name == "__main__":
        return
    bare = source(name).name == "__init__.py" and len(tree.body) <= 2
    assert bare or offered(tree) is not None, "__all__ is missing"


@pytest.mark.parametrize("name", list(modules()))
def test_what_a_module_offers_is_explained(name: str) -> None:
    """Classes and functions in ``__all__`` have docstrings that are sentences."""
    tree = modules()[name]
    names = offered(tree) or set()
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in tree.body:
        if isinstance(node, kinds) and node.name in names:
            text = (ast.get_docstring(node) or "").split("\n\n")[0]
            assert text.endswith((".", ":", ";", "?")), f"{node.name}: explain it in a sentence"


def test_only_commands_print() -> None:
    """Only a person at a terminal is spoken to; the daemon observes."""
    found = [
        f"{name}:{call.lineno}"
        for name, tree in modules().items()
        for called, call in calls(tree)
        if called == "print" and top(name) not in COMMANDS
    ]
    assert not found


def test_nothing_is_swallowed() -> None:
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
def test_sentences_are_not_taken_for_sql(text: str) -> None:
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


def test_lines_of_code_are_counted_without_prose() -> None:
    assert (
        code_lines('"""Prose."""\n\n# More.\ndef f():\n    """Prose\n\n    more."""\n    g()\n')
        == 2
    )
