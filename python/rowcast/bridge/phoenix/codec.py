"""The Phoenix wire of realtime-js and realtime-py: frames to operations, events to frames.

Topic realtime:X is channel X. A reply repeats the ref of its request; a push does not have one.
Source: the behaviour of the clients, see "Supabase clients" in python/docs/clients.md.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from rowcast.bridge.model import FAR_FUTURE, Message, timestamp
from rowcast.bridge.wire.frames import ping_frame
from rowcast.bridge.wire.protocol import (
    Auth,
    Authenticated,
    Change,
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

from .frames import (
    TOPIC,
    Broadcast,
    BrokenError,
    Frame,
    Reference,
    encode,
    encode_broadcasts,
    mangled_topic,
    parse,
    read_broadcast,
)

__all__ = ["Join", "Phoenix", "presence_diff", "presence_state", "read_join"]

# realtime-py waits longer before it joins again if a reason begins with one of these.
REASONS = {
    "rate_limited": "ClientJoinRateLimitReached",
    "too_many_channels": "ChannelRateLimitReached",
}
# Codes after which a client must not join again by itself.
FINAL = {"revoked", "disabled", "deleted", "expired"}
# Prefix of Supabase's own keys, which are not tokens.
OPAQUE = "sb_"
REPLACED = "Another join has replaced this one."
MAX_UNCONFIRMED = 100  # cursors whose ping is not answered yet

MAX_HISTORY = 25
MAX_HANDLE = 255  # characters
LATEST = FAR_FUTURE * 1000 - 1000  # milliseconds

Metas = Iterable[tuple[str, bytes]]

_json = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Join:
    """The config of a join, and its token.

    Args:
        own: `broadcast.self`: whether the client hears its own messages.
        ack: `broadcast.ack`: whether the client wants an answer after commit.
        persist: `broadcast.persist`: whether the client's messages are of type "message".
        resume: `broadcast.resume`: the handle under which its cursor is kept, or empty.
        since: `broadcast.replay.since`: the beginning of the history, in the form of a
            message's timestamp, or None.
        history: `broadcast.replay.limit`: number of messages, at most 25 as with Supabase.
        presence: `presence.enabled`: whether the client wants lists and changes of members.
        token: `access_token`, or None.
    """

    own: bool = False
    ack: bool = False
    persist: bool = False
    resume: str = ""
    since: str | None = None
    history: int = 0
    presence: bool = False
    token: str | None = None


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that is not answered yet."""

    kind: Literal["join", "leave", "token", "other"]
    topic: str
    ref: Reference
    join_ref: Reference
    join: Join | None = None
    token: str | None = None
    ack: bool = False


# The addressee of an error without a known request. It does not name a channel, because
# realtime-py ends a channel that receives an error.
NO_REQUEST = _Request("other", "phoenix", None, None)


