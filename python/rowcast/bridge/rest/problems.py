"""JSON answers, and errors as REST answers them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from rowcast.errors import CATALOGUE, Refusal

__all__ = ["json_response", "problem"]


def problem(code: str, message: str | None = None, refusal: Refusal | None = None) -> web.Response:
    """An error as REST answers it."""
    entry = CATALOGUE[code]
    body: dict[str, Any] = {
        "error": code, "message": message or entry.text, "statusCode": entry.status,
    }  # fmt: skip
    headers = {}
    if refusal is not None and refusal.hint:
        body["nextActions"] = refusal.hint
    if entry.retry:
        after = refusal.retry_after if refusal is not None else None
        headers["Retry-After"] = str(math.ceil(after or 1))
    if entry.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response(json.dumps(body).encode(), entry.status, headers)


def json_response(body: bytes, status: int, headers: Mapping[str, str]) -> web.Response:
    """A response of JSON text."""
    # Never from a cache: the same address shows others something else.
    return web.Response(
        body=body,
        status=status,
        content_type="application/json",
        charset="utf-8",
        headers={"Cache-Control": "no-store", **headers},
    )
