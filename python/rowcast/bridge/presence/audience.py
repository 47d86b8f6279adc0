"""Counts the sessions of this bridge in each channel, in the database, where publishers look.

Absolute values, many in one statement, so that churn costs statements by time and not by client,
and a statement that is repeated does no harm.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import asyncpg

from rowcast.bridge.database import UNAVAILABLE, Database
from rowcast.bridge.node import INTERVAL, PAUSE, Node
from rowcast.observe import observe

__all__ = ["Audience"]

# Channels in one statement.
PORTION = 5000


class Audience:
    """The counters.

    Args:
        database: keeps the counters.
        node: the bridge to which they belong.
    """

    def __init__(self, database: Database, node: Node) -> None:
        self._database = database
        self._node = node
        self._counts: Counter[str] = Counter()
        self._dirty: set[str] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._changed = asyncio.Event()

    def enter(self, channel: str) -> asyncio.Future[None]:
        """Count one session more; the future is done when publishers see it."""
        self._counts[channel] += 1
        seen = asyncio.get_running_loop().create_future()
        self._waiting.append(seen)
        self._touch(channel)
        return seen

    def leave(self, channel: str) -> None:
        """Count one session less."""
        self._counts[channel] -= 1
        if not self._counts[channel]:
            del self._counts[channel]
        self._touch(channel)

    def _touch(self, channel: str) -> None:
        self._dirty.add(channel)
        self._changed.set()

    def write_again(self) -> None:
        """Write all counters again: the database has lost them."""
        self._dirty.update(self._counts)
        self._changed.set()

    async def run(self) -> None:
        """Write what changed, for ever; returns only when cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            dirty, self._dirty = self._dirty, set()
            waiting, self._waiting = self._waiting, []
            pause = asyncio.create_task(asyncio.sleep(INTERVAL))
            if await self._write(list(dirty)):
                for seen in waiting:
                    if not seen.done():
                        seen.set_result(None)
            else:
                self._waiting += waiting
                self._dirty |= dirty
                self._changed.set()
                await asyncio.sleep(PAUSE)
            await pause

    async def _write(self, channels: list[str]) -> bool:
        try:
            for at in range(0, len(channels), PORTION):
                portion = channels[at : at + PORTION]
                counts = [self._counts[channel] for channel in portion]
                async with self._node.write_lock:
                    written = await self._database.write_audience(self._node.id, portion, counts)
                if not written:
                    self._node.renew()
                    return False
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            observe("audience_failed", error=error)
            return False
        return True
