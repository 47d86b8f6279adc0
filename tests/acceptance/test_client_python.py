"""The Python client and a real bridge: crashes, later processes, lost answers, unusual JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from rowcast_client import Message, Realtime, RealtimeError, connect
from support import pg
from support.bridge_process import Daemon, daemon, open_channels, token
from support.flaky_network import flaky_network
from support.scripted_client import told
from support.scripted_server import soon

pytestmark = pytest.mark.acceptance


@pytest.fixture
def bridge(database: pg.Database) -> Iterator[Daemon]:
    open_channels(database, "chat:*")
    with daemon(database, buffer_bytes=65536, slow_grace=1) as running:
        yield running


def client(bridge: Daemon, **options: Any) -> Realtime:
    return connect(bridge.url, token=token("alice"), min_delay=0.02, **options)


def publish(database: pg.Database, *numbers: int, filler: str = "") -> None:
    """Commit messages from SQL."""
    with database.connect(database.owner_url) as connection:
        for n in numbers:
            connection.execute(
                "select rowcast.publish_as_system('chat:1', 'e', %s)",
                [Jsonb({"n": n, "filler": filler})],
            )


async def numbers(messages: AsyncIterator[Message], count: int) -> list[int]:
    return [(await soon(anext(messages))).payload["n"] for _ in range(count)]


async def test_it_subscribes_publishes_and_hears(bridge: Daemon) -> None:
    async with client(bridge) as realtime:
        channel = await realtime.channel("chat:1").subscribe()
        sent = await channel.send(event="said", payload={"text": "hé"})
        message = await soon(anext(aiter(channel)))
        assert (message.id, message.event, message.payload) == (sent, "said", {"text": "hé"})
        assert (message.sender_id, message.channel, message.type) == ("alice", "chat:1", "message")


async def test_bad_tokens_and_refused_channels_are_told_by_code(bridge: Daemon) -> None:
    for options in ({"token": "wrong"}, {"api_key": "wrong"}):
        with pytest.raises(RealtimeError) as caught:
            await soon(connect(bridge.url, **options).open())
        assert caught.value.code == "invalid_token"
    async with client(bridge) as realtime:
        for request in (realtime.channel("no").subscribe(), realtime.channel("no").send("e")):
            with pytest.raises(RealtimeError) as caught:
                await soon(request)
            assert (caught.value.code, caught.value.channel) == ("forbidden", "no")


async def test_a_killed_bridge_costs_no_message_and_repeats_none(
    database: pg.Database, bridge: Daemon
) -> None:
    async with client(bridge) as realtime:
        gone = await told(realtime, "disconnect")
        channel = await realtime.channel("chat:1").subscribe()
        messages = aiter(channel)
        publish(database, 1)
        assert await numbers(messages, 1) == [1]
        bridge.kill()
        await soon(gone.get())
        publish(database, 2, 3)
        sending = asyncio.create_task(channel.send("e", {"n": 4}))
        await asyncio.to_thread(bridge.start)
        await soon(sending)
        publish(database, 5)
        assert await numbers(messages, 4) == [2, 3, 4, 5]


async def test_a_later_process_resumes_an_earlier_one(
    database: pg.Database, bridge: Daemon
) -> None:
    """It continues from the cursor that the earlier process stored."""
    async with client(bridge) as realtime:
        channel = await realtime.channel("chat:1").subscribe()
        messages = aiter(channel)
        publish(database, 1, 2)
        assert await numbers(messages, 2) == [1, 2]
        taking = asyncio.create_task(anext(messages))  # it comes back for more: 2 is handled
        first = realtime.cursor
        async with asyncio.timeout(10):
            while realtime.cursor == first:
                publish(database, 0)
                await soon(taking)
                taking = asyncio.create_task(anext(messages))
        cursor = realtime.cursor
    taking.cancel()
    publish(database, 3, 4)
    async with client(bridge, after=cursor) as realtime:
        resyncs = await told(realtime.channel("chat:1"), "resync")
        channel = await realtime.channel("chat:1").subscribe()
        messages = aiter(channel)
        seen = [0]
        while seen[-1] == 0:  # of the zeros some may have come after the cursor
            seen = await numbers(messages, 1)
        assert seen + await numbers(messages, 1) == [3, 4]
        assert resyncs.empty()


async def test_a_publish_whose_answer_is_lost_lands_once(
    database: pg.Database, bridge: Daemon
) -> None:
    async with (
        flaky_network(bridge.url) as network,
        connect(network.url, token=token("alice"), min_delay=0.02) as realtime,
    ):
        channel = await realtime.channel("chat:1").subscribe()
        messages = aiter(channel)
        network.swallowing = True
        sending = asyncio.create_task(channel.send("e", {"n": 1}))
        await soon(network.swallowed.wait())  # it is committed, and the answer is lost
        network.cut()
        assert isinstance(await soon(sending), str)
        await channel.send("e", {"n": 2})
        assert await numbers(messages, 2) == [1, 2]
    with database.connect() as connection:
        (count,) = connection.execute("select count(*) from public.realtime_messages").fetchone()
    assert count == 2


async def test_a_consumer_slower_than_the_bridge_allows_loses_nothing(
    database: pg.Database, bridge: Daemon
) -> None:
    with database.connect() as connection:
        connection.execute("update rowcast.settings set replay_bytes = 1000000000")
    async with client(bridge, max_queue=10) as realtime:
        gone = await told(realtime, "disconnect")
        channel = await realtime.channel("chat:1").subscribe()
        messages = aiter(channel)
        count = 2000
        await asyncio.to_thread(publish, database, *range(count), filler="x" * 10_000)
        assert await numbers(messages, count) == list(range(count))
        await soon(gone.get())  # the bridge did not wait: the database was the buffer


async def test_json_that_python_cannot_read_comes_as_text(
    database: pg.Database, bridge: Daemon
) -> None:
    depth, digits = 3000, 5000
    async with client(bridge) as realtime:
        errors = await told(realtime, "error")
        channel = await realtime.channel("chat:1").subscribe()
        messages = aiter(channel)
        with database.connect(database.owner_url) as connection:
            for sql in (
                f"(repeat('[', {depth}) || repeat(']', {depth}))::jsonb",
                f"repeat('9', {digits})::jsonb",
                "'{\"n\": 1}'::jsonb",
            ):
                connection.execute(f"select rowcast.publish_as_system('chat:1', 'e', {sql})")
        deep, long, plain = [await soon(anext(messages)) for _ in range(3)]
        assert (deep.raw, deep.payload) == (True, "[" * depth + "]" * depth)
        assert (long.raw, long.payload) == (True, "9" * digits)
        assert (plain.raw, plain.payload) == (False, {"n": 1})
        assert [(await soon(errors.get())).code for _ in range(2)] == ["unreadable_payload"] * 2
