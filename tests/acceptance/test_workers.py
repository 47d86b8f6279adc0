"""Several workers on one port: clients are spread, dead workers restart, all end together."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from rowcast_client import Message
from rowcast_client import connect as client
from support import pg
from support.bridge_process import Daemon, daemon, open_channels, token
from support.waiting import eventually
from support.wire_client import ClosedError, connect

pytestmark = pytest.mark.acceptance


@pytest.fixture
def opened(database: pg.Database) -> pg.Database:
    open_channels(database, "room:*")
    return database


@pytest.fixture
def bridge(opened: pg.Database) -> Iterator[Daemon]:
    with daemon(opened, workers=2) as running:
        yield running


def children(pid: int) -> list[int]:
    """Return the child processes of this one."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def say(database: pg.Database, payload: str) -> None:
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute("select rowcast.publish('room:1', 'e', to_jsonb(%s::text))", [payload])


async def test_clients_are_spread_and_receive_everything_once(
    bridge: Daemon, opened: pg.Database
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(connect(bridge.url)) for _ in range(40)]
        for wire in wires:
            await wire.subscribe("room:1")
        say(opened, "to all")
        for wire in wires:
            assert [m["payload"] for m in await wire.messages(1)] == ["to all"]
        shares = [open_files(pid) for pid in children(bridge.pid)]
        assert len(shares) == 2
        assert min(shares) > 15, "each has some of the clients"
        # Every worker returns the sums.
        for _ in range(5):
            assert bridge.metric("rowcast_connections") == 40
            assert bridge.metric("rowcast_subscriptions") == 40


async def test_a_dead_worker_is_restarted(bridge: Daemon, opened: pg.Database) -> None:
    """Its clients miss nothing."""
    heard: asyncio.Queue[Message] = asyncio.Queue()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            realtime = await stack.enter_async_context(
                client(bridge.url, token=token(), min_delay=0.05)
            )
            await realtime.channel("room:1").on("message", heard.put_nowait).subscribe()
        for round_ in range(2):
            for victim in children(bridge.pid):
                os.kill(victim, signal.SIGKILL)
                say(opened, f"{round_} {victim}")
                got = [await asyncio.wait_for(heard.get(), 20) for _ in range(8)]
                assert {m.payload for m in got} == {f"{round_} {victim}"}
                eventually(
                    lambda gone=victim: len(set(children(bridge.pid)) - {gone}) == 2,
                    timeout=30,
                    what="another worker",
                )
        assert heard.empty()
        assert bridge.log.count("event=worker_lost") == 4
        eventually(lambda: bridge.metric("rowcast_connections") == 8)


async def test_sigterm_ends_them_all_with_zero(bridge: Daemon) -> None:
    workers = children(bridge.pid)
    async with connect(bridge.url) as one, connect(bridge.url) as two:
        leaving = asyncio.gather(one.closed(), two.closed())
        bridge.signal(signal.SIGTERM)
        assert await leaving == [3000, 3000]
        assert await asyncio.to_thread(bridge.wait) == 0
    assert not [pid for pid in workers if alive(pid)]
    assert "Traceback" not in bridge.log


async def test_when_the_parent_is_killed_its_workers_end_too(bridge: Daemon) -> None:
    workers = children(bridge.pid)
    async with connect(bridge.url) as wire:
        os.kill(bridge.pid, signal.SIGKILL)
        assert await wire.closed() == 3000
    eventually(lambda: not [pid for pid in workers if alive(pid)], what="they end")


def test_what_keeps_a_worker_from_starting_ends_them_all(database: pg.Database) -> None:
    bridge = Daemon(database, workers=2, caller_url=database.bridge_url)
    try:
        bridge.launch()
        assert bridge.wait() == 1
        assert "ROWCAST_CALLER_URL" in bridge.log
        assert "before all could serve" in bridge.log
    finally:
        bridge.remove()


def test_a_port_in_use_is_refused_with_advice(
    opened: pg.Database,
) -> None:
    with daemon(opened) as alone:
        bridge = Daemon(opened, workers=2, port=alone.environment["PORT"])
        try:
            bridge.launch()
            assert bridge.wait() == 1
            assert "set ROWCAST_PORT" in bridge.log
        finally:
            bridge.remove()


def test_a_second_parent_needs_reuse_port(opened: pg.Database) -> None:
    """Otherwise the kernel would spread clients over both, even with different databases."""
    with daemon(opened, workers=2) as first:
        port = first.environment["PORT"]
        second = Daemon(opened, workers=2, port=port)
        try:
            second.launch()
            assert second.wait() == 1
            assert "set ROWCAST_PORT" in second.log
        finally:
            second.remove()
        with daemon(opened, workers=2, port=port, reuse_port="yes") as next_one:
            assert next_one.url == first.url
            assert first.terminate() == 0
            assert next_one.get("/livez")[0] == 200


async def test_bridges_on_a_shared_port_are_replaced_one_by_one(opened: pg.Database) -> None:
    with daemon(opened, reuse_port="yes") as old:
        async with connect(old.url) as wire:
            await wire.subscribe("room:1")
            with daemon(opened, reuse_port="yes", port=old.environment["PORT"]) as new:
                assert new.url == old.url
                old.signal(signal.SIGTERM)
                status = await wire.until(lambda f: f["op"] == "status")
                assert status["status"] == "draining"
                assert 0 < status["retryAfter"] <= 0.5
                with contextlib.suppress(ClosedError):
                    await wire.closed()
                assert await asyncio.to_thread(old.wait) == 0
                for _ in range(10):
                    async with connect(new.url) as again:
                        await again.subscribe("room:1")


def test_the_ready_line_names_the_workers(opened: pg.Database) -> None:
    bridge = Daemon(opened, workers=2)
    try:
        bridge.launch()
        assert bridge.process is not None
        assert bridge.process.stdout is not None
        said = json.loads(bridge.process.stdout.readline())
        assert said["event"] == "ready"
        assert said["pid"] == bridge.pid
        assert sorted(said["workers"]) == sorted(children(bridge.pid))
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", said["url"])
        assert bridge.terminate() == 0
    finally:
        bridge.remove()
