"""Work that a bridge repeats beside the feed: upkeep of the database, cursors, memory."""

from __future__ import annotations

import asyncio
import gc
import json
import time

import asyncpg

from rowcast.config import Settings
from rowcast.observe import observe

from .database import UNAVAILABLE, Database
from .feed import Feed
from .hub import Hub

__all__ = ["Housekeeping", "settle_memory"]

# Seconds between two cursors of a client that gets messages, and of any other client.
CURSOR_INTERVAL = 1.0
QUIET_CURSOR_INTERVAL = 60.0
# Clients looked at between two chances for other tasks.
BURST = 256
# A full collection at 10,000 connections stops the loop for a third of a second, so objects that
# live long are moved out of its sight each time the number of clients has doubled, from here on.
FREEZE_FROM = 1000
# New objects until the young generation is collected. Few objects of requests under way are
# garbage, and a collection after every 700, the default, is a tenth of the cost of a webhook.
COLLECT_AFTER = 10_000


class Housekeeping:
    """Runs `upkeep` and `give_cursors` for ever.

    Args:
        settings: how often upkeep is due.
        database: does the upkeep.
        hub: writes cursors.
        feed: waited for while it delivers.
    """

    def __init__(self, settings: Settings, database: Database, hub: Hub, feed: Feed) -> None:
        self._settings = settings
        self._database = database
        self._hub = hub
        self._feed = feed
        self._freeze_at = FREEZE_FROM

    async def upkeep(self) -> None:
        """Have the database make, close and drop partitions; returns only when cancelled."""
        while True:
            again = False
            try:
                done = json.loads(await self._database.upkeep() or "{}")
                again = done.pop("again", False)
                if any(done.values()):
                    observe("upkeep", done=done)
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                observe("upkeep_failed", error=error)
            await asyncio.sleep(0 if again else self._settings.upkeep_interval)

    async def give_cursors(self) -> None:
        """Write cursors, every second to clients that got messages and every minute to all."""
        quiet = time.monotonic()
        while True:
            await asyncio.sleep(CURSOR_INTERVAL)
            to_all = time.monotonic() - quiet >= QUIET_CURSOR_INTERVAL
            if to_all:
                quiet = time.monotonic()
            for given, session in enumerate(list(self._hub.sessions), 1):
                if (session.dirty or to_all) and session.subscriptions:
                    if self._hub.delivering:
                        async with self._feed.drained:
                            await self._feed.drained.wait_for(lambda: not self._hub.delivering)
                    self._hub.cursor(session)
                if given % BURST == 0:
                    await asyncio.sleep(0)
            if len(self._hub.sessions) >= self._freeze_at:
                self._freeze_at *= 2
                gc.collect()
                gc.freeze()


def settle_memory() -> None:
    """Set the garbage collector up once everything that lives long has been made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 10, 10)
