"""The real bridge as a process, to start, kill and restart on the same port."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from support import pg

__all__ = [
    "DOOR_POLICIES",
    "SECRET",
    "Daemon",
    "daemon",
    "open_bridge",
    "open_channels",
    "token",
]

PACKAGES = str(Path(__file__).parents[2] / "python")
POLICIES = Path(__file__).parents[2] / "policies"
SECRET = "a secret of the tests, longer than 32 bytes"
START_TIMEOUT = 30.0

# Policies on top of the open recipe, for the tests of the doors: `members:*` is closed to guests
# and anonymous callers, `readonly:*` to publishers.
DOOR_POLICIES = """
insert into realtime_channels (pattern) values ('members:*'), ('readonly:*');
create policy members_are_users on public.realtime_channels as restrictive for select
    to anon, authenticated using (
        pattern <> 'members:*'
        or (auth.role() = 'authenticated' and auth.jwt() ->> 'guest' is null)
    );
create policy readonly_is on public.realtime_messages as restrictive for insert
    to anon, authenticated with check (channel_name not like 'readonly:%');
"""

# without the command line: the same, one layer below
SERVE = """
import asyncio, json, os, sys
from rowcast.bridge.app import serve
from rowcast.config import Settings
from rowcast.errors import RowcastError
def ready(url):
    print(json.dumps({"event": "ready", "url": url}), flush=True)
try:
    asyncio.run(serve(Settings.from_env(os.environ), ready=ready))
except RowcastError as error:
    sys.exit(f"rowcast: {error}")
"""


def token(sub: str | None = "alice", role: str = "authenticated", **claims: Any) -> str:
    """Return a token that the bridges of tests accept, valid for an hour unless `exp` is given."""
    body = {"role": role, "exp": int(time.time()) + 3600, **claims}
    if sub is not None:
        body["sub"] = sub
    return jwt.encode(body, SECRET, "HS256")


def open_channels(database: pg.Database, *patterns: str) -> None:
    """Apply the open recipe and create channels with these patterns."""
    with database.connect(database.owner_url) as connection:
        connection.execute((POLICIES / "open.sql").read_text())
        for pattern in patterns:
            connection.execute(
                "insert into public.realtime_channels (pattern) values (%s)", [pattern]
            )


class Daemon:
    """`rowcast serve` on a database, as a process.

    Args:
        database: must be migrated.
        settings: further ``ROWCAST_*`` variables, without the prefix, in lower case.
    """

    def __init__(self, database: pg.Database, **settings: Any) -> None:
        self.environment = {
            "DATABASE_URL": database.bridge_url,
            "CALLER_URL": database.caller_url,
            "JWT_SECRET": SECRET,
            "PORT": 0,
            **{name.upper(): value for name, value in settings.items()},
        }
        self.url = ""
        self.process: subprocess.Popen[str] | None = None
        handle, name = tempfile.mkstemp(prefix="rowcast-daemon-", suffix=".log")
        os.close(handle)
        self._log = Path(name)

    @property
    def log(self) -> str:
        """Its standard error since the first start."""
        return self._log.read_text()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def launch(self) -> None:
        """Start the process without waiting until it is ready."""
        plain = {k: v for k, v in os.environ.items() if not k.startswith("ROWCAST_")}
        ours = {f"ROWCAST_{name}": str(value) for name, value in self.environment.items()}
        command = ["-m", "rowcast", "serve"] if _has_command() else ["-c", SERVE]
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env={**plain, **ours, "PYTHONPATH": PACKAGES, "PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def wait_ready(self, timeout: float = START_TIMEOUT) -> str:
        """Return the URL once the bridge serves; later starts use the same port."""
        process = self.process
        assert process is not None
        assert process.stdout is not None
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while selector.select(max(0.0, deadline - time.monotonic())):
                line = process.stdout.readline()
                if not line:
                    pytest.fail(f"the bridge ended with {process.wait()}:\n{self.log}")
                with contextlib.suppress(ValueError):
                    said = json.loads(line)
                    if isinstance(said, dict) and said.get("event") == "ready":
                        self.url = said["url"]
                        self.environment["PORT"] = self.url.rsplit(":", 1)[1]
                        return self.url
        pytest.fail(f"the bridge was not ready within {timeout} s:\n{self.log}")

    def start(self) -> Daemon:
        self.launch()
        self.wait_ready()
        return self

    def kill(self) -> None:
        """Kill it with SIGKILL, without any shutdown."""
        if self.process is not None:
            self.process.kill()
            self._reap()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait until it has ended; return the exit code."""
        assert self.process is not None
        return self.process.wait(timeout)

    def terminate(self, timeout: float = 30.0) -> int:
        """Send SIGTERM, wait, and return the exit code."""
        self.signal(signal.SIGTERM)
        code = self.wait(timeout)
        self._reap()
        return code

    def restart(self) -> None:
        self.kill()
        self.start()

    def _reap(self) -> None:
        assert self.process is not None
        self.process.wait(30)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def get(self, path: str) -> tuple[int, str]:
        """Send a GET request; return status and body."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        """Return the value of one metric; `name` includes the labels as printed."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def memory(self) -> int:
        """Return the resident memory in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def remove(self) -> None:
        self.kill()
        self._log.unlink(missing_ok=True)


@contextlib.contextmanager
def daemon(database: pg.Database, **settings: Any) -> Iterator[Daemon]:
    """Run a bridge for the duration of a block."""
    bridge = Daemon(database, **settings)
    try:
        yield bridge.start()
    finally:
        bridge.remove()


@contextlib.contextmanager
def open_bridge(database: pg.Database, policies: str = "", **settings: Any) -> Iterator[Daemon]:
    """Run a bridge on open channels `room:*`; fail if it reports an internal error.

    Args:
        policies: SQL to execute first, as superuser.
        settings: as for `Daemon`.
    """
    open_channels(database, "room:*")
    with database.connect() as connection:
        connection.execute(policies.encode())
    with daemon(database, **settings) as bridge:
        yield bridge
        assert "internal_error" not in bridge.log, bridge.log[-3000:]


def _has_command() -> bool:
    return Path(PACKAGES, "rowcast", "cli", "main.py").exists() or bool(
        importlib.util.find_spec("rowcast.cli")
    )
