"""Where clients that keep no cursor left off, found again by a handle.

Clients of our own keep their cursor. Others keep nothing, but repeat at each join what their
application gave them, so a random handle in it finds the cursor again: at any bridge, after any
restart, for an hour. Cursors are written down every few seconds, so who comes back may get that
much twice, and never too little.
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

FLUSH_INTERVAL = 5.0
BATCH = 100
ROWS = 5_000
MOST = 100_000


class ResumeHandles:
    """The handles of all bridges.

    Args:
        database: where they lie.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._unwritten: dict[bytes, str] = {}
        self._lookups = Batcher(self._find, size=BATCH, workers=1)

    def keep(self, subject: str, handle: str, channel: str, cursor: str) -> None:
        """Everything up to the cursor has arrived.

        Args:
            subject: whom the cursor was signed for; nobody else finds it, or replaces it.
            handle: what the application chose.
            channel: where it is used.
            cursor: the client's newest.
        """
        key = digest(subject, handle, channel)
        if key in self._unwritten or len(self._unwritten) < MOST:
            self._unwritten[key] = cursor

    async def find(self, subject: str, handle: str, channel: str) -> str | None:
        """The newest cursor that was kept.

        Raises:
            Refusal: "unavailable"; starting live instead would lose what was missed.
        """
        key = digest(subject, handle, channel)
        return self._unwritten.get(key) or await self._lookups.submit("", key)

    async def run(self) -> None:
        """Write them down for ever."""
        while True:
            await asyncio.sleep(FLUSH_INTERVAL)
            await self.flush()

    async def flush(self) -> None:
        """Write down what is not yet; what fails stays for the next time."""
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
    """One key of fixed size; the lengths stand in it, so no part can pass for another's end."""
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    sizes = b"".join(len(part).to_bytes(4, "big") for part in encoded)
    return hashlib.sha256(sizes + b"".join(encoded)).digest()