class Phoenix:
    """The wire of one client.

    Args:
        wire_format: a value of `VERSIONS`.
        token: the token in the URL.
    """

    admin = False

    def __init__(self, wire_format: str, token: str) -> None:
        self.format = wire_format
        self._token = token
        self._requests: dict[int, _Request] = {}
        self._count = 0
        self._joined: dict[str, tuple[Reference, Join]] = {}  # answered joins by channel
        self._joining: dict[str, int] = {}  # the newest unanswered join by channel
        # (payload of the ping, cursor, [(handle, channel)])
        self._unconfirmed: deque[tuple[bytes, str, list[tuple[str, str]]]] = deque(
            maxlen=MAX_UNCONFIRMED
        )

    # Requests

    def decode(self, data: bytes, *, binary: bool) -> tuple[Sequence[Op], Any, Refusal | None]:
        try:
            frame, broadcast = parse(self.format, data, binary=binary)
        except BrokenError as error:
            refusal = Refusal("invalid_frame", f"This is not a frame of Phoenix: {error}.")
            return (), self._remember("other", error.frame), refusal
        if frame.topic == "phoenix" and frame.event == "heartbeat":
            number = self._remember("other", frame)
            return (Ping(number),), number, None
        channel = self._channel(frame)
        if not channel:
            refusal = Refusal("invalid_channel", f"Topics begin with {TOPIC}.")
            return (), self._remember("other", frame), refusal
        try:
            ops = self._operations(frame, channel, broadcast)
        except Refusal as why:
            return (), self._remember("other", frame), why
        ref = ops[0].ref if ops else None
        refused = next(filter(None, map(check, ops)), None)
        return () if refused else ops, ref, refused

    def _channel(self, frame: Frame) -> str:
        """Return the channel of a frame.

        realtime-js 2.109 writes only the low byte of each character of a pushed topic. Then the
        channel is the one whose mangled name this is and whose join has the frame's join_ref. The
        join_ref alone is not enough, because a client may join several topics with the same one.
        """
        name = frame.topic.removeprefix(TOPIC) if frame.topic.startswith(TOPIC) else ""
        if frame.event == "broadcast" and name not in self._joined:
            for channel in (*self._joined, *self._joining):
                join_ref, _ = self._newest_join(channel)
                if join_ref == frame.join_ref and name == mangled_topic(channel):
                    return channel
        return name

    def _newest_join(self, channel: str) -> tuple[Reference, Join]:
        """Return the newest join of a channel, answered or not."""
        request = self._requests.get(self._joining.get(channel, 0))
        if request is not None and request.join is not None:
            return request.join_ref, request.join
        return self._joined.get(channel, (None, Join()))

    def _replaced(self, frame: Frame, channel: str) -> bool:
        """Whether the frame belongs to a join that a newer one has replaced."""
        join_ref, _ = self._newest_join(channel)
        return None not in (join_ref, frame.join_ref) and join_ref != frame.join_ref

    def _operations(self, frame: Frame, channel: str, pushed: Broadcast | None) -> Sequence[Op]:
        match frame.event:
            case "phx_join":
                return self._join(frame, channel)
            case "broadcast":
                return self._broadcast(frame, channel, pushed or read_broadcast(frame))
            case "phx_leave" if self._replaced(frame, channel):
                # That join has ended already. Clients leave again what they have replaced.
                return (Ping(self._remember("other", frame)),)
            case "presence" if self._replaced(frame, channel):
                raise Refusal("not_subscribed", REPLACED)
            case "phx_leave":
                return (Unsubscribe(self._remember("leave", frame), channel),)
            case "access_token":
                token = _read_token(frame.payload)
                if token is None or self._is_known(token):
                    return ()
                return (Refresh(self._remember("token", frame, token=token), token),)
            case "presence":
                return self._presence(frame, channel)
            case _:
                raise Refusal(
                    "unknown_op", "Send phx_join, phx_leave, access_token, broadcast or presence."
                )

    def _is_known(self, token: str) -> bool:
        """Whether this is the session's token, or a key of Supabase and so not a token."""
        return token == self._token or token.startswith(OPAQUE)

    def _join(self, frame: Frame, channel: str) -> Sequence[Op]:
        join = read_join(frame.payload)
        token = join.token
        if token is not None and self._is_known(token):
            token = None
        number = self._remember("join", frame, join=join, token=token)
        fields = (number, channel, None, None, join.history, join.own, join.presence)
        subscribe = Resume(*fields, handle=join.resume) if join.resume else Subscribe(*fields)
        auth = () if token is None else (Auth(number, token),)
        # The client waits only for the latest join; it would ignore a reply to the previous one.
        unsubscribe = (Unsubscribe(number, channel),) if channel in self._joining else ()
        self._joining[channel] = number
        return (*auth, *unsubscribe, subscribe)

    def _broadcast(self, frame: Frame, channel: str, broadcast: Broadcast) -> Sequence[Op]:
        if not broadcast.event:
            raise Refusal("invalid_message", "A broadcast needs an event.")
        _, join = self._newest_join(channel)
        number = self._remember("other", frame, ack=join.ack)
        kind = "message" if join.persist or broadcast.persist else "broadcast"
        return (Publish(number, channel, broadcast.event, broadcast.payload, kind),)

    def _presence(self, frame: Frame, channel: str) -> Sequence[Op]:
        request = read_broadcast(frame)
        if request.event == "untrack":
            return (Untrack(self._remember("other", frame), channel),)
        if request.event != "track" or not bytes(request.payload).lstrip().startswith(b"{"):
            raise Refusal("invalid_message", "presence: track an object, or untrack.")
        return (Track(self._remember("other", frame), channel, request.payload),)

    def _remember(self, kind: Any, frame: Frame, **rest: Any) -> int:
        """Keep a request until it is answered; returns its number, the ref of the operation."""
        self._count += 1
        self._requests[self._count] = _Request(kind, frame.topic, frame.ref, frame.join_ref, **rest)
        return self._count

    # Answers and pushes

    def encode(self, event: Event) -> bytes:
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
                return presence_state(self.format, event.channel, members, None)
            case Present():
                return presence_diff(self.format, event.channel, event.events)
            case Cursor():
                return self._ping_for(event.cursor)
        return b""

    def encode_messages(
        self, channel: str, messages: Sequence[Message], flag: str | None = None
    ) -> bytes:
        if flag == "history" and (since := self._newest_join(channel)[1].since):
            messages = [message for message in messages if message.timestamp >= since]
        return encode_broadcasts(self.format, channel, messages, flag)

    def confirmed(self, pong: bytes) -> Iterable[tuple[str, str, str]]:
        """Take a pong: the client has received everything that was written before its ping.

        Args:
            pong: the payload of the pong.

        Returns:
            (handle, channel, cursor) for each cursor to be kept.
        """
        if any(payload == pong for payload, *_ in self._unconfirmed):
            while True:
                payload, cursor, kept = self._unconfirmed.popleft()
                if payload == pong:
                    return [(handle, channel, cursor) for handle, channel in kept]
        return ()

    def _subscribed(self, event: Subscribed) -> bytes:
        request = self._requests.pop(event.ref)
        join = request.join or Join()
        self._joined[event.channel] = (request.join_ref, join)
        self._join_answered(event.channel, event.ref)
        data = self._reply(request)
        if join.presence:
            # An empty list is sent, too: clients hold back changes of presence until it comes.
            members = () if event.presence is UNSET else event.presence
            data += presence_state(self.format, event.channel, members, request.join_ref)
        if join.resume:
            data += self._system(event.channel, "ok", _resume_report(event))
        return data if event.cursor is UNSET else data + self._ping_for(event.cursor)

    def _authenticated(self, event: Authenticated) -> bytes:
        request = self._requests[event.ref]
        self._token = request.token or self._token
        if request.kind == "token":
            del self._requests[event.ref]
        return b""

    def _join_answered(self, channel: str, number: int) -> None:
        """An earlier join that this one failed to replace is then the newest unanswered one."""
        if self._joining.get(channel) == number:
            del self._joining[channel]
            for earlier, request in self._requests.items():
                if request.kind == "join" and request.topic == TOPIC + channel:
                    self._joining[channel] = earlier

    def _done(self, event: Done) -> bytes:
        if self._requests[event.ref].kind == "join":
            return b""  # only the replaced join has ended; the new one is not answered yet
        request = self._requests.pop(event.ref)
        if request.kind == "leave" and event.channel is not UNSET:
            self._joined.pop(event.channel, None)
        return self._reply(request)

    def _refused(self, event: Refused) -> bytes:
        reason = f"{REASONS.get(event.code, event.code)}: {event.message}"
        if event.ref is None and event.code == "token_expired":
            return b"".join(self._system(channel, "error", reason) for channel in self._joined)
        request = NO_REQUEST if event.ref is None else self._requests.pop(event.ref)
        if request.kind == "token":
            return self._system(request.topic.removeprefix(TOPIC), "error", reason)
        if request.kind == "leave" and event.code == "not_subscribed":
            return self._reply(request)  # the client wanted to leave, and is not joined
        response = {"reason": reason}
        if request.kind == "join":
            channel = request.topic.removeprefix(TOPIC)
            self._join_answered(channel, event.ref)
            if event.channel is not UNSET:  # otherwise the previous join was not replaced yet
                self._joined.pop(channel, None)
        else:
            response["error"] = reason
        return self._reply(request, "error", response)

    def _closed(self, channel: str, code: str) -> bytes:
        join_ref, _ = self._joined.pop(channel, (None, None))
        message = self._system(channel, "error", f"{code}: The server has closed this channel.")
        last = "phx_close" if code in FINAL else "phx_error"
        return message + encode(
            self.format, TOPIC + channel, last, b"{}", ref=join_ref, join_ref=join_ref
        )

    def _ping_for(self, cursor: str) -> bytes:
        """Return a ping whose pong confirms the cursor.

        A cursor is kept only after the client has answered a ping that was written after the
        messages it covers: messages that were only written may be lost with the connection.
        """
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
        payload = _json.encode({"status": status, "response": response or {}})
        return encode(
            self.format,
            request.topic,
            "phx_reply",
            payload,
            ref=request.ref,
            join_ref=request.join_ref,
        )

    def _system(self, channel: str, status: str, message: str) -> bytes:
        payload = _json.encode(
            {"extension": "system", "status": status, "message": message, "channel": channel}
        )
        join_ref, _ = self._joined.get(channel, (None, None))
        return encode(self.format, TOPIC + channel, "system", payload, join_ref=join_ref)


