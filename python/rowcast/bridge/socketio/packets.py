"""Packets of Socket.IO, version 5, and of the Engine.IO below it, version 4. No I/O.

A Socket.IO packet is the data of an Engine.IO message:

    <type>[<attachments>-][/<namespace>,][<ack id>][<JSON>]

A session writes WebSocket frames on both transports, so that an event for many clients is encoded
once. A poll is answered with the packets inside of these frames.
Sources: https://socket.io/docs/v4/socket-io-protocol/ and
https://socket.io/docs/v4/engine-io-protocol/.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from rowcast.bridge.wire.frames import text_frame

__all__ = [
    "CLOSE",
    "MESSAGE",
    "NOOP",
    "PING",
    "PONG",
    "PROBE",
    "UPGRADE",
    "EventData",
    "Kind",
    "Packet",
    "ack",
    "connect",
    "connect_error",
    "disconnect",
    "emit",
    "join_packets",
    "open_packet",
    "parse",
    "split_frames",
    "split_packets",
]

_json = msgspec.json.Encoder()

# Engine.IO

OPEN, CLOSE, PING, PONG, MESSAGE, UPGRADE, NOOP = (b"0", b"1", b"2", b"3", b"4", b"5", b"6")
PROBE = b"probe"
SEPARATOR = b"\x1e"


def open_packet(
    sid: str, *, interval: float, timeout: float, max_payload: int, polling: bool
) -> bytes:
    """Return the frame that opens a connection.

    Args:
        sid: the id that further requests of the client must name.
        interval: seconds between two pings of the server.
        timeout: seconds within which a client must answer a ping.
        max_payload: bytes that a client may post at once.
        polling: whether the client polls, and so may upgrade to a WebSocket.
    """
    body = {
        "sid": sid,
        "upgrades": ["websocket"] if polling else [],
        "pingInterval": round(interval * 1000),
        "pingTimeout": round(timeout * 1000),
        "maxPayload": max_payload,
    }
    return text_frame(OPEN + _json.encode(body))


def split_packets(body: bytes, limit: int) -> list[bytes]:
    """Split the body that a client posted into packets.

    Raises:
        ValueError: there are more than `limit` packets, or one is empty.
    """
    packets = body.split(SEPARATOR, limit)
    if len(packets) > limit:
        raise ValueError(f"a body may have {limit} packets")
    if not all(packets):
        raise ValueError("a packet is empty")
    return packets


def split_frames(data: bytes) -> Iterator[bytes]:
    """Yield the payloads of a server's frames, which are whole and not masked."""
    at = 0
    while at < len(data):
        size, at = data[at + 1], at + 2
        if size > 125:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(data[at : at + width], "big"), at + width
        yield data[at : at + size]
        at += size


def join_packets(packets: Iterable[bytes]) -> bytes:
    """Return the body that answers a poll with these packets."""
    return SEPARATOR.join(packets)


# Socket.IO

# An ack id is a number that the client chose. It is repeated as received, up to 18 digits.
_PACKET = re.compile(rb"([0-6])(?:(\d{1,3})-)?(?:(/[^,]{0,255})(?:,|$))?(\d{1,18})?", re.DOTALL)


class Kind:
    """Types of packets."""

    CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR, BINARY_EVENT, BINARY_ACK = range(7)


class Packet(NamedTuple):
    """A packet of a client; `data` is JSON that is not decoded yet."""

    kind: int
    attachments: int
    namespace: str
    ack: bytes
    data: bytes


class EventData(msgspec.Struct, array_like=True):
    """The data of an event packet; further arguments are ignored."""

    name: str
    body: msgspec.Raw = msgspec.Raw(b"{}")


def parse(data: bytes) -> Packet:
    """Parse a packet of a client.

    Raises:
        ValueError: the data is not a packet.
    """
    found = _PACKET.match(data)
    if found is None:
        raise ValueError("a packet begins with a number from 0 to 6")
    kind, attachments, namespace, number = found.groups()
    binary = int(kind) in (Kind.BINARY_EVENT, Kind.BINARY_ACK)
    if binary != (attachments is not None):
        raise ValueError("only a binary packet has attachments")
    return Packet(
        int(kind),
        int(attachments or 0),
        (namespace or b"/").decode(),
        number or b"",
        data[found.end() :],
    )


def connect(sid: str) -> bytes:
    """Return the frame that accepts a client."""
    return _packet(b"0", _json.encode({"sid": sid}))


def connect_error(namespace: str, message: str) -> bytes:
    """Return the frame that rejects a client; clients do not try again by themselves."""
    place = b"" if namespace == "/" else namespace.encode() + b","
    return _packet(b"4" + place, _json.encode({"message": message}))


def disconnect() -> bytes:
    """Return the frame after which a client does not reconnect by itself."""
    return _packet(b"1")


def emit(name: str, body: bytes) -> bytes:
    """Return the frame of an event; `body` is JSON."""
    return _packet(b"2", b"[" + _json.encode(name) + b"," + body + b"]")


def ack(number: bytes, body: Any) -> bytes:
    """Return the frame that acknowledges the event with this ack id."""
    return _packet(b"3" + number, b"[" + _json.encode(body) + b"]")


def _packet(head: bytes, data: bytes = b"") -> bytes:
    return text_frame(MESSAGE + head + data)
