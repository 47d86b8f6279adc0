"""The Phoenix wire: what realtime-js and realtime-py speak, over the sessions of this bridge.

Topic realtime:X is channel X. A reply repeats the ref of its request, a push has none.
Source: the behaviour of the clients, see "Supabase clients" in python/README.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from rowcast.bridge.model import Message
from rowcast.bridge.wire.frames import ping_frame
from rowcast.bridge.wire.protocol import (
    Auth,
    Authenticated,
    Closed,
    Cursor,
    Done,
    Event,
    Member,
    Op,
    Ping,
    Present,
    Publish,
    Published,
    Refresh,
    Refused,
    Resume,
    Subscribe,
    Subscribed,
    Track,
    Unsubscribe,
    Untrack,
    check,
)
from rowcast.errors import Refusal

from . import presence as presence
from .frames import (
    TOPIC,
    Broadcast,
    BrokenError,
    Frame,
    Reference,
    broadcasts,
    cut,
    push,
    read_broadcast,
    spoiled,
)
from .join import Join, read_join

__all__ = ["Phoenix"]

# realtime-py waits longer before it joins again when a reason begins with one of these.
CODES = {
    "rate_limited": "ClientJoinRateLimitReached",
    "too_many_channels": "ChannelRateLimitReached",
}
# After these a client shall not join again by itself.
FOR_GOOD = {"revoked", "disabled", "deleted", "expired"}
# Keys of a server of their own kind, which are no tokens.
OPAQUE = "sb_"
UNCONFIRMED = 100
REPLACED = "Another join has replaced this one."


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked, until it is answered."""

    kind: Literal["join", "leave", "token", "other"]
    topic: str
    ref: Reference
    join_ref: Reference
    join: Join | None = None
    token: str | None = None
    ack: bool = False


# Who is told of a frame that nobody knows the request of. No channel: one of realtime-py would
# end with an error that it is told.
NOBODY = _Request("other", "phoenix", None, None)


