"""The first page, followed step by step by a reader of nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from style.sources import ROOT
from support import pg
from support.command import environment, rowcast, started
from support.javascript import Node, blocks, chromium, reader
from support.waiting import eventually

pytestmark = pytest.mark.acceptance

PAGE = (ROOT / "README.md").read_text()
TUTORIAL = (ROOT / "python" / "docs" / "tutorial.md").read_text()
(EXAMPLE,) = blocks(PAGE, "sql")
INSERT = EXAMPLE[EXAMPLE.index("insert into") :]
AUDIENCE = "select rowcast.audience('chat:room1')"
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="the page uses curl")


@pytest.fixture
def env(scratch: Path) -> dict[str, str]:
    """An environment of the reader's own, with `rowcast` as a command."""
    programs = scratch / "bin"
    programs.mkdir()
    command = programs / "rowcast"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rowcast "$@"\n')
    command.chmod(0o755)
    plain = environment(scratch, pg_bin=pg.choose_binaries())
    return {**plain, "PATH": f"{programs}:{os.environ['PATH']}"}


def shell(
    script: str, url: str, env: dict[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    here = script.replace("http://127.0.0.1:8080", url)
    options: dict[str, Any] = {"cwd": folder, "capture_output": True, "text": True}
    done = subprocess.run(["sh", "-ec", here], env=env, timeout=60, check=False, **options)
    assert "Traceback" not in done.stderr
    return done


def in_browser(
    node: Node, running: dict[str, Any], subject: str, text: str, env: dict[str, str]
) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """Run JavaScript of the documents in Chromium, with a token for `subject`."""
    made = rowcast("token", "--sub", subject, env=env).stdout.strip()
    keys = f"const [anonKey, accessToken] = {[running['anon_key'], made]};"
    page = node.write(f"{subject}.mjs", keys, text.replace("http://127.0.0.1:8080", running["url"]))
    return node.started("chromium.js", page, ROWCAST_CHROMIUM=chromium())


def test_the_example_of_the_page_runs_as_written(env: dict[str, str], tmp_path: Path) -> None:
    """Its policy is the only one: the member's browser prints the row, the other is refused."""
    node = Node(tmp_path)
    (script,) = blocks(PAGE, "js")
    starting = ("dev", "--ephemeral", "--policies", "none", "--port", "0", "--json")
    with started(*starting, env=env) as command:
        running = command.json()
        with psycopg.connect(running["database_url"], autocommit=True) as owner:
            owner.execute(EXAMPLE.replace("Hello from psql", "before").encode())
            with (
                in_browser(node, running, "bob", script, env) as strange,
                in_browser(node, running, "alice", script, env) as member,
            ):
                assert "The policies do not allow this" in reader(strange.stdout)()
                read = reader(member.stdout)
                eventually(lambda: owner.execute(AUDIENCE).fetchone() == (1,))
                with owner.transaction(force_rollback=True):
                    owner.execute(INSERT.replace("Hello from psql", "never").encode())
                owner.execute(INSERT.encode())
                assert read() == "Hello from psql"
        command.stop()


@needs_curl
def test_the_tutorial_runs_as_written(env: dict[str, str], tmp_path: Path) -> None:
    with started("dev", "--ephemeral", "--port", "0", "--json", env=env) as command:
        running = command.json()
        with psycopg.connect(running["database_url"], autocommit=True) as owner:
            for statements in (EXAMPLE, *blocks(TUTORIAL, "sql")):
                owner.execute(statements.encode())
        folder = tmp_path / "work"
        folder.mkdir()
        for script in blocks(TUTORIAL, "sh"):
            done = shell(script, running["url"], env, folder)
            # exit code 4: the file to apply does not exist yet
            assert done.returncode in (0, 4), done
        assert '"text": "Hello from psql"' in done.stdout, "the last one reads history"


@needs_curl
def test_the_policies_of_the_page_are_the_only_ones(
    env: dict[str, str], scratch: Path, tmp_path: Path
) -> None:
    """`--policies none` leaves no policy beside them."""
    *_, history = blocks(TUTORIAL, "sh")
    starting = ("dev", "--data", str(scratch / "data"), "--port", "0", "--json")
    with started(*starting, env=env) as command:
        with psycopg.connect(command.json()["database_url"], autocommit=True) as owner:
            owner.execute(blocks(TUTORIAL, "sql")[0].encode())
            owner.execute(INSERT.encode())
        command.stop()
    with started(*starting, "--policies", "none", env=env) as command:
        url = command.json()["url"]
        for subject, code, word in (("alice", 0, "allow"), ("bob", 3, "deny")):
            read = shell(history.replace("alice", subject), url, env, tmp_path).stdout
            assert ("Hello from psql" in read) == (word == "allow"), read
            asked = ("--claims", f'{{"role": "authenticated", "sub": "{subject}"}}')
            for action in (("subscribe", "chat:room1"), ("publish", "chat:room1", "said")):
                done = rowcast("policy", "can", *action, *asked, env=env)
                assert (done.returncode, done.stdout.partition(":")[0].strip()) == (code, word), (
                    done
                )
        command.stop()


def test_a_members_browser_shows_exactly_what_was_committed(
    env: dict[str, str], tmp_path: Path
) -> None:
    """Runs both JavaScript blocks of the tutorial as one page, beside a non-member's."""
    node = Node(tmp_path)
    policies, publish, *_, recheck = blocks(TUTORIAL, "sql")
    starting = ("dev", "--ephemeral", "--policies", "none", "--port", "0", "--json")
    with started(*starting, env=env) as command:
        running = command.json()

        def tab(subject: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
            return in_browser(node, running, subject, "\n".join(blocks(TUTORIAL, "js")), env)

        with psycopg.connect(running["database_url"], autocommit=True) as owner:
            for statements in (policies, recheck):
                owner.execute(statements.encode())
            with tab("bob") as strange, tab("alice") as member:
                refused, read = reader(strange.stdout), reader(member.stdout)
                assert "The policies do not allow this" in refused()
                assert read() == 'join alice {"status":"online"}'
                with owner.transaction(force_rollback=True):
                    owner.execute(INSERT.replace("Hello from psql", "never").encode())
                owner.execute(INSERT.encode())
                assert read() == 'message.new {"text":"Hello from psql"}'
                owner.execute(publish.encode())
                assert read() == 'message.new {"text":"hi"}'
                owner.execute("delete from room_members")
                eventually(lambda: owner.execute(AUDIENCE).fetchone() == (0,))
