"""What must be remembered so that a resume neither loses nor repeats a message. No I/O.

The server's cursor says "everything of this session up to here". The newest one wins, and ids
that came since are kept, so that what a replay repeats is dropped. While channels are being
resumed a new cursor must not replace the old one: it would cover channels whose replay has not
come yet, and a second loss of the socket would then skip it.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["Progress", "Seen"]


class Seen:
    """The ids of one channel that a replay may repeat, in the order they came."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, tuple[float, bool]] = OrderedDict()
        self._durable = 0

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, message_id: str, at: float, durable: bool) -> bool:
        """Remember an id; returns False when it was there already."""
        if message_id in self._ids:
            return False
        self._ids[message_id] = (at, durable)
        self._durable += durable
        return True

    def forget(self, before: float, keep: int) -> None:
        """Drop ids that came before a time, except the newest durable ones, which a history of
        this many messages may repeat."""
        dropped = []
        durable_left = self._durable
        for message_id, (at, durable) in self._ids.items():
            if at >= before:
                break
            if durable and durable_left <= keep:
                continue
            dropped.append(message_id)
            durable_left -= durable
        for message_id in dropped:
            del self._ids[message_id]
        self._durable = durable_left


class Progress:
    """The session's cursor, and which channels keep it from moving on."""

    def __init__(self, cursor: str | None) -> None:
        self.cursor = cursor
        self._offered: tuple[str, float] | None = None
        self._resuming: set[str] = set()

    def resume(self, channel: str) -> None:
        """This channel asks for what came after the cursor."""
        self._resuming.add(channel)

    def settle(self, channel: str) -> float | None:
        """This channel was answered, or is not wanted any more; returns as `offer` does."""
        self._resuming.discard(channel)
        return self._adopt()

    def offer(self, cursor: object, at: float) -> float | None:
        """Take a cursor that came at this time.

        Returns:
            When the cursor that is now in force came, if one was adopted.
        """
        if isinstance(cursor, str):
            self._offered = (cursor, at)
        return self._adopt()

    def interrupt(self) -> None:
        """The socket is lost: what it offered may not cover what was not replayed."""
        self._resuming.clear()
        self._offered = None

    def _adopt(self) -> float | None:
        if self._offered is None or self._resuming:
            return None
        self.cursor, at = self._offered
        self._offered = None
        return at
