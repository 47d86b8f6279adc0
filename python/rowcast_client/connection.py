"""One WebSocket from the handshake to its end: requests, answers and liveness."""

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

__all__ = ["LONGEST_PAUSE", "Connection", "LostError", "Request"]

HANDSHAKE_TIMEOUT = 10.0
PING_ANSWER_TIMEOUT = 10.0
BUSY_PAUSE = 1.0
LONGEST_PAUSE = 3600.0
# Servers limit the unanswered requests of a session; each channel of a subscribe counts.
WINDOW = 64

Answer = Callable[[Frame | None], None]


class LostError(Exception):
    """The WebSocket is closed.

    Args:
        code: the close code; 1006 when there was none.
        reason: the reason, as far as it is known; may be empty.
        refused: the last frame, if it was an error frame.
    """

    def __init__(self, code: int, reason: str, refused: RealtimeError | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.refusal = refused

    @property
    def final(self) -> bool:
        """Whether the close code tells the client not to reconnect."""
        return 3500 <= self.code < 4000


@dataclass(slots=True, eq=False)
class Request:
    """A request, the number of answers that it waits for, and the function that takes them."""

    ref: str
    text: str
    answer: Answer
    expected: int


class Connection:
    """An open WebSocket.

    Args:
        socket: the WebSocket of aiohttp.
        on_request: called when a request begins to wait for its answer.
    """

    def __init__(
        self, socket: aiohttp.ClientWebSocketResponse, on_request: Callable[[], None]
    ) -> None:
        self._socket = socket
        self._on_request = on_request
        self._closed = False
        self._refs = itertools.count(1)
        self._requests: dict[str, Request] = {}  # sent, by ref
        self._queue: deque[Request] = deque()  # not sent yet
        self._unanswered = 0
        self._writable = asyncio.Event()
        self._refusal: RealtimeError | None = None
        self._aborting: asyncio.Task[bool] | None = None
        self.greeting: Frame = {}
        self.limits: Frame = {}
        self.heartbeat = 25.0
        self.overlap = 10.0

    def awaits_answer(self) -> bool:
        """Return whether a request waits for its answer."""
        return bool(self._requests or self._queue)

    async def handshake(self, token: str | None) -> None:
        """Receive the welcome and present the token.

        Raises:
            LostError: the server refused the client, or did not answer in time.
        """
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                await self._handshake(token)
        except TimeoutError:
            raise LostError(1006, "The server did not finish the handshake in time.") from None
        except RealtimeError as error:
            raise LostError(1002, str(error)) from error

    async def _handshake(self, token: str | None) -> None:
        while (frame := await self._receive())["op"] != "welcome":
            self._keep_refusal(frame)
        self.greeting = frame
        self.limits = frame["limits"] if isinstance(frame.get("limits"), dict) else {}
        self.heartbeat = max(_number(frame.get("heartbeat"), self.heartbeat), 0.05)
        overlap = frame.get("replayOverlap", self.limits.get("replayOverlap"))
        self.overlap = max(_number(overlap, self.overlap), 0.0)
        # Nothing else is sent before the answer: the server would still treat the client as
        # anonymous. Without a token the request is a ping: the server sends its welcome before it
        # checks the API key, so only an answer shows that the key was accepted.
        request: Frame = {"op": "auth", "token": token} if token else {"op": "ping"}
        await self._socket.send_str(encode({**request, "ref": "0"}))
        while (frame := await self._receive()).get("ref") != "0":
            self._keep_refusal(frame)
        if frame["op"] != "ok":
            error = refusal(frame)
            temporary = error.code in ("unavailable", "rate_limited", "internal")
            raise LostError(1013 if temporary else 3500, str(error), error)

    def request(self, text: str, answer: Answer, expected: int = 1) -> Request:
        """Send a request as soon as the window has room for its answers.

        Args:
            text: the JSON text of an object.
            answer: called with each answer, and with None when the connection ends before.
            expected: number of answers.
        """
        request = Request(str(next(self._refs)), text, answer, expected)
        if self._closed:
            answer(None)
            return request
        self._queue.append(request)
        self._writable.set()
        self._on_request()
        return request

    def request_until_accepted(self, text: str, answer: Answer, wanted: Callable[[], bool]) -> None:
        """Send a request, and repeat it while the server is too busy for it.

        Args:
            text: the JSON text of an object.
            answer: called with the final answer, or with None.
            wanted: whether to repeat it.
        """

        def again() -> None:
            if wanted():
                self.request_until_accepted(text, answer, wanted)
            else:
                answer(None)

        def answered(frame: Frame | None) -> None:
            if frame is None or frame.get("code") != "rate_limited":
                answer(frame)
            else:
                pause = min(max(_number(frame.get("retryAfter"), BUSY_PAUSE), 0.0), LONGEST_PAUSE)
                asyncio.get_running_loop().call_later(pause, again)

        self.request(text, answered)

    def expect_one_less(self, request: Request) -> None:
        """Count an answer that has arrived, or will not."""
        request.expected -= 1
        self._unanswered -= 1
        if request.expected == 0:
            self._requests.pop(request.ref, None)
        self._writable.set()

    async def write(self) -> None:
        """Send queued requests until the task is cancelled."""
        while True:
            while self._queue and (
                self._unanswered == 0 or self._unanswered + self._queue[0].expected <= WINDOW
            ):
                await self._send(self._queue.popleft())
            self._writable.clear()
            await self._writable.wait()

    async def _send(self, request: Request) -> None:
        self._unanswered += request.expected
        self._requests[request.ref] = request
        # `read` also finds that the connection is lost, with its code and after earlier frames.
        with contextlib.suppress(ConnectionError):
            await self._socket.send_str(f'{request.text[:-1]},"ref":"{request.ref}"}}')

    async def read(self) -> Frame:
        """Return the next frame that is not an answer. A silent server is pinged.

        Raises:
            LostError: the connection has ended.
            RealtimeError: a frame cannot be read; later ones may be.
        """
        while True:
            try:
                async with asyncio.timeout(2 * self.heartbeat):
                    frame = await self._receive()
            except TimeoutError:
                frame = await self._probe()
            if self._answered(frame):
                continue
            return frame

    async def _probe(self) -> Frame:
        # The ping ignores the window, which is full when the server is stuck.
        ping = Request(str(next(self._refs)), '{"op":"ping"}', lambda _: None, 1)
        try:
            async with asyncio.timeout(min(PING_ANSWER_TIMEOUT, self.heartbeat)):
                await self._send(ping)
                return await self._receive()
        except TimeoutError:
            raise LostError(1006, "The server stopped answering.") from None

    def _answered(self, frame: Frame) -> bool:
        """Hand an answer to its request; return False for a frame that is not an answer."""
        ref = frame.get("ref")
        if frame["op"] not in ("ok", "error"):
            return False
        request = self._requests.get(ref) if isinstance(ref, str) else None
        if request is None:
            if frame["op"] == "ok" or ref is not None:
                return True  # its request no longer waits
            self._keep_refusal(frame)
            return False
        # An error without a channel refuses a whole subscribe frame.
        whole = frame["op"] == "error" and not isinstance(frame.get("channel"), str)
        for _ in range(request.expected if whole else 1):
            self.expect_one_less(request)
        request.answer(frame)
        return True

    def _keep_refusal(self, frame: Frame) -> None:
        """Keep an error without a ref: as the last frame it is the reason of the close."""
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

    def abort(self) -> None:
        """Close the connection because the server does not answer; `read` then raises."""
        self._aborting = asyncio.create_task(self._socket.close())

    async def close(self) -> None:
        """Close the connection; requests that wait get None."""
        self._closed = True
        requests = [*self._requests.values(), *self._queue]
        self._requests.clear()
        self._queue.clear()
        for request in requests:
            request.answer(None)
        await self._socket.close()


def _number(value: Any, otherwise: float) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return otherwise
