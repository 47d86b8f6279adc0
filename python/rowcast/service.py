"""What clients ask for, done: the operations of a session, with the database as the judge."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from .access import Access, Verdict
from .attendance import Attendance
from .caller import Caller
from .config import Settings
from .cursor import Position
from .errors import Refusal
from .feed import Feed
from .handles import Handles
from .hub import Hub
from .identity import Identities
from .message import Message
from .observe import metrics, observe
from .recheck import Question, Rechecks
from .session import Session, State, Subscription
from .wire.events import (
    Authenticated,
    Done,
    Published,
    Refused,
    Subscribed,
    Welcome,
)
from .wire.operations import (
    Auth,
    Connect,
    Op,
    Ping,
    Publish,
    Refresh,
    Resume,
    Subscribe,
    Track,
    Unsubscribe,
    Untrack,
)

__all__ = ["Service"]

UNSUBSCRIBED = "It was unsubscribed before it was answered."
NO_NAME = 'This is no channel name: join up to 16 segments by ":", without blanks or "*".'


@dataclass(frozen=True, slots=True)
class _Opening:
    """What is written before the `ok` of a subscribe."""

    frames: bytes = b""
    recovered: bool | UnsetType = UNSET
    ephemeral: bool | UnsetType = UNSET
    reason: str | UnsetType = UNSET


class Service:
    """Executes operations; one for all sessions.

    Args:
        settings: limits.
        hub: who hears what.
        feed: where the bridge stands.
        access: asks the policies.
        attendance: counts and shows who is here.
        identities: takes tokens.
        rechecks: told what has to be asked again.
        handles: where clients left off that keep no cursor.
    """

    def __init__(
        self,
        settings: Settings,
        hub: Hub,
        feed: Feed,
        access: Access,
        attendance: Attendance,
        identities: Identities,
        rechecks: Rechecks,
        handles: Handles,
    ) -> None:
        self._settings = settings
        self._hub = hub
        self._feed = feed
        self._access = access
        self._attendance = attendance
        self._identities = identities
        self._rechecks = rechecks
        self._handles = handles
        self._tasks: set[asyncio.Task[None]] = set()

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
                self._subscribe(session, op)
            case Unsubscribe():
                self._unsubscribe(session, op)
            case Publish():
                caller = session.authenticated()
                if op.subscribed and not session.hears(op.channel):
                    raise Refusal("not_subscribed")
                self._spawn(session, op.ref, op.channel, self._publish(session, caller, op))
            case Track() | Untrack():
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

    def _spawn(self, session: Session, ref: Any, channel: str | None, work: Any) -> None:
        session.pending += 1
        task = asyncio.create_task(self._guard(session, ref, channel, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, session: Session, ref: Any, channel: str | None, work: Any) -> None:
        try:
            await work
        except Refusal as refusal:
            session.refuse(ref, refusal, channel)
        except Exception:
            observe("internal_error", exc_info=True)
            session.refuse(ref, Refusal("internal"), channel)
        finally:
            session.pending -= 1

    async def _publish(self, session: Session, caller: Caller, op: Publish) -> None:
        hearing = self._hub.hearing(session, op.channel)
        for subscription in hearing:
            subscription.publishing += 1
        try:
            try:
                payload = bytes(op.payload).decode()
            except UnicodeDecodeError:
                raise Refusal("invalid_message", "The payload is not valid UTF-8.") from None
            if self._feed.payload_limit and len(bytes(op.payload)) > 4 * self._feed.payload_limit:
                raise Refusal("payload_too_large")
            message_id = await self._access.publish(
                caller, session.id, op.channel, op.type, op.event, payload, op.id
            )
            session.own_ids.append(str(message_id))
            session.tell(Published(op.ref, str(message_id)))
        finally:
            for subscription in hearing:
                subscription.publishing -= 1
                self._hub.release(session, subscription)

    def _subscribe(self, session: Session, op: Subscribe) -> None:
        session.authenticated()
        names = op.names()
        if not names:
            raise Refusal(
                "invalid_frame", "subscribe needs channel, or channels with at least one."
            )
        if len(names) > self._settings.max_channels:
            # One answer: a frame may hold names for megabytes of them.
            raise Refusal("too_many_channels")
        if op.history > self._settings.max_history:
            raise Refusal("invalid_frame", f"history may be at most {self._settings.max_history}.")
        for name in names:
            try:
                session.room_for(name)
            except Refusal as refusal:
                session.refuse(op.ref, refusal, name)
                continue
            before = session.subscriptions.get(name)
            if before is not None and before.state is State.PENDING:
                busy = Refusal("rate_limited", "This channel is being subscribed.")
                session.refuse(op.ref, busy, name)
                continue
            subscription = before or Subscription(name)
            subscription.state, subscription.own = State.PENDING, op.own
            subscription.request = op
            subscription.watching = op.presence
            subscription.resuming = op.after is not None or isinstance(op, Resume)
            if before is None:
                # Joined before the policies are asked, so that nothing committed in the
                # meantime is missed; held back until they have answered.
                self._hub.join(session, subscription)
            else:
                self._hub.start(subscription)
            self._spawn(
                session, op.ref, name, self._join(session, subscription, op, before is None)
            )

    async def _join(
        self, session: Session, subscription: Subscription, op: Subscribe, fresh: bool
    ) -> None:
        try:
            await self._enter(session, subscription, op, fresh)
        except Refusal as refusal:
            self._turn_away(session, subscription, refusal)
        except Exception:
            observe("internal_error", exc_info=True)
            self._turn_away(session, subscription, Refusal("internal"))

    def _turn_away(self, session: Session, subscription: Subscription, refusal: Refusal) -> None:
        """Refuse a pending subscription and what was sent behind it, unless that has been done."""
        request, subscription.request = subscription.request, None
        if request is not None:
            session.refuse(request.ref, refusal, subscription.channel)
        self._attendance.turn_away(session, subscription, refusal)

    def _unsubscribe(self, session: Session, op: Unsubscribe) -> None:
        subscription = session.subscriptions.get(op.channel)
        if subscription is None:
            raise Refusal("not_subscribed")
        self._hub.leave(session, op.channel)
        # Answers come in the order of the requests; the policies need not be waited for.
        self._turn_away(session, subscription, Refusal("not_subscribed", UNSUBSCRIBED))
        session.tell(Done(op.ref, op.channel))

    async def _enter(
        self, session: Session, subscription: Subscription, op: Subscribe, fresh: bool
    ) -> None:
        channel = subscription.channel
        try:
            if isinstance(op, Resume):
                subject = session.authenticated().cursor_subject
                after = await self._handles.find(subject, op.handle, channel)
                op = msgspec.structs.replace(op, after=after)
            start = await self._settled(subscription)
            if fresh or op.history or op.after is not None:
                # What was held of a delivery that was under way lies before the start, and
                # history has it, too. Who was live already must not miss it.
                subscription.forget(subscription.joined)
            asked, verdict = await self._judge(session, subscription)
            opening, _ = await asyncio.gather(
                self._opening(session, subscription, op, start),
                self._attendance.enter(session, subscription),
            )
            if subscription.doubts != asked.doubts:
                # What was read for the opening may be more than is still allowed.
                asked, verdict = await self._judge(session, subscription)
        except BaseException:
            if session.subscriptions.get(channel) is subscription:
                self._hub.leave(session, channel)
            raise
        if session.closed or session.subscriptions.get(channel) is not subscription:
            # Unsubscribed, or gone, while the policies were asked.
            raise Refusal("not_subscribed")
        key, position = self._feed.key, self._hub.position
        assert key is not None
        assert position is not None
        # What is held comes after this frame, so its cursor may only say what came before; and
        # there is none while another channel is being resumed or has something held back.
        at = start if subscription.held else position
        others = (s for s in session.subscriptions.values() if s is not subscription)
        current = not any(s.held or s.resuming for s in others)
        session.dirty |= not current  # it gets one with the next tick
        answer = Subscribed(
            op.ref,
            channel,
            key.sign(at, session.authenticated().cursor_subject) if current else UNSET,
            opening.recovered,
            opening.ephemeral,
            opening.reason,
            self._attendance.members(channel) if op.presence else UNSET,
        )
        session.write(opening.frames + session.wire.encode(answer))
        subscription.state, subscription.request = State.LIVE, None
        subscription.resuming = False
        if self._rechecks.allowed(session, subscription, asked, verdict):
            self._hub.cursor(session, key)
        if op.state is not None:
            self._attendance.appear(session, subscription, bytes(op.state))
        self._attendance.catch_up(session, subscription)

    async def _judge(
        self, session: Session, subscription: Subscription
    ) -> tuple[Question, Verdict]:
        """Ask the policies with the claims of this moment; raises Refusal "forbidden"."""
        asked = self._rechecks.question(subscription)
        verdict = await self._access.may_subscribe(session.authenticated(), subscription.channel)
        if verdict.code == "invalid_channel":
            raise Refusal("invalid_channel", NO_NAME)
        if not verdict.allowed:
            raise Refusal("forbidden")
        return asked, verdict

    async def _settled(self, subscription: Subscription) -> Position:
        """Wait until what was being delivered when the session joined is behind it."""
        try:
            async with asyncio.timeout(self._settings.query_timeout), self._feed.drained:
                await self._feed.drained.wait_for(lambda: subscription.start is not None)
        except TimeoutError:
            raise Refusal("unavailable") from None
        assert subscription.start is not None
        return subscription.start

    async def _opening(
        self,
        session: Session,
        subscription: Subscription,
        op: Subscribe,
        start: Position,
    ) -> _Opening:
        caller = session.authenticated()
        if op.after is not None and self._feed.key is not None:
            position = self._feed.key.read(op.after, caller.cursor_subject)
            if position is not None:
                return await self._replay(session, subscription, position)
            # An invalid cursor counts as none; the client must know that it starts anew.
            return _Opening(recovered=False, ephemeral=False, reason="invalid_cursor")
        if op.history:
            rows = await self._access.history(caller, subscription.channel, op.history, start)
            return _Opening(self._encode(session, subscription.channel, rows, "history"))
        return _Opening()

    async def _replay(
        self, session: Session, subscription: Subscription, position: Position
    ) -> _Opening:
        state, rows = await self._access.replay(subscription, position)
        if state in ("complete", "durable"):
            frames = self._encode(session, subscription.channel, rows, "replay")
            return _Opening(frames, recovered=True, ephemeral=state == "complete")
        return _Opening(recovered=False, ephemeral=False, reason=state)

    @staticmethod
    def _encode(session: Session, channel: str, rows: Sequence[Message], flag: str) -> bytes:
        return session.wire.encode_messages(channel, rows, flag) if rows else b""

    def _welcome(self, session: Session) -> Welcome:
        settings = self._settings
        limits = {"payload": self._feed.payload_limit, **settings.limits()}
        return Welcome(session.id, settings.heartbeat, self._feed.overlap, limits)


def _authenticated(ref: Any, caller: Caller) -> Authenticated:
    return Authenticated(ref, caller.subject, caller.role, int(caller.expires))
