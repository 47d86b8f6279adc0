"""The native wire: JSON text frames, see "The wire" in python/README.md.

Frames from clients are decoded strictly into one type per op. The payload of a publish stays
the bytes that came: parsing and printing it again would change numbers and refuse depths that
Postgres accepts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any
from uuid import UUID

import msgspec

from ..errors import CATALOGUE, Refusal
from ..message import Message
from .frames import text_frame

__all__ = [
    "Auth",
    "Op",
    "Ping",
    "Publish",
    "Subscribe",
    "Track",
    "Unsubscribe",
    "Untrack",
    "decode",
    "encode",
    "encode_error",
    "encode_messages",
]

Ref = Annotated[str, msgspec.Meta(max_length=255)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]

# A frame of many messages is cut, so that a client can begin before all of it has come.
FRAME_BYTES = 262_144


class Operation(msgspec.Struct, tag_field="op", frozen=True):
    """What all frames of clients have."""

    ref: Ref | int | None = None


class Auth(Operation, tag="auth", frozen=True):
    """Who I am: a token; again at any time, to refresh it."""

    token: str = ""


class Subscribe(Operation, tag="subscribe", frozen=True):
    """Let me hear these channels, from where I left them, or with some history."""

    channel: Name | None = None
    channels: list[Name] | None = None
    after: Annotated[str, msgspec.Meta(max_length=65536)] | None = None
    history: Annotated[int, msgspec.Meta(ge=0)] = 0
    own: bool = msgspec.field(default=True, name="self")

    def names(self) -> list[str]:
        """The channels asked for, each once, in the order given."""
        return list(
            dict.fromkeys([*([self.channel] if self.channel else []), *(self.channels or [])])
        )


class Unsubscribe(Operation, tag="unsubscribe", frozen=True):
    """Let me hear this channel no more."""

    channel: Name = ""


class Publish(Operation, tag="publish", frozen=True):
    """Publish this message; the answer comes after commit."""

    channel: Name = ""
    event: Name = ""
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    type: str = "message"
    id: UUID | None = None


class Track(Operation, tag="track", frozen=True):
    """Show me to the others in this channel, with this state."""

    channel: Name = ""
    state: msgspec.Raw = msgspec.Raw(b"{}")


class Untrack(Operation, tag="untrack", frozen=True):
    """Show me to the others no more."""

    channel: Name = ""


class Ping(Operation, tag="ping", frozen=True):
    """Answer, so that I know that you are there."""


Op = Auth | Subscribe | Unsubscribe | Publish | Track | Untrack | Ping


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


def encode(frame: dict[str, Any]) -> bytes:
    """Return a control frame, ready to be written."""
    return text_frame(_quote.encode(frame))


def encode_error(ref: Any, refusal: Refusal, channel: str | None = None) -> bytes:
    """Return the `error` frame that answers `ref`, or nothing in particular when it is None."""
    frame: dict[str, Any] = {
        "op": "error",
        "ref": ref,
        "code": refusal.code,
        "message": str(refusal),
    }
    if channel is not None:
        frame["channel"] = channel
    if refusal.retry_after is not None:
        frame["retryAfter"] = refusal.retry_after
    elif CATALOGUE[refusal.code].retry:
        frame["retryAfter"] = 1.0
    return encode(frame)


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
