"""The database of `rowcast dev`, embedded or existing, and the URLs of its three logins."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from rowcast.errors import ConfigError
from rowcast.install.migrate import migrate
from rowcast.postgres.connect import DatabaseError, ShortConnection, connect

from . import server as embedded
from .state import DevState, login_password

__all__ = [
    "Urls",
    "add_channels",
    "drop_open_policies",
    "has_channels",
    "is_free",
    "policies_written",
    "start_own",
    "use_existing",
]

DATABASE = "app"
LOGINS = ("rowcast_bridge", "rowcast_caller")
TABLES = ["realtime_channels", "realtime_messages"]

HAS_CHANNELS = "select exists (select from public.realtime_channels)"
POLICIES = "select policyname from pg_policies where schemaname = 'public' and tablename = any(%s) and policyname <> 'rowcast_publisher' order by 1"  # noqa: E501
ADD_CHANNEL = "insert into public.realtime_channels (pattern, description) values (%s, %s) on conflict do nothing"  # noqa: E501
DROP_OPEN = (
    "drop policy if exists open_subscribe on public.realtime_channels",
    "drop policy if exists open_publish on public.realtime_messages",
    "drop policy if exists open_history on public.realtime_messages",
)

PASSWORDS = ("ROWCAST_BRIDGE_PASSWORD", "ROWCAST_CALLER_PASSWORD")

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Urls:
    """Connection URLs of the owner, of the bridge and of its callers."""

    owner: str
    bridge: str
    caller: str


def start_own(home: Path, state: DevState, stack: ExitStack, tell: Tell, *, durable: bool) -> Urls:
    """Start the embedded server in `home`, with a migrated database in it.

    Args:
        home: its data directory.
        state: keeps its port.
        stack: receives the call that stops it.
        tell: called with a line of text for each step.
        durable: False if the data is deleted at the end.

    Raises:
        RowcastError: no server can be started here, or it cannot be migrated.
    """
    if not (home / "pgdata").exists():
        tell(f"creating a PostgreSQL in {home}")
    port = state.port if state.port and is_free("127.0.0.1", state.port) else None
    server = embedded.start(home, port=port, durable=durable)
    stack.callback(embedded.stop, server, mode="fast" if durable else "immediate")
    state.port = server.port
    with connect(server.url()) as maintenance:
        maintenance.create_database(DATABASE)
    # Only this process uses the server, so new passwords at each start lock nothing out.
    chosen = [secrets.token_urlsafe(24) for _ in LOGINS]
    migrate(server.url(DATABASE), on_event=tell, env=dict(zip(PASSWORDS, chosen, strict=True)))
    bridge, caller = (
        server.url(DATABASE, login, password)
        for login, password in zip(LOGINS, chosen, strict=True)
    )
    return Urls(server.url(DATABASE), bridge, caller)


def use_existing(url: str, env: Mapping[str, str], tell: Tell) -> Urls:
    """Migrate an existing database, and set passwords if the two logins cannot connect.

    Raises:
        RowcastError: the database cannot be reached or migrated.
    """
    if url.partition("://")[0] not in ("postgres", "postgresql"):
        raise ConfigError("--database-url must look like postgresql://user:password@host/database.")
    migrate(url, on_event=tell, env=env)
    base = embedded.default_data_dir(env).parent
    chosen = [
        env.get(name) or login_password(login, base)
        for name, login in zip(PASSWORDS, LOGINS, strict=True)
    ]
    bridge, caller = (
        _as_login(url, login, password) for login, password in zip(LOGINS, chosen, strict=True)
    )
    if not (_connects(bridge) and _connects(caller)):
        migrate(url, env=dict(zip(PASSWORDS, chosen, strict=True)))
        tell("gave rowcast_bridge and rowcast_caller new passwords on this server")
    return Urls(url, bridge, caller)


def _as_login(url: str, login: str, password: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    query = [(k, v) for k, v in parse_qsl(parts.query) if k not in ("user", "password")]
    netloc = f"{quote(login, safe='')}:{quote(password, safe='')}@{host}"
    return parts._replace(netloc=netloc, query=urlencode(query)).geturl()


def _connects(url: str) -> bool:
    try:
        with connect(url):
            return True
    except DatabaseError:
        return False


def has_channels(connection: ShortConnection) -> bool:
    """Say whether the table of channels has a row."""
    return bool(connection.value(HAS_CHANNELS))


def add_channels(connection: ShortConnection, channels: Sequence[tuple[str, str]]) -> None:
    """Create channels, each a pattern and a description; existing ones stay unchanged."""
    connection.execute_many(ADD_CHANNEL, channels)


def policies_written(connection: ShortConnection) -> tuple[str, ...]:
    """Return the names of the policies on our tables that rowcast did not create itself."""
    return tuple(row["policyname"] for row in connection.rows(POLICIES, TABLES))


def drop_open_policies(connection: ShortConnection) -> None:
    """Remove the policies of the recipe `open`."""
    for statement in DROP_OPEN:
        connection.execute(statement)


def is_free(host: str, port: int) -> bool:
    """Say whether a process can listen on this port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError):
        return False
    return True
