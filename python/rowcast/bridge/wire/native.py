"""The native wire: JSON text frames, see python/docs/protocol.md.

Frames from clients are decoded strictly into one type per op. The payload of a publish stays
the bytes that were received: parsing and printing it again would change numbers and refuse depths
that Postgres accepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UnsetType

from rowcast.bridge.model import Message
from rowcast.errors import Refusal

from .frames import find_ref, text_frame
from .protocol import (
    Auth,
    Event,
    Op,
    Ping,
    Present,
    Publish,
    Subscribe,
    Track,
    Unsubscribe,
    Untrack,
    check,
)

__all__ = ["NATIVE", "Native", "decode", "encode_messages"]

# Many messages are split into frames of about this size, so that a client can begin early.
FRAME_BYTES = 262_144


class _Change(msgspec.Struct, frozen=True):
    type: str
    key: str
    presence: msgspec.Raw


class _Present(Event, tag="presence", frozen=True):
    channel: str
    events: list[_Change]
    full: bool | UnsetType


class _Envelope(msgspec.Struct):
    op: Any = None
    ref: Any = None


Known = Auth | Subscribe | Unsubscribe | Publish | Track | Untrack | Ping

_decoder = msgspec.json.Decoder(Known)
_envelope = msgspec.json.Decoder(_Envelope)
_quote = msgspec.json.Encoder()

_OPS = {kind.__struct_config__.tag for kind in Known.__args__}


def decode(data: bytes) -> tuple[Op | None, Any, Refusal | None]:
    """Decode one frame.

    Args:
        data: the text of the frame as UTF-8.

    Returns:
        The operation, or None; the ref to answer to; the refusal of an invalid frame, or None.
    """
    try:
        op = _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
        return None, *_refusal(data, error)
    refusal = check(op)
    return None if refusal else op, op.ref, refusal


def _refusal(data: bytes, error: Exception) -> tuple[Any, Refusal]:
    try:
        envelope = _envelope.decode(data)
    except RecursionError:
        return find_ref(data, "ref"), Refusal("invalid_message", "The frame is nested too deeply.")
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        return find_ref(data, "ref"), Refusal(
            "invalid_frame", f"The frame is not a JSON object: {error}."
        )
    ref = envelope.ref if isinstance(envelope.ref, str | int) else None
    if isinstance(ref, str) and len(ref) > 255:
        ref = None
    if not isinstance(envelope.op, str) or envelope.op not in _OPS:
        return ref, Refusal("unknown_op", f"Use one of the ops {', '.join(sorted(_OPS))}.")
    return ref, Refusal("invalid_frame", f"The frame does not fit op {envelope.op}: {error}.")


def encode_messages(channel: str, messages: Sequence[Message], flag: str | None = None) -> bytes:
    """Return `messages` frames for one channel, encoded once for all clients.

    Args:
        channel: the name or pattern through which the clients hear them.
        messages: at least one.
        flag: "history" or "replay", or None for live messages.
    """
    head = b'{"op":"messages","channel":' + _quote.encode(channel) + b',"messages":['
    tail = b"]}" if flag is None else b'],"' + flag.encode() + b'":true}'
    frames: list[bytes] = []
    part: list[bytes] = []
    size = 0
    for message in messages:
        encoded = _encode_message(message)
        if part and size + len(encoded) > FRAME_BYTES:
            frames.append(text_frame(head + b",".join(part) + tail))
            part, size = [], 0
        part.append(encoded)
        size += len(encoded)
    frames.append(text_frame(head + b",".join(part) + tail))
    return b"".join(frames)


def _encode_message(message: Message) -> bytes:
    sender = (
        b"" if message.sender_id is None else b',"senderId":' + _quote.encode(message.sender_id)
    )
    return b"".join(
        (
            b'{"id":"',
            message.id.encode(),
            b'","type":"',
            message.type.encode(),
            b'","event":',
            _quote.encode(message.event),
            b',"channel":',
            _quote.encode(message.channel),
            b',"payload":',
            message.payload.encode(),
            sender,
            b',"timestamp":"',
            message.timestamp.encode(),
            b'"}',
        )
    )


class Native:
    """The wire of `/realtime`; one object serves all clients."""

    format = "native"
    admin = False

    def decode(self, data: bytes, *, binary: bool) -> tuple[Sequence[Op], Any, Refusal | None]:
        if binary:
            return (), None, Refusal("invalid_frame", "Send text frames.")
        op, ref, refusal = decode(data)
        return () if op is None else (op,), ref, refusal

    def encode(self, event: Event) -> bytes:
        if isinstance(event, Present):
            changes = [_Change(change.type, change.key, change.presence) for change in event.events]
            event = _Present(event.channel, changes, event.full)
        return text_frame(_quote.encode(event))

    def encode_messages(
        self, channel: str, messages: Sequence[Message], flag: str | None = None
    ) -> bytes:
        return encode_messages(channel, messages, flag)


NATIVE = Native()
