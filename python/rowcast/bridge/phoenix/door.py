"""The doors for Supabase's clients: the WebSocket handshake, and publishing by HTTP."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
from aiohttp import web

from rowcast.bridge.auth import Verifier
from rowcast.bridge.http.responses import add_cors
from rowcast.bridge.http.websocket import Sockets
from rowcast.bridge.rest.calls import Call, Calls
from rowcast.bridge.rest.routes import MAX_BATCH, NewMessage
from rowcast.bridge.rest.server import Rest
from rowcast.bridge.resume_handles import ResumeHandles
from rowcast.bridge.session import Session
from rowcast.bridge.wire.protocol import Publish, check
from rowcast.config import Settings
from rowcast.errors import CATALOGUE, Refusal
from rowcast.observe import metrics, observe

from .codec import Phoenix
from .frames import VERSIONS, binary_payload

__all__ = ["Broadcasts", "PhoenixDoor"]

# Prefixes of /websocket: that of supabase-js, and that of clients which host the path themselves
SOCKET_PREFIXES = ("/realtime/v1", "/socket")
# Prefixes of /api: clients cut off /socket, and keep everything else.
API_PREFIXES = ("/realtime/v1", "")
API_PATHS = ("/api/broadcast", "/api/broadcast/{topic}/events/{event}")
PREFLIGHT = {
    "Access-Control-Allow-Methods": "POST, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, apikey, x-client-info",
    "Access-Control-Max-Age": "600",
}


class _Message(msgspec.Struct):
    topic: str
    event: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")


class _Batch(msgspec.Struct):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]


_batch = msgspec.json.Decoder(_Batch)
_valid = msgspec.json.Decoder(msgspec.Raw)


class PhoenixDoor:
    """Accepts WebSockets of the Phoenix wire.

    Args:
        sockets: serves the clients after the handshake.
        verifier: checks the key in the URL.
        handles: keeps the cursors of clients that resume.
    """

    def __init__(self, sockets: Sockets, verifier: Verifier, handles: ResumeHandles) -> None:
        self._sockets = sockets
        self._verifier = verifier
        self._handles = handles

    def install(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        for prefix in SOCKET_PREFIXES:
            router.add_get(f"{prefix}/websocket", self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one client until it is gone; a refused handshake is answered by plain HTTP."""
        key = request.headers.get("x-api-key") or request.query.get("apikey") or ""
        version = request.query.get("vsn", "1.0.0")
        try:
            if refusal := self._sockets.reject_reason(request):
                raise refusal
            if version not in VERSIONS:
                raise Refusal("invalid_frame", f"vsn must be {' or '.join(VERSIONS)}.")
            if not key:
                raise Refusal("unauthorized", "Connect with a token as ?apikey=.")
            await self._verifier.identify(key)
        except Refusal as refusal:
            return _error_response(refusal)
        wire = Phoenix(VERSIONS[version], key)

        def pong(session: Session, data: bytes) -> None:
            if session.caller is not None:
                subject = session.caller.cursor_subject
                for handle, channel, cursor in wire.confirmed(data):
                    self._handles.keep(subject, handle, channel, cursor)

        return await self._sockets.serve(request, wire, key, pong)


class Broadcasts:
    """Publishes by HTTP, one message or several in one transaction.

    Callers publish under their policies, administrators as the system.

    Args:
        settings: allowed origins.
        rest: authenticates requests.
        calls: publishes.
    """

    def __init__(self, settings: Settings, rest: Rest, calls: Calls) -> None:
        self._settings = settings
        self._rest = rest
        self._calls = calls

    def install(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        for prefix in API_PREFIXES:
            for path in API_PATHS:
                router.add_post(prefix + path, self.handle)
                router.add_route("OPTIONS", prefix + path, self.preflight)

    async def handle(self, request: web.Request) -> web.Response:
        """Publish; 202 says that the messages are committed."""
        try:
            await self._publish(request)
            response = web.Response(status=202)
        except Refusal as refusal:
            observe("refused", code=refusal.code, path=request.path)
            metrics.refusals.labels(refusal.code).inc()
            response = _error_response(refusal)
        except Exception:
            observe("internal_error", exc_info=True)
            response = _error_response(Refusal("internal"))
        return add_cors(request, response, self._settings.allowed_origins)

    async def preflight(self, request: web.Request) -> web.Response:
        """Answer the preflight request of a browser."""
        response = add_cors(request, web.Response(status=204), self._settings.allowed_origins)
        if "Access-Control-Allow-Origin" in response.headers:
            response.headers.update(PREFLIGHT)
        return response

    async def _publish(self, request: web.Request) -> None:
        caller, admin = await self._rest.authenticate(request)
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise Refusal("payload_too_large", "The body is over the limit.") from None
        try:
            messages = _one(request, body) if "topic" in request.match_info else _many(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal("invalid_request", f"Body: {error}.") from None
        for message in messages:
            if not message.channel or not message.event:
                raise Refusal("invalid_message", "A broadcast needs a topic and an event.")
            if refusal := check(Publish(None, message.channel, message.event)):
                raise refusal
        await self._calls.run("publish", Call(caller, admin, None, None, messages))


def _one(request: web.Request, body: bytes) -> list[NewMessage]:
    binary = request.content_type == "application/octet-stream"
    payload = msgspec.Raw(binary_payload(body)) if binary else _valid.decode(body)
    persist = request.query.get("persist") == "true" or "persist[ttl]" in request.query
    return [
        NewMessage(
            channel=request.match_info["topic"],
            event=request.match_info["event"],
            payload=payload,
            type="message" if persist else "broadcast",
        )
    ]


def _many(body: bytes) -> list[NewMessage]:
    return [
        NewMessage(channel=m.topic, event=m.event, payload=m.payload, type="broadcast")
        for m in _batch.decode(body).messages
    ]


def _error_response(refusal: Refusal) -> web.Response:
    """Return a refusal in the shape that these clients read."""
    entry = CATALOGUE[refusal.code]
    body = {"error": str(refusal), "code": refusal.code}
    headers = {"Retry-After": str(math.ceil(refusal.retry_after or 1))} if entry.retry else {}
    return web.json_response(body, status=entry.status, headers=headers)
