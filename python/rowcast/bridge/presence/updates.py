"""What clients are told about who is present.

A channel's list is read once, when its first client comes, and followed by the feed from then on.
Changes are collected and written as one frame for all clients; a channel in which much happens
gets fewer frames with the newest of everything, not more of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence
from uuid import UUID

import asyncpg
import msgspec

from rowcast.bridge.batch import Batcher
from rowcast.bridge.database import UNAVAILABLE, Database
from rowcast.bridge.hub import BURST, Hub
from rowcast.bridge.node import INTERVAL
from rowcast.bridge.session import Session
from rowcast.bridge.subscription import State
from rowcast.bridge.wire.protocol import Change, Present
from rowcast.errors import Refusal
from rowcast.observe import metrics, observe

from .roster import Room, Row

__all__ = ["Presence"]

# Channels in one read.
PORTION = 100
# What one channel may write to its clients in a second, before its frames become fewer.
BYTES_PER_SECOND = 16_777_216
# Seconds until a client that did not read is looked after again, or a read is tried again.
PATIENCE = 0.25
RETRY = 1.0


class Presence:
    """All channels that have clients here.

    Args:
        database: where lists are read.
        hub: who hears.
        lease: seconds after which other bridges must have written anew what a crash took.
    """

    def __init__(self, database: Database, hub: Hub, lease: float) -> None:
        self._database = database
        self._hub = hub
        self._lease = lease
        self._rooms: dict[str, Room] = {}
        self._loading: dict[Room, asyncio.Task[None]] = {}
        self._reads: Batcher[str, list[Row]] = Batcher(self._read, size=PORTION, workers=1)
        self._restless: set[str] = set()
        self._behind: set[tuple[Session, str]] = set()
        self._changed = asyncio.Event()
        self._boot: UUID | None = None
        self._doubtful_until = 0.0
        self._resyncing: asyncio.Task[None] | None = None

    # Reading

    async def open(self, channel: str) -> None:
        """Have the list of a channel.

        Raises:
            Refusal: "unavailable".
        """
        room = self._rooms.get(channel)
        if room is None:
            room = self._rooms[channel] = Room()
            self._loading[room] = asyncio.create_task(self._load(channel, room))
        if room in self._loading:
            await asyncio.shield(self._loading[room])

    async def _load(self, channel: str, room: Room) -> None:
        try:
            room.expect()
            room.fill(await self._reads.submit("", channel), complete=True)
            room.news()
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            observe("presence_failed", error=error)
            if self._rooms.get(channel) is room:
                del self._rooms[channel]
            raise Refusal("unavailable") from error
        finally:
            del self._loading[room]
            self.close(channel)

    async def _read(self, _group: str, channels: Sequence[str]) -> Sequence[list[Row]]:
        found: dict[str, list[Row]] = {channel: [] for channel in channels}
        for row in await self._database.read_presence(list(found)):
            found[row["channel_name"]].append(
                Row(row["key"], row["node"], row["seq"], row["state"])
            )
        return [found[channel] for channel in channels]

    def apply(self, rows: Iterable[asyncpg.Record]) -> None:
        """Take what the feed read."""
        for row in rows:
            room = self._rooms.get(row["channel_name"])
            if room is not None:
                state = None if row["payload"] == "null" else row["payload"]
                room.take(Row(row["sender_id"], row["id"], row["seq"], state))
                self._stir(row["channel_name"])

    def resume(self, boot: UUID) -> None:
        """The feed is up again: tombstones may have passed unseen, or Postgres has crashed."""
        if self._boot not in (None, boot):
            self._doubtful_until = time.monotonic() + self._lease
            for room in self._rooms.values():
                room.doubt()
        self._boot = boot
        if self._resyncing is not None:
            self._resyncing.cancel()
        self._resyncing = asyncio.create_task(self._resync())

    async def _resync(self) -> None:
        while True:
            left = self._doubtful_until - time.monotonic()
            try:
                await asyncio.gather(*(self._reload(c, left <= 0) for c in list(self._rooms)))
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                observe("presence_failed", error=error)
                left = RETRY
            if left <= 0:
                return
            await asyncio.sleep(left)

    async def _reload(self, channel: str, complete: bool) -> None:
        room = self._rooms[channel]
        if room not in self._loading:
            room.expect()
            room.fill(await self._reads.submit("", channel), complete=complete)
            self._stir(channel)

    def close(self, channel: str) -> None:
        """A client has left the channel; without any its list is forgotten."""
        if not self._hub.members(channel):
            self._rooms.pop(channel, None)

    # Asking

    def members(self, channel: str) -> list[tuple[str, str]]:
        """Key and state of all whom the clients of a channel know to be present."""
        room = self._rooms.get(channel)
        return list(room.told.items()) if room else []

    def state_of(self, channel: str, key: str) -> str | None:
        """The state of a member, as far as the clients of a channel know."""
        room = self._rooms.get(channel)
        return room.told.get(key) if room else None

    def room_for(self, channel: str, key: str, most: int) -> bool:
        """Whether this member may be present besides the others."""
        room = self._rooms.get(channel)
        return room is None or room.holds(key) or len(room) < most

    # Telling

    def _stir(self, channel: str) -> None:
        self._restless.add(channel)
        self._changed.set()

    async def run(self) -> None:
        """Tell clients what changed, for ever; returns only when cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._changed.wait()
            self._changed.clear()
            now = time.monotonic()
            for channel in list(self._restless):
                room = self._rooms.get(channel)
                if room is None or not room.restless:
                    self._restless.discard(channel)
                elif room.due <= now:
                    self._restless.discard(channel)
                    await self._tell(channel, room)
            self._catch_up()
            await asyncio.sleep(INTERVAL)

    def _pause(self) -> float | None:
        """Seconds until something is due that nobody will stir for."""
        due = [room.due for c in self._restless if (room := self._rooms.get(c)) is not None]
        pauses = [max(0.0, min(due) - time.monotonic())] if due else []
        return min([*pauses, *([PATIENCE] if self._behind else [])], default=None)

    async def _tell(self, channel: str, room: Room) -> None:
        events = room.news()
        if not events:
            return
        event = Present(channel, [change(*it) for it in events])
        encoded: dict[str, bytes] = {}
        apart: dict[str, dict[str, bytes]] = {}
        joined = {change.key for change in event.events if change.type == "join"}
        hearing = [
            (session, subscription)
            for session, subscription in self._hub.members(channel)
            if subscription.state is State.LIVE and subscription.wants_presence
        ]
        metrics.presence_events.inc(len(events))
        for told, (session, subscription) in enumerate(hearing, 1):
            if session.subscriptions.get(channel) is not subscription:
                continue
            if session.congested or subscription.stale or (session, channel) in self._behind:
                # It would be closed for what it can do without, or may not see it any more: later
                # it gets the whole list.
                self._behind.add((session, channel))
            elif subscription.auto_member in joined:
                # All at once it may be all of them: each change is encoded once here, too.
                if session.wire.format not in apart:
                    apart[session.wire.format] = {
                        it.key: session.wire.encode(Present(channel, [it])) for it in event.events
                    }
                parts = apart[session.wire.format].items()
                session.write(
                    b"".join(data for key, data in parts if key != subscription.auto_member)
                )
            else:
                if session.wire.format not in encoded:
                    encoded[session.wire.format] = session.wire.encode(event)
                session.write(encoded[session.wire.format])
            if told % BURST == 0:
                await asyncio.sleep(0)
        size = max(map(len, encoded.values()), default=0)
        room.due = time.monotonic() + size * len(hearing) / BYTES_PER_SECOND

    def _catch_up(self) -> None:
        for session, channel in list(self._behind):
            subscription = session.subscriptions.get(channel)
            if session.closed or subscription is None or subscription.state is not State.LIVE:
                self._behind.discard((session, channel))
            elif not session.congested and not subscription.stale:
                self._behind.discard((session, channel))
                joins = [change("join", key, state) for key, state in self.members(channel)]
                gone = list(self._rooms[channel].gone)
                session.tell(Present(channel, joins, full=True, gone=gone))


def change(kind: str, key: str, state: str, before: str | None = None) -> Change:
    """One event as wires encode it."""
    told = None if before is None else msgspec.Raw(before.encode())
    return Change(kind, key, msgspec.Raw(state.encode()), told)
