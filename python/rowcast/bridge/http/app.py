"""The HTTP application: the routes of all doors, health, metrics and static files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from importlib.resources import files
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from rowcast.bridge.feed import Feed
from rowcast.config import Settings
from rowcast.errors import Refusal
from rowcast.observe import exposition

from .responses import add_cors, problem
from .websocket import Sockets

__all__ = ["Door", "build"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# The client is public: pages of any origin may load it.
WEB_FILES = {
    "/": ("index.html", "text/html"),
    "/client.js": ("client.js", "text/javascript"),
    "/client.d.ts": ("client.d.ts", "text/plain"),
}


class Door(Protocol):
    """A group of routes for one kind of client."""

    def install(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""


def build(
    settings: Settings, doors: Iterable[Door], sockets: Sockets, feed: Feed
) -> web.Application:
    """Build the application.

    Args:
        settings: allowed origins, and the largest body of a request.
        doors: serve the clients.
        sockets: the WebSockets of all doors; while they drain, the server is not ready.
        feed: reads the database; while it cannot, the server is not ready.
    """
    app = web.Application(middlewares=[_json_errors(settings)], client_max_size=settings.max_frame)
    for door in doors:
        door.install(app.router)
    for path, (name, kind) in WEB_FILES.items():
        app.router.add_get(path, _file(name, kind))

    async def livez(_request: web.Request) -> web.Response:
        # Never asks the database: its outage must not become a restart loop of the bridge.
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        if sockets.draining:
            return problem(Refusal("unavailable", "The server is going away."))
        if not feed.up.is_set():
            return problem(Refusal("unavailable", "The database cannot be reached."))
        return web.Response(text="ok\n")

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=exposition(), content_type="text/plain")

    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app


def _file(name: str, kind: str) -> Handler:
    body = files("rowcast").joinpath("web", name).read_bytes()

    async def handle(_request: web.Request) -> web.Response:
        headers = {"Access-Control-Allow-Origin": "*", "Cache-Control": "no-cache"}
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    return handle


def _json_errors(settings: Settings) -> Middleware:
    """Answer in JSON, with CORS headers, what the router refuses by itself."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPNotFound:
            refusal = Refusal("not_found", f"There is nothing at {request.path}.")
            response = problem(refusal)
        except web.HTTPMethodNotAllowed as error:
            refusal = Refusal(
                "method_not_allowed", f"{request.path} does not support {request.method}."
            )
            response = problem(refusal)
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return add_cors(request, response, settings.allowed_origins)

    return middleware
