"""Subscribing to a pattern: all channels that its row governs, if the row allows it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from rowcast_client import Message
from rowcast_client import connect as client
from support import pg
from support.bridge_process import Daemon, daemon, open_channels, token
from support.wire_client import Frame, Wire, connect

pytestmark = pytest.mark.acceptance


@pytest.fixture
def bridge(database: pg.Database) -> Iterator[Daemon]:
    """A bridge with the open recipe, whose policies do not use the channel name."""
    open_channels(database, "order:*", "order:secret", "plain:*", "deep:**")
    with database.connect() as connection:
        connection.execute(
            "update realtime_channels set wildcard = true where pattern in ('order:*', 'deep:**')"
        )
    with daemon(database) as running:
        yield running


@pytest.fixture
def sql(database: pg.Database) -> Iterator[psycopg.Connection[Any]]:
    with database.connect() as connection:
        yield connection


def say(sql: psycopg.Connection[Any], channel: str, *payloads: Any, kind: str = "message") -> None:
    for payload in payloads:
        sql.execute(
            "select rowcast.publish(%s, 'e', %s, %s)",
            [channel, psycopg.types.json.Jsonb(payload), kind],
        )


def told(messages: list[Frame]) -> list[tuple[str, Any]]:
    return [(message["channel"], message["payload"]) for message in messages]


async def routed(wire: Wire, count: int) -> list[tuple[str, str, Any]]:
    """Return (channel of the frame, channel of the message, payload) of `count` messages."""
    found: list[tuple[str, str, Any]] = []
    while len(found) < count:
        frame = await wire.until(lambda f: f["op"] == "messages")
        found += [(frame["channel"], m["channel"], m["payload"]) for m in frame["messages"]]
    return found


async def test_messages_arrive_with_their_own_channel(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    async with connect(bridge.url) as wire:
        await wire.subscribe("order:*")
        await wire.subscribe("deep:**")
        say(sql, "order:1", 1)
        say(sql, "order:secret", "of another row")
        say(sql, "plain:1", "of another pattern")
        say(sql, "order:2", 2, kind="broadcast")
        say(sql, "deep:a:b:c", 3)
        assert await routed(wire, 3) == [
            ("order:*", "order:1", 1),
            ("order:*", "order:2", 2),
            ("deep:**", "deep:a:b:c", 3),
        ]
        assert not [f for f in await wire.quiet() if f["op"] == "messages"]


async def test_a_pattern_without_the_flag_is_refused_as_unknown(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    async with connect(bridge.url) as wire:
        answers = [
            await wire.ask(op="subscribe", channel=channel)
            for channel in ("plain:*", "nothing:*", "nothing", "order:**", "*", "**")
        ]
        for answer in answers:
            del answer["channel"], answer["ref"]
        assert answers == [answers[0]] * len(answers)
        assert answers[0]["code"] == "forbidden"
        say(sql, "plain:1", "not heard")
        assert not [f for f in await wire.quiet() if f["op"] == "messages"]
        assert (await wire.ask(op="publish", channel="order:*", event="e"))["code"] == (
            "invalid_channel"
        )


async def test_policies_apply_in_addition_to_the_flag(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    sql.execute(
        "create policy staff on realtime_channels as restrictive for select to authenticated"
        " using (position('*' in rowcast.channel_name()) = 0 or rowcast.user_id() = 'staff')"
    )
    async with connect(bridge.url) as alice, connect(bridge.url, token("staff")) as staff:
        assert (await alice.ask(op="subscribe", channel="order:*"))["code"] == "forbidden"
        await alice.subscribe("order:1")
        await staff.subscribe("order:*")


async def test_pattern_and_name_are_two_subscriptions(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    async with connect(bridge.url) as wire:
        for answer in (await wire.subscribe("order:*"), await wire.subscribe("order:1")):
            assert answer["cursor"]
        say(sql, "order:1", "x")
        assert sorted(await routed(wire, 2)) == [
            ("order:*", "order:1", "x"),
            ("order:1", "order:1", "x"),
        ]
        await wire.ask(op="unsubscribe", channel="order:1")
        say(sql, "order:1", "y")
        assert await routed(wire, 1) == [("order:*", "order:1", "y")]


async def test_a_publish_right_behind_the_subscribe_is_heard(bridge: Daemon) -> None:
    """Although the pattern's row is known only when the policies have answered."""
    async with connect(bridge.url) as wire:
        for number in range(20):
            await wire.send(op="subscribe", channel="order:*")
            await wire.publish("order:7", number)
            assert await routed(wire, 1) == [("order:*", "order:7", number)]
            await wire.ask(op="unsubscribe", channel="order:*")


