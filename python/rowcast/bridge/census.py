"""The census: reports to the database which callers are subscribed to what, when it is asked for.

The report contains claims of callers, which are personal data: they go to that one function and
to no log, not even when it fails. A bridge that is sending its clients away does not report.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from typing import Any
from uuid import UUID

import asyncpg

from rowcast.observe import observe

from .database import UNAVAILABLE, Database
from .hub import Hub
from .model import Message
from .node import Node
from .subscription import State

__all__ = ["Census"]

# Different (role, claims, channel) in a report, their characters, and the number in one statement.
PAIRS = 20_000
SIZE = 16_777_216
PORTION = 500
# Subscriptions looked at between two chances for other tasks.
BURST = 500
# Requests that may wait; further ones are dropped.
WAITING = 8

Pair = tuple[str, str, str]


class Census:
    """Answers requests one after the other.

    Args:
        database: takes the report.
        hub: all sessions and their subscriptions.
        node: the bridge that reports.
    """

    def __init__(self, database: Database, hub: Hub, node: Node) -> None:
        self.closed = False
        self._database = database
        self._hub = hub
        self._node = node
        self._requests: asyncio.Queue[UUID] = asyncio.Queue(WAITING)

    def wake_for(
        self, _messages: Collection[Message], signals: Collection[tuple[str, dict[str, Any]]]
    ) -> None:
        """Take the requests among what the feed read."""
        for kind, body in signals:
            if kind == "census" and not self.closed and not self._requests.full():
                self._requests.put_nowait(UUID(body["request"]))

    async def run(self) -> None:
        """Answer for ever; returns only when cancelled."""
        while True:
            request = await self._requests.get()
            counts, left_out = await self._count()
            try:
                await self._answer(request, counts, left_out)
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                observe("census_failed", error=type(error).__name__)

    async def _count(self) -> tuple[Counter[Pair], int]:
        counts: Counter[Pair] = Counter()
        left_out = size = looked = 0
        for session in list(self._hub.sessions):
            caller = session.caller
            if caller is None:
                continue
            for subscription in session.subscriptions.values():
                looked += 1
                if subscription.state is not State.LIVE:
                    continue
                pair = (caller.role, caller.claims, subscription.channel)
                if pair not in counts:
                    more = sum(map(len, pair))
                    if len(counts) == PAIRS or size + more > SIZE:
                        left_out += 1
                        continue
                    size += more
                counts[pair] += 1
            if looked >= BURST:
                looked = 0
                await asyncio.sleep(0)
        return counts, left_out

    async def _answer(self, request: UUID, counts: Counter[Pair], left_out: int) -> None:
        pairs = [(*pair, sessions) for pair, sessions in counts.items()]
        for at in range(0, len(pairs) or 1, PORTION):
            last = left_out if at + PORTION >= len(pairs) else None
            portion = pairs[at : at + PORTION]
            if self.closed or not await self._database.answer_census(
                self._node.id, request, portion, last
            ):
                return
