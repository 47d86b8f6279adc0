"""WebSockets: bytes in and out of a session."""

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
from rowcast.bridge.rest.problems import problem
from rowcast.bridge.session import Session
from rowcast.bridge.wire.native import NATIVE
from rowcast.bridge.wire.protocol import Status, Wire
from rowcast.config import Settings
from rowcast.errors import CLOSE, Refusal
from rowcast.observe import observe

__all__ = ["SocketPipe", "Sockets"]

Pong: TypeAlias = Callable[[Session, bytes], None]

# A client that closes in order (RFC 6455, section 7.4.1): done, or no code at all. A page that
# is left says 1001, also when it is only loaded again.
GOODBYE = {1000, 1005}
LINGER_ABORT = struct.pack("ii", 1, 0)
# Clients sent away per second, if that takes at most this share of the drain; in steps of seconds.
LEAVE_RATE = 500
LEAVE_SHARE = 0.8
LEAVE_STEP = 0.01
LONGEST_PAUSE = 30.0
BURST = 256


class SocketPipe:
    """A session's way to its client: frames go to the transport as they are, because the
    library's writer would build each of them again for every client."""

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
        """Reset what is still open. Without the linger option the kernel would go on keeping
        megabytes for a client that does not read."""
        if self._transport is None or self._transport.is_closing():
            return
        raw = self._transport.get_extra_info("socket")
        if raw is not None and self.waiting():
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ABORT)
        if isinstance(self._transport, asyncio.WriteTransport):
            self._transport.abort()


class Sockets:
    """WebSockets of all doors, and the native door itself, `/realtime`.

    Args:
        settings: limits and allowed origins.
        hub: to count clients.
        requests: what handles their frames.
    """

    def __init__(self, settings: Settings, hub: Hub, requests: Requests) -> None:
        self._settings = settings
        self._hub = hub
        self._requests = requests
        self.draining = False
        self._open = 0  # also those whose clients have not answered the close yet
        self._emptied = asyncio.Event()
        self._emptied.set()

    def install(self, router: web.UrlDispatcher) -> None:
        """Add the route."""
        router.add_get("/realtime", self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one client of the native wire until it is gone."""
        refusal = self.refusal(request)
        if refusal is not None:
            return problem(refusal.code, str(refusal))
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
            wire: what it speaks.
            token: from the handshake, or empty: then one must come in time.
            pong: told of each pong of the client, where the wire writes pings of its own.
        """
        response = web.WebSocketResponse(
            heartbeat=self._settings.heartbeat,
            compress=False,
            # Over our own limit a frame is refused, far over it the connection is closed.
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
        """A connection is open."""
        self._open += 1
        self._emptied.clear()

    def leave(self) -> None:
        """It is closed."""
        self._open -= 1
        if not self._open:
            self._emptied.set()

    async def drain(self) -> None:
        """Send everybody away, and wait until they are gone or the time is up.

        All at once they would come back all at once: the closes are spread, and what does not
        fit into the time is left to the clients, which are told how long to wait.
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

    def refusal(self, request: web.Request, *, upgrade: bool = True) -> Refusal | None:
        """Why this handshake is refused, or None; `upgrade` is whether it must be a WebSocket's."""
        origin = request.headers.get("Origin")
        allowed = self._settings.allowed_origins
        if origin is not None and "*" not in allowed and origin not in allowed:
            return Refusal("forbidden", f"Pages of {origin} may not connect here.")
        if upgrade and request.headers.get("Upgrade", "").lower() != "websocket":
            return Refusal("invalid_frame", "This is a WebSocket endpoint: connect with ws://.")
        if self.draining or len(self._hub.sessions) >= self._settings.max_sessions:
            return Refusal(
                "unavailable", "This server takes no more clients: try another or later."
            )
        return None
