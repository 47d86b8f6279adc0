"""Hostile frames: each gets an answer or a close code, without harm to bridge or neighbour."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import re
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from rowcast.errors import CATALOGUE, CLOSE
from support import pg
from support.bridge_process import Daemon, daemon, open_channels, token
from support.wire_client import ClosedError, Wire, connect

pytestmark = pytest.mark.acceptance

SEED = 9
FRAMES = 2000
PROTOCOL_CLOSES = {1000, 1001, 1002, 1003, 1006, 1007, 1009, 1011}
CLOSES = PROTOCOL_CLOSES | {code for code, _ in CLOSE.values()}

GOOD: list[dict[str, Any]] = [
    {"op": "subscribe", "ref": "1", "channel": "room:1"},
    {"op": "subscribe", "ref": "1", "channels": ["room:1", "room:2"], "after": "x"},
    {"op": "subscribe", "ref": "1", "channel": "room:1", "history": 5, "self": False},
    {"op": "unsubscribe", "ref": "1", "channel": "room:1"},
    {"op": "publish", "ref": "1", "channel": "room:1", "event": "e", "payload": {"a": 1}},
    {"op": "publish", "ref": "1", "channel": "room:1", "event": "e", "type": "broadcast"},
    {"op": "auth", "ref": "1", "token": "x"},
    {"op": "track", "ref": "1", "channel": "room:1", "state": {}},
    {"op": "untrack", "ref": "1", "channel": "room:1"},
    {"op": "ping", "ref": "1"},
]
VALUES: list[Any] = [
    None, True, False, 0, -1, 1e308, 2**63, 2**64, 10**400, -(10**30), 0.1, "", " ", "\0",
    "a\0b", "*", "**", "room:*", "%", "_", "'; drop table x; --", "a" * 255, "a" * 256, "a" * 5000,
    "é" * 200, "\u202e", "💥" * 63, "room:" + ":" * 50, [], {}, [[]], [None], ["room:1"] * 200,
    [f"room:{n}" for n in range(500)], {"a": {"b": []}}, "__proto__", "room:\r\n", "\ud800",
]  # fmt: skip
RAW = [
    b"", b" ", b"null", b"true", b"1", b'"x"', b"[]", b"[[[[", b"{", b"}", b"{}", b'{"op"}',
    b'{"op":"ping"', b"{'op':'ping'}", b'{"op":"ping",}', b'{"op":"ping"}{"op":"ping"}', b"NaN",
    b'{"op":"ping","ref":NaN}', b'{"op":"ping","ref":1e999}', b'{"op":"ping","op":"publish"}',
    b'{"op":"publish","channel":"room:1","event":"e","payload":NaN,"ref":"1"}',
    b'{"op":"publish","channel":"room:1","event":"e","payload":{"a":"\\u0000"},"ref":"1"}',
    b'{"op":"publish","channel":"room:1","event":"e","payload":{"a":"\\ud800"},"ref":"1"}',
    b'{"op":"publish","channel":"room:1","event":"\\ud800","ref":"1"}',
    b'{"op":"publish","channel":"room:1","event":"e","payload":1e131000,"ref":"1"}',
    b'{"op":"publish","channel":"room:1","event":"e","payload":' + b"9" * 5000 + b',"ref":"1"}',
    b'{"op":"publish","channel":"room:1","event":"e","payload":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"op":"publish","channel":"room:1","event":"e","payload":' + b"[" * 9000 + b"]" * 9000 + b"}",
    b"[" * 100_000, b'{"op":' * 50_000, b'{"a":' * 2000 + b"1" + b"}" * 2000,
    b'{"op":"nothing","ref":"1"}', b'{"op":5,"ref":{"a":1}}', b'{"ref":"x"}', b"\xef\xbb\xbf{}",
    b'{"op":"ping","ref":"' + b"r" * 300 + b'"}', b'{"op":"ping","ref":99999999999999999999999}',
]  # fmt: skip


def mutated(chance: random.Random) -> bytes:
    """Return a mutated valid frame, or hostile bytes."""
    if chance.random() < 0.15:
        return chance.choice(RAW)
    frame = dict(chance.choice(GOOD))
    for _ in range(chance.randint(1, 3)):
        key = chance.choice([*frame, "ref", "op", "channel", "payload", "id", "after", "extra"])
        match chance.randint(0, 3):
            case 0:
                frame.pop(key, None)
            case 1:
                frame[chance.choice(["x", "ref", "channels", "id"])] = chance.choice(VALUES)
            case _:
                frame[key] = chance.choice(VALUES)
    data = json.dumps(frame).encode()
    if chance.random() < 0.2:
        at = chance.randrange(len(data))
        kind = chance.randint(0, 2)
        data = (
            data[:at]
            + (b"" if kind == 0 else bytes([chance.randrange(32, 127)]) * kind)
            + data[at + 1 :]
        )
    return data


def is_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


@pytest.fixture(scope="module")
def bridge(module_database: pg.Database) -> Iterator[Daemon]:
    open_channels(module_database, "room:*")
    with daemon(module_database, frame_rate=100_000, frame_burst=100_000) as bridge:
        yield bridge


@pytest.fixture
async def neighbour(bridge: Daemon) -> AsyncIterator[Wire]:
    """Another client, which must not notice anything."""
    async with connect(bridge.url, token("neighbour")) as wire:
        await wire.subscribe("room:neighbour")
        yield wire
        await wire.publish("room:neighbour", "still here")
        [message] = await wire.messages(1)
        assert message["payload"] == "still here"
    assert bridge.get("/readyz")[0] == 200
    assert "internal_error" not in bridge.log, bridge.log[-3000:]


def check(frame: dict[str, Any]) -> None:
    if frame["op"] == "error":
        assert frame["code"] in CATALOGUE, frame
        assert frame["code"] != "internal", frame
        assert isinstance(frame["message"], str)
        assert "ref" in frame


async def raw_text(wire: Wire, data: bytes) -> None:
    # a text frame with arbitrary bytes: the library would encode a str
    await wire.ws._writer.send_frame(data, aiohttp.WSMsgType.TEXT)  # noqa: SLF001


async def test_two_thousand_mutated_frames_are_all_answered(
    bridge: Daemon, neighbour: Wire
) -> None:
    chance = random.Random(SEED)
    left = [mutated(chance) for _ in range(FRAMES)]
    ends: list[tuple[int, bytes]] = []
    while left:
        with contextlib.suppress(ClosedError):
            async with connect(bridge.url) as wire:
                while left:
                    data = left.pop()
                    await raw_text(wire, data)
                    ping = await wire.send(op="ping", ref="after")
                    answered = 0
                    while True:
                        try:
                            frame = await wire.read(15)
                        except ClosedError as end:
                            ends.append((end.code, data[:200]))
                            raise
                        check(frame)
                        if frame.get("ref") == ping:
                            break
                        answered += frame["op"] in ("ok", "error")
                    # requests that query the database may be answered after the ping
                    asks = re.search(rb'"(publish|subscribe|track|untrack)"', data)
                    assert answered or asks or not is_object(data), data[:200]
    assert {code for code, _ in ends} <= CLOSES, ends
    assert len(ends) < FRAMES / 50  # closed only by the limit on bad frames


@pytest.mark.parametrize("data", RAW, ids=lambda data: repr(data[:50]))
async def test_a_frame_without_an_operation_is_answered_at_once(
    bridge: Daemon, neighbour: Wire, data: bytes
) -> None:
    async with connect(bridge.url) as wire:
        await raw_text(wire, data)
        frame = await wire.until(lambda f: f["op"] in ("ok", "error"))
        check(frame)
        await wire.quiet()


@pytest.mark.parametrize("data", [b"\xff", b'{"op":"ping","ref":"\xff"}', b"\xed\xa0\x80"])
async def test_text_that_is_not_utf8_is_refused(
    bridge: Daemon, neighbour: Wire, data: bytes
) -> None:
    async with connect(bridge.url) as wire:
        await raw_text(wire, data)
        check(await wire.until(lambda f: f["op"] == "error"))


async def test_a_payload_that_is_not_utf8_is_refused_as_a_bad_frame(
    bridge: Daemon, neighbour: Wire
) -> None:
    async with connect(bridge.url) as wire:
        await raw_text(
            wire, b'{"op":"publish","ref":"1","channel":"room:1","event":"e","payload":"\xff"}'
        )
        frame = await wire.until(lambda f: f["op"] == "error")
        assert frame["code"] in ("invalid_frame", "invalid_message")


async def test_binary_frames_are_refused_and_too_many_close(
    bridge: Daemon, neighbour: Wire
) -> None:
    async with connect(bridge.url) as wire:
        await wire.ws.send_bytes(b"\0\1\2")
        assert (await wire.until(lambda f: f["op"] == "error"))["code"] == "invalid_frame"
        for _ in range(200):
            await wire.ws.send_bytes(b"\0")
        assert await wire.closed() == CLOSE["abuse"][0]


async def test_a_frame_over_the_limit_is_refused(bridge: Daemon, neighbour: Wire) -> None:
    """One far over the limit closes the connection."""
    async with connect(bridge.url) as wire:
        await raw_text(wire, b'{"op":"ping","ref":"' + b"x" * 1_100_000 + b'"}')
        frame = await wire.until(lambda f: f["op"] == "error")
        assert frame["code"] == "frame_too_large"
        await wire.quiet()
        with contextlib.suppress(ConnectionError):  # closed while the frame was being written
            await raw_text(wire, b" " * 5_000_000)
        assert await wire.closed() in (1009, 1006)


async def test_a_subscribe_to_a_hundred_thousand_names_is_one_refusal(
    bridge: Daemon, neighbour: Wire
) -> None:
    async with connect(bridge.url) as wire:
        names = [f"room:{n}" for n in range(100_000)]
        await wire.send(op="subscribe", ref="many", channels=names[:60_000])
        frame = await wire.until(lambda f: f["op"] == "error")
        assert frame["code"] == "too_many_channels"
        assert len(await wire.quiet()) < 200


async def test_a_flood_of_websocket_pings_is_survived(bridge: Daemon, neighbour: Wire) -> None:
    async with connect(bridge.url) as wire:
        for _ in range(2000):
            await wire.ws.ping(b"x" * 100)
        await wire.quiet()


class Raw:
    """A WebSocket of bare bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, bridge: Daemon) -> Raw:
        host, port = bridge.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            f"GET /realtime?token={token()} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        return cls(reader, writer)

    @staticmethod
    def frame(head: int, data: bytes, *, masked: bool = True, length: int | None = None) -> bytes:
        size = len(data) if length is None else length
        mask = 0x80 if masked else 0
        if size < 126:
            out = struct.pack("!BB", head, mask | size)
        elif size < 65536:
            out = struct.pack("!BBH", head, mask | 126, size)
        else:
            out = struct.pack("!BBQ", head, mask | 127, size)
        return out + (b"\0\0\0\0" if masked else b"") + data

    async def ended(self) -> int:
        """Read until the connection ends; return its close code, or 1006 without one."""
        code = 1006
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            async with asyncio.timeout(15):
                while True:
                    head, size = await self.reader.readexactly(2)
                    size &= 0x7F
                    if size == 126:
                        [size] = struct.unpack("!H", await self.reader.readexactly(2))
                    elif size == 127:
                        [size] = struct.unpack("!Q", await self.reader.readexactly(8))
                    data = await self.reader.readexactly(size)
                    if head & 0x0F == 8 and len(data) >= 2:
                        [code] = struct.unpack("!H", data[:2])
                        self.writer.write(self.frame(0x88, data[:2]))
        self.writer.close()
        return code


