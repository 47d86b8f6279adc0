"""The door for InsForge's and other Socket.IO clients: handshakes and requests at `/socket.io/`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets

from aiohttp import WSMsgType, web

from rowcast.bridge.http.responses import add_cors, problem
from rowcast.bridge.http.websocket import SocketPipe, Sockets
from rowcast.bridge.requests import Requests
from rowcast.bridge.wire.frames import text_frame
from rowcast.config import Settings
from rowcast.errors import Refusal
from rowcast.observe import observe

from .codec import SocketIO
from .packets import (
    CLOSE,
    MESSAGE,
    NOOP,
    PING,
    PONG,
    PROBE,
    UPGRADE,
    open_packet,
    split_packets,
)
from .transport import PATIENCE, Connection

__all__ = ["SocketIODoor"]

PATHS = ("/socket.io/", "/socket.io")
VERSION = "4"
TRANSPORTS = ("polling", "websocket")
# Answers to bad requests, see https://socket.io/docs/v4/engine-io-protocol/
UNKNOWN_TRANSPORT = (0, "Transport unknown")
UNKNOWN_SID = (1, "Session ID unknown")
BAD_METHOD = (2, "Bad handshake method")
BAD_REQUEST = (3, "Bad request")
UNKNOWN_VERSION = (5, "Unsupported protocol version")


class SocketIODoor:
    """Accepts clients, and serves their requests until they are gone.

    Args:
        settings: limits and allowed origins.
        sockets: accepts or rejects handshakes, and counts connections.
        requests: executes the clients' operations.
    """

    def __init__(self, settings: Settings, sockets: Sockets, requests: Requests) -> None:
        self._settings = settings
        self._sockets = sockets
        self._requests = requests
        self._connections: dict[str, Connection] = {}

    def install(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        for path in PATHS:
            router.add_get(path, self.handle, allow_head=False)
            router.add_post(path, self.handle)
            router.add_route("OPTIONS", path, self._preflight)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one request."""
        transport, sid = request.query.get("transport", ""), request.query.get("sid")
        if request.query.get("EIO") != VERSION:
            return self._bad(request, *UNKNOWN_VERSION)
        if transport not in TRANSPORTS:
            return self._bad(request, *UNKNOWN_TRANSPORT)
        if sid is None:
            return await self._handshake(request, transport)
        connection = self._connections.get(sid)
        if connection is None:
            return self._bad(request, *UNKNOWN_SID)
        if transport == "websocket":
            return await self._upgrade(request, connection)
        if connection.pipe is not None:
            return self._bad(request, *BAD_REQUEST)
        return await (self._post if request.method == "POST" else self._poll)(request, connection)

    async def _handshake(self, request: web.Request, transport: str) -> web.StreamResponse:
        polling = transport == "polling"
        if request.method != "GET":
            return self._bad(request, *BAD_METHOD)
        if refusal := self._sockets.reject_reason(request, upgrade=not polling):
            return self._add_cors(request, problem(refusal))
        if not polling:
            return await self._websocket(request, None)
        connection = await self._open(request, None)
        return await self._poll(request, connection)

    async def _open(self, request: web.Request, pipe: SocketPipe | None) -> Connection:
        connection = Connection(secrets.token_urlsafe(24), self._settings, SocketIO(), self._closed)
        connection.pipe = pipe
        self._connections[connection.sid] = connection
        self._sockets.enter()
        session = connection.session
        observe("session_opened", session=session.id, peer=request.remote, wire=SocketIO.format)
        heartbeat = self._settings.heartbeat
        connection.write(
            open_packet(
                connection.sid,
                interval=heartbeat,
                timeout=heartbeat * PATIENCE,
                max_payload=self._settings.max_frame,
                polling=pipe is None,
            )
        )
        await self._requests.open(session, "")
        return connection

    def _closed(self, connection: Connection, goodbye: bool) -> None:
        del self._connections[connection.sid]
        self._requests.gone(connection.session, goodbye=goodbye)
        self._sockets.leave()
        observe("session_closed", session=connection.session.id)

    # Polling

    async def _poll(self, request: web.Request, connection: Connection) -> web.StreamResponse:
        if connection.polling:
            # Either two clients have the same sid, or one polls twice at a time.
            connection.end()
            return self._bad(request, *BAD_REQUEST)
        body = await connection.poll()
        if connection.closing or request.transport is None or request.transport.is_closing():
            # If the client is gone, these packets are lost; the client reconnects.
            connection.end()
        return self._text(request, body)

    async def _post(self, request: web.Request, connection: Connection) -> web.StreamResponse:
        if connection.posting:
            connection.end()
            return self._bad(request, *BAD_REQUEST)
        connection.posting = True
        try:
            body = await request.read()
            for packet in split_packets(body, self._settings.frame_burst):
                if connection.gone or connection.session.closed:
                    break
                await self._receive_packet(connection, packet)
        except web.HTTPRequestEntityTooLarge:
            connection.end()
            return self._add_cors(request, problem(Refusal("payload_too_large")))
        except ValueError:
            connection.end()
            return self._bad(request, *BAD_REQUEST)
        finally:
            connection.posting = False
        return self._text(request, b"ok")

    async def _receive_packet(
        self, connection: Connection, packet: bytes, *, binary: bool = False
    ) -> None:
        """Handle a packet of either transport.

        Raises:
            ValueError: it is not a packet of Engine.IO.
        """
        kind, data = packet[:1], packet[1:]
        if binary:
            kind, data = MESSAGE, packet
        elif kind == b"b":
            binary, kind = True, MESSAGE
        if kind == MESSAGE:
            await self._requests.handle(connection.session, data, binary=binary)
            connection.after_packet()
        elif kind == PONG:
            connection.pong()
        elif kind == CLOSE:
            connection.end()
        elif kind not in (PING, UPGRADE, NOOP):
            raise ValueError("not a packet of Engine.IO")

    # WebSockets

    async def _upgrade(self, request: web.Request, connection: Connection) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return self._bad(request, *BAD_REQUEST)
        if connection.has_socket:
            return self._bad(request, *BAD_REQUEST)
        return await self._websocket(request, connection)

    async def _websocket(
        self, request: web.Request, connection: Connection | None
    ) -> web.StreamResponse:
        response = web.WebSocketResponse(
            compress=False,
            # A frame over `max_frame` is refused; over this limit the connection is closed.
            max_msg_size=self._settings.max_frame * 4,
            decode_text=False,
        )
        await response.prepare(request)
        pipe = SocketPipe(request, response, self._settings.slow_grace)
        if connection is None:
            connection = await self._open(request, pipe)
        elif not await self._probed(response, connection, pipe):
            await response.close()
            return response
        self._sockets.enter()
        try:
            await self._receive(response, connection)
        finally:
            connection.end()
            await pipe.closed()
            self._sockets.leave()
        return response

    async def _probed(
        self, response: web.WebSocketResponse, connection: Connection, pipe: SocketPipe
    ) -> bool:
        """Whether the client upgrades to this WebSocket; until it confirms that, it polls."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.auth_timeout):
                # Only one WebSocket may take over, because a second one would never be closed.
                if await _packet(response) != PING + PROBE or connection.has_socket:
                    return False
                connection.probe(begins=True)
                try:
                    pipe.write(text_frame(PONG + PROBE))
                    if await _packet(response) == UPGRADE and not connection.closing:
                        connection.upgrade(pipe)
                        return True
                finally:
                    connection.probe(begins=False)
        return False

    async def _receive(self, response: web.WebSocketResponse, connection: Connection) -> None:
        async for message in response:
            if connection.gone or connection.session.closed:
                return
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                data = message.data if isinstance(message.data, bytes) else message.data.encode()
                try:
                    await self._receive_packet(
                        connection, data, binary=message.type is WSMsgType.BINARY
                    )
                except ValueError:
                    return

    # Answers

    async def _preflight(self, request: web.Request) -> web.StreamResponse:
        headers = {
            "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
            "Access-Control-Allow-Headers": "Authorization, Content-Type, apikey",
        }
        return self._add_cors(request, web.Response(status=204, headers=headers))

    def _text(self, request: web.Request, body: bytes) -> web.Response:
        response = web.Response(body=body, content_type="text/plain", charset="UTF-8")
        response.headers["Cache-Control"] = "no-store"
        return self._add_cors(request, response)

    def _bad(self, request: web.Request, code: int, message: str) -> web.Response:
        body = json.dumps({"code": code, "message": message})
        response = web.Response(text=body, status=400, content_type="application/json")
        return self._add_cors(request, response)

    def _add_cors(self, request: web.Request, response: web.Response) -> web.Response:
        return add_cors(request, response, self._settings.allowed_origins)


async def _packet(response: web.WebSocketResponse) -> bytes:
    """Return the next message if it is text, else an empty packet."""
    message = await response.receive()
    if message.type is not WSMsgType.TEXT:
        return b""
    return message.data if isinstance(message.data, bytes) else bytes(message.data.encode())
