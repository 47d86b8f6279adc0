"""The Python client's connection: connecting, refusals, and reconnecting."""

from __future__ import annotations

import asyncio

import pytest

from rowcast_client import RealtimeError, connect
from support.scripted_client import Start, client, opened, settled, told
from support.scripted_server import ScriptedServer, soon

pytestmark = pytest.mark.acceptance


async def test_the_key_goes_on_the_url_and_a_token_in_the_first_frame(
    scripted_server: ScriptedServer,
) -> None:
    realtime = client(scripted_server, token="secret")
    opening = asyncio.create_task(realtime.open())
    conversation = await scripted_server.next()
    assert conversation.request.query_string == "apikey=anon"
    assert await conversation.welcome() == {"op": "auth", "token": "secret", "ref": "0"}
    await soon(opening)
    await realtime.close()


async def test_a_bad_key_is_told_although_the_server_greets_first(
    scripted_server: ScriptedServer,
) -> None:
    opening = asyncio.create_task(client(scripted_server).open())
    conversation = await scripted_server.next()
    await conversation.say({"op": "welcome", "session": "s"})
    await conversation.refuse(None, "invalid_token")
    await conversation.socket.close(code=3500, message=b"invalid")
    with pytest.raises(RealtimeError) as caught:
        await soon(opening)
    assert caught.value.code == "invalid_token"


async def test_a_bad_token_is_told_and_not_tried_again(scripted_server: ScriptedServer) -> None:
    opening = asyncio.create_task(client(scripted_server, token="bad").open())
    conversation = await scripted_server.next()
    await conversation.say({"op": "welcome", "session": "s"})
    await conversation.refuse(await conversation.hear("auth"), "token_expired")
    with pytest.raises(RealtimeError) as caught:
        await soon(opening)
    assert caught.value.code == "token_expired"
    assert scripted_server.conversations.empty()


async def test_a_callable_that_has_no_token_is_told(scripted_server: ScriptedServer) -> None:
    async def token() -> str:
        raise LookupError("logged out")

    with pytest.raises(RealtimeError, match="logged out") as caught:
        await soon(client(scripted_server, token=token).open())
    assert caught.value.code == "token_unavailable"


async def test_connecting_without_a_server_ends_in_time() -> None:
    with pytest.raises(RealtimeError) as caught:
        async with connect("http://127.0.0.1:1", connect_timeout=0.1, min_delay=0.01):
            pass
    assert caught.value.code == "unreachable"


async def test_connecting_goes_on_until_the_server_is_there(
    scripted_server: ScriptedServer,
) -> None:
    realtime = client(scripted_server)
    opening = asyncio.create_task(realtime.open())
    (await scripted_server.next()).cut()
    await (await scripted_server.next()).socket.close(code=3002)
    await (await scripted_server.next()).welcome()
    await soon(opening)
    await realtime.close()


@pytest.mark.parametrize("code", [1001, 1012, 3000, 4000])
async def test_these_close_codes_mean_connect_again(
    scripted_server: ScriptedServer, code: int
) -> None:
    realtime = client(scripted_server)
    conversation = await opened(scripted_server, realtime)
    await conversation.socket.close(code=code)
    await (await scripted_server.next()).welcome()
    await realtime.close()


async def test_a_drained_client_waits_as_the_server_asks(
    start: Start, scripted_server: ScriptedServer
) -> None:
    realtime, _, conversation, _ = await start()
    again = await told(realtime, "reconnecting")
    await conversation.say({"op": "status", "status": "draining", "retryAfter": 0.123})
    await conversation.socket.close(code=3000)
    assert (await soon(again.get()))["delay"] == 0.123
    conversation = await scripted_server.next()
    await conversation.welcome()
    conversation.cut()
    assert (await soon(again.get()))["delay"] != 0.123  # the pause was for that connection only


