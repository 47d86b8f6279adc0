"""The Phoenix door, frame by frame: refusals, limits, resuming, messages of other doors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections.abc import Iterator
from typing import Any

import aiohttp
import psycopg
import pytest
from psycopg.types.json import Jsonb

from support import pg
from support import wire_client as wire
from support.bridge_process import DOOR_POLICIES, Daemon, daemon, open_bridge, token
from support.flaky_network import flaky_network
from support.messages import publish_json
from support.phoenix_client import Phoenix, connect
from support.wire_client import ClosedError

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def bridge(module_database: pg.Database) -> Iterator[Daemon]:
    with open_bridge(module_database, DOOR_POLICIES, max_channels=10) as running:
        yield running


# The handshake


@pytest.mark.parametrize(
    ("query", "headers", "status", "says"),
    [
        ("", {}, 401, "apikey"),
        ("?apikey=no.such.key", {}, 401, "not a JSON Web Token"),
        (f"?apikey={token(exp=1)}", {}, 401, "expired"),
        (f"?apikey={token(role='postgres')}", {}, 401, "role"),
        (f"?apikey={token()}&vsn=3.0.0", {}, 400, "vsn"),
        (f"?apikey={token()}", {"x-api-key": "bad"}, 401, "not a JSON Web Token"),
    ],
)
async def test_a_refused_handshake_is_http_with_a_reason(
    bridge: Daemon, query: str, headers: dict[str, str], status: int, says: str
) -> None:
    upgrade = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    url = f"{bridge.url}/realtime/v1/websocket{query}"
    async with (
        aiohttp.ClientSession() as http,
        http.get(url, headers={**upgrade, **headers}) as answer,
    ):
        assert answer.status == status
        assert says in (await answer.json())["error"]


async def test_both_paths_and_both_places_of_a_key_work(bridge: Daemon, room: str) -> None:
    for path in ("/realtime/v1/websocket", "/socket/websocket"):
        async with connect(bridge.url, path=path) as client:
            await client.join(room)
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{bridge.url}/socket/websocket", headers={"x-api-key": token()}) as ws,
    ):
        # without vsn the version is 1.0.0
        await ws.send_json({"topic": "phoenix", "event": "heartbeat", "payload": {}, "ref": None})
        assert (await ws.receive_json())["event"] == "phx_reply"


# Across doors


async def test_one_message_is_encoded_once_for_each_door(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    def encodings() -> dict[str, float]:
        wires = ("native", "phoenix1", "phoenix2")
        return {w: bridge.metric(f'rowcast_encodings_total{{wire="{w}"}}') for w in wires}

    async with contextlib.AsyncExitStack() as stack:
        native = [await stack.enter_async_context(wire.connect(bridge.url)) for _ in range(5)]
        supabase = [await stack.enter_async_context(connect(bridge.url)) for _ in range(5)]
        for one in native:
            await one.subscribe(room)
        for other in supabase:
            await other.join(room, self=True)
        before = encodings()
        publish_json(module_db, room, {"from": "sql"})
        await native[0].publish(room, {"from": "native"})
        assert (await supabase[0].publish(room, {"from": "supabase"})).status == "ok"
        for one in native:
            messages = await one.messages(3)
            assert [m["payload"]["from"] for m in messages] == ["sql", "native", "supabase"]
            assert [m["type"] for m in messages] == ["message", "message", "broadcast"]
        for other in supabase:
            heard = [await other.message() for _ in range(3)]
            assert [m["payload"]["from"] for m in heard] == ["sql", "native", "supabase"]
            assert {m["type"] for m in heard} == {"broadcast"}
        after = encodings()
        assert {w: after[w] - before[w] for w in after} == {
            "native": 3, "phoenix1": 0, "phoenix2": 3,
        }  # fmt: skip


async def test_messages_cannot_imitate_server_events_of_other_doors(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    words = [
        "phx_reply", "phx_close", "phx_error", "system", "presence_state", "presence_diff",
        "postgres_changes", "access_token", "ok", "error", "messages", "closed", "presence",
        "status", "cursor", "welcome",
    ]  # fmt: skip
    lie = {"op": "closed", "status": "error", "code": "revoked", "extension": "system"}
    async with (
        wire.connect(bridge.url) as native,
        connect(bridge.url) as victim,
        connect(bridge.url) as forger,
    ):
        await native.subscribe(room)
        await victim.join(room)
        await forger.join(room)
        for word in words:
            await native.publish(room, lie, word)
            assert (await forger.publish(room, lie, word)).status == "ok"
            module_db.execute("select rowcast.publish(%s, %s, %s)", [room, word, Jsonb(lie)])
        frames = [await victim.read() for _ in range(3 * len(words))]
        assert {frame.event for frame in frames} == {"broadcast"}
        assert {frame.payload["event"] for frame in frames} == set(words)
        assert not await victim.quiet()
        messages = await native.messages(3 * len(words))
        assert {m["event"] for m in messages} == set(words)
        assert {frame["op"] for frame in await native.quiet()} <= {"cursor"}


async def test_messages_of_a_pattern_topic_name_their_channel(
    bridge: Daemon, module_db: psycopg.Connection[Any]
) -> None:
    module_db.execute("insert into realtime_channels (pattern, wildcard) values ('order:*', true)")
    async with connect(bridge.url) as client:
        await client.join("order:*")
        publish_json(module_db, "order:7", 1)
        frame = await client.until(lambda f: f.event == "broadcast")
        assert frame.topic == "realtime:order:*"
        assert frame.payload["meta"]["channel"] == "order:7"


async def test_a_revoked_client_is_told_and_hears_no_later_message(
    bridge: Daemon, module_db: psycopg.Connection[Any]
) -> None:
    module_db.execute("insert into realtime_channels (pattern) values ('going:*')")
    async with connect(bridge.url) as client:
        await client.join("going:1")
        with module_db.transaction():
            module_db.execute(
                "update realtime_channels set enabled = false where pattern = 'going:*'"
            )
        assert not (await client.system("going:1")).startswith("live")
        closed = await client.until(lambda f: f.topic == "realtime:going:1")
        assert closed.event == "phx_close"
        assert not await client.quiet()


# Limits and refusals


async def test_the_limits_are_those_of_the_native_wire(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url) as client:
        for number in range(10):
            await client.join(f"{room}{number}")
        reply = await client.ask(f"realtime:{room}x", "phx_join", {})
        assert reply.reason.startswith("ChannelRateLimitReached: ")
        reply = await client.publish(f"{room}1", "x" * 300_000)
        assert reply.reason.startswith("payload_too_large: ")
        reply = await client.publish("readonly:1", {})
        assert reply.reason.startswith("forbidden: ")
        for name in ("nothing:here", "members:*"):
            reply = await client.ask(f"realtime:{name}", "phx_join", {})
            assert reply.status == "error"


async def test_frames_beyond_the_rate_are_refused_each_with_a_reply(
    module_database: pg.Database, room: str
) -> None:
    with daemon(module_database, frame_rate=1, frame_burst=5) as bridge:
        async with connect(bridge.url) as client:
            await client.join(room)
            refs = [await client.send("phoenix", "heartbeat", {}) for _ in range(10)]
            replies = [await client.until(lambda f, r=r: f.ref == r) for r in refs]
            refused = [r for r in replies if r.status == "error"]
            assert len(refused) >= 5
            assert all("RateLimitReached" in r.reason for r in refused)


async def test_a_client_that_only_sends_invalid_frames_is_closed(bridge: Daemon) -> None:
    async with connect(bridge.url) as client:
        for _ in range(200):
            with contextlib.suppress(ConnectionError):
                await client.ws.send_str("nonsense")
        with pytest.raises(ClosedError) as end:
            await client.until(lambda _: False)
        assert end.value.code == 3503


async def test_an_expired_token_is_told_and_ends_the_session(
    module_database: pg.Database, room: str
) -> None:
    with daemon(module_database, jwt_leeway=0) as bridge:
        async with connect(bridge.url, token(exp=int(time.time()) + 2)) as client:
            await client.join(room)
            assert (await client.system(room)).startswith("token_expired: ")
            with pytest.raises(ClosedError) as end:
                await client.read()
            assert end.value.code == 3501


async def test_a_refused_token_ends_the_session(bridge: Daemon, room: str) -> None:
    """And gives no access meanwhile."""
    async with connect(bridge.url, token(None, "anon")) as client:
        await client.join(room)
        for bad in (token(exp=1), "bad"):
            body = {"access_token": bad}
            reply = await client.ask("realtime:members:1", "phx_join", body)
            assert reply.status == "error"
        await client.send(f"realtime:{room}", "access_token", {"access_token": token(exp=1)})
        assert (await client.system(room)).startswith("token_expired: ")
        with pytest.raises(ClosedError):
            await client.read()


# Resuming


async def test_a_handle_resumes_also_after_the_bridge_was_killed(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    handle = uuid.uuid4().hex
    async with connect(bridge.url) as client:
        await client.join(room, resume=handle)
        assert (await client.system(room)).startswith("live: ")
        publish_json(module_db, room, 1)
        assert (await client.message())["payload"] == 1
        await kept(client, module_db)
    publish_json(module_db, room, 2)
    bridge.kill()
    publish_json(module_db, room, 3, kind="broadcast")
    bridge.start()
    async with connect(bridge.url) as client:
        await client.join(room, resume=handle)
        assert (await client.system(room)).startswith("resumed: ")
        heard = [await client.message() for _ in range(2)]
        if heard[0]["payload"] == 1:  # the cursor was older: repeated, and marked as replayed
            heard = [*heard[1:], await client.message()]
        assert [m["payload"] for m in heard] == [2, 3]
        assert all(m["meta"]["replayed"] for m in heard)
        publish_json(module_db, room, 4)
        live = await client.message()
        assert (live["payload"], live["meta"].get("replayed")) == (4, None)


async def kept(client: Phoenix, module_db: psycopg.Connection[Any]) -> None:
    """Wait until the client's cursor is stored under its handle."""
    moment = module_db.execute("select clock_timestamp()").fetchone()
    for _ in range(200):
        await client.quiet()  # reading answers pings
        row = module_db.execute(
            "select exists (select from rowcast.handle where kept_at > %s)", moment
        ).fetchone()
        if row == (True,):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("no handle was written down")


