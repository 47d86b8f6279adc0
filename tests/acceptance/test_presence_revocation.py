"""A client without access is not a member, not counted, and not told about members."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from acceptance.test_presence import ROOM, Watch, track
from acceptance.test_revocation import SETUP, heard, is_closed, member, remove, say
from support import pg
from support import phoenix_client as phoenix
from support.bridge_process import Daemon, daemon, token
from support.rest_client import request
from support.waiting import eventually
from support.wire_client import Wire, connect

pytestmark = pytest.mark.acceptance

# far longer than a test takes: a member that leaves in time left without the grace time
GRACE = 300
AUDIENCE = "select rowcast.audience('room:1')"
PRESENT = "select array_agg(key order by key) from rowcast.presence_state('room:1')"


@pytest.fixture
def bridges(database: pg.Database) -> Iterator[tuple[Daemon, Daemon]]:
    with database.connect(database.owner_url) as connection:
        connection.execute(SETUP)
    settings = {"presence_grace": GRACE, "jwt_leeway": 0, "query_timeout": 5}
    with daemon(database, **settings) as one, daemon(database, **settings) as two:
        yield one, two


@pytest.fixture
def sql(database: pg.Database) -> Iterator[psycopg.Connection[Any]]:
    with database.connect() as connection:
        yield connection


async def watched(wire: Wire) -> Watch:
    """Subscribe and return the client's view of the members from now on."""
    wire.passed.clear()
    return Watch(wire, (await wire.subscribe(ROOM))["presence"])


def counts(sql: psycopg.Connection[Any], audience: int, *present: str) -> None:
    """Wait until `audience` clients are subscribed and exactly these members are present."""
    eventually(lambda: sql.execute(AUDIENCE).fetchone() == (audience,), what=f"{audience} listen")
    wanted = (sorted(present) or None,)
    eventually(lambda: sql.execute(PRESENT).fetchone() == wanted, what=f"{present} are there")


async def test_a_revoked_member_leaves_and_hears_no_presence(
    bridges: tuple[Daemon, Daemon], sql: psycopg.Connection[Any]
) -> None:
    """From the commit on, although members of the other bridge keep changing around it."""
    one, two = bridges
    async with member(one, sql, "alice", "1") as alice, member(two, sql, "bob", "1") as bob:
        watching = await watched(bob)
        for number in range(20):
            await track(alice, n=number)
            await track(bob, n=f"before {number}")
            await watching.until({"alice": {"n": number}, "bob": {"n": f"before {number}"}})
            remove(sql, "alice", "1")
            await track(bob, n=f"after {number}")
            assert (await alice.until(is_closed))["code"] == "revoked"
            await watching.until({"bob": {"n": f"after {number}"}})
            counts(sql, 1, "bob")
            await track(bob, n=f"later {number}")
            told = str([f for f in await alice.quiet() if f["op"] == "presence"])
            assert f"after {number}'" not in told
            assert f"later {number}'" not in told
            assert (await alice.ask(op="track", channel=ROOM, state={}))["op"] == "error"
            sql.execute("insert into room_members values ('1', 'alice')")
            assert len((await alice.subscribe(ROOM))["presence"]) == 1


async def test_a_kicked_member_leaves_at_once(
    bridges: tuple[Daemon, Daemon], sql: psycopg.Connection[Any]
) -> None:
    """One that is only disconnected may come back."""
    one, two = bridges
    async with (
        member(one, sql, "bob", "1") as bob,
        member(one, sql, "alice", "1") as first,
        member(two, sql, "alice", "1") as second,
        member(two, sql, "eve", "1") as eve,
    ):
        watching = await watched(bob)
        for wire in (first, second, eve):
            await track(wire, here=True)
        await watching.until({"alice": {"here": True}, "eve": {"here": True}})
        sql.execute("select rowcast.kick('alice')")
        # read all the while: an unanswered close ends in a reset without its code
        assert await asyncio.gather(first.closed(), second.closed()) == [3504, 3504]
        await watching.until({"eve": {"here": True}})
        counts(sql, 2, "eve")
        sql.execute("select rowcast.kick('eve', reconnect => true)")
        assert await eve.closed() == 3004
        counts(sql, 1, "eve")
        async with member(one, sql, "eve", "1") as again:
            await track(again, here="again")
            await watching.until({"eve": {"here": "again"}})
        assert ("leave", "eve") not in watching.events


