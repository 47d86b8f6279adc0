"""Executes the requests of sessions: each frame is decoded, dispatched and answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeAlias

from rowcast.errors import Refusal
from rowcast.observe import metrics, observe

from .auth import Identities
from .model import Caller
from .presence.presence import Presence
from .publish import Publishing
from .session import Session
from .subscribe import Subscribing
from .subscription import Subscription
from .wire.protocol import (
    Auth,
    Authenticated,
    Connect,
    Done,
    Op,
    Ping,
    Publish,
    Refresh,
    Refused,
    Subscribe,
    Track,
    Unsubscribe,
    Untrack,
)

__all__ = ["Requests"]

Work: TypeAlias = Coroutine[Any, Any, None]
Refuse: TypeAlias = Callable[[Refusal], None]


class Requests:
    """Executes operations; one for all sessions.

    Args:
        identities: takes tokens, and knows which sessions are open.
        subscribing: lets sessions into channels and out again.
        publishing: publishes.
        presence: tracks members.
    """

    def __init__(
        self,
        identities: Identities,
        subscribing: Subscribing,
        publishing: Publishing,
        presence: Presence,
    ) -> None:
        self._identities = identities
        self._subscribing = subscribing
        self._publishing = publishing
        self._presence = presence
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, session: Session, token: str) -> bool:
        """Greet a client.

        Args:
            session: the new one.
            token: from the URL, or empty: then an `auth` frame must follow in time.

        Returns:
            Whether it may stay.
        """
        self._identities.enter(session, token_follows=not token)
        return not token or await self._let_in(session, token, None) is not None

    async def _let_in(self, session: Session, token: str, ref: Any) -> Caller | None:
        """Take the token of a client that does not try again on the same connection."""
        try:
            return await self._authenticate(session, token)
        except Refusal as refusal:
            session.tell(Refused.because(ref, refusal))
            session.close("internal" if refusal.code == "unavailable" else refusal.code)
            return None

    def gone(self, session: Session, *, goodbye: bool = False) -> None:
        """Forget a client whose connection has ended.

        Args:
            session: the client's.
            goodbye: whether the client ended it and does not come back. Its answer to our own
                close does not count: many clients answer 1000 to any code.
        """
        if not session.closed:
            session.closed, session.goodbye = True, goodbye
        self._identities.leave(session)

    async def handle(self, session: Session, data: bytes, *, binary: bool = False) -> None:
        """Take one frame. Never raises: every frame gets an answer, and none ends the bridge."""
        metrics.received.inc()
        op, ref = None, None
        try:
            session.check_size(data)
            ops, ref, refusal = session.wire.decode(data, binary=binary)
            if refusal is not None:
                session.bad_frame()
                raise refusal
            session.count_request()
            session.good_frame()
            for op in ops:
                await self._dispatch(session, op)
        except Refusal as error:
            session.refuse(ref, error, getattr(op, "channel", None))
        except Exception:
            observe("internal_error", exc_info=True)
            session.refuse(ref, Refusal("internal"))

    async def _dispatch(self, session: Session, op: Op) -> None:
        match op:
            case Connect():
                if caller := await self._let_in(session, op.token, op.ref):
                    session.tell(_authenticated(op.ref, caller))
            case Auth():
                await self._renew(session, op)
            case Refresh():
                await self._refresh(session, op)
            case Ping():
                session.tell(Done(op.ref))
            case Subscribe():
                for subscription, new in self._subscribing.begin(session, op):
                    refuse = partial(self._subscribing.turn_away, session, subscription)
                    self._spawn(session, self._subscribe(session, subscription, op, new), refuse)
            case Unsubscribe():
                self._subscribing.unsubscribe(session, op)
            case Publish(subscribed=False):
                self._publish(session, op)
            case Publish() | Track() | Untrack():
                session.authenticated()
                if not self._subscribing.queue(session, op):
                    self._execute(session, op)
            case _:
                raise Refusal("unsupported")

    # Tokens

    async def _renew(self, session: Session, op: Auth | Refresh) -> None:
        caller = await self._authenticate(session, op.token)
        session.tell(_authenticated(op.ref, caller))

    async def _refresh(self, session: Session, op: Refresh) -> None:
        try:
            await self._renew(session, op)
        except Refusal as refusal:
            if refusal.code == "unavailable":
                raise  # the old token holds until its end
            session.tell(Refused.because(op.ref, refusal))
            session.close(refusal.code)

    async def _authenticate(self, session: Session, token: str) -> Caller:
        caller, changed = await self._identities.authenticate(
            session, token, admin=session.wire.admin
        )
        if changed:
            self._subscribing.claims_changed(session)
        return caller

    # Requests that ask the database

    async def _subscribe(
        self, session: Session, subscription: Subscription, op: Subscribe, new: bool
    ) -> None:
        queued = await self._subscribing.complete(session, subscription, op, new=new)
        for behind in queued:
            try:
                self._execute(session, behind)
            except Refusal as refusal:
                session.refuse(behind.ref, refusal, behind.channel)

    def _execute(self, session: Session, op: Publish | Track | Untrack) -> None:
        match op:
            case Publish():
                self._publish(session, op)
            case Track():
                self._presence.track(session, op.channel, bytes(op.state), op.ref)
            case Untrack():
                self._presence.untrack(session, op.channel, op.ref)

    def _publish(self, session: Session, op: Publish) -> None:
        caller = session.authenticated()
        if op.subscribed and not session.hears(op.channel):
            raise Refusal("not_subscribed")
        refuse = partial(session.refuse, op.ref, channel=op.channel)
        self._spawn(session, self._publishing.publish(session, caller, op), refuse)

    def _spawn(self, session: Session, work: Work, refuse: Refuse) -> None:
        session.pending += 1
        task = asyncio.create_task(self._guard(session, work, refuse))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, session: Session, work: Work, refuse: Refuse) -> None:
        try:
            await work
        except Refusal as refusal:
            refuse(refusal)
        except Exception:
            observe("internal_error", exc_info=True)
            refuse(Refusal("internal"))
        finally:
            session.pending -= 1


def _authenticated(ref: Any, caller: Caller) -> Authenticated:
    return Authenticated(ref, caller.subject, caller.role, int(caller.expires))
