"""Publishing by HTTP as Supabase's clients do it: one message, or several in one transaction."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
from aiohttp import web

from rowcast.bridge.refusals import Reader, refusal_for
from rowcast.bridge.rest.handlers import Asked, Handlers
from rowcast.bridge.rest.routes import MAX_BATCH, NewMessage
from rowcast.bridge.rest.server import Rest
from rowcast.bridge.wire.protocol import Publish, check
from rowcast.errors import CATALOGUE, Refusal
from rowcast.observe import metrics, observe

from .frames import binary_payload

__all__ = ["Broadcasts", "problem"]

# What stands before /api: clients cut /socket off, and keep everything else.
PREFIXES = ("/realtime/v1", "")
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


class Broadcasts:
    """Publishes as whoever asks: callers under their policies, administrators as the system.

    Args:
        rest: who asks, and which pages may read the answer.
        handlers: what publishes.
    """

    def __init__(self, rest: Rest, handlers: Handlers) -> None:
        self._rest = rest
        self._handlers = handlers

    def install(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        for prefix in PREFIXES:
            for path in ("/api/broadcast", "/api/broadcast/{topic}/events/{event}"):
                router.add_post(prefix + path, self.handle)
                router.add_route("OPTIONS", prefix + path, self.preflight)

    async def handle(self, request: web.Request) -> web.Response:
        """Publish; 202 says that it is committed."""
        try:
            await self._publish(request)
            response = web.Response(status=202)
        except Refusal as refusal:
            observe("refused", code=refusal.code, path=request.path)
            metrics.refusals.labels(refusal.code).inc()
            response = problem(refusal)
        except Exception:
            observe("internal_error", exc_info=True)
            response = problem(Refusal("internal"))
        return self._rest.shared(request, response)

    async def preflight(self, request: web.Request) -> web.Response:
        """Answer what a browser asks first."""
        response = self._rest.shared(request, web.Response(status=204))
        if "Access-Control-Allow-Origin" in response.headers:
            response.headers.update(PREFLIGHT)
        return response

    async def _publish(self, request: web.Request) -> None:
        caller, admin = await self._rest.asking(request)
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
            if unfit := check(Publish(None, message.channel, message.event)):
                raise unfit
        try:
            await self._handlers.publish(Asked(caller, admin, None, None, messages))
        except Refusal:
            raise
        except Exception as error:
            reader = Reader.ADMINISTRATOR if admin else Reader.CALLER
            raise refusal_for(error, reader) from error


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


def problem(refusal: Refusal) -> web.Response:
    """An error as these clients read it."""
    entry = CATALOGUE[refusal.code]
    body = {"error": str(refusal), "code": refusal.code}
    headers = {"Retry-After": str(math.ceil(refusal.retry_after or 1))} if entry.retry else {}
    return web.json_response(body, status=entry.status, headers=headers)
