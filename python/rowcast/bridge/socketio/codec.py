"""The Socket.IO wire of InsForge's clients: packets to operations, events to packets.

A client that subscribes is a member of the channel; messages are events with the name that the
publisher chose. Payloads are not parsed: `meta`, which the server adds, is spliced into their text.
Source: the behaviour of the clients, see "InsForge clients" in python/docs/clients.md.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET

from rowcast.bridge.model import Message, timestamp
from rowcast.bridge.names import is_pattern
from rowcast.bridge.wire.protocol import (
    Auth,
    Authenticated,
    Change,
    Closed,
    Connect,
    Done,
    Event,
    Op,
    Present,
    Publish,
    Published,
    Refused,
    Status,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Welcome,
    check,
)
from rowcast.errors import Refusal

from .packets import EventData, Kind, Packet, ack, connect, connect_error, emit, parse

__all__ = ["OTHER", "RESERVED", "SocketIO"]

# Codes that InsForge's clients know. Other codes are named in the same way.
CODES = {
    "forbidden": "REALTIME_UNAUTHORIZED",
    "invalid_token": "REALTIME_UNAUTHORIZED",
    "token_expired": "REALTIME_UNAUTHORIZED",
    "unknown_op": "REALTIME_INVALID_EVENT",
    "internal": "INTERNAL_ERROR",
}
# Sentences of InsForge's server, by code and kind of request.
TEXTS = {
    ("forbidden", "subscribe"): "Not authorized to subscribe to this channel",
    ("forbidden", "publish"): "Not authorized to publish to this channel",
    ("not_subscribed", "publish"): "Must subscribe to channel before publishing messages",
    ("internal", "subscribe"): "Failed to subscribe to channel",
    ("internal", "publish"): "Failed to publish message",
}
# Prefixes of InsForge's own keys, which are not tokens.
OPAQUE = ("ik_", "anon_")
# Answers of one pending subscribe: each repeated request for the same channel gets its own.
MAX_ACKS = 100

# Events that clients act upon by themselves, or that only the server sends. A publisher chooses
# the name of an event, and with one of these would speak as the server or as the client's own
# library. Such a message is sent as the event OTHER, with its name in meta.
RESERVED = {
    "*", "__disconnect_final", "connect", "connect_error", "connect_timeout", "connecting",
    "disconnect", "disconnecting", "error", "newListener", "ping", "pong", "reconnect",
    "reconnect_attempt", "reconnect_error", "reconnect_failed", "reconnecting", "removeListener",
}  # fmt: skip
RESERVED_PREFIXES = ("realtime:", "presence:")
OTHER = "realtime:message"

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class _Credentials(msgspec.Struct):
    token: str | None = None
    api_key: str | None = msgspec.field(default=None, name="apiKey")


class _Channel(msgspec.Struct):
    channel: Name


class _Message(msgspec.Struct):
    channel: Name
    event: Name
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    type: str = "message"
    id: UUID | None = None


class _Token(msgspec.Struct):
    token: str


class _MemberState(msgspec.Struct):
    type: Any = None
    joined_at: Any = msgspec.field(default=None, name="joinedAt")
    presence_id: Any = msgspec.field(default=None, name="presenceId")


_json = msgspec.json.Encoder()
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_array = msgspec.json.Decoder(list[msgspec.Raw])
_member_state = msgspec.json.Decoder(_MemberState)


@dataclass(slots=True)
class _Request:
    """A request that is not answered yet."""

    kind: Literal["connect", "subscribe", "unsubscribe", "publish", "auth", "other"]
    channel: str | None = None
    acks: list[bytes] = field(default_factory=list)
    namespace: str = "/"
    state: bytes = b"{}"  # the subscriber's state as a member


class SocketIO:
    """The wire of one client; the Engine.IO packets around its packets are not part of it."""

    format = "socketio"
    admin = True

    def __init__(self) -> None:
        self.left = False  # the client has sent a disconnect
        self.adrift = False  # the client must reconnect, and so subscribe again
        self._session = ""
        self._key = ""  # the client's key as a member
        self._anonymous = True
        self._count = 0
        self._requests: dict[int, _Request] = {}
        self._subscribing: dict[str, int] = {}  # number of the pending subscribe by channel
        self._attachments = 0  # binary frames to ignore, of a refused event

    # Requests

    def decode(self, data: bytes, *, binary: bool) -> tuple[Sequence[Op], Any, Refusal | None]:
        if binary:
            if self._attachments:
                self._attachments -= 1
                return (), None, None
            return (), None, Refusal("invalid_frame", "Send text frames.")
        number = None
        try:
            packet = parse(data)
            number = self._remember(packet)
            ops = self._operations(packet, number)
        except Refusal as refusal:
            return (), number, refusal
        except (ValueError, RecursionError) as error:
            return (), number, Refusal("invalid_frame", f"The packet is not valid: {error}.")
        if not ops:
            del self._requests[number]
            return (), None, None
        refused = next(filter(None, map(check, ops)), None)
        return () if refused else ops, number, refused

    def _operations(self, packet: Packet, number: int) -> tuple[Op, ...]:
        request = self._requests[number]
        match packet.kind:
            case Kind.CONNECT:
                request.kind = "connect"
                if packet.namespace != "/":
                    raise Refusal("invalid_request", "Invalid namespace")
                return (Connect(number, _read_token(packet.data)),)
            case Kind.DISCONNECT:
                self.left = packet.namespace == "/"
                return ()
            case Kind.EVENT:
                return self._event(packet, number, request)
            case Kind.ACK:
                return ()  # the server does not ask clients for acknowledgements
            case Kind.BINARY_EVENT | Kind.BINARY_ACK:
                self._attachments = packet.attachments
                raise Refusal("invalid_message", "Binary payloads are not supported: send JSON.")
        raise Refusal("invalid_frame", "Clients do not send this kind of packet.")

    def _event(self, packet: Packet, number: int, request: _Request) -> tuple[Op, ...]:
        event = msgspec.json.decode(packet.data, type=EventData)
        match event.name:
            case "realtime:subscribe":
                channel = msgspec.json.decode(event.body, type=_Channel).channel
                return self._subscribe(channel, number, request)
            case "realtime:unsubscribe":
                channel = msgspec.json.decode(event.body, type=_Channel).channel
                request.kind, request.channel = "unsubscribe", channel
                return (Unsubscribe(number, channel),)
            case "realtime:publish":
                message = msgspec.json.decode(event.body, type=_Message)
                request.kind, request.channel = "publish", message.channel
                # InsForge's policies were written for a server where only subscribers could
                # publish. At the other doors the policies alone decide.
                fields = (message.channel, message.event, message.payload, message.type, message.id)
                return (Publish(number, *fields, subscribed=True),)
            case "realtime:auth":
                request.kind = "auth"
                return (Auth(number, msgspec.json.decode(event.body, type=_Token).token),)
        raise Refusal(
            "unknown_op",
            "Send realtime:subscribe, realtime:unsubscribe, realtime:publish or realtime:auth.",
        )

    def _subscribe(self, channel: str, number: int, request: _Request) -> tuple[Op, ...]:
        request.kind, request.channel = "subscribe", channel
        pending = self._requests.get(self._subscribing.get(channel, 0))
        if pending is not None:
            if len(pending.acks) + len(request.acks) > MAX_ACKS:
                raise Refusal("rate_limited", "A subscribe of this channel is under way.")
            pending.acks += request.acks
            return ()
        self._subscribing[channel] = number
        kind = "anonymous" if self._anonymous else "user"
        state = _json.encode({"type": kind, "joinedAt": _now()})
        request.state = state
        tracked = None if is_pattern(channel) else msgspec.Raw(state)
        return (Subscribe(number, channel, state=tracked),)

    def _remember(self, packet: Packet) -> int:
        """Keep a request until it is answered; returns its number, the ref of the operation."""
        self._count += 1
        acks = [packet.ack] if packet.ack else []
        self._requests[self._count] = _Request("other", None, acks, packet.namespace)
        return self._count

    # Answers and events

    def encode(self, event: Event) -> bytes:
        match event:
            case Welcome():
                self._session = event.session
            case Authenticated():
                return self._authenticated(event)
            case Subscribed():
                return self._subscribed(event)
            case Published():
                request = self._requests.pop(event.ref)
                return _acknowledge(request, {"ok": True, "id": event.id})
            case Done():
                # An answer without a number says that a subscriber was tracked.
                request = self._requests.pop(event.ref, _Request("other"))
                return _acknowledge(request, {"ok": True, "channel": request.channel})
            case Refused():
                return self._refused(event)
            case Closed():
                return self._closed(event)
            case Present():
                gone = [Change("leave", key, msgspec.Raw(b"{}")) for key in event.gone]
                return _encode_changes(event.channel, [*gone, *event.events])
            case Status() if event.status == "draining":
                return _encode_shutdown("The server is going away: you will be connected again.")
        return b""

    def encode_messages(
        self, channel: str, messages: Sequence[Message], flag: str | None = None
    ) -> bytes:
        # One frame per message, because this wire cannot put several into one.
        return b"".join(_encode_message(channel, message) for message in messages)

    def _authenticated(self, event: Authenticated) -> bytes:
        self._anonymous = event.user is None
        self._key = event.user or self._session
        request = self._requests.pop(event.ref)
        if request.kind == "connect":
            return connect(self._session)
        return _acknowledge(request, {"ok": True})

    def _subscribed(self, event: Subscribed) -> bytes:
        request = self._requests.pop(event.ref)
        self._subscribe_answered(event.channel, event.ref)
        members = {} if event.presence is UNSET else {m.key: m.presence for m in event.presence}
        if not is_pattern(event.channel):
            members.setdefault(self._key, msgspec.Raw(request.state))
        listed = [msgspec.Raw(_member(key, bytes(state))) for key, state in members.items()]
        answer = {"ok": True, "channel": event.channel, "presence": {"members": listed}}
        return _acknowledge(request, answer)

    def _refused(self, event: Refused) -> bytes:
        request = self._requests.pop(event.ref, _Request("other"))
        channel = request.channel or (event.channel or None)
        if request.kind == "connect":
            return self._rejected(request, event)
        if request.kind == "unsubscribe" and event.code == "not_subscribed":
            # The client wanted to be unsubscribed, and it is.
            return _acknowledge(request, {"ok": True, "channel": channel})
        if request.kind == "subscribe":
            self._subscribe_answered(channel, event.ref)
            if event.code == "unavailable":
                # After a refused subscribe a client never tries again. After a lost connection
                # it does, for all its channels.
                self.adrift = True
                request.acks.clear()
        code = CODES.get(event.code, f"REALTIME_{event.code.upper()}")
        text = TEXTS.get((event.code, request.kind), event.message)
        return _encode_error(code, text, channel, request)

    def _rejected(self, request: _Request, event: Refused) -> bytes:
        if request.namespace != "/":
            return connect_error(request.namespace, event.message)
        if event.code in ("unavailable", "internal", "rate_limited"):
            # A rejected client gives up for good, but these codes do not concern its token.
            self.adrift = True
            return b""
        return connect_error("/", event.message)

    def _closed(self, event: Closed) -> bytes:
        if event.code == "unavailable":
            self.adrift = True
            code, text = "REALTIME_UNAVAILABLE", "The policies cannot be asked at the moment."
        else:
            code = "REALTIME_UNAUTHORIZED"
            text = f"The server has closed this channel: {event.code}."
        return _encode_error(code, text, event.channel)

    def _subscribe_answered(self, channel: str | None, number: Any) -> None:
        if channel is not None and self._subscribing.get(channel) == number:
            del self._subscribing[channel]


def _read_token(data: bytes) -> str:
    """Return the token in the data of a CONNECT; `apiKey` may hold it as well.

    Raises:
        Refusal: there is no token, or it is a key of InsForge.
    """
    given = msgspec.json.decode(data, type=_Credentials | None) if data else None
    token = (given.token or given.api_key) if given else None
    if not token:
        raise Refusal("unauthorized", "No authentication provided")
    if token.startswith(OPAQUE):
        raise Refusal("invalid_token", "Invalid API key: make one with `rowcast token`")
    return token


def _acknowledge(request: _Request, body: Any) -> bytes:
    return b"".join(ack(number, body) for number in request.acks)


def _encode_error(
    code: str, text: str, channel: str | None, request: _Request | None = None
) -> bytes:
    """Return an error as acknowledgements of a request, or as an event if it asked for none."""
    place = {"channel": channel} if channel else {}
    error = {"code": code, "message": text}
    if request is not None and request.acks:
        return _acknowledge(request, {"ok": False, **place, "error": error})
    return emit("realtime:error", _json.encode({**place, **error}))


def _encode_shutdown(message: str) -> bytes:
    body = {
        "level": "warning", "title": "Server Shutdown", "message": message, "meta": _system_meta()
    }  # fmt: skip
    return emit("notification", _json.encode(body))


def _now() -> str:
    return timestamp(datetime.now(UTC))


# Messages


def _encode_message(channel: str, message: Message) -> bytes:
    """Return the frame of a message heard through `channel`, a name or pattern."""
    reserved = message.event in RESERVED or message.event.startswith(RESERVED_PREFIXES)
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
    if reserved:
        meta["event"] = message.event
    inside = _spread(message.payload)
    comma = b"," if inside else b""
    body = b"".join((b"{", inside, comma, b'"meta":', _json.encode(meta), b"}"))
    return emit(OTHER if reserved else message.event, body)


def _spread(payload: str) -> bytes:
    """Return the members of an object with the payload's keys, without `meta`: of two equal names
    some clients take the last, others neither."""
    text = payload.strip()
    try:
        if text.startswith("{"):
            # Postgres writes jsonb without unnecessary escapes, so "meta" is found as it is.
            if '"meta"' in text:
                keys = _object.decode(text)
                keys.pop("meta", None)
                return _json.encode(keys)[1:-1]
            return text[1:-1].strip().encode()
        if text.startswith("["):
            return _json.encode(dict(enumerate(_array.decode(text))))[1:-1]
    except RecursionError:
        # Too deep for msgspec. Most clients take the last of two equal names, the server's `meta`.
        if text.startswith("{"):
            return text[1:-1].strip().encode()
    return b'"payload":' + text.encode()


# Members


def _member(key: str, state: bytes) -> bytes:
    """Return a member as JSON.

    The member's own state comes first, so that it cannot override `presenceId`.

    Args:
        key: the key of the member.
        state: a JSON object. Its `type` and `joinedAt` are used if they are valid: members that
            came by another door have set them themselves, or not at all.
    """
    try:
        given = _member_state.decode(state)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        given = _MemberState()
    text = state.strip()
    inside = text[1:-1].strip() if text.startswith(b"{") else b""
    kind = b"anonymous" if given.type == "anonymous" else b"user"
    joined = given.joined_at if isinstance(given.joined_at, str) else _now()
    if given != _MemberState():
        inside = _without_own_keys(inside)
    return b"".join((
        b"{", inside, b"," if inside else b"", b'"type":"', kind, b'","presenceId":',
        _json.encode(key), b',"joinedAt":', _json.encode(joined), b"}",
    ))  # fmt: skip


def _without_own_keys(inside: bytes) -> bytes:
    try:
        keys = _object.decode(b"{" + inside + b"}")
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return inside
    for name in ("type", "presenceId", "joinedAt"):
        keys.pop(name, None)
    return _json.encode(keys)[1:-1]


def _encode_changes(channel: str, changes: Iterable[Change]) -> bytes:
    """Return a frame for each change. A changed member joins again, which replaces the old one."""
    return b"".join(
        emit(
            "presence:leave" if change.type == "leave" else "presence:join",
            b'{"member":'
            + _member(change.key, bytes(change.presence))
            + b',"meta":'
            + _json.encode(_system_meta(channel))
            + b"}",
        )
        for change in changes
    )


def _system_meta(channel: str | None = None) -> dict[str, str]:
    place = {} if channel is None else {"channel": channel}
    return {
        **place,
        "messageId": str(uuid.uuid4()),
        "senderType": "system",
        "timestamp": _now(),
    }
