"""Helpers for tests of the workbench: run the command, and compare a database before and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rowcast.cli.main import main

__all__ = ["Run", "picture", "runner"]

Connection = psycopg.Connection[Any]
Run = Callable[..., tuple[int, str, str]]

# Everything that a command could leave behind, except sequences, which never roll back.
CATALOGUE = (
    (
        "select 'class', oid::regclass::text, relacl::text, relrowsecurity, relkind::text"
        " from pg_class where relkind <> 't' and relnamespace <> 'pg_toast'::regnamespace"
    ),
    (
        "select 'policy', polname, polrelid::regclass::text, polroles::text, polcmd::text,"
        " polpermissive, polqual::text, polwithcheck::text from pg_policy"
    ),
    (
        "select 'function', oid::regprocedure::text, proacl::text, xmin::text from pg_proc"
        " where pronamespace = 'rowcast'::regnamespace"
    ),
    "select 'type', oid::regtype::text from pg_type where typname not like '\\_%'",
    (
        "select 'database', datname::text, datacl::text from pg_database"
        " where datname = current_database()"
    ),
)


def picture(db: Connection, login: str = "rowcast_policy_team") -> list[tuple[Any, ...]]:
    """Return catalogue and rows of a database, and the roles that `login` can become."""
    rows: list[tuple[Any, ...]] = db.execute(
        "select roleid::regrole::text, m::text from pg_auth_members as m"
        " where member = to_regrole(%s) order by 1, 2",
        [login],
    ).fetchall()
    for query in CATALOGUE:
        rows += sorted(db.execute(query.encode()).fetchall(), key=repr)
    tables = db.execute(
        "select c.oid::regclass::text from pg_class as c where c.relkind = 'r'"
        " and c.relnamespace in ('public'::regnamespace, 'rowcast'::regnamespace) order by 1"
    ).fetchall()
    for (table,) in tables:
        rows += db.execute(
            f"select '{table}', count(*), md5(string_agg(t::text, ',' order by t::text))"
            f" from {table} as t".encode()
        )
    return rows


def runner(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, url: str, home: Path
) -> Run:
    """Return a function that runs `rowcast policy …` in `home` on `url`.

    It returns exit code, output and errors.
    """
    for name in ("ROWCAST_DATABASE_URL", "ROWCAST_CALLER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ROWCAST_MIGRATE_URL", url)
    monkeypatch.chdir(home)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(["policy", *arguments])
        except SystemExit as ended:
            code = int(str(ended.code))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
