"""The Socket.IO door, packet by packet: transports, refusals, limits, other doors' messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import uuid
from collections.abc import Iterator
from typing import Any

import aiohttp
import psycopg
import pytest

from support import pg
from support import phoenix_client as phoenix
from support import wire_client as wire
from support.bridge_process import DOOR_POLICIES, Daemon, daemon, open_bridge, token
from support.engineio_client import QUERY, connect, polling
from support.messages import publish_json
from support.rest_client import request

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def bridge(module_database: pg.Database) -> Iterator[Daemon]:
    with open_bridge(
        module_database, DOOR_POLICIES, max_channels=10, heartbeat=1, auth_timeout=1
    ) as running:
        yield running


async def connections(bridge: Daemon, count: int) -> None:
    """Wait until `count` clients are connected."""
    async with asyncio.timeout(15):
        while await asyncio.to_thread(bridge.metric, "rowcast_connections") != count:
            pass


# The handshake


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("?EIO=3&transport=polling", 5),
        ("?transport=polling", 5),
        ("?EIO=4&transport=pigeon", 0),
        ("?EIO=4", 0),
        ("?EIO=4&transport=polling&sid=unknown", 1),
        ("?EIO=4&transport=websocket&sid=unknown", 1),
    ],
)
async def test_a_wrong_request_gets_the_code_of_the_protocol(
    bridge: Daemon, query: str, code: int
) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{bridge.url}/socket.io/{query}", headers={"Origin": "http://a.page"}) as answer,
    ):
        assert answer.status == 400
        assert (await answer.json())["code"] == code
        assert answer.headers["Access-Control-Allow-Origin"] == "*"


async def test_a_post_opens_no_session_and_preflights_work(bridge: Daemon) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{bridge.url}{QUERY}polling", data="40") as answer:
            assert (await answer.json())["code"] == 2
        async with http.options(f"{bridge.url}{QUERY}polling", headers={"Origin": "x"}) as answer:
            assert "POST" in answer.headers["Access-Control-Allow-Methods"]


@pytest.mark.parametrize(
    ("packet", "says"),
    [
        ("40", "No authentication provided"),
        ('40{"token":""}', "No authentication provided"),
        ('40{"token":"anon_x"}', "API key"),
        ('40{"apiKey":"ik_x"}', "API key"),
        ('40{"token":"a.b.c"}', "not a JSON Web Token"),
        (f'40{{"token":"{token(exp=1)}"}}', "expired"),
        (f'40{{"token":"{token(role="postgres")}"}}', "role"),
    ],
)
async def test_bad_credentials_are_rejected_with_their_reason(
    bridge: Daemon, packet: str, says: str
) -> None:
    async with connect(bridge.url, login=False) as client:
        await client.ws.send_str(packet)
        refused = await client.until(lambda p: p.startswith("44"))
        assert says in json.loads(refused[2:])["message"]


async def test_all_ways_to_give_credentials_work(bridge: Daemon, room: str) -> None:
    for packet in ('40{"token":"%s"}', '40{"apiKey":"%s"}', '40/,{"token":"%s"}'):
        async with connect(bridge.url, login=False) as client:
            await client.ws.send_str(packet % token())
            assert (await client.until(lambda p: p.startswith("40"))).startswith('40{"sid"')
            assert [m["presenceId"] for m in await client.subscribe(room)] == ["alice"]


async def test_pages_of_other_origins_may_not_connect(module_database: pg.Database) -> None:
    with daemon(module_database, allowed_origins="https://a.page") as other:
        async with aiohttp.ClientSession() as http:
            for origin, status in (("https://a.page", 200), ("https://b.page", 403)):
                headers = {"Origin": origin}
                async with http.get(f"{other.url}{QUERY}polling", headers=headers) as answer:
                    assert answer.status == status
                    allowed = answer.headers.get("Access-Control-Allow-Origin")
                    assert allowed == (origin if status == 200 else None)


async def test_other_namespaces_are_refused(bridge: Daemon) -> None:
    async with connect(bridge.url) as client:
        await client.ws.send_str("40/api,{}")
        refused = await client.until(lambda p: p.startswith("44"))
        assert refused == '44/api,{"message":"Invalid namespace"}'


async def test_a_client_without_a_token_is_disconnected(bridge: Daemon) -> None:
    """On every transport."""
    async with connect(bridge.url, login=False) as client, polling(bridge.url) as poller:
        await client.closed()
        _, body = await poller.get()
        assert body.endswith("1")
        assert json.loads((await poller.get())[1])["code"] == 1
    await connections(bridge, 0)


async def test_operations_allowed_without_a_token(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url, login=False) as client:
        for event, body in (
            ("realtime:subscribe", {"channel": room}),
            ("realtime:publish", {"channel": room, "event": "e", "payload": {}}),
        ):
            answer = await client.ask(event, body)
            assert (answer["ok"], answer["error"]["code"]) == (False, "REALTIME_UNAUTHORIZED")


# Polling, and the upgrade to a WebSocket


async def test_an_upgrade_from_polling_loses_no_message(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    async with polling(bridge.url, token=token()) as poller:
        await poller.post(f'421["realtime:subscribe",{{"channel":"{room}"}}]')
        assert (await poller.get())[1].startswith('431[{"ok":true')
        waiting = asyncio.create_task(poller.get())
        publish_json(module_db, room, {"n": 0})
        assert '"n": 0' in (await waiting)[1]
        waiting = asyncio.create_task(poller.get())
        async with connect(bridge.url, f"&sid={poller.sid}") as client:
            await client.ws.send_str("2probe")
            assert await client.read() == "3probe"
            # its poll ends, so that it can stop polling; messages wait meanwhile
            assert (await waiting)[1] == "6"
            publish_json(module_db, room, {"n": 1})
            async with asyncio.timeout(10):
                seen = ""
                while '"n": 1' not in seen:
                    seen = (await poller.get())[1]
            publish_json(module_db, room, {"n": 2})
            await client.ws.send_str("5")
            assert (await client.heard())["n"] == 2
            assert (await poller.get())[0] == 400
            assert (await poller.post("3"))[0] == 400
            publish_json(module_db, room, {"n": 3})
            assert (await client.heard())["n"] == 3


async def test_an_abandoned_upgrade_changes_nothing(bridge: Daemon, room: str) -> None:
    async with polling(bridge.url, token=token()) as poller:
        for packet in ("2probe", "5", "4hello", "x"):
            async with connect(bridge.url, f"&sid={poller.sid}") as client:
                await client.ws.send_str(packet)
                if packet == "2probe":
                    assert await client.read() == "3probe"
                else:
                    await client.closed()
        await poller.post(f'421["realtime:subscribe",{{"channel":"{room}"}}]')
        async with asyncio.timeout(10):
            seen = ""
            while '431[{"ok":true' not in seen:
                seen = (await poller.get())[1]
                if seen == "2":
                    await poller.post("3")


async def test_a_client_that_stops_polling_is_disconnected(bridge: Daemon) -> None:
    async with polling(bridge.url, token=token()):
        await connections(bridge, 1)
    await connections(bridge, 0)


async def test_a_client_that_answers_no_pings_is_disconnected(bridge: Daemon) -> None:
    async with connect(bridge.url) as client:
        while (message := await client.ws.receive(10)).type is aiohttp.WSMsgType.TEXT:
            assert message.data == "2"
    await connections(bridge, 0)


async def test_a_client_that_answers_pings_stays(bridge: Daemon) -> None:
    async with connect(bridge.url) as client:
        for _ in range(3):
            await client.until(lambda p: p == "2")
        await connections(bridge, 1)


async def test_two_polls_at_once_end_both(bridge: Daemon) -> None:
    async with polling(bridge.url, token=token()) as poller:
        answers = await asyncio.gather(poller.get(), poller.get())
        assert sorted(status for status, _ in answers) == [200, 400]
    await connections(bridge, 0)


async def test_an_invalid_packet_ends_the_connection(bridge: Daemon) -> None:
    for body in ("", "x", "4\x1e", "9", "\x1e" * 3, "3\x1e" * 600 + "3"):
        async with polling(bridge.url, token=token()) as poller:
            assert (await poller.post(body))[0] == 400
    async with connect(bridge.url) as client:
        await client.ws.send_str("x")
        await client.closed()
    await connections(bridge, 0)


async def test_a_body_over_the_limit_is_refused(bridge: Daemon) -> None:
    async with polling(bridge.url, token=token()) as poller:
        assert (await poller.post("4" * 1_100_000))[0] == 413


async def test_a_frame_over_the_limit_is_only_an_error(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url) as client:
        await client.subscribe(room)
        await client.emit("realtime:publish", {"channel": room, "payload": "x" * 1_100_000})
        assert (await client.heard("realtime:error"))["code"] == "REALTIME_FRAME_TOO_LARGE"
        answer = await client.publish(room, {"x": "y" * 300_000})
        assert answer["error"]["code"] == "REALTIME_PAYLOAD_TOO_LARGE"


async def test_the_backlog_of_a_polling_client_is_bounded(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    async with polling(bridge.url, token=token()) as poller:
        await poller.post(f'421["realtime:subscribe",{{"channel":"{room}"}}]')
        assert (await poller.get())[1].startswith('431[{"ok":true')
        for number in range(10):
            publish_json(module_db, room, {"n": number, "x": "y" * 200_000})
        body = ""
        while not body.endswith("1"):
            status, body = await poller.get()
            assert status == 200
            assert len(body) < 2_000_000
            if body.endswith("\x1e2") or body == "2":
                await poller.post("3")
        assert (await poller.get())[0] == 400
    await connections(bridge, 0)


async def test_a_polling_client_is_closed_gracefully(module_database: pg.Database) -> None:
    with daemon(module_database) as other:
        async with polling(other.url, token=token()) as poller:
            waiting = asyncio.create_task(poller.get())
            ending = asyncio.create_task(asyncio.to_thread(other.terminate))
            body = (await waiting)[1]
            assert "Server Shutdown" in body
            if not body.endswith("\x1e1"):
                assert (await poller.get())[1] == "1"
            assert await ending == 0


# Requests


async def test_subscribing_twice_answers_twice_and_hears_once(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url) as client:
        answers = await asyncio.gather(
            client.ws.send_str(f'4277["realtime:subscribe",{{"channel":"{room}"}}]'),
            client.ws.send_str(f'42["realtime:subscribe",{{"channel":"{room}"}}]'),
            client.subscribe(room),
        )
        assert await client.until(lambda p: p.startswith('4377[{"ok":true'))
        assert [m["presenceId"] for m in answers[2]] == ["alice"]
        assert [m["presenceId"] for m in await client.subscribe(room)] == ["alice"]
        assert (await client.publish(room, {"n": 1}))["ok"]
        await client.heard()
        assert (await client.publish(room, {"n": 2}))["ok"]
        assert (await client.heard())["n"] == 2


async def test_leaving_and_returning_at_once_is_a_new_subscription(
    bridge: Daemon, room: str
) -> None:
    async with connect(bridge.url) as client:
        for _ in range(5):
            for event in ("subscribe", "unsubscribe"):
                await client.emit(f"realtime:{event}", {"channel": room})
        await client.subscribe(room)
        assert (await client.publish(room, {}))["ok"]
        await client.heard()


async def test_a_channel_too_many_is_refused(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url) as client:
        for number in range(10):
            await client.subscribe(f"{room}{number}")
        answer = await client.ask("realtime:subscribe", {"channel": room})
        assert answer["error"]["code"] == "REALTIME_TOO_MANY_CHANNELS"


async def test_joins_of_oneself_and_of_second_tabs_are_not_told(bridge: Daemon, room: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        watcher = await stack.enter_async_context(connect(bridge.url, token=token("bob")))
        await watcher.subscribe(room)
        one = await stack.enter_async_context(connect(bridge.url))
        [first] = [m for m in await one.subscribe(room) if m["presenceId"] == "alice"]
        assert (await watcher.heard("presence:join"))["member"] == first
        two = await stack.enter_async_context(connect(bridge.url))
        assert first in await two.subscribe(room)
        native = await stack.enter_async_context(wire.connect(bridge.url, token("carol")))
        await native.subscribe(room)
        state = {"status": "here", "presenceId": "bob", "type": "x"}
        await native.ask(op="track", channel=room, state=state)
        for client in (watcher, one, two):
            packet = await client.until(lambda p: "presence:join" in p and "carol" in p)
            join = json.loads(packet[2:])[1]["member"]
            assert (join["presenceId"], join["type"], join["status"]) == ("carol", "user", "here")
        assert not [p for p in one.passed + two.passed if "presence:" in p and "alice" in p]
        assert not [p for p in watcher.passed if "presence:" in p]
        await one.ws.send_str("41")
        await one.closed()
        await native.ask(op="untrack", channel=room)
        left = (await watcher.heard("presence:leave"))["member"]["presenceId"]
        assert left == "carol"  # alice is still present in her second tab
        await two.ws.send_str("41")
        left = (await watcher.heard("presence:leave"))["member"]["presenceId"]
        assert left == "alice"


async def test_access_that_ends_is_told(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    name = f"members:{uuid.uuid4().hex}"
    async with connect(bridge.url) as client:
        await client.subscribe(name)
        answer = await client.ask("realtime:auth", {"token": token("alice", guest=True)})
        assert answer == {"ok": True}
        told = await client.heard("realtime:error")
        assert (told["channel"], told["code"]) == (name, "REALTIME_UNAUTHORIZED")
        assert (await client.publish(name, {}))["error"]["code"] == "REALTIME_NOT_SUBSCRIBED"
        assert (await client.ask("realtime:auth", {"token": token("bob")}))["ok"]
        module_db.execute("select rowcast.kick('bob')")
        assert await client.until(lambda p: p == "41")
        await client.closed()


async def test_a_pattern_subscription_hears_its_channels(
    bridge: Daemon, module_db: psycopg.Connection[Any]
) -> None:
    module_db.execute("insert into realtime_channels (pattern, wildcard) values ('order:*', true)")
    async with connect(bridge.url) as client:
        assert await client.subscribe("order:*") == []
        publish_json(module_db, "order:1", {"n": 1})
        meta = (await client.heard())["meta"]
        assert (meta["channel"], meta["pattern"]) == ("realtime:order:1", "order:*")


# The database


async def test_a_missing_database_closes_clients_instead_of_refusing(
    own_server: pg.OwnServer,
) -> None:
    """A refused client gives up; one that loses its connection subscribes again."""
    with own_server.database() as database, open_bridge(database) as bridge:
        async with connect(bridge.url) as client:
            await client.subscribe("room:1")
            await asyncio.to_thread(own_server.stop, "fast")
            refused = await client.ask("realtime:publish", {"channel": "room:1", "event": "e"}, 30)
            assert refused["error"]["code"] == "REALTIME_UNAVAILABLE"
            await client.ws.send_str('429["realtime:subscribe",{"channel":"room:2"}]')
            told = await client.heard("realtime:error", 30)
            assert (told["channel"], told["code"]) == ("room:2", "REALTIME_UNAVAILABLE")
            assert await client.closed() == 3003
            assert not [p for p in client.passed if p.startswith(("439", "41"))]
        await asyncio.to_thread(own_server.start)
        async with connect(bridge.url) as client, asyncio.timeout(30):
            while not (await client.ask("realtime:subscribe", {"channel": "room:2"}))["ok"]:
                pass


# Across doors


async def test_one_message_is_encoded_once_for_each_door(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    def encodings() -> dict[str, float]:
        wires = ("native", "phoenix2", "socketio")
        return {w: bridge.metric(f'rowcast_encodings_total{{wire="{w}"}}') for w in wires}

    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        native = [await enter(wire.connect(bridge.url)) for _ in range(3)]
        supabase = [await enter(phoenix.connect(bridge.url)) for _ in range(3)]
        insforge = [await enter(connect(bridge.url)) for _ in range(3)]
        for one in native:
            await one.subscribe(room)
        for two in supabase:
            await two.join(room, self=True)
        for three in insforge:
            await three.subscribe(room)
        before = encodings()
        publish_json(module_db, room, {"from": "sql"})
        await native[0].publish(room, {"from": "native"})
        assert (await supabase[0].publish(room, {"from": "supabase"})).status == "ok"
        assert (await insforge[0].publish(room, {"from": "insforge"}))["ok"]
        message = {"channel": room, "event": "e", "payload": {"from": "rest"}}
        sent = await asyncio.to_thread(
            request, bridge.url, "POST", "/api/realtime/messages", message, key=token("alice")
        )
        assert sent.status == 201, sent.text
        doors = ["sql", "native", "supabase", "insforge", "rest"]
        for one in native:
            assert [m["payload"]["from"] for m in await one.messages(5)] == doors
        for two in supabase:
            assert [(await two.message())["payload"]["from"] for _ in doors] == doors
        for three in insforge:
            messages = [await three.heard() for _ in doors]
            assert [m["from"] for m in messages] == doors
            senders = [(m["meta"]["senderType"], m["meta"].get("senderId")) for m in messages]
            assert senders == [("system", None), *[("user", "alice")] * 4]
            assert {m["meta"]["channel"] for m in messages} == {f"realtime:{room}"}
        after = encodings()
        assert {w: after[w] - before[w] for w in after} == dict.fromkeys(after, 5)


async def test_mutated_frames_end_only_their_own_connection(bridge: Daemon, room: str) -> None:
    seeds = [
        f'421["realtime:subscribe",{{"channel":"{room}"}}]',
        f'42["realtime:publish",{{"channel":"{room}","event":"e","payload":{{"a":1}}}}]',
        "40/,{}", "41/x", "3", "2", "451-[1]", "b4x", "43[]", "44{}", '42["realtime:auth",{}]',
    ]  # fmt: skip
    dice = random.Random(7)
    async with connect(bridge.url, token=token("bob")) as witness:
        await witness.subscribe(room)
        for _ in range(40):
            async with connect(bridge.url) as client:
                with contextlib.suppress(ConnectionError, aiohttp.ClientError):
                    for _ in range(10):
                        text = bytearray(dice.choice(seeds).encode())
                        for _ in range(dice.randrange(4)):
                            text[dice.randrange(len(text))] = dice.randrange(32, 127)
                        await client.ws.send_str(text.decode())
        assert (await witness.publish(room, {}, "last"))["ok"]
        await witness.heard("last")
