"""The door `/api/realtime`: reads a request as its route says, and answers every one in JSON."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC
from typing import Any

import msgspec
from aiohttp import web

from rowcast.bridge.auth import Verifier
from rowcast.bridge.model import Caller
from rowcast.bridge.rate_limit import TokenBuckets
from rowcast.bridge.refusals import Reader, refusal_for
from rowcast.config import Settings
from rowcast.errors import Refusal
from rowcast.observe import metrics, observe

from .handlers import Answer, Asked, Handlers
from .openapi import document
from .problems import json_response, problem
from .routes import BASE, ROUTES, Query, Route

__all__ = ["Rest"]

ALLOWED_HEADERS = "Authorization, Content-Type, apikey, x-client-info"
EXPOSED_HEADERS = "Link, Retry-After, X-Next-Cursor"
PREFLIGHT_SECONDS = "600"
# Bodies may be larger than what Postgres takes, but not deeper than what is read here.
TRUNCATED = "Input data was truncated"


class Rest:
    """Serves the table of routes.

    Args:
        settings: limits and allowed origins.
        verifier: checks tokens.
        handlers: what the routes do.
    """

    def __init__(self, settings: Settings, verifier: Verifier, handlers: Handlers) -> None:
        self._settings = settings
        self._verifier = verifier
        self._handlers = handlers
        self._buckets = TokenBuckets(settings.frame_rate, settings.frame_burst)
        self._document = json.dumps(document(ROUTES)).encode()
        self._methods: dict[str, list[str]] = {}

    def install(self, router: web.UrlDispatcher) -> None:
        """Add the routes, the OpenAPI document and the answers to preflights."""
        for route in ROUTES:
            self._methods.setdefault(route.path, []).append(route.method)
            router.add_route(route.method, BASE + route.path, self._handler(route))
        self._methods["/openapi.json"] = ["GET"]
        router.add_get(f"{BASE}/openapi.json", self._openapi, allow_head=False)
        for path in self._methods:
            router.add_route("OPTIONS", BASE + path, self._preflight)

    def _handler(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        does = getattr(self._handlers, route.does)

        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                answer = await self._answer(request, route, does)
                response = json_response(answer.text.encode(), route.status, answer.headers)
                if cursor := answer.headers.get("X-Next-Cursor"):
                    following = request.rel_url.update_query(cursor=cursor)
                    following = following.without_query_params("offset")
                    response.headers["Link"] = f'<{following}>; rel="next"'
            except Refusal as refusal:
                observe("refused", code=refusal.code, path=route.path)
                metrics.refusals.labels(refusal.code).inc()
                response = problem(refusal.code, str(refusal), refusal)
            except Exception:
                observe("internal_error", exc_info=True)
                response = problem("internal")
            return self.shared(request, response)

        return handle

    async def _answer(
        self, request: web.Request, route: Route, does: Callable[[Asked], Awaitable[Answer]]
    ) -> Answer:
        caller, admin = await self.asking(request)
        if route.admin and not admin:
            raise Refusal(
                "forbidden",
                "Only administrators may do this.",
                hint="Use a token whose role is in rowcast.settings.admin_roles.",
            )
        asked = Asked(
            caller,
            admin,
            _key(request, route),
            _query(request, route.query),
            None if route.body is None else await self._body(request, route.body),
        )
        try:
            return await does(asked)
        except Refusal:
            raise
        except Exception as error:
            reader = Reader.ADMINISTRATOR if admin else Reader.CALLER
            raise refusal_for(error, reader) from error

    async def asking(self, request: web.Request) -> tuple[Caller, bool]:
        """Who asks, counted against the rate, and whether it is an administrator.

        Raises:
            Refusal: no token, a bad one, or too many requests.
        """
        caller = await self._caller(request)
        client = caller.cursor_subject if caller.subject else f"{caller.role}@{request.remote}"
        self._buckets.take(client)
        return caller, self._verifier.is_administrator(caller)

    async def _caller(self, request: web.Request) -> Caller:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else ""
        token = token or request.headers.get("apikey", "")
        if not token:
            raise Refusal(
                "unauthorized",
                "Send a token: Authorization: Bearer <token>, or the header apikey.",
            )
        return await self._verifier.identify(token, admin=True)

    async def _body(self, request: web.Request, kind: Any) -> Any:
        try:
            data = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise Refusal(
                "payload_too_large",
                f"The body is over the limit of {self._settings.max_frame} bytes.",
            ) from None
        except web.HTTPException as error:
            raise Refusal("invalid_request", f"The body cannot be read: {error.reason}.") from None
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Refusal("invalid_request", f"Body: {_fault(data, error)}.") from None

    # Origins

    async def _openapi(self, request: web.Request) -> web.StreamResponse:
        return self.shared(request, json_response(self._document, 200, {}))

    async def _preflight(self, request: web.Request) -> web.StreamResponse:
        resource = request.match_info.route.resource
        assert resource is not None
        allowed = ", ".join([*self._methods[resource.canonical.removeprefix(BASE)], "OPTIONS"])
        response = web.Response(status=204, headers={"Allow": allowed})
        if self._allows(request):
            response.headers["Access-Control-Allow-Methods"] = allowed
            response.headers["Access-Control-Allow-Headers"] = ALLOWED_HEADERS
            response.headers["Access-Control-Max-Age"] = PREFLIGHT_SECONDS
        return self.shared(request, response)

    def _allows(self, request: web.Request) -> bool:
        origin = request.headers.get("Origin")
        allowed = self._settings.allowed_origins
        return origin is not None and ("*" in allowed or origin in allowed)

    def shared(self, request: web.Request, response: web.Response) -> web.Response:
        """Say who may read this. Never with credentials: a token comes in a header of the page's
        own making, and a cookie would let any page act for its visitor."""
        everybody = "*" in self._settings.allowed_origins
        if not everybody:
            response.headers["Vary"] = "Origin"
        if self._allows(request):
            response.headers["Access-Control-Allow-Origin"] = (
                "*" if everybody else request.headers["Origin"]
            )
            response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
        return response


def _key(request: web.Request, route: Route) -> Any:
    text = request.match_info.get("id")
    if text is None:
        return None
    try:
        key = route.key(text)
        # Both types take more spellings than the one that we write.
        if str(key) != text.lower():
            raise ValueError(text)
    except ValueError:
        raise Refusal("invalid_request", f"There is no valid id in {request.path}.") from None
    return key


def _query(request: web.Request, kind: type[Query]) -> Query:
    given: dict[str, str] = {}
    for name, value in request.query.items():
        if name in given:
            raise Refusal("invalid_request", f"Query: {name} is there twice.")
        given[name] = value
    try:
        query = msgspec.convert(given, kind, strict=False)
        for name in ("since", "until"):
            if moment := getattr(query, name, None):
                moment.astimezone(UTC)  # the first and last hours of the calendar have none
        for part in msgspec.structs.fields(kind):
            # The word null would be read as if the parameter were not there.
            if part.encode_name in given and getattr(query, part.name) is None:
                raise ValueError(f"{part.encode_name} cannot be null")
    except (msgspec.ValidationError, OverflowError, ValueError) as error:
        raise Refusal("invalid_request", f"Query: {error}.") from None
    return query


def _fault(data: bytes, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError | msgspec.DecodeError):  # the latter since msgspec 0.23
        try:
            data.decode()
        except UnicodeDecodeError as found:
            return f"it is not UTF-8 (byte {found.start})"
    if isinstance(error, RecursionError):
        return "it is too deep"
    if str(error) == TRUNCATED:
        return f"JSON ends too early (byte {len(data)})"
    return str(error)
