"""The composition root: the only module that constructs, starts and ends everything."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import time
from collections.abc import Callable
from typing import Any

import asyncpg
from aiohttp import web

from rowcast.config import Settings
from rowcast.errors import ConfigError
from rowcast.observe import configure, observe
from rowcast.postgres.diagnose import explain

from .access import Access
from .auth import Identities, Verifier
from .census import Census
from .database import UNAVAILABLE, Database, UnfitError
from .doorbell import Doorbell
from .feed import Feed
from .http.app import build
from .http.websocket import Sockets
from .hub import Hub
from .model import Message
from .node import Node
from .phoenix.door import Broadcasts, PhoenixDoor
from .port import BACKLOG, listen, url_of
from .presence.attendance import Attendance
from .presence.audience import Audience
from .presence.members import Tracking
from .presence.updates import Presence
from .replay import Replays
from .requests import Requests
from .rest.calls import Calls
from .rest.server import Rest
from .resume_handles import ResumeHandles
from .revocation import Rechecks
from .socketio.door import SocketIODoor
from .subscribe import Subscribing
from .webhooks.egress import Guard, Sender
from .webhooks.outbox import Outbox
from .wire.protocol import Status

__all__ = ["serve"]

CURSOR_INTERVAL = 1.0
QUIET_CURSOR_INTERVAL = 60.0
BURST = 256
# After a portion of a large transaction clients get up to 50 ms to take it.
LARGE = 500
PATIENCE = 10
# A full collection at 10,000 connections stops the loop for a third of a second; what lives
# long is moved out of its sight each time the number of clients has doubled.
FREEZE_FROM = 1000
# New objects until the young are looked through: of what is under way little is garbage, and to
# look after every 700, as is the default, is a tenth of what a webhook costs.
COLLECT_AFTER = 10_000


class _Bridge:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings)
        self.hub = Hub(self.database.facts)
        self.node = Node(self.database, settings)
        self.audience = Audience(self.database, self.node)
        self.presence = Presence(self.database, self.hub, settings.lease)
        self.tracking = Tracking(self.database, self.node, settings)
        attendance = Attendance(settings, self.audience, self.presence, self.tracking)
        self.hub.left = attendance.left
        self.doorbell = Doorbell(self.database, settings)
        self.feed = Feed(
            self.database,
            self.doorbell,
            settings,
            deliver=self.deliver,
            present=self.presence.apply,
            moved=self.hub.moved,
            status=self.status,
            returned=self.returned,
        )
        sender = Sender(Guard(settings.webhook_allow_cidrs), settings.webhook_timeout)
        self.outbox = Outbox(self.database, sender, settings)
        access = Access(self.database, settings)
        replays = Replays(self.database, settings, self.hub, self.feed)
        facts = self.database.facts
        verifier = Verifier(settings, facts)
        self.rechecks = Rechecks(settings, self.hub, self.feed, access)
        identities = Identities(settings, self.hub, verifier)
        self.handles = ResumeHandles(self.database)
        self.census = Census(self.database, self.hub, self.node)
        subscribing = Subscribing(
            settings,
            self.hub,
            facts,
            self.feed,
            access,
            replays,
            attendance,
            self.rechecks,
            self.handles,
        )
        requests = Requests(
            settings,
            self.hub,
            facts,
            access,
            attendance,
            identities,
            self.rechecks,
            subscribing,
        )
        self.sockets = Sockets(settings, self.hub, requests)
        phoenix = PhoenixDoor(self.sockets, verifier, self.handles)
        calls = Calls(self.database, access)
        rest = Rest(settings, verifier, calls)
        broadcasts = Broadcasts(settings, rest, calls)
        socketio = SocketIODoor(settings, self.sockets, requests)
        self.doors = (rest, self.sockets, phoenix, broadcasts, socketio)
        self._frozen = FREEZE_FROM

    async def deliver(
        self, messages: list[Message], signals: list[tuple[str, dict[str, Any]]]
    ) -> None:
        self.outbox.heard(messages, signals)
        # First who may be concerned by what was committed with the messages, or before them. A
        # message that is deleted by now is none of these.
        for kind, body in signals:
            if kind == "deleted":
                self.hub.deleted(body["channel"], body["id"], body.get("channel_id"))
            elif kind == "census":
                self.census.signal(body)
            else:
                self.rechecks.signal(kind, body)
        for _ in self.hub.deliver(messages):
            await asyncio.sleep(0)
        if len(messages) >= LARGE:
            # More is coming: let the sockets take this first, but let nobody hold up the rest.
            for _ in range(PATIENCE):
                if not self.hub.congested() and not self.rechecks.congested():
                    break
                await asyncio.sleep(0.005)

    def returned(self) -> None:
        self.rechecks.everything()

    def status(self, status: str) -> None:
        if status == "ok" and self.feed.position is not None:
            self.node.renew()
            self.presence.resume(self.feed.position.boot)
        self.hub.broadcast(Status(status))

    async def check(self) -> None:
        """Refuse to run on what would break a promise; wait for a database that is away."""
        delay = 0.2
        while True:
            named, url = "ROWCAST_DATABASE_URL", self.settings.database_url
            try:
                async with self.database.dedicated() as connection:
                    await self.database.identity(connection)
                named, url = "ROWCAST_CALLER_URL", self.settings.caller_url
                await self.database.refuse_powerful_logins()
                return
            except UnfitError:
                raise
            except (*UNAVAILABLE, asyncpg.PostgresError, ValueError) as error:
                why = explain(error, url, named)
                if not (why.passing and isinstance(error, UNAVAILABLE)):
                    raise ConfigError(why.sentence) from error
                observe("feed_lost", error=why.sentence)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5.0)

    async def give_cursors(self) -> None:
        """Every second to those that got messages, every minute to all."""
        quiet = time.monotonic()
        while True:
            await asyncio.sleep(CURSOR_INTERVAL)
            everybody = time.monotonic() - quiet >= QUIET_CURSOR_INTERVAL
            if everybody:
                quiet = time.monotonic()
            for given, session in enumerate(list(self.hub.sessions), 1):
                if (session.dirty or everybody) and session.subscriptions:
                    if self.hub.delivering:
                        async with self.feed.drained:
                            await self.feed.drained.wait_for(lambda: not self.hub.delivering)
                    self.hub.cursor(session)
                if given % BURST == 0:
                    await asyncio.sleep(0)
            if len(self.hub.sessions) >= self._frozen:
                self._frozen *= 2
                gc.collect()
                gc.freeze()

    async def upkeep(self) -> None:
        while True:
            again = False
            try:
                done = json.loads(await self.database.upkeep() or "{}")
                again = done.pop("again", False)
                if any(done.values()):
                    observe("upkeep", done=done)
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                observe("upkeep_failed", error=error)
            await asyncio.sleep(0 if again else self.settings.upkeep_interval)

    async def drain(self) -> None:
        """Let all clients go, and end what would be lost with them."""
        finishing = asyncio.create_task(self.outbox.finish())
        self.census.closed = True
        await self.sockets.drain()
        await finishing
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.handles.flush(), self.settings.query_timeout)


async def serve(settings: Settings, *, ready: Callable[[str], None] | None = None) -> None:
    """Run a bridge until SIGTERM or SIGINT, then let all clients go and return.

    Args:
        settings: complete settings.
        ready: called with the base URL once clients can connect and the feed reads.

    Raises:
        ConfigError: a setting, a login or the database is not fit; nothing was started.
    """
    settings = settings.for_serve()
    configure(settings.log_format)
    bridge = _Bridge(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(
        build(settings, bridge.doors, bridge.sockets, bridge.feed),
        access_log=None,
        handle_signals=False,
        shutdown_timeout=1,
    )
    tasks: list[asyncio.Task[Any]] = []
    try:
        listening = listen(settings)
        await bridge.database.open()
        await runner.setup()
        site = web.SockSite(runner, listening, backlog=BACKLOG)
        await site.start()
        url = url_of(listening)
        stopping = asyncio.create_task(stop.wait())
        checking = asyncio.create_task(bridge.check())
        tasks += [stopping, checking]
        await asyncio.wait({stopping, checking}, return_when=asyncio.FIRST_COMPLETED)
        if checking.done():
            checking.result()
            running = [
                asyncio.create_task(work())
                for work in (
                    bridge.feed.run,
                    bridge.doorbell.run,
                    bridge.rechecks.run,
                    bridge.upkeep,
                    bridge.outbox.run,
                    bridge.give_cursors,
                    bridge.node.run,
                    bridge.audience.run,
                    bridge.tracking.run,
                    bridge.presence.run,
                    bridge.handles.run,
                    bridge.census.run,
                )
            ]
            tasks += running
            up = asyncio.create_task(bridge.feed.up.wait())
            tasks.append(up)
            await asyncio.wait({up, stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
            if up.done():
                gc.collect()
                gc.freeze()
                gc.set_threshold(COLLECT_AFTER, 10, 10)
                observe("started", url=url)
                if ready is not None:
                    ready(url)
                await asyncio.wait({stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
            for task in running:
                if task.done():
                    task.result()  # none of them ends by itself: raise what ended it
        if settings.reuse_port == "yes":
            await site.stop()  # the next clients are for the others on this port
        await bridge.drain()
    finally:
        await _cancel(tasks)
        if bridge.node.known:
            await bridge.node.leave(settings.presence_grace)
        await runner.cleanup()
        with contextlib.suppress(*UNAVAILABLE):
            await bridge.database.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        observe("stopped")


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel until all have ended: before Python 3.12 `asyncio.wait_for` swallows a cancellation
    that comes in the same moment as what it waits for."""
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=0.2)
    await asyncio.gather(*tasks, return_exceptions=True)
