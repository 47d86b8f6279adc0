"""Fixtures of all tests: one PostgreSQL server per run, one cloned database per test."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pytest_postgresql import factories
from pytest_postgresql.executors import NoopExecutor

from rowcast.dev import server as embedded
from support import pg

HOME = pytest.StashKey[Path]()
SERVER = pytest.StashKey[embedded.EmbeddedServer]()
FAILED = pytest.StashKey[bool]()

# Part of the template's name: parallel workers inherit it, and runs on one server do not collide.
RUN = os.environ.setdefault("ROWCAST_TEST_RUN", secrets.token_hex(3))


def pytest_configure(config: pytest.Config) -> None:
    """Start the server before the parallel workers, so that they share it.

    Without workers the first test that needs it starts it, because many tests need none. A shell
    starts background jobs with SIGINT ignored, and child processes inherit that, so it is
    restored.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        ensure_server(config)


def ensure_server(config: pytest.Config) -> None:
    """Start a server unless ``ROWCAST_TEST_DSN`` names one."""
    if os.environ.get("ROWCAST_TEST_DSN"):
        return
    home = config.stash[HOME] = Path(tempfile.mkdtemp(prefix="rowcast-tests-"))
    home.chmod(0o755)
    server = config.stash[SERVER] = pg.launch(home)
    os.environ["ROWCAST_TEST_DSN"] = server.url()
    os.environ["ROWCAST_TEST_TRUST"] = "1"


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the server of `ensure_server`; keep its log if the run failed."""
    server = config.stash.get(SERVER, None)
    if server is None:
        return
    embedded.stop(server, mode="immediate")  # its data is not kept, so a checkpoint is not needed
    shutil.rmtree(server.data / "pgdata" if config.stash.get(FAILED, False) else config.stash[HOME])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    server = config.stash.get(SERVER, None)
    if server is not None and exitstatus == pytest.ExitCode.TESTS_FAILED:
        config.stash[FAILED] = True
        terminalreporter.write_line(f"PostgreSQL's log of this run: {server.log}")


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> pg.Server:
    """The server of this run: ``port``, ``version`` (major), ``url()`` of the superuser."""
    ensure_server(pytestconfig)
    return pg.Server.at(
        os.environ["ROWCAST_TEST_DSN"], trusts=bool(os.environ.get("ROWCAST_TEST_TRUST"))
    )


def _load(*, host: str, port: int, user: str, dbname: str, password: str | None, **_: Any) -> None:
    trusts = bool(os.environ.get("ROWCAST_TEST_TRUST"))
    server = pg.Server.at(os.environ["ROWCAST_TEST_DSN"], trusts=trusts)
    pg.load_rowcast(server.url(dbname), server)


# Migrated once per process; pytest-postgresql adds the worker to the template's name.
rowcast_template = factories.postgresql_noproc(
    depends_on="server", dbname=f"rowcast_{RUN}", load=[_load]
)


@pytest.fixture
def database(server: pg.Server, rowcast_template: NoopExecutor) -> Iterator[pg.Database]:
    """A database with rowcast installed, for one test."""
    with pg.create_database(server, rowcast_template.template_dbname) as database:
        yield database


@pytest.fixture(scope="module")
def module_database(server: pg.Server, rowcast_template: NoopExecutor) -> Iterator[pg.Database]:
    """A database with rowcast installed, for all tests of a module."""
    with pg.create_database(server, rowcast_template.template_dbname) as database:
        yield database


@pytest.fixture
def empty_database(server: pg.Server) -> Iterator[pg.Database]:
    """A database without rowcast, for one test. The cluster may have rowcast's roles."""
    with pg.create_database(server) as database:
        yield database


@pytest.fixture
def db(database: pg.Database) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to `database`; every statement commits."""
    with database.connect() as connection:
        yield connection


@pytest.fixture
def module_db(module_database: pg.Database) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to `module_database`; every statement commits."""
    with module_database.connect() as connection:
        yield connection


@pytest.fixture
def tx(module_database: pg.Database) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to `module_database`, in a transaction that is rolled back."""
    connection = module_database.connect(autocommit=False)
    try:
        yield connection
    finally:
        connection.rollback()
        connection.close()


@pytest.fixture
def as_role() -> Callable[..., Any]:
    """``with as_role(connection, role, claims, channel):`` speaks as that caller."""
    return pg.as_role


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory for one test that the server's user can read."""
    with pg.scratch_directory() as path:
        yield path


@pytest.fixture
def own_server() -> Iterator[pg.OwnServer]:
    """A server for one test, to stop, restart and crash."""
    with pg.scratch_directory() as home:
        server = pg.OwnServer(home)
        try:
            yield server
        finally:
            server.stop("immediate")
