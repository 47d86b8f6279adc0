"""The Python client's memory, which lets a resume neither lose nor repeat a message."""

from __future__ import annotations

import asyncio

import pytest

from rowcast_client import RealtimeError
from support.scripted_client import Start, client, ids, opened, settled, subscribed, told
from support.scripted_server import ScriptedServer, soon

pytestmark = pytest.mark.acceptance


async def test_a_replay_adds_messages_and_repeats_none(
    start: Start, scripted_server: ScriptedServer
) -> None:
    _, _, conversation, heard = await start()
    await conversation.messages("a", ["m1", "m2"])
    assert await ids(heard, 2) == ["m1", "m2"]
    conversation.cut()
    after = await scripted_server.next()
    await after.welcome()
    request = await after.hear("subscribe")
    assert request["after"] == "c0"
    await after.messages("a", ["m1", "m2", "m3"], replay=True)
    await after.ok(request, channel="a", cursor="c1", recovered=True, ephemeral=True)
    await after.messages("a", ["m4"])
    assert await ids(heard, 2) == ["m3", "m4"]


async def test_a_new_cursor_waits_until_all_channels_are_resumed(
    start: Start, scripted_server: ScriptedServer
) -> None:
    """While channels are being resumed, a new cursor does not replace the old one."""
    realtime, _, conversation, heard = await start()
    await subscribed(conversation, realtime.channel("b").on("message", heard.put_nowait))
    conversation.cut()
    second = await scripted_server.next()
    await second.welcome()
    request = await second.hear("subscribe")
    assert sorted(request["channels"]) == ["a", "b"]
    await second.ok(request, channel="a", cursor="c1", recovered=True)
    await second.say({"op": "cursor", "cursor": "c2"})
    await settled(realtime, second)
    assert realtime.cursor == "c0"
    second.cut()
    third = await scripted_server.next()
    await third.welcome()
    assert (await third.hear("subscribe"))["after"] == "c0"


async def test_a_channel_not_resumed_yet_keeps_its_own_cursor(
    start: Start, scripted_server: ScriptedServer
) -> None:
    realtime, _, conversation, heard = await start()
    await subscribed(conversation, realtime.channel("b").on("message", heard.put_nowait))
    await conversation.messages("b", ["m1"])
    await ids(heard, 1)
    conversation.cut()
    after = await scripted_server.next()
    await after.welcome(replayOverlap=0)
    request = await after.hear("subscribe")
    await after.ok(request, channel="a", cursor="c1", recovered=True)
    await after.refuse(request, "unavailable", channel="b", retryAfter=0.01)
    await after.say({"op": "cursor", "cursor": "c2"})
    again = await after.hear("subscribe")
    assert (again["channel"], again["after"]) == ("b", "c0")
    await after.messages("b", ["m1", "m2"], replay=True)
    await after.ok(again, channel="b", cursor="c3", recovered=True)
    assert await ids(heard, 1) == ["m2"]
    await settled(realtime, after)
    assert realtime.cursor == "c3"


async def test_ids_of_the_overlap_are_kept_and_older_ones_forgotten(start: Start) -> None:
    realtime, _, conversation, heard = await start(welcome={"replayOverlap": 60})
    await conversation.messages("a", ["m1"])
    await conversation.say({"op": "cursor", "cursor": "c1"})
    await conversation.messages("a", ["m1", "m2"])
    assert await ids(heard, 2) == ["m1", "m2"]
    await realtime.close()

    _, _, conversation, heard = await start(welcome={"replayOverlap": 0})
    await conversation.messages("a", ["m1"])
    await ids(heard, 1)
    await conversation.say({"op": "cursor", "cursor": "c1"})
    await conversation.messages("a", ["m1"])  # no server does this
    assert await ids(heard, 1) == ["m1"]


async def test_what_could_not_be_replayed_is_a_resync(
    start: Start, scripted_server: ScriptedServer
) -> None:
    _, channel, conversation, _ = await start()
    resyncs = await told(channel, "resync")
    conversation.cut()
    after = await scripted_server.next()
    await after.welcome()
    await after.confirm("c1", recovered=False, ephemeral=False, reason="too_far")
    assert await soon(resyncs.get()) == {
        "channel": "a",
        "recovered": False,
        "ephemeral": False,
        "reason": "too_far",
    }


