"""The doorbell: a bridge sleeps only when that is provably safe, and otherwise polls.

NOTIFY costs publishers four fifths of their commit rate, so they ring only while a bridge
holds the doorbell lock. Falling asleep without losing a ring:

1. take the lock in share mode, never waiting for it;
2. read which transactions hold a writer's lock on our tables: those may have passed the
   doorbell before step 1, and all later ones ring;
3. drain until they are gone, and once more after that;
4. wait for the notification.

It goes on sleeping over single rings, which cost a lone publisher nothing: the lock is still
held, so every publisher still rings. Many publishers that ring hold each other up; then the bridge
wakes and polls.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable

import asyncpg

from rowcast.config import Settings
from rowcast.observe import metrics, observe

from .backoff import Backoff
from .database import UNAVAILABLE, Connection, Database, UnfitError

__all__ = ["Doorbell"]

CHANNEL = "rowcast"
# Seconds over which rings are counted.
RING_WINDOW = 0.2


class Doorbell:
    """LISTEN on a connection of its own, and the sleep that it makes possible.

    Args:
        database: opens the connection.
        settings: intervals, and whether to listen at all.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._connection: Connection | None = None
        self._rang = asyncio.Event()
        self._rings: deque[float] = deque(maxlen=1 + int(settings.ring_rate * RING_WINDOW))
        self._lost = asyncio.Event()
        self._probes: dict[str, asyncio.Event] = {}
        # One query at a time on the connection: the probe must not meet the sleep.
        self._turn = asyncio.Lock()
        self._dozing = False
        self._waking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Keep LISTEN alive for ever; returns only when cancelled."""
        if self._settings.doorbell == "poll":
            await asyncio.Event().wait()
        backoff = Backoff()
        while True:
            try:
                async with self._database.dedicated(listening=True) as connection:
                    await self._listen(connection)
                    backoff.reset()
                    await self._keep_probing(connection)
            except (*UNAVAILABLE, UnfitError, asyncpg.PostgresError) as error:
                observe("listen_lost", error=error)
            finally:
                self._forget()
            await asyncio.sleep(backoff.next())

    async def _listen(self, connection: Connection) -> None:
        self._lost.clear()
        connection.add_termination_listener(self._terminated)
        await connection.add_listener(CHANNEL, self._notified)
        await self._probe(connection)
        self._connection = connection
        metrics.listen_up.set(1)
        observe("listen_up")

    async def _keep_probing(self, connection: Connection) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.probe_interval):
                    await self._lost.wait()
                raise ConnectionError("the connection was closed")
            async with self._turn:
                dozing = self._dozing
                holds = await self._probe(connection)
            if dozing and not holds:
                # A pooler gave the lock to another client, so publishers would not ring.
                raise ConnectionError("the doorbell lock is gone: is this a pooler?")

    async def _probe(self, connection: Connection) -> bool:
        nonce = secrets.token_hex(8)
        heard = self._probes[nonce] = asyncio.Event()
        try:
            async with asyncio.timeout(self._settings.probe_interval):
                holds = await self._database.probe(connection, nonce)
            async with asyncio.timeout(max(self._settings.probe_interval, 1)):
                await heard.wait()
        except TimeoutError:
            raise ConnectionError(
                "LISTEN is deaf: give ROWCAST_LISTEN_URL a direct connection, or set"
                " ROWCAST_DOORBELL=poll"
            ) from None
        finally:
            del self._probes[nonce]
        return holds

    def _notified(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        if payload == "":
            self._rings.append(time.monotonic())
            self._rang.set()
        elif isinstance(payload, str) and payload in self._probes:
            self._probes[payload].set()

    def _terminated(self, _connection: object) -> None:
        self._forget()

    def _forget(self) -> None:
        # Without LISTEN the feed may not sleep: wake it if it does.
        self._connection = None
        self._dozing = False
        self._lost.set()
        self._rang.set()
        metrics.listen_up.set(0)

    def _allowed(self) -> bool:
        return self._settings.doorbell == "notify" and self._database.facts.current.doorbell

    async def sleep(self, drain: Callable[[], Awaitable[int]]) -> bool:
        """Fall asleep if that is safe, and drain at each ring until too many ring.

        Args:
            drain: reads the feed; returns how many messages and signals came.

        Returns:
            False when it was not possible now. The caller must poll in either case.
        """
        connection = self._connection
        if connection is None or not self._allowed():
            return False
        if self._turn.locked() or not (self._waking is None or self._waking.done()):
            # The task that uses the connection may be finding out that it is dead: poll meanwhile.
            return False
        self._rang.clear()
        try:
            async with self._turn:
                if not await self._database.sleep_begin(connection):
                    return False
                self._dozing = True
                passed = await self._database.open_writers(connection)
            while passed:
                if await drain() or self._rang.is_set():
                    return True
                await asyncio.sleep(self._settings.poll_max)
                async with self._turn:
                    passed &= await self._database.open_writers(connection)
            if await drain():
                return True
            metrics.sleeps.inc()
            while connection is self._connection:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.safety_poll or None):
                        await self._rang.wait()
                if self._crowded():
                    return True
                self._rang.clear()
                await drain()
        except (*UNAVAILABLE, asyncpg.PostgresError):
            if connection is self._connection:
                self._forget()
            return False
        finally:
            # Beside the drain that follows: the message that rang is waiting.
            self._waking = asyncio.create_task(self._wake(connection))
        return True

    def _crowded(self) -> bool:
        """Whether publishers ring so often that they hold each other up."""
        rings = self._rings
        return len(rings) == rings.maxlen and rings[0] > time.monotonic() - RING_WINDOW

    async def _wake(self, connection: Connection) -> None:
        # Awake means polling: publishers must not go on ringing.
        if not self._dozing or connection is not self._connection:
            return
        self._dozing = False
        try:
            async with self._turn:
                await self._database.sleep_end(connection)
        except (*UNAVAILABLE, asyncpg.PostgresError):
            self._forget()
