"""Tokens: verifies them, and watches when they end.

Signatures are checked here; what the claims allow is decided by the policies in SQL.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection
from typing import Any

import aiohttp
import jwt

from rowcast.config import Settings
from rowcast.errors import AuthError, Refusal
from rowcast.observe import observe

from .facts import Facts
from .hub import Hub
from .model import FAR_FUTURE, Caller
from .session import Session
from .wire.protocol import Refused, Status, Welcome

__all__ = ["Identities", "Verifier"]

MAX_TOKEN = 8192
# An asymmetric key must never serve as an HMAC secret, so each family has its own keys.
ASYMMETRIC = ["RS256", "ES256", "EdDSA"]
KEYS_LIFETIME = 300.0
KEYS_COOLDOWN = 10.0
# Seconds before the end of a token at which its client is warned.
EXPIRY_WARNING = 60.0
# Longest timer in seconds: the event loop's timers do not reach for years.
TIMER_MAX = 86400.0


class Verifier:
    """Verifies tokens by the shared secret or by the keys of a JWKS.

    Args:
        settings: secret, JWKS address, audience, issuer, leeway.
        facts: which roles a token may name.
    """

    def __init__(self, settings: Settings, facts: Facts) -> None:
        self._settings = settings
        self._facts = facts
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched = -KEYS_LIFETIME
        self._fetching = asyncio.Lock()

    async def identify(self, token: str, *, admin: bool = False) -> Caller:
        """Return the caller that a client's token speaks for.

        Args:
            token: compact JWS.
            admin: whether roles of administrators are accepted, too.

        Raises:
            Refusal: the token is not valid, or that cannot be decided now.
        """
        facts = self._facts.current
        if not facts.caller_roles:
            raise Refusal("unavailable", "The database has not been reached yet: try again.")
        try:
            admins = facts.admin_roles if admin else ()
            return await self.verify(token, {*facts.caller_roles, *admins})
        except AuthError as error:
            raise Refusal(error.code, str(error)) from None

    def is_administrator(self, caller: Caller) -> bool:
        """Whether a caller's role is among those of administrators."""
        return caller.role in self._facts.current.admin_roles

    async def verify(self, token: str, roles: Collection[str]) -> Caller:
        """Return the caller that the token speaks for.

        Args:
            token: compact JWS.
            roles: the role claims that are accepted; no other role reaches SQL.

        Raises:
            AuthError: with a sentence that says why.
        """
        if len(token) > MAX_TOKEN:
            raise AuthError(f"The token is longer than {MAX_TOKEN} bytes.")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise AuthError(
                "The token is not a JSON Web Token: that is three base64url parts joined by dots,"
                " such as `rowcast token` prints."
            ) from None
        try:
            key, algorithms = await self._key(header)
            claims = jwt.decode(
                token,
                key,
                algorithms=algorithms,
                leeway=self._settings.jwt_leeway,
                audience=self._settings.jwt_audience or None,
                issuer=self._settings.jwt_issuer or None,
                options={
                    "require": ["exp"],
                    "verify_aud": bool(self._settings.jwt_audience),
                    "enforce_minimum_key_length": False,
                },
            )
        except jwt.ExpiredSignatureError:
            raise AuthError("The token has expired: send a new one.", "token_expired") from None
        except jwt.InvalidSignatureError:
            raise AuthError("The token's signature does not fit the key in use.") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            raise AuthError(f"The token is not valid: {error}.") from None
        return self._caller(claims, roles)

    def _caller(self, claims: dict[str, Any], roles: Collection[str]) -> Caller:
        role, subject, expires = claims.get("role"), claims.get("sub"), claims["exp"]
        if not isinstance(role, str) or role not in roles:
            raise AuthError(f"The token's role must be one of {', '.join(sorted(roles))}.")
        if subject is not None and not isinstance(subject, str):
            raise AuthError("The token's sub must be a string.")
        if not isinstance(expires, int | float) or not 0 < expires < FAR_FUTURE:
            raise AuthError("The token's exp must be a time in seconds.")
        text = json.dumps(claims, ensure_ascii=False, separators=(",", ":"))
        # Text in Postgres cannot hold NUL, and lone surrogates are not Unicode.
        if "\\u0000" in text or any("\ud800" <= c <= "\udfff" for c in text):
            raise AuthError("The token has a claim that is not valid text.")
        return Caller(role, subject, text, float(expires))

    async def _key(self, header: dict[str, Any]) -> tuple[Any, list[str]]:
        if header.get("alg") == "HS256":
            if not self._settings.jwt_secret:
                raise AuthError("Tokens signed with HS256 are not accepted here.")
            return self._settings.jwt_secret.encode(), ["HS256"]
        if header.get("alg") not in ASYMMETRIC or not self._settings.jwks_url:
            raise AuthError(f"Tokens signed with {header.get('alg')} are not accepted here.")
        key_id = header.get("kid")
        key = await self._published_key(key_id if isinstance(key_id, str) else None)
        return key.key, [header["alg"]] if key.algorithm_name == header["alg"] else []

    async def _published_key(self, key_id: str | None) -> jwt.PyJWK:
        # One fetch at a time: a token that comes during the first one waits for it, instead of
        # being refused for good because its key is not known.
        async with self._fetching:
            now = time.monotonic()
            stale = now - self._fetched > KEYS_LIFETIME
            unknown = key_id not in self._keys and now - self._fetched > KEYS_COOLDOWN
            if stale or unknown:
                self._fetched = now
                try:
                    self._keys = await self._fetch()
                except (aiohttp.ClientError, TimeoutError, jwt.PyJWTError, ValueError) as error:
                    observe("keys_unavailable", error=error)
        if not self._keys:
            raise AuthError("The keys that verify tokens cannot be had now.", "unavailable")
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        if key_id not in self._keys:
            raise AuthError("The token names a key that is not published.")
        return self._keys[key_id]

    async def _fetch(self) -> dict[str | None, jwt.PyJWK]:
        timeout = aiohttp.ClientTimeout(total=5)
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.get(self._settings.jwks_url, allow_redirects=False) as answer,
        ):
            answer.raise_for_status()
            published = jwt.PyJWKSet.from_dict(json.loads(await answer.content.read(262_144)))
        return {key.key_id: key for key in published.keys if key.algorithm_name in ASYMMETRIC}


