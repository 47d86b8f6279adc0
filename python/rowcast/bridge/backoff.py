"""Pauses between attempts to reach the database."""

from __future__ import annotations

import random

__all__ = ["Backoff"]

# Seconds of the first pause, and of the longest one, before they are spread.
FIRST = 0.1
LONGEST = 5.0


class Backoff:
    """Doubles the pause after each failure. Pauses are spread, so that bridges do not all come
    back at once after an outage."""

    def __init__(self) -> None:
        self._pause = FIRST

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._pause = FIRST

    def next(self) -> float:
        """Return the seconds to wait now, half to one and a half of the pause."""
        pause, self._pause = self._pause, min(self._pause * 2, LONGEST)
        return pause * random.uniform(0.5, 1.5)
