"""The frames of the Phoenix wire, versions 1.0.0 and 2.0.0: how they are cut and put together.

Version 1.0.0 is JSON objects. Version 2.0.0 is JSON arrays, and two binary kinds beside them: 3,
in which clients push broadcasts, and 4, in which they take broadcasts. In both, a byte says how
long each string of the head is, the strings follow in the same order, then the payload.
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
from rowcast.bridge.wire.frames import PLAIN, SALVAGED, binary_frame, salvaged, text_frame
from rowcast.errors import Refusal

__all__ = [
    "TOPIC",
    "VERSIONS",
    "Broadcast",
    "BrokenError",
    "Frame",
    "Reference",
    "binary_payload",
    "broadcasts",
    "cut",
    "push",
    "read_broadcast",
    "spoiled",
]

# vsn of the URL → format of the wire
VERSIONS = {"1.0.0": "phoenix1", "2.0.0": "phoenix2"}
# The topic of channel X is realtime:X.
TOPIC = "realtime:"

PUSH, BROADCAST = 3, 4
BINARY, JSON = 0, 1
# What is no JSON is published as an object with this one key, and its bytes in base64: SQL and
# clients of other doors see that, and clients of version 2.0.0 get the bytes again.
BYTES = "$binary"

Reference = Annotated[str, msgspec.Meta(max_length=255)] | int | None

_json = msgspec.json.Encoder()


class Broadcast(msgspec.Struct):
    """What a client wants to be published; as JSON, the payload of an event "broadcast"."""

    event: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    persist: Any = None


class Frame(msgspec.Struct):
    """What a client pushes; as JSON, the frame of version 1.0.0."""

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
    """What came is no frame; `frame` is what can be answered of it."""

    def __init__(self, frame: Frame, error: Exception) -> None:
        super().__init__(str(error))
        self.frame = frame


_object = msgspec.json.Decoder(Frame)
_array = msgspec.json.Decoder(_Array)
_broadcast = msgspec.json.Decoder(Broadcast)
_meta_of_push = msgspec.json.Decoder(_Meta)
_bytes = msgspec.json.Decoder(_Bytes)
_valid = msgspec.json.Decoder(msgspec.Raw)
# What stands before the payload of an array.
_HEAD = re.compile(rb"\s*\[(?:\s*" + PLAIN + rb"\s*,){4}", re.DOTALL)


def cut(form: str, data: bytes, *, binary: bool) -> tuple[Frame, Broadcast | None]:
    """Cut a frame of a client, and what is in it when it is a binary one.

    Raises:
        BrokenError: it is none.
    """
    try:
        if binary:
            if form != "phoenix2":
                raise ValueError("version 1.0.0 has text frames only")
            return _cut_push(data)
        return _cut_text(form, data), None
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors, too
        raise BrokenError(_answerable(form, data, binary=binary), error) from None


def _cut_text(form: str, data: bytes) -> Frame:
    if form == "phoenix2":
        array = _array.decode(data)
        return Frame(array.topic, array.event, array.payload, array.ref, array.join_ref)
    return _object.decode(data)


def _answerable(form: str, data: bytes, *, binary: bool) -> Frame:
    """The refs and the topic of what cannot be read; else what is about no topic."""
    try:
        if binary:
            return _cut_head(data)[0]
        if form == "phoenix2":
            head = _HEAD.match(data, 0, SALVAGED)
            return _cut_text(form, (head[0] if head else b"") + b"{}]")
        topic, ref, join_ref = (salvaged(data, name) for name in ("topic", "ref", "join_ref"))
        return Frame(str(topic or "phoenix"), "", ref=ref, join_ref=join_ref)
    except ValueError:
        return Frame("phoenix", "")


def _cut_head(data: bytes) -> tuple[Frame, str, bytes, bytes]:
    """The head of a binary frame: whose it is, its event, its meta, its payload."""
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
    """What is in the payload of an event "broadcast" or "presence".

    Raises:
        Refusal: it is neither.
    """
    try:
        return _broadcast.decode(frame.payload)
    except (ValueError, RecursionError) as error:
        raise Refusal("invalid_message", f"{frame.event}: {error}.") from None


def _cut_push(data: bytes) -> tuple[Frame, Broadcast]:
    frame, event, meta, payload = _cut_head(data)
    if data[6] == BINARY:
        payload = binary_payload(payload)
    elif data[6] != JSON:
        raise ValueError("the encoding of the payload is 0, binary, or 1, JSON")
    persist = _meta_of_push.decode(meta).persist if meta else None
    # The payload stays as it came: parsing and printing it again would change numbers.
    return frame, Broadcast(event, _valid.decode(payload), persist)


def _text(data: bytes) -> str:
    """Newer clients write UTF-8, older ones the low byte of each UTF-16 unit."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def spoiled(channel: str) -> str:
    """What is left of a name of which a client writes the low byte of each UTF-16 unit."""
    return _text(channel.encode("utf-16-le", "surrogatepass")[::2])


def binary_payload(data: bytes) -> bytes:
    """Return bytes as the JSON that is published for them."""
    return b'{"' + BYTES.encode() + b'":"' + base64.b64encode(data) + b'"}'


def push(
    form: str,
    topic: str,
    event: str,
    payload: bytes,
    *,
    ref: Reference = None,
    join_ref: Reference = None,
) -> bytes:
    """Return a frame for a client.

    Args:
        form: a value of `VERSIONS`.
        topic: of the channel, or "phoenix".
        event: a word of the protocol, never one that a client chose.
        payload: JSON.
        ref: of the request that it answers; pushes have none.
        join_ref: of the join that it belongs to; None where it is for all joins.
    """
    parts = [_json.encode(part) for part in (join_ref, ref, topic, event)] + [payload]
    if form == "phoenix2":
        return text_frame(b"[" + b",".join(parts) + b"]")
    names = (b'"join_ref":', b'"ref":', b'"topic":', b'"event":', b'"payload":')
    fields = (name + part for name, part in zip(names, parts, strict=True))
    return text_frame(b"{" + b",".join(fields) + b"}")


def broadcasts(
    form: str, channel: str, messages: Sequence[Message], flag: str | None = None
) -> bytes:
    """Return one frame per message: this wire has no frame for many.

    Whatever the publisher called its event, the frame's event is "broadcast", so nobody can
    speak as the server.
    """
    topic = TOPIC + channel
    if form == "phoenix2":
        head, tail = b"[null,null," + _json.encode(topic) + b',"broadcast",', b"]"
    else:
        head = b'{"ref":null,"join_ref":null,"topic":' + _json.encode(topic)
        head, tail = head + b',"event":"broadcast","payload":', b"}"
    frames: list[bytes] = []
    for message in messages:
        meta = _meta(message, channel, replayed=flag is not None)
        event = _json.encode(message.event)
        if form == "phoenix2" and (data := _published_bytes(message.payload)) is not None:
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
    """What the database stamped; the channel, too, where the topic is a pattern."""
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
