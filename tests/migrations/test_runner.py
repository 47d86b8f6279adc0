"""The runner applies each migration once, alone, and its errors say what to do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from rowcast.errors import MigrationError
from rowcast.install import runner
from rowcast.install.migrate import Applied, apply_policy_file, migrate, pending
from rowcast.install.release import Release
from support import pg

MakeRelease = Callable[..., Release]

TABLE = "create table rowcast.thing (id integer primary key);"
INSERT = "insert into rowcast.thing values (1);"
COLUMN = "alter table rowcast.thing add column note text;"


def test_the_shipped_release_is_applied_once(
    empty_database: pg.Database,
) -> None:
    """A second run has nothing to do."""
    release = Release.shipped()
    first = migrate(empty_database.url)
    assert first.migrations == tuple(file.name for file in release.migrations)
    assert first.code
    assert migrate(empty_database.url) == Applied((), False, release.version)


def test_pending_changes_nothing(empty_database: pg.Database, make_release: MakeRelease) -> None:
    """It returns what a run would do."""
    release = make_release(TABLE)
    before = pending(empty_database.url, release=release)
    assert (before.migrations, before.code, before.version) == (("0001_step_1",), True, 0)
    with empty_database.connect() as conn:
        assert conn.execute("select to_regnamespace('rowcast')").fetchone() == (None,)
    migrate(empty_database.url, release=release)
    after = pending(empty_database.url, release=make_release(TABLE, INSERT))
    assert (after.migrations, after.code, after.version) == (("0002_step_2",), False, 1)


def test_runs_that_race_all_succeed_and_apply_once(
    empty_database: pg.Database, make_release: MakeRelease
) -> None:
    release = make_release(TABLE, INSERT)
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(migrate, empty_database.url, release=release) for _ in range(4)]
        done = [run.result(timeout=60) for run in runs]
    assert sorted(len(applied.migrations) for applied in done) == [0, 0, 0, 2]
    with empty_database.connect() as conn:
        assert conn.execute("select count(*) from rowcast.thing").fetchone() == (1,)


def test_a_run_says_that_it_waits_for_another(
    empty_database: pg.Database, make_release: MakeRelease
) -> None:
    release, waiting, said = make_release(TABLE), threading.Event(), list[str]()

    def hear(event: str) -> None:
        said.append(event)
        if "waiting" in event:
            waiting.set()

    with empty_database.connect() as other, ThreadPoolExecutor(1) as pool:
        other.execute(f"select pg_advisory_lock({runner.LOCK})".encode())
        run = pool.submit(migrate, empty_database.url, release=release, on_event=hear)
        assert waiting.wait(30)
        assert not run.done()
        other.execute("select pg_advisory_unlock_all()")
        assert run.result(timeout=30).version == 1
    assert "another `rowcast migrate`" in said[0]


def test_an_edited_migration_is_refused_by_name(
    empty_database: pg.Database, make_release: MakeRelease
) -> None:
    migrate(empty_database.url, release=make_release(TABLE, INSERT))
    edited = make_release(TABLE + " -- better", INSERT)
    with pytest.raises(MigrationError, match=r"migrations/0001_step_1\.sql .* new migration"):
        migrate(empty_database.url, release=edited)


def test_line_ends_of_windows_do_not_count_as_an_edit(
    empty_database: pg.Database, make_release: MakeRelease
) -> None:
    migrate(empty_database.url, release=make_release(TABLE + "\n-- end\n"))
    assert migrate(empty_database.url, release=make_release(TABLE + "\r\n-- end\r\n")).version == 1


def test_a_newer_database_is_refused_naming_both_versions(
    empty_database: pg.Database, make_release: MakeRelease
) -> None:
    migrate(empty_database.url, release=make_release(TABLE, INSERT))
    with pytest.raises(MigrationError, match=r"at migration 2 \(0002_step_2\), .* ends at 1: inst"):
        migrate(empty_database.url, release=make_release(TABLE))


def test_a_number_below_the_newest_applied_is_refused(
    empty_database: pg.Database, make_release: MakeRelease
) -> None:
    release = make_release(TABLE, INSERT)
    migrate(empty_database.url, release=release)
    with empty_database.connect() as conn:
        conn.execute("delete from rowcast.migration where version = 1")
    with pytest.raises(MigrationError, match=r"0001_step_1\.sql comes before migration 2"):
        migrate(empty_database.url, release=release)


def test_two_files_of_one_number_are_refused(tmp_path: Path, make_release: MakeRelease) -> None:
    make_release(TABLE)
    (tmp_path / "migrations" / "0001_other.sql").write_text("select;")
    with pytest.raises(MigrationError, match="have the same number"):
        Release.of((tmp_path / "sql").iterdir(), (tmp_path / "migrations").iterdir())


def test_a_migration_waits_for_the_application_in_short_turns(
    empty_database: pg.Database, make_release: MakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(runner.SETTINGS, "lock_timeout", "50ms")
    migrate(empty_database.url, release=make_release(TABLE))
    tried = threading.Event()

    def hear(event: str) -> None:
        if "0002_step_2.sql tries again" in event:
            tried.set()

    with empty_database.connect(autocommit=False) as app, ThreadPoolExecutor(1) as pool:
        app.execute("select from rowcast.thing")
        release = make_release(TABLE, COLUMN)
        run = pool.submit(migrate, empty_database.url, release=release, on_event=hear)
        assert tried.wait(30)
        app.rollback()
        assert run.result(timeout=30).migrations == ("0002_step_2",)


def test_a_lock_that_is_never_released_is_an_error(
    empty_database: pg.Database, make_release: MakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(runner.SETTINGS, "lock_timeout", "50ms")
    monkeypatch.setattr(runner, "PATIENCE", 0.0)
    migrate(empty_database.url, release=make_release(TABLE))
    with empty_database.connect(autocommit=False) as app:
        app.execute("select from rowcast.thing")
        with pytest.raises(MigrationError, match=r"0002_step_2\.sql was blocked .*lock timeout"):
            migrate(empty_database.url, release=make_release(TABLE, COLUMN))


def test_a_wrong_file_is_rolled_back_and_its_line_is_named(
    empty_database: pg.Database, make_release: MakeRelease
) -> None:
    wrong = make_release(TABLE, f"{INSERT}\n\nselect nonsense;")
    with pytest.raises(MigrationError, match=r'0002_step_2\.sql line 3: column "nonsense" does'):
        migrate(empty_database.url, release=wrong)
    assert pending(empty_database.url, release=wrong).version == 1
    with empty_database.connect() as conn:
        assert conn.execute("select count(*) from rowcast.thing").fetchone() == (0,)


def test_a_file_that_commits_is_refused(
    empty_database: pg.Database, make_release: MakeRelease
) -> None:
    with pytest.raises(MigrationError, match="remove its COMMIT"):
        migrate(empty_database.url, release=make_release(f"{TABLE} commit;"))


def test_all_code_is_applied_when_a_file_differs(
    empty_database: pg.Database, make_release: MakeRelease
) -> None:
    """Or on demand."""
    one = "create or replace function rowcast.one() returns integer language sql return 1;"
    url = empty_database.url
    assert migrate(url, release=make_release(TABLE, code=one)).code
    assert not migrate(url, release=make_release(TABLE, code=one)).code
    assert migrate(url, release=make_release(TABLE, code=one.replace("1;", "2;"))).code
    with empty_database.connect() as conn:
        assert conn.execute("select rowcast.one()").fetchone() == (2,)
        conn.execute("create or replace function rowcast.one() returns int language sql return 9")
        assert not migrate(url, release=make_release(TABLE, code=one.replace("1;", "2;"))).code
        migrate(url, release=make_release(TABLE, code=one.replace("1;", "2;")), reapply=True)
        assert conn.execute("select rowcast.one()").fetchone() == (2,)


def test_settings_of_the_login_do_not_affect_the_files(
    empty_database: pg.Database, make_release: MakeRelease
) -> None:
    with empty_database.connect() as conn:
        for setting in (
            "search_path = rowcast, public",
            "statement_timeout = 100",
            "default_transaction_read_only = on",
            "default_transaction_isolation = serializable",
        ):
            conn.execute(f"alter database {empty_database.name} set {setting}".encode())
    # Longer than that timeout, which holds until the runner has set its own.
    slow = f"{INSERT}\nselect pg_catalog.pg_sleep(0.3);"
    migrate(empty_database.url, release=make_release(TABLE, slow))


def test_a_database_of_another_encoding_is_refused(server: pg.Server) -> None:
    with psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute("create database rowcast_latin encoding latin1 locale 'C' template template0")
        try:
            with pytest.raises(MigrationError, match="UTF8"):
                migrate(server.url("rowcast_latin"))
        finally:
            admin.execute("drop database rowcast_latin")


def test_a_server_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(MigrationError, match=r"cannot be reached: nothing listens at 127.0.0.1:1"):
        migrate("postgresql://nobody@127.0.0.1:1/none")


def test_a_role_that_owns_nothing_else_applies_a_policy_file(
    database: pg.Database, tmp_path: Path
) -> None:
    file = tmp_path / "ours.sql"
    file.write_text("create policy ours on realtime_channels for select to anon using (enabled);")
    apply_policy_file(database.owner_url, file)
    with database.connect() as conn:
        assert conn.execute("select from pg_policy where polname = 'ours'").fetchone() is not None


def test_a_wrong_policy_file_is_rolled_back_and_named(
    database: pg.Database, tmp_path: Path
) -> None:
    file = tmp_path / "ours.sql"
    file.write_text(
        "create policy ours on realtime_channels for select using (true);\n"
        "create policy theirs on realtime_message for select using (true);\n"
    )
    with pytest.raises(MigrationError, match=r"ours\.sql: relation \"realtime_message\""):
        apply_policy_file(database.owner_url, file)
    with database.connect() as conn:
        assert conn.execute("select from pg_policy where polname = 'ours'").fetchone() is None


def test_a_policy_file_needs_rowcast_the_file_and_the_right(
    database: pg.Database, empty_database: pg.Database, tmp_path: Path
) -> None:
    with pytest.raises(MigrationError, match="cannot be read"):
        apply_policy_file(database.owner_url, tmp_path / "missing.sql")
    file = tmp_path / "ours.sql"
    file.write_text("select;")
    with pytest.raises(MigrationError, match="run `rowcast migrate` first"):
        apply_policy_file(empty_database.url, file)
    with pytest.raises(MigrationError, match='grant rowcast_owner to "rowcast_caller"'):
        apply_policy_file(database.caller_url, file)
