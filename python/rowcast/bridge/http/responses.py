"""JSON responses, errors as JSON, and the CORS headers of every response."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from aiohttp import web

from rowcast.errors import CATALOGUE, Refusal

__all__ = ["add_cors", "is_allowed_page", "json_response", "problem"]

EXPOSED_HEADERS = "Link, Retry-After, X-Next-Cursor"


def json_response(body: bytes, status: int, headers: Mapping[str, str]) -> web.Response:
    """Return a response with this JSON text. It is not cacheable, because the same address shows
    every caller something else."""
    return web.Response(
        body=body,
        status=status,
        content_type="application/json",
        charset="utf-8",
        headers={"Cache-Control": "no-store", **headers},
    )


def problem(refusal: Refusal) -> web.Response:
    """Return the response to a refused request, in the shape that REST documents."""
    entry = CATALOGUE[refusal.code]
    body: dict[str, Any] = {
        "error": refusal.code, "message": str(refusal), "statusCode": entry.status,
    }  # fmt: skip
    if refusal.hint:
        body["nextActions"] = refusal.hint
    headers = {}
    if entry.retry:
        headers["Retry-After"] = str(math.ceil(refusal.retry_after or 1))
    if entry.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response(json.dumps(body).encode(), entry.status, headers)


def is_allowed_page(request: web.Request, allowed_origins: Collection[str]) -> bool:
    """Whether a page sent the request, and its origin is allowed."""
    origin = request.headers.get("Origin")
    return origin is not None and ("*" in allowed_origins or origin in allowed_origins)


def add_cors(
    request: web.Request, response: web.Response, allowed_origins: Collection[str]
) -> web.Response:
    """Add the headers that let allowed pages read the response; returns the response.

    Credentials are never allowed: a page sends its token in a header, and with cookies any page
    could act for its visitor.
    """
    any_origin = "*" in allowed_origins
    if not any_origin:
        response.headers["Vary"] = "Origin"
    if is_allowed_page(request, allowed_origins):
        response.headers["Access-Control-Allow-Origin"] = (
            "*" if any_origin else request.headers["Origin"]
        )
        response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
    return response
