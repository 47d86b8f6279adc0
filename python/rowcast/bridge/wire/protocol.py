"""What clients ask for and what the bridge tells them, in the words of no wire in particular.

A wire decodes frames into operations and encodes events into frames. An answer repeats `ref`:
what the client sent, or a number by which the wire finds what the client sent. As the events
stand here they are the native wire's frames, field for field but for `Change.before` and
`Present.gone`; other wires put them into their own words, and leave out what their clients have
no word for. Messages are no event: their encoding is shared by all clients of a wire.

No I/O, and no decision about what is allowed.
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
    """What all of them have."""

    ref: Ref | int | None = None


class Auth(Operation, tag="auth", frozen=True):
    """Who I am: a token; again at any time, to refresh it."""

    token: str = ""


class Connect(Auth, tag="connect", frozen=True):
    """Who I am, once. Whoever is refused is closed: on this connection he does not try again."""


class Refresh(Operation, tag="refresh", frozen=True):
    """Take this token in place of the old. These clients expect no answer: where the token is
    refused, the session ends, and they come back with one that is not, or learn why."""

    token: str = ""


class Subscribe(Operation, tag="subscribe", frozen=True):
    """Let me hear these channels, from where I left them, or with some history."""

    channel: Name | None = None
    channels: list[Name] | None = None
    after: Annotated[str, msgspec.Meta(max_length=65536)] | None = None
    history: Annotated[int, msgspec.Meta(ge=0)] = 0
    own: bool = msgspec.field(default=True, name="self")
    presence: bool = True  # whether to be told who is there
    # To be shown to the others as well, in this state; who is there already stays as he is.
    state: msgspec.Raw | None = None

    def names(self) -> list[str]:
        """The channels asked for, each once, in the order given."""
        return list(
            dict.fromkeys([*([self.channel] if self.channel else []), *(self.channels or [])])
        )


class Resume(Subscribe, tag="resume", frozen=True):
    """Let me hear this channel from where the handle left it."""

    handle: str = ""


class Unsubscribe(Operation, tag="unsubscribe", frozen=True):
    """Let me hear this channel no more."""

    channel: Name = ""


class Publish(Operation, tag="publish", frozen=True):
    """Publish this message; the answer comes after commit."""

    channel: Name = ""
    event: Name = ""
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    type: str = "message"
    id: UUID | None = None
    subscribed: bool = False  # whether only who is subscribed may


class Track(Operation, tag="track", frozen=True):
    """Show me to the others in this channel, with this state."""

    channel: Name = ""
    state: msgspec.Raw = msgspec.Raw(b"{}")


class Untrack(Operation, tag="untrack", frozen=True):
    """Show me to the others no more."""

    channel: Name = ""


class Ping(Operation, tag="ping", frozen=True):
    """Answer, so that I know that you are there."""


Op = Auth | Refresh | Subscribe | Resume | Unsubscribe | Publish | Track | Untrack | Ping


def check(op: Op) -> Refusal | None:
    """Why the names in an operation cannot be any, or None.

    Postgres has no text with NUL: one such name would fail a whole batch.
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
    """What all of them are."""


class Welcome(Event, tag="welcome", frozen=True):
    """The first that a client gets."""

    session: str
    heartbeat: float
    replay_overlap: float = msgspec.field(name="replayOverlap")
    limits: dict[str, float]


class Done(Event, tag="ok", frozen=True):
    """The answer to what needs no further one."""

    ref: Any
    channel: str | UnsetType = UNSET


class Authenticated(Event, tag="ok", frozen=True):
    """The answer to a token."""

    ref: Any
    user: str | None
    role: str
    expires: int


class Member(msgspec.Struct, frozen=True):
    """Who is present; the state is JSON as Postgres wrote it."""

    key: str
    presence: msgspec.Raw


class Change(msgspec.Struct, frozen=True):
    """What happened to a member: "join", "update" or "leave", which has the last state.

    `before` is what clients were told last, for wires in which an update is a leave and a join.
    """

    type: str
    key: str
    presence: msgspec.Raw
    before: msgspec.Raw | None = None


class Subscribed(Event, tag="ok", frozen=True):
    """The answer to a subscribe; messages of this channel follow."""

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
    """The answer to what was refused; without a ref, what the client must know besides."""

    ref: Any
    code: str
    message: str
    channel: str | UnsetType = UNSET
    retry_after: float | UnsetType = msgspec.field(default=UNSET, name="retryAfter")

    @classmethod
    def because(cls, ref: Any, refusal: Refusal, channel: str | None = None) -> Refused:
        """Of a refusal; one that may be repeated says when."""
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
    """Everything of this session up to here was written."""

    cursor: str


class Deleted(Event, tag="deleted", frozen=True):
    """A message is gone; the same bytes for all clients of a wire."""

    channel: str
    id: str


class Closed(Event, tag="closed", frozen=True):
    """A subscription has ended, and not because the client asked."""

    channel: str
    code: str


class Present(Event, tag="presence", frozen=True):
    """Who came, changed and left; with `full`, all who are present. The same bytes for all.

    `gone` are members who left lately, for wires that have no word for "these, and nobody else".
    """

    channel: str
    events: list[Change]
    full: bool | UnsetType = UNSET
    gone: Sequence[str] = ()


class Status(Event, tag="status", frozen=True):
    """How the bridge is; without a time to return, the same bytes for all clients of a wire."""

    status: str
    retry_after: float | UnsetType = msgspec.field(default=UNSET, name="retryAfter")


class Wire(Protocol):
    """One client's words. What it remembers of the client is its own business.

    `format` names the bytes of messages: the hub encodes once per format, not once per client.
    So live messages, and events that go to many, must be encoded alike for all of its clients.
    """

    format: str
    admin: bool  # whether administrators connect here, as the application itself

    def decode(self, data: bytes, *, binary: bool) -> tuple[Sequence[Op], Any, Refusal | None]:
        """Decode one frame.

        Args:
            data: its payload.
            binary: whether it was a binary frame, not a text frame.

        Returns:
            The operations, to be done in this order; the ref to answer to; why there are none,
            or None.
        """

    def encode(self, event: Event) -> bytes:
        """Return frames that tell this event; none where the wire has no word for it."""

    def encode_messages(
        self, channel: str, messages: Sequence[Message], flag: str | None = None
    ) -> bytes:
        """Return frames of messages of one channel.

        Args:
            channel: the name they were published to.
            messages: at least one.
            flag: "history" or "replay", or None for live ones.
        """
