"""Runs the command `rowcast` as a process with arguments and an environment."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pytest

__all__ = ["Started", "environment", "rowcast", "started"]

PACKAGES = str(Path(__file__).parents[2] / "python")
TIMEOUT = 60.0


def environment(home: Path, **settings: Any) -> dict[str, str]:
    """Return the environment of a user whose home is `home`, without ``ROWCAST_*`` and ``PG*``.

    Args:
        home: directory for caches and data.
        settings: ``ROWCAST_*`` variables, without the prefix, in lower case.
    """
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("ROWCAST_", "PG", "XDG_"))}
    ours = {f"ROWCAST_{name.upper()}": str(value) for name, value in settings.items()}
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    return {**plain, **ours, **places, "PYTHONPATH": PACKAGES}


def rowcast(
    *arguments: str, env: Mapping[str, str], stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "rowcast", *arguments],
        env=dict(env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


class Started:
    """A running command whose two outputs are read line by line."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        """The text written to standard error so far."""
        return self._log.read_text()

    def line(self, timeout: float = TIMEOUT) -> str:
        """Return the next line of its standard output."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout):
                pytest.fail(f"said nothing within {timeout} s:\n{self.log}")
            # Read unbuffered, so that the selector sees all unread bytes.
            line = bytearray()
            while (byte := os.read(self.process.stdout.fileno(), 1)) not in (b"", b"\n"):
                line += byte
        if not line and byte == b"":
            pytest.fail(f"ended with {self.process.wait(TIMEOUT)}:\n{self.log}")
        return line.decode()

    def json(self, timeout: float = TIMEOUT) -> dict[str, Any]:
        """Return the next line of its standard output as a JSON object."""
        found: dict[str, Any] = json.loads(self.line(timeout))
        return found

    def rest(self) -> str:
        """Return the rest of its standard output until it ends."""
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def says(self, text: str, timeout: float = TIMEOUT) -> None:
        """Wait until its standard error contains `text`."""
        deadline = time.monotonic() + timeout
        while text not in self.log:
            if time.monotonic() > deadline or self.process.poll() is not None:
                pytest.fail(f"never said {text!r}:\n{self.log}")
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGINT, timeout: float = TIMEOUT) -> int:
        """Send it a signal and return its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(timeout)
        assert "Traceback" not in self.log, self.log
        return code


@contextlib.contextmanager
def started(
    *arguments: str,
    env: Mapping[str, str],
    stdout: int | IO[Any] = subprocess.PIPE,
    python: str = sys.executable,
    **options: Any,
) -> Iterator[Started]:
    """Run the command for the length of a block, and end it if it still runs."""
    handle, name = tempfile.mkstemp(prefix="rowcast-command-", suffix=".log")
    process = subprocess.Popen(
        [python, "-m", "rowcast", *arguments],
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=handle,
        text=True,
        **options,
    )
    os.close(handle)
    try:
        yield Started(process, Path(name))
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()
        Path(name).unlink()
