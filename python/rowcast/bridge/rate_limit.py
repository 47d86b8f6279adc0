"""Limits the rate of requests: a token bucket, and one for each of many clients."""

from __future__ import annotations

import time

from rowcast.errors import Refusal

__all__ = ["TokenBucket", "TokenBuckets"]


class TokenBucket:
    """Allows a rate on average, and a burst after a pause.

    Args:
        rate: requests per second.
        burst: requests at once, after a pause.
    """

    __slots__ = ("_burst", "_left", "_rate", "_refilled")

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._left = float(burst)
        self._refilled = time.monotonic()

    def take(self) -> None:
        """Count one request.

        Raises:
            Refusal: "rate_limited", with the seconds to wait.
        """
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._refilled) * self._rate)
        self._refilled = now
        if self._left < 1:
            raise Refusal("rate_limited", retry_after=round((1 - self._left) / self._rate, 3))
        self._left -= 1


class TokenBuckets:
    """A bucket for each recent client; the client that was away longest is forgotten first.

    Args:
        rate: requests per second of one client.
        burst: requests at once.
        clients: how many to remember.
    """

    def __init__(self, rate: float, burst: int, clients: int = 10_000) -> None:
        self._rate = rate
        self._burst = burst
        self._clients = clients
        self._known: dict[str, TokenBucket] = {}

    def take(self, client: str) -> None:
        """Count one request of a client.

        Raises:
            Refusal: "rate_limited".
        """
        bucket = self._known.pop(client, None) or TokenBucket(self._rate, self._burst)
        self._known[client] = bucket  # the last in order
        if len(self._known) > self._clients:
            del self._known[next(iter(self._known))]
        bucket.take()
