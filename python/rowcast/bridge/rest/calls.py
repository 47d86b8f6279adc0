"""The calls behind the routes of the REST API: one method per route, one SQL function per call.

Policies decide what a caller may do. The functions `rowcast.admin_*` check the claims again before
they do what only administrators may. JSON comes from Postgres as text and is not parsed here,
because Postgres accepts numbers and depths that Python does not.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from rowcast.bridge.access import Access
from rowcast.bridge.database import Database
from rowcast.bridge.model import Caller
from rowcast.bridge.refusals import Reader, refusal_for
from rowcast.errors import Refusal

from .routes import (
    ChannelNameQuery,
    ChannelQuery,
    ChannelsQuery,
    DeliveriesQuery,
    EndpointsQuery,
    MessagesQuery,
    NewMessage,
    StatisticsQuery,
)

__all__ = ["Answer", "Call", "Calls"]

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
class Call:
    """A request, read and checked as its route says.

    Args:
        caller: the verified token.
        admin: whether the caller is an administrator.
        key: the id in the path, or None.
        query: the parameters, of the route's type.
        body: the body, of the route's type, or None.
    """

    caller: Caller
    admin: bool
    key: Any
    query: Any
    body: Any


@dataclass(frozen=True, slots=True)
class Answer:
    """JSON text, and headers of this answer."""

    text: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Calls:
    """Executes calls; the methods without an underscore, except `run`, have the names of routes.

    Args:
        database: the functions for administrators, and those that read as a caller.
        access: publishes as a caller, and asks whether a caller may subscribe.
    """

    def __init__(self, database: Database, access: Access) -> None:
        self._database = database
        self._access = access

    async def run(self, name: str, call: Call) -> Answer:
        """Execute the call of the route with this name.

        Raises:
            Refusal: denied, wrong or not found, or the database cannot answer.
        """
        execute: Callable[[Call], Awaitable[Answer]] = getattr(self, name)
        try:
            return await execute(call)
        except Refusal:
            raise
        except Exception as error:
            reader = Reader.ADMINISTRATOR if call.admin else Reader.CALLER
            raise refusal_for(error, reader) from error

    # Channels

    async def list_channels(self, call: Call) -> Answer:
        query: ChannelsQuery = call.query
        return await self._channels(call, None, query.full, query.limit, query.offset)

    async def get_channel(self, call: Call) -> Answer:
        query: ChannelQuery = call.query
        return await self._channels(call, call.key, query.full, 1, 0)

    async def _channels(
        self, call: Call, channel: UUID | None, full: bool, limit: int, offset: int
    ) -> Answer:
        values = (call.caller.claims, channel, limit, offset, full)
        if call.admin:
            return await self._json(CHANNELS, *values)
        return await self._json(CHANNELS_AS, call.caller.role, *values, as_caller=True)

    async def create_channel(self, call: Call) -> Answer:
        query: ChannelQuery = call.query
        return await self._json(CREATE_CHANNEL, call.caller.claims, _text(call.body), query.full)

    async def update_channel(self, call: Call) -> Answer:
        query: ChannelQuery = call.query
        return await self._json(
            UPDATE_CHANNEL, call.caller.claims, call.key, _text(call.body), query.full
        )

    async def delete_channel(self, call: Call) -> Answer:
        return await self._delete(DELETE_CHANNEL, call, "Channel deleted")

    # Messages

    async def list_messages(self, call: Call) -> Answer:
        query: MessagesQuery = call.query
        xid, seq = _position(query.cursor)
        values = (
            call.caller.claims, query.channel_id, query.channel_name, query.event_name,
            query.sender_id, query.since, query.until, query.limit, query.offset,
            xid, seq, self._database.facts.current.seq_floor,
        )  # fmt: skip
        if call.admin:
            row = await self._row(MESSAGES, *values)
        else:
            row = await self._row(MESSAGES_AS, call.caller.role, *values, as_caller=True)
        cursor = _next_cursor(row)
        return Answer(row["body"], {"X-Next-Cursor": cursor} if cursor else {})

    async def publish(self, call: Call) -> Answer:
        """Return the id of a message, or for an array of messages an array of ids."""
        body: NewMessage | list[NewMessage] = call.body
        caller = call.caller
        if isinstance(body, list):
            messages = [self._message(message) for message in body]
            ids = await (
                self._database.publish_as_administrator(caller.claims, messages)
                if call.admin
                else self._access.publish_all(caller, messages)
            )
            return Answer(json.dumps([{"id": str(message_id)} for message_id in ids]))
        message = self._message(body)
        if call.admin:
            [message_id] = await self._database.publish_as_administrator(caller.claims, [message])
        else:
            message_id = await self._access.publish(caller, None, *message)
        return Answer(json.dumps({"id": str(message_id)}))

    def _message(self, message: NewMessage) -> tuple[str, str, str, str, UUID | None]:
        """Return (channel, type, event, payload, idempotency key)."""
        payload = b"{}" if message.payload is msgspec.UNSET else bytes(message.payload)
        if self._database.facts.current.exceeds_payload_limit(payload):
            raise Refusal("payload_too_large")
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            raise Refusal("invalid_message", "The payload is not valid UTF-8.") from None
        return message.channel, message.type, message.event, text, message.id

    async def delete_message(self, call: Call) -> Answer:
        return await self._delete(DELETE_MESSAGE, call, "Message deleted")

    async def get_statistics(self, call: Call) -> Answer:
        query: StatisticsQuery = call.query
        if query.channel_id is not None and query.channel_name is not None:
            raise Refusal("invalid_request", "Give channelId or channelName, not both.")
        if call.admin:
            return await self._json(
                STATISTICS, call.caller.claims, query.channel_id, query.channel_name, query.since
            )
        if query.channel_name is None:
            raise Refusal(
                "forbidden", "Name the channel whose statistics you want: ?channelName=chat:room1."
            )
        await self._require_subscribe(call, query.channel_name)
        return await self._json(CHANNEL_STATISTICS, query.channel_name, query.since)

    # Members and subscribers

    async def get_presence(self, call: Call) -> Answer:
        return await self._of_channel(PRESENCE, CHANNEL_PRESENCE, call)

    async def get_audience(self, call: Call) -> Answer:
        return await self._of_channel(AUDIENCE, CHANNEL_AUDIENCE, call)

    async def _of_channel(self, admin_query: str, caller_query: str, call: Call) -> Answer:
        query: ChannelNameQuery = call.query
        if call.admin:
            return await self._json(admin_query, call.caller.claims, query.channel_name)
        await self._require_subscribe(call, query.channel_name)
        return await self._json(caller_query, query.channel_name)

    async def _require_subscribe(self, call: Call, channel: str) -> None:
        if not await self._access.may_subscribe(call.caller, channel):
            raise Refusal("forbidden")

    # Settings and policies

    async def get_permissions(self, call: Call) -> Answer:
        return await self._json(PERMISSIONS, call.caller.claims)

    async def get_config(self, call: Call) -> Answer:
        return await self._json(CONFIG, call.caller.claims)

    async def update_config(self, call: Call) -> Answer:
        return await self._json(UPDATE_CONFIG, call.caller.claims, _text(call.body))

    # Webhooks

    async def list_endpoints(self, call: Call) -> Answer:
        query: EndpointsQuery = call.query
        return await self._json(ENDPOINTS, call.caller.claims, query.channel_id)

    async def rotate_secret(self, call: Call) -> Answer:
        return await self._json(ROTATE_SECRET, call.caller.claims, call.key)

    async def list_deliveries(self, call: Call) -> Answer:
        query: DeliveriesQuery = call.query
        return await self._json(
            DELIVERIES,
            call.caller.claims,
            query.channel_id,
            query.state,
            query.limit,
            query.cursor,
        )

    async def list_attempts(self, call: Call) -> Answer:
        return await self._json(ATTEMPTS, call.caller.claims, call.key)

    async def redeliver(self, call: Call) -> Answer:
        return await self._json(REDELIVER, call.caller.claims, call.key)

    # Queries

    async def _row(self, query: str, *values: Any, as_caller: bool = False) -> asyncpg.Record:
        return await self._database.patient_row(query, *values, as_caller=as_caller)

    async def _json(self, query: str, *values: Any, as_caller: bool = False) -> Answer:
        text: str | None = (await self._row(query, *values, as_caller=as_caller))[0]
        if text is None:
            raise Refusal("not_found")
        return Answer(text)

    async def _delete(self, query: str, call: Call, message: str) -> Answer:
        if not (await self._row(query, call.caller.claims, call.key))[0]:
            raise Refusal("not_found")
        return Answer(json.dumps({"message": message}))


def _text(body: msgspec.Struct) -> str:
    return msgspec.json.encode(body).decode()


def _next_cursor(row: asyncpg.Record) -> str | None:
    """Return the cursor of the next page. It is not signed, because it shows a client nothing that
    the filters do not."""
    if row["last_seq"] is None:
        return None
    plain = f"{row['last_xid']}.{row['last_seq']}".encode()
    return base64.urlsafe_b64encode(plain).rstrip(b"=").decode()


def _position(cursor: str | None) -> tuple[str | None, int | None]:
    """Return the transaction and the sequence number of a cursor.

    Raises:
        Refusal: the text is not a cursor.
    """
    if cursor is None:
        return None, None
    try:
        plain = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
        xid, seq = map(int, plain.decode("ascii").split("."))
        if not (0 <= xid < 2**64 and 0 <= seq < 2**63):
            raise ValueError("out of range")
    except (ValueError, binascii.Error):
        raise Refusal(
            "invalid_request", "This is not a cursor: take it from X-Next-Cursor of a page."
        ) from None
    return str(xid), seq
