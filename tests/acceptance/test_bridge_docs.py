"""The examples of python/docs that the tests of other clients do not run, as written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from style.sources import ROOT
from support import pg
from support.bridge_process import Daemon, daemon, open_channels, token
from support.javascript import blocks

pytestmark = pytest.mark.acceptance

DOCS = ROOT / "python" / "docs"
# top-level await, as in `python -m asyncio`: the document leaves out the function
TOP_LEVEL = """
import ast, asyncio, sys
code = compile(sys.stdin.read(), "clients.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
asyncio.run(eval(code, {"token": sys.argv[1]}))
"""


@pytest.fixture
def bridge(database: pg.Database) -> Iterator[Daemon]:
    open_channels(database, "chat:*")
    with daemon(database) as running:
        yield running


def test_the_python_client_hears_what_it_sends(bridge: Daemon) -> None:
    ours = (DOCS / "clients.md").read_text().partition("## Our own clients")[2]
    (example,) = blocks(ours.partition("\n## ")[0], "python")
    done = subprocess.run(
        [sys.executable, "-c", TOP_LEVEL, token("alice")],
        input=example.replace("http://127.0.0.1:8080", bridge.url),
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("alice {'text': 'hi'}\n", "")


@pytest.mark.skipif(shutil.which("curl") is None, reason="the document uses curl")
def test_rest_makes_a_channel_and_reads_history(bridge: Daemon, database: pg.Database) -> None:
    (example,) = blocks((DOCS / "rest.md").read_text(), "sh")
    with database.connect(database.owner_url) as connection:
        connection.execute("select rowcast.publish_as_system('chat:room1', 'e', '{\"n\": 1}')")
    done = subprocess.run(
        ["sh", "-ec", example.replace("http://127.0.0.1:8080", bridge.url)],
        env={**os.environ, "ADMIN_KEY": token("root", "rowcast_admin"), "TOKEN": token("alice")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    made, end = json.JSONDecoder().raw_decode(done.stdout)
    assert made["pattern"] == "news:*"
    assert [message["payload"] for message in json.loads(done.stdout[end:])] == [{"n": 1}]
