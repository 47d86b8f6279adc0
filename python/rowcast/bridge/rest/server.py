"""The door `/api/realtime`: reads requests as their routes say, and answers all of them in JSON."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC
from typing import Any

import msgspec
from aiohttp import web

from rowcast.bridge.auth import Verifier
from rowcast.bridge.http.responses import add_cors, is_allowed_page, json_response, problem
from rowcast.bridge.model import Caller
from rowcast.bridge.rate_limit import TokenBuckets
from rowcast.config import Settings
from rowcast.errors import Refusal
from rowcast.observe import metrics, observe

from .calls import Call, Calls
from .openapi import document
from .routes import BASE, ROUTES, Query, Route

__all__ = ["Rest"]

ALLOWED_HEADERS = "Authorization, Content-Type, apikey, x-client-info"
PREFLIGHT_SECONDS = "600"
# The error of msgspec for JSON that ends too early
TRUNCATED = "Input data was truncated"


class Rest:
    """Serves the table of routes.

    Args:
        settings: limits and allowed origins.
        verifier: checks tokens.
        calls: executes the calls of the routes.
    """

    def __init__(self, settings: Settings, verifier: Verifier, calls: Calls) -> None:
        self._settings = settings
        self._verifier = verifier
        self._calls = calls
        self._buckets = TokenBuckets(settings.frame_rate, settings.frame_burst)
        self._document = json.dumps(document(ROUTES)).encode()
        self._methods: dict[str, list[str]] = {}  # by path

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
        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                answer = await self._calls.run(route.name, await self._call(request, route))
                response = json_response(answer.text.encode(), route.status, answer.headers)
                if cursor := answer.headers.get("X-Next-Cursor"):
                    following = request.rel_url.update_query(cursor=cursor)
                    following = following.without_query_params("offset")
                    response.headers["Link"] = f'<{following}>; rel="next"'
            except Refusal as refusal:
                observe("refused", code=refusal.code, path=route.path)
                metrics.refusals.labels(refusal.code).inc()
                response = problem(refusal)
            except Exception:
                observe("internal_error", exc_info=True)
                response = problem(Refusal("internal"))
            return self._add_cors(request, response)

        return handle

    async def _call(self, request: web.Request, route: Route) -> Call:
        caller, admin = await self.authenticate(request)
        if route.admin and not admin:
            raise Refusal(
                "forbidden",
                "Only administrators may do this.",
                hint="Use a token whose role is in rowcast.settings.admin_roles.",
            )
        return Call(
            caller,
            admin,
            _key(request, route),
            _query(request, route.query),
            None if route.body is None else await self._body(request, route.body),
        )

    async def authenticate(self, request: web.Request) -> tuple[Caller, bool]:
        """Return the caller, and whether it is an administrator; count the request.

        Raises:
            Refusal: no token, a bad one, or too many requests.
        """
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else ""
        token = token or request.headers.get("apikey", "")
        if not token:
            raise Refusal(
                "unauthorized",
                "Send a token: Authorization: Bearer <token>, or the header apikey.",
            )
        caller = await self._verifier.identify(token, admin=True)
        client = caller.cursor_subject if caller.subject else f"{caller.role}@{request.remote}"
        self._buckets.take(client)
        return caller, self._verifier.is_administrator(caller)

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

    async def _openapi(self, request: web.Request) -> web.StreamResponse:
        return self._add_cors(request, json_response(self._document, 200, {}))

    async def _preflight(self, request: web.Request) -> web.StreamResponse:
        resource = request.match_info.route.resource
        assert resource is not None
        allowed = ", ".join([*self._methods[resource.canonical.removeprefix(BASE)], "OPTIONS"])
        response = web.Response(status=204, headers={"Allow": allowed})
        if is_allowed_page(request, self._settings.allowed_origins):
            response.headers["Access-Control-Allow-Methods"] = allowed
            response.headers["Access-Control-Allow-Headers"] = ALLOWED_HEADERS
            response.headers["Access-Control-Max-Age"] = PREFLIGHT_SECONDS
        return self._add_cors(request, response)

    def _add_cors(self, request: web.Request, response: web.Response) -> web.Response:
        return add_cors(request, response, self._settings.allowed_origins)


def _key(request: web.Request, route: Route) -> Any:
    text = request.match_info.get("id")
    if text is None:
        return None
    try:
        key = route.key(text)
        # Both types accept spellings other than the one that answers have.
        if str(key) != text.lower():
            raise ValueError(text)
    except ValueError:
        raise Refusal("invalid_request", f"The id in {request.path} is not valid.") from None
    return key


def _query(request: web.Request, kind: type[Query]) -> Query:
    given: dict[str, str] = {}
    for name, value in request.query.items():
        if name in given:
            raise Refusal("invalid_request", f"Query: {name} is given twice.")
        given[name] = value
    try:
        query = msgspec.convert(given, kind, strict=False)
        for name in ("since", "until"):
            if moment := getattr(query, name, None):
                moment.astimezone(UTC)  # raises for the first and last hours of the calendar
        for part in msgspec.structs.fields(kind):
            # The word null would be read as an absent parameter.
            if part.encode_name in given and getattr(query, part.name) is None:
                raise ValueError(f"{part.encode_name} cannot be null")
    except (msgspec.ValidationError, OverflowError, ValueError) as error:
        raise Refusal("invalid_request", f"Query: {error}.") from None
    return query


def _fault(data: bytes, error: Exception) -> str:
    try:
        data.decode()  # msgspec does not tell the byte, and its error depends on its version
    except UnicodeDecodeError as found:
        return f"it is not UTF-8 (byte {found.start})"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if str(error) == TRUNCATED:
        return f"JSON ends too early (byte {len(data)})"
    return str(error)
