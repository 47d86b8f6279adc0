"""The Socket.IO wire: what InsForge's clients speak, over the sessions of this bridge.

Whoever subscribes is present; messages come as events of the name that the publisher chose.
Source: the behaviour of the clients, see "InsForge clients" in python/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET

from rowcast.bridge.model import Message
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

from . import messages as words
from .packets import Event as Said
from .packets import Kind, Packet, ack, connected, cut, emit, failed

__all__ = ["SocketIO"]

# What the clients of InsForge know. Other codes are named alike.
CODES = {
    "forbidden": "REALTIME_UNAUTHORIZED",
    "invalid_token": "REALTIME_UNAUTHORIZED",
    "token_expired": "REALTIME_UNAUTHORIZED",
    "unknown_op": "REALTIME_INVALID_EVENT",
    "internal": "INTERNAL_ERROR",
}
TEXTS = {
    ("forbidden", "subscribe"): "Not authorized to subscribe to this channel",
    ("forbidden", "publish"): "Not authorized to publish to this channel",
    ("not_subscribed", "publish"): "Must subscribe to channel before publishing messages",
    ("internal", "subscribe"): "Failed to subscribe to channel",
    ("internal", "publish"): "Failed to publish message",
}
# Keys of InsForge itself, which are no tokens.
OPAQUE = ("ik_", "anon_")
# Clients that ask for one channel while it is being subscribed get one answer each.
MOST_ACKS = 100

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


@dataclass(slots=True)
class _Request:
    """What was asked, until it is answered."""

    kind: Literal["connect", "subscribe", "unsubscribe", "publish", "auth", "other"]
    channel: str | None = None
    acks: list[bytes] = field(default_factory=list)
    namespace: str = "/"
    state: bytes = b"{}"  # as which the subscriber is shown


class SocketIO:
    """One client's side of it. What Engine.IO has around its packets is no part of it."""

    format = "socketio"
    admin = True

    def __init__(self) -> None:
        self.left = False  # the client has said goodbye
        self.adrift = False  # it shall connect again, and so subscribe again
        self._session = ""
        self._key = ""
        self._anonymous = True
        self._count = 0
        self._requests: dict[int, _Request] = {}
        self._subscribing: dict[str, int] = {}
        self._attachments = 0

    def decode(self, data: bytes, *, binary: bool) -> tuple[Sequence[Op], Any, Refusal | None]:
        """See `Wire`."""
        if binary:
            if self._attachments:  # of an event that was refused
                self._attachments -= 1
                return (), None, None
            return (), None, Refusal("invalid_frame", "Send text frames.")
        number = None
        try:
            packet = cut(data)
            number = self._note("other", packet)
            ops = self._operations(packet, number)
        except Refusal as refusal:
            return (), number, refusal
        except (ValueError, RecursionError) as error:
            return (), number, Refusal("invalid_frame", f"This is not as expected: {error}.")
        if not ops:
            del self._requests[number]
            return (), None, None
        unfit = next(filter(None, map(check, ops)), None)
        return () if unfit else ops, number, unfit

    def _operations(self, packet: Packet, number: int) -> tuple[Op, ...]:
        request = self._requests[number]
        match packet.kind:
            case Kind.CONNECT:
                request.kind = "connect"
                if packet.namespace != "/":
                    raise Refusal("invalid_request", "Invalid namespace")
                return (Connect(number, _token(packet.data)),)
            case Kind.DISCONNECT:
                self.left = packet.namespace == "/"
                return ()
            case Kind.EVENT:
                return self._event(packet, number, request)
            case Kind.ACK:
                return ()  # nothing is asked of clients
            case Kind.BINARY_EVENT | Kind.BINARY_ACK:
                self._attachments = packet.attachments
                raise Refusal("invalid_message", "Bytes are not taken here: send JSON.")
        raise Refusal("invalid_frame", "Clients do not send this kind of packet.")

    def _event(self, packet: Packet, number: int, request: _Request) -> tuple[Op, ...]:
        said = msgspec.json.decode(packet.data, type=Said)
        match said.name:
            case "realtime:subscribe":
                channel = msgspec.json.decode(said.body, type=_Channel).channel
                return self._subscribe(channel, number, request)
            case "realtime:unsubscribe":
                channel = msgspec.json.decode(said.body, type=_Channel).channel
                request.kind, request.channel = "unsubscribe", channel
                return (Unsubscribe(number, channel),)
            case "realtime:publish":
                message = msgspec.json.decode(said.body, type=_Message)
                request.kind, request.channel = "publish", message.channel
                # Elsewhere the policies alone decide. Those of InsForge were written where only
                # who may listen could publish.
                named = (message.channel, message.event, message.payload, message.type, message.id)
                return (Publish(number, *named, subscribed=True),)
            case "realtime:auth":
                request.kind = "auth"
                return (Auth(number, msgspec.json.decode(said.body, type=_Token).token),)
        raise Refusal(
            "unknown_op",
            "Send realtime:subscribe, realtime:unsubscribe, realtime:publish or realtime:auth.",
        )

    def _subscribe(self, channel: str, number: int, request: _Request) -> tuple[Op, ...]:
        request.kind, request.channel = "subscribe", channel
        asked = self._requests.get(self._subscribing.get(channel, 0))
        if asked is not None:
            if len(asked.acks) + len(request.acks) > MOST_ACKS:
                raise Refusal("rate_limited", "This channel is being subscribed.")
            asked.acks += request.acks
            return ()
        self._subscribing[channel] = number
        kind = "anonymous" if self._anonymous else "user"
        state = msgspec.json.encode({"type": kind, "joinedAt": words.moment()})
        request.state = state
        shown = None if is_pattern(channel) else msgspec.Raw(state)
        return (Subscribe(number, channel, state=shown),)

    def _note(self, kind: Any, packet: Packet) -> int:
        self._count += 1
        acks = [packet.ack] if packet.ack else []
        self._requests[self._count] = _Request(kind, None, acks, packet.namespace)
        return self._count

    def encode(self, event: Event) -> bytes:
        """See `Wire`."""
        match event:
            case Welcome():
                self._session = event.session
            case Authenticated():
                return self._authenticated(event)
            case Subscribed():
                return self._answered(event)
            case Published():
                request = self._requests.pop(event.ref)
                return _acks(request, {"ok": True, "id": event.id})
            case Done():
                # What has no number is that a subscriber was shown.
                request = self._requests.pop(event.ref, _Request("other"))
                return _acks(request, {"ok": True, "channel": request.channel})
            case Refused():
                return self._refused(event)
            case Closed():
                return self._closed(event)
            case Present():
                gone = [Change("leave", key, msgspec.Raw(b"{}")) for key in event.gone]
                return words.changes(event.channel, [*gone, *event.events])
            case Status() if event.status == "draining":
                return words.shutdown("The server is going away: you will be connected again.")
        return b""

    def encode_messages(
        self, channel: str, messages: Sequence[Message], flag: str | None = None
    ) -> bytes:
        """See `Wire`."""
        return words.messages(channel, messages)

    # Answers

    def _authenticated(self, event: Authenticated) -> bytes:
        self._anonymous = event.user is None
        self._key = event.user or self._session
        request = self._requests.pop(event.ref)
        if request.kind == "connect":
            return connected(self._session)
        return _acks(request, {"ok": True})

    def _answered(self, event: Subscribed) -> bytes:
        request = self._requests.pop(event.ref)
        self._settle(event.channel, event.ref)
        members = {} if event.presence is UNSET else {m.key: m.presence for m in event.presence}
        if not is_pattern(event.channel):
            members.setdefault(self._key, msgspec.Raw(request.state))
        shown = [msgspec.Raw(words.member(key, bytes(state))) for key, state in members.items()]
        answer = {"ok": True, "channel": event.channel, "presence": {"members": shown}}
        return _acks(request, answer)

    def _refused(self, event: Refused) -> bytes:
        request = self._requests.pop(event.ref, _Request("other"))
        code = CODES.get(event.code, f"REALTIME_{event.code.upper()}")
        text = TEXTS.get((event.code, request.kind), event.message)
        channel = request.channel or (event.channel or None)
        if request.kind == "connect":
            return self._rejected(request, event)
        if request.kind == "unsubscribe" and event.code == "not_subscribed":
            return _acks(request, {"ok": True, "channel": channel})  # it is what was asked for
        if request.kind == "subscribe":
            self._settle(channel, event.ref)
            if event.code == "unavailable":
                # A client that is told "no" here never asks again; one that loses its
                # connection does, for all its channels.
                self.adrift = True
                request.acks.clear()
        error = {"code": code, "message": text}
        if request.acks:
            place = {"channel": channel} if channel else {}
            return _acks(request, {"ok": False, **place, "error": error})
        place = {"channel": channel} if channel else {}
        return emit("realtime:error", msgspec.json.encode({**place, **error}))

    def _rejected(self, request: _Request, event: Refused) -> bytes:
        if request.namespace != "/":
            return failed(request.namespace, event.message)
        if event.code in ("unavailable", "internal", "rate_limited"):
            # A client that is rejected gives up for good; this says nothing about its token.
            self.adrift = True
            return b""
        return failed("/", event.message)

    def _closed(self, event: Closed) -> bytes:
        if event.code == "unavailable":
            self.adrift = True
            code, text = "REALTIME_UNAVAILABLE", "The policies could not be asked."
        else:
            code, text = "REALTIME_UNAUTHORIZED", f"This channel was closed to you: {event.code}."
        said = {"channel": event.channel, "code": code, "message": text}
        return emit("realtime:error", msgspec.json.encode(said))

    def _settle(self, channel: str | None, number: Any) -> None:
        if channel is not None and self._subscribing.get(channel) == number:
            del self._subscribing[channel]


def _token(data: bytes) -> str:
    """The token of a CONNECT; a key may be given as one.

    Raises:
        Refusal: there is none, or it is none of ours.
    """
    given = msgspec.json.decode(data, type=_Credentials | None) if data else None
    token = (given.token or given.api_key) if given else None
    if not token:
        raise Refusal("unauthorized", "No authentication provided")
    if token.startswith(OPAQUE):
        raise Refusal("invalid_token", "Invalid API key: make one with `rowcast token`")
    return token


def _acks(request: _Request, body: Any) -> bytes:
    return b"".join(ack(number, body) for number in request.acks)
