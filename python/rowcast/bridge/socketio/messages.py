"""Messages and members in the words of InsForge: the payload's keys side by side, and `meta`.

Payloads are not parsed: what the server knows is spliced into their text.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from rowcast.bridge.model import Message, timestamp
from rowcast.bridge.wire.protocol import Change

from .packets import emit

__all__ = ["OTHER", "changes", "member", "messages", "moment", "shutdown"]

# Names that clients act upon by themselves, or that only the server speaks with. Whoever publishes
# chooses the name of his event, so one of these would speak as the server, or as the client's own
# library. Such a message comes as the event OTHER, with its name in meta.
RESERVED = {
    "*", "__disconnect_final", "connect", "connect_error", "connect_timeout", "connecting",
    "disconnect", "disconnecting", "error", "newListener", "ping", "pong", "reconnect",
    "reconnect_attempt", "reconnect_error", "reconnect_failed", "reconnecting", "removeListener",
}  # fmt: skip
PREFIXES = ("realtime:", "presence:")
OTHER = "realtime:message"

_json = msgspec.json.Encoder()
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_array = msgspec.json.Decoder(list[msgspec.Raw])


class _Shown(msgspec.Struct):
    type: Any = None
    joined_at: Any = msgspec.field(default=None, name="joinedAt")
    presence_id: Any = msgspec.field(default=None, name="presenceId")


_shown = msgspec.json.Decoder(_Shown)


def messages(channel: str, group: Sequence[Message]) -> bytes:
    """Return one frame per message: this wire has none for many.

    Args:
        channel: the name or pattern through which they are heard.
        group: at least one.
    """
    return b"".join(_message(channel, message) for message in group)


def _message(channel: str, message: Message) -> bytes:
    speaks = message.event in RESERVED or message.event.startswith(PREFIXES)
    meta: dict[str, Any] = {
        "channel": f"realtime:{message.channel}",
        "messageId": message.id,
        "senderType": message.sender_type,
    }
    if message.sender_id is not None:
        meta["senderId"] = message.sender_id
    meta["timestamp"] = message.timestamp
    if channel != message.channel:
        meta["pattern"] = channel
    if speaks:
        meta["event"] = message.event
    inside = _spread(message.payload)
    comma = b"," if inside else b""
    body = b"".join((b"{", inside, comma, b'"meta":', _json.encode(meta), b"}"))
    return emit(OTHER if speaks else message.event, body)


def _spread(payload: str) -> bytes:
    """What stands between the braces of an object with the payload's keys, less `meta`: some
    clients take the last of equal names, others take none."""
    text = payload.strip()
    try:
        if text.startswith("{"):
            # Postgres writes jsonb without escapes where there need be none.
            if '"meta"' in text:
                keys = _object.decode(text)
                keys.pop("meta", None)
                return _json.encode(keys)[1:-1]
            return text[1:-1].strip().encode()
        if text.startswith("["):
            return _json.encode(dict(enumerate(_array.decode(text))))[1:-1]
    except RecursionError:
        # Deeper than what is read here. The last of equal names counts for most clients.
        if text.startswith("{"):
            return text[1:-1].strip().encode()
    return b'"payload":' + text.encode()


def moment() -> str:
    """Now."""
    return timestamp(datetime.now(UTC))


def member(key: str, state: bytes) -> bytes:
    """Return a member; its own state comes first, so that it cannot say who it is.

    Args:
        key: who.
        state: a JSON object. What it says of kind and time is taken where it is one: members that
            came by another door have said it themselves, or nothing.
    """
    try:
        shown = _shown.decode(state)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        shown = _Shown()
    text = state.strip()
    inside = text[1:-1].strip() if text.startswith(b"{") else b""
    kind = b"anonymous" if shown.type == "anonymous" else b"user"
    joined = shown.joined_at if isinstance(shown.joined_at, str) else moment()
    if shown != _Shown():
        inside = _without(inside)
    return b"".join((
        b"{", inside, b"," if inside else b"", b'"type":"', kind, b'","presenceId":',
        _json.encode(key), b',"joinedAt":', _json.encode(joined), b"}",
    ))  # fmt: skip


def _without(inside: bytes) -> bytes:
    try:
        keys = _object.decode(b"{" + inside + b"}")
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return inside
    for name in ("type", "presenceId", "joinedAt"):
        keys.pop(name, None)
    return _json.encode(keys)[1:-1]


def changes(channel: str, told: Iterable[Change]) -> bytes:
    """Return a frame for each change; who has changed joins again, and is replaced by that."""
    return b"".join(
        emit(
            "presence:leave" if change.type == "leave" else "presence:join",
            b'{"member":'
            + member(change.key, bytes(change.presence))
            + b',"meta":'
            + _json.encode(_meta(channel))
            + b"}",
        )
        for change in told
    )


def shutdown(message: str) -> bytes:
    """Return the frame that says that the server goes away."""
    said = {"level": "warning", "title": "Server Shutdown", "message": message, "meta": _meta(None)}
    return emit("notification", _json.encode(said))


def _meta(channel: str | None) -> dict[str, str]:
    place = {} if channel is None else {"channel": channel}
    return {
        **place,
        "messageId": str(uuid.uuid4()),
        "senderType": "system",
        "timestamp": moment(),
    }
