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
AUDIENCE = "select rowcast.audience('chat:room1')"
LOOKS = PAGE.partition("## What it looks like")[2].partition("\n## ")[0]
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


@needs_curl
def test_the_tutorial_runs_as_written(env: dict[str, str], tmp_path: Path) -> None:
    with started("dev", "--ephemeral", "--port", "0", "--json", env=env) as command:
        running = command.json()
        with psycopg.connect(running["database_url"], autocommit=True) as owner:
            for statements in blocks(PAGE.partition("## What it looks like")[0], "sql"):
                owner.execute(statements.encode())
            for statements in blocks(LOOKS, "sql"):
                owner.execute(statements.encode())
        folder = tmp_path / "work"
        folder.mkdir()
        for script in blocks(LOOKS, "sh"):
            done = shell(script, running["url"], env, folder)
            # exit code 4: the file to apply does not exist yet
            assert done.returncode in (0, 4), done
        assert '"text": "Hello from psql"' in done.stdout, "the last one reads history"


@needs_curl
def test_the_policies_of_the_page_are_the_only_ones(
    env: dict[str, str], scratch: Path, tmp_path: Path
) -> None:
    """`--policies none` leaves no policy beside them."""
    (insert,) = blocks(PAGE.partition("## What it looks like")[0], "sql")
    *_, history = blocks(LOOKS, "sh")
    starting = ("dev", "--data", str(scratch / "data"), "--port", "0", "--json")
    with started(*starting, env=env) as command:
        with psycopg.connect(command.json()["database_url"], autocommit=True) as owner:
            owner.execute(blocks(LOOKS, "sql")[0].encode())
            owner.execute(insert.encode())
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
    """Runs both JavaScript blocks as one page under its policies, beside a non-member's."""
    node = Node(tmp_path)
    (insert,) = blocks(PAGE.partition("## What it looks like")[0], "sql")
    policies, publish, *_, recheck = blocks(LOOKS, "sql")
    starting = ("dev", "--ephemeral", "--policies", "none", "--port", "0", "--json")
    with started(*starting, env=env) as command:
        running = command.json()

        def page(subject: str) -> str:
            made = rowcast("token", "--sub", subject, env=env).stdout.strip()
            keys = f"const [anonKey, accessToken] = {[running['anon_key'], made]};"
            text = "\n".join(blocks(LOOKS, "js")).replace("http://127.0.0.1:8080", running["url"])
            return node.write(f"{subject}.mjs", keys, text)

        def tab(subject: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
            return node.started("chromium.js", page(subject), ROWCAST_CHROMIUM=chromium())

        with psycopg.connect(running["database_url"], autocommit=True) as owner:
            for statements in (policies, recheck):
                owner.execute(statements.encode())
            with tab("bob") as strange, tab("alice") as member:
                refused, read = reader(strange.stdout), reader(member.stdout)
                assert "The policies do not allow this" in refused()
                assert read() == 'join alice {"status":"online"}'
                with owner.transaction(force_rollback=True):
                    owner.execute(insert.replace("Hello from psql", "never").encode())
                owner.execute(insert.encode())
                assert read() == 'message.new {"text":"Hello from psql"}'
                owner.execute(publish.encode())
                assert read() == 'message.new {"text":"hi"}'
                owner.execute("delete from room_members")
                eventually(lambda: owner.execute(AUDIENCE).fetchone() == (0,))
