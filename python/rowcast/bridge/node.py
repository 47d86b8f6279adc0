"""This bridge as a row in the database: a lease that a heartbeat renews.

Everything that bridges write about their clients is UNLOGGED and can be written again. A heartbeat
that finds its row missing, because Postgres crashed or because other bridges considered this one
dead, is how a bridge learns that it has to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import asyncpg

from rowcast.config import Settings
from rowcast.observe import observe

from .database import UNAVAILABLE, Database

__all__ = ["INTERVAL", "PAUSE", "Node"]

# Heartbeats in a lease. The database is given one beat less: by the end of the lease a dead node
# has been found by the next heartbeat of another one.
BEATS = 4
# Seconds between two writes of audience or presence, and between two `presence` frames.
INTERVAL = 0.05
# Seconds until a write that failed is tried again.
PAUSE = 0.5


class Node:
    """Keeps the lease.

    Args:
        database: the lease is a row in it.
        settings: the length of the lease.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self.id = uuid4()
        # held during a write: all of them lock the same row
        self.write_lock = asyncio.Lock()
        # whether the database knows this node
        self.known = False
        self._database = database
        self._lease = settings.lease
        self._wanted = asyncio.Event()

    def renew(self) -> None:
        """Send a heartbeat now, because the row may be gone."""
        self._wanted.set()

    async def run(self, on_lease_lost: Callable[[], None]) -> None:
        """Renew the lease for ever; returns only when cancelled.

        Args:
            on_lease_lost: called when the row was missing, and everything must be written again.
        """
        while True:
            self._wanted.clear()
            pause = self._lease / BEATS
            try:
                if not await self._beat():
                    if self.known:
                        observe("lease_lost")
                    on_lease_lost()
                self.known = True
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                observe("heartbeat_failed", error=error)
                pause = min(pause, PAUSE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wanted.wait()

    async def _beat(self) -> bool:
        lease = timedelta(seconds=self._lease * (BEATS - 1) / BEATS)
        async with self.write_lock:
            return await self._database.beat(self.id, lease)

    async def leave(self, grace: float) -> None:
        """End the lease; members stay for the grace time, in seconds."""
        with contextlib.suppress(*UNAVAILABLE, asyncpg.PostgresError):
            async with self.write_lock:
                await self._database.leave(self.id, timedelta(seconds=grace))
