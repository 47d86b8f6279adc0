"""What the client knows of one channel name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .delivery import Callback, Inbox, Listeners
from .link import Ticket
from .resume import Seen

__all__ = ["Join", "Phase"]

# Kinds that no message can reach, whatever its sender calls his event.
EVENTS = {"error", "closed", "deleted", "presence", "resync", "subscribed"}
RESERVED = {"message", "*", *EVENTS}


class Phase(Enum):
    """Of a channel."""

    IDLE = "idle"  # not wanted
    WAITING = "waiting"  # wanted, and not asked for at the moment
    JOINING = "joining"  # asked for
    JOINED = "joined"


@dataclass(slots=True, eq=False)
class Join:
    """What the client knows of one channel name."""

    name: str
    listeners: Listeners = field(default_factory=Listeners)
    phase: Phase = Phase.IDLE
    wanted: bool = False  # for its messages, and not only to be present in it
    members: dict[str, Any] = field(default_factory=dict)
    live: bool = False  # was joined since it is wanted
    after: str | None = None  # what its next join resumes from; ids are kept while it is set
    echo: bool = True
    history: int = 0
    retries: int = 0
    turn: int = 0  # which join an answer belongs to
    left: int = 0  # how often the application has left it
    waiting: int = 0  # how many calls wait for it to be confirmed
    asked: dict[str, tuple[Join, int]] = field(default_factory=dict)
    ticket: Ticket | None = None
    timer: asyncio.TimerHandle | None = None
    moved: float = 0.0  # when something came for it
    seen: Seen = field(default_factory=Seen)
    inbox: Inbox | None = None
    confirmed: asyncio.Future[None] | None = None

    @property
    def hears_messages(self) -> bool:
        """Whether a callback takes messages; else they are kept for `async for`."""
        return bool(self.listeners.kinds - EVENTS)

    def cancel(self) -> None:
        """Stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def unless_left(self, callbacks: Callable[[], list[Callback]]) -> Callable[[], list[Callback]]:
        """The same callbacks, and none once the application has left the channel."""
        left = self.left
        return lambda: callbacks() if self.left == left else []

    def messages(self, message_type: str, event: str) -> list[Callback]:
        """The callbacks for a message."""
        kinds = [] if event in RESERVED else [event]
        if message_type == "message" or event == "message":
            kinds.append("message")
        return self.listeners.of(*kinds, "*")
