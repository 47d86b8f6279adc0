"""Unmodified realtime-js and supabase-js against the real bridge, on both protocol versions."""

from __future__ import annotations

import queue
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from rowcast.bridge.resume_handles import digest
from style.sources import ROOT
from support import pg
from support.bridge_process import DOOR_POLICIES, Daemon, open_bridge, token
from support.javascript import Node, blocks
from support.waiting import eventually

pytestmark = pytest.mark.acceptance

DOCUMENT = (ROOT / "python" / "docs" / "clients.md").read_text()
NEWEST = "@supabase/realtime-js"
# npm installs 2.109.0 on Node 20
CLIENTS = [(NEWEST, "2.0.0"), (NEWEST, "1.0.0"), ("realtime-js-2-109", "2.0.0")]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture(scope="module")
def bridge(module_database: pg.Database) -> Iterator[Daemon]:
    with open_bridge(module_database, DOOR_POLICIES) as running:
        yield running


def people() -> dict[str, str]:
    return {
        "ANON": token(None, "anon"),
        "ALICE": token("alice"),
        "BOB": token("bob"),
        "GUEST": token("alice", guest=True),
    }


@pytest.mark.parametrize(("package", "vsn"), CLIENTS)
def test_realtime_js_works_as_it_is(node: Node, bridge: Daemon, package: str, vsn: str) -> None:
    node.run(
        "--test",
        "--test-force-exit",
        "supabase.js",
        PACKAGE=package,
        VSN=vsn,
        ROWCAST_URL=bridge.url,
        **people(),
    )
    assert "internal_error" not in bridge.log, bridge.log[-3000:]


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """Yield its output line by line; fail if it stays silent for too long."""
    said: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.put(line.strip())
        said.put("")

    threading.Thread(target=read, daemon=True).start()
    while line := said.get(timeout=30):
        yield line


def until(said: Iterator[str], last: str) -> list[str]:
    """Return the lines up to `last`, inclusive."""
    seen = [next(said)]
    while seen[-1] != last:
        seen.append(next(said))
    return seen


def test_an_application_survives_a_killed_bridge_without_loss(
    node: Node, bridge: Daemon, module_database: pg.Database
) -> None:
    room, handle = f"room:{uuid.uuid4().hex}", uuid.uuid4().hex
    key = digest("authenticated:alice", handle, room)
    person = {**people(), "ROOM": room, "HANDLE": handle}
    with (
        module_database.connect() as db,
        node.started("supabase_app.js", ROWCAST_URL=bridge.url, **person) as app,
    ):
        said = lines(app)
        assert [next(said), *sorted([next(said), next(said)])] == [
            "SUBSCRIBED",
            "mine alice",
            "ok",
        ]
        written = "select from rowcast.handle where key = %s"
        eventually(lambda: db.execute(written, [key]).fetchone() is not None)
        bridge.kill()
        for number in range(3):
            db.execute("select rowcast.publish(%s, %s, '{}')", [room, f"missed{number}"])
        bridge.start()
        seen = until(said, "SUBSCRIBED")
        assert sorted([next(said), next(said)]) == ["mine alice", "ok"]
        missed = [line for line in seen if line.startswith("missed")]
        assert missed == [f"missed{number} system" for number in range(3)]
        assert app.stdin is not None
        app.stdin.write("stop\n")
        app.stdin.flush()
        assert "[ 'ok' ]" in list(said)


def test_the_example_of_the_chapter_runs_as_written(node: Node, bridge: Daemon) -> None:
    chapter = DOCUMENT.partition("## Supabase clients")[2]
    [lines, *_] = blocks(chapter, "js")
    assert lines.count("\n") <= 6
    module = node.write(
        "five.mjs",
        "import ws from 'ws'; globalThis.WebSocket ??= ws;",
        f"const [anonKey, userToken] = ['{token(None, 'anon')}', '{token('alice')}'];",
        "let other; const heard = new Promise((resolve) => { other = resolve; });",
        "setTimeout(() => { throw new Error('nothing was heard'); }, 20_000).unref();",
        lines.replace("http://127.0.0.1:8080", bridge.url).replace("chat:room1", "room:five"),
        "const second = createClient(supabase.supabaseUrl, anonKey);",
        "const listener = second.channel('room:five').on('broadcast', { event: '*' }, other);",
        "listener.subscribe(async (s) => {",
        "  if (s === 'SUBSCRIBED') await channel.httpSend('message.new', { text: 'again' });",
        "});",
        "console.log((await heard).payload.text);",
        "process.exit();",
    )
    assert "again" in node.run(module).splitlines()
