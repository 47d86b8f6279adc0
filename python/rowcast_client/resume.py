"""The memory that lets a resume neither lose nor repeat a message. This module does no I/O.

A cursor of the server stands for everything of this session up to a position. The newest cursor
wins, and the ids of messages since then are kept, so that those which a replay repeats are
dropped. While channels are being resumed a new cursor must not replace the old one: it would cover
channels whose replay has not arrived yet, and after a second disconnect they would miss it.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["Progress", "Seen"]


class Seen:
    """The ids of one channel that a replay may repeat, in the order of arrival."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, tuple[float, bool]] = OrderedDict()
        self._durable = 0

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, message_id: str, at: float, durable: bool) -> bool:
        """Keep an id; return False if it is known already."""
        if message_id in self._ids:
            return False
        self._ids[message_id] = (at, durable)
        self._durable += durable
        return True

    def forget(self, before: float, keep: int) -> None:
        """Drop the ids that arrived before a time.

        Args:
            before: the time, by the clock of `add`.
            keep: number of the newest durable ids to keep nevertheless, because a history of this
                many messages may repeat them.
        """
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
    """The session's cursor, and the channels that prevent it from advancing."""

    def __init__(self, cursor: str | None) -> None:
        self.cursor = cursor
        self._offered: tuple[str, float] | None = None
        self._resuming: set[str] = set()

    def resume(self, channel: str) -> None:
        """Note that a channel is being resumed from the cursor."""
        self._resuming.add(channel)

    def settle(self, channel: str) -> float | None:
        """Note that a channel was resumed or is no longer wanted; return what `offer` returns."""
        self._resuming.discard(channel)
        return self._adopt()

    def offer(self, cursor: object, at: float) -> float | None:
        """Take a cursor that arrived at a time.

        Returns:
            The arrival time of the cursor that was adopted, or None if none was.
        """
        if isinstance(cursor, str):
            self._offered = (cursor, at)
        return self._adopt()

    def interrupt(self) -> None:
        """Drop the offered cursor: it may cover messages that were not replayed."""
        self._resuming.clear()
        self._offered = None

    def _adopt(self) -> float | None:
        if self._offered is None or self._resuming:
            return None
        self.cursor, at = self._offered
        self._offered = None
        return at
