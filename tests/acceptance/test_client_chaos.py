"""Both clients on a network that keeps failing: every message arrives once, in order."""

from __future__ import annotations

import asyncio
import math
import random
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from rowcast_client import Message, connect
from support import pg
from support.bridge_process import Daemon, daemon, open_channels, token
from support.flaky_network import FlakyNetwork, flaky_network
from support.javascript import Node

pytestmark = pytest.mark.acceptance

CHANNELS = [f"chat:{n}" for n in range(4)]
MESSAGES = 3000
CUTS = 25
TIMEOUT = 90.0

# Prints the messages that it receives; its own messages are numbered by channel as well.
NODE_CLIENT = """
import { createClient } from 'rowcast-client';
const { URL: baseUrl, TOKEN: accessToken } = process.env;
const client = createClient({ baseUrl, accessToken, minDelay: 5, maxDelay: 50 });
client.realtime.on('error', (error) => console.log('error', error.code, error.message));
for (const name of process.env.CHANNELS.split(' ')) {
  const channel = client.realtime.channel(name);
  channel.on('message', (payload) => console.log(name, payload.from, payload.n));
  channel.on('resync', (event) => console.log('resync', JSON.stringify(event)));
  await channel.subscribe().ready;
}
console.log('ready');
for (let n = 0; n < 100; n += 1) {
  const message = { event: 'e', payload: { from: 'me', n } };
  const { error } = await client.realtime.channel('chat:0').send(message);
  if (error) console.log('unsent', n, error.code);
}
"""


@pytest.fixture
def bridge(database: pg.Database) -> Iterator[Daemon]:
    open_channels(database, "chat:*")
    with daemon(database) as running:
        yield running


def publish(database: pg.Database, writer: str) -> None:
    """Publish in order in each channel; every third transaction is rolled back."""
    chance = random.Random(writer)
    counts: dict[str, int] = defaultdict(int)
    with database.connect(database.owner_url, autocommit=False) as connection:
        while sum(counts.values()) < MESSAGES:
            batch = [chance.choice(CHANNELS) for _ in range(chance.randint(1, 10))]
            undone = chance.random() < 0.3
            for at, channel in enumerate(batch):
                n = -1 if undone else counts[channel] + batch[:at].count(channel)
                connection.execute(
                    "select rowcast.publish_as_system(%s, 'e', %s)",
                    [channel, Jsonb({"from": writer, "n": n})],
                )
            if undone:
                connection.rollback()
                continue
            connection.commit()
            for channel in batch:
                counts[channel] += 1
        for channel in CHANNELS:
            connection.execute(
                "select rowcast.publish_as_system(%s, 'e', %s)",
                [channel, Jsonb({"from": writer, "n": "end"})],
            )
        connection.commit()


async def cut_often(network: FlakyNetwork) -> None:
    chance = random.Random(7)
    for _ in range(CUTS):
        await asyncio.sleep(chance.uniform(0.01, 0.25))
        network.swallowing = chance.random() < 0.5
        await asyncio.sleep(chance.uniform(0, 0.05))
        network.cut()
        await network.connected.wait()


async def cut_everywhere(network: FlakyNetwork) -> None:
    """Cut connections after so many bytes, from the handshake to the replay."""
    for n in range(36):
        network.limits += [(math.inf, 67 * n), (17 * n, math.inf)]
    left = -1
    while network.limits:
        if left == len(network.limits):
            network.cut()  # after more bytes than any frame has
        left = len(network.limits)
        await asyncio.sleep(0.2)


Trouble = Callable[[FlakyNetwork], Coroutine[Any, Any, None]]
TROUBLES: list[Trouble] = [cut_often, cut_everywhere]


class Ledger:
    """Compare the messages that were received with those that were published."""

    def __init__(self) -> None:
        self.heard: dict[tuple[str, str], list[Any]] = defaultdict(list)
        self.trouble: list[str] = []
        self.complete = asyncio.Event()

    def note(self, channel: str, writer: str, n: Any) -> None:
        self.heard[channel, writer].append(n)
        ends = sum(ns[-1] == "end" for ns in self.heard.values())
        if ends == 2 * len(CHANNELS) and len(self.heard["chat:0", "me"]) >= 100:
            self.complete.set()

    def check(self) -> None:
        assert self.trouble == []
        for (channel, writer), numbers in self.heard.items():
            count = 100 if writer == "me" else len(numbers) - 1
            end = [] if writer == "me" else ["end"]
            assert numbers == [*range(count), *end], f"{writer} in {channel}"
        total = sum(len(ns) for (_, writer), ns in self.heard.items() if writer != "me")
        assert total >= 2 * (MESSAGES + len(CHANNELS))


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_the_python_client(database: pg.Database, bridge: Daemon, trouble: Trouble) -> None:
    ledger = Ledger()

    def hear(message: Message) -> None:
        ledger.note(message.channel, message.payload["from"], message.payload["n"])

    async with (
        asyncio.timeout(TIMEOUT),
        flaky_network(bridge.url) as network,
        connect(network.url, token=token("alice"), min_delay=0.005, max_delay=0.05) as realtime,
        asyncio.TaskGroup() as work,
    ):
        for name in CHANNELS:
            channel = realtime.channel(name).on("message", hear)
            channel.on("resync", lambda told: ledger.trouble.append(str(told)))
            await channel.subscribe()
        for writer in ("one", "two"):
            work.create_task(asyncio.to_thread(publish, database, writer))
        work.create_task(trouble(network))
        for n in range(100):
            await realtime.channel("chat:0").send("e", {"from": "me", "n": n})
        await ledger.complete.wait()
    ledger.check()


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_the_javascript_client(
    database: pg.Database, bridge: Daemon, tmp_path: Path, trouble: Trouble
) -> None:
    ledger = Ledger()
    node = await asyncio.to_thread(Node, tmp_path)
    module = node.write("client.mjs", NODE_CLIENT)
    async with asyncio.timeout(TIMEOUT), flaky_network(bridge.url) as network:
        environment = {"URL": network.url, "TOKEN": token("alice"), "CHANNELS": " ".join(CHANNELS)}
        process = await asyncio.create_subprocess_exec(
            *("node", module),
            cwd=tmp_path,
            env=node.environment(environment),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
            async with asyncio.TaskGroup() as work:
                for writer in ("one", "two"):
                    work.create_task(asyncio.to_thread(publish, database, writer))
                work.create_task(trouble(network))
                while not ledger.complete.is_set():
                    channel, *said = (await process.stdout.readline()).decode().split()
                    if channel in CHANNELS:
                        ledger.note(channel, said[0], said[1] if said[1] == "end" else int(said[1]))
                    else:
                        ledger.trouble.append(" ".join((channel, *said)))
        finally:
            process.kill()
            await process.wait()
    ledger.check()
