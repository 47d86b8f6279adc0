"""One subscription of one session: its state, and the messages that are held back for it.

This is the only module that writes a subscription's fields; the others read them and call the
methods below. The hub joins a subscription before the policies are asked, so that no message
committed in the meantime is missed, and holds its messages until it may write them::

                     begin            go_live
        (created) ----------> PENDING --------> LIVE
                                 ^               |
                                 |     begin     |      subscribed again, with other options
                                 +---------------+
                                 |               |
                                 +------+--------+
                                        | end           unsubscribed, revoked, refused or gone
                                        v
                                      ENDED             terminal: nothing is written for it

    Messages are held (`holding`) while one of these is so:
        PENDING             until go_live
        LIVE and stale      from mark_stale until allow: the policies are being asked again
        LIVE, echo off      from publish_begins until publish_ends: what comes may be our own
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from .cursor import Position
from .model import Message
from .wire.protocol import Publish, Resume, Subscribe, Track, Untrack

__all__ = ["State", "Subscription"]

# Generation of the hub, messages, their bytes, which all clients of a wire share.
Held = tuple[int, list[Message], bytes]


class State(Enum):
    """The state of a subscription; see the drawing above."""

    PENDING = "pending"  # the policies are being asked, or a replay is being read
    LIVE = "live"
    ENDED = "ended"  # terminal: code that still holds a reference must not write to it


class Subscription:
    """One channel of one session. Its attributes are read-only outside of this module.

    Args:
        channel: a channel name or a pattern.
        echo: whether the session hears its own messages.
    """

    __slots__ = (
        "auto_member",
        "channel",
        "checked",
        "counted",
        "echo",
        "held",
        "held_bytes",
        "holding",
        "joined",
        "not_ready",
        "publishing",
        "queued",
        "request",
        "resuming",
        "stale",
        "stale_marks",
        "start",
        "state",
        "wants_presence",
    )

    def __init__(self, channel: str, *, echo: bool = True) -> None:
        self.channel = channel
        self.state = State.PENDING
        # whether the session hears its own messages
        self.echo = echo
        # whether the client is told of presence
        self.wants_presence = True
        # key of the member that subscribing made of the session, which its client does not need
        # to be told of
        self.auto_member: str | None = None
        # whether live messages must wait; kept up to date because the fan-out reads it for each
        # subscriber
        self.holding = True
        # whether they must wait for something else than the policies' answer to a recheck
        self.not_ready = True
        # messages held back, oldest first, and the sum of their bytes
        self.held: list[Held] = []
        self.held_bytes = 0
        # generation of the hub from which on it gets everything
        self.joined = 0
        # where that generation begins; None while a delivery is under way
        self.start: Position | None = None
        # pending with a cursor, which a newer one must not replace yet
        self.resuming = False
        # the request it is pending for, until that is answered
        self.request: Subscribe | None = None
        # requests of the client sent behind that one, to be done after it in their order
        self.queued: list[Publish | Track | Untrack] = []
        # number of the session's own publishes under way
        self.publishing = 0
        # whether it is counted as audience
        self.counted = False
        # whether the policies must be asked again before anything is written
        self.stale = False
        # how often it was marked stale; tells whether an answer is about the newest mark
        self.stale_marks = 0
        # monotonic time at which the policies last allowed it
        self.checked = 0.0

    def _update(self) -> None:
        self.not_ready = self.state is not State.LIVE or (self.publishing > 0 and not self.echo)
        self.holding = self.not_ready or self.stale

    # From a request to its answer

    def begin(self, op: Subscribe) -> None:
        """Wait for the answer to a request, the first one or one with other options."""
        self.state = State.PENDING
        self.echo = op.own
        self.wants_presence = op.presence
        self.request = op
        self.resuming = op.after is not None or isinstance(op, Resume)
        self._update()

    def start_at(self, generation: int, position: Position | None) -> None:
        """Note from where on it gets everything.

        Args:
            generation: the first generation of the hub of which nothing was delivered yet.
            position: where that begins; None while a delivery is under way, see `set_start`.
        """
        self.joined = generation
        self.start = position

    def set_start(self, position: Position) -> None:
        """Note where its first generation begins, now that a delivery has ended."""
        self.start = position

    def take_request(self) -> Subscribe | None:
        """Return the request that is not answered yet, for the one that answers it."""
        request, self.request = self.request, None
        return request

    def go_live(self) -> None:
        """Be live: the request was answered."""
        self.state = State.LIVE
        self.request = None
        self.resuming = False
        self._update()

    def end(self) -> None:
        """Be over, whatever the reason."""
        self.state = State.ENDED
        self._update()

    def queue(self, op: Publish | Track | Untrack) -> None:
        """Keep a request that the client sent without waiting for the answer to this one."""
        self.queued.append(op)

    def take_queued(self) -> Sequence[Publish | Track | Untrack]:
        """Return the requests that were kept, in their order, and keep them no longer."""
        queued, self.queued = self.queued, []
        return queued

    # Messages held back

    def hold(self, generation: int, messages: list[Message], data: bytes) -> int:
        """Keep messages for later; returns how many bytes are held now."""
        self.held.append((generation, messages, data))
        self.held_bytes += len(data)
        return self.held_bytes

    def drop_held(self, before: int) -> None:
        """Drop what was held before a generation: a replay or history covers it."""
        self.held = [entry for entry in self.held if entry[0] >= before]
        self.held_bytes = sum(len(data) for _, _, data in self.held)

    def take_held(self, before: int | None = None) -> Sequence[Held]:
        """Return what is held, or only what was held before a generation, to be written."""
        if before is None:
            taken, self.held, self.held_bytes = self.held, [], 0
            return taken
        taken = [entry for entry in self.held if entry[0] < before]
        self.drop_held(before)
        return taken

    # Rechecks

    def mark_stale(self) -> bool:
        """Note that the policies may answer otherwise by now.

        Returns:
            Whether messages are held for that from now on. A pending subscription holds them
            anyway; the code that makes it live compares `stale_marks`.
        """
        self.stale_marks += 1
        if self.state is State.PENDING:
            return False
        self.stale = True
        self._update()
        return True

    def allow(self, now: float, marks: int) -> bool:
        """Take the policies' consent.

        Args:
            now: monotonic time.
            marks: `stale_marks` when they were asked.

        Returns:
            Whether messages may flow; False when it was marked stale again after the question.
        """
        self.checked = now
        self.stale = self.stale_marks != marks
        self._update()
        return not self.stale

    # Own publishes

    def publish_begins(self) -> None:
        """Hold what comes while the id of an own message is not known, if there is no echo."""
        self.publishing += 1
        self._update()

    def publish_ends(self) -> None:
        """Note that one of the session's publishes has been answered."""
        self.publishing -= 1
        self._update()

    # Audience and presence

    def count(self) -> bool:
        """Count it as audience; returns False when it is counted already."""
        if self.counted:
            return False
        self.counted = True
        return True

    def uncount(self) -> bool:
        """Do not count it as audience; returns False when it was not counted."""
        if not self.counted:
            return False
        self.counted = False
        return True

    def become_member(self, key: str) -> None:
        """Note the key of the member that the session becomes by subscribing."""
        self.auto_member = key
