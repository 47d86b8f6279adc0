"""The options of a client, as `connect` takes them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """See `rowcast_client.connect`; all times are seconds."""

    after: str | None
    timeout: float
    connect_timeout: float
    min_delay: float
    max_delay: float
    max_queue: int
    max_pending: int
