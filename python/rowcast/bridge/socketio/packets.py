"""The packets of Socket.IO, version 5 of its protocol: how they are cut and put together.

    <type>[<attachments>-][/<namespace>,][<ack id>][<JSON>]

Source: the Socket.IO protocol, https://socket.io/docs/v4/socket-io-protocol/.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from rowcast.bridge.wire.frames import text_frame

from . import engineio

__all__ = ["Event", "Kind", "Packet", "ack", "connected", "cut", "disconnected", "emit", "failed"]

# An ack id is a number that the client chose, so it comes back as it came, within reason.
_PACKET = re.compile(rb"([0-6])(?:(\d{1,3})-)?(?:(/[^,]{0,255})(?:,|$))?(\d{1,18})?", re.DOTALL)

_json = msgspec.json.Encoder()


class Kind:
    """What a packet is."""

    CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR, BINARY_EVENT, BINARY_ACK = range(7)


class Packet(NamedTuple):
    """A packet of a client; `data` is JSON that nobody has read yet."""

    kind: int
    attachments: int
    namespace: str
    ack: bytes
    data: bytes


class Event(msgspec.Struct, array_like=True):
    """What is in a packet of an event; further arguments are not for us."""

    name: str
    body: msgspec.Raw = msgspec.Raw(b"{}")


def cut(data: bytes) -> Packet:
    """Cut a packet.

    Raises:
        ValueError: it is none.
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


def connected(sid: str) -> bytes:
    """Return the frame that lets a client in."""
    return _packet(b"0", _json.encode({"sid": sid}))


def failed(namespace: str, message: str) -> bytes:
    """Return the frame that does not. Clients do not try again after it by themselves."""
    place = b"" if namespace == "/" else namespace.encode() + b","
    return _packet(b"4" + place, _json.encode({"message": message}))


def disconnected() -> bytes:
    """Return the frame after which a client does not come back by itself."""
    return _packet(b"1")


def emit(name: str, body: bytes) -> bytes:
    """Return the frame of an event; the body is JSON."""
    return _packet(b"2", b"[" + _json.encode(name) + b"," + body + b"]")


def ack(number: bytes, body: Any) -> bytes:
    """Return the frame that answers an event."""
    return _packet(b"3" + number, b"[" + _json.encode(body) + b"]")


def _packet(head: bytes, data: bytes = b"") -> bytes:
    return text_frame(engineio.MESSAGE + head + data)
