"""Unmodified SDKs of InsForge, and socket.io-client, against the real bridge."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.test_supabase_js import lines
from style.sources import ROOT
from support import pg
from support.bridge_process import DOOR_POLICIES, Daemon, open_bridge, token
from support.javascript import Node, blocks
from support.waiting import eventually

pytestmark = pytest.mark.acceptance

DOCUMENT = (ROOT / "python" / "docs" / "clients.md").read_text()
SDKS = ["@insforge/sdk", "insforge-sdk-1-3"]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture(scope="module")
def bridge(module_database: pg.Database) -> Iterator[Daemon]:
    with open_bridge(module_database, DOOR_POLICIES, lease=1) as running:
        yield running


def people() -> dict[str, str]:
    return {
        "ANON": token(None, "anon"),
        "ALICE": token("alice"),
        "BOB": token("bob"),
        "ADMIN": token("root", "rowcast_admin"),
        "EXPIRED": token("alice", exp=1),
    }


@pytest.mark.parametrize("package", SDKS)
def test_the_sdk_works_as_it_is(node: Node, bridge: Daemon, package: str) -> None:
    person = {**people(), "PACKAGE": package, "ROWCAST_URL": bridge.url}
    node.run("--test", "--test-force-exit", "insforge.js", **person)


@pytest.mark.parametrize("package", SDKS)
def test_an_application_reconnects_after_the_bridge_ends(
    node: Node, bridge: Daemon, module_database: pg.Database, package: str
) -> None:
    room = f"room:{uuid.uuid4().hex}"
    person = {**people(), "PACKAGE": package, "ROWCAST_URL": bridge.url, "ROOM": room}
    audience = "select rowcast.audience(%s)"
    present = "select count(*) from rowcast.presence_state(%s)"
    with (
        module_database.connect() as db,
        node.started("insforge_app.js", **person) as app,
    ):
        said = lines(app)
        assert [next(said), next(said)] == ["connect", "subscribed true"]
        for number, end in enumerate((bridge.kill, bridge.terminate)):
            end()
            if end == bridge.terminate:
                assert next(said) == "notification Server Shutdown"
            # not "io server disconnect", after which a client does not reconnect
            assert next(said) == "disconnect transport close"
            # the audience and members that the bridge left behind are gone, too
            eventually(lambda: db.execute(audience, [room]).fetchone() == (0,))
            bridge.start()
            while (line := next(said)) != "connect":
                # the latter when it connects before the bridge has reached the database
                assert line.startswith("connect_error") or line == "disconnect transport close"
            eventually(lambda: db.execute(audience, [room]).fetchone() == (1,))
            db.execute("select rowcast.publish(%s, 'e', %s)", [room, f'{{"n":{number}}}'])
            assert next(said) == f"heard {number}"
            eventually(lambda: db.execute(present, [room]).fetchone() == (1,))
        assert app.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            app.stdin.write("stop\n")
            app.stdin.flush()


def test_the_example_of_the_chapter_runs_as_written(node: Node, bridge: Daemon) -> None:
    chapter = DOCUMENT.partition("## InsForge clients")[2]
    [sdk, raw, *_] = blocks(chapter, "js")
    for text in (sdk, raw):
        assert text.count("\n") <= 7
        module = node.write(
            "lines.mjs",
            "setTimeout(() => { throw new Error('nothing was heard'); }, 20_000).unref();",
            "const [log, exit] = [console.log, process.exit];",
            "console.log = (...said) => { log(...said); if (said.includes('hi')) exit(); };",
            f"const [anonKey, userToken] = ['{token(None, 'anon')}', '{token('alice')}'];",
            text.replace("http://127.0.0.1:8080", bridge.url).replace("chat:room1", "room:lines"),
        )
        assert "hi" in node.run(module)
