"""Slow consumers of the Python client: backpressure, and a cursor of handled messages only."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest

from rowcast_client import Message, RealtimeError
from support.scripted_client import Start, client, ids, opened, settled, subscribed, told
from support.scripted_server import ScriptedServer, soon

pytestmark = pytest.mark.acceptance


async def test_a_slow_consumer_stops_the_reading_and_loses_nothing(
    scripted_server: ScriptedServer,
) -> None:
    realtime = client(scripted_server, max_queue=50)
    conversation = await opened(scripted_server, realtime)
    channel = realtime.channel("a")
    await subscribed(conversation, channel)
    total = 20_000
    filler = "x" * 1000
    given = 0

    async def pour() -> None:
        nonlocal given
        for n in range(total):
            message = {"id": str(n), "type": "message", "event": "e", "payload": filler}
            await conversation.say({"op": "messages", "channel": "a", "messages": [message]})
            given = n + 1

    pouring = asyncio.create_task(pour())
    # The server gets stuck: the socket buffers are full, and the client does not read.
    stuck = -1
    while stuck != given:
        stuck = given
        await asyncio.sleep(0.2)
    assert given < total
    heard = 0
    async with asyncio.timeout(60):
        async for message in channel:
            assert message.id == str(heard)
            heard += 1
            if heard == total:
                break
    await pouring
    await realtime.close()


async def test_a_channel_that_is_not_read_is_named(start: Start) -> None:
    """It stops the reading, and an error names it."""
    realtime, _, conversation, _ = await start(max_queue=5)
    errors = await told(realtime, "error")
    await subscribed(conversation, realtime.channel("b"))
    await conversation.messages("b", [f"m{n}" for n in range(10)])
    error = await soon(errors.get())
    assert (error.code, error.channel) == ("unread", "b")
    assert errors.empty()


async def test_one_that_sends_while_too_much_waits_gets_its_answer(start: Start) -> None:
    _, channel, conversation, heard = await start(max_queue=10)
    sent: asyncio.Queue[str] = asyncio.Queue()

    async def answer(message: Message) -> None:
        sent.put_nowait(await channel.send("echo", message.id))

    channel.on("message", answer)
    for n in range(5):
        await conversation.messages("a", [f"m{n}-{i}" for i in range(8)])
    for _ in range(40):
        await conversation.ok(await conversation.hear("publish"), id="x")
    for _ in range(40):
        await soon(sent.get())
    assert len(await ids(heard, 40)) == 40


async def test_the_cursor_follows_the_application(
    scripted_server: ScriptedServer,
) -> None:
    """It advances once the application has handled everything that it covers."""
    realtime = client(scripted_server)
    conversation = await opened(scripted_server, realtime)
    channel = realtime.channel("a")
    await subscribed(conversation, channel)
    await conversation.messages("a", ["m1", "m2"])
    await conversation.say({"op": "cursor", "cursor": "c1"})
    await settled(realtime, conversation)
    assert realtime.cursor == "c0"
    seen = []
    async with asyncio.timeout(10):
        async for message in channel:
            seen.append((message.id, realtime.cursor))
            if message.id == "m2":
                await conversation.messages("a", ["m3"])
            if message.id == "m3":
                break
    assert seen == [("m1", "c0"), ("m2", "c0"), ("m3", "c1")]
    await realtime.close()


async def test_the_cursor_waits_for_an_asynchronous_callback(start: Start) -> None:
    realtime, channel, conversation, _ = await start()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slowly(_: Message) -> None:
        entered.set()
        await leave.wait()

    channel.on("message", slowly)
    await conversation.messages("a", ["m1"])
    await conversation.say({"op": "cursor", "cursor": "c1"})
    await soon(entered.wait())
    assert realtime.cursor == "c0"
    leave.set()
    await settled(realtime, conversation)
    assert realtime.cursor == "c1"


async def test_closing_ends_iterations_and_gives_what_waits_an_error(start: Start) -> None:
    realtime, channel, conversation, _ = await start()
    sending = asyncio.create_task(channel.send("e"))
    await conversation.hear("publish")
    other = realtime.channel("b")
    await subscribed(conversation, other)

    async def iterate() -> list[Message]:
        return [message async for message in other]

    iterating = asyncio.create_task(iterate())
    await asyncio.sleep(0)
    await realtime.close()
    assert await soon(iterating) == []
    with pytest.raises(RealtimeError) as caught:
        await soon(sending)
    assert caught.value.code == "disconnected"
    await soon(conversation.ended.wait())


async def test_cursors_of_an_unread_channel_cost_no_memory(start: Start) -> None:
    realtime, _, conversation, heard = await start()
    other = realtime.channel("b")
    await subscribed(conversation, other)
    await conversation.messages("b", ["m1"])

    async def go_on(first: int, last: int) -> None:
        for n in range(first, last):
            await conversation.messages("a", [f"m{n}"])
            await conversation.say({"op": "cursor", "cursor": f"c{n}"})
        await ids(heard, last - first)
        await settled(realtime, conversation)

    await go_on(0, 100)
    tracemalloc.start()
    try:
        await go_on(100, 200)
        before = tracemalloc.take_snapshot()
        await go_on(200, 1200)
        after = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    assert realtime.cursor == "c0"
    place = tracemalloc.Filter(inclusive=True, filename_pattern="*/client/delivery.py")
    sizes = [
        sum(entry.size for entry in snapshot.filter_traces([place]).statistics("filename"))
        for snapshot in (before, after)
    ]
    assert sizes[1] - sizes[0] < 50_000
    reader = aiter(other)
    assert (await soon(anext(reader))).id == "m1"
    waiting = asyncio.create_task(anext(reader))
    await asyncio.sleep(0)
    assert realtime.cursor == "c1199"
    waiting.cancel()
