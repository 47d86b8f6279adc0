"""The REST API: routes, requests and answers; every rule is a function in sql/."""

from __future__ import annotations

__all__: list[str] = []
