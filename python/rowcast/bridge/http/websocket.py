"""WebSockets of all doors: bytes in and out of sessions, and the drain at shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable
from typing import TypeAlias

from aiohttp import WSMsgType, web

from rowcast.bridge.hub import Hub
from rowcast.bridge.requests import Requests
from rowcast.bridge.session import Session
from rowcast.bridge.wire.native import NATIVE
from rowcast.bridge.wire.protocol import Status, Wire
from rowcast.config import Settings
from rowcast.errors import CLOSE, Refusal
from rowcast.observe import observe

from .responses import problem

__all__ = ["SocketPipe", "Sockets"]

Pong: TypeAlias = Callable[[Session, bytes], None]

# Close codes of a client that does not come back (RFC 6455, section 7.4.1): done, or without a
# code. A page that the user leaves closes with 1001, also when it is only reloaded.
GOODBYE = {1000, 1005}
LINGER_ABORT = struct.pack("ii", 1, 0)
LEAVE_RATE = 500  # clients closed per second of a drain; more if LEAVE_SHARE demands it
LEAVE_SHARE = 0.8  # of the drain's time, within which all closes are sent
LEAVE_STEP = 0.01  # seconds; shorter waits are skipped
LONGEST_PAUSE = 30.0  # seconds that a short drain may add to the pause before a reconnect
BURST = 256  # clients told before other tasks run


class SocketPipe:
    """A session's pipe to its client (see `session.Pipe`).

    Frames are written to the transport as they are, because aiohttp's writer would build each of
    them again for every client.
    """

    def __init__(self, request: web.Request, response: web.WebSocketResponse, grace: float) -> None:
        self._transport = request.transport
        self._response = response
        self._grace = grace
        self._closing: asyncio.Task[None] | None = None

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def waiting(self) -> int:
        if isinstance(self._transport, asyncio.WriteTransport):
            return self._transport.get_write_buffer_size()
        return 0

    def close(self, code: int, reason: str) -> None:
        if self._closing is None:
            if code == CLOSE["slow"][0]:
                observe("slow_client", waiting=self.waiting())
            self._closing = asyncio.create_task(self._close(code, reason))

    async def _close(self, code: int, reason: str) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError):
            await asyncio.wait_for(
                self._response.close(code=code, message=reason.encode()), self._grace
            )
        self.abort()

    async def closed(self) -> None:
        if self._closing is not None:
            await self._closing

    def abort(self) -> None:
        """Reset the connection if it is still open. Without the linger option the kernel would
        keep megabytes for a client that does not read."""
        if self._transport is None or self._transport.is_closing():
            return
        raw = self._transport.get_extra_info("socket")
        if raw is not None and self.waiting():
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ABORT)
        if isinstance(self._transport, asyncio.WriteTransport):
            self._transport.abort()


class Sockets:
    """Serves the WebSockets of all doors, and is the native door itself, `/realtime`.

    Args:
        settings: limits and allowed origins.
        hub: has all sessions.
        requests: executes the clients' operations.
    """

    def __init__(self, settings: Settings, hub: Hub, requests: Requests) -> None:
        self._settings = settings
        self._hub = hub
        self._requests = requests
        self.draining = False
        self._open = 0  # connections, until clients have answered the close
        self._emptied = asyncio.Event()
        self._emptied.set()

    def install(self, router: web.UrlDispatcher) -> None:
        """Add the route."""
        router.add_get("/realtime", self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one client of the native wire until it is gone."""
        if refusal := self.reject_reason(request):
            return problem(refusal)
        token = request.query.get("token") or request.query.get("apikey") or ""
        return await self.serve(request, NATIVE, token)

    async def serve(
        self,
        request: web.Request,
        wire: Wire,
        token: str,
        pong: Pong | None = None,
    ) -> web.StreamResponse:
        """Serve one client until it is gone.

        Args:
            request: the handshake.
            wire: the codec of the client.
            token: from the handshake; if it is empty, the client must send one in time.
            pong: called for each pong of the client, for wires that write pings of their own.
        """
        response = web.WebSocketResponse(
            heartbeat=self._settings.heartbeat,
            compress=False,
            # A frame over `max_frame` is refused; over this limit the connection is closed.
            max_msg_size=self._settings.max_frame * 4,
            decode_text=False,
            autoping=pong is None,
        )
        await response.prepare(request)
        self.enter()
        pipe = SocketPipe(request, response, self._settings.slow_grace)
        session = Session(pipe, self._settings, wire)
        observe("session_opened", session=session.id, peer=request.remote, wire=wire.format)
        try:
            if await self._requests.open(session, token):
                await self._receive(response, session, pong)
        finally:
            self._requests.gone(session, goodbye=response.close_code in GOODBYE)
            await pipe.closed()
            self.leave()
            observe("session_closed", session=session.id, code=response.close_code)
        return response

    async def _receive(
        self,
        response: web.WebSocketResponse,
        session: Session,
        pong: Pong | None,
    ) -> None:
        async for message in response:
            if session.closed:
                return
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                data = message.data
                await self._requests.handle(
                    session,
                    data if isinstance(data, bytes) else data.encode(),
                    binary=message.type is WSMsgType.BINARY,
                )
            elif message.type is WSMsgType.PING:
                await response.pong(message.data)
            elif message.type is WSMsgType.PONG and pong is not None:
                pong(session, bytes(message.data))

    def enter(self) -> None:
        """Count a connection that was opened."""
        self._open += 1
        self._emptied.clear()

    def leave(self) -> None:
        """Count a connection that was closed."""
        self._open -= 1
        if not self._open:
            self._emptied.set()

    async def drain(self) -> None:
        """Close all clients, and wait until they are gone or the time is up.

        The closes are spread, because clients closed at once would reconnect at once. If the time
        is too short for that, clients are told to wait longer before they reconnect.
        """
        self.draining = True
        sessions = list(self._hub.sessions)
        observe("draining", sessions=len(sessions))
        needed = len(sessions) / LEAVE_RATE
        spread = min(needed, self._settings.drain_timeout * LEAVE_SHARE)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for told, session in enumerate(sessions, 1):
            pause = random.uniform(0.1, 0.5 + min(needed - spread, LONGEST_PAUSE))
            session.tell(Status("draining", round(pause, 3)))
            if told % BURST == 0:
                await asyncio.sleep(0)
        for closed, session in enumerate(sessions):
            wait = began + spread * closed / len(sessions) - loop.time()
            if wait > LEAVE_STEP:
                await asyncio.sleep(wait)
            session.close("draining")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(began + self._settings.drain_timeout):
                await self._emptied.wait()

    def reject_reason(self, request: web.Request, *, upgrade: bool = True) -> Refusal | None:
        """Return why a handshake is rejected, or None if it is accepted.

        Args:
            request: the handshake.
            upgrade: whether it must ask for a WebSocket.
        """
        origin = request.headers.get("Origin")
        allowed = self._settings.allowed_origins
        if origin is not None and "*" not in allowed and origin not in allowed:
            return Refusal("forbidden", f"Pages of {origin} may not connect here.")
        if upgrade and request.headers.get("Upgrade", "").lower() != "websocket":
            return Refusal("invalid_frame", "This is a WebSocket endpoint: connect with ws://.")
        if self.draining or len(self._hub.sessions) >= self._settings.max_sessions:
            return Refusal(
                "unavailable",
                "This server does not accept more clients now: try later, or another one.",
            )
        return None
