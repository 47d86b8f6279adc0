"""One socket, from its opening to its end: handshake, requests and answers, liveness."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from .frames import Frame, RealtimeError, encode, parse, refusal

__all__ = ["LONGEST_PAUSE", "Link", "LostError", "Ticket"]

HANDSHAKE_TIMEOUT = 10.0
PING_ANSWER_TIMEOUT = 10.0
BUSY_PAUSE = 1.0
LONGEST_PAUSE = 3600.0
# Servers bound the unanswered requests of a session, each name of a subscription counted.
WINDOW = 64

Answer = Callable[[Frame | None], None]


class LostError(Exception):
    """The socket is gone.

    Args:
        code: the close code; 1006 when there was none.
        reason: what is known of why.
        refusal: the error frame that was the last frame, if it was one.
    """

    def __init__(self, code: int, reason: str, refused: RealtimeError | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.refusal = refused

    @property
    def final(self) -> bool:
        """Whether the server says not to come back."""
        return 3500 <= self.code < 4000


@dataclass(slots=True, eq=False)
class Ticket:
    """A request under way: how many answers it waits for, and who takes them."""

    ref: str
    text: str
    answer: Answer
    asks: int


class Link:
    """A connection.

    Args:
        socket: an open WebSocket.
        asked: called when somebody begins to wait for an answer.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, asked: Callable[[], None]) -> None:
        self._socket = socket
        self.asked = asked
        self._closed = False
        self._refs = itertools.count(1)
        self._tickets: dict[str, Ticket] = {}
        self._queue: deque[Ticket] = deque()
        self._unanswered = 0
        self._writable = asyncio.Event()
        self._refusal: RealtimeError | None = None
        self._abandoning: asyncio.Task[bool] | None = None
        self.greeting: Frame = {}
        self.limits: Frame = {}
        self.heartbeat = 25.0
        self.overlap = 10.0

    @property
    def waiting(self) -> bool:
        """Whether a request waits for its answer."""
        return bool(self._tickets or self._queue)

    async def greet(self, token: str | None) -> None:
        """Take the welcome and show who we are.

        Raises:
            LostError: the server did not want us, or did not answer in time.
        """
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                await self._greet(token)
        except TimeoutError:
            raise LostError(1006, "The server did not finish the handshake in time.") from None
        except RealtimeError as error:
            raise LostError(1002, str(error)) from error

    async def _greet(self, token: str | None) -> None:
        while (frame := await self._receive())["op"] != "welcome":
            self._note(frame)
        self.greeting = frame
        self.limits = frame["limits"] if isinstance(frame.get("limits"), dict) else {}
        self.heartbeat = max(_number(frame.get("heartbeat"), self.heartbeat), 0.05)
        overlap = frame.get("replayOverlap", self.limits.get("replayOverlap"))
        self.overlap = max(_number(overlap, self.overlap), 0.0)
        # Nothing else is sent before the answer: it would be judged as somebody else. Without a
        # token it is a ping: the server greets first, and only what it answers shows that it
        # took the key.
        request: Frame = {"op": "auth", "token": token} if token else {"op": "ping"}
        await self._socket.send_str(encode({**request, "ref": "0"}))
        while (frame := await self._receive()).get("ref") != "0":
            self._note(frame)
        if frame["op"] != "ok":
            error = refusal(frame)
            passing = error.code in ("unavailable", "rate_limited", "internal")
            raise LostError(1013 if passing else 3500, str(error), error)

    def ask(self, request: str, answer: Answer, asks: int = 1) -> Ticket:
        """Send a request when the window has room for what it asks.

        Args:
            request: an object's JSON text.
            answer: gets each answer, and None when the socket ended before.
            asks: how many answers will come.
        """
        ticket = Ticket(str(next(self._refs)), request, answer, asks)
        if self._closed:
            answer(None)
            return ticket
        self._queue.append(ticket)
        self._writable.set()
        self.asked()
        return ticket

    def insist(self, request: str, answer: Answer, wanted: Callable[[], bool]) -> None:
        """Ask again what the server was too busy for, while it is still wanted."""

        def again() -> None:
            if wanted():
                self.insist(request, answer, wanted)
            else:
                answer(None)

        def answered(frame: Frame | None) -> None:
            if frame is None or frame.get("code") != "rate_limited":
                answer(frame)
            else:
                pause = min(max(_number(frame.get("retryAfter"), BUSY_PAUSE), 0.0), LONGEST_PAUSE)
                asyncio.get_running_loop().call_later(pause, again)

        self.ask(request, answered)

    def forget(self, ticket: Ticket) -> None:
        """Wait for one answer less."""
        ticket.asks -= 1
        self._unanswered -= 1
        if ticket.asks == 0:
            self._tickets.pop(ticket.ref, None)
        self._writable.set()

    async def write(self) -> None:
        """Send what is asked, until the socket fails."""
        while True:
            while self._queue and (
                self._unanswered == 0 or self._unanswered + self._queue[0].asks <= WINDOW
            ):
                await self._send(self._queue.popleft())
            self._writable.clear()
            await self._writable.wait()

    async def _send(self, ticket: Ticket) -> None:
        self._unanswered += ticket.asks
        self._tickets[ticket.ref] = ticket
        # Reading finds the end as well, with its code, after what came before it.
        with contextlib.suppress(ConnectionError):
            await self._socket.send_str(f'{ticket.text[:-1]},"ref":"{ticket.ref}"}}')

    async def read(self) -> Frame:
        """The next frame that is not an answer. A silent server is asked whether it is there.

        Raises:
            LostError: the socket is gone.
            RealtimeError: a frame cannot be read; the next one may be.
        """
        while True:
            try:
                async with asyncio.timeout(2 * self.heartbeat):
                    frame = await self._receive()
            except TimeoutError:
                frame = await self._revive()
            if self._answered(frame):
                continue
            return frame

    async def _revive(self) -> Frame:
        # Past the window: it is full when the server is stuck.
        ping = Ticket(str(next(self._refs)), '{"op":"ping"}', lambda _: None, 1)
        try:
            async with asyncio.timeout(min(PING_ANSWER_TIMEOUT, self.heartbeat)):
                await self._send(ping)
                return await self._receive()
        except TimeoutError:
            raise LostError(1006, "The server stopped answering.") from None

    def _answered(self, frame: Frame) -> bool:
        ref = frame.get("ref")
        if frame["op"] not in ("ok", "error"):
            return False
        ticket = self._tickets.get(ref) if isinstance(ref, str) else None
        if ticket is None:
            if frame["op"] == "ok" or ref is not None:
                return True  # of a request that nobody waits for any more
            self._note(frame)
            return False
        # An error that names no channel refuses a whole subscribe frame.
        whole = frame["op"] == "error" and not isinstance(frame.get("channel"), str)
        for _ in range(ticket.asks if whole else 1):
            self.forget(ticket)
        ticket.answer(frame)
        return True

    def _note(self, frame: Frame) -> None:
        """An error that answers nothing says why the socket is closed, if nothing follows it."""
        if frame["op"] == "error" and frame.get("ref") is None:
            self._refusal = refusal(frame)

    async def _receive(self) -> Frame:
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            self._refusal = None
            return parse(message.data)
        if message.type is aiohttp.WSMsgType.BINARY:
            raise RealtimeError("invalid_frame", "The server sent a binary frame.")
        code = self._socket.close_code
        reason = message.extra or message.data
        raise LostError(
            1006 if code is None else int(code),
            str(reason) if isinstance(reason, str | Exception) else "",
            self._refusal,
        )

    def abandon(self) -> None:
        """Give up on a server that does not do what it was asked; reading then ends."""
        self._abandoning = asyncio.create_task(self._socket.close())

    async def close(self) -> None:
        """Leave, and tell those who wait."""
        self._closed = True
        tickets = [*self._tickets.values(), *self._queue]
        self._tickets.clear()
        self._queue.clear()
        for ticket in tickets:
            ticket.answer(None)
        await self._socket.close()


def _number(value: Any, otherwise: float) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return otherwise