async def test_a_later_process_resumes_from_a_stored_cursor(
    scripted_server: ScriptedServer,
) -> None:
    """Every channel resumes from it, with its first subscription."""
    realtime = client(scripted_server, after="stored")
    conversation = await opened(scripted_server, realtime)
    assert realtime.cursor == "stored"
    for name in ("a", "b"):
        waiting = asyncio.create_task(realtime.channel(name).subscribe())
        assert (await conversation.confirm("c1", recovered=True))["after"] == "stored"
        await soon(waiting)
    await realtime.close()


async def test_a_publish_without_an_answer_is_sent_again(
    start: Start, scripted_server: ScriptedServer
) -> None:
    """After the reconnect it is sent again under the same key."""
    _, channel, conversation, _ = await start()
    sending = asyncio.create_task(channel.send(event="e", payload={"n": 1}))
    first = await conversation.hear("publish")
    conversation.cut()
    after = await scripted_server.next()
    await after.welcome()
    await after.confirm("c1")  # before the publish
    second = await after.hear("publish")
    assert {**second, "ref": 0} == {**first, "ref": 0}
    await after.ok(second, id="m1")
    assert await soon(sending) == "m1"


async def test_a_message_that_is_too_big_is_sent_once(
    start: Start, scripted_server: ScriptedServer
) -> None:
    """The server closes the connection because of it; the client does not send it again."""
    _, channel, conversation, _ = await start()
    small = asyncio.create_task(channel.send("e", "s"))
    large = asyncio.create_task(channel.send("e", "l" * 1000))
    await conversation.hear("publish")
    await conversation.hear("publish")
    await conversation.socket.close(code=1009)
    with pytest.raises(RealtimeError) as caught:
        await soon(large)
    assert caught.value.code == "payload_too_large"
    after = await scripted_server.next()
    await after.welcome()
    await after.confirm()
    await after.ok(await after.hear("publish"), id="m1")
    assert await soon(small) == "m1"


@pytest.mark.parametrize("code", ["lagging", "unavailable"])
async def test_a_channel_closed_for_now_is_resumed_from_that_moment(
    start: Start, code: str
) -> None:
    _, channel, conversation, heard = await start()
    closed = await told(channel, "closed")
    await conversation.messages("a", ["m1"])
    await conversation.say({"op": "closed", "channel": "a", "code": code})
    await conversation.say({"op": "cursor", "cursor": "c1"})
    request = await conversation.hear("subscribe")
    assert request["after"] == "c0"
    await conversation.messages("a", ["m1", "m2"], replay=True)
    await conversation.ok(request, channel="a", cursor="c2", recovered=True)
    assert await ids(heard, 2) == ["m1", "m2"]
    assert await soon(closed.get()) == {"channel": "a", "code": code, "final": False}


async def test_a_stored_cursor_applies_once_to_each_channel(
    scripted_server: ScriptedServer,
) -> None:
    """A channel that is subscribed again has received the messages since the stored cursor."""
    realtime = client(scripted_server, after="stored")
    conversation = await opened(scripted_server, realtime)
    channel = realtime.channel("a")
    for after in ("stored", None):
        waiting = asyncio.create_task(channel.subscribe())
        assert (await conversation.confirm()).get("after") == after
        await soon(waiting)
        await channel.unsubscribe()
        await conversation.ok(await conversation.hear("unsubscribe"))
    await realtime.close()


async def test_messages_of_an_ended_subscription_are_dropped(start: Start) -> None:
    """The next subscription does not receive them."""
    _, channel, conversation, heard = await start()
    await channel.unsubscribe()
    waiting = asyncio.create_task(channel.subscribe(history=3))
    ended, request = await conversation.hear("unsubscribe"), await conversation.hear("subscribe")
    await conversation.messages("a", ["m2"])  # was on its way
    await conversation.ok(ended)
    await conversation.messages("a", ["m1", "m2"], history=True)
    await conversation.ok(request, channel="a", cursor="c1")
    await soon(waiting)
    assert await ids(heard, 2) == ["m1", "m2"]
