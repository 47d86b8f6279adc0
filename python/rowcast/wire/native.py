"""The native wire: JSON text frames, see "The wire" in python/README.md.

Frames from clients are decoded strictly into one type per op. The payload of a publish stays
the bytes that came: parsing and printing it again would change numbers and refuse depths that
Postgres accepts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ..errors import Refusal
from ..message import Message
from .events import Event
from .frames import text_frame
from .operations import Auth, Op, Ping, Publish, Subscribe

__all__ = ["NATIVE", "Native", "decode", "encode_messages"]

# A frame of many messages is cut, so that a client can begin before all of it has come.
FRAME_BYTES = 262_144


class _Envelope(msgspec.Struct):
    op: Any = None
    ref: Any = None


_decoder = msgspec.json.Decoder(Op)
_envelope = msgspec.json.Decoder(_Envelope)
_quote = msgspec.json.Encoder()
_OPS = {kind.__struct_config__.tag for kind in Op.__args__}


def decode(data: bytes) -> tuple[Op | None, Any, Refusal | None]:
    """Decode one frame.

    Args:
        data: the text of the frame as UTF-8.

    Returns:
        The operation, or None; the ref to answer to; why there is no operation, or None.
    """
    try:
        op = _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError) as error:
        return None, *_explain(data, error)
    for name in _names(op):
        # Postgres has no text with NUL: one such name would fail a whole batch.
        if "\x00" in name or len(name.encode("utf-8", "surrogatepass")) > 255:
            return None, op.ref, Refusal("invalid_channel")
    return op, op.ref, None


def _names(op: Op) -> Iterable[str]:
    if isinstance(op, Subscribe):
        return op.names()
    if isinstance(op, Publish):
        return (op.channel, op.event, op.type)
    if isinstance(op, Auth | Ping):
        return ()
    return (op.channel,)


def _explain(data: bytes, error: Exception) -> tuple[Any, Refusal]:
    try:
        envelope = _envelope.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError):
        return None, Refusal("invalid_frame", f"The frame is not a JSON object: {error}.")
    ref = envelope.ref if isinstance(envelope.ref, str | int) else None
    if isinstance(ref, str) and len(ref) > 255:
        ref = None
    if not isinstance(envelope.op, str) or envelope.op not in _OPS:
        return ref, Refusal("unknown_op", f"Use one of the ops {', '.join(sorted(_OPS))}.")
    return ref, Refusal("invalid_frame", f"The frame does not fit op {envelope.op}: {error}.")


def encode_messages(channel: str, messages: Sequence[Message], flag: str | None = None) -> bytes:
    """Return `messages` frames for one channel, encoded once for all clients.

    Args:
        channel: the name they were published to.
        messages: at least one.
        flag: "history" or "replay", or None for live ones.
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
    """The wire of `/realtime`, the same for all of its clients."""

    format = "native"

    def decode(self, data: bytes, *, binary: bool) -> tuple[Sequence[Op], Any, Refusal | None]:
        """See `Wire`."""
        if binary:
            return (), None, Refusal("invalid_frame", "Send text frames.")
        op, ref, refusal = decode(data)
        return () if op is None else (op,), ref, refusal

    def encode(self, event: Event) -> bytes:
        """See `Wire`."""
        return text_frame(_quote.encode(event))

    def encode_messages(
        self, channel: str, messages: Sequence[Message], flag: str | None = None
    ) -> bytes:
        """See `Wire`."""
        return encode_messages(channel, messages, flag)


NATIVE = Native()
