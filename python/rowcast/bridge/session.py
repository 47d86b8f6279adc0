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

OWN_IDS = 1000
MAX_BAD_FRAMES = 100


class Pipe(Protocol):
    """The way to the client."""

    def write(self, data: bytes) -> None:
        """Queue bytes; never blocks."""

    def waiting(self) -> int:
        """Bytes that the client has not taken yet."""

    def close(self, code: int, reason: str) -> None:
        """Begin to close with this code."""


class Session:
    """State and limits of one client.

    Args:
        pipe: where its bytes go.
        settings: its limits.
        wire: the words it speaks.
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
        self.pending = 0  # requests under way
        self.wire = wire
        self.format = wire.format  # here, too: the fan-out asks each session for it
        self.closed = False
        self.goodbye = False  # it does not come back: it has said so, or was told not to
        self.dirty = False  # messages were written since the last cursor
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

    @property
    def resuming(self) -> bool:
        """Whether a subscription is pending: until then no cursor may replace the client's."""
        return any(s.state is State.PENDING for s in self.subscriptions.values())

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
        """A valid frame takes back half of what invalid ones cost."""
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
        is a better buffer than our memory."""
        if self.closed or not data:
            return
        if self._pipe.waiting() > self.buffer_bytes:
            self.close("slow")
            return
        self._pipe.write(data)

    def tell(self, event: Event) -> None:
        """Write an event in the client's words."""
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
