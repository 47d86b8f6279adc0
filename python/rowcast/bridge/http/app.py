"""The routes of the daemon."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from importlib.resources import files
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from rowcast.bridge.feed import Feed
from rowcast.bridge.rest.problems import problem
from rowcast.bridge.rest.server import Rest
from rowcast.observe import exposition

from .websocket import Sockets

__all__ = ["build"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Pages of any origin may load the client; it is public.
WEB_FILES = {
    "/": ("index.html", "text/html"),
    "/client.js": ("client.js", "text/javascript"),
    "/client.d.ts": ("client.d.ts", "text/plain"),
}


class Door(Protocol):
    """A group of routes."""

    def install(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""


def build(
    doors: Iterable[Door], sockets: Sockets, rest: Rest, feed: Feed, *, max_body: int
) -> web.Application:
    """Build the application.

    Args:
        doors: their routes are served.
        sockets: the WebSockets of all doors; while they drain, the server is not ready.
        rest: the REST door, which says which pages may read an answer.
        feed: while it does not read, the server is not ready.
        max_body: bytes of a request's body.
    """
    app = web.Application(middlewares=[_problems(rest)], client_max_size=max_body)
    for door in doors:
        door.install(app.router)
    for path, (name, kind) in WEB_FILES.items():
        app.router.add_get(path, _file(name, kind))

    async def livez(_request: web.Request) -> web.Response:
        # Never asks the database: an outage of it must not become a restart loop of ours.
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        if sockets.draining:
            return problem("unavailable", "The server is going away.")
        if not feed.up.is_set():
            return problem("unavailable", "The database cannot be reached.")
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


def _problems(rest: Rest) -> Middleware:
    """What the router refuses by itself is answered in JSON, too, and pages may read it."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPNotFound:
            response = problem("not_found", f"There is nothing at {request.path}.")
        except web.HTTPMethodNotAllowed as error:
            response = problem(
                "method_not_allowed", f"{request.path} does not take {request.method}."
            )
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return rest.shared(request, response)

    return middleware
