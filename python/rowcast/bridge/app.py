"""The composition root: the only module that constructs, starts and ends everything."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from typing import Any

import asyncpg
from aiohttp import web

from rowcast.config import Settings
from rowcast.errors import ConfigError
from rowcast.observe import configure, observe
from rowcast.postgres.diagnose import connection_error

from .access import Access
from .auth import Identities, Verifier
from .census import Census
from .database import UNAVAILABLE, Database, UnfitError
from .deliver import Dispatcher
from .doorbell import Doorbell
from .feed import Feed
from .housekeeping import Housekeeping, settle_memory
from .http.app import build
from .http.websocket import Sockets
from .hub import Hub
from .node import Node
from .opening import Openings
from .phoenix.door import Broadcasts, PhoenixDoor
from .port import BACKLOG, open_port, url_of
from .presence.audience import Audience
from .presence.members import Members
from .presence.presence import Presence
from .presence.updates import Updates
from .publish import Publishing
from .replay import Replays
from .requests import Requests
from .rest.calls import Calls
from .rest.server import Rest
from .resume_handles import ResumeHandles
from .revocation import Revocation
from .session import Session
from .socketio.door import SocketIODoor
from .subscribe import Subscribing
from .subscription import Subscription
from .webhooks.egress import Guard, Sender
from .webhooks.outbox import Outbox

__all__ = ["serve"]


class _Bridge:
    """All parts of one bridge."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = database = Database(settings)
        facts = database.facts
        self.hub = hub = Hub(facts, self._on_unsubscribed)
        self.doorbell = Doorbell(database, settings)
        self.feed = feed = Feed(database, self.doorbell, settings)
        self.housekeeping = Housekeeping(settings, database, hub, feed)
        self.node = Node(database, settings)

        self.audience = Audience(database, self.node)
        self.members = Members(database, self.node, settings)
        self.updates = Updates(database, hub, settings.lease)
        self.presence = Presence(settings, self.audience, self.members, self.updates)

        verifier = Verifier(settings, facts)
        access = Access(database, settings)
        self.revocation = Revocation(settings, hub, feed, access)
        self.handles = ResumeHandles(database)
        replays = Replays(database, settings, hub, feed)
        openings = Openings(settings, access, replays, self.handles)
        subscribing = Subscribing(hub, self.presence, self.revocation, openings)
        requests = Requests(
            Identities(settings, hub, verifier, facts),
            subscribing,
            Publishing(hub, access, facts),
            self.presence,
        )

        sender = Sender(Guard(settings.webhook_allow_cidrs), settings.webhook_timeout)
        self.outbox = Outbox(database, sender, settings)
        self.census = Census(database, hub, self.node)
        self.dispatcher = Dispatcher(
            hub, self.presence, self.revocation, (self.outbox, self.census)
        )

        self.sockets = Sockets(settings, hub, requests)
        phoenix = PhoenixDoor(self.sockets, verifier, self.handles)
        calls = Calls(database, access)
        rest = Rest(settings, verifier, calls)
        broadcasts = Broadcasts(settings, rest, calls)
        socketio = SocketIODoor(settings, self.sockets, requests)
        self.doors = (rest, self.sockets, phoenix, broadcasts, socketio)

    def _on_unsubscribed(self, session: Session, subscription: Subscription) -> None:
        # The hub is below presence, which asks it for the subscribers of a channel.
        self.presence.leave(session, subscription)

    def start(self) -> list[asyncio.Task[None]]:
        """Start everything that runs for ever."""
        return [
            asyncio.create_task(work)
            for work in (
                self.feed.run(self.dispatcher),
                self.doorbell.run(),
                self.revocation.run(),
                self.housekeeping.upkeep(),
                self.outbox.run(),
                self.housekeeping.give_cursors(),
                self.node.run(on_lease_lost=self.presence.write_again),
                self.audience.run(),
                self.members.run(),
                self.updates.run(),
                self.handles.run(),
                self.census.run(),
            )
        ]

    async def check(self) -> None:
        """Refuse to run on a database that would break a promise; wait for one that is away.

        Raises:
            ConfigError: a login or the database is not fit.
        """
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
                why = connection_error(error, url, named)
                if not (why.temporary and isinstance(error, UNAVAILABLE)):
                    raise ConfigError(why.sentence) from error
                observe("feed_lost", error=why.sentence)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 5.0)

    async def drain(self) -> None:
        """Send all clients away, and finish work that would be lost with them."""
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
        listening = open_port(settings)
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
            running = bridge.start()
            tasks += running
            up = asyncio.create_task(bridge.feed.up.wait())
            tasks.append(up)
            await asyncio.wait({up, stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
            if up.done():
                settle_memory()
                observe("started", url=url)
                if ready is not None:
                    ready(url)
                await asyncio.wait({stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
            for task in running:
                if task.done():
                    task.result()  # they run for ever: raise the error that ended it
        if settings.reuse_port == "yes":
            await site.stop()  # new clients go to the other bridges on this port
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
