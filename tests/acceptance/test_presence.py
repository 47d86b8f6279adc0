"""Presence on real bridges: the members of a channel, their state, and when they leave."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from support import pg
from support.bridge_process import Daemon, daemon, open_channels, token
from support.wire_client import Frame, Wire, connect

pytestmark = pytest.mark.acceptance

ROOM = "room:1"
QUICK = {"lease": 2, "presence_grace": 1.5}


@pytest.fixture
def bridges(database: pg.Database) -> Iterator[tuple[Daemon, Daemon]]:
    open_channels(database, "room:*", "other:*")
    with daemon(database, **QUICK) as one, daemon(database, **QUICK) as two:
        yield one, two


class Watch:
    """The members of a channel as one client is told about them."""

    def __init__(self, wire: Wire, present: list[dict[str, Any]]) -> None:
        self.wire = wire
        self.present = {entry["key"]: entry["presence"] for entry in present}
        self.events: list[tuple[str, str]] = []

    def take(self, frame: Frame) -> None:
        if frame.get("full"):
            self.present.clear()
        for event in frame["events"]:
            self.events.append((event["type"], event["key"]))
            if event["type"] == "leave":
                assert self.present.pop(event["key"]) == event["presence"]
            else:
                assert (event["key"] in self.present) == (event["type"] == "update")
                self.present[event["key"]] = event["presence"]

    async def until(self, present: dict[str, Any], within: float = 15) -> None:
        """Read until exactly these members are present."""
        deadline = time.monotonic() + within
        while self.present != present:
            left = deadline - time.monotonic()
            assert left > 0, (self.present, self.events)
            self.take(await self.wire.until(lambda f: f["op"] == "presence", left))

    async def settle(self, seconds: float) -> None:
        """Collect frames for a time in which an event must not happen."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(AssertionError):
                self.take(await self.wire.until(lambda f: f["op"] == "presence", left))


@contextlib.asynccontextmanager
async def user(bridge: Daemon, sub: str | None, **state: Any) -> AsyncIterator[Wire]:
    """Connect a client to the room; with a state it is also a member."""
    bearer = token(sub) if sub else token(None, "anon")
    async with connect(bridge.url, bearer) as wire:
        await wire.subscribe(ROOM)
        if state:
            await track(wire, **state)
        yield wire


@contextlib.asynccontextmanager
async def watch(bridge: Daemon) -> AsyncIterator[Watch]:
    async with connect(bridge.url, token("watcher")) as wire:
        yield Watch(wire, (await wire.subscribe(ROOM))["presence"])


async def track(wire: Wire, **state: Any) -> None:
    answer = await wire.ask(op="track", channel=ROOM, state=state)
    assert answer["op"] == "ok", answer


def in_sql(database: pg.Database) -> dict[str, tuple[Any, int]]:
    with database.connect() as connection:
        rows = connection.execute(
            "select key, state, sessions from rowcast.presence_state(%s)", [ROOM]
        )
        return {key: (state, sessions) for key, state, sessions in rows}


async def test_members_on_two_bridges_see_each_other(
    bridges: tuple[Daemon, Daemon], database: pg.Database
) -> None:
    """They see joins, changes of state and leaves."""
    one, two = bridges
    async with watch(one) as here, watch(two) as there:
        assert here.present == {}
        async with user(one, "alice", x=1) as alice, user(two, "bob", x=2) as bob:
            for watching in (here, there):
                await watching.until({"alice": {"x": 1}, "bob": {"x": 2}})
            assert in_sql(database) == {"alice": ({"x": 1}, 1), "bob": ({"x": 2}, 1)}
            await track(alice, x=3)
            for watching in (here, there):
                await watching.until({"alice": {"x": 3}, "bob": {"x": 2}})
                assert watching.events[-1] == ("update", "alice")
            async with watch(two) as late:
                assert late.present == {"alice": {"x": 3}, "bob": {"x": 2}}
            assert (await bob.ask(op="untrack", channel=ROOM))["op"] == "ok"
            assert (await alice.ask(op="unsubscribe", channel=ROOM))["op"] == "ok"
            for watching in (here, there):
                await watching.until({}, within=1)
                assert watching.events.count(("leave", "alice")) == 1
    assert in_sql(database) == {}


async def test_tabs_are_one_member_with_the_newest_state(
    bridges: tuple[Daemon, Daemon], database: pg.Database
) -> None:
    one, two = bridges
    async with watch(two) as watching:
        async with user(one, "alice", tab=1) as first:
            await watching.until({"alice": {"tab": 1}})
            async with user(one, "alice", tab=2), user(two, "alice", tab=3) as third:
                await watching.until({"alice": {"tab": 3}})
                assert in_sql(database) == {"alice": ({"tab": 3}, 3)}
                assert (await third.ask(op="untrack", channel=ROOM))["op"] == "ok"
                await watching.until({"alice": {"tab": 2}})
                await track(first, tab=4)
                await watching.until({"alice": {"tab": 4}})
        assert {kind for kind, _ in watching.events} == {"join", "update"}
        await watching.until({})


