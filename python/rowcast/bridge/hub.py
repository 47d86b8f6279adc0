"""Knows which sessions are subscribed to which channels, and fans messages out to them.

A message is encoded once per format of a wire, not once per client. All that one delivery has for
a client is joined into one write, because the system call costs more than the bytes. No I/O, no
database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rowcast.observe import metrics

from .cursor import Position
from .facts import Facts
from .model import Caller, Message
from .names import is_pattern, matches
from .session import Session
from .subscription import State, Subscription
from .wire.protocol import Cursor, Deleted, Event, Wire

__all__ = ["Hub"]

# Writes between two chances for other tasks.
BURST = 512


class Hub:
    """All sessions of this bridge and their subscriptions.

    Everything up to `position` was delivered to all sessions, and `generation` counts its moves.
    In between, while `delivering`, some sessions have got the newest messages and some have not.

    Args:
        facts: the key that signs cursors.
        on_unsubscribed: told of each subscription that has ended, whatever the reason.
    """

    def __init__(
        self,
        facts: Facts,
        on_unsubscribed: Callable[[Session, Subscription], None] | None = None,
    ) -> None:
        self._facts = facts
        self._on_unsubscribed = on_unsubscribed
        self.sessions: set[Session] = set()
        self.position: Position | None = None
        self.generation = 0
        self.delivering = False
        self._channels: dict[str, dict[Session, Subscription]] = {}
        self._subjects: dict[str, set[Session]] = {}
        # id of a channel row → the subscribed pattern that hears its messages
        self._rows: dict[str, str] = {}
        # subscribed patterns whose row is not known yet
        self._open: set[str] = set()
        # pattern → ids of rows that it heard before
        self._former: dict[str, set[str]] = {}
        # parts of the write that the delivery under way has for a session
        self._joined: dict[Session, list[bytes]] = {}
        # subscriptions whose start is known once the delivery under way has ended
        self._starting: list[Subscription] = []

    @property
    def next_generation(self) -> int:
        """The first generation of which no message has been read yet."""
        return self.generation + self.delivering

    def add(self, session: Session) -> None:
        """Add the session of a client that connected."""
        self.sessions.add(session)
        metrics.connections.set(len(self.sessions))

    def remove(self, session: Session) -> None:
        """Remove the session of a client that is gone, with all its subscriptions."""
        for channel in list(session.subscriptions):
            self.leave(session, channel)
        self._unlist(session)
        self.sessions.discard(session)
        metrics.connections.set(len(self.sessions))

    def identify(self, session: Session, caller: Caller) -> None:
        """Let the session speak for this caller from now on."""
        self._unlist(session)
        session.caller = caller
        if caller.subject is not None and session in self.sessions:
            self._subjects.setdefault(caller.subject, set()).add(session)

    def _unlist(self, session: Session) -> None:
        subject = session.caller.subject if session.caller else None
        if subject is not None and subject in self._subjects:
            self._subjects[subject].discard(session)
            if not self._subjects[subject]:
                del self._subjects[subject]

    def sessions_of(self, subject: str) -> list[Session]:
        """Return all sessions of a user."""
        return list(self._subjects.get(subject, ()))

    def affected_by(
        self, subject: str | None, channel: str | None
    ) -> list[tuple[Session, Subscription]]:
        """Return the subscriptions that a change concerns.

        Args:
            subject: of this user; None means of all users.
            channel: to this name, or to names that this pattern matches; None means to all.
        """
        if subject is not None:
            return [
                (session, subscription)
                for session in self._subjects.get(subject, ())
                for name, subscription in session.subscriptions.items()
                if channel is None or matches(channel, name) or matches(name, channel)
            ]
        if channel is not None and not is_pattern(channel):
            return list(self._channels.get(channel, {}).items())
        return [
            member
            for name, members in self._channels.items()
            if channel is None or matches(channel, name)
            for member in members.items()
        ]

    def join(self, session: Session, subscription: Subscription) -> None:
        """Give the session what comes on this channel from now on, held back while pending."""
        self.start(subscription)
        if is_pattern(subscription.channel) and subscription.channel not in self._channels:
            self._open.add(subscription.channel)
        self._channels.setdefault(subscription.channel, {})[session] = subscription
        session.subscriptions[subscription.channel] = subscription
        metrics.subscriptions.inc()

    def start(self, subscription: Subscription) -> None:
        """Note from where on a subscription gets everything, so that history ends exactly there.

        The delivery under way may have passed it already, so it gets everything only from the next
        generation on.
        """
        subscription.start_at(
            self.generation + self.delivering, None if self.delivering else self.position
        )
        if subscription.start is None:
            self._starting.append(subscription)

    def leave(self, session: Session, channel: str) -> bool:
        """End a subscription; returns whether there was one."""
        subscription = session.subscriptions.pop(channel, None)
        if subscription is None:
            return False
        subscription.end()
        # The parts that this delivery has for it already were due before it ended.
        if parts := self._joined.pop(session, None):
            session.write(b"".join(parts))
        members = self._channels[channel]
        del members[session]
        if not members:
            del self._channels[channel]
            if is_pattern(channel):
                self.bind_pattern(channel, None)
                self._former.pop(channel, None)
        metrics.subscriptions.dec()
        if self._on_unsubscribed is not None:
            self._on_unsubscribed(session, subscription)
        return True

    def members(self, channel: str) -> list[tuple[Session, Subscription]]:
        """Return the sessions that are subscribed to a channel, and their subscriptions."""
        return list(self._channels.get(channel, {}).items())

    def unbind_pattern(self, pattern: str) -> None:
        """Note that it is not known any more which row a subscribed pattern hears."""
        former = {row for row, name in self._rows.items() if name == pattern}
        self._former[pattern] = self._former.get(pattern, set()) | former
        self.bind_pattern(pattern, None)
        if pattern in self._channels:
            self._open.add(pattern)

    def bind_pattern(self, pattern: str, channel_id: str | None) -> None:
        """Give a subscribed pattern the messages of this channel row, or of no row any more."""
        self._open.discard(pattern)
        self._rows = {row: name for row, name in self._rows.items() if name != pattern}
        if channel_id is not None:
            self._rows[channel_id] = pattern

    def _patterns(self, message: Message) -> Iterator[str]:
        """Subscribed patterns that hear a message, or may hear it: their row is not known."""
        known = self._rows.get(message.channel_id or "")
        if known is not None:
            yield known
        for pattern in self._open:
            if matches(pattern, message.channel):
                yield pattern

    def deliver(self, messages: list[Message]) -> Iterator[None]:
        """Fan out messages of one portion, in their order; yields between bursts of writes."""
        self.delivering = True
        by_channel: dict[str, list[Message]] = {}
        patterns = bool(self._rows or self._open)
        for message in messages:
            if message.channel in self._channels:
                by_channel.setdefault(message.channel, []).append(message)
            if patterns:
                for pattern in self._patterns(message):
                    by_channel.setdefault(pattern, []).append(message)
        joined = self._joined
        alone = len(by_channel) == 1
        writes = 0
        for channel, group in by_channel.items():
            encoded: dict[str, bytes] = {}
            form: str | None = None
            shared = b""
            for session, subscription in list(self._channels.get(channel, {}).items()):
                if session.format is not form:  # mostly it is the format of the session before
                    form = session.format
                    shared = self._encode(session.wire, channel, group, encoded)
                if subscription.holding:
                    if subscription.state is State.ENDED:
                        continue  # ended since this delivery began
                    if subscription.hold(self.generation, group, shared) > session.buffer_bytes:
                        session.close("slow")
                    continue
                data = (
                    shared if subscription.echo else self._fit(session, subscription, group, shared)
                )
                if not data:
                    continue
                session.dirty = True
                if alone:
                    session.write(data)
                    writes += 1
                    if writes % BURST == 0:
                        yield
                else:
                    joined.setdefault(session, []).append(data)
            metrics.deliveries.inc(len(group) * len(self._channels.get(channel, ())))
        while joined:
            session, parts = joined.popitem()
            session.write(b"".join(parts))
            writes += 1
            if writes % BURST == 0:
                yield

    @staticmethod
    def _encode(wire: Wire, channel: str, group: list[Message], encoded: dict[str, bytes]) -> bytes:
        if wire.format not in encoded:
            encoded[wire.format] = wire.encode_messages(channel, group)
            metrics.encodings.labels(wire.format).inc(len(group))
        return encoded[wire.format]

    def congested(self) -> bool:
        """Whether more than half of some client's buffer is waiting."""
        return any(session.congested for session in self.sessions)

    def delivered_up_to(self, position: Position) -> None:
        """Note that everything up to the position was delivered."""
        self.position = position
        self.generation += 1
        self.delivering = False
        for subscription in self._starting:
            subscription.set_start(position)
        self._starting.clear()

    def _fit(
        self, session: Session, subscription: Subscription, group: list[Message], shared: bytes
    ) -> bytes:
        """Encode the messages of a group that this subscription may and wants to hear."""
        pattern = subscription.channel if is_pattern(subscription.channel) else None
        heard = [
            message
            for message in group
            if (subscription.echo or message.id not in session.own_ids)
            and (pattern is None or self._hears(pattern, message))
        ]
        if len(heard) == len(group):
            return shared
        return session.wire.encode_messages(subscription.channel, heard) if heard else b""

    def _hears(self, pattern: str, message: Message) -> bool:
        """Whether a message held for a pattern belongs to its row, or to the row before."""
        row = message.channel_id or ""
        return self._rows.get(row) == pattern or row in self._former.get(pattern, ())

    def release(
        self, session: Session, subscription: Subscription, before: int | None = None
    ) -> bool:
        """Write messages that were held back, if they may be written now.

        Args:
            session: the one to write to.
            subscription: its subscription.
            before: write only what was read before this generation, although the subscription
                is stale again.

        Returns:
            Whether something was written.
        """
        if not subscription.held or subscription.not_ready:
            return False
        if subscription.stale and (before is None or subscription.channel in self._open):
            return False
        if session.subscriptions.get(subscription.channel) is not subscription:
            return False  # unsubscribed or revoked meanwhile
        data = b"".join(
            self._fit(session, subscription, group, shared)
            for _, group, shared in subscription.take_held(before)
        )
        if data:
            session.dirty = True
            session.write(data)
        return bool(data)

    def deleted(self, channel: str, message_id: str, channel_id: str | None = None) -> None:
        """Tell the subscribers of a channel, and of its pattern, that a message was deleted."""
        for name in (channel, self._rows.get(channel_id or "")):
            if name in self._channels:
                self.tell(self._channels[name], Deleted(name, message_id))

    @staticmethod
    def subscriptions_for(session: Session, channel: str) -> list[Subscription]:
        """Return the subscriptions through which a session hears a name."""
        return [
            subscription
            for name, subscription in session.subscriptions.items()
            if name == channel or (is_pattern(name) and matches(name, channel))
        ]

    def broadcast(self, event: Event) -> None:
        """Tell every client."""
        self.tell(self.sessions, event)

    @staticmethod
    def tell(sessions: Iterable[Session], event: Event) -> None:
        """Tell these clients, encoding once per format."""
        encoded: dict[str, bytes] = {}
        for session in list(sessions):
            wire = session.wire
            if wire.format not in encoded:
                encoded[wire.format] = wire.encode(event)
            session.write(encoded[wire.format])

    def sign(self, session: Session, position: Position) -> str:
        """Return the cursor with which this session's caller may resume at a position."""
        key = self._facts.current.cursor_key
        assert key is not None, "sessions are authenticated only once the facts are known"
        return key.sign(position, session.authenticated().cursor_subject)

    def cursor(self, session: Session) -> bool:
        """Write a cursor that says that the session has got everything up to the position.

        Returns:
            False when that is not so now: the session is resuming, messages are held back, or a
            delivery is under way.
        """
        if self.position is None or session.caller is None or self.delivering:
            return False
        if any(s.holding or s.held for s in session.subscriptions.values()):
            return False
        session.dirty = False
        session.tell(Cursor(self.sign(session, self.position)))
        return True