class Identities:
    """Greets sessions, takes their tokens and watches when these end; one for all sessions.

    Args:
        settings: timeouts and limits.
        hub: finds sessions by their subject.
        verifier: checks tokens.
        facts: what a client is told at the beginning.
    """

    def __init__(self, settings: Settings, hub: Hub, verifier: Verifier, facts: Facts) -> None:
        self._settings = settings
        self._hub = hub
        self._facts = facts
        self._verifier = verifier
        self._timers: dict[Session, list[asyncio.TimerHandle]] = {}

    def enter(self, session: Session, *, token_follows: bool) -> None:
        """Add a session and tell it the limits.

        Args:
            session: the new one.
            token_follows: whether it has yet to send a token; it is closed if none comes in time.
        """
        self._hub.add(session)
        settings, facts = self._settings, self._facts.current
        limits = {"payload": facts.payload_limit, **settings.limits()}
        session.tell(Welcome(session.id, settings.heartbeat, facts.replay_overlap, limits))
        if token_follows:
            self._timer(session, settings.auth_timeout, self._unauthorized)

    def leave(self, session: Session) -> None:
        """Remove a session with its timers and its subscriptions."""
        self._cancel_timers(session)
        self._hub.remove(session)

    async def authenticate(
        self, session: Session, token: str, *, admin: bool = False
    ) -> tuple[Caller, bool]:
        """Take a token for a session, the first or a new one.

        Args:
            session: the one that sent it.
            token: compact JWS.
            admin: whether its door is one for administrators, too.

        Returns:
            The caller that it speaks for, and whether that replaces other claims.

        Raises:
            Refusal: the token is not valid, names another user, or cannot be checked now.
        """
        caller = await self._verifier.identify(token, admin=admin)
        before = session.caller
        other = before is not None and before.subject not in (None, caller.subject)
        if other and (session.subscriptions or session.pending):
            raise Refusal("invalid_token", "A new token must keep the sub: connect again instead.")
        self._hub.identify(session, caller)
        self._cancel_timers(session)
        left = self._left(session)
        self._timer(session, left - EXPIRY_WARNING, self._expiring)
        self._timer(session, left, self._expired)
        return caller, before is not None and before.claims != caller.claims

    def _cancel_timers(self, session: Session) -> None:
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
