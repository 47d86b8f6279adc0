"""Engine.IO, version 4: the packets below Socket.IO, and how long polling carries them.

A session's bytes are WebSocket frames, whatever transport the client has at the moment: what many
are told is encoded once. A poll is answered with what is in the frames.
Source: the Engine.IO protocol, https://socket.io/docs/v4/engine-io-protocol/.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
    "cut",
    "hello",
    "join",
    "payloads",
]

OPEN, CLOSE, PING, PONG, MESSAGE, UPGRADE, NOOP = (b"0", b"1", b"2", b"3", b"4", b"5", b"6")
PROBE = b"probe"
SEPARATOR = b"\x1e"


def hello(sid: str, *, interval: float, timeout: float, most: int, polling: bool) -> bytes:
    """Return the frame that opens a connection.

    Args:
        sid: what further requests of the client must name.
        interval: seconds between two pings of ours.
        timeout: seconds until a ping must have been answered.
        most: bytes of what the client may post.
        polling: whether the client may go over to a WebSocket.
    """
    said = {
        "sid": sid,
        "upgrades": ["websocket"] if polling else [],
        "pingInterval": round(interval * 1000),
        "pingTimeout": round(timeout * 1000),
        "maxPayload": most,
    }
    return text_frame(OPEN + msgspec.json.encode(said))


def cut(body: bytes, most: int) -> list[bytes]:
    """Cut what a client posted into packets.

    Raises:
        ValueError: there are more than may be sent at once, or one is empty.
    """
    packets = body.split(SEPARATOR, most)
    if len(packets) > most:
        raise ValueError(f"a body may have {most} packets")
    if not all(packets):
        raise ValueError("a packet is empty")
    return packets


def payloads(data: bytes) -> Iterator[bytes]:
    """The packets in frames of a server, which are whole and not masked (see `frames`)."""
    at = 0
    while at < len(data):
        size, at = data[at + 1], at + 2
        if size > 125:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(data[at : at + width], "big"), at + width
        yield data[at : at + size]
        at += size


def join(packets: Iterable[bytes]) -> bytes:
    """Return the answer to a poll."""
    return SEPARATOR.join(packets)
