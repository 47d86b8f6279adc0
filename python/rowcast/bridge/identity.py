"""Who a session speaks for, and until when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from rowcast.config import Settings
from rowcast.errors import AuthError, Refusal

from .auth import Verifier
from .feed import Feed
from .hub import Hub
from .model import Caller
from .session import Session
from .wire.protocol import Refused, Status

__all__ = ["Identities"]

# A warning before the end of a token, in seconds.
EXPIRY_WARNING = 60.0
# The event loop's timers do not reach for years.
TIMER_MAX = 86400.0


class Identities:
    """Verifies tokens and watches their end; one for all sessions.

    Args:
        settings: timeouts.
        hub: where sessions are found by their subject.
        feed: which roles a token may name.
        verifier: checks tokens.
    """

    def __init__(self, settings: Settings, hub: Hub, feed: Feed, verifier: Verifier) -> None:
        self._settings = settings
        self._hub = hub
        self._feed = feed
        self._verifier = verifier
        self._timers: dict[Session, list[asyncio.TimerHandle]] = {}

    async def identify(self, token: str, *, admin: bool = False) -> Caller:
        """Who the token speaks for.

        Args:
            token: compact JWS.
            admin: whether an administrator may be one.

        Raises:
            Refusal: it is not valid, or that cannot be said now.
        """
        if not self._feed.roles:
            raise Refusal("unavailable", "The database has not been reached yet: try again.")
        try:
            admins = self._feed.admin_roles if admin else ()
            return await self._verifier.verify(token, {*self._feed.roles, *admins})
        except AuthError as error:
            raise Refusal(error.code, str(error)) from None

    async def authenticate(
        self, session: Session, token: str, *, admin: bool = False
    ) -> tuple[Caller, bool]:
        """Take a token for a session, the first or a new one.

        Args:
            session: whose.
            token: compact JWS.
            admin: whether its door is one for administrators, too.

        Returns:
            Whom it speaks for, and whether that replaces other claims.

        Raises:
            Refusal: the token is not good, is somebody else's, or cannot be checked now.
        """
        caller = await self.identify(token, admin=admin)
        before = session.caller
        other = before is not None and before.subject not in (None, caller.subject)
        if other and (session.subscriptions or session.pending):
            raise Refusal("invalid_token", "A new token must keep the sub: connect again instead.")
        self._hub.identify(session, caller)
        self.forget(session)
        left = self._left(session)
        self._timer(session, left - EXPIRY_WARNING, self._expiring)
        self._timer(session, left, self._expired)
        return caller, before is not None and before.claims != caller.claims

    def expect(self, session: Session) -> None:
        """Close the session unless a token comes in time."""
        self._timer(session, self._settings.auth_timeout, self._unauthorized)

    def forget(self, session: Session) -> None:
        """Stop all its timers."""
        for handle in self._timers.pop(session, ()):
            handle.cancel()

    def _timer(self, session: Session, delay: float, call: Callable[[Session], None]) -> None:
        handle = asyncio.get_running_loop().call_later(
            min(max(delay, 0.0), TIMER_MAX), call, session
        )
        self._timers.setdefault(session, []).append(handle)

    def _left(self, session: Session) -> float:
        return (
            session.caller.expires + self._settings.jwt_leeway - time.time()
            if session.caller
            else 0
        )

    def _unauthorized(self, session: Session) -> None:
        session.close("unauthorized")

    def _expiring(self, session: Session) -> None:
        if self._left(session) > EXPIRY_WARNING + 1:
            self._timer(session, self._left(session) - EXPIRY_WARNING, self._expiring)
        else:
            session.tell(Status("token_expiring"))

    def _expired(self, session: Session) -> None:
        if self._left(session) > 1:
            self._timer(session, self._left(session), self._expired)
        else:
            session.tell(Refused.because(None, Refusal("token_expired")))
            session.close("token_expired")
