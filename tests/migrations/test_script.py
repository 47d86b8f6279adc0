"""The installation as one script, for databases reached only with psql or a web console."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rowcast.install.migrate import Applied, install_script, migrate, roles_script
from rowcast.install.release import Release
from support import database_shape as shapes
from support import pg


def psql(url: str, script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    file = directory / "script.sql"
    file.write_text(script)
    command = [shapes.program("psql"), "-X", "-v", "ON_ERROR_STOP=1", "-q", "-f", str(file), url]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_psql_runs_the_script(empty_database: pg.Database, tmp_path: Path) -> None:
    """`migrate` then has nothing to do."""
    done = psql(empty_database.url, install_script(), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert migrate(empty_database.url) == Applied((), False, Release.shipped().version)


def test_the_script_makes_the_same_database_as_migrate(
    empty_database: pg.Database, database: pg.Database, tmp_path: Path
) -> None:
    psql(empty_database.url, install_script(), tmp_path)
    assert shapes.shape(empty_database.url) == shapes.shape(database.url)


def test_the_script_is_one_transaction_of_plain_sql(tmp_path: Path) -> None:
    lines = install_script().splitlines()
    assert not [line for line in lines if line.startswith("\\")]
    assert [line for line in lines if line.lower() in ("commit;", "rollback;")] == ["commit;"]


def test_a_failing_script_leaves_nothing_behind(
    empty_database: pg.Database, tmp_path: Path
) -> None:
    broken = install_script().replace("\ncommit;", "\nselect 1/0;\ncommit;")
    file = tmp_path / "broken.sql"
    file.write_text(broken)
    # Without ON_ERROR_STOP psql continues to the commit, which then rolls back.
    subprocess.run([shapes.program("psql"), "-Xqf", str(file), empty_database.url], check=True)
    with empty_database.connect() as conn:
        assert conn.execute("select to_regnamespace('rowcast')").fetchone() == (None,)


def test_the_script_refuses_a_database_that_has_rowcast(
    database: pg.Database, tmp_path: Path
) -> None:
    done = psql(database.url, install_script(), tmp_path)
    assert done.returncode == 3
    assert f"the database is at migration {Release.shipped().version}" in done.stderr
    assert "rowcast migrate" in done.stderr


def test_the_script_since_a_migration_upgrades(empty_database: pg.Database, tmp_path: Path) -> None:
    release = Release.shipped()
    migrate(empty_database.url, release=shapes.until(release, release.version - 1))
    done = psql(empty_database.url, install_script(since=release.version - 1), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert migrate(empty_database.url) == Applied((), False, release.version)


def test_the_roles_can_be_installed_alone(own_server: pg.OwnServer, tmp_path: Path) -> None:
    done = psql(own_server.url(), roles_script(), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert migrate(own_server.url()).migrations


@pytest.mark.parametrize("script", [install_script, roles_script])
def test_an_old_server_is_refused_in_words(script: object) -> None:
    assert callable(script)
    assert "rowcast needs PostgreSQL 15 or newer" in script()
