"""Three bridges are replaced one after the other under load, and no client misses a message."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import signal
import time
from typing import Any

import psycopg
import pytest

from acceptance.test_presence import ROOM, Watch
from rowcast_client import Message
from rowcast_client import connect as client
from support import pg
from support.bridge_process import Daemon, daemon, open_channels, token
from support.load_clients import LoadClients
from support.wire_client import connect

pytestmark = pytest.mark.acceptance

CLIENTS = 2000
REAL = 20
ROOMS = 20
BRIDGES = 3
PRESENT = 100
GRACE = 6


@pytest.fixture
def room_for_sockets() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(20_000, hard), hard))


async def publish(url: str, stop: asyncio.Event) -> dict[str, list[int]]:
    """Publish numbers to all rooms, durable and ephemeral; two in every third transaction."""
    said: dict[str, list[int]] = {f"room:{room}": [] for room in range(ROOMS)}
    number = 0
    async with await psycopg.AsyncConnection.connect(url) as connection:
        while not stop.is_set():
            async with connection.transaction():
                for _ in range(1 + (number % 3 == 0)):
                    number += 1
                    room = random.choice(list(said))
                    await connection.execute(
                        "select rowcast.publish(%s, 'e', to_jsonb(%s), %s)",
                        [room, number, "broadcast" if number % 4 == 0 else "message"],
                    )
                    said[room].append(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.03)
    return said


async def start(
    stack: contextlib.AsyncExitStack, database: pg.Database, **settings: Any
) -> list[Daemon]:
    """Start bridges that share a port."""
    bridges = [Daemon(database, reuse_port="yes", **settings) for _ in range(BRIDGES)]
    for bridge in bridges:
        stack.callback(bridge.remove)
    for bridge in bridges:
        bridge.environment["PORT"] = bridges[0].environment["PORT"]
        await asyncio.to_thread(bridge.start)
    return bridges


async def replace(bridge: Daemon) -> None:
    """Start another bridge on the port and end this one gracefully."""
    old, began = bridge.process, time.monotonic()
    assert old is not None
    bridge.launch()  # the next bridge starts on the same port before this one ends
    await asyncio.to_thread(bridge.wait_ready)
    old.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(old.wait, 30) == 0
    assert old.stdout is not None
    old.stdout.close()
    assert time.monotonic() - began < 30


async def test_a_rolling_restart_loses_and_repeats_nothing(
    database: pg.Database, room_for_sockets: None
) -> None:
    open_channels(database, "room:*")
    async with contextlib.AsyncExitStack() as stack:
        bridges = await start(stack, database)
        url = bridges[0].url
        port = int(url.rsplit(":", 1)[1])
        members = [(token(f"user{n}"), f"room:{n % ROOMS}") for n in range(CLIENTS)]
        load = await stack.enter_async_context(LoadClients(port, members))
        heard: dict[int, list[int]] = {n: [] for n in range(REAL)}
        connected = [0] * REAL
        for n in range(REAL):
            realtime = await stack.enter_async_context(client(url, token=token(f"real{n}")))

            def count(_told: object, n: int = n) -> None:
                connected[n] += 1

            realtime.on("connect", count)
            channel = realtime.channel(f"room:{n % ROOMS}")

            def hear(message: Message, n: int = n) -> None:
                heard[n].append(message.payload)
                load.progress.set()

            channel.on("*", hear)
            await channel.subscribe()

        stop = asyncio.Event()
        publishing = asyncio.create_task(publish(database.url, stop))
        for bridge in bridges:
            await replace(bridge)
            await load.connected(60)
        stop.set()
        said = await publishing

        async with asyncio.timeout(60):
            while any(len(s.got) < len(said[s.channel]) for s in load.clients) or any(
                len(heard[n]) < len(said[f"room:{n % ROOMS}"]) for n in range(REAL)
            ):
                load.progress.clear()
                await load.progress.wait()
        await load.connected(30)
        for member in load.clients:
            assert sorted(member.got) == said[member.channel]
            assert not member.doubled
            assert not member.unrecovered
        for n in range(REAL):
            assert sorted(heard[n]) == said[f"room:{n % ROOMS}"]
        # proof of the load: most clients had to reconnect
        assert sum(member.connections > 1 for member in load.clients) > CLIENTS / 2
        assert sum(map(len, said.values())) > 100


@pytest.mark.parametrize("workers", [1, 2])
async def test_only_members_that_do_not_reconnect_leave(
    database: pg.Database, workers: int
) -> None:
    """The watcher's bridge is not restarted, so that the watcher sees every event."""
    open_channels(database, "room:*")
    async with contextlib.AsyncExitStack() as stack:
        fixed = stack.enter_context(daemon(database, presence_grace=GRACE))
        wire = await stack.enter_async_context(connect(fixed.url, token("watcher")))
        watching = Watch(wire, (await wire.subscribe(ROOM))["presence"])
        bridges = await start(stack, database, workers=workers, presence_grace=GRACE)
        members = [(token(f"user{n}"), ROOM) for n in range(PRESENT * 2)]
        port = int(bridges[0].url.rsplit(":", 1)[1])
        load = await stack.enter_async_context(LoadClients(port, members, tracked=PRESENT))
        present = {f"user{n}": {"n": n} for n in range(PRESENT)}
        await watching.until(present)
        joined, watching.events = watching.events, []
        assert sorted(joined) == sorted(("join", key) for key in present)

        load.clients[0].leaving = True
        del present["user0"]
        leaving = asyncio.create_task(watching.until(present, within=120))
        for bridge in bridges:
            await replace(bridge)
            await load.connected(60)
        await leaving
        # long enough for another lost member to leave
        await watching.settle(GRACE + 1)
        assert watching.events == [("leave", "user0")]
        assert watching.present == present
        assert sum(member.connections > 1 for member in load.clients) > PRESENT
        with database.connect() as connection:
            counted = connection.execute("select rowcast.audience(%s)", [ROOM]).fetchone()
        assert counted == (PRESENT * 2,)  # with the watcher, without the one that left
