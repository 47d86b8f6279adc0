"""What can still be read of a frame that cannot be read as a whole, so that its request gets an
answer: plain values before and behind what is nested, for the price of a few kilobytes.
"""

from __future__ import annotations

import re
from functools import cache

import msgspec

from .operations import Ref

__all__ = ["PLAIN", "SALVAGED", "salvaged"]

# So much at either end of a frame is searched: names and refs have at most 255 bytes.
SALVAGED = 2048
_TEXT = rb'"(?:[^"\\]|\\.){0,1600}"'
PLAIN = rb"(?:" + _TEXT + rb"|[\w.+-]{1,40})"
_MEMBER = rb"\s*" + _TEXT + rb"\s*:\s*" + PLAIN + rb"\s*"

_reference = msgspec.json.Decoder(Ref | int)


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
