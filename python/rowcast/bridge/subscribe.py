"""A subscribe, from the request to the first live message, and the unsubscribe.

There is no gap: the session joins the hub before the policies are asked, live messages are held
back, and the replay covers what the hub delivered until it was read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from rowcast.errors import Refusal

from .access import Verdict
from .hub import Hub
from .opening import Opening, Openings
from .presence.presence import Presence
from .revocation import Question, Revocation
from .session import Session
from .subscription import State, Subscription
from .wire.protocol import Done, Publish, Subscribe, Subscribed, Track, Unsubscribe, Untrack

__all__ = ["Subscribing"]

UNSUBSCRIBED = "It was unsubscribed before it was answered."
NO_NAME = 'This is not a channel name: join up to 16 segments by ":", without blanks or "*".'


class Subscribing:
    """Lets sessions into channels, and out again; one for all sessions.

    Args:
        hub: sessions join it before the policies are asked.
        presence: counts subscribers and shows members.
        revocation: asks the policies, and again when that is necessary.
        openings: reads replay and history.
    """

    def __init__(
        self, hub: Hub, presence: Presence, revocation: Revocation, openings: Openings
    ) -> None:
        self._hub = hub
        self._presence = presence
        self._revocation = revocation
        self._openings = openings

    def begin(self, session: Session, op: Subscribe) -> list[tuple[Subscription, bool]]:
        """Join the hub, channel by channel, and hold back live messages.

        Channels that cannot be subscribed now are refused one by one.

        Args:
            session: the one that asks.
            op: for which channels, and from where on.

        Returns:
            The subscriptions that `complete` has to be called for, and whether each is new.

        Raises:
            Refusal: no token came yet, or nothing of the request can be done.
        """
        session.authenticated()
        names = op.names()
        if not names:
            raise Refusal(
                "invalid_frame", "subscribe needs channel, or channels with at least one."
            )
        session.check_channel_count(len(names))
        self._openings.check(op)
        begun = []
        for name in names:
            before = session.subscriptions.get(name)
            try:
                session.check_channel_limit(name)
                if before is not None and before.state is State.PENDING:
                    raise Refusal("rate_limited", "This channel is being subscribed.")
            except Refusal as refusal:
                session.refuse(op.ref, refusal, name)
                continue
            subscription = before or Subscription(name)
            subscription.begin(op)
            if before is None:
                # Joined before the policies are asked, so that no message committed in the
                # meantime is missed; held back until they have answered.
                self._hub.join(session, subscription)
            else:
                self._hub.start(subscription)
            begun.append((subscription, before is None))
        return begun

    async def complete(
        self, session: Session, subscription: Subscription, op: Subscribe, *, new: bool
    ) -> Sequence[Publish | Track | Untrack]:
        """Ask the policies, read the opening, answer, and let live messages flow.

        Args:
            session: the one that asked.
            subscription: begun with this request.
            op: the request.
            new: whether it was not subscribed before; then it is left when it is refused.

        Returns:
            The requests that were queued behind this one, to be done now.

        Raises:
            Refusal: the policies do not allow it, or the database cannot answer.
        """
        channel = subscription.channel
        try:
            op = await self._openings.resolve(session, op, channel)
            start = await self._openings.start_of(subscription)
            if new or op.history or op.after is not None:
                # Messages held of a delivery that was under way lie before the start, and history
                # has them, too. A client that was live already must not miss them.
                subscription.drop_held(subscription.joined)
            asked, verdict = await self._judge(session, subscription)
            opening, _ = await asyncio.gather(
                self._openings.read(session, subscription, op, start),
                self._presence.enter(session, subscription),
            )
            if subscription.stale_marks != asked.marks:
                # The opening may contain messages that are not allowed any more.
                asked, verdict = await self._judge(session, subscription)
        except BaseException:
            if session.subscriptions.get(channel) is subscription:
                self._hub.leave(session, channel)
            raise
        if session.closed or session.subscriptions.get(channel) is not subscription:
            # Unsubscribed, or gone, while the policies were asked.
            raise Refusal("not_subscribed")
        # Held messages come after this frame, so its cursor may only cover what came before.
        position = start if subscription.held else self._hub.position
        assert position is not None
        # It gets no cursor while another channel is being resumed or has something held back.
        others = (s for s in session.subscriptions.values() if s is not subscription)
        current = not any(s.held or s.resuming for s in others)
        cursor = self._hub.sign(session, position) if current else UNSET
        session.dirty |= not current  # then it gets one with the next round of cursors
        self._answer(session, subscription, op, opening, cursor)
        subscription.go_live()
        if self._revocation.allowed(session, subscription, asked, verdict):
            self._hub.cursor(session)
        if op.state is not None:
            self._presence.appear(session, subscription, bytes(op.state))
        return self._take_queued(session, subscription)

    async def _judge(
        self, session: Session, subscription: Subscription
    ) -> tuple[Question, Verdict]:
        """Ask the policies with the claims of this moment.

        Raises:
            Refusal: "forbidden", "invalid_channel" or "unavailable".
        """
        asked, verdict = await self._revocation.ask(session, subscription)
        if verdict.code == "invalid_channel":
            raise Refusal("invalid_channel", NO_NAME)
        if not verdict.allowed:
            raise Refusal("forbidden")
        return asked, verdict

    def _answer(
        self,
        session: Session,
        subscription: Subscription,
        op: Subscribe,
        opening: Opening,
        cursor: str | UnsetType,
    ) -> None:
        channel = subscription.channel
        members = self._presence.members(channel) if op.presence else UNSET
        answer = Subscribed(
            op.ref, channel, cursor, opening.recovered, opening.ephemeral, opening.reason, members
        )
        session.write(opening.frames + session.wire.encode(answer))

    def turn_away(self, session: Session, subscription: Subscription, refusal: Refusal) -> None:
        """Refuse a pending subscription, and the requests queued behind it.

        What has been answered already is not answered again.
        """
        request = subscription.take_request()
        if request is not None:
            session.refuse(request.ref, refusal, subscription.channel)
        for op in self._take_queued(session, subscription):
            session.refuse(op.ref, refusal, op.channel)

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
        self.turn_away(session, subscription, Refusal("not_subscribed", UNSUBSCRIBED))
        session.tell(Done(op.ref, op.channel))

    def queue(self, session: Session, op: Publish | Track | Untrack) -> bool:
        """Queue a request behind a pending subscription to its channel.

        Returns:
            False when there is none: then the request has to be done now.

        Raises:
            Refusal: it could never be done.
        """
        subscription = session.subscriptions.get(op.channel)
        if subscription is None or subscription.state is not State.PENDING:
            return False
        if isinstance(op, Track):
            self._presence.check_state(op.channel, bytes(op.state))
        session.pending += 1  # so that the number of queued requests is bounded, too
        subscription.queue(op)
        return True

    @staticmethod
    def _take_queued(
        session: Session, subscription: Subscription
    ) -> Sequence[Publish | Track | Untrack]:
        queued = subscription.take_queued()
        session.pending -= len(queued)
        return queued

    def claims_changed(self, session: Session) -> None:
        """Ask again about all subscriptions, because a new token may allow less."""
        self._revocation.claims_changed(session)
        self._presence.rename(session)
