"""The JavaScript client: its rules against a scripted server, and the product's page against the
real bridge, in Node and in Chromium."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.types.json import Jsonb

from support import pg
from support.bridge_process import Daemon, daemon, open_channels, token
from support.javascript import SCRIPTS, WEB, Node, blocks, chromium, reader, snippets

pytestmark = pytest.mark.acceptance

PAGE = snippets()
RUNTIMES = ["node", "chromium"]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture(scope="module")
def bridge(module_database: pg.Database) -> Iterator[Daemon]:
    open_channels(module_database, "chat:*", "user:*:notifications", "document:*")
    with daemon(module_database) as running:
        yield running


def adapted(text: str, url: str, runtime: str) -> str:
    """Return a snippet with the four values replaced that a reader replaces."""
    path = f"{url}/client.js" if runtime == "chromium" else "rowcast-client"
    return (
        text.replace("@insforge/sdk", path)
        .replace("https://your-app.region.insforge.app", url)
        .replace("http://127.0.0.1:8080", url)
        .replace("your-anon-key", token(None, "anon"))
        .replace("your-access-token", token("alice"))
    )


def run(node: Node, runtime: str, url: str, *parts: str) -> list[str]:
    """Run the parts as one module to its last line; return the lines of its console."""
    whole = [*(adapted(part, url, runtime) for part in parts), "console.log('DONE');"]
    module = node.write("page.mjs", *whole)
    output = node.run(module) if runtime == "node" else node.page(module)
    return output.splitlines()


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.test.js")))
def test_the_client_keeps_the_rules_of_the_wire(node: Node, script: str) -> None:
    node.run("--test", "--test-reporter=dot", script)


def test_the_types_describe_the_client(node: Node) -> None:
    options = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext"]
    node.run("node_modules/typescript/bin/tsc", *options, "types.ts")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_snippets_of_the_page_run_as_written(node: Node, bridge: Daemon, runtime: str) -> None:
    """Connecting, subscribing, publishing and leaving."""
    lines = run(
        node,
        runtime,
        bridge.url,
        PAGE["Connecting"][0],
        PAGE["Connection states"][0],
        "const heard = new Promise((resolve) => {",
        "  client.realtime.channel('chat:room1').on('*', resolve);",
        "});",
        PAGE["Subscribing"][0],
        PAGE["Publishing"][0],  # on the socket of the subscription, right behind it
        "await heard;",
        PAGE["Unsubscribing"][0],
        "client.realtime.disconnect();",
        "await client.realtime.connect();",
        "client.realtime.disconnect();",
    )
    text = "\n".join(lines)
    assert lines[0] == "Connected to real-time server"
    assert text.count("Message:") == 1
    assert "Hello, world!" in text
    assert lines.count("Disconnected") == 2
    assert lines.count("Connected") == 1
    assert "Error" not in text
    assert "Failed" not in text


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_chat_of_the_page_runs_as_written(node: Node, bridge: Daemon, runtime: str) -> None:
    lines = run(
        node,
        runtime,
        bridge.url,
        PAGE["Connecting"][0],
        "const [roomId, text, userId] = ['7', 'hi', '123'];",
        "let heard; const message = new Promise((resolve) => { heard = resolve; });",
        "const handleMessage = (payload, whole) => heard([payload, whole]);",
        *PAGE["Chat"],
        "const [payload, whole] = await message;",
        "const { senderId, channel, event } = whole;",
        "console.log(`${payload.text} from ${senderId} in ${channel}: ${event}`);",
        "console.log(Object.keys(whole).sort().join());",
        "sub.unsubscribe(); client.realtime.disconnect();",
    )
    assert "hi from alice in chat:7: message.new" in lines
    assert "channel,event,id,payload,senderId,timestamp,type" in lines


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_notifications_of_the_page_run_as_written(
    node: Node, bridge: Daemon, runtime: str
) -> None:
    lines = run(
        node,
        runtime,
        bridge.url,
        PAGE["Connecting"][0],
        "const userId = 'alice';",
        "let shown; const notification = new Promise((resolve) => { shown = resolve; });",
        "const showNotification = (payload) => shown(payload);",
        *PAGE["Notifications"],
        "console.log((await notification).title);",
        "client.realtime.disconnect();",
    )
    assert "New message" in lines


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_refused_subscription_and_a_bad_token_are_told(
    node: Node, bridge: Daemon, runtime: str
) -> None:
    lines = run(
        node,
        runtime,
        bridge.url,
        PAGE["Connecting"][0],
        "const { ready } = client.realtime.channel('nothing:here')",
        "  .on('error', ({ code, channel }) => console.log('refused', code, channel)).subscribe();",
        "await ready.catch((error) => console.log('ready', error.code));",
        "client.realtime.disconnect();",
        "const baseUrl = 'https://your-app.region.insforge.app';",
        "for (const options of [{ anonKey: 'wrong' }, { accessToken: 'wrong' }]) {",
        "  const other = createClient({ baseUrl, ...options });",
        "  await other.realtime.connect().catch(({ code }) => console.log('connect', code));",
        "}",
    )
    assert "refused forbidden nothing:here" in lines
    assert "ready forbidden" in lines
    assert lines.count("connect invalid_token") == 2


def test_another_user_keeps_the_channels_and_the_presence(node: Node, bridge: Daemon) -> None:
    """For another user the server opens another session, and no subscription stays behind."""
    lines = run(
        node,
        "node",
        bridge.url,
        PAGE["Connecting"][0],
        "const channel = client.realtime.channel('chat:else');",
        "const heard = new Promise((resolve) => { channel.on('message', (_, m) => resolve(m)); });",
        "const present = new Promise((resolve) => {",
        "  channel.on('presence', ({ type, key }) => { if (type + key === 'joinbob') resolve();",
        "  });",
        "});",
        "await channel.subscribe().ready;",
        "await channel.track({ on: true });",
        f"await client.realtime.connect({{ accessToken: '{token('bob')}' }});",
        "await channel.send({ event: 'e' });",
        "console.log('heard', (await heard).senderId);",
        "await present;",
        "client.realtime.disconnect();",
    )
    assert "heard bob" in lines


def test_the_page_of_the_bridge_shows_what_the_readme_inserts(
    node: Node, bridge: Daemon, module_database: pg.Database
) -> None:
    """A row that is rolled back is not shown."""
    readme = (WEB.parents[2] / "README.md").read_text()
    (example,) = blocks(readme, "sql")
    insert = example[example.index("insert into") :]
    url = f"{bridge.url}/#key={token(None, 'anon')}"
    with node.started("visit.js", url, ROWCAST_CHROMIUM=chromium()) as visit:
        assert visit.stdout is not None
        assert visit.stdout.readline() == "SENT\n"
        with module_database.connect(autocommit=False) as connection:
            connection.execute(insert.replace("Hello from psql", "never").encode())
            connection.rollback()
            connection.execute(insert.encode())
        assert visit.stdout.readline() == "HEARD\n"
        # Before these the page shows messages of other tests in this channel.
        shown = json.loads(visit.stdout.readline())
        assert shown[-2:] == ["from the page", "Hello from psql"]
        assert "never" not in shown
        assert visit.wait(30) == 0


def test_what_the_clients_document_runs_as_written(node: Node, bridge: Daemon) -> None:
    text = (WEB / "README.md").read_text()
    connecting, using, leaving = blocks(text, "js")
    heard = "let heard; const message = new Promise((resolve) => { heard = resolve; });"
    listening = "client.realtime.channel('chat:room1').on('*', heard);"
    parts = (connecting, heard, listening, using, "await message;", leaving)
    lines = run(node, "node", bridge.url, *parts)
    assert lines[:2] == ["alice Hello", "offline: The client was disconnected."]
    (python,) = blocks(text, "python")
    done = subprocess.run(
        [sys.executable, "-c", adapted(python, bridge.url, "python")],
        env={**os.environ, "PYTHONPATH": str(WEB.parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("alice Hello\n", "")


LISTENER = """
import { createClient } from '@insforge/sdk';
const baseUrl = 'https://your-app.region.insforge.app';
const client = createClient({ baseUrl, anonKey: 'your-anon-key', minDelay: 20 });
client.realtime.on('disconnect', () => console.log('gone'));
const subscription = client.realtime.channel('chat:room1')
  .on('message', (payload, message, meta) => console.log(`${payload.n} ${meta.replay}`))
  .on('resync', (event) => console.log('resync', JSON.stringify(event)))
  .subscribe();