class Phoenix:
    """One client's side of it.

    Args:
        form: a value of `VERSIONS`.
        token: that of the URL.
    """

    admin = False

    def __init__(self, form: str, token: str) -> None:
        self.format = form
        self._token = token
        self._requests: dict[int, _Request] = {}
        self._count = 0
        self._joined: dict[str, tuple[Reference, Join]] = {}
        self._joining: dict[str, int] = {}  # the newest join that is not answered yet
        self._unconfirmed: deque[tuple[bytes, str, list[tuple[str, str]]]] = deque(
            maxlen=UNCONFIRMED
        )

    def decode(self, data: bytes, *, binary: bool) -> tuple[Sequence[Op], Any, Refusal | None]:
        """See `Wire`."""
        try:
            frame, broadcast = cut(self.format, data, binary=binary)
        except BrokenError as error:
            refusal = Refusal("invalid_frame", f"This is no frame of Phoenix: {error}.")
            return (), self._note("other", error.frame), refusal
        if frame.topic == "phoenix" and frame.event == "heartbeat":
            number = self._note("other", frame)
            return (Ping(number),), number, None
        channel = self._channel(frame)
        if not channel:
            refusal = Refusal("invalid_channel", f"Topics begin with {TOPIC}.")
            return (), self._note("other", frame), refusal
        try:
            ops = self._operations(frame, channel, broadcast)
        except Refusal as why:
            return (), self._note("other", frame), why
        ref = ops[0].ref if ops else None
        unfit = next(filter(None, map(check, ops)), None)
        return () if unfit else ops, ref, unfit

    def _channel(self, frame: Frame) -> str:
        """The channel that is meant. Clients that write the low bytes of characters spoil the
        topic of a push, but not the ref of its join; which alone says nothing, because a client
        may join several topics with one."""
        name = frame.topic.removeprefix(TOPIC) if frame.topic.startswith(TOPIC) else ""
        if frame.event == "broadcast" and name not in self._joined:
            for channel in (*self._joined, *self._joining):
                if self._asked(channel)[0] == frame.join_ref and name == spoiled(channel):
                    return channel
        return name

    def _asked(self, channel: str) -> tuple[Reference, Join]:
        """The newest join of a channel, answered or not."""
        request = self._requests.get(self._joining.get(channel, 0))
        if request is not None and request.join is not None:
            return request.join_ref, request.join
        return self._joined.get(channel, (None, Join()))

    def _replaced(self, frame: Frame, channel: str) -> bool:
        join_ref, _ = self._asked(channel)
        return None not in (join_ref, frame.join_ref) and join_ref != frame.join_ref

    def _operations(self, frame: Frame, channel: str, pushed: Broadcast | None) -> Sequence[Op]:
        match frame.event:
            case "phx_join":
                return self._join(frame, channel)
            case "broadcast":
                return self._broadcast(frame, channel, pushed or read_broadcast(frame))
            case "phx_leave" if self._replaced(frame, channel):
                # What it would end has ended. Clients leave once more what they have replaced.
                return (Ping(self._note("other", frame)),)
            case "presence" if self._replaced(frame, channel):
                raise Refusal("not_subscribed", REPLACED)
            case "phx_leave":
                return (Unsubscribe(self._note("leave", frame), channel),)
            case "access_token":
                token = read_token(frame.payload)
                if token is None or token == self._token or token.startswith(OPAQUE):
                    return ()
                return (Refresh(self._note("token", frame, token=token), token),)
            case "presence":
                return self._presence(frame, channel)
            case _:
                raise Refusal(
                    "unknown_op", "Send phx_join, phx_leave, access_token, broadcast or presence."
                )

    def _join(self, frame: Frame, channel: str) -> Sequence[Op]:
        join = read_join(frame.payload)
        token = join.token
        if token is not None and (token == self._token or token.startswith(OPAQUE)):
            token = None
        number = self._note("join", frame, join=join, token=token)
        names = (number, channel, None, None, join.history, join.own, join.presence)
        subscribe = Resume(*names, handle=join.resume) if join.resume else Subscribe(*names)
        renewal = () if token is None else (Auth(number, token),)
        # Its client waits for this join alone: an answer to the one before would be nobody's.
        former = (Unsubscribe(number, channel),) if channel in self._joining else ()
        self._joining[channel] = number
        return (*renewal, *former, subscribe)

    def _broadcast(self, frame: Frame, channel: str, broadcast: Broadcast) -> Sequence[Op]:
        if not broadcast.event:
            raise Refusal("invalid_message", "A broadcast needs an event.")
        _, join = self._asked(channel)
        number = self._note("other", frame, ack=join.ack)
        kind = "message" if join.persist or broadcast.persist else "broadcast"
        return (Publish(number, channel, broadcast.event, broadcast.payload, kind),)

    def _presence(self, frame: Frame, channel: str) -> Sequence[Op]:
        asked = read_broadcast(frame)
        number = self._note("other", frame)
        if asked.event == "untrack":
            return (Untrack(number, channel),)
        if asked.event != "track" or not bytes(asked.payload).lstrip().startswith(b"{"):
            raise Refusal("invalid_message", "presence: track an object, or untrack.")
        return (Track(number, channel, asked.payload),)

    def _note(self, kind: Any, frame: Frame, **rest: Any) -> int:
        self._count += 1
        self._requests[self._count] = _Request(kind, frame.topic, frame.ref, frame.join_ref, **rest)
        return self._count

    def encode(self, event: Event) -> bytes:
        """See `Wire`."""
        match event:
            case Subscribed():
                return self._subscribed(event)
            case Authenticated():
                return self._authenticated(event)
            case Published():
                request = self._requests.pop(event.ref)
                return self._reply(request) if request.ack else b""
            case Done():
                return self._done(event)
            case Refused():
                return self._refused(event)
            case Closed():
                return self._closed(event.channel, event.code)
            case Present() if event.full:
                members = (Member(change.key, change.presence) for change in event.events)
                return presence.state(self.format, event.channel, members, None)
            case Present():
                return presence.diff(self.format, event.channel, event.events)
            case Cursor():
                return self._offer(event.cursor)
        return b""

    def encode_messages(
        self, channel: str, messages: Sequence[Message], flag: str | None = None
    ) -> bytes:
        """See `Wire`."""
        if flag == "history" and (since := self._asked(channel)[1].since):
            messages = [message for message in messages if message.timestamp >= since]
        return broadcasts(self.format, channel, messages, flag)

    def confirmed(self, pong: bytes) -> Iterable[tuple[str, str, str]]:
        """Take a pong: everything that was written before its ping has arrived.

        Returns:
            (handle, channel, cursor) each, of what is to be kept.
        """
        if any(payload == pong for payload, *_ in self._unconfirmed):
            while True:
                payload, cursor, kept = self._unconfirmed.popleft()
                if payload == pong:
                    return [(handle, channel, cursor) for handle, channel in kept]
        return ()

    # Answers

    def _subscribed(self, event: Subscribed) -> bytes:
        request = self._requests.pop(event.ref)
        join = request.join or Join()
        self._joined[event.channel] = (request.join_ref, join)
        self._settle(event.channel, event.ref)
        data = self._reply(request)
        if join.presence:
            # Also an empty one: until it comes, clients hold back what they hear of presence.
            members = () if event.presence is UNSET else event.presence
            data += presence.state(self.format, event.channel, members, request.join_ref)
        if join.resume:
            data += self._system(event.channel, "ok", _how(event))
        return data if event.cursor is UNSET else data + self._offer(event.cursor)

    def _authenticated(self, event: Authenticated) -> bytes:
        request = self._requests[event.ref]
        self._token = request.token or self._token
        if request.kind == "token":
            del self._requests[event.ref]
        return b""

    def _settle(self, channel: str, number: int) -> None:
        """A join is answered. Before it there may be one that it did not get to replace."""
        if self._joining.get(channel) == number:
            del self._joining[channel]
            for earlier, request in self._requests.items():
                if request.kind == "join" and request.topic == TOPIC + channel:
                    self._joining[channel] = earlier

    def _done(self, event: Done) -> bytes:
        if self._requests[event.ref].kind == "join":
            return b""  # the one that it replaces has ended
        request = self._requests.pop(event.ref)
        if request.kind == "leave" and event.channel is not UNSET:
            self._joined.pop(event.channel, None)
        return self._reply(request)

    def _refused(self, event: Refused) -> bytes:
        reason = f"{CODES.get(event.code, event.code)}: {event.message}"
        if event.ref is None and event.code == "token_expired":
            return b"".join(self._system(channel, "error", reason) for channel in self._joined)
        request = NOBODY if event.ref is None else self._requests.pop(event.ref)
        if request.kind == "token":
            return self._system(request.topic.removeprefix(TOPIC), "error", reason)
        if request.kind == "leave" and event.code == "not_subscribed":
            return self._reply(request)  # it is not joined, which is what was asked for
        response = {"reason": reason}
        if request.kind == "join":
            channel = request.topic.removeprefix(TOPIC)
            self._settle(channel, event.ref)
            if event.channel is not UNSET:  # else it did not get as far as to replace the former
                self._joined.pop(channel, None)
        else:
            response["error"] = reason
        return self._reply(request, "error", response)

    def _closed(self, channel: str, code: str) -> bytes:
        join_ref, _ = self._joined.pop(channel, (None, None))
        told = self._system(channel, "error", f"{code}: This channel was closed to you.")
        last = "phx_close" if code in FOR_GOOD else "phx_error"
        return told + push(
            self.format, TOPIC + channel, last, b"{}", ref=join_ref, join_ref=join_ref
        )

    def _offer(self, cursor: str) -> bytes:
        """A cursor is kept when the client has answered a ping that was written after what it
        covers: what was only written may have been lost with the connection."""
        kept = [
            (join.resume, channel) for channel, (_, join) in self._joined.items() if join.resume
        ]
        if not kept:
            return b""
        self._count += 1
        payload = str(self._count).encode()
        self._unconfirmed.append((payload, cursor, kept))
        return ping_frame(payload)

    def _reply(
        self, request: _Request, status: str = "ok", response: dict[str, str] | None = None
    ) -> bytes:
        payload = msgspec.json.encode({"status": status, "response": response or {}})
        return push(
            self.format,
            request.topic,
            "phx_reply",
            payload,
            ref=request.ref,
            join_ref=request.join_ref,
        )

    def _system(self, channel: str, status: str, message: str) -> bytes:
        payload = msgspec.json.encode(
            {"extension": "system", "status": status, "message": message, "channel": channel}
        )
        join_ref, _ = self._joined.get(channel, (None, None))
        return push(self.format, TOPIC + channel, "system", payload, join_ref=join_ref)


def read_token(payload: msgspec.Raw) -> str | None:
    """The token in the payload of an `access_token`; anything else in it is none."""
    try:
        token = msgspec.json.decode(payload, type=dict[str, Any]).get("access_token")
    except (ValueError, RecursionError):
        return None
    return token if isinstance(token, str) else None


def _how(event: Subscribed) -> str:
    if event.recovered is UNSET:
        return "live: Nothing is known of this handle; it starts now."
    if event.recovered:
        return "resumed: What was missed has been sent, marked as replayed."
    return f"{event.reason}: What was missed cannot be sent; load the history."
