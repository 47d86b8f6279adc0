"""The state of one channel: its callbacks, its phase, and what a resume needs to know."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .connection import Request
from .dispatch import Callback, Inbox, Listeners
from .resume import Seen

__all__ = ["ChannelState", "Phase"]

# Kinds of `on` that no message reaches, whatever event name its sender chose.
EVENTS = {"error", "closed", "deleted", "presence", "resync", "subscribed"}
RESERVED = {"message", "*", *EVENTS}


class Phase(Enum):
    """The phase of a channel's subscription."""

    IDLE = "idle"  # not wanted
    WAITING = "waiting"  # wanted; a request will be sent later
    JOINING = "joining"  # the request is sent
    JOINED = "joined"  # the server has confirmed


@dataclass(slots=True, eq=False)
class ChannelState:
    """The state of one channel name. `Channels` writes it; `Presence` writes `members`."""

    name: str
    listeners: Listeners = field(default_factory=Listeners)
    phase: Phase = Phase.IDLE
    wants_messages: bool = False  # False while it is subscribed for presence only
    members: dict[str, Any] = field(default_factory=dict)  # key to state
    live: bool = False  # confirmed at least once since it is wanted
    after: str | None = None  # cursor of its next subscribe; `seen` is kept while it is set
    echo: bool = True
    history: int = 0
    retries: int = 0
    attempt: int = 0  # number of the latest subscribe; older answers are ignored
    times_left: int = 0  # number of times that the application has left it
    subscribers: int = 0  # calls of `subscribe` that wait for the confirmation
    unanswered: dict[str, tuple[ChannelState, int]] = field(default_factory=dict)  # of its frame
    request: Request | None = None  # the frame that subscribes to it
    timer: asyncio.TimerHandle | None = None
    progress_at: float = 0.0  # time of the latest frame for it
    seen: Seen = field(default_factory=Seen)
    inbox: Inbox | None = None
    confirmed: asyncio.Future[None] | None = None

    @property
    def has_message_callback(self) -> bool:
        """Whether a callback takes messages; without one they are kept for `async for`."""
        return bool(self.listeners.kinds - EVENTS)

    def listen(self, kind: str, callback: Callback) -> None:
        """Add a callback. One for messages replaces an inbox that is not iterated."""
        self.listeners.add(kind, callback)
        if kind not in EVENTS and self.inbox is not None and not self.inbox.used:
            self.inbox.close()
            self.inbox = None

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def unless_left(self, callbacks: Callable[[], list[Callback]]) -> Callable[[], list[Callback]]:
        """Return these callbacks as long as the application has not left the channel."""
        times_left = self.times_left
        return lambda: callbacks() if self.times_left == times_left else []

    def callbacks(self, message_type: str, event: str) -> list[Callback]:
        """Return the callbacks for a message of this type and event."""
        kinds = [] if event in RESERVED else [event]
        if message_type == "message" or event == "message":
            kinds.append("message")
        return self.listeners.of(*kinds, "*")