async def test_anonymous_callers_are_members_by_session(bridges: tuple[Daemon, Daemon]) -> None:
    one, two = bridges
    async with watch(one) as watching, user(two, None, n=1) as a, user(two, None, n=2) as b:
        keys = [wire.welcome["session"] for wire in (a, b)]
        await watching.until({keys[0]: {"n": 1}, keys[1]: {"n": 2}})
        a.cut()
        # a session cannot reconnect as itself, so there is no grace time
        await watching.until({keys[1]: {"n": 2}}, within=1.4)
        auth = await b.ask(op="auth", token=token("bob"))
        assert auth["op"] == "ok"
        await watching.until({"bob": {"n": 2}})


async def test_a_quick_reconnect_is_invisible_to_others(bridges: tuple[Daemon, Daemon]) -> None:
    one, two = bridges
    async with watch(one) as watching:
        async with user(one, "alice", x=1) as alice:
            await watching.until({"alice": {"x": 1}})
            alice.cut()
            for bridge in (one, two):
                async with user(bridge, "alice", x=1) as again:
                    await watching.settle(QUICK["presence_grace"] + 0.5)
                    again.cut()
        assert watching.events == [("join", "alice")]
        await watching.until({})
        assert watching.events == [("join", "alice"), ("leave", "alice")]


async def test_a_closed_client_has_left_at_once(bridges: tuple[Daemon, Daemon]) -> None:
    async with watch(bridges[0]) as watching, user(bridges[1], "alice", x=1) as alice:
        await watching.until({"alice": {"x": 1}})
        await alice.ws.close(code=1000)
        await watching.until({}, within=1.4)


async def test_members_of_a_killed_bridge_leave_with_its_lease(
    bridges: tuple[Daemon, Daemon], database: pg.Database
) -> None:
    one, two = bridges
    async with watch(one) as watching, user(two, "alice", x=1), user(two, "bob", x=1):
        await watching.until({"alice": {"x": 1}, "bob": {"x": 1}})
        killed = time.monotonic()
        two.kill()
        async with user(one, "alice", x=1):  # reconnected to another bridge in time
            await watching.until({"alice": {"x": 1}})
            assert time.monotonic() - killed < QUICK["lease"] + 1
            assert watching.events[-1] == ("leave", "bob")
            assert ("leave", "alice") not in watching.events
            assert in_sql(database).keys() == {"alice"}


async def test_a_stopped_bridge_leaves_members_time_to_reconnect(
    bridges: tuple[Daemon, Daemon],
) -> None:
    one, two = bridges
    async with watch(one) as watching, user(two, "alice", x=1), user(two, "bob", x=1):
        await watching.until({"alice": {"x": 1}, "bob": {"x": 1}})
        await asyncio.to_thread(two.terminate)
        async with user(one, "alice", x=1):
            await watching.until({"alice": {"x": 1}})
        assert ("leave", "alice") not in watching.events


async def test_a_bridge_that_lost_its_lease_writes_its_members_again(
    bridges: tuple[Daemon, Daemon],
) -> None:
    one, two = bridges
    async with watch(one) as watching, user(two, "alice", x=1):
        await watching.until({"alice": {"x": 1}})
        two.signal(signal.SIGSTOP)
        await watching.until({})
        two.signal(signal.SIGCONT)
        await watching.until({"alice": {"x": 1}})
        assert "lease_lost" in two.log


async def test_a_client_cannot_be_another_member(
    bridges: tuple[Daemon, Daemon], database: pg.Database
) -> None:
    async with watch(bridges[0]) as watching, user(bridges[0], "mallory") as mallory:
        for spoof in (
            {"key": "alice"},
            {"sub": "alice"},
            {"session": "alice"},
            {"user": "alice"},
            {"ref": "r", "key": "alice", "type": "leave"},
        ):
            answer = await mallory.ask(op="track", channel=ROOM, state={"key": "alice"}, **spoof)
            assert answer["op"] == "ok"
        await watching.until({"mallory": {"key": "alice"}})
        assert in_sql(database).keys() == {"mallory"}


async def test_only_subscribers_can_be_members(bridges: tuple[Daemon, Daemon]) -> None:
    async with connect(bridges[0].url) as wire:
        for channel in (ROOM, "nothing:here"):
            answer = await wire.ask(op="track", channel=channel, state={"x": 1})
            assert (answer["op"], answer["code"]) == ("error", "not_subscribed")
        refused = await wire.ask(op="subscribe", channel="nothing:here")
        assert refused["code"] == "forbidden"
        answer = await wire.ask(op="track", channel="nothing:here", state={"x": 1})
        assert answer["code"] == "not_subscribed"
        assert (await wire.ask(op="untrack", channel=ROOM))["op"] == "ok"
    async with connect(bridges[0].url, "") as anonymous:
        answer = await anonymous.ask(op="track", channel=ROOM, state={"x": 1})
        assert answer["code"] == "unauthorized"
