"""Runs PgBouncer before the own server of a test."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from rowcast.dev import binaries
from support import pg
from support.waiting import eventually

__all__ = ["needs_pgbouncer", "start_pgbouncer"]

needs_pgbouncer = pytest.mark.skipif(
    shutil.which("pgbouncer") is None, reason="pgbouncer is not installed"
)
LOGINS = ("postgres", "rowcast_bridge", "rowcast_caller")


@contextmanager
def start_pgbouncer(own: pg.OwnServer, home: Path, mode: str) -> Iterator[str]:
    """Run PgBouncer in `home` before the server; yield the URL through it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (home / "users.txt").write_text("".join(f'"{login}" ""\n' for login in LOGINS))
    (home / "pgbouncer.ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={own.running.port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = trust\nauth_file = {home}/users.txt\npool_mode = {mode}\n"
    )
    command = [str(shutil.which("pgbouncer")), str(home / "pgbouncer.ini")]
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"

    def answers() -> bool:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            return False
        return True

    with subprocess.Popen(command, stderr=subprocess.DEVNULL, **binaries.dropped()) as pooler:
        try:
            eventually(answers)
            yield url
        finally:
            pooler.terminate()
