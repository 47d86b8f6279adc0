"""Channels of the Python client: subscribing, receiving, sending, and frames of every kind."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from rowcast_client import Message, RealtimeError
from support.scripted_client import Start, client, ids, opened, settled, subscribed, told
from support.scripted_server import ScriptedServer, soon

pytestmark = pytest.mark.acceptance


async def test_a_refused_subscription_raises_and_is_told(scripted_server: ScriptedServer) -> None:
    realtime = client(scripted_server)
    conversation = await opened(scripted_server, realtime)
    errors = await told(realtime, "error")
    waiting = asyncio.create_task(realtime.channel("a").subscribe())
    await conversation.refuse(await conversation.hear("subscribe"), "forbidden", channel="a")
    with pytest.raises(RealtimeError) as caught:
        await soon(waiting)
    assert (caught.value.code, caught.value.channel) == ("forbidden", "a")
    assert (await soon(errors.get())).code == "forbidden"
    await realtime.close()


async def test_a_subscription_not_answered_in_time_raises(scripted_server: ScriptedServer) -> None:
    realtime = client(scripted_server, timeout=0.05)
    await opened(scripted_server, realtime)
    with pytest.raises(RealtimeError) as caught:
        await soon(realtime.channel("a").subscribe())
    assert caught.value.code == "timeout"
    await realtime.close()


async def test_a_closed_channel_ends_its_iteration(
    scripted_server: ScriptedServer,
) -> None:
    """The iteration raises the reason that the server gave."""
    realtime = client(scripted_server)
    conversation = await opened(scripted_server, realtime)
    channel = realtime.channel("a")
    await subscribed(conversation, channel)
    await conversation.messages("a", ["m1"])
    await conversation.say({"op": "closed", "channel": "a", "code": "revoked"})
    messages = aiter(channel)
    assert (await soon(anext(messages))).id == "m1"
    with pytest.raises(RealtimeError) as caught:
        await soon(anext(messages))
    assert caught.value.code == "revoked"
    await realtime.close()


async def test_iterating_misses_no_message(
    scripted_server: ScriptedServer,
) -> None:
    """It begins with the first message, and continues after a `break` with the next one."""
    realtime = client(scripted_server)
    conversation = await opened(scripted_server, realtime)
    channel = realtime.channel("a")
    await subscribed(conversation, channel)
    await conversation.messages("a", ["m1", "m2", "m3"])
    await settled(realtime, conversation)
    heard = []
    async with asyncio.timeout(10):
        async for message in channel:
            heard.append(message.id)
            break
        async for message in channel:
            heard.append(message.id)
            if message.id == "m3":
                await channel.unsubscribe()
    assert heard == ["m1", "m2", "m3"]
    await conversation.hear("unsubscribe")
    await realtime.close()


async def test_callbacks_sync_and_async_are_called_in_order(start: Start) -> None:
    _, channel, conversation, _ = await start()
    order: list[str] = []
    done = asyncio.Event()

    async def slowly(message: Message) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        order.append(f"async {message.id}")
        if message.id == "m3":
            done.set()

    channel.on("*", lambda message: order.append(f"sync {message.id}"))
    channel.on("*", slowly)
    await conversation.messages("a", ["m1", "m2", "m3"])
    await soon(done.wait())
    assert order == [f"{kind} m{n}" for n in (1, 2, 3) for kind in ("sync", "async")]


async def test_callbacks_get_only_their_kind(
    start: Start,
) -> None:
    """No event name that a sender can choose reaches a reserved kind."""
    realtime, channel, conversation, heard = await start()
    seen: list[tuple[str, str]] = []
    for kind in ("moved", "error", "closed", "deleted", "resync", "subscribed", "*"):
        channel.on(kind, lambda message, kind=kind: seen.append((kind, message.event)))
    base = {"channel": "a", "payload": 1, "timestamp": "t", "type": "broadcast"}
    events = ["moved", "error", "closed", "deleted", "resync", "subscribed", "*"]
    messages = [{**base, "id": event, "event": event} for event in events]
    await conversation.say({"op": "messages", "channel": "a", "messages": messages})
    await settled(realtime, conversation)
    assert seen == [("moved", "moved"), *(("*", event) for event in events)]
    assert heard.empty()


async def test_a_callback_that_raises_is_reported_and_stops_no_other(start: Start) -> None:
    realtime, channel, conversation, heard = await start()
    errors = await told(realtime, "error")

    def fail(_: Message) -> None:
        raise ZeroDivisionError

    async def cancel(_: Message) -> None:
        raise asyncio.CancelledError

    channel.on("message", fail).on("message", cancel)
    await conversation.messages("a", ["m1", "m2"])
    assert await ids(heard, 2) == ["m1", "m2"]
    for _ in range(4):
        assert (await soon(errors.get())).code == "callback_failed"


async def test_a_deleted_message_is_told(start: Start) -> None:
    _, channel, conversation, _ = await start()
    deleted = await told(channel, "deleted")
    await conversation.say({"op": "deleted", "channel": "a", "id": "m1"})
    assert await soon(deleted.get()) == {"channel": "a", "id": "m1"}


async def test_a_send_is_refused_with_a_code_and_an_id(start: Start) -> None:
    _, channel, conversation, _ = await start()
    sending = asyncio.create_task(channel.send("e", {"a": 1}, type="broadcast"))
    frame = await conversation.hear("publish")
    assert (frame["type"], frame["event"], frame["payload"]) == ("broadcast", "e", {"a": 1})
    await conversation.refuse(frame, "rate_limited", retryAfter=2)
    with pytest.raises(RealtimeError) as caught:
        await soon(sending)
    error = caught.value
    assert (error.code, error.retry_after, error.id) == ("rate_limited", 2, frame["id"])


@pytest.mark.parametrize(
    "payload",
    [object(), float("nan"), "\ud800", {"k": {1, 2}}],
    ids=["object", "nan", "lone", "set"],
)
async def test_what_is_not_json_is_not_sent(start: Start, payload: Any) -> None:
    _, channel, _, _ = await start()
    with pytest.raises(RealtimeError) as caught:
        await soon(channel.send("e", payload))
    assert caught.value.code == "invalid_message"


async def test_sends_are_bounded_in_size_number_and_time(
    start: Start, scripted_server: ScriptedServer
) -> None:
    _, channel, _, _ = await start(max_pending=1, timeout=0.1, welcome={"limits": {"frame": 500}})
    with pytest.raises(RealtimeError) as caught:
        await soon(channel.send("e", "é" * 300))
    assert caught.value.code == "payload_too_large"
    first = asyncio.create_task(channel.send("e"))
    await asyncio.sleep(0)
    with pytest.raises(RealtimeError) as caught:
        await soon(channel.send("e"))
    assert caught.value.code == "queue_full"
    with pytest.raises(RealtimeError, match="may be stored") as caught:
        await soon(first)
    assert caught.value.code == "timeout"


async def test_no_more_than_a_window_of_requests_is_unanswered(
    scripted_server: ScriptedServer,
) -> None:
    realtime = client(scripted_server)
    conversation = await opened(scripted_server, realtime)
    channel = realtime.channel("a")
    sends = [asyncio.create_task(channel.send("e", n)) for n in range(200)]
    for n in range(200):
        frame = await conversation.hear("publish")
        assert frame["payload"] == n
        assert conversation.frames.qsize() <= 64
        await conversation.ok(frame, id=str(n))
    assert await soon(asyncio.gather(*sends)) == [str(n) for n in range(200)]
    await realtime.close()


DEEP = "[" * 20000 + "]" * 20000
HUGE = "9" * 5000


@pytest.mark.parametrize("text", [DEEP, HUGE, f'{{"payload":{HUGE}}}'], ids=["deep", "huge", "key"])
async def test_a_payload_python_cannot_read_is_given_as_text(start: Start, text: str) -> None:
    realtime, _, conversation, heard = await start()
    errors = await told(realtime, "error")
    frame = {
        "op": "messages",
        "messages": [
            {"id": "m1", "event": "payload", "payload": {"a": '[{"payload":'}, "type": "message"},
            {"payload": "HERE", "id": "m2", "event": "e", "type": "message"},
            {"id": "m3", "event": "e", "type": "message", "payload": "HERE"},
            {"id": "m4", "event": "e", "type": "message", "payload": None},
        ],
        "channel": "a",
    }
    await conversation.say(json.dumps(frame, indent=1).replace('"HERE"', f" {text}\n"))
    messages = [await soon(heard.get()) for _ in range(4)]
    assert [m.payload for m in messages] == [{"a": '[{"payload":'}, text, text, None]
    assert [m.raw for m in messages] == [False, True, True, False]
    error = await soon(errors.get())
    assert (error.code, error.id) == ("unreadable_payload", "m2")


async def test_hostile_frames_are_reported_and_end_nothing(start: Start) -> None:
    realtime, _, conversation, heard = await start()
    errors = await told(realtime, "error")
    hostile = [
        *("no json", "[]", "null", "{}", '{"op":7}', '"op"', '{"op":"messages"}', DEEP, HUGE, "{"),
        '{"op":"messages","channel":"a"}',
        '{"op":"messages","channel":"a","messages":[null,1,"x",[]]}',
        '{"op":"messages","channel":{},"messages":[]}',
        '{"op":"ok"}',
        '{"op":"ok","ref":{}}',
        '{"op":"error"}',
        f'{{"op":"error","ref":null,"code":5,"message":{{}},"retryAfter":{"9" * 400}}}',
        '{"op":"closed","channel":[],"code":"x"}',
        '{"op":"cursor","cursor":{"a":1}}',
        '{"op":"unheard of"}',
        '{"op":"deleted"}',
        '{"op":"status"}',
        f'{{"op":"x","y":{DEEP}}}',
        '{"op":"messages","channel":"a","messages":[{"payload":' + DEEP + "}",
    ]
    for frame in hostile:
        await conversation.say(frame)
    await conversation.socket.send_bytes(b"\x01")
    await conversation.messages("a", ["m1"])
    assert await ids(heard, 1) == ["m1"]
    assert realtime.connected
    assert errors.qsize() > 8


async def test_a_cancelled_subscribe_is_taken_back(
    scripted_server: ScriptedServer,
) -> None:
    """Otherwise its messages would fill the queue until the client stops reading."""
    realtime = client(scripted_server)
    conversation = await opened(scripted_server, realtime)
    channel = realtime.channel("a")
    one, other = [asyncio.create_task(channel.subscribe()) for _ in range(2)]
    request = await conversation.hear("subscribe")
    one.cancel()
    await asyncio.wait([one])
    await conversation.ok(request, channel="a", cursor="c0")  # the other still waits for it
    await soon(other)
    await channel.unsubscribe()
    await conversation.ok(await conversation.hear("unsubscribe"))
    again = asyncio.create_task(channel.subscribe())
    await conversation.hear("subscribe")
    again.cancel()
    assert (await conversation.hear("unsubscribe"))["channel"] == "a"
    assert not channel.subscribed
    await realtime.close()


async def test_untrack_and_unsubscribe_outlast_a_busy_server(
    start: Start, scripted_server: ScriptedServer
) -> None:
    """A request that the server is too busy for is sent again."""
    realtime, channel, conversation, _ = await start()

    async def busy(op: str) -> None:
        request = await conversation.hear(op)
        await conversation.refuse(request, "rate_limited", retryAfter=0.01)

    tracking = asyncio.create_task(channel.track({"x": 1}))
    await conversation.ok(await conversation.hear("track"))
    await soon(tracking)
    untracking = asyncio.create_task(channel.untrack())
    await busy("untrack")
    await conversation.ok(await conversation.hear("untrack"))
    await soon(untracking)
    await channel.unsubscribe()
    await busy("unsubscribe")
    await busy("unsubscribe")
    await conversation.ok(await conversation.hear("unsubscribe"))
    await subscribed(conversation, channel)
    await channel.unsubscribe()
    await busy("unsubscribe")
    await subscribed(conversation, channel)  # wanted again
    await asyncio.sleep(0.05)  # longer than it would have waited
    await settled(realtime, conversation)
    assert conversation.frames.empty()


async def test_after_unsubscribe_nothing_more_is_told(start: Start) -> None:
    realtime, channel, conversation, heard = await start()
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slowly(_: Message) -> None:
        entered.set()
        await leave.wait()

    channel.on("message", slowly)
    presence = await told(channel, "presence")
    await conversation.messages("a", ["m1", "m2"])
    events = [{"type": "join", "key": "bob", "presence": {}}]
    await conversation.say({"op": "presence", "channel": "a", "events": events})
    await soon(entered.wait())
    statuses = await told(realtime, "status")
    await conversation.say({"op": "status", "status": "ok"})
    sending = asyncio.create_task(channel.send("e"))
    await conversation.ok(await conversation.hear("publish"))
    await soon(sending)  # all that was said before has been read
    assert channel.presence_state() == [{}]
    await channel.unsubscribe()
    leave.set()
    await soon(statuses.get())
    assert [message.id for message in drained(heard)] == ["m1"]
    assert presence.empty()


def drained(queue: asyncio.Queue[Message]) -> list[Message]:
    return [queue.get_nowait() for _ in range(queue.qsize())]
