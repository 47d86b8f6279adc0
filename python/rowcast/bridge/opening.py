"""Reads the messages that a client gets before the answer to its subscribe: replay or history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, UnsetType

from rowcast.config import Settings
from rowcast.errors import Refusal

from .access import Access
from .cursor import Position
from .model import Message
from .replay import Replays
from .resume_handles import ResumeHandles
from .session import Session
from .subscription import Subscription
from .wire.protocol import Resume, Subscribe

__all__ = ["Opening", "Openings"]


@dataclass(frozen=True, slots=True)
class Opening:
    """Frames that are written before the `ok` of a subscribe, and what it says of them."""

    frames: bytes = b""
    recovered: bool | UnsetType = UNSET
    ephemeral: bool | UnsetType = UNSET
    reason: str | UnsetType = UNSET


class Openings:
    """Reads openings for all sessions.

    Args:
        settings: how much history a client may ask for.
        access: reads history, which the policies decide.
        replays: reads the messages since a cursor.
        handles: cursors of clients that keep none.
    """

    def __init__(
        self, settings: Settings, access: Access, replays: Replays, handles: ResumeHandles
    ) -> None:
        self._settings = settings
        self._access = access
        self._replays = replays
        self._handles = handles

    def check(self, op: Subscribe) -> None:
        """Raise Refusal when the request asks for more history than a client may have."""
        if op.history > self._settings.max_history:
            raise Refusal("invalid_frame", f"history may be at most {self._settings.max_history}.")

    async def resolve(self, session: Session, op: Subscribe, channel: str) -> Subscribe:
        """Return the request with the cursor that its resume handle stands for, if it has one.

        Raises:
            Refusal: "unavailable".
        """
        if not isinstance(op, Resume):
            return op
        subject = session.authenticated().cursor_subject
        after = await self._handles.find(subject, op.handle, channel)
        return msgspec.structs.replace(op, after=after)

    async def start_of(self, subscription: Subscription) -> Position:
        """See `Replays.start_of`."""
        return await self._replays.start_of(subscription)

    async def read(
        self, session: Session, subscription: Subscription, op: Subscribe, start: Position
    ) -> Opening:
        """Read the opening that a request asks for.

        Args:
            session: the one that subscribes.
            subscription: joined, and allowed.
            op: the request, resolved.
            start: where the subscription begins and history ends.

        Raises:
            Refusal: "unavailable", or a policy failed.
        """
        caller = session.authenticated()
        if op.after is not None:
            state, rows = await self._replays.read(subscription, op.after, caller.cursor_subject)
            if state not in ("complete", "durable"):
                return Opening(recovered=False, ephemeral=False, reason=state)
            frames = _encode(session, subscription.channel, rows, "replay")
            return Opening(frames, recovered=True, ephemeral=state == "complete")
        if op.history:
            rows = await self._access.history(caller, subscription.channel, op.history, start)
            return Opening(_encode(session, subscription.channel, rows, "history"))
        return Opening()


def _encode(session: Session, channel: str, rows: Sequence[Message], flag: str) -> bytes:
    return session.wire.encode_messages(channel, rows, flag) if rows else b""
