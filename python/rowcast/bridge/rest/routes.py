"""The REST API as one table: the input and the answer of each route.

The server and the OpenAPI document are both made from this table, so they cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

__all__ = [
    "BASE",
    "ROUTES",
    "ChannelChanges",
    "ChannelNameQuery",
    "ChannelQuery",
    "ChannelsQuery",
    "ConfigChanges",
    "DeliveriesQuery",
    "EndpointsQuery",
    "MessagesQuery",
    "NewChannel",
    "NewMessage",
    "Query",
    "Route",
    "StatisticsQuery",
]

BASE = "/api/realtime"
MAX_BATCH = 1000

Name = Annotated[str, Meta(min_length=1, max_length=255)]
Text = Annotated[str, Meta(max_length=10_000)]
Url = Annotated[str, Meta(max_length=2048, pattern="^https?://")]
Urls = Annotated[list[Url], Meta(max_length=100)]
Time = Annotated[datetime, Meta(tz=True)]
Offset = Annotated[int, Meta(ge=0, le=1_000_000)]
ChannelId = Annotated[
    str,
    Meta(
        pattern="^[0-9a-fA-F]{8}[0-9a-fA-F-]{0,28}$",
        description="The id of a channel, or at least its first 8 digits.",
    ),
]


class Query(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Parameters in the URL; this base class is for routes without parameters."""


class ChannelQuery(Query, frozen=True, kw_only=True):
    """`full` adds isPublic, ownerId and wildcard."""

    full: bool = False


class ChannelsQuery(ChannelQuery, frozen=True, kw_only=True):
    """A part of the list of channels."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000
    offset: Offset = 0


class StatisticsQuery(Query, frozen=True, kw_only=True):
    """The messages to count."""

    channel_id: ChannelId | None = None
    channel_name: Name | None = None
    since: Time | None = None


class MessagesQuery(StatisticsQuery, frozen=True, kw_only=True):
    """The messages to list, and the page of them."""

    event_name: Name | None = None
    sender_id: Annotated[str, Meta(min_length=1, max_length=1000)] | None = None
    until: Time | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    offset: Offset = 0
    cursor: Annotated[str, Meta(min_length=1, max_length=100)] | None = None


class ChannelNameQuery(Query, frozen=True, kw_only=True):
    """The channel to describe."""

    channel_name: Name


class EndpointsQuery(Query, frozen=True, kw_only=True):
    """The channel whose endpoints to list."""

    channel_id: UUID | None = None


class DeliveriesQuery(EndpointsQuery, frozen=True, kw_only=True):
    """The deliveries to list, and the page of them: `cursor` is `next` of the previous page."""

    state: Literal["pending", "delivered", "failed", "cancelled"] | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50
    cursor: Annotated[str, Meta(pattern="^[0-9]{1,18}$")] | None = None


class Body(
    msgspec.Struct,
    rename="camel",
    forbid_unknown_fields=True,
    omit_defaults=True,
    frozen=True,
    kw_only=True,
):
    """A JSON body. An absent member is unset, which is not the same as null."""


class ChannelChanges(Body, frozen=True, kw_only=True):
    """Changes of a channel; absent members keep their values."""

    pattern: Name | UnsetType = UNSET
    description: Text | UnsetType | None = UNSET
    webhook_urls: Urls | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET
    is_public: bool | UnsetType = UNSET
    owner_id: Annotated[str, Meta(max_length=1000)] | UnsetType | None = UNSET
    wildcard: bool | UnsetType = UNSET


class NewChannel(ChannelChanges, frozen=True, kw_only=True):
    """A new channel; absent members get their defaults."""

    pattern: Name


class NewMessage(Body, frozen=True, kw_only=True):
    """A message to publish; a repeat of `id` within 24 hours answers with the first message."""

    channel: Name
    event: Name
    payload: msgspec.Raw | UnsetType = UNSET
    type: Literal["message", "broadcast"] = "message"
    id: UUID | None = None


NewMessages = Annotated[list[NewMessage], Meta(min_length=1, max_length=MAX_BATCH)]


class ConfigChanges(Body, frozen=True, kw_only=True):
    """Changes of the settings; absent ones keep their values. With retentionDays null, messages
    are kept for ever."""

    retention_days: Annotated[float, Meta(ge=0.05, le=36500)] | UnsetType | None = UNSET
    broadcast_retention_seconds: Annotated[float, Meta(ge=10, le=86_400)] | UnsetType = UNSET
    cursor_retention_days: Annotated[float, Meta(ge=0.05, le=36_500)] | UnsetType = UNSET
    payload_limit: Annotated[int, Meta(ge=1, le=16_777_216)] | UnsetType = UNSET
    replay_rows: Annotated[int, Meta(ge=1, le=1_000_000)] | UnsetType = UNSET
    replay_bytes: Annotated[int, Meta(ge=1, le=1_073_741_824)] | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path.

    Args:
        method: the HTTP method.
        path: the path below `BASE`; ``{id}`` is an id.
        name: the operationId, and the method of `Calls` that answers.
        about: one sentence for the document.
        answer: name of the schema of the answer.
        status: HTTP status of the answer.
        query: type of the parameters in the URL.
        body: type of the body, or None.
        admin: whether only administrators may call it.
        key: type of the id in the path.
        paged: whether headers of the answer name the next page.
        refusals: codes of the catalogue in addition to those that any route can answer.
    """

    method: str
    path: str
    name: str
    about: str
    answer: str
    status: int = 200
    query: type[Query] = Query
    body: Any = None
    admin: bool = False
    key: type[UUID] | type[int] = UUID
    paged: bool = False
    refusals: tuple[str, ...] = ()


