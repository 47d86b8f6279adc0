"""What a client asks for when it joins a topic of the Phoenix wire.

Clients send whatever their application gave them, also as text where a flag is meant. What
cannot be read counts as absent, except where a silent default would mislead.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from rowcast.bridge.model import FAR_FUTURE, timestamp
from rowcast.errors import Refusal

__all__ = ["Join", "read_join"]

HISTORY = 25
HANDLE = 255
LATEST = FAR_FUTURE * 1000 - 1000


@dataclass(frozen=True, slots=True)
class Join:
    """The config of a join, and its token.

    Args:
        own: `broadcast.self`: whether the client hears its own messages.
        ack: `broadcast.ack`: whether it wants to know when they are committed.
        persist: `broadcast.persist`: whether what it sends is of type "message".
        resume: `broadcast.resume`: the handle under which its cursor is kept, or empty.
        since: `broadcast.replay.since`: from when on it wants history, as messages say it.
        history: `broadcast.replay.limit`: how much of it, at most 25 as with Supabase.
        presence: `presence.enabled`: whether it wants to know who is there.
        token: `access_token`, or None.
    """

    own: bool = False
    ack: bool = False
    persist: bool = False
    resume: str = ""
    since: str | None = None
    history: int = 0
    presence: bool = False
    token: str | None = None


def read_join(payload: msgspec.Raw) -> Join:
    """Read the payload of `phx_join`.

    Raises:
        Refusal: it asks for Postgres Changes, which would never come.
    """
    try:
        given = msgspec.json.decode(payload)
    except (ValueError, RecursionError):
        raise Refusal("invalid_frame", "The payload of phx_join cannot be read.") from None
    config = _section(given, "config")
    broadcast = _section(config, "broadcast")
    if config.get("postgres_changes"):
        raise Refusal(
            "unsupported",
            "Postgres Changes are not sent here: attach the table with rowcast.attach(...) and"
            " listen to broadcasts of its channel.",
        )
    replay = _section(broadcast, "replay")
    since = _moment(replay.get("since"))
    limit = replay.get("limit", HISTORY)
    resume = broadcast.get("resume")
    section = given if isinstance(given, dict) else {}
    token = section.get("access_token") or section.get("user_token")
    return Join(
        own=_flag(broadcast.get("self")),
        ack=_flag(broadcast.get("ack")),
        persist=_flag(broadcast.get("persist")),
        resume=resume if isinstance(resume, str) and len(resume) <= HANDLE else "",
        since=since,
        history=min(max(limit, 0), HISTORY) if since and isinstance(limit, int) else 0,
        presence=_flag(_section(config, "presence").get("enabled")),
        token=token if isinstance(token, str) else None,
    )


def _section(given: Any, name: str) -> dict[str, Any]:
    found = given.get(name) if isinstance(given, dict) else None
    return found if isinstance(found, dict) else {}


def _moment(since: Any) -> str | None:
    """Milliseconds since 1970, as the time of a message says them."""
    if isinstance(since, int | float) and 0 <= since <= LATEST:
        return timestamp(datetime.fromtimestamp(since / 1000, UTC))
    return None


def _flag(value: Any) -> bool:
    return value is True or (isinstance(value, str) and value.lower() == "true")
