"""Fixtures of the acceptance tests."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rowcast_client import Message, Realtime
from support.scripted_client import Start, client, opened, subscribed
from support.scripted_server import ScriptedServer, start_scripted_server


@pytest.fixture
async def scripted_server() -> AsyncIterator[ScriptedServer]:
    """A server of the native wire whose frames the test writes."""
    async with start_scripted_server() as scripted_server:
        yield scripted_server


@pytest.fixture
async def start(scripted_server: ScriptedServer) -> AsyncIterator[Start]:
    """A client with one subscribed channel, what it hears, and the server's side of it."""
    clients: list[Realtime] = []

    async def begin(**options: Any) -> Any:
        welcome = options.pop("welcome", {})
        realtime = client(scripted_server, **options)
        clients.append(realtime)
        conversation = await opened(scripted_server, realtime, **welcome)
        heard: asyncio.Queue[Message] = asyncio.Queue()
        channel = realtime.channel("a").on("message", heard.put_nowait)
        await subscribed(conversation, channel)
        return realtime, channel, conversation, heard

    yield begin
    for realtime in clients:
        await realtime.close()


@pytest.fixture
def room() -> str:
    """The name of a channel that only this test uses; `room:*` must be open."""
    return f"room:{uuid.uuid4().hex}"
