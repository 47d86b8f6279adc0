"""Frames of the Phoenix wire, versions 1.0.0 and 2.0.0: parsed from clients, encoded for them.

Version 1.0.0 uses JSON objects. Version 2.0.0 uses JSON arrays and two binary kinds: 3, in which
clients push broadcasts, and 4, in which they receive broadcasts. In both binary kinds, one byte per
string of the head gives its length; the strings follow in the same order, then the payload.
Source: the serializers of realtime-js, whose behaviour is the specification.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from rowcast.bridge.model import Message
from rowcast.bridge.wire.frames import (
    PLAIN_VALUE,
    SEARCHED_BYTES,
    binary_frame,
    find_ref,
    text_frame,
)
from rowcast.errors import Refusal

__all__ = [
    "TOPIC",
    "VERSIONS",
    "Broadcast",
    "BrokenError",
    "Frame",
    "Reference",
    "binary_payload",
    "encode",
    "encode_broadcasts",
    "mangled_topic",
    "parse",
    "read_broadcast",
]

# vsn of the URL → format of the wire
VERSIONS = {"1.0.0": "phoenix1", "2.0.0": "phoenix2"}
# The topic of channel X is realtime:X.
TOPIC = "realtime:"

PUSH, BROADCAST = 3, 4
BINARY, JSON = 0, 1
# Bytes are published as an object with this one key, which holds them in base64: SQL and clients
# of other doors see that object, and clients of version 2.0.0 receive the bytes again.
BYTES = "$binary"

Reference = Annotated[str, msgspec.Meta(max_length=255)] | int | None

_json = msgspec.json.Encoder()


class Broadcast(msgspec.Struct):
    """A message that a client publishes; as JSON, the payload of an event "broadcast"."""

    event: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    persist: Any = None


class Frame(msgspec.Struct):
    """A frame of a client; as JSON, the object of version 1.0.0."""

    topic: str
    event: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    ref: Reference = None
    join_ref: Reference = None


class _Array(msgspec.Struct, array_like=True):
    join_ref: Reference
    ref: Reference
    topic: str
    event: str
    payload: msgspec.Raw


class _Meta(msgspec.Struct):
    persist: Any = None


class _Bytes(msgspec.Struct, forbid_unknown_fields=True):
    data: str = msgspec.field(name=BYTES)


class BrokenError(ValueError):
    """A frame cannot be read; `frame` holds the refs and the topic to answer to."""

    def __init__(self, frame: Frame, error: Exception) -> None:
        super().__init__(str(error))
        self.frame = frame


_object = msgspec.json.Decoder(Frame)
_array = msgspec.json.Decoder(_Array)
_broadcast = msgspec.json.Decoder(Broadcast)
_meta_of_push = msgspec.json.Decoder(_Meta)
_bytes = msgspec.json.Decoder(_Bytes)
_valid = msgspec.json.Decoder(msgspec.Raw)
# The four members of an array that precede its payload.
_HEAD = re.compile(rb"\s*\[(?:\s*" + PLAIN_VALUE + rb"\s*,){4}", re.DOTALL)


def parse(wire_format: str, data: bytes, *, binary: bool) -> tuple[Frame, Broadcast | None]:
    """Parse a frame of a client.

    Args:
        wire_format: a value of `VERSIONS`.
        data: the payload of the WebSocket frame.
        binary: whether that was a binary frame.

    Returns:
        The frame, and the broadcast in it if it is a binary frame.

    Raises:
        BrokenError: the data is not a frame of this version.
    """
    try:
        if binary:
            if wire_format != "phoenix2":
                raise ValueError("version 1.0.0 has text frames only")
            return _parse_push(data)
        return _parse_text(wire_format, data), None
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors, too
        raise BrokenError(_addressee(wire_format, data, binary=binary), error) from None


def _parse_text(wire_format: str, data: bytes) -> Frame:
    if wire_format == "phoenix2":
        array = _array.decode(data)
        return Frame(array.topic, array.event, array.payload, array.ref, array.join_ref)
    return _object.decode(data)


def _addressee(wire_format: str, data: bytes, *, binary: bool) -> Frame:
    """Return the refs and the topic of a frame that cannot be read, or the topic "phoenix"."""
    try:
        if binary:
            return _parse_head(data)[0]
        if wire_format == "phoenix2":
            head = _HEAD.match(data, 0, SEARCHED_BYTES)
            return _parse_text(wire_format, (head[0] if head else b"") + b"{}]")
        topic, ref, join_ref = (find_ref(data, name) for name in ("topic", "ref", "join_ref"))
        return Frame(str(topic or "phoenix"), "", ref=ref, join_ref=join_ref)
    except ValueError:
        return Frame("phoenix", "")


def _parse_head(data: bytes) -> tuple[Frame, str, bytes, bytes]:
    """Return the addresses of a binary frame, its event, its meta and its payload."""
    if len(data) < 7 or data[0] != PUSH:
        raise ValueError("the only binary frame is a push, kind 3")
    parts: list[bytes] = []
    at = 7
    for size in data[1:6]:
        parts.append(data[at : at + size])
        at += size
    if at > len(data):
        raise ValueError("the head of the frame is longer than the frame")
    join_ref, ref, topic, event = (_text(part) for part in parts[:4])
    frame = Frame(topic, "broadcast", ref=ref or None, join_ref=join_ref or None)
    return frame, event, parts[4], data[at:]


def read_broadcast(frame: Frame) -> Broadcast:
    """Read the payload of an event "broadcast" or "presence".

    Raises:
        Refusal: the payload has another shape.
    """
    try:
        return _broadcast.decode(frame.payload)
    except (ValueError, RecursionError) as error:
        raise Refusal("invalid_message", f"{frame.event}: {error}.") from None


def _parse_push(data: bytes) -> tuple[Frame, Broadcast]:
    frame, event, meta, payload = _parse_head(data)
    if data[6] == BINARY:
        payload = binary_payload(payload)
    elif data[6] != JSON:
        raise ValueError("the encoding of the payload is 0, binary, or 1, JSON")
    persist = _meta_of_push.decode(meta).persist if meta else None
    # The payload stays as received: parsing and printing it again would change numbers.
    return frame, Broadcast(event, _valid.decode(payload), persist)


def _text(data: bytes) -> str:
    """Newer clients write UTF-8; realtime-js 2.109 writes the low byte of each UTF-16 unit."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def mangled_topic(channel: str) -> str:
    """Return a name as realtime-js 2.109 writes it: the low byte of each UTF-16 unit."""
    return _text(channel.encode("utf-16-le", "surrogatepass")[::2])