ROUTES = (
    Route(
        "GET", "/channels", "list_channels",
        "List channels, newest first: administrators get all, callers those they may see.",
        "Channels", query=ChannelsQuery,
    ),
    Route(
        "POST", "/channels", "create_channel", "Create a channel.", "Channel", 201,
        query=ChannelQuery, body=NewChannel, admin=True, refusals=("conflict",),
    ),
    Route(
        "GET", "/channels/{id}", "get_channel", "Get a channel.", "Channel",
        query=ChannelQuery, refusals=("not_found",),
    ),
    Route(
        "PUT", "/channels/{id}", "update_channel", "Change the given members of a channel.",
        "Channel", query=ChannelQuery, body=ChannelChanges, admin=True,
        refusals=("not_found", "conflict"),
    ),
    Route(
        "DELETE", "/channels/{id}", "delete_channel", "Delete a channel and keep its history.",
        "Done", admin=True, refusals=("not_found",),
    ),
    Route(
        "GET", "/messages", "list_messages",
        "List durable messages, newest first: administrators get all, callers those that their"
        " SELECT policies show.",
        "Messages", query=MessagesQuery, paged=True, refusals=("not_found",),
    ),
    Route(
        "POST", "/messages", "publish",
        "Publish a message, or an array of messages in one transaction.", "Published", 201,
        body=NewMessage | NewMessages, refusals=("not_found",),
    ),
    Route(
        "DELETE", "/messages/{id}", "delete_message",
        "Delete a message from history and replay, and tell subscribers to remove it.",
        "Done", admin=True, refusals=("not_found",),
    ),
    Route(
        "GET", "/messages/stats", "get_statistics",
        "Get statistics of messages: administrators of all, callers of a channelName to which"
        " they may subscribe.",
        "Statistics", query=StatisticsQuery, refusals=("not_found",),
    ),
    Route(
        "GET", "/presence", "get_presence",
        "List the members of a channel, for administrators and callers who may subscribe to it.",
        "Presence", query=ChannelNameQuery,
    ),
    Route(
        "GET", "/audience", "get_audience",
        "Count the sessions on all bridges that are subscribed to a channel now.",
        "Audience", query=ChannelNameQuery,
    ),
    Route(
        "GET", "/permissions", "get_permissions", "List the policies that decide.", "Permissions",
        admin=True,
    ),
    Route(
        "GET", "/config", "get_config", "Get the limits of retention, payloads and replay.",
        "Config", admin=True,
    ),
    Route(
        "PATCH", "/config", "update_config", "Change the given limits.", "Config",
        body=ConfigChanges, admin=True,
    ),
    Route(
        "GET", "/webhooks/endpoints", "list_endpoints",
        "List webhook endpoints and their state.", "Endpoints",
        query=EndpointsQuery, admin=True,
    ),
    Route(
        "POST", "/webhooks/endpoints/{id}/rotate", "rotate_secret",
        "Give an endpoint a new secret, which only this answer shows; for a while, deliveries are"
        " signed with the old one as well.",
        "Secret", admin=True, refusals=("not_found", "conflict"),
    ),
    Route(
        "GET", "/webhooks/deliveries", "list_deliveries", "List deliveries, newest first.",
        "Deliveries", query=DeliveriesQuery, admin=True,
    ),
    Route(
        "GET", "/webhooks/deliveries/{id}/attempts", "list_attempts",
        "List the attempts of a delivery, oldest first.", "Attempts", admin=True, key=int,
        refusals=("not_found",),
    ),
    Route(
        "POST", "/webhooks/deliveries/{id}/redeliver", "redeliver", "Send a delivery again.",
        "Redelivery", admin=True, key=int, refusals=("not_found", "conflict"),
    ),
)  # fmt: skip
