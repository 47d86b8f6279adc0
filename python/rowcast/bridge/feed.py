"""Reads the feed: from the snapshot of the last read to the next, for ever.

Nothing in here has to survive: the position is a place in the database, and clients carry their
own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import asyncpg

from rowcast.config import Settings
from rowcast.observe import metrics, observe

from .backoff import Backoff
from .cursor import Position
from .database import UNAVAILABLE, Connection, Database, UnfitError
from .doorbell import Doorbell
from .model import Message, timestamp

__all__ = ["Feed", "Receiver", "message_of"]


class Receiver(Protocol):
    """Takes what the feed reads, in order."""

    async def deliver(
        self, messages: list[Message], signals: list[tuple[str, dict[str, Any]]]
    ) -> None:
        """Deliver messages and signals of one portion; returns when the next one may come."""

    def apply_presence(self, rows: Sequence[asyncpg.Record]) -> None:
        """Apply presence rows of one portion, before its messages."""

    def delivered_up_to(self, position: Position) -> None:
        """Note that all portions up to a position were delivered."""

    def tell_status(self, status: str) -> None:
        """Take note that the feed is lost ("degraded"), or reads ("ok")."""

    def returned(self) -> None:
        """Take note that it reads again after a loss, before anything is delivered."""


class Feed:
    """Reads what was committed and hands it on, in order.

    Args:
        database: the feed is read from it.
        doorbell: sleeps where that is safe.
        settings: poll intervals.
    """

    def __init__(self, database: Database, doorbell: Doorbell, settings: Settings) -> None:
        self._database = database
        self._doorbell = doorbell
        self._settings = settings
        self._recent: deque[tuple[float, set[str]]] = deque()
        self._cut_off = False
        self.position: Position | None = None
        self.up = asyncio.Event()
        self.drained = asyncio.Condition()

    async def run(self, receiver: Receiver) -> None:
        """Read for ever, connecting again for ever; returns only when cancelled.

        Args:
            receiver: everything that is read is handed to it.
        """
        backoff = Backoff()
        while True:
            try:
                async with self._database.dedicated() as connection:
                    await self._begin(connection, receiver)
                    backoff.reset()
                    await self._read(connection, receiver)
            except (*UNAVAILABLE, UnfitError, asyncpg.PostgresError) as error:
                observe("feed_lost", error=error)
                if self.up.is_set():
                    self.up.clear()
                    metrics.feed_up.set(0)
                    receiver.tell_status("degraded")
            await asyncio.sleep(backoff.next())

    async def _begin(self, connection: Connection, receiver: Receiver) -> None:
        await self._database.refresh_facts(connection)
        before = self.position
        if before is not None:
            receiver.returned()
        await self._drain(connection, receiver)
        assert self.position is not None
        self.up.set()
        metrics.feed_up.set(1)
        receiver.tell_status("ok")
        observe("feed_up", rebooted=bool(before and before.boot != self.position.boot))

    async def _read(self, connection: Connection, receiver: Receiver) -> None:
        drain = partial(self._drain, connection, receiver)
        delay = self._settings.poll_min
        # Times at which messages came lately. A few do not keep the bridge awake: they may ring.
        news: deque[float] = deque()
        few = self._settings.ring_rate * self._settings.idle_after / 2
        while True:
            came = await drain()
            now = time.monotonic()
            if came:
                news.append(now)
                delay = self._settings.poll_min
            while news and news[0] < now - self._settings.idle_after:
                news.popleft()
            if not came:
                if len(news) <= few and await self._doorbell.sleep(drain):
                    delay = self._settings.poll_min
                    continue
                delay = min(delay * 1.5, self._settings.poll_max)
            await asyncio.sleep(delay)

    async def _drain(self, connection: Connection, receiver: Receiver) -> int:
        """Read once; returns how many rows came."""
        before = self.position
        position: Position | None = None
        count = 0
        known: set[str] = set()
        async with contextlib.aclosing(self._database.drain(connection, before)) as portions:
            async for rows in portions:
                if position is None:
                    head = rows.pop(0)
                    if head["id"] is None:
                        # Postgres crashed since we connected; identity() makes the boot row.
                        raise ConnectionError("Postgres has restarted after a crash")
                    position = Position(head["payload"], head["id"], head["created_at"])
                    if before is not None and (self._cut_off or before.boot != position.boot):
                        # What may come again: after a drain that was cut off, or after a crash
                        # of Postgres. By id, because a crash hands out numbers again, too.
                        known = set().union(*(ids for _, ids in self._recent))
                if rows:
                    self._cut_off = True
                    count += len(rows)
                    await self._hand_on(rows, known, receiver)
        assert position is not None
        self._cut_off = False
        # Only now: the beginning of a long drain may come again if it is cut off at its end.
        overlap = self._database.facts.current.replay_overlap
        while self._recent and self._recent[0][0] < time.monotonic() - overlap:
            self._recent.popleft()
        self.position = position
        receiver.delivered_up_to(position)
        metrics.drains.inc()
        async with self.drained:
            self.drained.notify_all()
        return count

    async def _hand_on(
        self, rows: list[asyncpg.Record], known: set[str], receiver: Receiver
    ) -> None:
        messages: list[Message] = []
        signals: list[tuple[str, dict[str, Any]]] = []
        receiver.apply_presence([row for row in rows if row["kind"] == "presence"])
        for row in rows:
            if row["kind"] == "presence":
                continue
            if row["kind"] != "message":
                signals.append((row["kind"], json.loads(row["payload"])))
            elif str(row["id"]) not in known:
                messages.append(message_of(row))
        if messages:
            self._recent.append((time.monotonic(), {m.id for m in messages}))
            metrics.messages.inc(len(messages))
        await receiver.deliver(messages, signals)
        if messages:
            metrics.lag.observe(max(0.0, time.time() - rows[-1]["created_at"].timestamp()))


def message_of(row: asyncpg.Record) -> Message:
    """Return the message in a row of the feed, a replay or history."""
    channel_id = row.get("channel_id")
    return Message(
        seq=row["seq"],
        id=str(row["id"]),
        type=row["type"],
        channel=row["channel_name"],
        channel_id=str(channel_id) if channel_id else None,
        event=row["event_name"],
        payload=row["payload"],
        sender_type=row["sender_type"],
        sender_id=row["sender_id"],
        timestamp=timestamp(row["created_at"]),
    )
