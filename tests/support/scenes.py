"""What tests say often: be this caller for a block, wait until that is so, work over there."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest

__all__ = ["as_role", "eventually", "scratch_directory"]

Connection = psycopg.Connection[Any]
Found = TypeVar("Found")


@contextlib.contextmanager
def as_role(
    connection: Connection,
    role: str,
    claims: Mapping[str, Any] | None = None,
    channel: str | None = None,
) -> Iterator[Connection]:
    """Be `role` with these JWT claims for the length of a block, the way PostgREST does it.

    All settings are transaction-local. In a transaction of the test's own the block is a
    savepoint, and since a released savepoint keeps local settings, they are put back.
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
        _apply(connection, dict(reversed(settings.items())))  # the role last: it may not set
        yield connection
        _apply(connection, before)


def _setting(connection: Connection, name: str) -> str:
    row = connection.execute("select coalesce(current_setting(%s, true), '')", [name]).fetchone()
    assert row is not None
    return str(row[0])


def _apply(connection: Connection, settings: Mapping[str, str]) -> None:
    for name, value in settings.items():
        connection.execute("select set_config(%s, %s, true)", [name, value])


def eventually(
    check: Callable[[], Found], *, timeout: float = 15.0, what: str | None = None
) -> Found:
    """Return the first true answer of `check`; fail when there is none in time."""
    deadline = time.monotonic() + timeout
    while not (found := check()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout} s: {what or check}")
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory that the server's uid can reach, unlike pytest's own, which are private."""
    path = Path(tempfile.mkdtemp(prefix="rowcast-test-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)
