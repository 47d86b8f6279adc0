"""What the routes of the REST API do: one method each, named in the table of routes.

What a caller may do, the policies decide; what only administrators may, the functions
``rowcast.admin_*`` check again, with the claims of whoever asks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import msgspec

from rowcast.bridge.access import Access
from rowcast.bridge.facts import Facts
from rowcast.bridge.model import Caller
from rowcast.errors import Refusal

from .calls import Administration, Filter
from .routes import (
    ChannelChanges,
    ChannelNameQuery,
    ChannelQuery,
    ChannelsQuery,
    ConfigChanges,
    DeliveriesQuery,
    EndpointsQuery,
    MessagesQuery,
    NewChannel,
    NewMessage,
    StatisticsQuery,
)

__all__ = ["Answer", "Asked", "Handlers"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, read and checked as its route says."""

    caller: Caller
    admin: bool
    key: Any
    query: Any
    body: Any


@dataclass(frozen=True, slots=True)
class Answer:
    """JSON text and headers of its own."""

    text: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Handlers:
    """Answers requests.

    Args:
        database: administration, and reading as a caller.
        access: publishing and subscribing as a caller.
        facts: what the bridge knows of the database.
    """

    def __init__(self, database: Administration, access: Access, facts: Facts) -> None:
        self._database = database
        self._access = access
        self._facts = facts

    async def list_channels(self, asked: Asked) -> Answer:
        """Return the channels that whoever asks can see."""
        query: ChannelsQuery = asked.query
        return _found(
            await self._database.channels(
                asked.caller, asked.admin, None, query.full, query.limit, query.offset
            )
        )

    async def create_channel(self, asked: Asked) -> Answer:
        """Return the new channel."""
        body: NewChannel = asked.body
        query: ChannelQuery = asked.query
        return _found(await self._database.create_channel(asked.caller, _json(body), query.full))

    async def get_channel(self, asked: Asked) -> Answer:
        """Return a channel."""
        query: ChannelQuery = asked.query
        return _found(
            await self._database.channels(asked.caller, asked.admin, asked.key, query.full)
        )

    async def update_channel(self, asked: Asked) -> Answer:
        """Return the channel as it is now."""
        body: ChannelChanges = asked.body
        query: ChannelQuery = asked.query
        return _found(
            await self._database.update_channel(asked.caller, asked.key, _json(body), query.full)
        )

    async def delete_channel(self, asked: Asked) -> Answer:
        """Say that it is gone."""
        return _done(
            await self._database.delete_channel(asked.caller, asked.key), "Channel deleted"
        )

    async def list_messages(self, asked: Asked) -> Answer:
        """Return a page of history; headers say where the next one is."""
        query: MessagesQuery = asked.query
        page = await self._database.messages(
            asked.caller,
            asked.admin,
            Filter(
                query.channel_id, query.channel_name, query.event_name, query.sender_id,
                query.since, query.until, query.limit, query.offset, query.cursor,
            ),
        )  # fmt: skip
        return Answer(page.body, {"X-Next-Cursor": page.cursor} if page.cursor else {})

    async def delete_message(self, asked: Asked) -> Answer:
        """Say that it is gone."""
        return _done(
            await self._database.delete_message(asked.caller, asked.key), "Message deleted"
        )

    async def publish(self, asked: Asked) -> Answer:
        """Return the id of the message, or an array of ids for an array of messages."""
        body: NewMessage | list[NewMessage] = asked.body
        if isinstance(body, list):
            messages = [self._message(message) for message in body]
            ids = await (
                self._database.publish(asked.caller.claims, messages)
                if asked.admin
                else self._access.publish_all(asked.caller, messages)
            )
            return Answer(json.dumps([{"id": str(identifier)} for identifier in ids]))
        message = self._message(body)
        if asked.admin:
            identifier = (await self._database.publish(asked.caller.claims, [message]))[0]
        else:
            identifier = await self._access.publish(asked.caller, None, *message)
        return Answer(json.dumps({"id": str(identifier)}))

    async def get_statistics(self, asked: Asked) -> Answer:
        """Return counts; callers must be able to hear what they want counted."""
        query: StatisticsQuery = asked.query
        if query.channel_id is not None and query.channel_name is not None:
            raise Refusal("invalid_request", "Give channelId or channelName, not both.")
        if asked.admin:
            return _found(
                await self._database.statistics(
                    asked.caller, query.channel_id, query.channel_name, query.since
                )
            )
        if query.channel_name is None:
            raise Refusal(
                "forbidden", "Name the channel whose statistics you want: ?channelName=chat:room1."
            )
        await self._may_hear(asked, query.channel_name)
        return _found(await self._database.channel_statistics(query.channel_name, query.since))

    async def get_presence(self, asked: Asked) -> Answer:
        """Return who is there; callers must be able to hear the channel."""
        query: ChannelNameQuery = asked.query
        await self._may_hear(asked, query.channel_name)
        return _found(await self._database.presence(asked.caller, asked.admin, query.channel_name))

    async def get_audience(self, asked: Asked) -> Answer:
        """Return how many listen; callers must be able to hear the channel."""
        query: ChannelNameQuery = asked.query
        await self._may_hear(asked, query.channel_name)
        return _found(await self._database.audience(asked.caller, asked.admin, query.channel_name))

    async def _may_hear(self, asked: Asked, channel: str) -> None:
        if not asked.admin and not await self._access.may_subscribe(asked.caller, channel):
            raise Refusal("forbidden")

    async def get_permissions(self, asked: Asked) -> Answer:
        """Return the policies."""
        return _found(await self._database.permissions(asked.caller))

    async def get_config(self, asked: Asked) -> Answer:
        """Return the settings."""
        return _found(await self._database.config(asked.caller))

    async def update_config(self, asked: Asked) -> Answer:
        """Return the settings as they are now."""
        body: ConfigChanges = asked.body
        return _found(await self._database.update_config(asked.caller, _json(body)))

    # Webhooks

    async def list_endpoints(self, asked: Asked) -> Answer:
        """Return the endpoints."""
        query: EndpointsQuery = asked.query
        return _found(await self._database.endpoints(asked.caller, query.channel_id))

    async def rotate_secret(self, asked: Asked) -> Answer:
        """Return the new secret."""
        return _found(await self._database.rotate_secret(asked.caller, asked.key))

    async def list_deliveries(self, asked: Asked) -> Answer:
        """Return a page of deliveries."""
        query: DeliveriesQuery = asked.query
        return _found(
            await self._database.deliveries(
                asked.caller, query.channel_id, query.state, query.limit, query.cursor
            )
        )

    async def list_attempts(self, asked: Asked) -> Answer:
        """Return the attempts of a delivery."""
        return _found(await self._database.attempts(asked.caller, asked.key))

    async def redeliver(self, asked: Asked) -> Answer:
        """Say whether it was queued."""
        return _found(await self._database.redeliver(asked.caller, asked.key))

    def _message(self, message: NewMessage) -> tuple[str, str, str, str, UUID | None]:
        payload = b"{}" if message.payload is msgspec.UNSET else bytes(message.payload)
        if self._facts.current.exceeds_payload_limit(payload):
            raise Refusal("payload_too_large")
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            raise Refusal("invalid_message", "The payload is not valid UTF-8.") from None
        return message.channel, message.type, message.event, text, message.id


def _json(body: msgspec.Struct) -> str:
    return msgspec.json.encode(body).decode()


def _found(text: str | None) -> Answer:
    if text is None:
        raise Refusal("not_found")
    return Answer(text)


def _done(done: bool, message: str) -> Answer:
    if not done:
        raise Refusal("not_found")
    return Answer(json.dumps({"message": message}))
