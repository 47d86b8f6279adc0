"""The unmodified `realtime` and `supabase` of PyPI against the real bridge."""

from __future__ import annotations

import ast
import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import supabase
from realtime import AsyncRealtimeChannel, AsyncRealtimeClient, RealtimeSubscribeStates
from realtime.exceptions import RealtimeHTTPError
from realtime.types import RealtimeAcknowledgementStatus

from acceptance.test_supabase_js import DOCUMENT
from support import pg
from support.bridge_process import DOOR_POLICIES, Daemon, open_bridge, token
from support.javascript import blocks

pytestmark = pytest.mark.acceptance

DEADLINE = 15.0
States = asyncio.Queue[tuple[RealtimeSubscribeStates, Exception | None]]


@pytest.fixture(scope="module")
def bridge(module_database: pg.Database) -> Iterator[Daemon]:
    with open_bridge(module_database, DOOR_POLICIES) as running:
        yield running


class People:
    """Return a function that creates clients; they are closed at the end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clients: list[AsyncRealtimeClient] = []

    def client(self, bearer: str, key: str | None = None) -> AsyncRealtimeClient:
        client = AsyncRealtimeClient(
            f"{self.url}/realtime/v1", key or token(None, "anon"), initial_backoff=0.1
        )
        client.access_token = bearer
        self.clients.append(client)
        return client


@pytest.fixture
async def people(bridge: Daemon) -> AsyncIterator[People]:
    people = People(bridge.url)
    yield people
    for client in people.clients:
        await client.close()


async def soon(queue: asyncio.Queue[Any]) -> Any:
    return await asyncio.wait_for(queue.get(), DEADLINE)


async def listen(
    client: AsyncRealtimeClient, name: str, **broadcast: Any
) -> tuple[AsyncRealtimeChannel, asyncio.Queue[Any], States]:
    config: Any = {"config": {"broadcast": broadcast, "presence": {"key": ""}, "private": True}}
    channel = client.channel(name, config)
    heard: asyncio.Queue[Any] = asyncio.Queue()
    states: States = asyncio.Queue()
    channel.on_broadcast("*", heard.put_nowait)
    await channel.subscribe(lambda state, error: states.put_nowait((state, error)))
    return channel, heard, states


async def joined(
    client: AsyncRealtimeClient, name: str, **broadcast: Any
) -> tuple[AsyncRealtimeChannel, asyncio.Queue[Any], States]:
    channel, heard, states = await listen(client, name, **broadcast)
    state, error = await soon(states)
    assert state is RealtimeSubscribeStates.SUBSCRIBED, error
    return channel, heard, states


async def test_messages_of_one_client_reach_the_others(people: People, room: str) -> None:
    alice, quiet, _ = await joined(people.client(token("alice")), room)
    bob, loud, _ = await joined(people.client(token("bob")), room, self=True)
    payload = {"text": "häy 💥", "deep": [1, {"a": None}]}
    await alice.send_broadcast("one", payload)
    message = await soon(loud)
    assert (message["event"], message["payload"]) == ("one", payload)
    assert uuid.UUID(message["meta"]["id"])
    await bob.send_broadcast("two", {})
    assert (await soon(loud))["event"] == "two"
    assert (await soon(quiet))["event"] == "two"
    assert quiet.empty()


async def test_writes_are_acknowledged_or_refused_with_an_error(people: People) -> None:
    for name, refused in (("readonly:1", True), ("room:1", False)):
        channel, _, _ = await joined(people.client(token("alice")), name, ack=True)
        push = await channel.push("broadcast", {"type": "broadcast", "event": "e", "payload": {}})
        answers: asyncio.Queue[Any] = asyncio.Queue()
        for status in RealtimeAcknowledgementStatus:
            push.receive(status, answers.put_nowait)
        answer = await soon(answers)
        assert isinstance(answer, dict) == refused
        assert not refused or answer["reason"].startswith("forbidden: ")


async def test_a_refused_join_says_why(people: People) -> None:
    _, _, states = await listen(people.client(token(None, "anon")), "members:1")
    state, error = await soon(states)
    assert state is RealtimeSubscribeStates.CHANNEL_ERROR
    assert "forbidden" in str(error)


async def test_a_new_token_that_allows_less_closes_the_channel(people: People) -> None:
    client = people.client(token("alice"))
    _, _, states = await joined(client, "members:1")
    await client.set_auth(token("alice", guest=True))
    assert (await soon(states))[0] is RealtimeSubscribeStates.CHANNEL_ERROR
    assert (await soon(states))[0] is RealtimeSubscribeStates.CLOSED


async def test_a_client_may_rejoin_at_once(people: People, room: str) -> None:
    client = people.client(token("alice"))
    await joined(client, "room:kept")
    for _ in range(5):
        channel, heard, states = await joined(client, room, self=True)
        await channel.send_broadcast("e", {})
        await soon(heard)
        await channel.unsubscribe()
        assert (await soon(states))[0] is RealtimeSubscribeStates.CLOSED


async def test_presence_callbacks_on_a_joined_channel_join_it_again(
    people: People, room: str
) -> None:
    channel, heard, states = await joined(people.client(token("alice")), room, self=True)
    synced = asyncio.Event()
    channel.on_presence_sync(synced.set)
    assert (await soon(states))[0] is RealtimeSubscribeStates.CLOSED
    assert (await soon(states))[0] is RealtimeSubscribeStates.SUBSCRIBED
    await asyncio.wait_for(synced.wait(), DEADLINE)
    await channel.send_broadcast("e", {})
    await soon(heard)


async def test_presence_shows_all_members(people: People, room: str) -> None:
    events: asyncio.Queue[tuple[str, str, Any]] = asyncio.Queue()
    watcher = people.client(token("bob")).channel(room)
    watcher.on_presence_join(lambda key, _, new: events.put_nowait(("join", key, new)))
    watcher.on_presence_leave(lambda key, _, left: events.put_nowait(("leave", key, left)))
    await watcher.subscribe()
    channel, _, _ = await joined(people.client(token("alice")), room)
    for state, kinds in (({"a": 1}, ["join"]), ({"a": 2}, ["leave", "join"])):
        await channel.track(state)
        for kind in kinds:
            event, key, metas = await soon(events)
            assert (event, key, len(metas)) == (kind, "alice", 1)
    assert [meta["a"] for meta in watcher.presence_state()["alice"]] == [2]
    await channel.untrack()
    assert (await soon(events))[:2] == ("leave", "alice")
    assert watcher.presence_state() == {}


async def test_a_client_survives_the_end_of_a_bridge(people: People, bridge: Daemon) -> None:
    channel, heard, states = await joined(people.client(token("alice")), "room:1", self=True)
    bridge.restart()
    assert (await soon(states))[0] is RealtimeSubscribeStates.CHANNEL_ERROR
    assert (await soon(states))[0] is RealtimeSubscribeStates.SUBSCRIBED
    await channel.send_broadcast("e", {})
    await soon(heard)


async def test_supabase_works_with_only_its_url_changed(bridge: Daemon, room: str) -> None:
    client = await supabase.create_async_client(bridge.url, token(None, "anon"))
    await client.realtime.set_auth(token("alice"))
    heard: asyncio.Queue[Any] = asyncio.Queue()
    channel = client.channel(room, {"config": {"broadcast": {"self": True}}})
    await channel.on_broadcast("e", heard.put_nowait).subscribe()
    await channel.send_broadcast("e", {"a": 1})
    assert (await soon(heard))["payload"] == {"a": 1}
    await client.remove_all_channels()


async def test_http_send_publishes_and_raises_with_the_reason(people: People, room: str) -> None:
    client = people.client(token("alice"))
    _, heard, _ = await joined(people.client(token("bob")), room)
    await client.channel(room).http_send("one", {"a": 1})
    assert (await soon(heard))["payload"] == {"a": 1}
    await client.channel(room).http_send("bytes", b"\x00\xff")
    assert (await soon(heard))["payload"] == {"$binary": "AP8="}
    with pytest.raises(RealtimeHTTPError, match="policies"):
        await client.channel("readonly:1").http_send("e", {})


async def test_the_example_of_the_chapter_runs_as_written(
    bridge: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    chapter = DOCUMENT.partition("## Supabase clients")[2]
    [lines, *_] = blocks(chapter, "python")
    text = lines.replace("http://127.0.0.1:8080", bridge.url).replace("chat:room1", "room:five")
    names: dict[str, Any] = {"anon_key": token(None, "anon"), "user_token": token("alice")}
    code = compile(text, "clients.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    await eval(code, names)
    said = ""
    async with asyncio.timeout(DEADLINE):
        while "{'text': 'hi'}" not in said:
            await asyncio.sleep(0)
            said += capsys.readouterr().out
    await names["supabase"].remove_all_channels()
