"""Presence under pressure: the limits on states, and the cost of many updates."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support import pg
from support.bridge_process import Daemon, daemon, open_channels, token
from support.waiting import eventually
from support.wire_client import Wire, connect

pytestmark = pytest.mark.acceptance

ROOM = "room:1"
LIMIT = 200


@pytest.fixture(scope="module")
def bridge(module_database: pg.Database) -> Iterator[Daemon]:
    open_channels(module_database, "room:*")
    with daemon(module_database, max_state=LIMIT, max_members=3, presence_grace=0) as running:
        yield running


async def said(wire: Wire, state: str, channel: str = ROOM) -> str:
    """Track a state given as JSON text; return `ok` or the code of the refusal."""
    await wire.ws.send_str(f'{{"op":"track","ref":"t","channel":"{channel}","state":{state}}}')
    answer = await wire.until(lambda f: f.get("ref") == "t")
    return str(answer.get("code", "ok"))


BAD = {
    "no object": ("[1]", "invalid_message"),
    "a number": ("1", "invalid_message"),
    "null": ("null", "invalid_message"),
    "over the limit": (json.dumps({"x": "y" * LIMIT}), "payload_too_large"),
    "a number of three hundred digits": ('{"x":1e300}', "payload_too_large"),
    "a number that no type holds": ('{"x":1e100000}', "invalid_message"),
    "NUL": ('{"x":"\\u0000"}', "invalid_message"),
}


@pytest.mark.parametrize("kind", BAD)
async def test_an_invalid_state_is_refused_and_harms_no_other(
    bridge: Daemon, module_database: pg.Database, kind: str
) -> None:
    """Not even those written in the same statement; the former state stays."""
    state, code = BAD[kind]
    async with connect(bridge.url, token("bad")) as bad, connect(bridge.url, token("good")) as good:
        for wire in (bad, good):
            await wire.subscribe(ROOM)
        assert await said(bad, '{"n":1}') == "ok"
        for turn in range(3):
            answers = await asyncio.gather(said(bad, state), said(good, f'{{"turn":{turn}}}'))
            assert answers == [code, "ok"]
        with module_database.connect() as db:
            present = "select key, state from rowcast.presence_state(%s) order by key"
            assert db.execute(present, [ROOM]).fetchall() == [
                ("bad", {"n": 1}),
                ("good", {"turn": 2}),
            ]
            await bad.ask(op="untrack", channel=ROOM)
            assert await said(bad, state) == code
            assert db.execute(present, [ROOM]).fetchall() == [("good", {"turn": 2})]
            for wire in (bad, good):
                await wire.ws.close()
            eventually(lambda: db.execute(present, [ROOM]).fetchall() == [])


async def test_numbers_and_text_of_a_state_are_preserved(bridge: Daemon) -> None:
    async with connect(bridge.url, token("ann")) as wire:
        await wire.subscribe("room:numbers")
        state = '{"a": 1.10, "b": 12345678901234567890123, "c": "é\\u2028\\"", "d": {"e": []}}'
        assert await said(wire, state, "room:numbers") == "ok"
        frame = await wire.until(lambda f: f["op"] == "presence")
        assert frame["events"][0]["presence"]["c"] == 'é\u2028"'
        assert str(frame["events"][0]["presence"]["b"]).startswith("1234567890123456789")
        assert frame["events"][0]["presence"]["d"] == {"e": []}


async def test_a_channel_has_a_member_limit(bridge: Daemon) -> None:
    async with contextlib.AsyncExitStack() as stack:
        wires = [
            await stack.enter_async_context(connect(bridge.url, token(f"user{n}")))
            for n in range(5)
        ]
        for wire in wires:
            await wire.subscribe("room:full")
        answers = await asyncio.gather(*(said(wire, "{}", "room:full") for wire in wires))
        assert sorted(answers) == ["ok"] * 3 + ["too_many_members"] * 2
        inside = [wire for wire, answer in zip(wires, answers, strict=True) if answer == "ok"]
        outside = [wire for wire in wires if wire not in inside]
        assert await said(inside[0], '{"still":1}', "room:full") == "ok"
        await inside[0].ask(op="untrack", channel="room:full")
        await inside[1].until(
            lambda f: f["op"] == "presence" and any(e["type"] == "leave" for e in f["events"])
        )
        assert await said(outside[0], "{}", "room:full") == "ok"


CLIENTS = 200
RATE = 30
SECONDS = 6.0


async def chatter(wire: Wire, until: float) -> int:
    """Track 30 times a second without waiting for answers; return the last number."""
    began = time.monotonic()
    number = 0
    while time.monotonic() < until:
        number += 1
        await wire.send(op="track", channel=ROOM, state={"n": number})
        await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
    return number


async def listen(wire: Wire) -> None:
    """Read all frames; a refusal or a close fails the test."""
    while True:
        frame = await wire.read(60)
        assert frame["op"] not in ("closed", "error"), frame


@pytest.mark.slow
async def test_chatty_clients_cost_bounded_writes(
    database: pg.Database,
) -> None:
    """And all stay connected."""
    open_channels(database, "room:*")
    written = "select n_tup_ins + n_tup_upd from pg_stat_user_tables where relname = 'presence'"
    present = "select key, state from rowcast.presence_state(%s)"
    with daemon(database) as bridge, database.connect() as db:
        async with contextlib.AsyncExitStack() as stack:
            wires = [
                await stack.enter_async_context(connect(bridge.url, token(f"user{n}")))
                for n in range(CLIENTS)
            ]
            for wire in wires:
                await wire.subscribe(ROOM)
            began = time.monotonic()
            listening = [asyncio.create_task(listen(wire)) for wire in wires]
            sent = await asyncio.gather(*(chatter(wire, began + SECONDS) for wire in wires))
            expected = {f"user{n}": {"n": number} for n, number in enumerate(sent)}
            found: dict[str, Any] = {}
            async with asyncio.timeout(60):
                while found != expected:
                    found = dict(db.execute(present, [ROOM]).fetchall())
                    await asyncio.sleep(0.1)
            took = time.monotonic() - began
            assert not any(task.done() for task in listening), "all are still present"
            for task in listening:
                task.cancel()
            await asyncio.gather(*listening, return_exceptions=True)
            (rows,) = db.execute(written).fetchone() or (0,)
            print(f"{sum(sent)} tracks, {rows} rows written in {took:.1f} s")
            assert rows <= CLIENTS * (took / 0.05 + 2)
            assert bridge.metric('rowcast_events_total{event="slow_client"}') == 0
