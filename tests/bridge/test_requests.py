"""Requests of a session through all parts of a bridge, with a database that answers at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from bridge.test_hub import KEY, Pipe, message, position
from rowcast.bridge.access import Access
from rowcast.bridge.auth import Identities, Verifier
from rowcast.bridge.deliver import Dispatcher
from rowcast.bridge.facts import DatabaseFacts, Facts
from rowcast.bridge.feed import Feed
from rowcast.bridge.hub import Hub
from rowcast.bridge.model import Caller
from rowcast.bridge.node import Node
from rowcast.bridge.opening import Openings
from rowcast.bridge.presence.audience import Audience
from rowcast.bridge.presence.members import Members
from rowcast.bridge.presence.presence import Presence
from rowcast.bridge.presence.updates import Updates
from rowcast.bridge.publish import Publishing
from rowcast.bridge.replay import Replays
from rowcast.bridge.requests import Requests
from rowcast.bridge.resume_handles import ResumeHandles
from rowcast.bridge.revocation import Revocation
from rowcast.bridge.session import Session
from rowcast.bridge.subscribe import Subscribing
from rowcast.config import Settings

FACTS = DatabaseFacts(cursor_key=KEY, caller_roles=("authenticated",), payload_limit=1000)


class Database:
    """Answers like `bridge.database.Database`, from memory."""

    def __init__(self) -> None:
        self.facts = Facts(FACTS)
        self.allows = True
        self.open = asyncio.Event()  # the policies answer
        self.open.set()
        self.published: list[tuple[Any, ...]] = []
        self.counts: dict[str, int] = {}
        self.emptied = asyncio.Event()
        self.members: list[Any] = []

    async def check_subscribe(
        self, _role: str, _claims: Sequence[str], channels: Sequence[str], **_: Any
    ) -> list[dict[str, Any]]:
        await self.open.wait()
        return [
            {"pair": n, "allowed": self.allows, "channel_id": None, "enabled": True, "error": None}
            for n, _ in enumerate(channels, 1)
        ]

    async def publish(self, _role: str, messages: Sequence[Any], **_: Any) -> list[UUID]:
        self.published += messages
        return [uuid4() for _ in messages]

    async def read_presence(self, _channels: Sequence[str]) -> list[Any]:
        return []

    async def write_audience(self, _node: UUID, channels: Sequence[str], counts: Any) -> bool:
        self.counts.update(zip(channels, counts, strict=True))
        if not any(self.counts.values()):
            self.emptied.set()
        return True

    async def write_presence(self, _node: UUID, rows: Sequence[Any], _limit: int) -> list[int]:
        self.members += rows
        return []


class Parts:
    """The parts of a bridge that a request passes, as `bridge.app` puts them together."""

    def __init__(self, settings: Settings) -> None:
        self.database: Any = Database()
        self.settings = settings
        self.hub = Hub(self.database.facts, lambda *ended: self.presence.leave(*ended))
        self.feed = Feed(self.database, None, settings)  # type: ignore[arg-type]
        node = Node(self.database, settings)
        self.audience = Audience(self.database, node)
        self.members = Members(self.database, node, settings)
        self.updates = Updates(self.database, self.hub, settings.lease)
        self.presence = Presence(settings, self.audience, self.members, self.updates)
        access = Access(self.database, settings)
        self.revocation = Revocation(settings, self.hub, self.feed, access)
        replays = Replays(self.database, settings, self.hub, self.feed)
        openings = Openings(settings, access, replays, ResumeHandles(self.database))
        facts = self.database.facts
        self.requests = Requests(
            Identities(settings, self.hub, Verifier(settings, facts), facts),
            Subscribing(self.hub, self.presence, self.revocation, openings),
            Publishing(self.hub, access, facts),
            self.presence,
        )
        self.dispatcher = Dispatcher(self.hub, self.presence, self.revocation, ())
        self.dispatcher.delivered_up_to(position(1))

    def client(self) -> tuple[Session, Pipe]:
        pipe = Pipe()
        session = Session(pipe, self.settings)
        self.hub.add(session)
        self.hub.identify(session, Caller("authenticated", "alice", "{}", 4e9))
        return session, pipe

    async def send(self, session: Session, **frame: Any) -> None:
        await self.requests.handle(session, msgspec.json.encode(frame))


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    parts = Parts(Settings())
    works: list[Callable[[], Coroutine[Any, Any, None]]] = [
        parts.audience.run, parts.members.run, parts.updates.run, parts.revocation.run,
    ]  # fmt: skip
    running = [asyncio.create_task(work()) for work in works]
    yield parts
    for task in running:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*running)


async def frames(pipe: Pipe, count: int) -> list[dict[str, Any]]:
    """Wait for so many frames."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            found += pipe.frames()
            await asyncio.sleep(0.01)
    return found


