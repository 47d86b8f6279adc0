"""A raw client of the Phoenix wire, version 2.0.0: sends and shows every frame as it is."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp

from support.bridge_process import token
from support.wire_client import ClosedError

__all__ = ["Phoenix", "Pushed", "connect"]

TIMEOUT = 10.0


class Pushed(NamedTuple):
    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: Any

    @property
    def status(self) -> str:
        return str(self.payload["status"])

    @property
    def reason(self) -> str:
        return str(self.payload["response"]["reason"])


class Phoenix:
    """One WebSocket. Frames read while waiting for another are kept in `passed`."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.passed: list[Pushed] = []
        self._refs = itertools.count(1)

    async def send(self, topic: str, event: str, payload: Any) -> str:
        ref = str(next(self._refs))
        await self.ws.send_str(json.dumps(["j" + topic, ref, topic, event, payload]))
        return ref

    async def read(self, within: float = TIMEOUT) -> Pushed:
        """Return the next frame.

        Raises:
            ClosedError: the connection has closed.
        """
        message = await self.ws.receive(within)
        if message.type is aiohttp.WSMsgType.TEXT:
            return Pushed(*json.loads(message.data))
        raise ClosedError(self.ws.close_code)

    async def until(self, want: Any, within: float = TIMEOUT) -> Pushed:
        """Return the next frame that `want` accepts, first from `passed`."""
        for at, frame in enumerate(self.passed):
            if want(frame):
                return self.passed.pop(at)
        deadline = time.monotonic() + within
        while True:
            frame = await self.read(max(0.01, deadline - time.monotonic()))
            if want(frame):
                return frame
            self.passed.append(frame)

    async def ask(self, topic: str, event: str, payload: Any) -> Pushed:
        """Send a frame and return the reply to it."""
        ref = await self.send(topic, event, payload)
        return await self.until(lambda f: f.ref == ref and f.event == "phx_reply")

    async def join(self, channel: str, /, **broadcast: Any) -> None:
        """Join; fail if it is refused."""
        config = {"broadcast": {"ack": True, **broadcast}}
        reply = await self.ask(f"realtime:{channel}", "phx_join", {"config": config})
        assert reply.status == "ok", reply

    async def publish(self, channel: str, payload: Any, event: str = "e") -> Pushed:
        """Publish and return the reply."""
        body = {"type": "broadcast", "event": event, "payload": payload}
        return await self.ask(f"realtime:{channel}", "broadcast", body)

    async def system(self, channel: str) -> str:
        """Return the next `system` message about a channel."""
        topic = f"realtime:{channel}"
        frame = await self.until(lambda f: f.event == "system" and f.topic == topic)
        return str(frame.payload["message"])

    async def message(self, within: float = TIMEOUT) -> Any:
        """Return the next message of any channel: event, payload, meta."""
        return (await self.until(lambda f: f.event == "broadcast", within)).payload

    async def quiet(self) -> list[Pushed]:
        """Return all frames that came before the answer to a heartbeat."""
        ref = await self.send("phoenix", "heartbeat", {})
        await self.until(lambda f: f.ref == ref)
        passed, self.passed = self.passed, []
        return passed


@contextlib.asynccontextmanager
async def connect(
    url: str, bearer: str | None = None, path: str = "/realtime/v1/websocket"
) -> AsyncIterator[Phoenix]:
    """Connect with alice's token, or with `bearer`."""
    key = token() if bearer is None else bearer
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=5)) as http,
        http.ws_connect(f"{url}{path}?vsn=2.0.0&apikey={key}", max_msg_size=0) as ws,
    ):
        try:
            yield Phoenix(ws)
        finally:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                await asyncio.wait_for(ws.close(), 2)
