"""What clients ask for, done: the operations of a session, with the database as the judge."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from rowcast.config import Settings
from rowcast.errors import Refusal
from rowcast.observe import metrics, observe

from .access import Access
from .auth import Identities
from .facts import Facts
from .hub import Hub
from .model import Caller
from .presence.attendance import Attendance
from .revocation import Rechecks
from .session import Session
from .subscribe import Refuse, Subscribing, Work
from .wire.protocol import (
    Auth,
    Authenticated,
    Connect,
    Done,
    Op,
    Ping,
    Publish,
    Published,
    Refresh,
    Refused,
    Subscribe,
    Track,
    Unsubscribe,
    Untrack,
    Welcome,
)

__all__ = ["Requests"]


class Requests:
    """Executes operations; one for all sessions.

    Args:
        settings: limits.
        hub: who hears what.
        facts: what the bridge knows of the database.
        access: asks the policies.
        attendance: counts and shows who is here.
        identities: takes tokens.
        rechecks: told what has to be asked again.
        subscribing: lets sessions into channels and out again.
    """

    def __init__(
        self,
        settings: Settings,
        hub: Hub,
        facts: Facts,
        access: Access,
        attendance: Attendance,
        identities: Identities,
        rechecks: Rechecks,
        subscribing: Subscribing,
    ) -> None:
        self._settings = settings
        self._hub = hub
        self._facts = facts
        self._access = access
        self._attendance = attendance
        self._identities = identities
        self._rechecks = rechecks
        self._subscribing = subscribing
        self._tasks: set[asyncio.Task[None]] = set()
        attendance.publish = self.publish

    async def open(self, session: Session, token: str) -> bool:
        """Greet a client.

        Args:
            session: the new one.
            token: from the URL, or empty: then an `auth` frame must follow in time.

        Returns:
            Whether it may stay.
        """
        self._hub.add(session)
        session.tell(self._welcome(session))
        if not token:
            self._identities.expect(session)
            return True
        return await self._let_in(session, token, None) is not None

    async def _let_in(self, session: Session, token: str, ref: Any) -> Caller | None:
        """Take the token of a client that does not try again on the same connection."""
        try:
            return await self._authenticate(session, token)
        except Refusal as refusal:
            session.tell(Refused.because(ref, refusal))
            if refusal.code == "unavailable":
                session.close("internal")
            else:
                session.close(refusal.code)
            return None

    def gone(self, session: Session, *, goodbye: bool = False) -> None:
        """The client's connection has ended; it may come back, unless it said goodbye.

        What it answers to a close of ours says nothing: many clients answer 1000 to any code.
        """
        if not session.closed:
            session.closed, session.goodbye = True, goodbye
        self._identities.forget(session)
        self._hub.remove(session)

    async def handle(self, session: Session, data: bytes, *, binary: bool = False) -> None:
        """Take one frame. Never raises: every frame gets an answer, and none ends the bridge."""
        metrics.received.inc()
        op, ref = None, None
        try:
            if len(data) > self._settings.max_frame:
                raise Refusal("frame_too_large")
            ops, ref, refusal = session.wire.decode(data, binary=binary)
            if refusal is not None:
                session.bad_frame()
                raise refusal
            session.admit()
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
                for work, refuse in self._subscribing.subscribe(session, op):
                    self._spawn(session, work, refuse)
            case Unsubscribe():
                self._subscribing.unsubscribe(session, op)
            case Publish(subscribed=False):
                self.publish(session, op)
            case Publish() | Track() | Untrack():
                session.authenticated()
                self._attendance.ask(session, op)
            case _:
                raise Refusal("unsupported")

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
        self._attendance.rename(session)
        if changed:
            self._rechecks.renewed(session)  # the new token may allow less
        return caller

    # Requests that ask the database

    def publish(self, session: Session, op: Publish) -> None:
        """Publish, and answer then.

        Raises:
            Refusal: no token came yet, or the session is not subscribed and must be.
        """
        caller = session.authenticated()
        if op.subscribed and not session.hears(op.channel):
            raise Refusal("not_subscribed")
        refuse = partial(session.refuse, op.ref, channel=op.channel)
        self._spawn(session, self._publish(session, caller, op), refuse)

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

    async def _publish(self, session: Session, caller: Caller, op: Publish) -> None:
        hearing = self._hub.hearing(session, op.channel)
        for subscription in hearing:
            subscription.publish_begins()
        try:
            try:
                payload = bytes(op.payload).decode()
            except UnicodeDecodeError:
                raise Refusal("invalid_message", "The payload is not valid UTF-8.") from None
            if self._facts.current.exceeds_payload_limit(bytes(op.payload)):
                raise Refusal("payload_too_large")
            message_id = await self._access.publish(
                caller, session.id, op.channel, op.type, op.event, payload, op.id
            )
            session.own_ids.append(str(message_id))
            session.tell(Published(op.ref, str(message_id)))
        finally:
            for subscription in hearing:
                subscription.publish_ends()
                self._hub.release(session, subscription)

    def _welcome(self, session: Session) -> Welcome:
        settings = self._settings
        facts = self._facts.current
        limits = {"payload": facts.payload_limit, **settings.limits()}
        return Welcome(session.id, settings.heartbeat, facts.replay_overlap, limits)


def _authenticated(ref: Any, caller: Caller) -> Authenticated:
    return Authenticated(ref, caller.subject, caller.role, int(caller.expires))
