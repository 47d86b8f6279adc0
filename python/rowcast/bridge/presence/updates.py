"""Tells clients which members a channel has, and what changes.

A channel's list is read once, when its first client comes, and followed by the feed from then on.
Changes are collected and written as one frame for all clients; a channel with many changes gets
fewer frames with the newest states, not more frames.
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

from .roster import Roster, Row

__all__ = ["Updates"]

# Channels in one read.
PORTION = 100
# Bytes that one channel may write to its clients in a second, before its frames become fewer.
BYTES_PER_SECOND = 16_777_216
# Seconds until a client that did not read is tried again, and until a read is.
PATIENCE = 0.25
RETRY = 1.0


class Updates:
    """The rosters of all channels that have clients here.

    Args:
        database: lists are read from it.
        hub: the subscribers of each channel.
        lease: seconds within which other bridges have written again what a crash took.
    """

    def __init__(self, database: Database, hub: Hub, lease: float) -> None:
        self._database = database
        self._hub = hub
        self._lease = lease
        self._rosters: dict[str, Roster] = {}
        self._loading: dict[Roster, asyncio.Task[None]] = {}
        self._reads: Batcher[str, list[Row]] = Batcher(self._read, size=PORTION, workers=1)
        self._unannounced: set[str] = set()
        self._owed: set[tuple[Session, str]] = set()
        self._changed = asyncio.Event()
        self._boot: UUID | None = None
        self._incomplete_until = 0.0
        self._resyncing: asyncio.Task[None] | None = None

    # Reading

    async def open(self, channel: str) -> None:
        """Read the list of a channel, unless it is known.

        Raises:
            Refusal: "unavailable".
        """
        roster = self._rosters.get(channel)
        if roster is None:
            roster = self._rosters[channel] = Roster()
            self._loading[roster] = asyncio.create_task(self._load(channel, roster))
        if roster in self._loading:
            await asyncio.shield(self._loading[roster])

    async def _load(self, channel: str, roster: Roster) -> None:
        try:
            roster.begin_load()
            roster.finish_load(await self._reads.submit("", channel), complete=True)
            roster.take_changes()
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            observe("presence_failed", error=error)
            if self._rosters.get(channel) is roster:
                del self._rosters[channel]
            raise Refusal("unavailable") from error
        finally:
            del self._loading[roster]
            self.close(channel)

    async def _read(self, _group: str, channels: Sequence[str]) -> Sequence[list[Row]]:
        found: dict[str, list[Row]] = {channel: [] for channel in channels}
        for row in await self._database.read_presence(list(found)):
            found[row["channel_name"]].append(
                Row(row["key"], row["node"], row["seq"], row["state"])
            )
        return [found[channel] for channel in channels]

    def apply(self, rows: Iterable[asyncpg.Record]) -> None:
        """Take the presence rows that the feed read."""
        for row in rows:
            roster = self._rosters.get(row["channel_name"])
            if roster is not None:
                state = None if row["payload"] == "null" else row["payload"]
                roster.take(Row(row["sender_id"], row["id"], row["seq"], state))
                self._note(row["channel_name"])

    def resume(self, boot: UUID) -> None:
        """Read all lists again: tombstones may have passed unseen, or Postgres has crashed.

        Args:
            boot: the life of the cluster.
        """
        if self._boot not in (None, boot):
            self._incomplete_until = time.monotonic() + self._lease
            for roster in self._rosters.values():
                roster.expect_new_rows()
        self._boot = boot
        if self._resyncing is not None:
            self._resyncing.cancel()
        self._resyncing = asyncio.create_task(self._resync())

    async def _resync(self) -> None:
        while True:
            left = self._incomplete_until - time.monotonic()
            try:
                await asyncio.gather(*(self._reload(c, left <= 0) for c in list(self._rosters)))
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                observe("presence_failed", error=error)
                left = RETRY
            if left <= 0:
                return
            await asyncio.sleep(left)

    async def _reload(self, channel: str, complete: bool) -> None:
        roster = self._rosters[channel]
        if roster not in self._loading:
            roster.begin_load()
            roster.finish_load(await self._reads.submit("", channel), complete=complete)
            self._note(channel)

    def close(self, channel: str) -> None:
        """Forget the list of a channel that has no clients any more."""
        if not self._hub.members(channel):
            self._rosters.pop(channel, None)

    # Asking

    def members(self, channel: str) -> list[tuple[str, str]]:
        """Return key and state of all members that the clients of a channel were told of."""
        roster = self._rosters.get(channel)
        return list(roster.announced.items()) if roster else []

    def state_of(self, channel: str, key: str) -> str | None:
        """Return the state of a member, as the clients of a channel were told."""
        roster = self._rosters.get(channel)
        return roster.announced.get(key) if roster else None

    def has_room_for(self, channel: str, key: str, most: int) -> bool:
        """Whether a channel with this limit can take this member."""
        roster = self._rosters.get(channel)
        return roster is None or roster.holds(key) or len(roster) < most

    # Telling

    def _note(self, channel: str) -> None:
        self._unannounced.add(channel)
        self._changed.set()

    async def run(self) -> None:
        """Tell clients what changed, for ever; returns only when cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._changed.wait()
            self._changed.clear()
            now = time.monotonic()
            for channel in list(self._unannounced):
                roster = self._rosters.get(channel)
                if roster is None or not roster.has_changes:
                    self._unannounced.discard(channel)
                elif roster.due <= now:
                    self._unannounced.discard(channel)
                    await self._tell(channel, roster)
            self._catch_up()
            await asyncio.sleep(INTERVAL)

    def _pause(self) -> float | None:
        """Seconds until something is due without a further change."""
        due = [
            roster.due for c in self._unannounced if (roster := self._rosters.get(c)) is not None
        ]
        pauses = [max(0.0, min(due) - time.monotonic())] if due else []
        return min([*pauses, *([PATIENCE] if self._owed else [])], default=None)

    async def _tell(self, channel: str, roster: Roster) -> None:
        events = roster.take_changes()
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
            if session.congested or subscription.stale or (session, channel) in self._owed:
                # Skip slow clients (presence is not worth disconnecting them) and clients being
                # rechecked; `_catch_up` sends them the full list later.
                self._owed.add((session, channel))
            elif subscription.auto_member in joined:
                # Its client does not need to hear of itself. After a mass subscribe these are all
                # clients, so each change is encoded once here, too.
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
        roster.due = time.monotonic() + size * len(hearing) / BYTES_PER_SECOND

    def _catch_up(self) -> None:
        for session, channel in list(self._owed):
            subscription = session.subscriptions.get(channel)
            if session.closed or subscription is None or subscription.state is not State.LIVE:
                self._owed.discard((session, channel))
            elif not session.congested and not subscription.stale:
                self._owed.discard((session, channel))
                joins = [change("join", key, state) for key, state in self.members(channel)]
                gone = list(self._rosters[channel].recently_left)
                session.tell(Present(channel, joins, full=True, gone=gone))


def change(kind: str, key: str, state: str, before: str | None = None) -> Change:
    """Return one change as wires encode it."""
    told = None if before is None else msgspec.Raw(before.encode())
    return Change(kind, key, msgspec.Raw(state.encode()), told)