async def test_a_handle_is_useless_to_another_user(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    handle = uuid.uuid4().hex
    async with connect(bridge.url) as client:
        await client.join(room, resume=handle)
        await kept(client, module_db)
    publish_json(module_db, room, "missed by alice")
    async with connect(bridge.url, token("mallory")) as client:
        await client.join(room, resume=handle)
        assert (await client.system(room)).startswith("live: ")
        await client.quiet()
    async with connect(bridge.url) as client:
        await client.join(room, resume=handle)
        assert (await client.system(room)).startswith("resumed: ")
        assert (await client.message())["payload"] == "missed by alice"


async def test_messages_written_but_not_received_are_replayed(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    """The network drops what the bridge wrote, and then breaks."""
    handle = uuid.uuid4().hex
    got: list[int] = []
    async with flaky_network(bridge.url) as network:
        for turn in range(5):
            async with connect(network.url) as client:
                await client.join(room, resume=handle)
                for number in range(turn * 20, turn * 20 + 10):
                    publish_json(module_db, room, number)
                while not got or got[-1] < turn * 20 + 9:
                    got.append((await client.message())["payload"])
                network.swallowing = True
                for number in range(turn * 20 + 10, turn * 20 + 20):
                    publish_json(module_db, room, number)
                await asyncio.wait_for(network.swallowed.wait(), 10)
                network.cut()
                network.swallowed.clear()
        async with connect(bridge.url) as client:
            await client.join(room, resume=handle)
            while got[-1] != 99:
                got.append((await client.message())["payload"])
    assert sorted(set(got)) == list(range(100))
    firsts = list(dict.fromkeys(got))
    assert firsts == sorted(firsts)


async def test_replay_returns_history_since_a_time(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    async with connect(bridge.url) as client:
        await client.join(room)
        for number in range(40):
            publish_json(module_db, room, number)
        for _ in range(40):  # wait until the bridge has read them all, too
            await client.message()
    row = module_db.execute("select extract(epoch from clock_timestamp()) * 1000").fetchone()
    assert row is not None
    async with connect(bridge.url) as client:
        await client.join(room, replay={"since": 0})
        heard = [await client.message() for _ in range(25)]
        assert [m["payload"] for m in heard] == list(range(15, 40))
        assert all(m["meta"]["replayed"] for m in heard)
    async with connect(bridge.url) as client:
        await client.join(room, replay={"since": int(row[0])})
        assert not await client.quiet()


async def test_a_persistent_publish_writes_history(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    async with connect(bridge.url) as client:
        await client.join(room)
        assert (await client.publish(room, "gone soon")).status == "ok"
        await client.join(room, persist=True)
        assert (await client.publish(room, "kept")).status == "ok"
    rows = module_db.execute(
        "select type, payload from realtime_messages where channel_name = %s order by seq", [room]
    ).fetchall()
    assert rows == [("broadcast", "gone soon"), ("message", "kept")]


@pytest.mark.parametrize("binary", [False, True])
async def test_hostile_frames_do_not_harm_other_clients(
    bridge: Daemon, room: str, binary: bool
) -> None:
    chance = random.Random(5)
    async with connect(bridge.url) as neighbour:
        await neighbour.join(room, self=True)
        left = 500
        while left:
            async with connect(bridge.url) as client:
                with contextlib.suppress(ConnectionError):
                    while left:
                        left -= 1
                        data = bytes(chance.randrange(256) for _ in range(chance.randrange(60)))
                        if binary:
                            await client.ws.send_bytes(b"\x03" + data)
                        else:
                            text = json.dumps(["1", "2", "realtime:room:1", "phx_join", {}])
                            at = chance.randrange(len(text))
                            cut = text[:at] + data[:3].decode("latin-1") + text[at + 2 :]
                            await client.ws.send_str(cut)
        await neighbour.publish(room, "still here")
        assert (await neighbour.message())["payload"] == "still here"
