"""The routes of the daemon."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from aiohttp import web

from ..feed import Feed
from ..observe import exposition
from .sockets import Sockets, problem

__all__ = ["build"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Pages of any origin may load the client; it is public.
WEB_FILES = {
    "/": ("index.html", "text/html"),
    "/client.js": ("client.js", "text/javascript"),
    "/client.d.ts": ("client.d.ts", "text/plain"),
}


def build(sockets: Sockets, feed: Feed) -> web.Application:
    """Build the application.

    Args:
        sockets: the WebSocket door.
        feed: whose state readiness tells.
    """
    app = web.Application(middlewares=[_not_found])
    app.router.add_get("/realtime", sockets.handle)
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


@web.middleware
async def _not_found(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPNotFound:
        body = {
            "error": "not_found",
            "message": f"There is nothing at {request.path}.",
            "statusCode": 404,
        }
        return web.json_response(body, status=404)
