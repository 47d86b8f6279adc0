"""Fixtures for tests of the workbench: the database of a team, and the command in a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from support import pg
from support.workbench import Run, runner

# A login that may write policies and become caller roles, without being a superuser.
LOGIN = "rowcast_policy_team"


@pytest.fixture(scope="session")
def policy_login(server: pg.Server, rowcast_template: Any) -> str:
    """Return the name of the team's login. The template has created the roles that it gets."""
    with pg.cluster_lock(server.url()), psycopg.connect(server.url(), autocommit=True) as admin:
        known = admin.execute("select from pg_roles where rolname = %s", [LOGIN]).fetchone()
        if known is None:
            admin.execute(f"create role {LOGIN} login password 'rowcast-test'")
        admin.execute(f"grant rowcast_owner, anon, authenticated to {LOGIN}")
    return LOGIN


@pytest.fixture
def team_url(database: pg.Database, policy_login: str, db: psycopg.Connection[Any]) -> str:
    """Return the URL of `database` for the login of the team."""
    db.execute(f"grant create on schema public to {policy_login}".encode())
    return database.server.url(database.name, policy_login, "rowcast-test")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return the directory in which the command runs."""
    (tmp_path / "policies").mkdir()
    return tmp_path


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    team_url: str,
    home: Path,
) -> Run:
    """``run("can", "subscribe", …)``: exit code, output, errors of `rowcast policy`."""
    return runner(capsys, monkeypatch, team_url, home)
