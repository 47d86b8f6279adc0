"""What REST asks the database: each statement one call of a function, as in `database`.

JSON comes as text and goes on as text. It is not read here, because Postgres knows numbers and
depths that Python does not.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from rowcast.bridge.database import Database
from rowcast.bridge.model import Caller
from rowcast.errors import Refusal

__all__ = ["Administration", "Filter", "Page"]

CHANNELS = "select rowcast.admin_channels($1, $2, $3, $4, $5)"
CHANNELS_AS = "select rowcast.channels_as($1, $2, $3, $4, $5, $6)"
CREATE_CHANNEL = "select rowcast.admin_create_channel($1, $2, $3)"
UPDATE_CHANNEL = "select rowcast.admin_update_channel($1, $2, $3, $4)"
DELETE_CHANNEL = "select rowcast.admin_delete_channel($1, $2)"
MESSAGES = "select * from rowcast.admin_messages($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
MESSAGES_AS = (
    "select * from rowcast.messages_as($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
)
STATISTICS = "select rowcast.admin_statistics($1, $2, $3, $4)"
CHANNEL_STATISTICS = "select rowcast.channel_statistics($1, $2)"
PRESENCE = "select rowcast.admin_presence($1, $2)"
CHANNEL_PRESENCE = "select rowcast.channel_presence($1)"
AUDIENCE = "select rowcast.admin_audience($1, $2)"
CHANNEL_AUDIENCE = "select rowcast.channel_audience($1)"
DELETE_MESSAGE = "select rowcast.admin_delete_message($1, $2)"
PERMISSIONS = "select rowcast.admin_permissions($1)"
CONFIG = "select rowcast.admin_config($1)"
UPDATE_CONFIG = "select rowcast.admin_update_config($1, $2)"
ENDPOINTS = "select rowcast.admin_endpoints($1, $2)"
ROTATE_SECRET = "select rowcast.admin_rotate_secret($1, $2)"
DELIVERIES = "select rowcast.admin_deliveries($1, $2, $3, $4, $5)"
ATTEMPTS = "select rowcast.admin_delivery_attempts($1, $2)"
REDELIVER = "select rowcast.admin_redeliver($1, $2)"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which messages of history, and which page of them."""

    channel: str | None
    channel_name: str | None
    event_name: str | None
    sender_id: str | None
    since: datetime | None
    until: datetime | None
    limit: int
    offset: int
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """JSON text, and the cursor after which the next page begins, when there may be one."""

    body: str
    cursor: str | None


