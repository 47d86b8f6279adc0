"""The unmodified `python-socketio` of PyPI against the real bridge: it polls, then upgrades."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import socketio

from support import pg
from support.bridge_process import DOOR_POLICIES, Daemon, open_bridge, token

pytestmark = pytest.mark.acceptance

DEADLINE = 15.0


@pytest.fixture(scope="module")
def bridge(module_database: pg.Database) -> Iterator[Daemon]:
    with open_bridge(module_database, DOOR_POLICIES) as running:
        yield running


@pytest.fixture
async def client(bridge: Daemon) -> AsyncIterator[socketio.AsyncClient]:
    client = socketio.AsyncClient(reconnection_delay=0.1, reconnection_delay_max=0.5)
    yield client
    await client.shutdown()


async def test_it_connects_publishes_hears_and_reconnects(
    bridge: Daemon, client: socketio.AsyncClient
) -> None:
    room = f"room:{uuid.uuid4().hex}"
    heard: asyncio.Queue[Any] = asyncio.Queue()
    connected: asyncio.Queue[bool] = asyncio.Queue()
    client.on("e", heard.put_nowait)
    client.on("connect", lambda: connected.put_nowait(True))
    await client.connect(bridge.url, auth={"token": token()})
    for restart in (bridge.restart, None):
        await asyncio.wait_for(connected.get(), DEADLINE)
        assert client.transport() == "websocket"
        answer = await client.call("realtime:subscribe", {"channel": room}, timeout=DEADLINE)
        assert answer["ok"]
        assert [m["presenceId"] for m in answer["presence"]["members"]] == ["alice"]
        message = {"channel": room, "event": "e", "payload": {"text": "häy"}}
        assert (await client.call("realtime:publish", message, timeout=DEADLINE))["ok"]
        assert (await asyncio.wait_for(heard.get(), DEADLINE))["text"] == "häy"
        if restart is not None:
            await asyncio.to_thread(restart)


async def test_a_bad_token_is_an_error_with_its_reason(
    bridge: Daemon, client: socketio.AsyncClient
) -> None:
    reasons: asyncio.Queue[Any] = asyncio.Queue()
    client.on("connect_error", reasons.put_nowait)
    with pytest.raises(socketio.exceptions.ConnectionError):
        await client.connect(bridge.url, auth={"token": token(exp=1)}, retry=False)
    assert "expired" in (await asyncio.wait_for(reasons.get(), DEADLINE))["message"]


async def test_it_works_with_polling_alone(bridge: Daemon, client: socketio.AsyncClient) -> None:
    heard: asyncio.Queue[Any] = asyncio.Queue()
    client.on("e", heard.put_nowait)
    await client.connect(bridge.url, auth={"token": token()}, transports=["polling"])
    await client.call("realtime:subscribe", {"channel": "room:polled"}, timeout=DEADLINE)
    for number in range(20):
        message = {"channel": "room:polled", "event": "e", "payload": {"n": number}}
        await client.emit("realtime:publish", message)
    for number in range(20):
        assert (await asyncio.wait_for(heard.get(), DEADLINE))["n"] == number
