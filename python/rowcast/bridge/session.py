"""One client: its caller, its subscriptions and its limits.

No I/O and no database: bytes go to a transport-like `Pipe`, and decisions come from outside.
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import Any, Protocol

from rowcast.config import Settings
from rowcast.errors import CLOSE, FINAL, Refusal
from rowcast.observe import metrics, observe

from .model import Caller
from .rate_limit import TokenBucket
from .subscription import State, Subscription
from .wire.native import NATIVE
from .wire.protocol import Event, Refused, Wire

__all__ = ["Pipe", "Session"]

# Ids of own messages that are remembered, for subscriptions without echo.
OWN_IDS = 1000
# Invalid frames after which a client is closed.
MAX_BAD_FRAMES = 100


class Pipe(Protocol):
    """A connection to a client, as a session writes to it."""

    def write(self, data: bytes) -> None:
        """Queue bytes; never blocks."""

    def waiting(self) -> int:
        """Return the bytes that the client has not taken yet."""

    def close(self, code: int, reason: str) -> None:
        """Begin to close with this code."""


class Session:
    """State and limits of one client.

    Args:
        pipe: takes the bytes for the client.
        settings: its limits.
        wire: encodes and decodes for the client.
    """

    __slots__ = (
        "_bad",
        "_bucket",
        "_pipe",
        "_settings",
        "buffer_bytes",
        "caller",
        "closed",
        "dirty",
        "format",
        "goodbye",
        "id",
        "own_ids",
        "pending",
        "subscriptions",
        "wire",
    )

    def __init__(self, pipe: Pipe, settings: Settings, wire: Wire = NATIVE) -> None:
        self.id = secrets.token_urlsafe(12)
        self.caller: Caller | None = None
        self.subscriptions: dict[str, Subscription] = {}
        # number of requests under way
        self.pending = 0
        self.wire = wire
        self.format = wire.format  # the fan-out reads it of each session
        self.closed = False
        # whether the client will not come back: it has said so, or was told not to
        self.goodbye = False
        # whether messages were written since the last cursor
        self.dirty = False
        self.own_ids: deque[str] = deque(maxlen=OWN_IDS)
        self._pipe = pipe
        self._settings = settings
        self.buffer_bytes = settings.buffer_bytes
        self._bucket = TokenBucket(settings.frame_rate, settings.frame_burst)
        self._bad = 0

    def hears(self, channel: str) -> bool:
        """Whether a subscription to this name is allowed and not ended."""
        subscription = self.subscriptions.get(channel)
        return subscription is not None and subscription.state is State.LIVE

    def check_size(self, data: bytes) -> None:
        """Raise Refusal for a frame that is over the limit."""
        if len(data) > self._settings.max_frame:
            raise Refusal("frame_too_large")

    def count_request(self) -> None:
        """Count one frame against the rate.

        Raises:
            Refusal: too many came, or too many are unanswered.
        """
        self._bucket.take()
        if self.pending >= self._settings.max_pending:
            raise Refusal(
                "rate_limited", "Too many requests are unanswered: wait for answers.", 0.1
            )

    def bad_frame(self) -> None:
        """Count an invalid frame; a client that sends nothing else is closed."""
        self._bad += 1
        if self._bad > MAX_BAD_FRAMES:
            self.close("abuse")

    def good_frame(self) -> None:
        """Forget half of the invalid frames, because a valid one came."""
        self._bad //= 2

    def authenticated(self) -> Caller:
        """Return the caller.

        Raises:
            Refusal: no token came yet.
        """
        if self.caller is None:
            raise Refusal("unauthorized")
        return self.caller

    def check_channel_count(self, count: int) -> None:
        """Raise Refusal for a request that names more channels than a session may have.

        It gets one answer: a frame may hold names for megabytes of answers.
        """
        if count > self._settings.max_channels:
            raise Refusal("too_many_channels")

    def check_channel_limit(self, channel: str) -> None:
        """Raise Refusal when the session has as many channels as it may have."""
        if channel not in self.subscriptions and (
            len(self.subscriptions) >= self._settings.max_channels
        ):
            raise Refusal(
                "too_many_channels",
                f"A client may be subscribed to {self._settings.max_channels} channels at a time.",
            )

    def write(self, data: bytes) -> None:
        """Write now. A client that does not read is closed: it resumes from the database, which
        is a better buffer than memory."""
        if self.closed or not data:
            return
        if self._pipe.waiting() > self.buffer_bytes:
            self.close("slow")
            return
        self._pipe.write(data)

    def tell(self, event: Event) -> None:
        """Encode an event for the client and write it."""
        self.write(self.wire.encode(event))

    def refuse(self, ref: Any, refusal: Refusal, channel: str | None = None) -> None:
        """Answer a request with a refusal."""
        metrics.refusals.labels(refusal.code).inc()
        observe("refused", session=self.id, code=refusal.code, channel=channel)
        self.tell(Refused.because(ref, refusal, channel))

    @property
    def congested(self) -> bool:
        """Whether more than half of the buffer waits for the client."""
        return not self.closed and self._pipe.waiting() * 2 > self.buffer_bytes

    def close(self, why: str) -> None:
        """Close with a code of `CLOSE`, once."""
        if not self.closed:
            self.closed = True
            code, reason = CLOSE[why]
            self.goodbye = code >= FINAL
            self._pipe.close(code, reason)
