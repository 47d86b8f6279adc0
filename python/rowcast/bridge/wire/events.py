"""What the bridge tells clients, whatever wire they speak: answers, and what comes unasked.

As they stand here they are the native wire's frames, field for field but for `Change.before` and
`Present.gone`; other wires put them into their own words, and leave out what their clients have
no word for.
Messages are no event: their encoding is shared by all clients of a wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from rowcast.errors import CATALOGUE, Refusal

__all__ = [
    "Authenticated",
    "Change",
    "Closed",
    "Cursor",
    "Deleted",
    "Done",
    "Event",
    "Member",
    "Present",
    "Published",
    "Refused",
    "Status",
    "Subscribed",
    "Welcome",
]


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
