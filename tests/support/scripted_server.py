"""A server of the native wire for client tests: the test writes every frame the server sends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import WSMsgType, web

__all__ = ["Conversation", "ScriptedServer", "soon", "start_scripted_server"]

Frame = dict[str, Any]
TIMEOUT = 10.0


async def soon(awaitable: Any) -> Any:
    """Await with a deadline, so that a test fails instead of hanging."""
    return await asyncio.wait_for(awaitable, TIMEOUT)


class Conversation:
    """One connection, seen from the server."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        self.request = request
        self.socket = socket
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()
        self.ended = asyncio.Event()

    async def say(self, frame: Frame | str) -> None:
        await self.socket.send_str(frame if isinstance(frame, str) else json.dumps(frame))

    async def hear(self, op: str) -> Frame:
        frame: Frame = await soon(self.frames.get())
        assert frame["op"] == op, frame
        return frame

    async def ok(self, request: Frame, **more: Any) -> None:
        await self.say({"op": "ok", "ref": request["ref"], **more})

    async def refuse(self, request: Frame | None, code: str, **more: Any) -> None:
        ref = request["ref"] if request else None
        await self.say({"op": "error", "ref": ref, "code": code, "message": code, **more})

    async def messages(self, channel: str, ids: list[str], **more: Any) -> None:
        messages = [
            {
                "id": id_,
                "type": "message",
                "event": "said",
                "channel": channel,
                "payload": {"id": id_},
                "timestamp": "2026-01-01T00:00:00Z",
            }
            for id_ in ids
        ]
        await self.say({"op": "messages", "channel": channel, "messages": messages, **more})

    async def welcome(self, **more: Any) -> Frame:
        """Send the welcome and accept the client's first frame, whatever its token."""
        await self.say({"op": "welcome", "session": "s", "heartbeat": 25, "limits": {}, **more})
        frame: Frame = await soon(self.frames.get())
        await self.ok(frame)
        return frame

    async def confirm(self, cursor: str = "c0", **more: Any) -> Frame:
        """Read a subscribe request and allow all its channels."""
        request = await self.hear("subscribe")
        for channel in request.get("channels") or [request["channel"]]:
            await self.ok(request, channel=channel, cursor=cursor, **more)
        return request

    def cut(self) -> None:
        """Drop the connection without a close frame."""
        assert self.request.transport is not None
        self.request.transport.abort()


class ScriptedServer:
    """Accepts connections; each becomes a `Conversation`."""

    def __init__(self) -> None:
        self.url = ""
        self.conversations: asyncio.Queue[Conversation] = asyncio.Queue()

    async def next(self) -> Conversation:
        conversation: Conversation = await soon(self.conversations.get())
        return conversation

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        conversation = Conversation(request, socket)
        await self.conversations.put(conversation)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await conversation.frames.put(json.loads(message.data))
        conversation.ended.set()
        return socket


@contextlib.asynccontextmanager
async def start_scripted_server() -> AsyncIterator[ScriptedServer]:
    """Run a scripted server on a free port."""
    server = ScriptedServer()
    app = web.Application()
    app.router.add_get("/realtime", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()
