"""Publishing by HTTP as Supabase's clients do it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import psycopg
import pytest

from support import pg
from support.bridge_process import DOOR_POLICIES, Daemon, open_bridge, token

pytestmark = pytest.mark.acceptance

BEARER = {"Authorization": f"Bearer {token('alice')}", "apikey": token(None, "anon")}


@pytest.fixture(scope="module")
def bridge(module_database: pg.Database) -> Iterator[Daemon]:
    with open_bridge(
        module_database,
        DOOR_POLICIES,
        frame_burst=50,
        frame_rate=50,
        allowed_origins="https://good.example",
    ) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as http:
        yield http


def rows(module_db: psycopg.Connection[Any], room: str) -> list[Any]:
    return module_db.execute(
        "select type, event_name, payload, sender_id from realtime_messages"
        " where channel_name = %s order by seq",
        [room],
    ).fetchall()


@pytest.mark.parametrize("prefix", ["/realtime/v1", ""])
async def test_messages_are_committed_in_order_before_the_answer(
    bridge: Daemon, module_db: psycopg.Connection[Any], http: Any, room: str, prefix: str
) -> None:
    messages = [
        {"topic": room, "event": f"e{n}", "payload": {"n": n}, "private": True} for n in range(3)
    ]
    url = f"{bridge.url}{prefix}/api/broadcast"
    async with http.post(url, json={"messages": messages}, headers=BEARER) as answer:
        assert answer.status == 202
    assert rows(module_db, room) == [("broadcast", f"e{n}", {"n": n}, "alice") for n in range(3)]
    async with http.post(f"{url}/{room}/events/one?persist=true", json=5, headers=BEARER) as answer:
        assert answer.status == 202
    assert rows(module_db, room)[-1] == ("message", "one", 5, "alice")


async def test_the_key_alone_publishes_without_a_sender(
    bridge: Daemon, module_db: psycopg.Connection[Any], http: Any, room: str
) -> None:
    url = f"{bridge.url}/api/broadcast/{room}/events/e"
    async with http.post(url, json={}, headers={"apikey": token(None, "anon")}) as answer:
        assert answer.status == 202
    assert rows(module_db, room) == [("broadcast", "e", {}, None)]


async def test_a_batch_is_published_whole_or_not_at_all(
    bridge: Daemon, module_db: psycopg.Connection[Any], http: Any, room: str
) -> None:
    messages = [{"topic": t, "event": "e", "payload": {}} for t in (room, "readonly:1")]
    url = f"{bridge.url}/api/broadcast"
    async with http.post(url, json={"messages": messages}, headers=BEARER) as answer:
        assert answer.status == 403
    assert rows(module_db, room) == []


@pytest.mark.parametrize(
    ("path", "headers", "body", "status", "code"),
    [
        ("", {}, b"{}", 401, "unauthorized"),
        ("", {"Authorization": "Bearer x"}, b"{}", 401, "invalid_token"),
        ("", {"Authorization": f"Bearer {token(exp=1)}"}, b"{}", 401, "token_expired"),
        ("", BEARER, b"", 400, "invalid_request"),
        ("", BEARER, b"nonsense", 400, "invalid_request"),
        ("", BEARER, b'{"messages": []}', 400, "invalid_request"),
        ("", BEARER, b'{"messages": [{"topic": "room:1"}]}', 400, "invalid_request"),
        ("", BEARER, b'{"messages":[{"topic":"room:1","event":"e","payload":{]}]}', 400,
         "invalid_request"),
        ("", BEARER, b'{"messages":[{"topic":"a\\u0000","event":"e"}]}', 400, "invalid_channel"),
        ("", BEARER, b'{"messages":[{"topic":"room:1","event":""}]}', 400, "invalid_message"),
        ("", BEARER, b"[" * 100_000, 400, "invalid_request"),
        ("/room:1/events/e", BEARER, b"nonsense", 400, "invalid_request"),
        ("/room:1/events/e", BEARER, b"\xff", 400, "invalid_request"),
        ("/room:1/events/e", BEARER, b'"\\u0000"', 400, "invalid_message"),
        ("/nothing:here/events/e", BEARER, b"{}", 403, "forbidden"),
        ("/room:1/events/e", BEARER, b'"' + b"x" * 400_000 + b'"', 413, "payload_too_large"),
        ("/room:1/events/e", BEARER, b'"' + b"x" * 2_000_000 + b'"', 413, "payload_too_large"),
    ],
)  # fmt: skip
async def test_a_refusal_says_why(
    bridge: Daemon, http: Any, path: str, headers: dict[str, str], body: bytes, status: int,
    code: str,
) -> None:  # fmt: skip
    url = f"{bridge.url}/realtime/v1/api/broadcast{path}"
    headers = {"Content-Type": "application/json", **headers}
    async with http.post(url, data=body, headers=headers) as answer:
        said = json.loads(await answer.text())
        assert (answer.status, said["code"]) == (status, code), said
        assert said["error"].endswith(".")


async def test_the_rate_limit_answers_with_retry_after(bridge: Daemon, http: Any) -> None:
    headers = {"Authorization": f"Bearer {token('hasty')}"}
    url = f"{bridge.url}/api/broadcast/room:1/events/e"
    for _ in range(500):
        async with http.post(url, json={}, headers=headers) as answer:
            if answer.status == 429:
                assert answer.headers["Retry-After"]
                return
    pytest.fail("there is no limit")


async def test_only_allowed_pages_may_read_answers(bridge: Daemon, http: Any) -> None:
    url = f"{bridge.url}/realtime/v1/api/broadcast"
    for origin, allowed in (("https://good.example", True), ("https://bad.example", False)):
        async with http.options(url, headers={"Origin": origin}) as answer:
            assert answer.status == 204
            assert ("apikey" in answer.headers.get("Access-Control-Allow-Headers", "")) is allowed
        async with http.post(url, data=b"", headers={**BEARER, "Origin": origin}) as answer:
            shared = answer.headers.get("Access-Control-Allow-Origin")
            assert shared == (origin if allowed else None)