def binary_payload(data: bytes) -> bytes:
    """Return the JSON that is published for bytes."""
    return b'{"' + BYTES.encode() + b'":"' + base64.b64encode(data) + b'"}'


def encode(
    wire_format: str,
    topic: str,
    event: str,
    payload: bytes,
    *,
    ref: Reference = None,
    join_ref: Reference = None,
) -> bytes:
    """Return a frame for a client.

    Args:
        wire_format: a value of `VERSIONS`.
        topic: of the channel, or "phoenix".
        event: an event of the protocol, never one that a client chose.
        payload: JSON.
        ref: of the request that this frame answers; pushes do not have one.
        join_ref: of the join that the frame belongs to; None if it is for all joins.
    """
    parts = [_json.encode(part) for part in (join_ref, ref, topic, event)] + [payload]
    if wire_format == "phoenix2":
        return text_frame(b"[" + b",".join(parts) + b"]")
    names = (b'"join_ref":', b'"ref":', b'"topic":', b'"event":', b'"payload":')
    fields = (name + part for name, part in zip(names, parts, strict=True))
    return text_frame(b"{" + b",".join(fields) + b"}")


def encode_broadcasts(
    wire_format: str, channel: str, messages: Sequence[Message], flag: str | None = None
) -> bytes:
    """Return one frame per message, because this wire cannot put several into one.

    The frame's event is always "broadcast", whatever event the publisher chose: a publisher
    cannot send an event of the protocol.

    Args:
        wire_format: a value of `VERSIONS`.
        channel: the name or pattern through which the client hears them.
        messages: at least one.
        flag: "history" or "replay", or None for live messages.
    """
    topic = TOPIC + channel
    if wire_format == "phoenix2":
        head, tail = b"[null,null," + _json.encode(topic) + b',"broadcast",', b"]"
    else:
        head = b'{"ref":null,"join_ref":null,"topic":' + _json.encode(topic)
        head, tail = head + b',"event":"broadcast","payload":', b"}"
    frames: list[bytes] = []
    for message in messages:
        meta = _meta(message, channel, replayed=flag is not None)
        event = _json.encode(message.event)
        if wire_format == "phoenix2" and (data := _published_bytes(message.payload)) is not None:
            sizes = [len(part) for part in (topic.encode(), event[1:-1], meta)]
            if max(sizes) < 256:
                frames.append(_binary(topic, message.event, meta, data))
                continue
        frames.append(
            text_frame(
                b"".join((
                    head, b'{"type":"broadcast","event":', event, b',"payload":',
                    message.payload.encode(), b',"meta":', meta, b"}", tail,
                ))
            )
        )  # fmt: skip
    return b"".join(frames)


def _meta(message: Message, channel: str, *, replayed: bool) -> bytes:
    """Return what the database stamped, and the channel if the topic is a pattern."""
    own = message.channel
    place = b"" if own == channel else b',"channel":' + _json.encode(own)
    sender = b"" if message.sender_id is None else b',"senderId":' + _json.encode(message.sender_id)
    return b"".join((
        b'{"id":"', message.id.encode(), b'"', b',"replayed":true' if replayed else b"",
        b',"timestamp":"', message.timestamp.encode(), b'"', sender, place, b"}",
    ))  # fmt: skip


def _binary(topic: str, event: str, meta: bytes, data: bytes) -> bytes:
    parts = (topic.encode(), event.encode(), meta)
    sizes = bytes(len(part) for part in parts)
    return binary_frame(bytes((BROADCAST,)) + sizes + bytes((BINARY,)) + b"".join(parts) + data)


def _published_bytes(payload: str) -> bytes | None:
    if not payload.startswith('{"' + BYTES):
        return None
    try:
        return base64.b64decode(_bytes.decode(payload).data, validate=True)
    except (msgspec.MsgspecError, binascii.Error, ValueError):
        return None
