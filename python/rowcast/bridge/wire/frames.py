"""WebSocket frames of a server (RFC 6455, section 5.2).

A server's frames are not masked, so one byte string serves every client, and what one tick has
for a client is joined into one write. The library's own writer would frame once per client.
"""

from __future__ import annotations

import re
from functools import cache

import msgspec

from .protocol import Ref

__all__ = ["PLAIN", "SALVAGED", "binary_frame", "ping_frame", "salvaged", "text_frame"]

FIN_TEXT = 0x81
FIN_BINARY = 0x82
FIN_PING = 0x89

# So much at either end of a frame is searched: names and refs have at most 255 bytes.
SALVAGED = 2048
_TEXT = rb'"(?:[^"\\]|\\.){0,1600}"'
PLAIN = rb"(?:" + _TEXT + rb"|[\w.+-]{1,40})"
_MEMBER = rb"\s*" + _TEXT + rb"\s*:\s*" + PLAIN + rb"\s*"

_reference = msgspec.json.Decoder(Ref | int)


def text_frame(payload: bytes) -> bytes:
    """Return the payload as one unfragmented, uncompressed text frame."""
    return _frame(FIN_TEXT, payload)


def binary_frame(payload: bytes) -> bytes:
    """Return the payload as one unfragmented, uncompressed binary frame."""
    return _frame(FIN_BINARY, payload)


def ping_frame(payload: bytes) -> bytes:
    """Return a ping; the pong repeats the payload, of at most 125 bytes, and comes after
    everything that was written before the ping has arrived."""
    return _frame(FIN_PING, payload)


def _frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


@cache
def _patterns(name: str) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    key = rb'\s*"' + name.encode() + rb'"'
    wanted = key + rb"\s*:\s*(" + PLAIN + rb")\s*"
    # Between the last of this name and the end there is no other: with one allowed, a frame full
    # of them would be read to its end from each of them.
    other = rb"(?!" + key + rb")" + _MEMBER
    return (
        re.compile(rb"\s*\{(?:" + _MEMBER + rb",)*?" + wanted + rb",", re.DOTALL),
        re.compile(rb"," + wanted + rb"(?:," + other + rb")*\}\s*\Z", re.DOTALL),
    )


def salvaged(data: bytes, name: str) -> str | int | None:
    """The plain value of this name in a frame that is an object, or None.

    Between it and either end there are only members with plain values, so it is one of the frame's
    own. Should the frame be no JSON at all, it is its sender who is told a wrong one.
    """
    head, tail = _patterns(name)
    found = head.match(data, 0, SALVAGED) or tail.search(data, max(0, len(data) - SALVAGED))
    if found is None:
        return None
    try:
        value: str | int = _reference.decode(found[1])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return value
