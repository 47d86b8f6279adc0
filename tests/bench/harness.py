"""Shared parts of the benchmarks: a durable server, a bridge as a process, statistics, tables.

The machine may be noisy, so every benchmark alternates what it compares and reports ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jwt

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests")]

from rowcast.dev.binaries import dropped, major_version  # noqa: E402
from support import pg  # noqa: E402

__all__ = [
    "SECRET",
    "Bridge",
    "Process",
    "arguments",
    "bridge",
    "database",
    "percentile",
    "process",
    "raise_file_limit",
    "ratio",
    "table",
    "token",
]

SECRET = "a secret of the benchmarks, long enough for HS256"
TICKS = os.sysconf("SC_CLK_TCK")
START_TIMEOUT = 30.0

SERVE = """
import asyncio, os
from rowcast.bridge.app import serve
from rowcast.config import Settings
asyncio.run(serve(Settings.from_env(os.environ), ready=lambda url: print(url, flush=True)))
"""


def arguments(about: str, **numbers: float) -> argparse.Namespace:
    """Parse ``--pg`` and one numeric option per keyword; select the server's programs."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--pg", default="", help="major version of PostgreSQL: 15, 18, …")
    for name, default in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = parser.parse_args()
    if options.pg:
        os.environ["ROWCAST_TEST_PG"] = options.pg
    options.binaries = pg.choose_binaries()
    version = major_version(options.binaries, dropped())
    print(f"# {Path(sys.argv[0]).name}: PostgreSQL {version}, fsync on, {os.cpu_count()} cores")
    return options


@contextlib.contextmanager
def database(policies: str = "open") -> Iterator[pg.Database]:
    """Run a durable server with rowcast, one channel `room:*` and a recipe of policies."""
    with pg.scratch_directory() as home:
        own = pg.OwnServer(home)
        try:
            with own.database() as database, database.connect() as connection:
                if policies:
                    connection.execute((ROOT / "policies" / f"{policies}.sql").read_text())
                connection.execute("insert into realtime_channels (pattern) values ('room:*')")
                yield database
        finally:
            own.stop("immediate")


@dataclass(frozen=True, slots=True)
class Process:
    """A running child process, and its resource usage from the kernel."""

    child: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def cpu(self) -> float:
        """Return the processor time so far, in seconds."""
        text = Path(f"/proc/{self.child.pid}/stat").read_text()
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / TICKS

    def rss(self) -> int:
        """Return the resident memory in bytes."""
        text = Path(f"/proc/{self.child.pid}/status").read_text()
        line = next(line for line in text.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    def kill(self) -> None:
        """Kill it, as a crash would."""
        self.child.kill()
        self.child.wait()


Bridge = Process


@contextlib.contextmanager
def process(command: Sequence[str], env: Mapping[str, str]) -> Iterator[Process]:
    """Run a child that prints its URL when it is ready; end it afterwards.

    Raises:
        RuntimeError: it ended before it was ready.
    """
    child = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python"), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if not os.environ.get("BENCH_LOG") else None,
        text=True,
    )
    try:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        if not url:
            raise RuntimeError("the process ended; set BENCH_LOG=1 to see why")
        yield Process(child, url)
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(START_TIMEOUT)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def bridge(database: pg.Database, **settings: object) -> Iterator[Process]:
    """Run a real bridge; settings are named as in `rowcast.config`."""
    env = {
        "ROWCAST_DATABASE_URL": database.bridge_url,
        "ROWCAST_CALLER_URL": database.caller_url,
        "ROWCAST_JWT_SECRET": SECRET,
        "ROWCAST_PORT": "0",
        "ROWCAST_DRAIN_TIMEOUT": "1",
        **{f"ROWCAST_{name.upper()}": str(value) for name, value in settings.items()},
    }
    with process([sys.executable, "-c", SERVE], env) as running:
        yield running


def token(subject: str) -> str:
    """Return a token of the role `authenticated`, valid for an hour."""
    claims = {"role": "authenticated", "sub": subject, "exp": int(time.time()) + 3600}
    return jwt.encode(claims, SECRET, algorithm="HS256")


def raise_file_limit(wanted: int) -> int:
    """Allow this process and its children `wanted` sockets; return the actual limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in ((wanted, max(wanted, hard)), (min(wanted, hard), hard)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            break
    return max(soft, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that a `share` of all values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median ratio of neighbouring rounds: lasting noise affects both."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    for row in (head, ["---"] * len(head), *rows):
        cells = (f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row)
        print("| " + " | ".join(cells) + " |", flush=True)
