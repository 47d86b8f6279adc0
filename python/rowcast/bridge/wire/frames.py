"""WebSocket frames of a server (RFC 6455, section 5.2).

A server's frames are not masked, so one byte string serves every client, and all frames that one
delivery has for a client are joined into one write. aiohttp's writer would build each frame again
for every client.
"""

from __future__ import annotations

import re
from functools import cache

import msgspec

from .protocol import Ref

__all__ = [
    "PLAIN_VALUE",
    "SEARCHED_BYTES",
    "binary_frame",
    "find_ref",
    "ping_frame",
    "text_frame",
]

FIN_TEXT = 0x81
FIN_BINARY = 0x82
FIN_PING = 0x89

# Bytes searched at either end of a frame that cannot be read; a name or ref has at most 255.
SEARCHED_BYTES = 2048
_TEXT = rb'"(?:[^"\\]|\\.){0,1600}"'
PLAIN_VALUE = rb"(?:" + _TEXT + rb"|[\w.+-]{1,40})"
_MEMBER = rb"\s*" + _TEXT + rb"\s*:\s*" + PLAIN_VALUE + rb"\s*"

_reference = msgspec.json.Decoder(Ref | int)


def text_frame(payload: bytes) -> bytes:
    """Return the payload as one unfragmented, uncompressed text frame."""
    return _frame(FIN_TEXT, payload)


def binary_frame(payload: bytes) -> bytes:
    """Return the payload as one unfragmented, uncompressed binary frame."""
    return _frame(FIN_BINARY, payload)


def ping_frame(payload: bytes) -> bytes:
    """Return a ping frame.

    The pong repeats the payload, and shows that everything written before the ping has arrived.

    Args:
        payload: at most 125 bytes.
    """
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
    wanted = key + rb"\s*:\s*(" + PLAIN_VALUE + rb")\s*"
    # Members behind the wanted one must have another name. Otherwise a frame full of members of
    # this name would be read to its end once for each of them.
    other = rb"(?!" + key + rb")" + _MEMBER
    return (
        re.compile(rb"\s*\{(?:" + _MEMBER + rb",)*?" + wanted + rb",", re.DOTALL),
        re.compile(rb"," + wanted + rb"(?:," + other + rb")*\}\s*\Z", re.DOTALL),
    )


def find_ref(data: bytes, name: str) -> str | int | None:
    """Find the ref of a frame that cannot be decoded, so that its sender gets an answer.

    Only members with plain values may stand between the ref and one end of the frame: a member
    inside of a nested value is never taken for the frame's own. If the frame is not JSON, the
    result may be wrong, which misleads only the sender of that frame.

    Args:
        data: a frame that should be a JSON object.
        name: the member that holds the ref.

    Returns:
        The value, or None if it is not found, not a text or integer, or too long.
    """
    head, tail = _patterns(name)
    start = max(0, len(data) - SEARCHED_BYTES)
    found = head.match(data, 0, SEARCHED_BYTES) or tail.search(data, start)
    if found is None:
        return None
    try:
        value: str | int = _reference.decode(found[1])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return value