client.realtime.on('reconnecting', async ({ attempt }) => {
  if (attempt > 1) return;
  const message = { event: 'e', payload: { n: 4 } }; // waits for the connection
  const { error } = await client.realtime.channel('chat:room1').send(message);
  console.log('sent', error ? error.code : 'ok');
});
await subscription.ready;
console.log('ready');
"""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_killed_bridge_costs_no_message_and_repeats_none(
    node: Node, database: pg.Database, runtime: str
) -> None:
    open_channels(database, "chat:*")

    def publish(n: int) -> None:
        with database.connect(database.owner_url) as connection:
            connection.execute(
                "select rowcast.publish_as_system('chat:room1', 'e', %s)", [Jsonb({"n": n})]
            )

    with daemon(database) as running:
        module = node.write("listener.mjs", adapted(LISTENER, running.url, runtime))
        browser = [] if runtime == "node" else ["chromium.js"]
        chosen = {"ROWCAST_CHROMIUM": chromium()} if browser else {}
        with node.started(*browser, module, **chosen) as process:
            read = reader(process.stdout)
            assert read() == "ready"
            publish(1)
            assert read() == "1 false"
            running.kill()
            assert read() == "gone"
            publish(2)
            publish(3)
            running.start()
            lines = [read() for _ in range(4)]
            assert lines.count("sent ok") == 1
            heard = [line.split() for line in lines if line != "sent ok"]
            assert [n for n, _ in heard] == ["2", "3", "4"]
            assert [replayed for _, replayed in heard[:2]] == ["true", "true"]
            publish(5)
            assert read() == "5 false"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_presence_of_the_page_runs_as_written(node: Node, bridge: Daemon, runtime: str) -> None:
    lines = run(
        node,
        runtime,
        bridge.url,
        PAGE["Connecting"][0],
        PAGE["Presence"][0],
        "const seen = (type) => new Promise((resolve) => {",
        "  channel.on('presence', (event) => {",
        "    if (event.type === type && event.key === 'bob') resolve(event);",
        "  });",
        "});",
        "const [came, gone] = [seen('join'), seen('leave')];",
        "const baseUrl = 'https://your-app.region.insforge.app';",
        f"const other = createClient({{ baseUrl, accessToken: '{token('bob')}' }});",
        "await other.realtime.channel('chat:room1').track({ username: 'Bob' });",
        "await came;",
        "console.log('state', JSON.stringify(channel.presenceState().map((s) => s.username)));",
        "other.realtime.disconnect();",
        "await gone;",
        "await channel.untrack();",
        "console.log('after', channel.presenceState().length);",
        "client.realtime.disconnect();",
    )
    text = "\n".join(lines)
    assert 'User joined: {"username":"Bob"}' in text or "User joined: { username: 'Bob' }" in text
    assert "User left:" in text
    assert 'state ["John","Bob"]' in text
    assert "after 0" in text


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_live_cursors_of_the_page_run_as_written(
    node: Node, bridge: Daemon, runtime: str
) -> None:
    """In a browser the mouse events are those of a real document."""
    page = "const document = new EventTarget();" if runtime == "node" else ""
    event = "Object.assign(new Event('mousemove'), { clientX: x, clientY: 2 * x })"
    if runtime == "chromium":
        event = "new MouseEvent('mousemove', { clientX: x, clientY: 2 * x })"
    lines = run(
        node,
        runtime,
        bridge.url,
        page,
        PAGE["Connecting"][0],
        "const userId = 'alice';",
        "let shown = () => {};",
        "const renderCursors = (users) => shown(users);",
        PAGE["Cursors"][0],
        "const until = (check) => new Promise((resolve) => {",
        "  shown = (users) => { if (check(users)) resolve(users); };",
        "});",
        "const baseUrl = 'https://your-app.region.insforge.app';",
        f"const other = createClient({{ baseUrl, accessToken: '{token('bob')}' }});",
        "const both = until((users) => users.length === 2",
        "  && users.some((user) => user.cursor.x === 199));",
        "await other.realtime.channel('document:123')"
        ".track({ user_id: 'bob', cursor: { x: 5, y: 6 } });",
        "for (let x = 0; x < 200; x += 1) {",
        f"  document.dispatchEvent({event});",
        "  if (x % 20 === 0) await new Promise((resolve) => { setTimeout(resolve, 10); });",
        "}",
        "for (const { user_id, cursor } of await both) console.log(user_id, cursor.x, cursor.y);",
        "other.realtime.disconnect();",
        "const alone = await until((users) => users.length === 1);",
        "console.log('left with', alone[0].user_id);",
        "client.realtime.disconnect();",
    )
    assert sorted(line for line in lines if line.startswith(("alice", "bob"))) == [
        "alice 199 398",
        "bob 5 6",
    ]
    assert "left with alice" in lines