async def test_a_final_close_code_ends_everything_with_an_error(start: Start) -> None:
    realtime, channel, conversation, _ = await start()
    errors = await told(realtime, "error")
    waiting = asyncio.create_task(channel.send("e"))
    await conversation.hear("publish")
    await conversation.socket.close(code=3503, message=b"too many invalid frames")
    error = await soon(errors.get())
    assert (error.code, "3503" in str(error)) == ("closed", True)
    with pytest.raises(RealtimeError, match="3503"):
        await soon(waiting)
    with pytest.raises(RealtimeError, match="3503"):
        await soon(channel.send("e"))
    with pytest.raises(RealtimeError, match="3503"):
        await soon(realtime.channel("b").subscribe())


async def test_a_token_about_to_expire_is_refreshed_in_band(start: Start) -> None:
    tokens = iter(["one", "two"])
    realtime, _, conversation, _ = await start(token=lambda: next(tokens))
    await conversation.say({"op": "status", "status": "token_expiring"})
    auth = await conversation.hear("auth")
    assert auth["token"] == "two"
    await conversation.ok(auth)
    assert realtime.connected


async def test_an_expired_token_is_replaced_by_connecting_again(
    start: Start, scripted_server: ScriptedServer
) -> None:
    tokens = iter(["one", "two"])
    _, _, conversation, _ = await start(token=lambda: next(tokens))
    await conversation.refuse(None, "token_expired")
    await conversation.socket.close(code=3501)
    assert (await (await scripted_server.next()).welcome())["token"] == "two"


async def test_a_silent_server_is_pinged_and_then_left(
    scripted_server: ScriptedServer,
) -> None:
    realtime = client(scripted_server)
    first = await opened(scripted_server, realtime, heartbeat=0.05)
    await first.ok(await first.hear("ping"))
    await first.hear("ping")
    await (await scripted_server.next()).welcome()
    await realtime.close()


async def test_a_callback_may_close_the_client(start: Start) -> None:
    """No task of the client is left."""
    before = asyncio.all_tasks()
    realtime, channel, conversation, _ = await start()
    closed = asyncio.Event()

    async def close(_: object) -> None:
        await realtime.close()
        await asyncio.sleep(0)  # what the callback does behind it is done as well
        closed.set()

    channel.on("said", close)
    await conversation.messages("a", ["m1", "m2"])
    await soon(closed.wait())
    await soon(conversation.ended.wait())
    ours = {task for task in asyncio.all_tasks() - before if "rowcast_client" in str(task)}
    if ours:
        await asyncio.wait(ours, timeout=5)
    assert all(task.done() for task in ours), ours


async def test_a_token_callable_may_close_the_client(scripted_server: ScriptedServer) -> None:
    calls = 0

    async def ask() -> str:
        nonlocal calls
        calls += 1
        if calls > 1:
            await realtime.close()
        return "token"

    realtime = client(scripted_server, token=ask)
    conversation = await opened(scripted_server, realtime)
    (run,) = [task for task in asyncio.all_tasks() if "Realtime._run" in str(task)]
    conversation.cut()
    await soon(asyncio.wait([run]))
    assert scripted_server.conversations.empty()


async def test_a_client_is_opened_once(scripted_server: ScriptedServer) -> None:
    realtime = client(scripted_server)
    await opened(scripted_server, realtime)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="make another"):
            await realtime.open()
        await realtime.close()


async def test_closing_can_be_cancelled(scripted_server: ScriptedServer) -> None:
    asked: asyncio.Queue[int] = asyncio.Queue()

    async def ask() -> str:
        asked.put_nowait(asked.qsize() + 1)
        if asked.qsize() > 1:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.Event().wait()  # takes its time to end
        return "token"

    realtime = client(scripted_server, token=ask)
    conversation = await opened(scripted_server, realtime)
    await conversation.say({"op": "status", "status": "token_expiring"})
    await settled(realtime, conversation)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await realtime.close()
    await soon(conversation.ended.wait())
    (refreshing,) = [task for task in asyncio.all_tasks() if "Identity._refresh" in str(task)]
    refreshing.cancel()