async def test_a_client_without_echo_hears_only_others(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    async with connect(bridge.url) as wire:
        await wire.subscribe("order:*", self=False)
        await wire.publish("order:1", "own")
        say(sql, "order:1", "foreign")
        assert await routed(wire, 1) == [("order:*", "order:1", "foreign")]


async def test_it_resumes_from_the_cursor_and_has_history(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    async with connect(bridge.url) as wire:
        cursor = (await wire.subscribe("order:*"))["cursor"]
    say(sql, "order:1", 1)
    say(sql, "order:2", 2, kind="broadcast")
    say(sql, "order:secret", "of another row")
    say(sql, "order:2", 3)
    async with connect(bridge.url) as wire:
        answer = await wire.subscribe("order:*", after=cursor)
        assert (answer["recovered"], answer["ephemeral"]) == (True, True)
        frame = await wire.until(lambda f: f["op"] == "messages")
        assert frame["channel"] == "order:*"
        assert frame["replay"] is True
        assert told(frame["messages"]) == [("order:1", 1), ("order:2", 2), ("order:2", 3)]
        say(sql, "order:3", 4)
        assert await routed(wire, 1) == [("order:*", "order:3", 4)]
        await wire.ask(op="unsubscribe", channel="order:*")
        await wire.subscribe("order:*", history=2)
        frame = await wire.until(lambda f: f["op"] == "messages")
        assert frame["history"] is True
        assert told(frame["messages"]) == [("order:2", 3), ("order:3", 4)]


async def test_removing_the_flag_ends_the_subscription(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    async with connect(bridge.url) as wire:
        await wire.subscribe("order:*")
        await wire.subscribe("order:1")
        with sql.transaction():
            sql.execute("update realtime_channels set wildcard = false where pattern = 'order:*'")
            say(sql, "order:1", "after")
        closed = await wire.until(lambda f: f["op"] == "closed")
        assert (closed["channel"], closed["code"]) == ("order:*", "revoked")
        assert await routed(wire, 1) == [("order:1", "order:1", "after")]


async def test_a_recreated_row_is_heard_from_its_first_message(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    async with connect(bridge.url) as wire:
        await wire.subscribe("order:*")
        for number in range(10):
            say(sql, "order:1", "old")
            with sql.transaction():
                sql.execute("delete from realtime_channels where pattern = 'order:*'")
                sql.execute(
                    "insert into realtime_channels (pattern, wildcard) values ('order:*', true)"
                )
                say(sql, "order:1", number)
            say(sql, "order:1", "new")
            assert [m[2] for m in await routed(wire, 3)] == ["old", number, "new"]
        sql.execute("delete from realtime_channels where pattern = 'order:*'")
        assert (await wire.until(lambda f: f["op"] == "closed"))["code"] == "deleted"


async def test_a_deleted_message_is_told_to_pattern_subscribers(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    async with connect(bridge.url) as wire:
        await wire.subscribe("order:*")
        say(sql, "order:1", "x")
        [frame] = [await wire.until(lambda f: f["op"] == "messages")]
        sql.execute("select rowcast.delete_message(%s)", [frame["messages"][0]["id"]])
        deleted = await wire.until(lambda f: f["op"] == "deleted")
        assert deleted == {
            "op": "deleted",
            "channel": "order:*",
            "id": frame["messages"][0]["id"],
        }


async def test_the_python_client_delivers_to_the_pattern_channel(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    heard: asyncio.Queue[Message] = asyncio.Queue()
    other: asyncio.Queue[Message] = asyncio.Queue()
    async with client(bridge.url, token=token()) as realtime:
        await realtime.channel("order:*").on("message", heard.put_nowait).subscribe()
        await realtime.channel("order:1").on("message", other.put_nowait).subscribe()
        say(sql, "order:2", "two")
        say(sql, "order:1", "one")
        got = [await asyncio.wait_for(heard.get(), 10) for _ in range(2)]
        assert [(m.channel, m.payload) for m in got] == [("order:2", "two"), ("order:1", "one")]
        assert (await asyncio.wait_for(other.get(), 10)).payload == "one"
        assert other.empty()
