"""Creates tokens, for development and for servers that sign their own."""

from __future__ import annotations

import json
import math
import re
import time
import warnings
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import jwt

from rowcast.bridge.model import FAR_FUTURE

from .config import MINIMUM_SECRET
from .errors import ConfigError, UsageError

__all__ = ["ADMIN_ROLES", "CALLER_ROLES", "is_weak", "parse_claims", "parse_expiry", "sign"]

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31_536_000}
# Numbers from here on are seconds of the epoch (the year 2001), smaller ones are spans.
MOMENTS_FROM = 1_000_000_000
OWN_OPTIONS = ("role", "sub", "exp")
# Roles of tokens that bridges accept, unless rowcast.settings names others.
CALLER_ROLES = ("anon", "authenticated")
ADMIN_ROLES = ("rowcast_admin",)


def sign(secret: str, claims: Mapping[str, Any]) -> str:
    """Return a token, signed with HS256 over the UTF-8 bytes of `secret`.

    Raises:
        ConfigError: the secret is empty.
    """
    if not secret:
        raise ConfigError(
            "A secret to sign with is missing: set ROWCAST_JWT_SECRET, or give --secret."
        )
    with warnings.catch_warnings():
        # The library's warning about short secrets describes its own interface.
        warnings.simplefilter("ignore", jwt.InsecureKeyLengthWarning)
        return jwt.encode(dict(claims), secret.encode(), "HS256")


def is_weak(secret: str) -> bool:
    """Say whether a bridge refuses this secret because it is too short."""
    return len(secret.encode()) < MINIMUM_SECRET


def parse_expiry(text: str, now: float | None = None) -> int:
    """Return the end of a token in epoch seconds.

    Args:
        text: a span (``90``, ``15m``, ``1h``, ``30d``), epoch seconds, or an ISO 8601 time.
        now: start of a span in epoch seconds; the present by default.

    Raises:
        UsageError: the text is none of these, or the time is outside of the range of tokens.
    """
    started = time.time() if now is None else now
    end = _moment(text.strip(), started)
    if not 0 < end < FAR_FUTURE:
        raise UsageError(f"--exp {text} is out of range: use a time before the year 10000.")
    return int(end)


def parse_claims(pairs: Iterable[str]) -> dict[str, Any]:
    """Return the claims of ``name=value`` pairs; a value that is JSON is parsed.

    Raises:
        UsageError: a pair lacks its name or ``=``, or its claim has an option of its own.
    """
    claims: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise UsageError(f"--claim {pair!r} is not a claim: write it as name=value.")
        if name in OWN_OPTIONS:
            raise UsageError(f"--claim {pair!r}: use --{name} for this claim.")
        claims[name] = _json_or_text(text)
    return claims


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _moment(text: str, now: float) -> float:
    span = re.fullmatch(r"(-?\d{1,15}(?:\.\d+)?)([smhdwy]?)", text)
    if span is not None:
        number, unit = float(span[1]), span[2]
        if not unit and number >= MOMENTS_FROM:
            return number
        return now + number * UNITS[unit or "s"]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--exp {text!r} is not a time: use a span such as 90s, 15m, 1h or 30d, seconds since "
            "1970, or a time such as 2030-01-31T12:00:00Z."
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp() if moment.year < 9999 else math.inf