@pytest.mark.parametrize(
    ("data", "codes"),
    [
        (Raw.frame(0x81, b"", length=2**62), {1009, 1002, 1006}),
        (Raw.frame(0x81, b"x" * 10, length=2**40), {1009, 1006}),
        (Raw.frame(0x83, b"x"), {1002}),  # an opcode that does not exist
        (Raw.frame(0xC1, b"x"), {1002}),  # a compressed frame, which was not negotiated
        (Raw.frame(0x80, b"x"), {1002}),  # a continuation without a beginning
        (Raw.frame(0x09, b"x"), {1002}),  # a fragmented ping
        (Raw.frame(0x89, b"x" * 200), {1002}),  # a ping that is too long
        (Raw.frame(0x88, b"\x03"), {1002}),  # a close code of one byte
        (Raw.frame(0x88, b"\x00\x05"), {1002, 1000, 1006}),  # a close code that does not exist
        (
            Raw.frame(0x01, b"a") + Raw.frame(0x81, b"b"),
            {1002},
        ),  # a text frame within a text message
        (b"\x00" * 64, {1002, 1006}),
    ],
)
async def test_a_protocol_violation_gets_its_close_code(
    bridge: Daemon, neighbour: Wire, data: bytes, codes: set[int]
) -> None:
    raw = await Raw.open(bridge)
    raw.writer.write(data)
    if raw.writer.can_write_eof() and len(data) > 200_000:
        raw.writer.write_eof()
    assert await raw.ended() in codes


