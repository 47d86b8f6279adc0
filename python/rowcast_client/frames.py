"""Frames of the wire as Python values. This module does no I/O."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

__all__ = [
    "RETRYABLE",
    "Frame",
    "Message",
    "RealtimeError",
    "encode",
    "message_of",
    "parse",
    "refusal",
]

Frame = dict[str, Any]

# Codes of temporary refusals: the same request may succeed later.
RETRYABLE = {"unavailable", "rate_limited", "internal", "token_expired"}

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]', re.DOTALL)
# Depth of a message: the frame, its list, the message.
_MESSAGE_DEPTH = 3


class RealtimeError(Exception):
    """A request was refused, or the connection failed.

    Args:
        code: a word for programs: `forbidden`, `timeout`, `unreachable`, …
        message: one sentence for people.
        channel: the channel that the error concerns.
        retry_after: seconds after which the same request may succeed.
        id: the idempotency key of a publish.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        channel: str | None = None,
        retry_after: float | None = None,
        id: str | None = None,  # noqa: A002 (the wire's word)
    ) -> None:
        super().__init__(message)
        self.code = code
        self.channel = channel
        self.retry_after = retry_after
        self.id = id

    def __repr__(self) -> str:
        return f"RealtimeError({self.code!r}, {str(self)!r})"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a channel.

    `history` and `replay` say how the message arrived; a live one has neither. `raw` says that
    `payload` is its JSON text, because Python cannot read it: Postgres accepts deeper nesting and
    longer numbers than Python.
    """

    id: str | None
    type: str
    event: str
    channel: str
    payload: Any
    sender_id: str | None
    timestamp: str
    history: bool = False
    replay: bool = False
    raw: bool = False


@dataclass(frozen=True, slots=True)
class _Unread:
    """The text of a payload that Python cannot read."""

    text: str


def encode(value: Any) -> str:
    """Return a value as compact JSON.

    Raises:
        RealtimeError: `invalid_message`, JSON cannot represent the value.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RealtimeError(
            "invalid_message", f"JSON cannot represent the payload: {error}."
        ) from error
    return text


def parse(text: str) -> Frame:
    """Read a frame. A payload that is too deep or too long for Python stays text.

    Raises:
        RealtimeError: `invalid_frame`, the text is not a JSON object with an op.
    """
    try:
        frame = _loads(text)
    except (ValueError, RecursionError):
        frame = _parse_around_payloads(text)
    if not isinstance(frame, dict) or not isinstance(frame.get("op"), str):
        raise RealtimeError("invalid_frame", "The server sent a frame without an op.")
    return frame


def _loads(text: str) -> Any:
    return json.loads(text)


def _parse_around_payloads(text: str) -> Any:
    """Replace each payload by a number, read the rest, and then the payloads one by one."""
    depth = 0
    start = end = -1  # start of the current payload; end of the previous one
    named = False  # whether the previous token was the key "payload"
    pieces: list[str] = []
    payloads: list[Any] = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "[{":
            depth += 1
        elif token in "]}":
            depth -= 1
        if start < 0:
            if token == ":" and named and depth == _MESSAGE_DEPTH:
                start = match.end()
        elif (token == "," and depth == _MESSAGE_DEPTH) or depth < _MESSAGE_DEPTH:
            pieces += text[max(end, 0) : start], str(len(payloads))
            payloads.append(_payload(text[start : match.start()]))
            start, end = -1, match.start()
        named = token == '"payload"'
    pieces.append(text[max(end, 0) :])
    try:
        frame = _loads("".join(pieces))
    except (ValueError, RecursionError) as error:
        raise RealtimeError(
            "invalid_frame", f"The server sent a frame that cannot be read: {error}."
        ) from error
    messages = frame.get("messages") if isinstance(frame, dict) else None
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and isinstance(number := message.get("payload"), int):
            message["payload"] = payloads[number]
    return frame


def _payload(text: str) -> Any:
    try:
        return _loads(text)
    except (ValueError, RecursionError):
        return _Unread(text.strip())


def message_of(item: Any, channel: str, frame: Frame) -> Message:
    """Return an item of a `messages` frame as a message.

    Args:
        item: the item.
        channel: the channel of the frame.
        frame: the frame, which says how the message arrived.

    Raises:
        RealtimeError: `invalid_frame`, the item is not an object.
    """
    if not isinstance(item, dict):
        raise RealtimeError(
            "invalid_frame", "The server sent a message that is not an object.", channel=channel
        )
    payload = item.get("payload")
    raw = isinstance(payload, _Unread)
    sender = item.get("senderId")
    return Message(
        id=item["id"] if isinstance(item.get("id"), str) else None,
        type=str(item.get("type", "message")),
        event=str(item.get("event", "")),
        channel=str(item.get("channel", channel)),
        payload=payload.text if isinstance(payload, _Unread) else payload,
        sender_id=None if sender is None else str(sender),
        timestamp=str(item.get("timestamp", "")),
        history=frame.get("history") is True,
        replay=frame.get("replay") is True,
        raw=raw,
    )


def refusal(frame: Frame, channel: str | None = None) -> RealtimeError:
    """Return the error that an `error` frame describes."""
    named = frame.get("channel")
    after = frame.get("retryAfter")
    return RealtimeError(
        str(frame.get("code", "internal")),
        str(frame.get("message", "The server refused the request without a reason.")),
        channel=named if isinstance(named, str) else channel,
        retry_after=float(after) if isinstance(after, int | float) else None,
    )
