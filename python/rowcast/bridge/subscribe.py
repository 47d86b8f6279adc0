"""A subscribe, from the request to the first live message, and the unsubscribe.

There is no gap: the session joins the hub before the policies are asked, what comes is held back,
and the replay covers what the hub delivered until it was read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from rowcast.config import Settings
from rowcast.errors import Refusal

from .access import Access, Verdict
from .cursor import Position
from .facts import Facts
from .feed import Feed
from .hub import Hub
from .model import Message
from .presence.attendance import Attendance
from .replay import Replays
from .resume_handles import ResumeHandles
from .revocation import Question, Rechecks
from .session import Session
from .subscription import State, Subscription
from .wire.protocol import Done, Resume, Subscribe, Subscribed, Unsubscribe

__all__ = ["Refuse", "Subscribing", "Work"]

UNSUBSCRIBED = "It was unsubscribed before it was answered."
NO_NAME = 'This is no channel name: join up to 16 segments by ":", without blanks or "*".'

# What answers a request, and what does if that raises a refusal.
Work: TypeAlias = Coroutine[Any, Any, None]
Refuse: TypeAlias = Callable[[Refusal], None]


@dataclass(frozen=True, slots=True)
class _Opening:
    """What is written before the `ok` of a subscribe."""

    frames: bytes = b""
    recovered: bool | UnsetType = UNSET
    ephemeral: bool | UnsetType = UNSET
    reason: str | UnsetType = UNSET


class Subscribing:
    """Lets sessions into channels, and out again; one for all sessions.

    Args:
        settings: limits.
        hub: who hears what.
        facts: the key that signs cursors.
        feed: where the bridge stands.
        access: asks the policies.
        replays: reads what a cursor has missed.
        attendance: counts and shows who is here.
        rechecks: told what was allowed, and when it has to be asked again.
        handles: where clients left off that keep no cursor.
    """

    def __init__(
        self,
        settings: Settings,
        hub: Hub,
        facts: Facts,
        feed: Feed,
        access: Access,
        replays: Replays,
        attendance: Attendance,
        rechecks: Rechecks,
        handles: ResumeHandles,
    ) -> None:
        self._settings = settings
        self._hub = hub
        self._facts = facts
        self._feed = feed
        self._access = access
        self._replays = replays
        self._attendance = attendance
        self._rechecks = rechecks
        self._handles = handles

    def subscribe(self, session: Session, op: Subscribe) -> Iterator[tuple[Work, Refuse]]:
        """Join the hub, channel by channel, and hold back what comes.

        Args:
            session: who asks.
            op: for which channels, and from where on.

        Yields:
            For each channel what asks the policies and answers, and what answers if that fails.

        Raises:
            Refusal: no token came yet, or none of it can be done.
        """
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
            subscription.begin(op)
            if before is None:
                # Joined before the policies are asked, so that nothing committed in the
                # meantime is missed; held back until they have answered.
                self._hub.join(session, subscription)
            else:
                self._hub.start(subscription)
            joining = self._join(session, subscription, op, before is None)
            yield joining, partial(self._turn_away, session, subscription)

    def unsubscribe(self, session: Session, op: Unsubscribe) -> None:
        """Leave a channel, also one whose subscribe has not been answered yet.

        Raises:
            Refusal: the session is not subscribed.
        """
        subscription = session.subscriptions.get(op.channel)
        if subscription is None:
            raise Refusal("not_subscribed")
        self._hub.leave(session, op.channel)
        # Answers come in the order of the requests; the policies need not be waited for.
        self._turn_away(session, subscription, Refusal("not_subscribed", UNSUBSCRIBED))
        session.tell(Done(op.ref, op.channel))

    def _turn_away(self, session: Session, subscription: Subscription, refusal: Refusal) -> None:
        """Refuse a pending subscription and what was sent behind it, unless that has been done."""
        request = subscription.take_request()
        if request is not None:
            session.refuse(request.ref, refusal, subscription.channel)
        self._attendance.turn_away(session, subscription, refusal)

    async def _join(
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
                subscription.drop_held(subscription.joined)
            asked, verdict = await self._judge(session, subscription)
            opening, _ = await asyncio.gather(
                self._opening(session, subscription, op, start),
                self._attendance.enter(session, subscription),
            )
            if subscription.stale_marks != asked.marks:
                # What was read for the opening may be more than is still allowed.
                asked, verdict = await self._judge(session, subscription)
        except BaseException:
            if session.subscriptions.get(channel) is subscription:
                self._hub.leave(session, channel)
            raise
        if session.closed or session.subscriptions.get(channel) is not subscription:
            # Unsubscribed, or gone, while the policies were asked.
            raise Refusal("not_subscribed")
        position = self._hub.position
        assert position is not None
        # What is held comes after this frame, so its cursor may only say what came before; and
        # there is none while another channel is being resumed or has something held back.
        at = start if subscription.held else position
        others = (s for s in session.subscriptions.values() if s is not subscription)
        current = not any(s.held or s.resuming for s in others)
        session.dirty |= not current  # it gets one with the next tick
        cursor = self._hub.sign(session, at) if current else UNSET
        members = self._attendance.members(channel) if op.presence else UNSET
        answer = Subscribed(
            op.ref, channel, cursor, opening.recovered, opening.ephemeral, opening.reason, members
        )
        session.write(opening.frames + session.wire.encode(answer))
        subscription.go_live()
        if self._rechecks.allowed(session, subscription, asked, verdict):
            self._hub.cursor(session)
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
        self, session: Session, subscription: Subscription, op: Subscribe, start: Position
    ) -> _Opening:
        caller = session.authenticated()
        key = self._facts.current.cursor_key
        if op.after is not None and key is not None:
            position = key.read(op.after, caller.cursor_subject)
            if position is None:
                # An invalid cursor counts as none; the client must know that it starts anew.
                return _Opening(recovered=False, ephemeral=False, reason="invalid_cursor")
            state, rows = await self._replays.read(subscription, position)
            if state not in ("complete", "durable"):
                return _Opening(recovered=False, ephemeral=False, reason=state)
            frames = self._encode(session, subscription.channel, rows, "replay")
            return _Opening(frames, recovered=True, ephemeral=state == "complete")
        if op.history:
            rows = await self._access.history(caller, subscription.channel, op.history, start)
            return _Opening(self._encode(session, subscription.channel, rows, "history"))
        return _Opening()

    @staticmethod
    def _encode(session: Session, channel: str, rows: Sequence[Message], flag: str) -> bytes:
        return session.wire.encode_messages(channel, rows, flag) if rows else b""