class Administration:
    """One typed method per function.

    Args:
        database: its two logins.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def channels(
        self,
        caller: Caller,
        admin: bool,
        channel: UUID | None,
        full: bool,
        limit: int = 1,
        offset: int = 0,
    ) -> str | None:
        """All channels that an administrator or a caller may see, or one; None when there is
        none of that id."""
        values = (caller.claims, channel, limit, offset, full)
        if admin:
            return await self._text(CHANNELS, *values)
        return await self._text(CHANNELS_AS, caller.role, *values, as_caller=True)

    async def create_channel(self, caller: Caller, channel: str, full: bool) -> str | None:
        """Create a channel of JSON text; returns it."""
        return await self._text(CREATE_CHANNEL, caller.claims, channel, full)

    async def update_channel(
        self, caller: Caller, channel: UUID, changes: str, full: bool
    ) -> str | None:
        """Change what JSON text names of a channel; returns it, None when there is none."""
        return await self._text(UPDATE_CHANNEL, caller.claims, channel, changes, full)

    async def delete_channel(self, caller: Caller, channel: UUID) -> bool:
        """Delete a channel; False when there is none."""
        return bool(await self._value(DELETE_CHANNEL, caller.claims, channel))

    async def messages(self, caller: Caller, admin: bool, wanted: Filter) -> Page:
        """A page of history, newest first.

        Raises:
            Refusal: the cursor is none.
        """
        xid, seq = _position(wanted.cursor)
        values = (
            caller.claims, wanted.channel, wanted.channel_name, wanted.event_name,
            wanted.sender_id, wanted.since, wanted.until, wanted.limit, wanted.offset,
            xid, seq, self._database.facts.current.seq_floor,
        )  # fmt: skip
        if admin:
            row = await self._row(MESSAGES, *values)
        else:
            row = await self._row(MESSAGES_AS, caller.role, *values, as_caller=True)
        return Page(row["body"], _cursor(row))

    async def statistics(
        self, caller: Caller, channel: str | None, name: str | None, since: datetime | None
    ) -> str | None:
        """Statistics of everything, a channel or a name, for an administrator."""
        return await self._text(STATISTICS, caller.claims, channel, name, since)

    async def channel_statistics(self, name: str, since: datetime | None) -> str | None:
        """Statistics of a name to which the caller may subscribe."""
        return await self._text(CHANNEL_STATISTICS, name, since)

    async def presence(self, caller: Caller, admin: bool, name: str) -> str | None:
        """Who is present, for an administrator or for a caller who may subscribe."""
        if admin:
            return await self._text(PRESENCE, caller.claims, name)
        return await self._text(CHANNEL_PRESENCE, name)

    async def audience(self, caller: Caller, admin: bool, name: str) -> str | None:
        """How many listen, for an administrator or for a caller who may subscribe."""
        if admin:
            return await self._text(AUDIENCE, caller.claims, name)
        return await self._text(CHANNEL_AUDIENCE, name)

    async def publish(
        self, claims: str, messages: Sequence[tuple[str, str, str, str, UUID | None]]
    ) -> list[UUID]:
        """Publish (channel, type, event, payload, key) each as the system, all or none."""
        return await self._database.publish_as_administrator(claims, messages)

    async def delete_message(self, caller: Caller, message: UUID) -> bool:
        """Delete a message; False when there is none."""
        return bool(await self._value(DELETE_MESSAGE, caller.claims, message))

    async def permissions(self, caller: Caller) -> str | None:
        """The policies."""
        return await self._text(PERMISSIONS, caller.claims)

    async def config(self, caller: Caller) -> str | None:
        """How long and how much is kept."""
        return await self._text(CONFIG, caller.claims)

    async def update_config(self, caller: Caller, changes: str) -> str | None:
        """Change what JSON text names of that; returns all of it."""
        return await self._text(UPDATE_CONFIG, caller.claims, changes)

    async def endpoints(self, caller: Caller, channel: UUID | None) -> str | None:
        """The webhook endpoints of a channel, or all."""
        return await self._text(ENDPOINTS, caller.claims, channel)

    async def rotate_secret(self, caller: Caller, endpoint: UUID) -> str | None:
        """Give an endpoint a new secret; returns it."""
        return await self._text(ROTATE_SECRET, caller.claims, endpoint)

    async def deliveries(
        self,
        caller: Caller,
        channel: UUID | None,
        state: str | None,
        limit: int,
        after: str | None,
    ) -> str | None:
        """A page of webhook deliveries, newest first."""
        return await self._text(DELIVERIES, caller.claims, channel, state, limit, after)

    async def attempts(self, caller: Caller, delivery: int) -> str | None:
        """The attempts of a delivery, oldest first."""
        return await self._text(ATTEMPTS, caller.claims, delivery)

    async def redeliver(self, caller: Caller, delivery: int) -> str | None:
        """Send a delivery again; says whether it was queued."""
        return await self._text(REDELIVER, caller.claims, delivery)

    async def _row(self, query: str, *values: Any, as_caller: bool = False) -> asyncpg.Record:
        return await self._database.patient_row(query, *values, as_caller=as_caller)

    async def _value(self, query: str, *values: Any, as_caller: bool = False) -> Any:
        return (await self._row(query, *values, as_caller=as_caller))[0]

    async def _text(self, query: str, *values: Any, as_caller: bool = False) -> str | None:
        text: str | None = await self._value(query, *values, as_caller=as_caller)
        return text


def _cursor(row: asyncpg.Record) -> str | None:
    """Where the next page begins, for a client to give back; nothing to sign, because it opens
    nothing that the filters do not."""
    if row["last_seq"] is None:
        return None
    plain = f"{row['last_xid']}.{row['last_seq']}".encode()
    return base64.urlsafe_b64encode(plain).rstrip(b"=").decode()


def _position(cursor: str | None) -> tuple[str | None, int | None]:
    if cursor is None:
        return None, None
    try:
        plain = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
        xid, seq = map(int, plain.decode("ascii").split("."))
        if not (0 <= xid < 2**64 and 0 <= seq < 2**63):
            raise ValueError("out of range")
    except (ValueError, binascii.Error):
        raise Refusal(
            "invalid_request", "This is no cursor: take it from X-Next-Cursor of a page."
        ) from None
    return str(xid), seq
