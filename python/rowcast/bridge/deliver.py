"""Distributes what the feed reads: to clients, to presence, to rechecks and to webhooks.

This is the main loop of a bridge. The order matters: signals are taken before the messages that
were read with them, so that no message reaches a subscription that an earlier commit revoked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import asyncpg

from .cursor import Position
from .hub import Hub
from .model import Message
from .presence.presence import Presence
from .revocation import Revocation
from .wire.protocol import Status

__all__ = ["Dispatcher", "Wakeable"]

# Messages in a portion from which on clients get time to take it.
LARGE = 500
# That time: 50 ms at most.
STEPS = 10
STEP = 0.005


class Wakeable(Protocol):
    """Work beside the loop that begins when the feed brings a reason for it."""

    def wake_for(
        self, messages: Collection[Message], signals: Collection[tuple[str, dict[str, Any]]]
    ) -> None:
        """Take note of a portion; must not wait and must not raise."""


class Dispatcher:
    """Receives what the feed reads; see `feed.Receiver`.

    Args:
        hub: writes messages to clients.
        presence: takes presence rows.
        revocation: takes signals that revoke.
        beside: told of each portion before it is delivered.
    """

    def __init__(
        self,
        hub: Hub,
        presence: Presence,
        revocation: Revocation,
        beside: Sequence[Wakeable],
    ) -> None:
        self._hub = hub
        self._presence = presence
        self._revocation = revocation
        self._beside = beside

    async def deliver(
        self, messages: list[Message], signals: list[tuple[str, dict[str, Any]]]
    ) -> None:
        """Deliver messages and signals of one portion."""
        for part in self._beside:
            part.wake_for(messages, signals)
        for kind, body in signals:
            if kind == "deleted":
                # A deleted message is not among the messages of this portion.
                self._hub.deleted(body["channel"], body["id"], body.get("channel_id"))
            else:
                self._revocation.signal(kind, body)
        for _ in self._hub.deliver(messages):
            await asyncio.sleep(0)
        if len(messages) >= LARGE:
            # More is coming: let the sockets take this first, but do not wait for slow clients.
            for _ in range(STEPS):
                if not self._hub.congested() and not self._revocation.congested():
                    break
                await asyncio.sleep(STEP)

    def apply_presence(self, rows: Sequence[asyncpg.Record]) -> None:
        """Apply presence rows of one portion."""
        self._presence.apply(rows)

    def delivered_up_to(self, position: Position) -> None:
        """Note that everything up to a position was delivered."""
        self._hub.delivered_up_to(position)

    def tell_status(self, status: str) -> None:
        """Tell clients that messages are delayed ("degraded"), or that they are not ("ok")."""
        if status == "ok" and self._hub.position is not None:
            self._presence.resume(self._hub.position.boot)
        self._hub.broadcast(Status(status))

    def returned(self) -> None:
        """Ask again about everything: signals may have been missed."""
        self._revocation.recheck_all()
