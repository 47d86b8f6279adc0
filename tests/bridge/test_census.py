"""What a bridge reports about its clients when it is asked, and what it does not log."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from bridge.test_hub import Pipe
from rowcast.bridge import census
from rowcast.bridge.census import Census
from rowcast.bridge.facts import Facts
from rowcast.bridge.hub import Hub
from rowcast.bridge.model import FAR_FUTURE, Caller
from rowcast.bridge.session import Session
from rowcast.bridge.subscription import Subscription
from rowcast.config import Settings

REQUEST = uuid4()
SECRET = "alice@example.com"
Said = tuple[list[tuple[str, str, str, int]], int | None]


class Node:
    id = uuid4()


class Database:
    """Collects reports; it may fail, or not want any more."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        self.listens = True
        self.error: Exception | None = None
        self.asked = asyncio.Event()

    async def answer_census(self, node: UUID, request: UUID, told: Any, out: Any) -> bool:
        assert (node, request) == (Node.id, REQUEST)
        self.said.append((told, out))
        if out is not None or self.error or not self.listens:
            self.asked.set()
        if self.error:
            raise self.error
        return self.listens


def join(hub: Hub, claims: str, *channels: str, live: bool = True) -> Session:
    session = Session(Pipe(), Settings())
    hub.add(session)
    hub.identify(session, Caller("authenticated", "alice", claims, FAR_FUTURE))
    for channel in channels:
        subscription = Subscription(channel)
        hub.join(session, subscription)
        if live:
            subscription.go_live()
    return session


async def answers(hub: Hub, database: Database, *, closed: bool = False) -> list[Said]:
    """Return the reports for one request."""
    part = Census(database, hub, Node())  # type: ignore[arg-type]
    part.closed = closed
    part.wake_for([], [("census", {"request": str(REQUEST)})])
    running = asyncio.create_task(part.run())
    if closed:
        await asyncio.sleep(0)
    else:
        await asyncio.wait_for(database.asked.wait(), 10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return database.said


async def test_equal_sessions_are_one_and_only_what_is_live_counts() -> None:
    hub = Hub(Facts())
    for _ in range(3):
        join(hub, "{}", "a", "b")
    join(hub, '{"n":1}', "a")
    join(hub, "{}", "pending", live=False)
    hub.add(Session(Pipe(), Settings()))  # has not sent a token
    hub.leave(join(hub, "{}", "left"), "left")
    [(told, out)] = await answers(hub, Database())
    assert out == 0
    assert sorted(told) == [
        ("authenticated", '{"n":1}', "a", 1),
        ("authenticated", "{}", "a", 3),
        ("authenticated", "{}", "b", 3),
    ]


async def test_a_bridge_without_clients_reports_too() -> None:
    assert await answers(Hub(Facts()), Database()) == [([], 0)]


async def test_large_reports_go_in_portions_and_only_the_last_is_final(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(census, "PORTION", 4)
    hub = Hub(Facts())
    for n in range(8):
        join(hub, f'{{"n":{n}}}', "a")
    said = await answers(hub, Database())
    assert [(len(told), out) for told, out in said] == [(4, None), (4, 0)]


@pytest.mark.parametrize(("limit", "value"), [("PAIRS", 5), ("SIZE", 5 * len("authenticated{}a0"))])
async def test_pairs_beyond_the_limit_are_counted(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(census, limit, value)
    hub = Hub(Facts())
    for n in range(9):
        join(hub, "{}", f"a{n}")
    [(told, out)] = await answers(hub, Database())
    assert (len(told), out) == (5, 4)


async def test_a_report_ends_when_it_is_not_wanted_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(census, "PORTION", 1)
    hub, database = Hub(Facts()), Database()
    join(hub, "{}", "a", "b", "c")
    database.listens = False
    assert len(await answers(hub, database)) == 1


async def test_a_draining_bridge_does_not_report() -> None:
    hub = Hub(Facts())
    join(hub, "{}", "a")
    assert await answers(hub, Database(), closed=True) == []


async def test_no_claim_is_logged_when_it_fails(caplog: pytest.LogCaptureFixture) -> None:
    hub, database = Hub(Facts()), Database()
    join(hub, f'{{"email":"{SECRET}"}}', "a")
    error = asyncpg.NotNullViolationError(f"Failing row contains ({SECRET})")
    database.error = error
    with caplog.at_level(logging.DEBUG, "rowcast"):
        logging.getLogger("rowcast").propagate = True
        await answers(hub, database)
    [record] = [r for r in caplog.records if r.getMessage() == "census_failed"]
    assert record.__dict__["fields"] == {"error": "NotNullViolationError"}
    assert SECRET not in caplog.text


async def test_requests_without_end_are_not_piled_up() -> None:
    database = Database()
    part = Census(database, Hub(Facts()), Node())  # type: ignore[arg-type]
    for _ in range(100):
        part.wake_for([], [("census", {"request": str(REQUEST)})])
    running = asyncio.create_task(part.run())
    for _ in range(1000):
        await asyncio.sleep(0)
    running.cancel()
    assert len(database.said) == census.WAITING