async def test_a_subscribe_is_counted_answered_and_followed_by_what_was_held(parts: Parts) -> None:
    session, pipe = parts.client()
    parts.database.open.clear()
    await parts.send(session, op="subscribe", ref=1, channel="room")
    await parts.dispatcher.deliver([message("1")], [])
    parts.dispatcher.delivered_up_to(position(2))
    assert not pipe.data
    parts.database.open.set()
    answer, held, *_ = await frames(pipe, 2)
    assert (answer["op"], answer["ref"]) == ("ok", 1)
    assert [m["payload"] for m in held["messages"]] == [1]
    assert parts.database.counts == {"room": 1}
    await parts.send(session, op="unsubscribe", ref=2, channel="room")
    assert (await frames(pipe, 1))[0]["ref"] == 2
    await asyncio.wait_for(parts.database.emptied.wait(), 10)


async def test_requests_behind_a_pending_subscribe_are_done_after_it(parts: Parts) -> None:
    """A publish by name needs no subscription, so it does not wait."""
    session, pipe = parts.client()
    parts.database.open.clear()
    await parts.send(session, op="subscribe", ref=1, channel="room")
    await parts.send(session, op="track", ref=2, channel="room", state={"n": 1})
    await parts.send(session, op="publish", ref=3, channel="room", event="e", payload=1)
    assert [frame["ref"] for frame in await frames(pipe, 1)] == [3]
    assert len(parts.database.published) == 1
    assert session.pending == 2
    assert not parts.database.members
    parts.database.open.set()
    assert [frame["ref"] for frame in await frames(pipe, 2) if "ref" in frame] == [1, 2]
    assert [row[:3] for row in parts.database.members] == [("room", "alice", '{"n":1}')]
    assert session.pending == 0


async def test_a_refused_subscribe_refuses_what_was_sent_behind_it(parts: Parts) -> None:
    session, pipe = parts.client()
    parts.database.allows = False
    await parts.send(session, op="subscribe", ref=1, channel="room")
    await parts.send(session, op="track", ref=2, channel="room", state={})
    found = await frames(pipe, 2)
    assert [(f["op"], f["ref"], f["code"]) for f in found] == [
        ("error", 1, "forbidden"),
        ("error", 2, "forbidden"),
    ]
    assert not session.subscriptions
    assert session.pending == 0


async def test_a_revoked_subscription_is_closed_and_hears_nothing_after_it(parts: Parts) -> None:
    session, pipe = parts.client()
    await parts.send(session, op="subscribe", ref=1, channel="room")
    await frames(pipe, 1)
    parts.database.allows = False
    signal = ("recheck", {"of": [{"user": "alice"}]})
    await parts.dispatcher.deliver([message("1")], [signal])
    parts.dispatcher.delivered_up_to(position(2))
    [closed] = await frames(pipe, 1)
    assert closed["op"] == "closed"
    assert not session.subscriptions
    await parts.dispatcher.deliver([message("2")], [])
    assert not pipe.data
