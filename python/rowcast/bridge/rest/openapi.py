"""The OpenAPI document of the REST API, made from the table of routes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import msgspec

from rowcast import __version__
from rowcast.errors import CATALOGUE

from .routes import BASE, Route

__all__ = ["document"]

# Codes that any route can answer with, and those of any route with a body
ANY = ("invalid_request", "unauthorized", "invalid_token", "token_expired", "forbidden",
       "rate_limited", "internal", "unavailable")  # fmt: skip
WITH_BODY = ("payload_too_large",)
UUID_TEXT = {"type": "string", "format": "uuid"}
TIME = {"type": "string", "format": "date-time"}
MAYBE_TIME = {"type": ["string", "null"], "format": "date-time"}
COUNT = {"type": "integer", "minimum": 0}
TEMPLATE = "#/components/schemas/{name}"


def _object(optional: Sequence[str] = (), **properties: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _nullable(kind: str) -> dict[str, Any]:
    return {"type": [kind, "null"]}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": TEMPLATE.format(name=name)}


ANSWERS: dict[str, Any] = {
    "Channel": _object(
        ("webhookUrls", "isPublic", "ownerId", "wildcard"),
        id=UUID_TEXT,
        pattern={"type": "string"},
        description=_nullable("string"),
        webhookUrls={"type": ["array", "null"], "items": {"type": "string"}},
        enabled={"type": "boolean"},
        createdAt=TIME,
        updatedAt=TIME,
        isPublic={"type": "boolean"},
        ownerId=_nullable("string"),
        wildcard={"type": "boolean"},
    ),
    "Channels": _array(_reference("Channel")),
    "Message": _object(
        id=UUID_TEXT,
        eventName={"type": "string"},
        channelId={"type": ["string", "null"], "format": "uuid"},
        channelName={"type": "string"},
        payload={},
        senderType={"enum": ["user", "system"]},
        senderId=_nullable("string"),
        wsAudienceCount=COUNT,
        whAudienceCount=COUNT,
        whDeliveredCount=COUNT,
        createdAt=TIME,
    ),
    "Messages": _array(_reference("Message")),
    "Receipt": _object(id=UUID_TEXT),
    "Published": {"oneOf": [_reference("Receipt"), _array(_reference("Receipt"))]},
    "Statistics": _object(
        totalMessages=COUNT,
        whDeliveryRate={"type": "number", "minimum": 0, "maximum": 1},
        topEvents=_array(_object(eventName={"type": "string"}, count=COUNT)),
    ),
    "Presence": _object(
        channel={"type": "string"},
        presence=_array(
            _object(
                key={"type": "string"},
                presence={},
                anonymous={"type": "boolean"},
                sessions=COUNT,
                joinedAt=TIME,
            )
        ),
    ),
    "Audience": _object(channel={"type": "string"}, wsAudienceCount=COUNT),
    "Policy": _object(
        policyName={"type": "string"},
        tableName={"type": "string"},
        command={"enum": ["ALL", "SELECT", "INSERT", "UPDATE", "DELETE"]},
        roles=_array({"type": "string"}),
        using=_nullable("string"),
        withCheck=_nullable("string"),
        permissive={"type": "boolean"},
    ),
    "Policies": _object(policies=_array(_reference("Policy"))),
    "Permissions": _object(subscribe=_reference("Policies"), publish=_reference("Policies")),
    "Config": _object(
        retentionDays=_nullable("number"),
        broadcastRetentionSeconds={"type": "number"},
        cursorRetentionDays={"type": "number"},
        payloadLimit=COUNT,
        replayRows=COUNT,
        replayBytes=COUNT,
    ),
    "Endpoints": _array(
        _object(
            id=UUID_TEXT,
            channelId=UUID_TEXT,
            pattern={"type": "string"},
            url={"type": "string"},
            state={"enum": ["active", "throttled", "open", "disabled"]},
            reason=_nullable("string"),
            failures=COUNT,
            failingSince=MAYBE_TIME,
            pausedUntil=MAYBE_TIME,
            pending=COUNT,
            oldSecretUntil=MAYBE_TIME,
            createdAt=TIME,
        )
    ),
    "Secret": _object(
        id=UUID_TEXT, url={"type": "string"}, secret={"type": "string"}, oldSecretUntil=MAYBE_TIME
    ),
    "Deliveries": _object(
        deliveries=_array(
            _object(
                id=COUNT,
                messageId=UUID_TEXT,
                channelId=UUID_TEXT,
                endpointId=UUID_TEXT,
                url=_nullable("string"),
                state={"enum": ["pending", "delivered", "failed", "cancelled"]},
                reason=_nullable("string"),
                attempts=COUNT,
                nextAttemptAt=MAYBE_TIME,
                lastStatus=_nullable("integer"),
                lastError=_nullable("string"),
                createdAt=TIME,
                settledAt=MAYBE_TIME,
            )
        ),
        next=_nullable("string"),
    ),
    "Attempts": _array(
        _object(
            attempt=COUNT,
            at=TIME,
            status=_nullable("integer"),
            durationMs=_nullable("integer"),
            error=_nullable("string"),
            body=_nullable("string"),
        )
    ),
    "Redelivery": _object(id=COUNT, queued={"type": "boolean"}),
    "Done": _object(message={"type": "string"}),
    "Problem": _object(
        ("nextActions",),
        error={"enum": sorted(CATALOGUE)},
        message={"type": "string"},
        statusCode={"type": "integer"},
        nextActions={"type": "string"},
    ),
}


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """Return the document.

    Args:
        routes: the table of routes that the server uses.
    """
    paths: dict[str, Any] = {}
    components = dict(ANSWERS)
    for route in routes:
        operation = _operation(route, components)
        paths.setdefault(BASE + route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rowcast",
            "version": __version__,
            "description": "Channels, messages, statistics and webhooks. Errors have the same codes"
            " as on the WebSocket.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "apikey": {"type": "apiKey", "in": "header", "name": "apikey"},
            },
        },
        "security": [{"bearer": []}, {"apikey": []}],
    }


def _operation(route: Route, components: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.about,
        "parameters": _parameters(route),
        "responses": {str(route.status): _answer(route), **_refusals(route)},
    }
    if route.body is not None:
        (schema,), defined = msgspec.json.schema_components([route.body], ref_template=TEMPLATE)
        components.update(defined)
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if "{id}" in route.path:
        schema = UUID_TEXT if route.key is UUID else {"type": "integer", "minimum": 0}
        found.append({"name": "id", "in": "path", "required": True, "schema": schema})
    (_,), defined = msgspec.json.schema_components([route.query], ref_template=TEMPLATE)
    for name, schema in defined[route.query.__name__]["properties"].items():
        # An absent parameter is not null, which cannot be written in a URL.
        kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
        found.append({"name": name, "in": "query", "required": False, "schema": kinds[0]})
    return found


def _answer(route: Route) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": route.about,
        "content": {"application/json": {"schema": _reference(route.answer)}},
    }
    if route.paged:
        answer["headers"] = {
            "X-Next-Cursor": {
                "description": "The `cursor` of the next page, if there may be one.",
                "schema": {"type": "string"},
            },
            "Link": {"description": "The address of the next page.", "schema": {"type": "string"}},
        }
    return answer


def _refusals(route: Route) -> dict[str, Any]:
    codes = [*ANY, *route.refusals, *(WITH_BODY if route.body is not None else ())]
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(CATALOGUE[code].status, []).append(code)
    content = {"application/json": {"schema": _reference("Problem")}}
    return {
        str(status): {"description": ", ".join(codes), "content": content}
        for status, codes in sorted(by_status.items())
    }
