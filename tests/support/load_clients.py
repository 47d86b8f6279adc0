"""Thousands of minimal clients in one process, for load tests.

They follow the rules of the native wire (reconnect, resume, deduplicate) and count what they got.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec

__all__ = ["LoadClient", "LoadClients"]

UPGRADE = (
    "GET /realtime?token={token} HTTP/1.1\r\nHost: load\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Version: 13\r\n\r\n"
)
# connection attempts at a time: the arrivals of real clients are spread, too
CONNECTING = 200
TRACK = "2"


def frame(body: dict[str, Any]) -> bytes:
    """A text frame of a client; the mask is zero, so nothing has to be masked."""
    data = msgspec.json.encode(body)
    size = bytes((0x80 | len(data),)) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
    return b"\x81" + size + b"\0\0\0\0" + data


@dataclass(eq=False)
class LoadClient(asyncio.Protocol):
    """One client of one channel, which reconnects; with a `state` it is also a member."""

    group: LoadClients
    token: str
    channel: str
    state: dict[str, Any] | None = None
    got: list[Any] = field(default_factory=list)
    doubled: list[Any] = field(default_factory=list)
    connections: int = 0
    unrecovered: int = 0

    def __post_init__(self) -> None:
        self.cursor: str | None = None
        self.live = asyncio.Event()
        self.leaving = False  # do not reconnect
        self._seen: dict[str, float] = {}
        self._forgotten: set[str] = set()
        self._overlap = 10.0
        self._pause = 0.0
        self._buffer = b""
        self._upgraded = False
        self._gone: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    async def run(self, port: int) -> None:
        """Connect, and reconnect whenever the connection is lost."""
        loop = asyncio.get_running_loop()
        while True:
            self._buffer, self._upgraded = b"", False
            self._gone = loop.create_future()
            async with self.group.gate:
                with contextlib.suppress(OSError):
                    await loop.create_connection(lambda: self, "127.0.0.1", port)
                    live = asyncio.create_task(self.live.wait())
                    await asyncio.wait({live, self._gone}, return_when=asyncio.FIRST_COMPLETED)
                    live.cancel()
            if self.live.is_set():
                await self._gone
                self.live.clear()
            if self.leaving:
                return
            pause, self._pause = self._pause or random.uniform(0.05, 0.3), 0.0
            await asyncio.sleep(pause)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(UPGRADE.format(token=self.token).encode())

    def connection_lost(self, _error: Exception | None) -> None:
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._upgraded:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                assert self._transport is not None
                self._transport.abort()
                return
            self._upgraded, self._buffer = True, rest
        while (whole := self._frame()) is not None:
            self._take(*whole)

    def _frame(self) -> tuple[int, bytes] | None:
        data = self._buffer
        if len(data) < 2:
            return None
        size, at = data[1], 2
        if size >= 126:
            at = 4 if size == 126 else 10
            if len(data) < at:
                return None
            size = int.from_bytes(data[2:at], "big")
        if len(data) < at + size:
            return None
        self._buffer = data[at + size :]
        return data[0] & 15, data[at : at + size]

    def _take(self, opcode: int, body: bytes) -> None:
        assert self._transport is not None
        if opcode == 8:
            self._transport.write(b"\x88\x80\0\0\0\0")
            self._transport.close()
        elif opcode == 9:
            self._transport.write(b"\x8a\x80\0\0\0\0")
        elif opcode == 1:
            said = msgspec.json.decode(body)
            getattr(self, f"_on_{said['op']}", self._ignore)(said)

    def _ignore(self, _said: dict[str, Any]) -> None:
        pass

    def _on_welcome(self, said: dict[str, Any]) -> None:
        assert self._transport is not None
        self._overlap = said["replayOverlap"]
        asks: dict[str, Any] = {"op": "subscribe", "ref": "1", "channel": self.channel}
        if self.cursor is not None:
            asks["after"] = self.cursor
        self._transport.write(frame(asks))

    def _on_ok(self, said: dict[str, Any]) -> None:
        if said["ref"] == TRACK:
            self.live.set()
            return
        if self.cursor is not None and not (said["recovered"] and said["ephemeral"]):
            self.unrecovered += 1
        self.connections += 1
        self._adopt(said)
        if self.state is None:
            self.live.set()
        else:
            assert self._transport is not None
            asks = {"op": "track", "ref": TRACK, "channel": self.channel, "state": self.state}
            self._transport.write(frame(asks))

    def _on_error(self, _said: dict[str, Any]) -> None:
        assert self._transport is not None
        self._transport.abort()

    def _on_cursor(self, said: dict[str, Any]) -> None:
        self._adopt(said)

    def _adopt(self, said: dict[str, Any]) -> None:
        """Take the cursor of a frame: a replay may repeat only what came within the overlap."""
        if "cursor" in said:
            self.cursor = said["cursor"]
            before = time.monotonic() - self._overlap
            for known in [i for i, at in self._seen.items() if at < before]:
                del self._seen[known]
                self._forgotten.add(known)

    def _on_status(self, said: dict[str, Any]) -> None:
        self._pause = said.get("retryAfter", self._pause)

    def _on_messages(self, said: dict[str, Any]) -> None:
        for message in said["messages"]:
            if message["id"] in self._forgotten:
                self.doubled.append(message["payload"])
            elif message["id"] not in self._seen:
                self._seen[message["id"]] = time.monotonic()
                self.got.append(message["payload"])
                self.group.progress.set()


class LoadClients:
    """A group of load clients.

    Args:
        port: port of the bridges, on 127.0.0.1.
        members: (token, channel) of each client.
        tracked: how many of them, from the first, track ``{"n": number}`` as their state.
    """

    def __init__(self, port: int, members: list[tuple[str, str]], *, tracked: int = 0) -> None:
        self.port = port
        self.gate = asyncio.Semaphore(CONNECTING)
        self.progress = asyncio.Event()  # set by each new message
        self.clients = [
            LoadClient(self, token, channel, {"n": n} if n < tracked else None)
            for n, (token, channel) in enumerate(members)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> LoadClients:
        self._tasks = [asyncio.create_task(client.run(self.port)) for client in self.clients]
        await self.connected(120)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def connected(self, within: float) -> None:
        """Return when all clients are subscribed."""
        async with asyncio.timeout(within):
            for client in self.clients:
                if not client.leaving:
                    await client.live.wait()
