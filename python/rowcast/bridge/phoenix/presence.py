"""Presence in the words of Phoenix: maps of keys to metas, and what joined and left them.

Each member has one meta. Its `phx_ref` is made of key and state, so every bridge gives the same,
and a client that comes back sees in the list which members have changed meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from rowcast.bridge.wire.protocol import Change, Member

from .frames import TOPIC, Reference, push

__all__ = ["diff", "state"]

Metas = Iterable[tuple[str, bytes]]

_json = msgspec.json.Encoder()


def state(form: str, channel: str, members: Iterable[Member], join_ref: Reference) -> bytes:
    """Return the frame that says who is present."""
    payload = _metas((member.key, bytes(member.presence)) for member in members)
    return push(form, TOPIC + channel, "presence_state", payload, join_ref=join_ref)


def diff(form: str, channel: str, changes: Sequence[Change]) -> bytes:
    """Return the frames that say who has left, and who has joined.

    In this order and never in one: realtime-js before 2.110 keeps for ever what joins and leaves
    in the same frame. Who has changed leaves with one meta and joins with the next.
    """
    left = [(c.key, bytes(c.before)) for c in changes if c.before is not None]
    joined = [(c.key, bytes(c.presence)) for c in changes if c.type != "leave"]
    frames = b""
    for joins, leaves in (((), left), (joined, ())):
        if joins or leaves:
            payload = b'{"joins":' + _metas(joins) + b',"leaves":' + _metas(leaves) + b"}"
            frames += push(form, TOPIC + channel, "presence_diff", payload)
    return frames


def _metas(members: Metas) -> bytes:
    parts = (_json.encode(key) + b':{"metas":[' + _meta(key, text) + b"]}" for key, text in members)
    return b"{" + b",".join(parts) + b"}"


def _meta(key: str, text: bytes) -> bytes:
    """The state and its ref: the last of equal names counts, so nobody chooses his own."""
    inside = text.strip()[1:-1].strip()
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass") + b"\0" + text, digest_size=12)
    comma = b"," if inside else b""
    return b"{" + inside + comma + b'"phx_ref":"' + digest.hexdigest().encode() + b'"}'
