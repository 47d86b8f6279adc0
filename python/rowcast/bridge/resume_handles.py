"""Keeps the cursors of clients that keep none themselves, under a handle.

Clients of our own keep their cursor. Other clients keep nothing, but repeat at each join what
their application gave them, so a random handle in it finds the cursor again: at any bridge, after
any restart, for an hour. Cursors are written every few seconds, so a client that comes back may
get the messages of that time twice, and never misses one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

import asyncpg

from rowcast.errors import Refusal
from rowcast.observe import observe

from .batch import Batcher
from .database import UNAVAILABLE, Database

__all__ = ["ResumeHandles", "digest"]

# Seconds between two writes.
FLUSH_INTERVAL = 5.0
# Handles looked up, and written, in one statement.
BATCH = 100
ROWS = 5_000
# Handles that wait to be written; further ones are dropped.
MOST = 100_000


class ResumeHandles:
    """The handles of all bridges.

    Args:
        database: keeps them.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._unwritten: dict[bytes, str] = {}
        self._lookups = Batcher(self._find, size=BATCH, workers=1)

    def keep(self, subject: str, handle: str, channel: str, cursor: str) -> None:
        """Remember a cursor: everything up to it has arrived at the client.

        Args:
            subject: the cursor was signed for this one; no other subject finds or replaces it.
            handle: chosen by the application.
            channel: the channel that was joined with it.
            cursor: the client's newest.
        """
        key = digest(subject, handle, channel)
        if key in self._unwritten or len(self._unwritten) < MOST:
            self._unwritten[key] = cursor

    async def find(self, subject: str, handle: str, channel: str) -> str | None:
        """Return the newest cursor that was kept, or None.

        Raises:
            Refusal: "unavailable"; to start live instead would lose messages.
        """
        key = digest(subject, handle, channel)
        return self._unwritten.get(key) or await self._lookups.submit("", key)

    async def run(self) -> None:
        """Write new cursors for ever; returns only when cancelled."""
        while True:
            await asyncio.sleep(FLUSH_INTERVAL)
            await self.flush()

    async def flush(self) -> None:
        """Write all cursors that are not written yet; what fails stays for the next time."""
        taken = list(self._unwritten.items())
        for start in range(0, len(taken), ROWS):
            part = taken[start : start + ROWS]
            try:
                await self._database.keep_handles(part)
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                observe("handles_unwritten", error=error)
                return
            for key, cursor in part:
                if self._unwritten[key] is cursor:  # else there is a newer one
                    del self._unwritten[key]

    async def _find(self, _group: str, keys: Sequence[bytes]) -> Sequence[str | Exception | None]:
        try:
            return await self._database.find_handles(keys)
        except (*UNAVAILABLE, asyncpg.PostgresError):
            return [Refusal("unavailable")] * len(keys)


def digest(*parts: str) -> bytes:
    """Return one key of fixed size. It covers the lengths, so parts cannot be shifted."""
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    sizes = b"".join(len(part).to_bytes(4, "big") for part in encoded)
    return hashlib.sha256(sizes + b"".join(encoded)).digest()
