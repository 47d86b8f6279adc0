"""Who is here, as a session sees it: counted as audience, told of presence, tracked.

The one place that subscribing and the hub tell of joins and leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from rowcast.bridge.names import is_pattern
from rowcast.bridge.session import Session
from rowcast.bridge.subscription import State, Subscription
from rowcast.bridge.wire.protocol import Done, Event, Member, Publish, Refused, Track, Untrack
from rowcast.config import Settings
from rowcast.errors import Refusal
from rowcast.observe import metrics

from .audience import Audience
from .members import Tracking, key_of
from .updates import Presence

__all__ = ["Attendance"]


class Attendance:
    """Joins and leaves.

    Args:
        settings: limits.
        audience: counts.
        presence: tells clients.
        tracking: writes what they tracked.
    """

    def __init__(
        self, settings: Settings, audience: Audience, presence: Presence, tracking: Tracking
    ) -> None:
        self._settings = settings
        self._audience = audience
        self._presence = presence
        self._tracking = tracking
        self.publish: Callable[[Session, Publish], None]  # of who publishes, and sets it
        tracking.answer = self._answer

    async def enter(self, session: Session, subscription: Subscription) -> None:
        """Count a subscription that was allowed, and have the list of who is present.

        Returns when every message published from now on counts it.

        Raises:
            Refusal: "unavailable".
        """
        if session.subscriptions.get(subscription.channel) is not subscription:
            return  # it has left while the policies were asked
        reading = self._presence.open(subscription.channel)
        if not subscription.count():
            await reading
            return
        counted = self._audience.enter(subscription.channel)
        try:
            async with asyncio.timeout(self._settings.query_timeout):
                await asyncio.gather(reading, counted)
        except TimeoutError:
            raise Refusal("unavailable") from None

    def left(self, session: Session, subscription: Subscription) -> None:
        """A subscription has ended, for whatever reason."""
        channel = subscription.channel
        if subscription.uncount():
            self._audience.leave(channel)
        self._tracking.leave(session, channel, lost=session.closed and not session.goodbye)
        self._presence.close(channel)

    def members(self, channel: str) -> list[Member]:
        """All who are present."""
        return [
            Member(key, msgspec.Raw(state.encode()))
            for key, state in self._presence.members(channel)
        ]

    def ask(self, session: Session, op: Publish | Track | Untrack) -> None:
        """Show a member, or no more, or publish what only a subscriber may; behind a subscription
        to the channel that is pending.

        Raises:
            Refusal: see `track` and `untrack`, and `publish` of the service.
        """
        subscription = session.subscriptions.get(op.channel)
        if subscription is not None and subscription.state is State.PENDING:
            if isinstance(op, Track):
                self.admit(op.channel, bytes(op.state))
            session.pending += 1  # so there are at most as many as there may be requests
            subscription.queue(op)
        elif isinstance(op, Publish):
            self.publish(session, op)
        elif isinstance(op, Track):
            self.track(session, op.channel, bytes(op.state), op.ref)
        else:
            self.untrack(session, op.channel, op.ref)

    def catch_up(self, session: Session, subscription: Subscription) -> None:
        """Do what was sent behind a subscription that is live now."""
        for op in self._queued(session, subscription):
            try:
                self.ask(session, op)
            except Refusal as refusal:
                session.refuse(op.ref, refusal, op.channel)

    def turn_away(self, session: Session, subscription: Subscription, refusal: Refusal) -> None:
        """Refuse what was sent behind a subscription that is refused."""
        for op in self._queued(session, subscription):
            session.refuse(op.ref, refusal, op.channel)

    @staticmethod
    def _queued(
        session: Session, subscription: Subscription
    ) -> Sequence[Publish | Track | Untrack]:
        queued = subscription.take_queued()
        session.pending -= len(queued)
        return queued

    def admit(self, channel: str, state: bytes) -> None:
        """Raises Refusal when nobody can be in this state there, whoever it is."""
        if is_pattern(channel):
            raise Refusal("invalid_channel", "Nobody is present in a pattern: track in a channel.")
        if len(state) > self._settings.max_state:
            raise Refusal(
                "payload_too_large", f"A state may have {self._settings.max_state} bytes."
            )

    def track(self, session: Session, channel: str, state: bytes, ref: Any) -> None:
        """Show the session's member in this state; answered when it is written.

        Raises:
            Refusal: no token came yet, the session is not subscribed, the state is no object or
                too large, or there are too many members.
        """
        key, _ = key_of(session)
        if not session.hears(channel):
            raise Refusal("not_subscribed", "Subscribe first.")
        self.admit(channel, state)
        most = self._settings.max_members
        if not self._tracking.holds(channel, key) and (
            self._tracking.size(channel) >= most or not self._presence.room_for(channel, key, most)
        ):
            raise Refusal("too_many_members")
        self._tracking.track(session, channel, _object(state), ref)

    def appear(self, session: Session, subscription: Subscription, state: bytes) -> None:
        """Show a member to the others because he has subscribed; one who is there already stays
        as he is. Where there is no room for more, the channel has one more silent listener."""
        channel = subscription.channel
        key, _ = key_of(session)
        subscription.become_member(key)
        known = self._presence.state_of(channel, key)
        try:
            self.track(session, channel, state if known is None else known.encode(), None)
        except Refusal as refusal:
            metrics.refusals.labels(refusal.code).inc()

    def untrack(self, session: Session, channel: str, ref: Any) -> None:
        """Show it no more; answered when that is written.

        Raises:
            Refusal: no token came yet.
        """
        session.authenticated()
        self._tracking.untrack(session, channel, ref)

    @staticmethod
    def _answer(session: Session, channel: str, refs: list[Any], refusal: Refusal | None) -> None:
        """Answer many requests in one write."""
        if refusal is None:
            answers: list[Event] = [Done(ref, channel) for ref in refs]
        else:
            answers = [Refused.because(ref, refusal, channel) for ref in refs]
            metrics.refusals.labels(refusal.code).inc(len(refs))
        session.write(b"".join(map(session.wire.encode, answers)))

    def rename(self, session: Session) -> None:
        """The session has another token."""
        self._tracking.rename(session)


def _object(state: bytes) -> str:
    """The text of a JSON object. Numbers stay as they were written; Postgres judges the rest."""
    try:
        if isinstance(msgspec.json.decode(state), dict):
            return state.decode()
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise Refusal("invalid_message", f"The state cannot be read: {error}.") from None
    raise Refusal("invalid_message", "The state must be a JSON object.")
