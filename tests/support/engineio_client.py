"""A raw client of Socket.IO: sends and shows every packet, by polling or on a WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from support.bridge_process import token
from support.wire_client import ClosedError

__all__ = ["Polling", "SocketIO", "connect", "polling"]

TIMEOUT = 10.0
QUERY = "/socket.io/?EIO=4&transport="


class SocketIO:
    """One WebSocket. Packets read while waiting for another are kept in `passed`."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.passed: list[str] = []
        self._acks = itertools.count(1)

    async def read(self, within: float = TIMEOUT) -> str:
        """Return the next packet; answer it if it is a ping.

        Raises:
            ClosedError: the connection has closed.
        """
        message = await self.ws.receive(within)
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise ClosedError(self.ws.close_code)
        if message.data == "2":
            await self.ws.send_str("3")
        return str(message.data)

    async def until(self, want: Any, within: float = TIMEOUT) -> str:
        """Return the next packet that `want` accepts, first from `passed`."""
        for at, packet in enumerate(self.passed):
            if want(packet):
                return self.passed.pop(at)
        deadline = time.monotonic() + within
        while True:
            packet = await self.read(max(0.01, deadline - time.monotonic()))
            if want(packet):
                return packet
            self.passed.append(packet)

    async def login(self, **auth: Any) -> str:
        """Connect to the namespace; return the session id."""
        await self.ws.send_str("40" + json.dumps(auth or {"token": token()}))
        packet = await self.until(lambda p: p.startswith("40"))
        return str(json.loads(packet[2:])["sid"])

    async def emit(self, event: str, body: Any) -> None:
        await self.ws.send_str("42" + json.dumps([event, body]))

    async def ask(self, event: str, body: Any, within: float = TIMEOUT) -> Any:
        """Send an event and return its acknowledgement."""
        number = next(self._acks)
        await self.ws.send_str(f"42{number}" + json.dumps([event, body]))
        packet = await self.until(lambda p: p.startswith(f"43{number}["), within)
        return json.loads(packet[packet.index("[") :])[0]

    async def subscribe(self, channel: str) -> list[Any]:
        """Subscribe and return the members; fail if it is refused."""
        answer = await self.ask("realtime:subscribe", {"channel": channel})
        assert answer["ok"], answer
        members: list[Any] = answer["presence"]["members"]
        return members

    async def publish(self, channel: str, payload: Any, event: str = "e") -> Any:
        """Publish and return the acknowledgement."""
        body = {"channel": channel, "event": event, "payload": payload}
        return await self.ask("realtime:publish", body)

    async def heard(self, event: str = "e", within: float = TIMEOUT) -> Any:
        """Return the body of the next event with this name."""
        packet = await self.until(lambda p: p.startswith(f'42["{event}",'), within)
        return json.loads(packet[2:])[1]

    async def closed(self) -> int:
        """Read until the connection is closed; return the close code."""
        try:
            await self.until(lambda _: False)
        except ClosedError as end:
            return end.code
        raise AssertionError("unreachable")


@contextlib.asynccontextmanager
async def connect(url: str, query: str = "", **auth: Any) -> AsyncIterator[SocketIO]:
    """Open a WebSocket; log in unless `query` has an sid or ``login=False`` is given."""
    login = auth.pop("login", not query)
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=5)) as http,
        http.ws_connect(f"{url}{QUERY}websocket{query}", max_msg_size=0) as ws,
    ):
        client = SocketIO(ws)
        if login:
            await client.login(**auth)
        try:
            yield client
        finally:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                await asyncio.wait_for(ws.close(), 2)


class Polling:
    """A client that uses HTTP long polling."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self.http = http
        self.base = f"{url}{QUERY}polling"
        self.sid = ""

    async def get(self, query: str | None = None) -> tuple[int, str]:
        """Poll once; return status and body."""
        query = f"&sid={self.sid}" if query is None else query
        async with self.http.get(self.base + query) as answer:
            return answer.status, await answer.text()

    async def post(self, body: str | bytes) -> tuple[int, str]:
        """Post packets; return status and body."""
        async with self.http.post(f"{self.base}&sid={self.sid}", data=body) as answer:
            return answer.status, await answer.text()

    async def open(self, **auth: Any) -> None:
        """Open the session, and log in if credentials are given."""
        _, body = await self.get("")
        self.sid = json.loads(body[1:])["sid"]
        if auth:
            assert await self.post("40" + json.dumps(auth)) == (200, "ok")
            assert (await self.get())[1].startswith('40{"sid":')


@contextlib.asynccontextmanager
async def polling(url: str, **auth: Any) -> AsyncIterator[Polling]:
    """Open a polling client, logged in if credentials are given."""
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        client = Polling(http, url)
        await client.open(**auth)
        yield client
