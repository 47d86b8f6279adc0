"""What clients ask for, whatever wire they speak.

A wire decodes frames into these. An answer repeats `ref`: what the client sent, or a number by
which the wire finds what the client sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated
from uuid import UUID

import msgspec

from rowcast.errors import Refusal

__all__ = [
    "Auth",
    "Connect",
    "Op",
    "Ping",
    "Publish",
    "Refresh",
    "Resume",
    "Subscribe",
    "Track",
    "Unsubscribe",
    "Untrack",
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
