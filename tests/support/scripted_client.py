"""A Python client and the scripted server it talks to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from rowcast_client import Channel, Message, Realtime, connect
from support.scripted_server import Conversation, ScriptedServer, soon

__all__ = ["Heard", "Start", "client", "ids", "opened", "settled", "subscribed", "told"]

Heard = asyncio.Queue[Message]
Start = Callable[..., Awaitable[tuple[Realtime, Channel, Conversation, Heard]]]


def client(server: ScriptedServer, **options: Any) -> Realtime:
    options = {"api_key": "anon", "min_delay": 0.001, "max_delay": 0.02, **options}
    return connect(server.url, **options)


async def opened(server: ScriptedServer, realtime: Realtime, **welcome: Any) -> Conversation:
    opening = asyncio.create_task(realtime.open())
    conversation = await server.next()
    await conversation.welcome(**welcome)
    await soon(opening)
    return conversation


async def subscribed(conversation: Conversation, *channels: Channel) -> None:
    for channel in channels:
        waiting = asyncio.create_task(channel.subscribe())
        await conversation.confirm()
        await soon(waiting)


async def ids(heard: asyncio.Queue[Message], count: int) -> list[str | None]:
    return [(await soon(heard.get())).id for _ in range(count)]


async def told(target: Any, kind: str) -> asyncio.Queue[Any]:
    queue: asyncio.Queue[Any] = asyncio.Queue()
    target.on(kind, queue.put_nowait)
    return queue


async def settled(realtime: Realtime, conversation: Conversation) -> None:
    """Return once the client has handled all earlier frames."""
    statuses = await told(realtime, "status")
    await conversation.say({"op": "status", "status": "ok"})
    await soon(statuses.get())
