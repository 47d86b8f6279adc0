"""The REST API as one table: what each route takes and answers. The server and the OpenAPI
document are both made of it, so they cannot differ."""

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
    """Parameters in the URL; this one is of routes that take none."""


class ChannelQuery(Query, frozen=True, kw_only=True):
    """`full` adds isPublic, ownerId and wildcard."""

    full: bool = False


class ChannelsQuery(ChannelQuery, frozen=True, kw_only=True):
    """Which part of the list."""

    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000
    offset: Offset = 0


class StatisticsQuery(Query, frozen=True, kw_only=True):
    """Of which messages."""

    channel_id: ChannelId | None = None
    channel_name: Name | None = None
    since: Time | None = None


class MessagesQuery(StatisticsQuery, frozen=True, kw_only=True):
    """Which messages, and which page of them."""

    event_name: Name | None = None
    sender_id: Annotated[str, Meta(min_length=1, max_length=1000)] | None = None
    until: Time | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    offset: Offset = 0
    cursor: Annotated[str, Meta(min_length=1, max_length=100)] | None = None


class ChannelNameQuery(Query, frozen=True, kw_only=True):
    """Of which name."""

    channel_name: Name


class EndpointsQuery(Query, frozen=True, kw_only=True):
    """Of which channel."""

    channel_id: UUID | None = None


class DeliveriesQuery(EndpointsQuery, frozen=True, kw_only=True):
    """Which deliveries, and which page of them: `cursor` is `next` of the one before."""

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
    """What is sent as JSON. What is left out stays unset, which is not null."""


class ChannelChanges(Body, frozen=True, kw_only=True):
    """What is left out stays as it is."""

    pattern: Name | UnsetType = UNSET
    description: Text | UnsetType | None = UNSET
    webhook_urls: Urls | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET
    is_public: bool | UnsetType = UNSET
    owner_id: Annotated[str, Meta(max_length=1000)] | UnsetType | None = UNSET
    wildcard: bool | UnsetType = UNSET


class NewChannel(ChannelChanges, frozen=True, kw_only=True):
    """A pattern, and what else is to differ from the defaults."""

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
    """What is left out stays; retentionDays null keeps messages for ever."""

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
        method: of HTTP.
        path: below `BASE`; ``{name}`` is an id.
        does: name of the method of `Handlers`, and operationId.
        about: one sentence for the document.
        answer: name of the schema that the answer has; its status.
        status: of the answer.
        query: parameters in the URL.
        body: what is sent, or None.
        admin: whether only administrators may.
        key: type of the id in the path.
        paged: whether headers say where the next page is.
        refusals: codes of the catalogue beside those that any route can answer.
    """

    method: str
    path: str
    does: str
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
        "Channels, newest first: all for administrators, for others those they can see.",
        "Channels", query=ChannelsQuery,
    ),
    Route(
        "POST", "/channels", "create_channel", "Create a channel.", "Channel", 201,
        query=ChannelQuery, body=NewChannel, admin=True, refusals=("conflict",),
    ),
    Route(
        "GET", "/channels/{id}", "get_channel", "One channel.", "Channel",
        query=ChannelQuery, refusals=("not_found",),
    ),
    Route(
        "PUT", "/channels/{id}", "update_channel", "Change what is named of a channel.",
        "Channel", query=ChannelQuery, body=ChannelChanges, admin=True,
        refusals=("not_found", "conflict"),
    ),
    Route(
        "DELETE", "/channels/{id}", "delete_channel", "Delete a channel; its history stays.",
        "Done", admin=True, refusals=("not_found",),
    ),
    Route(
        "GET", "/messages", "list_messages",
        "Durable messages, newest first: all for administrators, for others what the SELECT"
        " policies show.",
        "Messages", query=MessagesQuery, paged=True, refusals=("not_found",),
    ),
    Route(
        "POST", "/messages", "publish",
        "Publish a message, or an array of messages: all or none.", "Published", 201,
        body=NewMessage | NewMessages, refusals=("not_found",),
    ),
    Route(
        "DELETE", "/messages/{id}", "delete_message",
        "Remove a message from history, from replay and from the screens of subscribers.",
        "Done", admin=True, refusals=("not_found",),
    ),
    Route(
        "GET", "/messages/stats", "get_statistics",
        "Statistics: of anything for administrators, for others of a channelName to which they"
        " may subscribe.",
        "Statistics", query=StatisticsQuery, refusals=("not_found",),
    ),
    Route(
        "GET", "/presence", "get_presence",
        "Who is present in a channel, for administrators and for whoever may subscribe to it.",
        "Presence", query=ChannelNameQuery,
    ),
    Route(
        "GET", "/audience", "get_audience",
        "How many sessions are subscribed to a channel at this moment, on all bridges.",
        "Audience", query=ChannelNameQuery,
    ),
    Route(
        "GET", "/permissions", "get_permissions", "The policies that decide.", "Permissions",
        admin=True,
    ),
    Route(
        "GET", "/config", "get_config", "How long and how much is kept.", "Config", admin=True,
    ),
    Route(
        "PATCH", "/config", "update_config", "Change what is named of that.", "Config",
        body=ConfigChanges, admin=True,
    ),
    Route(
        "GET", "/webhooks/endpoints", "list_endpoints",
        "Where messages are sent, and how each receiver is doing.", "Endpoints",
        query=EndpointsQuery, admin=True,
    ),
    Route(
        "POST", "/webhooks/endpoints/{id}/rotate", "rotate_secret",
        "Give an endpoint a new secret, shown here and never again; the old one goes on signing"
        " beside it for a while.",
        "Secret", admin=True, refusals=("not_found", "conflict"),
    ),
    Route(
        "GET", "/webhooks/deliveries", "list_deliveries", "Deliveries, newest first.",
        "Deliveries", query=DeliveriesQuery, admin=True,
    ),
    Route(
        "GET", "/webhooks/deliveries/{id}/attempts", "list_attempts",
        "What was sent when, and what was answered.", "Attempts", admin=True, key=int,
        refusals=("not_found",),
    ),
    Route(
        "POST", "/webhooks/deliveries/{id}/redeliver", "redeliver", "Send a delivery again.",
        "Redelivery", admin=True, key=int, refusals=("not_found", "conflict"),
    ),
)  # fmt: skip