async def test_a_member_leaves_when_its_token_expires(
    bridges: tuple[Daemon, Daemon], sql: psycopg.Connection[Any]
) -> None:
    one, two = bridges
    async with member(one, sql, "bob", "1") as bob, member(two, sql, "alice", "1") as alice:
        watching = await watched(bob)
        await track(alice, here=True)
        await watching.until({"alice": {"here": True}})
        short = token("alice", exp=int(time.time()) + 2)
        assert (await alice.ask(op="auth", token=short))["op"] == "ok"
        assert await alice.closed() == 3501
        await watching.until({})
        counts(sql, 1)


@pytest.mark.parametrize("how", ["disabled", "deleted"])
async def test_a_channel_that_ends_loses_members_and_keeps_history(
    bridges: tuple[Daemon, Daemon], sql: psycopg.Connection[Any], how: str
) -> None:
    one, two = bridges
    async with member(one, sql, "alice", "1") as alice, member(two, sql, "bob", "1") as bob:
        say(sql, "1", "kept")
        await track(alice, here=True)
        await track(bob, here=True)
        counts(sql, 2, "alice", "bob")
        channels = request(one.url, "GET", "/api/realtime/channels").json
        [row] = [channel for channel in channels if channel["pattern"] == "room:*"]
        path = f"/api/realtime/channels/{row['id']}"
        if how == "disabled":
            answer = request(two.url, "PUT", path, {"enabled": False})
        else:
            answer = request(two.url, "DELETE", path)
        assert answer.status in {200, 204}
        for wire in (alice, bob):
            assert (await wire.until(is_closed))["code"] == how
        counts(sql, 0)
        found = request(one.url, "GET", "/api/realtime/messages?channelName=room:1").json
        assert [(m["payload"], m["channelId"]) for m in found] == [
            ("kept", row["id"] if how == "disabled" else None)
        ]
        for wire in (alice, bob):
            assert heard(await wire.quiet()) in ([], ["kept"])


async def test_both_doors_show_the_same_members(
    bridges: tuple[Daemon, Daemon], sql: psycopg.Connection[Any]
) -> None:
    one, two = bridges
    sql.execute("insert into room_members values ('1', 'alice')")
    topic = f"realtime:{ROOM}"
    async with (
        member(one, sql, "bob", "1") as bob,
        phoenix.connect(two.url, token("alice")) as alice,
    ):
        watching = await watched(bob)
        config = {"config": {"presence": {"enabled": True, "key": ""}}}
        assert (await alice.ask(topic, "phx_join", config)).status == "ok"
        counts(sql, 2)
        shown = {"type": "presence", "event": "track", "payload": {"x": 1}}
        assert (await alice.ask(topic, "presence", shown)).status == "ok"
        await track(bob, x=2)
        await watching.until({"alice": {"x": 1}, "bob": {"x": 2}})
        counts(sql, 2, "alice", "bob")
        diff = await alice.until(
            lambda f: f.event == "presence_diff" and "bob" in f.payload["joins"]
        )
        assert diff.payload["joins"]["bob"]["metas"][0]["x"] == 2
        remove(sql, "alice", "1")
        await alice.until(lambda f: f.event == "phx_close" and f.topic == topic)
        assert [f for f in alice.passed if f.event == "system" and f.payload["status"] == "error"]
        await watching.until({"bob": {"x": 2}})
        counts(sql, 1, "bob")
        alice.passed.clear()
        await track(bob, x=3)
        await watching.until({"bob": {"x": 3}})
        assert not [f for f in await alice.quiet() if f.event.startswith("presence")]


async def test_a_client_that_loses_a_channel_leaves_only_that_one(
    bridges: tuple[Daemon, Daemon], sql: psycopg.Connection[Any]
) -> None:
    async with member(bridges[0], sql, "alice", "1", "2") as alice:
        for room in ("room:1", "room:2"):
            assert (await alice.ask(op="track", channel=room, state={"in": room}))["op"] == "ok"
        remove(sql, "alice", "1")
        assert (await alice.until(is_closed))["channel"] == "room:1"
        counts(sql, 0)
        found = sql.execute("select key from rowcast.presence_state('room:2')").fetchall()
        assert found == [("alice",)]
        assert sql.execute("select rowcast.audience('room:2')").fetchone() == (1,)
        async with connect(bridges[1].url, token("alice")) as other:
            assert (await other.ask(op="subscribe", channel=ROOM))["code"] == "forbidden"
            assert (await other.subscribe("room:2"))["presence"][0]["key"] == "alice"
