"""Presence in the Python client, against a scripted server and against a real bridge."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rowcast_client import Message, Realtime, RealtimeError, connect
from support import pg
from support.bridge_process import daemon, open_channels, token
from support.scripted_client import Start, client, opened, settled, subscribed, told
from support.scripted_server import ScriptedServer, soon

pytestmark = pytest.mark.acceptance


async def test_track_joins_if_needed_and_untrack_ends_that_join(
    scripted_server: ScriptedServer,
) -> None:
    realtime = client(scripted_server)
    conversation = await opened(scripted_server, realtime)
    channel = realtime.channel("a")
    tracking = asyncio.create_task(channel.track({"status": "online"}))
    await conversation.confirm(presence=[])
    request = await conversation.hear("track")
    assert (request["channel"], request["state"]) == ("a", {"status": "online"})
    await conversation.ok(request, channel="a")
    await soon(tracking)
    for number in range(2000):  # not iterated, and yet the queue stays empty
        await conversation.messages("a", [f"m{number}"])
    await settled(realtime, conversation)
    untracking = asyncio.create_task(channel.untrack())
    await conversation.ok(await conversation.hear("untrack"), channel="a")
    assert (await conversation.hear("unsubscribe"))["channel"] == "a"
    await soon(untracking)
    await channel.untrack()
    await realtime.close()


async def test_a_subscription_of_the_application_outlives_untrack(
    scripted_server: ScriptedServer,
) -> None:
    realtime = client(scripted_server)
    conversation = await opened(scripted_server, realtime)
    channel = realtime.channel("a")
    tracking = asyncio.create_task(channel.track({}))
    await conversation.confirm(presence=[])
    await conversation.ok(await conversation.hear("track"), channel="a")
    await soon(tracking)
    await soon(channel.subscribe())
    await conversation.messages("a", ["m1"])
    untracking = asyncio.create_task(channel.untrack())
    await conversation.ok(await conversation.hear("untrack"), channel="a")
    await soon(untracking)
    assert (await soon(anext(aiter(channel)))).id == "m1"
    await realtime.close()


@pytest.mark.parametrize("op", ["subscribe", "track"])
async def test_a_refusal_raises_and_ends_the_join_that_track_made(
    scripted_server: ScriptedServer, op: str
) -> None:
    realtime = client(scripted_server)
    conversation = await opened(scripted_server, realtime)
    tracking = asyncio.create_task(realtime.channel("a").track({}))
    if op == "track":
        await conversation.confirm(presence=[])
    await conversation.refuse(await conversation.hear(op), "forbidden", channel="a")
    with pytest.raises(RealtimeError) as caught:
        await soon(tracking)
    assert caught.value.code == "forbidden"
    if op == "track":
        await conversation.hear("unsubscribe")
    await realtime.close()


async def test_events_keep_the_state_and_a_whole_list_becomes_events(start: Start) -> None:
    realtime, channel, conversation, _ = await start()
    events = await told(channel, "presence")

    async def say(*entries: tuple[str, str, Any], **more: Any) -> None:
        listed = [{"type": t, "key": k, "presence": p} for t, k, p in entries]
        await conversation.say({"op": "presence", "channel": "a", "events": listed, **more})

    await say(("join", "ann", {"x": 1}), ("join", "bob", {"x": 2}))
    await say(("update", "ann", {"x": 3}), ("leave", "bob", {"x": 2}))
    await settled(realtime, conversation)
    assert channel.presence_state() == [{"x": 3}]
    await say(("join", "bob", {"x": 9}), ("join", "ann", {"x": 4}), full=True)
    await say(("join", "ann", {"x": 4}), full=True)
    told_now = [await soon(events.get()) for _ in range(7)]
    assert [(e["type"], e["key"], e["presence"]["x"]) for e in told_now] == [
        ("join", "ann", 1),
        ("join", "bob", 2),
        ("update", "ann", 3),
        ("leave", "bob", 2),
        ("join", "bob", 9),
        ("update", "ann", 4),
        ("leave", "bob", 9),
    ]
    assert channel.presence_state() == [{"x": 4}]


async def test_rapid_states_coalesce(
    scripted_server: ScriptedServer,
) -> None:
    """Of the waiting states only the newest is sent, and sent again after a reconnect."""
    realtime = client(scripted_server)
    conversation = await opened(scripted_server, realtime)
    channel = realtime.channel("a")
    await subscribed(conversation, channel)
    tracking = [asyncio.create_task(channel.track({"x": x})) for x in range(100)]
    first = await conversation.hear("track")
    await conversation.ok(first, channel="a")
    second = await conversation.hear("track")
    assert second["state"] == {"x": 99}
    await conversation.refuse(second, "rate_limited", retryAfter=0.05)
    third = await conversation.hear("track")
    await conversation.ok(third, channel="a")
    await soon(asyncio.gather(*tracking))
    conversation.cut()
    again = await scripted_server.next()
    await again.welcome()
    request = await again.hear("subscribe")
    await again.ok(request, channel="a", presence=[{"key": "eve", "presence": {"x": 5}}])
    assert (await again.hear("track"))["state"] == {"x": 99}
    assert channel.presence_state() == [{"x": 5}]
    await realtime.close()


async def test_users_of_a_real_bridge_see_each_other(database: pg.Database) -> None:
    open_channels(database, "room:*")

    async def here(realtime: Realtime, state: list[Any]) -> None:
        changed = await told(realtime.channel("room:1"), "presence")
        while realtime.channel("room:1").presence_state() != state:
            await soon(changed.get())

    with daemon(database) as bridge:
        async with connect(bridge.url, token=token("ann")) as ann:
            heard: asyncio.Queue[Message] = asyncio.Queue()
            events = await told(ann.channel("room:1"), "presence")
            await ann.channel("room:1").on("message", heard.put_nowait).subscribe()
            async with connect(bridge.url, token=token("bob")) as bob:
                await bob.channel("room:1").track({"name": "Bob"})
                await here(ann, [{"name": "Bob"}])
                await here(bob, [{"name": "Bob"}])
                await ann.channel("room:1").track({"name": "Ann"})
                await here(bob, [{"name": "Bob"}, {"name": "Ann"}])
            await here(ann, [{"name": "Ann"}])
            told_now = [await soon(events.get()) for _ in range(3)]
            assert [(e["type"], e["key"]) for e in told_now] == [
                ("join", "bob"),
                ("join", "ann"),
                ("leave", "bob"),
            ]


async def test_a_refused_state_leaves_the_one_before_it(
    start: Start, scripted_server: ScriptedServer
) -> None:
    _, channel, conversation, _ = await start()
    tracking = asyncio.create_task(channel.track({"x": 1}))
    await conversation.ok(await conversation.hear("track"))
    await soon(tracking)
    tracking = asyncio.create_task(channel.track({"x": "too large"}))
    await conversation.refuse(await conversation.hear("track"), "payload_too_large", channel="a")
    with pytest.raises(RealtimeError):
        await soon(tracking)
    conversation.cut()
    conversation = await scripted_server.next()
    await conversation.welcome()
    await conversation.confirm()
    request = await conversation.hear("track")
    assert request["state"] == {"x": 1}
    await conversation.ok(request)
    untracking = asyncio.create_task(channel.untrack())
    await conversation.ok(await conversation.hear("untrack"))
    await soon(untracking)


async def test_a_presence_refused_for_now_is_sent_again(
    start: Start, scripted_server: ScriptedServer
) -> None:
    """After a reconnect a temporary refusal does not end the presence."""
    _, channel, conversation, _ = await start()
    errors = await told(channel, "error")
    tracking = asyncio.create_task(channel.track({"x": 1}))
    await conversation.ok(await conversation.hear("track"))
    await soon(tracking)
    conversation.cut()
    conversation = await scripted_server.next()
    await conversation.welcome()
    await conversation.confirm()
    request = await conversation.hear("track")
    await conversation.refuse(request, "unavailable", channel="a", retryAfter=0.01)
    request = await conversation.hear("track")
    assert request["state"] == {"x": 1}
    # A final refusal is an event, because no call waits for it.
    await conversation.refuse(request, "too_many_members", channel="a")
    assert (await soon(errors.get())).code == "too_many_members"
