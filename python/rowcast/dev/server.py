"""An own PostgreSQL for development and tests: started here, and never left behind.

The server listens on 127.0.0.1 only and asks for a password. Its parent is the keeper (see
`keeper`), which stops it when this process dies, whatever it dies of; it has a session of its
own, so that Ctrl-C reaches the bridge, which drains first and then calls `stop`.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from psycopg import sql

from rowcast.errors import EmbeddedError
from rowcast.postgres.connect import connect

from .binaries import dropped, find_binaries, major_version, runnable
from .datadir import SUPERUSER, DataDirectory, default_data_dir, server_environment

__all__ = [
    "EmbeddedServer",
    "create_database",
    "default_data_dir",
    "find_binaries",
    "start",
    "stop",
]

START_TIMEOUT = 120.0  # crash recovery of a large directory takes its time
RETRY_TIMEOUT = 10.0
DEFAULTS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
}
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}

HAS_DATABASE = "select exists (select from pg_database where datname = %s)"

# Our end of each keeper's standard input: closing it, or dying, ends the server.
_keepers: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A running server; a value, valid in other processes too."""

    data: Path
    port: int
    pid: int
    version: int
    superuser: str
    password: str = field(repr=False)

    @property
    def log(self) -> Path:
        """The file that holds what the server said since it started."""
        return DataDirectory(self.data).log

    def url(
        self, database: str = "postgres", user: str | None = None, password: str | None = None
    ) -> str:
        """Return a connection URL; without `user` it is the superuser's, password included."""
        if user is None:
            user, password = self.superuser, self.password
        secret = "" if password is None else f":{quote(password, safe='')}"
        login = f"{quote(user, safe='')}{secret}"
        return f"postgresql://{login}@127.0.0.1:{self.port}/{quote(database, safe='')}"


def start(
    data: Path,
    *,
    binaries: Path | None = None,
    port: int | None = None,
    options: Mapping[str, str] = {},
    durable: bool = True,
) -> EmbeddedServer:
    """Start a server in `data`, which is made at the first time and kept between runs.

    As root, the server and ``initdb`` run as nobody.

    Args:
        data: a directory of ours; the server's own is ``pgdata`` in it.
        binaries: where ``postgres`` and ``initdb`` are; asks `find_binaries` when None.
        port: the port on 127.0.0.1; a free one when None.
        options: settings of the server, over our defaults.
        durable: False trades safety at a crash of the machine for speed.

    Returns:
        The server, which accepts connections.

    Raises:
        EmbeddedError: there is no server to be had; the message says what to do.
    """
    if sys.platform == "win32":
        raise EmbeddedError(
            "rowcast does not start a PostgreSQL on Windows; start one and name it with "
            "--database-url."
        )
    directory, identity = DataDirectory(data.absolute()), dropped()
    programs = runnable(binaries or find_binaries(), identity)
    major = major_version(programs, identity)
    directory.prepare(identity)
    lock = directory.claim()
    try:
        if not directory.pgdata.exists():
            directory.initialise(programs, identity)
        directory.check(major, identity)
        settings = {**DEFAULTS, **({} if durable else NOT_DURABLE), **options}
        command = [str(programs / "postgres"), "-D", str(directory.pgdata)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        chosen, pid = _launch(directory, lock, identity.get("user", -1), command, port)
    finally:
        os.close(lock)
    return EmbeddedServer(directory.root, chosen, pid, major, SUPERUSER, directory.password())


def stop(
    server: EmbeddedServer,
    *,
    mode: Literal["fast", "immediate"] = "fast",
    timeout: float = 30,
) -> None:
    """Stop `server` and return when none of its processes is left; nothing if it is gone.

    Args:
        server: what `start` returned, in this process or in another.
        mode: ``fast`` ends the sessions and writes a checkpoint; ``immediate`` drops everything,
            as a crash would, and the next start recovers.
        timeout: after so many seconds of ``fast``, ``immediate`` follows.

    Raises:
        EmbeddedError: the server runs on in spite of all.
    """
    directory = DataDirectory(server.data)
    keeper = _keepers.pop(server.pid, None)
    steps = [(signal.SIGQUIT, 10.0)]
    if mode == "fast":
        steps.insert(0, (signal.SIGINT, float(timeout)))
    for number, patience in steps:
        running = directory.postmaster()
        if running is not None and running.pid == server.pid:
            os.kill(server.pid, number)
        if _gone(directory, server.pid, keeper, patience):
            if keeper is not None:
                _release(keeper)
            return
    raise EmbeddedError(f"PostgreSQL (pid {server.pid}) does not stop; see {server.log}.")


def create_database(server: EmbeddedServer, name: str) -> None:
    """Create a database unless it exists.

    Raises:
        DatabaseError: the server refused it.
    """
    with connect(server.url()) as connection:
        if not connection.value(HAS_DATABASE, name):
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))


