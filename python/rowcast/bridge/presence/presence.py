"""Presence as the rest of the bridge uses it: enter and leave a channel, track and untrack.

Behind it are the audience (how many listen), the members (what clients of this bridge track), and
the updates (what clients are told), which keep a roster for each channel. A module of its own and
not the package's `__init__`, so that the roster can be imported without a database driver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from rowcast.bridge.names import is_pattern
from rowcast.bridge.session import Session
from rowcast.bridge.subscription import Subscription
from rowcast.bridge.wire.protocol import Member
from rowcast.config import Settings
from rowcast.errors import Refusal
from rowcast.observe import metrics

from .audience import Audience
from .members import Members, key_of
from .updates import Updates

__all__ = ["Presence"]


class Presence:
    """The one door to audience, members and updates.

    Args:
        settings: limits.
        audience: counts subscribers.
        members: writes what clients track.
        updates: tells clients.
    """

    def __init__(
        self, settings: Settings, audience: Audience, members: Members, updates: Updates
    ) -> None:
        self._settings = settings
        self._audience = audience
        self._members = members
        self._updates = updates

    # Subscriptions

    async def enter(self, session: Session, subscription: Subscription) -> None:
        """Count a subscription that was allowed, and read the channel's members.

        Returns when every message published from now on counts it.

        Raises:
            Refusal: "unavailable".
        """
        if session.subscriptions.get(subscription.channel) is not subscription:
            return  # it has left while the policies were asked
        reading = self._updates.open(subscription.channel)
        if not subscription.count():
            await reading
            return
        counted = self._audience.enter(subscription.channel)
        try:
            async with asyncio.timeout(self._settings.query_timeout):
                await asyncio.gather(reading, counted)
        except TimeoutError:
            raise Refusal("unavailable") from None

    def leave(self, session: Session, subscription: Subscription) -> None:
        """Undo `enter` for a subscription that has ended, whatever the reason."""
        channel = subscription.channel
        if subscription.uncount():
            self._audience.leave(channel)
        self._members.leave(session, channel, lost=session.closed and not session.goodbye)
        self._updates.close(channel)

    def members(self, channel: str) -> list[Member]:
        """Return all members, as far as the channel's clients were told."""
        return [
            Member(key, msgspec.Raw(state.encode()))
            for key, state in self._updates.members(channel)
        ]

    # Members

    def check_state(self, channel: str, state: bytes) -> None:
        """Raise Refusal for a state that no client could have in this channel."""
        if is_pattern(channel):
            raise Refusal(
                "invalid_channel", "A pattern has no members: track in a channel it matches."
            )
        if len(state) > self._settings.max_state:
            raise Refusal(
                "payload_too_large", f"A state may have {self._settings.max_state} bytes."
            )

    def track(self, session: Session, channel: str, state: bytes, ref: Any) -> None:
        """Show the session's member in this state; answered when it is written.

        Raises:
            Refusal: no token came yet, the session is not subscribed, the state is not an object
                or too large, or there are too many members.
        """
        key, _ = key_of(session)
        if not session.hears(channel):
            raise Refusal("not_subscribed", "Subscribe first.")
        self.check_state(channel, state)
        most = self._settings.max_members
        if not self._members.holds(channel, key) and (
            self._members.size(channel) >= most
            or not self._updates.has_room_for(channel, key, most)
        ):
            raise Refusal("too_many_members")
        self._members.track(session, channel, _object(state), ref)

    def appear(self, session: Session, subscription: Subscription, state: bytes) -> None:
        """Show a member because it has subscribed; a member who is shown already keeps its state.

        In a channel that has reached its member limit, the client listens without being shown.
        """
        channel = subscription.channel
        key, _ = key_of(session)
        subscription.become_member(key)
        known = self._updates.state_of(channel, key)
        try:
            self.track(session, channel, state if known is None else known.encode(), None)
        except Refusal as refusal:
            metrics.refusals.labels(refusal.code).inc()

    def untrack(self, session: Session, channel: str, ref: Any) -> None:
        """Stop showing the session's member; answered when that is written.

        Raises:
            Refusal: no token came yet.
        """
        session.authenticated()
        self._members.untrack(session, channel, ref)

    def rename(self, session: Session) -> None:
        """Move what the session tracks to the member that its new token names."""
        self._members.rename(session)

    # The feed and the lease

    def apply(self, rows: Iterable[asyncpg.Record]) -> None:
        """Take the presence rows that the feed read."""
        self._updates.apply(rows)

    def resume(self, boot: UUID) -> None:
        """Read all lists again: the feed reads again, and may have missed rows meanwhile.

        Args:
            boot: the life of the cluster; another one than before means that Postgres crashed.
        """
        self._members.renew_lease()
        self._updates.resume(boot)

    def write_again(self) -> None:
        """Write everything anew: the database has lost what this bridge wrote."""
        self._audience.write_again()
        self._members.write_again()


def _object(state: bytes) -> str:
    """The text of a JSON object. Numbers stay as they were written; Postgres judges the rest."""
    try:
        if isinstance(msgspec.json.decode(state), dict):
            return state.decode()
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise Refusal("invalid_message", f"The state cannot be read: {error}.") from None
    raise Refusal("invalid_message", "The state must be a JSON object.")
