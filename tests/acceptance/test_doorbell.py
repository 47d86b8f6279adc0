"""A bridge that falls asleep during a commit still hears of it.

The safety poll is off, so a lost ring stays lost, and no other traffic hides the loss.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from support import pg
from support.bridge_process import Daemon, daemon, open_channels
from support.waiting import eventually
from support.wire_client import Wire, connect

pytestmark = pytest.mark.acceptance

ROUNDS = int(os.environ.get("ROWCAST_STRADDLE_ROUNDS", "120"))
SEED = 5
# seconds; far above a poll, and a lost ring would take for ever
BOUND = 3.0


@pytest.fixture
def sleepy(database: pg.Database) -> Iterator[Daemon]:
    """A bridge that sleeps whenever it can and wakes only when it is rung."""
    open_channels(database, "room:*")
    with daemon(database, safety_poll=0, idle_after=0, ring_rate=0, probe_interval=60) as bridge:
        yield bridge


@pytest.fixture
async def wire(sleepy: Daemon) -> AsyncIterator[Wire]:
    async with connect(sleepy.url) as connected:
        await connected.subscribe("room:1")
        yield connected


async def heard(wire: Wire, op: str) -> float:
    begun = time.monotonic()
    await wire.until(lambda frame: frame["op"] == op, BOUND)
    return time.monotonic() - begun


async def test_a_transaction_that_straddles_falling_asleep_is_heard(
    wire: Wire, sleepy: Daemon, database: pg.Database
) -> None:
    chance = random.Random(SEED)
    writer = await asyncpg.connect(database.url)
    worst = 0.0
    for round_ in range(ROUNDS):
        await writer.execute("begin")
        await asyncio.sleep(chance.random() * 0.005)
        await writer.execute("select rowcast.publish('room:1', 'e', $1)", f'{{"n": {round_}}}')
        await asyncio.sleep(chance.random() * 0.005)
        await writer.execute("commit")
        worst = max(worst, await heard(wire, "messages"))
    await writer.close()
    assert sleepy.metric("rowcast_sleeps_total") > ROUNDS / 4
    print(f"worst {worst * 1000:.1f} ms")


async def test_several_writers_at_once_are_all_heard(
    wire: Wire, sleepy: Daemon, database: pg.Database
) -> None:
    rounds, writers = ROUNDS // 4, 4
    sent: set[tuple[int, int]] = set()
    got: set[tuple[int, int]] = set()
    arrived = asyncio.Event()

    async def write(name: int) -> None:
        chance = random.Random(f"{SEED} {name}")
        connection = await asyncpg.connect(database.url)
        for number in range(rounds):
            await connection.execute("begin")
            await asyncio.sleep(chance.random() * 0.005)
            await connection.execute(
                "select rowcast.publish('room:1', 'e', jsonb_build_array($1::int, $2::int))",
                name,
                number,
            )
            await asyncio.sleep(chance.random() * 0.005)
            sent.add((name, number))
            await connection.execute("commit")
            # all wait for the last, so that no writer's ring covers for another's
            if number % 3 == 0:
                async with asyncio.timeout(BOUND):
                    while (name, number) not in got:
                        arrived.clear()
                        await arrived.wait()
        await connection.close()

    async def listen() -> None:
        while True:
            frame = await wire.until(lambda f: f["op"] == "messages", 60)
            for message in frame["messages"]:
                got.add((message["payload"][0], message["payload"][1]))
            arrived.set()

    listening = asyncio.create_task(listen())
    try:
        await asyncio.gather(*(write(name) for name in range(writers)))
        async with asyncio.timeout(BOUND):
            while got != sent:
                arrived.clear()
                await arrived.wait()
    finally:
        listening.cancel()


async def test_a_deletion_that_straddles_falling_asleep_is_heard(
    wire: Wire, database: pg.Database
) -> None:
    chance = random.Random(SEED)
    writer = await asyncpg.connect(database.url)
    ids = [
        await writer.fetchval("select rowcast.publish('room:quiet', 'e')")
        for _ in range(ROUNDS // 4)
    ]
    await wire.subscribe("room:quiet")
    for id_ in ids:
        await writer.execute("begin")
        await asyncio.sleep(chance.random() * 0.005)
        assert await writer.fetchval("select rowcast.delete_message($1)", id_)
        await asyncio.sleep(chance.random() * 0.005)
        await writer.execute("commit")
        await heard(wire, "deleted")
    await writer.close()


async def test_a_bridge_sleeps_during_an_unrelated_transaction(
    wire: Wire, sleepy: Daemon, database: pg.Database
) -> None:
    foreign = await asyncpg.connect(database.url)
    await foreign.execute(
        "begin; create table foreign_work (n int); insert into foreign_work values (1)"
    )
    before = sleepy.metric("rowcast_sleeps_total")
    writer = await asyncpg.connect(database.url)
    for number in range(5):
        await writer.execute("select rowcast.publish('room:1', 'e', $1)", str(number))
        await heard(wire, "messages")
    eventually(lambda: sleepy.metric("rowcast_sleeps_total") > before, what="it sleeps")
    await foreign.close()
    await writer.close()


async def test_an_open_writer_does_not_delay_other_messages(
    wire: Wire, database: pg.Database
) -> None:
    slow = await asyncpg.connect(database.url)
    await slow.execute("begin; select rowcast.publish('room:1', 'slow')")
    writer = await asyncpg.connect(database.url)
    for number in range(20):
        await writer.execute("select rowcast.publish('room:1', 'e', $1)", str(number))
        [message] = await wire.messages(1, BOUND)
        assert message["payload"] == number
    await slow.execute("commit")
    [message] = await wire.messages(1, BOUND)
    assert message["event"] == "slow"
    await slow.close()
    await writer.close()


async def test_a_ring_lost_with_the_listen_connection_is_not_needed(
    wire: Wire, database: pg.Database
) -> None:
    """A bridge that loses LISTEN while asleep wakes, and polls until it listens again."""
    writer = await asyncpg.connect(database.url)
    for number in range(12):
        await writer.execute(
            """select pg_terminate_backend(pid) from pg_stat_activity
               where usename = 'rowcast_bridge' and datname = current_database()
                 and query ~ '(probe|sleep_begin|sleep_end|open_writers)\\('"""
        )
        await writer.execute("select rowcast.publish('room:1', 'e', $1)", str(number))
        [message] = await wire.messages(1, BOUND)
        assert message["payload"] == number
    await writer.close()