def _read_token(payload: msgspec.Raw) -> str | None:
    """Return the token in the payload of an `access_token`, or None if it is not a text."""
    try:
        token = msgspec.json.decode(payload, type=dict[str, Any]).get("access_token")
    except (ValueError, RecursionError):
        return None
    return token if isinstance(token, str) else None


def _resume_report(event: Subscribed) -> str:
    if event.recovered is UNSET:
        return "live: This handle is not known; messages start now."
    if event.recovered:
        return "resumed: The missed messages have been sent, marked as replayed."
    return f"{event.reason}: The missed messages cannot be sent; load the history."


# Joins


def read_join(payload: msgspec.Raw) -> Join:
    """Read the payload of `phx_join`.

    Clients send what their application gave them, also text where a flag is expected. A value
    that cannot be read counts as absent, except where a silent default would mislead.

    Raises:
        Refusal: it is not JSON, or asks for Postgres Changes, which would never come.
    """
    try:
        given = msgspec.json.decode(payload)
    except (ValueError, RecursionError):
        raise Refusal("invalid_frame", "The payload of phx_join cannot be read.") from None
    config = _section(given, "config")
    broadcast = _section(config, "broadcast")
    if config.get("postgres_changes"):
        raise Refusal(
            "unsupported",
            "Postgres Changes are not supported: attach the table with rowcast.attach(...) and"
            " listen to broadcasts of its channel.",
        )
    replay = _section(broadcast, "replay")
    since = _moment(replay.get("since"))
    limit = replay.get("limit", MAX_HISTORY)
    resume = broadcast.get("resume")
    section = given if isinstance(given, dict) else {}
    token = section.get("access_token") or section.get("user_token")
    return Join(
        own=_flag(broadcast.get("self")),
        ack=_flag(broadcast.get("ack")),
        persist=_flag(broadcast.get("persist")),
        resume=resume if isinstance(resume, str) and len(resume) <= MAX_HANDLE else "",
        since=since,
        history=min(max(limit, 0), MAX_HISTORY) if since and isinstance(limit, int) else 0,
        presence=_flag(_section(config, "presence").get("enabled")),
        token=token if isinstance(token, str) else None,
    )