class _NotStartedError(Exception):
    """The server ended before it was ready; the text is its log."""


def _launch(
    directory: DataDirectory, lock: int, uid: int, command: list[str], port: int | None
) -> tuple[int, int]:
    """Run the server, again when its refusal may pass; return its port and pid."""
    deadline = time.monotonic() + RETRY_TIMEOUT
    while True:
        chosen = port or _free_port()
        try:
            return chosen, _keep(directory, lock, uid, [*command, "-p", str(chosen)])
        except _NotStartedError as refusal:
            said, late = str(refusal), time.monotonic() > deadline
            # Between our look for a free port and the server's bind anybody can take it.
            if "could not bind" in said and (late or port is not None):
                raise EmbeddedError(
                    f"Port {chosen} on 127.0.0.1 is taken; choose another, or none."
                ) from None
            # The sessions of a server that was killed outlive it by a moment.
            passing = "could not bind" in said or "pre-existing shared memory" in said
            if late or not passing:
                reasons = re.findall(r"(?:FATAL|PANIC|Error):\s+(.*)", said)
                reason = reasons[0] if reasons else "it did not say why"
                raise EmbeddedError(
                    f"PostgreSQL did not start: {reason}; see {directory.log}."
                ) from None
        time.sleep(0.05)


def _keep(directory: DataDirectory, lock: int, uid: int, command: list[str]) -> int:
    """Start a keeper with `command` and wait until its server is ready; return the pid."""
    if directory.log.exists():
        directory.log.replace(directory.log.with_suffix(".log.old"))
    log = os.open(directory.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    script = Path(__file__).with_name("watchdog.py")
    try:
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), str(uid), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=(lock,),  # the lock is the keeper's: it lasts as long as the server
            start_new_session=True,
            cwd="/",
            env=server_environment(),
        )
    finally:
        os.close(log)
    try:
        pid = _await_ready(directory, keeper)
    except BaseException:
        _release(keeper)  # a Ctrl-C while we wait must not leave a server either
        raise
    _keepers[pid] = keeper
    return pid


def _await_ready(directory: DataDirectory, keeper: subprocess.Popen[bytes]) -> int:
    assert keeper.stdout is not None
    reported = keeper.stdout.readline()
    deadline = time.monotonic() + START_TIMEOUT
    while reported and keeper.poll() is None:
        running = directory.postmaster()
        if running is not None and running.pid == int(reported) and running.status == "ready":
            return running.pid
        if time.monotonic() > deadline:
            raise EmbeddedError(
                f"PostgreSQL was not ready after {START_TIMEOUT:.0f} s; see {directory.log}."
            )
        time.sleep(0.01)
    raise _NotStartedError(directory.log.read_text(errors="replace"))


def _gone(
    directory: DataDirectory, pid: int, keeper: subprocess.Popen[bytes] | None, patience: float
) -> bool:
    """Wait until the server is gone; its keeper ends after it."""
    if keeper is not None:
        try:
            keeper.wait(patience)
        except subprocess.TimeoutExpired:
            return False
        return True
    deadline = time.monotonic() + patience
    while (running := directory.postmaster()) is not None and running.pid == pid:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _release(keeper: subprocess.Popen[bytes]) -> None:
    """Let go of a keeper: its server stops when it still runs, and nothing waits for us."""
    for stream in (keeper.stdin, keeper.stdout):
        if stream is not None:
            stream.close()
    keeper.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
