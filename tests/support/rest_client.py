"""A client of the REST API that shows everything that comes back."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from support.bridge_process import token

__all__ = ["ADMIN", "Reply", "request"]

ADMIN = token(None, "rowcast_admin")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: status, headers, text."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def request(
    url: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    key: str | None = ADMIN,
    **headers: str,
) -> Reply:
    """Ask; a body that is not bytes is sent as JSON, headers have ``_`` for ``-``."""
    parts = urlsplit(url)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        sent["Authorization"] = f"Bearer {key}"
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    try:
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        text = answer.read().decode()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, text)
    finally:
        connection.close()
