"""The audience of a message: the number of sessions subscribed when it is published."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from support import pg
from support.bridge_process import Daemon, daemon, open_channels, token
from support.waiting import eventually
from support.wire_client import Wire, connect

pytestmark = pytest.mark.acceptance

QUICK = {"lease": 2, "presence_grace": 1}
PUBLISH = "insert into realtime_messages (channel_name, event_name) values (%s, 'e')"
NODE = "00000000-0000-0000-0000-000000000001"
STAMPED = PUBLISH + " returning ws_audience_count"


@pytest.fixture
def bridges(database: pg.Database) -> Iterator[tuple[Daemon, Daemon]]:
    open_channels(database, "room:*", "chat:*")
    with daemon(database, **QUICK) as one, daemon(database, **QUICK) as two:
        yield one, two


def stamped(connection: psycopg.Connection[Any], channel: str) -> int:
    row = connection.execute(STAMPED, [channel]).fetchone()
    assert row is not None
    return int(row[0])


def becomes(connection: psycopg.Connection[Any], channel: str, count: int) -> None:
    eventually(lambda: stamped(connection, channel) == count, what=f"{channel} has {count}")


async def test_a_subscribe_counts_at_its_answer(
    bridges: tuple[Daemon, Daemon], db: psycopg.Connection[Any]
) -> None:
    """A leave stops counting soon after."""
    async with contextlib.AsyncExitStack() as stack:
        assert stamped(db, "room:1") == 0
        for count in range(1, 21):
            wire = await stack.enter_async_context(connect(bridges[count % 2].url))
            await wire.subscribe("room:1")
            assert stamped(db, "room:1") == count
            await wire.subscribe("room:1")  # the same subscription again
            assert stamped(db, "room:1") == count
        await wire.subscribe("room:2")
        assert (stamped(db, "room:1"), stamped(db, "room:2"), stamped(db, "room:3")) == (20, 1, 0)
        await wire.ask(op="unsubscribe", channel="room:1")
        becomes(db, "room:1", 19)
    becomes(db, "room:1", 0)
    assert db.execute("select count(*) from rowcast.audience_total").fetchone() == (0,)


async def test_a_refused_client_is_never_counted(
    bridges: tuple[Daemon, Daemon], db: psycopg.Connection[Any]
) -> None:
    db.execute("update realtime_channels set enabled = false where pattern = 'chat:*'")
    async with connect(bridges[0].url) as wire:
        for _ in range(5):
            assert (await wire.ask(op="subscribe", channel="chat:1"))["code"] == "forbidden"
            assert db.execute("select count(*) from rowcast.audience").fetchone() == (0,)


async def test_wildcard_subscribers_count_where_the_channel_allows_it(
    database: pg.Database, db: psycopg.Connection[Any]
) -> None:
    """Bridges write counts under the subscribed name, which may be a pattern."""
    open_channels(database, "room:*", "chat:*")
    db.execute("update realtime_channels set wildcard = true where pattern = 'room:*'")
    db.execute("select rowcast.node_beat(%s, '1 minute')", [NODE])
    db.execute(
        "select rowcast.audience_write(%s, '{room:*,room:1,chat:*,chat:1}', '{10,1,100,2}')", [NODE]
    )
    assert [stamped(db, name) for name in ("room:1", "room:2", "chat:1", "chat:2")] == [
        11,
        10,
        2,
        0,
    ]
    assert db.execute(
        "select rowcast.audience('room:1'), rowcast.audience('chat:1')"
    ).fetchone() == (
        11,
        2,
    )


async def churn(wire: Wire, names: list[str], turns: int, seed: int) -> set[str]:
    """Subscribe and unsubscribe at random; return the names still subscribed."""
    chance = random.Random(seed)
    joined: set[str] = set()
    for _ in range(turns):
        name = chance.choice(names)
        op = "unsubscribe" if name in joined else "subscribe"
        assert (await wire.ask(op=op, channel=name, within=60))["op"] == "ok"
        joined ^= {name}
    return joined


async def test_counts_are_exact_after_churn_on_two_bridges(
    bridges: tuple[Daemon, Daemon], db: psycopg.Connection[Any]
) -> None:
    """And the churn costs few statements."""
    names = [f"room:{n}" for n in range(5)]
    calls = (
        "select coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)"
        " from pg_stat_user_tables where relname = 'audience_total'"
    )
    async with contextlib.AsyncExitStack() as stack:
        wires = [
            await stack.enter_async_context(connect(bridges[n % 2].url, token(f"user{n}")))
            for n in range(40)
        ]
        began = time.monotonic()
        turns = 50
        joined = await asyncio.gather(
            *(churn(wire, names, turns, seed) for seed, wire in enumerate(wires))
        )
        took = time.monotonic() - began
        for name in names:
            becomes(db, name, sum(name in its for its in joined))
        written = db.execute(calls).fetchone()
        assert written is not None
        # at most 20 flushes a second per bridge, of five names each; not one per change
        assert written[0] < 2 * 5 * (took / 0.05 + 10)
    for name in names:
        becomes(db, name, 0)


async def test_a_killed_bridge_stops_counting_within_its_lease(
    bridges: tuple[Daemon, Daemon], db: psycopg.Connection[Any]
) -> None:
    one, two = bridges
    async with connect(one.url) as staying, connect(two.url) as going:
        await staying.subscribe("room:1")
        await going.subscribe("room:1")
        assert stamped(db, "room:1") == 2
        two.kill()
        killed = time.monotonic()
        becomes(db, "room:1", 1)
        assert time.monotonic() - killed < QUICK["lease"] + 0.5
        one.kill()
        killed = time.monotonic()
        becomes(db, "room:1", 0)  # no process is left to clear it away
        assert time.monotonic() - killed < QUICK["lease"] + 0.5


async def test_a_stopped_bridge_stops_counting_before_it_has_ended(
    bridges: tuple[Daemon, Daemon], db: psycopg.Connection[Any]
) -> None:
    async with connect(bridges[1].url) as going:
        await going.subscribe("room:1")
        assert stamped(db, "room:1") == 1
        assert await asyncio.to_thread(bridges[1].terminate) == 0
        assert stamped(db, "room:1") == 0
        assert db.execute("select count(*) from rowcast.node").fetchone() == (1,)


async def test_a_revoked_or_vanished_client_is_not_counted(
    database: pg.Database, db: psycopg.Connection[Any]
) -> None:
    open_channels(database, "room:*")
    with daemon(database, **QUICK) as bridge:
        async with connect(bridge.url) as first, connect(bridge.url) as second:
            await first.subscribe("room:1")
            await second.subscribe("room:1")
            second.cut()
            becomes(db, "room:1", 1)
            with database.connect(database.owner_url) as owner:
                for (name,) in owner.execute(
                    "select polname from pg_policy where polrelid = 'realtime_channels'::regclass"
                ).fetchall():
                    owner.execute(f'drop policy "{name}" on realtime_channels')
            assert (await first.ask(op="auth", token=token(more=1)))["op"] == "ok"
            await first.until(lambda f: f["op"] == "closed")
            becomes(db, "room:1", 0)


@pytest.mark.slow
async def test_counts_and_presence_return_after_a_crash_of_postgres(
    own_server: pg.OwnServer,
) -> None:
    """All bridges write their audience and members again."""
    with own_server.database() as database:
        open_channels(database, "room:*")
        with daemon(database, **QUICK) as one, daemon(database, **QUICK) as two:
            async with contextlib.AsyncExitStack() as stack:
                wires = [
                    await stack.enter_async_context(connect(bridge.url, token(sub)))
                    for bridge, sub in ((one, "ann"), (two, "bob"), (one, "eve"), (two, "watcher"))
                ]
                for wire in wires:
                    await wire.subscribe("room:1")
                for wire in wires[:3]:
                    await wire.ask(op="track", channel="room:1", state={"here": True})
                await asyncio.to_thread(own_server.crash)
                with database.connect() as db:
                    becomes(db, "room:1", 4)
                    present = (
                        "select array_agg(key order by key) from rowcast.presence_state('room:1')"
                    )
                    eventually(lambda: db.execute(present).fetchone() == (["ann", "bob", "eve"],))
                    # longer than the lease, so by then every member has been confirmed
                    with contextlib.suppress(AssertionError):
                        await wires[3].until(lambda _: False, QUICK["lease"] + 1)
                    leaves = [
                        event
                        for frame in [f for w in wires for f in await w.quiet()]
                        if frame["op"] == "presence"
                        for event in frame["events"]
                        if event["type"] == "leave"
                    ]
                    assert leaves == []
                    answer = await wires[0].ask(op="track", channel="room:1", state={"n": 2})
                    assert answer["op"] == "ok"
                    await wires[3].until(
                        lambda f: f["op"] == "presence" and f["events"][0]["key"] == "ann"
                    )
                    becomes(db, "room:1", 4)