def _section(given: Any, name: str) -> dict[str, Any]:
    found = given.get(name) if isinstance(given, dict) else None
    return found if isinstance(found, dict) else {}


def _moment(since: Any) -> str | None:
    """Return milliseconds since 1970 in the form of a message's timestamp."""
    if isinstance(since, int | float) and 0 <= since <= LATEST:
        return timestamp(datetime.fromtimestamp(since / 1000, UTC))
    return None


def _flag(value: Any) -> bool:
    return value is True or (isinstance(value, str) and value.lower() == "true")


# Presence: maps of keys to metas. Each member has one meta, and its `phx_ref` is made of key and
# state: every bridge sends the same one, and a reconnecting client sees in the list which members
# have changed meanwhile.


def presence_state(
    wire_format: str, channel: str, members: Iterable[Member], join_ref: Reference
) -> bytes:
    """Return the frame that lists all members.

    Args:
        wire_format: a value of `VERSIONS`.
        channel: the name that the client joined.
        members: their keys and states.
        join_ref: of the join that the list answers; None if it is for all joins.
    """
    payload = _metas((member.key, bytes(member.presence)) for member in members)
    return encode(wire_format, TOPIC + channel, "presence_state", payload, join_ref=join_ref)


def presence_diff(wire_format: str, channel: str, changes: Sequence[Change]) -> bytes:
    """Return the frames that say which members have left, and which have joined.

    The leaves come first, and never in one frame with the joins: realtime-js before 2.110 keeps
    for ever a member that joins and leaves in the same frame. A member that has changed leaves
    with its old meta and joins with the new one.
    """
    left = [(c.key, bytes(c.before)) for c in changes if c.before is not None]
    joined = [(c.key, bytes(c.presence)) for c in changes if c.type != "leave"]
    frames = b""
    for joins, leaves in (((), left), (joined, ())):
        if joins or leaves:
            payload = b'{"joins":' + _metas(joins) + b',"leaves":' + _metas(leaves) + b"}"
            frames += encode(wire_format, TOPIC + channel, "presence_diff", payload)
    return frames


def _metas(members: Metas) -> bytes:
    parts = (_json.encode(key) + b':{"metas":[' + _meta(key, text) + b"]}" for key, text in members)
    return b"{" + b",".join(parts) + b"}"


def _meta(key: str, text: bytes) -> bytes:
    """Return the state with its ref last: the last of equal names counts, so a client cannot
    choose its own."""
    inside = text.strip()[1:-1].strip()
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass") + b"\0" + text, digest_size=12)
    comma = b"," if inside else b""
    return b"{" + inside + comma + b'"phx_ref":"' + digest.hexdigest().encode() + b'"}'