async def test_twenty_thousand_fragments_are_read_or_refused(
    bridge: Daemon, neighbour: Wire
) -> None:
    raw = await Raw.open(bridge)
    raw.writer.write(Raw.frame(0x01, b"{"))
    for _ in range(20_000):
        raw.writer.write(Raw.frame(0x00, b" "))
    raw.writer.write(Raw.frame(0x80, b'"op":"ping","ref":"whole"}'))
    answer = b""
    async with asyncio.timeout(20):
        while b'"ref":"whole"' not in answer:
            part = await raw.reader.read(65536)
            assert part, answer
            answer += part
    raw.writer.close()


async def test_unmasked_frames_do_no_harm(bridge: Daemon, neighbour: Wire) -> None:
    raw = await Raw.open(bridge)
    raw.writer.write(Raw.frame(0x81, b'{"op":"ping","ref":"bare"}', masked=False))
    raw.writer.write(Raw.frame(0x88, b"\x03\xe8"))
    assert await raw.ended() in {1000, 1002}


async def test_a_socket_that_never_shows_a_token_is_closed(module_database: pg.Database) -> None:
    with daemon(module_database, auth_timeout=0.3) as bridge:
        async with connect(bridge.url, "") as wire:
            refused = await wire.ask(op="subscribe", channel="room:1")
            assert refused["code"] == "unauthorized"
            assert await wire.closed() == CLOSE["unauthorized"][0]
