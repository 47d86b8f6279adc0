"""Requests sent without waiting for answers: executed in order, each answered once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest

from support import pg
from support.bridge_process import Daemon, open_bridge
from support.waiting import eventually
from support.wire_client import Frame, Wire, connect

pytestmark = pytest.mark.acceptance

MAX_PENDING = 20
SLOW = """
insert into realtime_channels (pattern) values ('slow:*'), ('private:*');
create policy slow on realtime_channels as restrictive for select to authenticated
    using (case when pattern = 'slow:*' then pg_sleep(60) is null else pattern <> 'private:*' end);
"""


@pytest.fixture(scope="module")
def bridge(module_database: pg.Database) -> Iterator[Daemon]:
    with open_bridge(module_database, SLOW, query_timeout=2, max_pending=MAX_PENDING) as bridge:
        yield bridge


def state(database: pg.Database, room: str) -> list[Any]:
    with database.connect() as connection:
        found = connection.execute(
            "select state from rowcast.presence_state(%s) order by key", [room]
        )
        return [row[0] for row in found]


def audience(database: pg.Database, room: str) -> int:
    with database.connect() as connection:
        (found,) = connection.execute("select rowcast.audience(%s)", [room]).fetchall()[0]
        return int(found)


async def send(wire: Wire, *frames: Frame) -> list[str]:
    """Send all frames at once; return their refs."""
    return [await wire.send(**frame) for frame in frames]


async def answers(wire: Wire, refs: list[str]) -> list[tuple[str, str]]:
    """Return each answer as (ref, "ok" or its code), in the order of arrival."""
    found = []
    while len(found) < len(refs):
        frame = await wire.until(lambda f: f["op"] in ("ok", "error"))
        found.append((frame["ref"], frame.get("code", "ok")))
    assert sorted(ref for ref, _ in found) == sorted(refs)
    return found


def sub(channel: str) -> Frame:
    return {"op": "subscribe", "channel": channel}


def unsub(channel: str) -> Frame:
    return {"op": "unsubscribe", "channel": channel}


def track(channel: str, n: int) -> Frame:
    return {"op": "track", "channel": channel, "state": {"n": n}}


def untrack(channel: str) -> Frame:
    return {"op": "untrack", "channel": channel}


async def test_a_track_behind_a_subscribe_succeeds_with_it(
    bridge: Daemon, module_database: pg.Database, room: str
) -> None:
    async with connect(bridge.url) as wire:
        refs = await send(wire, sub(room), track(room, 1))
        assert await answers(wire, refs) == [(refs[0], "ok"), (refs[1], "ok")]
        assert state(module_database, room) == [{"n": 1}]


@pytest.mark.parametrize(
    ("channel", "code"), [("private:1", "forbidden"), ("slow:1", "unavailable"), ("a b", "invalid")]
)
async def test_requests_behind_a_refused_subscribe_are_refused(
    channel: str, code: str, bridge: Daemon
) -> None:
    async with connect(bridge.url) as wire:
        refs = await send(wire, sub(channel), track(channel, 1), untrack(channel))
        found = await answers(wire, refs)
        assert [ref for ref, _ in found] == refs
        assert {said.partition("_")[0] for _, said in found} == {code}
        assert await wire.quiet() == []


async def test_the_order_of_tracks_and_untracks_is_kept(
    bridge: Daemon, module_database: pg.Database, room: str
) -> None:
    async with connect(bridge.url) as wire:
        refs = await send(
            wire, sub(room), track(room, 1), untrack(room), track(room, 2), track(room, 3)
        )
        assert {code for _, code in await answers(wire, refs)} == {"ok"}
        assert state(module_database, room) == [{"n": 3}]
        refs = await send(wire, sub(room), track(room, 4), untrack(room))
        assert {code for _, code in await answers(wire, refs)} == {"ok"}
        eventually(lambda: state(module_database, room) == [], what="untracked")


async def test_an_unsubscribe_ends_all_requests_sent_before_it(
    bridge: Daemon, module_database: pg.Database, room: str
) -> None:
    async with connect(bridge.url) as wire:
        refs = await send(
            wire, sub(room), track(room, 1), unsub(room), sub(room), track(room, 2), unsub("room:x")
        )
        found = dict(await answers(wire, refs))
        given = [found[ref] for ref in refs]
        assert given == ["not_subscribed", "not_subscribed", "ok", "ok", "ok", "not_subscribed"]
        assert state(module_database, room) == [{"n": 2}]
        await wire.publish(room, "heard")
        assert [m["payload"] for m in await wire.messages(1)] == ["heard"]


async def test_an_unsubscribe_and_what_it_ends_are_answered_in_order(bridge: Daemon) -> None:
    """Without waiting for the policies, which would take two seconds."""
    async with connect(bridge.url) as wire:
        refs = await send(wire, sub("slow:2"), track("slow:2", 1), unsub("slow:2"))
        async with asyncio.timeout(1.5):
            assert await answers(wire, refs) == [
                (refs[0], "not_subscribed"), (refs[1], "not_subscribed"), (refs[2], "ok"),
            ]  # fmt: skip
        late = await send(wire, sub("slow:2"))
        assert await answers(wire, late) == [(late[0], "unavailable")]
        assert await wire.quiet() == []  # the end of the first is not told twice


async def test_a_second_subscribe_does_not_affect_waiting_requests(
    bridge: Daemon, module_database: pg.Database, room: str
) -> None:
    async with connect(bridge.url) as wire:
        refs = await send(wire, sub(room), track(room, 1), sub(room), track(room, 2))
        found = dict(await answers(wire, refs))
        assert [found[ref] for ref in refs] == ["ok", "ok", "rate_limited", "ok"]
        assert state(module_database, room) == [{"n": 2}]


async def test_waiting_requests_are_limited(bridge: Daemon) -> None:
    """Invalid requests are answered at once."""
    async with connect(bridge.url) as wire:
        refs = await send(wire, sub("slow:3"), *(track("slow:3", n) for n in range(50)))
        big = await send(wire, {"op": "track", "channel": "slow:3", "state": {"x": "y" * 100_000}})
        found = dict(await answers(wire, refs + big))
        said = [found[ref] for ref in refs]
        assert said.count("unavailable") == MAX_PENDING
        assert said.count("rate_limited") == 51 - MAX_PENDING
        assert found[big[0]] == "rate_limited"
        # and the whole allowance is returned
        refs = await send(wire, sub("slow:4"), *(track("slow:4", n) for n in range(10)), big_one())
        found = dict(await answers(wire, refs))
        assert [found[ref] for ref in refs] == ["unavailable"] * 11 + ["payload_too_large"]


def big_one() -> Frame:
    return {"op": "track", "channel": "slow:4", "state": {"x": "y" * 100_000}}


async def test_a_publish_is_heard_between_subscribe_and_unsubscribe(
    bridge: Daemon, room: str
) -> None:
    def said(n: int) -> Frame:
        return {"op": "publish", "channel": room, "event": "e", "payload": n}

    async with connect(bridge.url) as wire:
        refs = await send(wire, sub(room), said(1))
        assert {code for _, code in await answers(wire, refs)} == {"ok"}
        assert [m["payload"] for m in await wire.messages(1)] == [1]
        refs = await send(wire, unsub(room), said(2))
        assert await answers(wire, refs) == [(ref, "ok") for ref in refs]
        assert [f for f in await wire.quiet() if f["op"] == "messages"] == []


async def test_a_client_gone_before_its_answer_leaves_no_trace(
    bridge: Daemon, module_database: pg.Database, room: str
) -> None:
    for goodbye in (True, False) * 10:
        async with connect(bridge.url) as wire:
            await send(wire, sub(room), track(room, 1), unsub(room), sub(room), track(room, 2))
            if goodbye:
                await wire.ws.close()
            else:
                wire.cut()
    eventually(
        lambda: (state(module_database, room), audience(module_database, room)) == ([], 0),
        timeout=30,
        what="audience and members are empty",
    )


async def test_each_random_request_is_answered_once(
    bridge: Daemon, module_database: pg.Database, room: str
) -> None:
    choice = random.Random(7)
    for _ in range(30):
        frames, subscribed, shown = [], False, None
        for n in range(choice.randrange(2, 12)):
            frame = choice.choice(
                [sub(room), sub(room), unsub(room), track(room, n), untrack(room)]
            )
            frames.append(frame)
            match frame["op"]:
                case "subscribe":
                    subscribed = True
                case "unsubscribe":
                    subscribed, shown = False, None
                case "track" if subscribed:
                    shown = n
                case "untrack":
                    shown = None
        async with connect(bridge.url) as wire:
            refs = await send(wire, *frames)
            await answers(wire, refs)
            assert [f for f in await wire.quiet() if f["op"] in ("ok", "error")] == [], frames
            wanted = [] if shown is None else [{"n": shown}]
            eventually(lambda want=wanted: state(module_database, room) == want, what=str(frames))
            again = await wire.ask(**unsub(room))
            assert again["op"] == ("ok" if subscribed else "error"), frames
