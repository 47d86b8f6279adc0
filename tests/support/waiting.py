"""Waiting in tests: poll a condition with a deadline instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

__all__ = ["eventually"]

Found = TypeVar("Found")


def eventually(
    check: Callable[[], Found], *, timeout: float = 15.0, what: str | None = None
) -> Found:
    """Return the first true result of `check`; fail the test after `timeout` seconds.

    Args:
        what: the awaited event, for the failure message.
    """
    deadline = time.monotonic() + timeout
    while not (found := check()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout} s: {what or check}")
        time.sleep(0.02)
    return found
