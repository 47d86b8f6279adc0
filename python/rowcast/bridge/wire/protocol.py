"""Operations that clients request and events that the bridge sends, independent of the wire.

A wire decodes frames into operations and encodes events into frames. An answer repeats `ref`: the
value that the client sent, or a number by which the wire finds the client's request. Encoded
field for field, these events are the native wire's frames, except for `Change.before` and
`Present.gone`. Other wires translate them, and leave out events that their protocol cannot
express. Messages are not events, because all clients of a wire share their encoded bytes.

This module does no I/O and does not decide what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Protocol
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from rowcast.bridge.model import Message
from rowcast.errors import CATALOGUE, Refusal

__all__ = [
    "Auth",
    "Authenticated",
    "Change",
    "Closed",
    "Connect",
    "Cursor",
    "Deleted",
    "Done",
    "Event",
    "Member",
    "Op",
    "Ping",
    "Present",
    "Publish",
    "Published",
    "Refresh",
    "Refused",
    "Resume",
    "Status",
    "Subscribe",
    "Subscribed",
    "Track",
    "Unsubscribe",
    "Untrack",
    "Welcome",
    "Wire",
    "check",
]

Ref = Annotated[str, msgspec.Meta(max_length=255)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class Operation(msgspec.Struct, tag_field="op", frozen=True):
    """Base of all operations."""

    ref: Ref | int | None = None


class Auth(Operation, tag="auth", frozen=True):
    """Authenticate with a token; may be repeated at any time to refresh it."""

    token: str = ""


class Connect(Auth, tag="connect", frozen=True):
    """Authenticate once. A refused session is closed, because its client does not try again on
    this connection."""


class Refresh(Operation, tag="refresh", frozen=True):
    """Replace the token. These clients do not expect an answer. A refused token ends the session;
    the client then reconnects with a valid one, or learns the reason."""

    token: str = ""


class Subscribe(Operation, tag="subscribe", frozen=True):
    """Subscribe to channels, from a cursor on, or with some history."""

    channel: Name | None = None
    channels: list[Name] | None = None
    after: Annotated[str, msgspec.Meta(max_length=65536)] | None = None
    history: Annotated[int, msgspec.Meta(ge=0)] = 0
    own: bool = msgspec.field(default=True, name="self")
    presence: bool = True  # whether to send members and their changes
    # Track the user with this state as well. A user who is a member already keeps their state.
    state: msgspec.Raw | None = None

    def names(self) -> list[str]:
        """Return the requested channels, each once, in the order given."""
        return list(
            dict.fromkeys([*([self.channel] if self.channel else []), *(self.channels or [])])
        )


class Resume(Subscribe, tag="resume", frozen=True):
    """Subscribe to a channel from the cursor that is kept under a handle."""

    handle: str = ""


class Unsubscribe(Operation, tag="unsubscribe", frozen=True):
    """Unsubscribe from a channel."""

    channel: Name = ""


class Publish(Operation, tag="publish", frozen=True):
    """Publish a message; the answer comes after commit."""

    channel: Name = ""
    event: Name = ""
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    type: str = "message"
    id: UUID | None = None
    subscribed: bool = False  # whether the session must be subscribed to the channel


class Track(Operation, tag="track", frozen=True):
    """Show the user to other members of a channel, with this state."""

    channel: Name = ""
    state: msgspec.Raw = msgspec.Raw(b"{}")


class Untrack(Operation, tag="untrack", frozen=True):
    """Stop showing the user to other members of a channel."""

    channel: Name = ""


class Ping(Operation, tag="ping", frozen=True):
    """Answer, to show that the connection works."""


Op = Auth | Refresh | Subscribe | Resume | Unsubscribe | Publish | Track | Untrack | Ping


def check(op: Op) -> Refusal | None:
    """Return a refusal if a name in an operation is not valid, else None.

    Text in Postgres cannot contain NUL: one such name would fail a whole batch.
    """
    for name in _names(op):
        if "\x00" in name or len(name.encode("utf-8", "surrogatepass")) > 255:
            return Refusal("invalid_channel")
    return None


def _names(op: Op) -> Iterable[str]:
    if isinstance(op, Subscribe):
        return op.names()
    if isinstance(op, Publish):
        return (op.channel, op.event, op.type)
    if isinstance(op, Auth | Refresh | Ping):
        return ()
    return (op.channel,)


class Event(msgspec.Struct, tag_field="op", frozen=True):
    """Base of all events."""


class Welcome(Event, tag="welcome", frozen=True):
    """The first event of a session."""

    session: str
    heartbeat: float
    replay_overlap: float = msgspec.field(name="replayOverlap")
    limits: dict[str, float]


class Done(Event, tag="ok", frozen=True):
    """The answer to an operation that succeeded without a result."""

    ref: Any
    channel: str | UnsetType = UNSET


class Authenticated(Event, tag="ok", frozen=True):
    """The answer to a token."""

    ref: Any
    user: str | None
    role: str
    expires: int


class Member(msgspec.Struct, frozen=True):
    """A member of a channel; the state is JSON as Postgres wrote it."""

    key: str
    presence: msgspec.Raw


class Change(msgspec.Struct, frozen=True):
    """A change of a member: "join", "update", or "leave", which has the last state.

    `before` is the state that clients received last, for wires in which an update is a leave and
    a join.
    """

    type: str
    key: str
    presence: msgspec.Raw
    before: msgspec.Raw | None = None


class Subscribed(Event, tag="ok", frozen=True):
    """The answer to a subscribe; messages of the channel follow."""

    ref: Any
    channel: str
    cursor: str | UnsetType = UNSET
    recovered: bool | UnsetType = UNSET
    ephemeral: bool | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    presence: list[Member] | UnsetType = UNSET


class Published(Event, tag="ok", frozen=True):
    """The answer to a publish, after commit."""

    ref: Any
    id: str


class Refused(Event, tag="error", frozen=True):
    """The answer to a refused operation; without a ref, an error that answers no operation."""

    ref: Any
    code: str
    message: str
    channel: str | UnsetType = UNSET
    retry_after: float | UnsetType = msgspec.field(default=UNSET, name="retryAfter")

    @classmethod
    def because(cls, ref: Any, refusal: Refusal, channel: str | None = None) -> Refused:
        """Return the event for a refusal, with the seconds to wait if it may be repeated."""
        after = refusal.retry_after
        if after is None and CATALOGUE[refusal.code].retry:
            after = 1.0
        return cls(
            ref,
            refusal.code,
            str(refusal),
            UNSET if channel is None else channel,
            UNSET if after is None else after,
        )


class Cursor(Event, tag="cursor", frozen=True):
    """A cursor: everything of this session up to here was written."""

    cursor: str


class Deleted(Event, tag="deleted", frozen=True):
    """A message was deleted; all clients of a wire receive the same bytes."""

    channel: str
    id: str


class Closed(Event, tag="closed", frozen=True):
    """A subscription was ended by the server."""

    channel: str
    code: str


class Present(Event, tag="presence", frozen=True):
    """Changes of members; with `full`, a list of all members. All clients of a wire receive the
    same bytes.

    `gone` has keys of members that left recently, for wires that cannot send a complete list.
    """

    channel: str
    events: list[Change]
    full: bool | UnsetType = UNSET
    gone: Sequence[str] = ()


class Status(Event, tag="status", frozen=True):
    """The state of the bridge; without `retry_after`, all clients of a wire receive the same
    bytes."""

    status: str
    retry_after: float | UnsetType = msgspec.field(default=UNSET, name="retryAfter")


class Wire(Protocol):
    """Codec of one client's frames; may keep state about that client.

    `format` names the encoding of messages: the hub encodes once per format, not once per client.
    So live messages, and events for many clients, must be encoded alike for all clients of a
    format.
    """

    format: str
    admin: bool  # whether administrators, such as an application's server, may connect

    def decode(self, data: bytes, *, binary: bool) -> tuple[Sequence[Op], Any, Refusal | None]:
        """Decode one frame.

        Args:
            data: its payload.
            binary: whether it was a binary frame, not a text frame.

        Returns:
            The operations, to be executed in this order; the ref to answer to; the refusal of an
            invalid frame, or None.
        """

    def encode(self, event: Event) -> bytes:
        """Return frames for this event; empty if the wire cannot express it."""

    def encode_messages(
        self, channel: str, messages: Sequence[Message], flag: str | None = None
    ) -> bytes:
        """Return frames of messages of one channel.

        Args:
            channel: the name or pattern through which the clients hear them.
            messages: at least one.
            flag: "history" or "replay", or None for live messages.
        """
