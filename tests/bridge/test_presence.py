"""Rosters and updates without a socket or a database: what clients are told, also when rows come
twice, late or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from bridge.test_hub import Pipe
from rowcast.bridge.facts import Facts
from rowcast.bridge.hub import Hub
from rowcast.bridge.presence.roster import Roster, Row
from rowcast.bridge.presence.updates import Updates
from rowcast.bridge.session import Session
from rowcast.bridge.subscription import Subscription
from rowcast.config import Settings

ONE, TWO = UUID(int=1), UUID(int=2)


def row(key: str, seq: int, state: str | None, node: UUID = ONE) -> Row:
    return Row(key, node, seq, state)


def test_a_member_comes_changes_and_goes() -> None:
    roster = Roster()
    roster.take(row("a", 1, "1"))
    assert roster.take_changes() == [("join", "a", "1", None)]
    roster.take(row("a", 2, "2"))
    roster.take(row("a", 3, "3"))
    assert roster.take_changes() == [("update", "a", "3", "1")]
    roster.take(row("a", 4, None))
    assert roster.take_changes() == [("leave", "a", "3", "3")]
    assert not roster.take_changes()


def test_a_member_that_left_lately_is_remembered_until_it_is_back() -> None:
    """For clients that were not told then, and speak a wire without whole lists."""
    roster = Roster()
    for seq, state in enumerate(("{}", None, "{}", None)):
        roster.take(row("alice", seq, state))
        roster.take_changes()
        assert list(roster.recently_left) == ([] if state else ["alice"])


def test_changes_that_cancel_out_are_not_told() -> None:
    roster = Roster()
    roster.take(row("a", 1, "1"))
    roster.take(row("a", 2, None))
    assert roster.take_changes() == []
    roster.take(row("b", 3, "1"))
    roster.take_changes()
    roster.take(row("b", 4, None))
    roster.take(row("b", 5, "1"))
    assert roster.take_changes() == []


def test_the_newest_row_of_many_bridges_counts_and_the_others_remain() -> None:
    roster = Roster()
    roster.take(row("a", 1, "1", ONE))
    roster.take(row("a", 2, "2", TWO))
    assert roster.take_changes() == [("join", "a", "2", None)]
    roster.take(row("a", 3, None, TWO))
    assert roster.take_changes() == [("update", "a", "1", "2")]


def test_older_rows_change_nothing() -> None:
    roster = Roster()
    roster.take(row("a", 2, "2"))
    roster.take(row("a", 1, "1"))
    assert roster.take_changes() == [("join", "a", "2", None)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_list_and_rows_that_cross_it_agree_in_any_order(order: tuple[int, ...]) -> None:
    """The list shows seq 2; 1 to 3 come from the feed before, in between or after it."""
    for last in ("3", None):
        roster = Roster()
        roster.begin_load()
        steps = [
            lambda roster=roster: roster.take(row("a", 1, "1")),
            lambda roster=roster: roster.finish_load([row("a", 2, "2")], complete=True),
            lambda roster=roster, last=last: roster.take(row("a", 3, last)),
        ]
        if order.index(0) > order.index(2):
            continue  # the feed itself keeps its order
        for step in order:
            steps[step]()
        roster.take_changes()
        assert roster.announced.get("a") == last


def test_members_missing_on_the_whole_list_have_left_unless_they_came_meanwhile() -> None:
    roster = Roster()
    roster.take(row("gone", 1, "1"))
    roster.take_changes()
    roster.begin_load()
    roster.take(row("new", 5, "5"))
    roster.finish_load([], complete=True)
    assert sorted(roster.take_changes()) == [
        ("join", "new", "5", None),
        ("leave", "gone", "1", "1"),
    ]


def test_after_a_crash_members_stay_until_the_time_to_come_back_is_over() -> None:
    roster = Roster()
    for key in ("back", "gone"):
        roster.take(row(key, 100, "1"))
    roster.take_changes()
    roster.expect_new_rows()
    roster.begin_load()
    roster.finish_load([], complete=False)
    assert roster.take_changes() == []
    roster.take(row("back", 7, "1"))  # numbers may be lower than before
    roster.begin_load()
    roster.finish_load([row("back", 7, "1")], complete=True)
    assert roster.take_changes() == [("leave", "gone", "1", "1")]


class Lists:
    """The presence table, as far as it is read."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    async def read_presence(self, _channels: Sequence[str]) -> list[dict[str, Any]]:
        return self.rows


class Scene:
    def __init__(self) -> None:
        self.hub = Hub(Facts())
        self.lists = Lists()
        self.presence = Updates(self.lists, self.hub, 15)  # type: ignore[arg-type]
        self.sequence = itertools.count(1)

    def client(self, **settings: Any) -> tuple[Session, Pipe]:
        pipe = Pipe()
        session = Session(pipe, Settings(**settings))
        self.hub.add(session)
        subscription = Subscription("a")
        self.hub.join(session, subscription)
        subscription.go_live()
        return session, pipe

    def feed(self, key: str, state: str) -> None:
        self.presence.apply(
            [
                {  # type: ignore[list-item]
                    "channel_name": "a",
                    "id": ONE,
                    "seq": next(self.sequence),
                    "payload": state,
                    "sender_id": key,
                }
            ]
        )


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    running = asyncio.create_task(scene.presence.run())
    yield scene
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def frames(pipe: Pipe, count: int = 1) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(5):
        while len(found) < count:
            found += [frame for frame in pipe.frames() if frame["op"] == "presence"]
            await asyncio.sleep(0)
    return found


async def test_a_client_that_does_not_read_is_not_closed_and_gets_the_whole_list_later(
    scene: Scene,
) -> None:
    _, stuck = scene.client(buffer_bytes=4096)
    _, other = scene.client()
    await scene.presence.open("a")
    scene.feed("x", '{"n":0}')
    await frames(stuck)
    await frames(other)
    stuck.stuck = 4096
    for n in range(1, 4):
        scene.feed("x", f'{{"n":{n}}}')
        scene.feed(f"y{n}", "{}")
        await frames(other)
    assert stuck.data == b""
    stuck.stuck = 0
    (frame,) = await frames(stuck)
    assert frame["full"] is True
    assert {event["key"] for event in frame["events"]} == {"x", "y1", "y2", "y3"}
    assert stuck.closed is None
    scene.feed("x", '{"n":9}')
    (frame,) = await frames(stuck)
    assert frame["events"] == [{"type": "update", "key": "x", "presence": {"n": 9}}]


async def test_a_list_is_forgotten_with_the_last_client(scene: Scene) -> None:
    session, _ = scene.client()
    await scene.presence.open("a")
    scene.feed("x", "{}")
    scene.hub.leave(session, "a")
    scene.presence.close("a")
    assert scene.presence.members("a") == []
    node = uuid4()
    scene.lists.rows = [
        {"channel_name": "a", "key": "y", "node": node, "seq": 1, "state": '{"z":1}'}
    ]
    scene.client()
    await scene.presence.open("a")
    assert scene.presence.members("a") == [("y", '{"z":1}')]
