"""A raw client of the native wire: sends and shows every frame as it is."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec

from support.bridge_process import token

__all__ = ["ClosedError", "Frame", "Wire", "connect"]

Frame = dict[str, Any]
TIMEOUT = 10.0


class ClosedError(Exception):
    """The connection is closed; `code` is the close code, 1006 if there was none."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"closed with {code}")
        self.code = code or 1006


def decode(data: str) -> Frame:
    """Decode a frame; numbers too large for msgspec stay text."""
    try:
        frame: Frame = msgspec.json.decode(data)
    except msgspec.ValidationError:
        frame = json.loads(data, parse_int=lambda digits: digits)
    return frame


class Wire:
    """One WebSocket. Frames read while waiting for another are kept in `passed`."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.passed: list[Frame] = []
        self.welcome: Frame = {}
        self._refs = itertools.count(1)

    async def send(self, /, **frame: Any) -> str:
        """Send a frame, with a new ref unless it has one; return the ref."""
        frame.setdefault("ref", f"r{next(self._refs)}")
        await self.ws.send_str(msgspec.json.encode(frame).decode())
        return str(frame["ref"])

    async def read(self, within: float = TIMEOUT) -> Frame:
        """Return the next frame.

        Raises:
            ClosedError: the connection has closed.
        """
        message = await self.ws.receive(within)
        if message.type is aiohttp.WSMsgType.TEXT:
            return decode(message.data)
        raise ClosedError(self.ws.close_code)

    async def until(self, want: Callable[[Frame], bool], within: float = TIMEOUT) -> Frame:
        """Return the next frame that `want` accepts, first from `passed`."""
        for at, frame in enumerate(self.passed):
            if want(frame):
                return self.passed.pop(at)
        deadline = time.monotonic() + within
        while True:
            try:
                frame = await self.read(max(0.01, deadline - time.monotonic()))
            except TimeoutError:
                raise AssertionError(f"not within {within} s; came: {self.passed}") from None
            if want(frame):
                return frame
            self.passed.append(frame)

    async def ask(self, /, within: float = TIMEOUT, **frame: Any) -> Frame:
        """Send a frame and return the answer to it."""
        ref = await self.send(**frame)
        return await self.until(lambda f: f.get("ref") == ref, within)

    async def subscribe(self, channel: str, /, **options: Any) -> Frame:
        """Subscribe; fail if it is refused."""
        answer = await self.ask(op="subscribe", channel=channel, **options)
        assert answer["op"] == "ok", answer
        return answer

    async def publish(self, channel: str, payload: Any, event: str = "e", /, **rest: Any) -> str:
        """Publish and return the id; fail if it is refused."""
        answer = await self.ask(op="publish", channel=channel, event=event, payload=payload, **rest)
        assert answer["op"] == "ok", answer
        return str(answer["id"])

    async def messages(self, count: int, within: float = TIMEOUT) -> list[Frame]:
        """Return the next `count` messages, however they are split into frames."""
        got: list[Frame] = []
        while len(got) < count:
            frame = await self.until(lambda f: f["op"] == "messages", within)
            got += frame["messages"]
        assert len(got) == count, got
        return got

    async def messages_some(self, count: int, within: float = TIMEOUT) -> int:
        """Take messages until there were at least `count`; return how many."""
        got = 0
        while got < count:
            got += len((await self.until(lambda f: f["op"] == "messages", within))["messages"])
        return got

    async def quiet(self) -> list[Frame]:
        """Return all frames that came before the answer to a ping."""
        ref = await self.send(op="ping")
        answer = await self.until(lambda f: f.get("ref") == ref)
        assert answer["op"] == "ok"
        passed, self.passed = self.passed, []
        return passed

    async def closed(self, within: float = TIMEOUT) -> int:
        """Read until the connection is closed; return the close code."""
        try:
            await self.until(lambda _: False, within)
        except ClosedError as end:
            return end.code
        raise AssertionError("unreachable")

    def cut(self) -> None:
        """Cut the connection without a close frame."""
        raw = self.ws.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.shutdown(socket.SHUT_RDWR)


@contextlib.asynccontextmanager
async def connect(
    url: str, bearer: str | None = None, *, welcome: bool = True, **options: Any
) -> AsyncIterator[Wire]:
    """Connect with alice's token, with `bearer`, or with none if that is empty."""
    query = f"?token={token() if bearer is None else bearer}" if bearer != "" else ""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=5)) as http,
        http.ws_connect(f"{url}/realtime{query}", max_msg_size=0, **options) as ws,
    ):
        wire = Wire(ws)
        try:
            if welcome:
                wire.welcome = await wire.until(lambda f: f["op"] == "welcome")
            yield wire
        finally:
            wire.cut()
            with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                await asyncio.wait_for(ws.close(), 2)
