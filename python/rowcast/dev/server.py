"""Starts and stops an embedded PostgreSQL for development and tests.

The server listens on 127.0.0.1 only and requires a password. Its parent is a watchdog process (see
`watchdog`), which stops it when this process dies for any reason. The watchdog has its own session,
so that Ctrl-C reaches only the bridge, which drains first and then calls `stop`.
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

from rowcast.errors import EmbeddedError

from .binaries import dropped, find_binaries, major_version, runnable
from .datadir import SUPERUSER, DataDirectory, default_data_dir, server_environment

__all__ = [
    "EmbeddedServer",
    "default_data_dir",
    "find_binaries",
    "start",
    "stop",
]

START_TIMEOUT = 120.0  # seconds; crash recovery of a large directory is slow
RETRY_TIMEOUT = 10.0
DEFAULTS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
}
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


# pid of a server → its watchdog; closing its standard input ends the server
_watchdogs: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A running server; the value can be used in other processes, too."""

    data: Path
    port: int
    pid: int
    version: int
    superuser: str
    password: str = field(repr=False)

    @property
    def log(self) -> Path:
        """The log file of the server since its start."""
        return DataDirectory(self.data).log

    def url(
        self, database: str = "postgres", user: str | None = None, password: str | None = None
    ) -> str:
        """Return a connection URL; without `user` that of the superuser, with its password."""
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
    """Start a server in `data`, a directory that is created if missing, and kept between runs.

    Under root, the server and ``initdb`` run as the user ``nobody``.

    Args:
        data: a directory of rowcast; that of PostgreSQL is ``pgdata`` in it.
        binaries: the directory of ``postgres`` and ``initdb``; by default, see `find_binaries`.
        port: the port on 127.0.0.1; by default a free one.
        options: settings of the server, which override the defaults.
        durable: False if data may be lost at a crash of the machine, for speed.

    Returns:
        The server, which accepts connections.

    Raises:
        EmbeddedError: the server cannot be started; the message says what to do.
    """
    if sys.platform == "win32":
        raise EmbeddedError(
            "rowcast does not start a PostgreSQL on Windows; start one and give it with "
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
    """Stop `server` and return when all its processes have ended; do nothing if it has ended.

    Args:
        server: the result of `start`, in this process or in another.
        mode: ``fast`` ends the sessions and writes a checkpoint; ``immediate`` ends like a
            crash, and the next start recovers.
        timeout: seconds of ``fast`` before ``immediate`` follows.

    Raises:
        EmbeddedError: the server still runs.
    """
    directory = DataDirectory(server.data)
    watchdog = _watchdogs.pop(server.pid, None)
    steps = [(signal.SIGQUIT, 10.0)]
    if mode == "fast":
        steps.insert(0, (signal.SIGINT, float(timeout)))
    for number, patience in steps:
        running = directory.postmaster()
        if running is not None and running.pid == server.pid:
            os.kill(server.pid, number)
        if _gone(directory, server.pid, watchdog, patience):
            if watchdog is not None:
                _release(watchdog)
            return
    raise EmbeddedError(f"PostgreSQL (pid {server.pid}) does not stop; see {server.log}.")


class _NotStartedError(Exception):
    """The server ended before it was ready; the message is its log."""


def _launch(
    directory: DataDirectory, lock: int, uid: int, command: list[str], port: int | None
) -> tuple[int, int]:
    """Run the server, and retry temporary failures; return its port and pid."""
    deadline = time.monotonic() + RETRY_TIMEOUT
    while True:
        chosen = port or _free_port()
        try:
            return chosen, _start_watchdog(directory, lock, uid, [*command, "-p", str(chosen)])
        except _NotStartedError as refusal:
            said, late = str(refusal), time.monotonic() > deadline
            # Another program can take the free port before the server binds it.
            if "could not bind" in said and (late or port is not None):
                raise EmbeddedError(
                    f"Port {chosen} on 127.0.0.1 is in use; choose another, or none."
                ) from None
            # The sessions of a killed server end a moment after it.
            temporary = "could not bind" in said or "pre-existing shared memory" in said
            if late or not temporary:
                reasons = re.findall(r"(?:FATAL|PANIC|Error):\s+(.*)", said)
                reason = reasons[0] if reasons else "it gave no reason"
                raise EmbeddedError(
                    f"PostgreSQL did not start: {reason}; see {directory.log}."
                ) from None
        time.sleep(0.05)


def _start_watchdog(directory: DataDirectory, lock: int, uid: int, command: list[str]) -> int:
    """Start a watchdog with `command` and wait until its server is ready; return the pid."""
    if directory.log.exists():
        directory.log.replace(directory.log.with_suffix(".log.old"))
    log = os.open(directory.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    script = Path(__file__).with_name("watchdog.py")
    try:
        watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), str(uid), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=(lock,),  # held by the watchdog, so it lasts as long as the server
            start_new_session=True,
            cwd="/",
            env=server_environment(),
        )
    finally:
        os.close(log)
    try:
        pid = _await_ready(directory, watchdog)
    except BaseException:
        _release(watchdog)  # Ctrl-C while waiting must not leave a server behind
        raise
    _watchdogs[pid] = watchdog
    return pid


def _await_ready(directory: DataDirectory, watchdog: subprocess.Popen[bytes]) -> int:
    assert watchdog.stdout is not None
    reported = watchdog.stdout.readline()
    deadline = time.monotonic() + START_TIMEOUT
    while reported and watchdog.poll() is None:
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
    directory: DataDirectory, pid: int, watchdog: subprocess.Popen[bytes] | None, patience: float
) -> bool:
    """Wait until the server has ended; its watchdog ends after it."""
    if watchdog is not None:
        try:
            watchdog.wait(patience)
        except subprocess.TimeoutExpired:
            return False
        return True
    deadline = time.monotonic() + patience
    while (running := directory.postmaster()) is not None and running.pid == pid:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _release(watchdog: subprocess.Popen[bytes]) -> None:
    """Close the streams of a watchdog, which stops its server if it still runs, and wait."""
    for stream in (watchdog.stdin, watchdog.stdout):
        if stream is not None:
            stream.close()
    watchdog.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
