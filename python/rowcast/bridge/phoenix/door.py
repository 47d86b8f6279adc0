"""The door for Supabase's clients: `/realtime/v1/websocket`, and `/socket/websocket`."""

from __future__ import annotations

from aiohttp import web

from rowcast.bridge.auth import Verifier
from rowcast.bridge.http.websocket import Sockets
from rowcast.bridge.resume_handles import ResumeHandles
from rowcast.bridge.session import Session
from rowcast.errors import Refusal

from .broadcast import problem
from .codec import Phoenix
from .frames import VERSIONS

__all__ = ["PhoenixDoor"]

# What people put before /websocket: supabase-js the first, who hosts the server alone the second.
PREFIXES = ("/realtime/v1", "/socket")


class PhoenixDoor:
    """Lets clients in.

    Args:
        sockets: what serves them then.
        verifier: checks their keys.
        handles: where their cursors are kept.
    """

    def __init__(self, sockets: Sockets, verifier: Verifier, handles: ResumeHandles) -> None:
        self._sockets = sockets
        self._verifier = verifier
        self._handles = handles

    def install(self, router: web.UrlDispatcher) -> None:
        """Add the routes."""
        for prefix in PREFIXES:
            router.add_get(f"{prefix}/websocket", self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one client until it is gone; a refusal is an answer of plain HTTP."""
        key = request.headers.get("x-api-key") or request.query.get("apikey") or ""
        version = request.query.get("vsn", "1.0.0")
        try:
            if refusal := self._sockets.refusal(request):
                raise refusal
            if version not in VERSIONS:
                raise Refusal("invalid_frame", f"vsn is {' or '.join(VERSIONS)}.")
            if not key:
                raise Refusal("unauthorized", "Connect with a token as ?apikey=.")
            await self._verifier.identify(key)
        except Refusal as refusal:
            return problem(refusal)
        wire = Phoenix(VERSIONS[version], key)

        def pong(session: Session, data: bytes) -> None:
            if session.caller is not None:
                subject = session.caller.cursor_subject
                for handle, channel, cursor in wire.confirmed(data):
                    self._handles.keep(subject, handle, channel, cursor)

        return await self._sockets.serve(request, wire, key, pong)
