"""Who hears what: channels to sessions, and the fan-out.

A message is encoded once per format of a wire, not once per client; what one tick has for a
client is joined into one write, because the system call costs more than the bytes. No I/O, no
database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from .cursor import CursorKey, Position
from .message import Message
from .observe import metrics
from .session import Session, Subscription
from .wire.base import Wire
from .wire.events import Cursor, Deleted, Event

__all__ = ["Hub"]

# Writes between two chances for other tasks.
BURST = 512


class Hub:
    """All sessions of this bridge and their subscriptions.

    `position` is where everybody was served up to, `generation` counts its moves. In between,
    while `delivering`, some have got the newest messages and some have not.
    """

    def __init__(self) -> None:
        self.sessions: set[Session] = set()
        self.position: Position | None = None
        self.generation = 0
        self.delivering = False
        self.emptied: Callable[[], None] = lambda: None
        self.left: Callable[[Session, Subscription], None] = lambda _session, _subscription: None
        self._channels: dict[str, dict[Session, Subscription]] = {}
        self._starting: list[Subscription] = []

    def add(self, session: Session) -> None:
        """A client connected."""
        self.sessions.add(session)
        metrics.connections.set(len(self.sessions))

    def remove(self, session: Session) -> None:
        """A client is gone, with all its subscriptions."""
        for channel in list(session.subscriptions):
            self.leave(session, channel)
        self.sessions.discard(session)
        metrics.connections.set(len(self.sessions))
        if not self.sessions:
            self.emptied()

    def join(self, session: Session, subscription: Subscription) -> None:
        """From now on the session gets what comes on this channel, held back while pending."""
        self.start(subscription)
        self._channels.setdefault(subscription.channel, {})[session] = subscription
        session.subscriptions[subscription.channel] = subscription
        metrics.subscriptions.inc()

    def start(self, subscription: Subscription) -> None:
        """Note from where on a subscription gets everything, for history to end exactly there.

        What is being delivered right now may have passed it already, so it can only count on
        what comes after the next move.
        """
        subscription.joined = self.generation + self.delivering
        subscription.start = None if self.delivering else self.position
        if subscription.start is None:
            self._starting.append(subscription)

    def leave(self, session: Session, channel: str) -> bool:
        """End a subscription; whether there was one."""
        subscription = session.subscriptions.pop(channel, None)
        if subscription is None:
            return False
        members = self._channels[channel]
        del members[session]
        if not members:
            del self._channels[channel]
        metrics.subscriptions.dec()
        self.left(session, subscription)
        return True

    def members(self, channel: str) -> list[tuple[Session, Subscription]]:
        """Who is subscribed to a channel."""
        return list(self._channels.get(channel, {}).items())

    def deliver(self, messages: list[Message]) -> Iterator[None]:
        """Fan out messages of one portion, in their order; yields between bursts of writes."""
        self.delivering = True
        by_channel: dict[str, list[Message]] = {}
        for message in messages:
            if message.channel in self._channels:
                by_channel.setdefault(message.channel, []).append(message)
        joined: dict[Session, list[bytes]] = {}
        alone = len(by_channel) == 1
        writes = 0
        for channel, group in by_channel.items():
            encoded: dict[str, bytes] = {}
            wire: Wire | None = None
            shared = b""
            for session, subscription in list(self._channels.get(channel, {}).items()):
                if session.wire is not wire:  # most clients share one, and a look-up shows
                    wire = session.wire
                    shared = self._encode(wire, group, encoded)
                if subscription.holding:
                    session.hold(subscription, self.generation, group, shared)
                    continue
                data = shared if subscription.own else self._without_own(session, group, shared)
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
        for session, parts in joined.items():
            session.write(b"".join(parts))
            writes += 1
            if writes % BURST == 0:
                yield

    @staticmethod
    def _encode(wire: Wire, group: list[Message], encoded: dict[str, bytes]) -> bytes:
        if wire.format not in encoded:
            encoded[wire.format] = wire.encode_messages(group[0].channel, group)
            metrics.encodings.labels(wire.format).inc(len(group))
        return encoded[wire.format]

    def congested(self) -> bool:
        """Whether some client has more than half of its buffer waiting."""
        return any(session.congested for session in self.sessions)

    def moved(self, position: Position) -> None:
        """Everything up to the position was delivered."""
        self.position = position
        self.generation += 1
        self.delivering = False
        for subscription in self._starting:
            subscription.start = position
        self._starting.clear()

    @staticmethod
    def _without_own(session: Session, group: list[Message], shared: bytes) -> bytes:
        others = [message for message in group if message.id not in session.own_ids]
        if len(others) == len(group):
            return shared
        return session.wire.encode_messages(group[0].channel, others) if others else b""

    def release(self, session: Session, subscription: Subscription) -> bool:
        """Write what was held back, now that nothing stands against it; whether there was any."""
        if subscription.holding or not subscription.held:
            return False
        if session.subscriptions.get(subscription.channel) is not subscription:
            return False  # unsubscribed or revoked meanwhile
        held, subscription.held = subscription.held, []
        subscription.held_bytes = 0
        data = b"".join(
            shared if subscription.own else self._without_own(session, group, shared)
            for _, group, shared in held
        )
        if data:
            session.dirty = True
            session.write(data)
        return bool(data)

    def deleted(self, channel: str, message_id: str) -> None:
        """Tell the subscribers of a channel that a message is gone."""
        self.tell(self._channels.get(channel, ()), Deleted(channel, message_id))

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

    def cursor(self, session: Session, key: CursorKey) -> bool:
        """Write one session's cursor: everything of this session up to the position was written.

        Returns:
            False when that is not so now: it is resuming, something is held back, or a delivery
            is under way.
        """
        if self.position is None or session.caller is None or self.delivering:
            return False
        if any(s.holding or s.held for s in session.subscriptions.values()):
            return False
        session.dirty = False
        token = key.sign(self.position, session.caller.cursor_subject)
        session.tell(Cursor(token))
        return True
