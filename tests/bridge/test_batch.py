"""Batches: every item is answered, in order where that was promised."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from rowcast.bridge.batch import Batcher


class Desk:
    """Runs batches when it is told to, and remembers them."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def run(self, _group: str, items: Sequence[str]) -> Sequence[str | Exception]:
        self.batches.append(list(items))
        await self.open.wait()
        return [ValueError(item) if item.startswith("bad") else item.upper() for item in items]


async def test_items_that_come_during_a_batch_make_the_next_one() -> None:
    desk = Desk()
    desk.open.clear()
    batcher = Batcher(desk.run, size=10, workers=1)
    asked = [asyncio.create_task(batcher.submit("g", item)) for item in "abcd"]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    desk.open.set()
    assert await asyncio.gather(*asked) == ["A", "B", "C", "D"]
    assert sorted(item for batch in desk.batches for item in batch) == list("abcd")
    assert len(desk.batches) <= 2


async def test_an_error_reaches_only_its_own_item() -> None:
    batcher = Batcher(Desk().run, size=10, workers=2)
    answers = await asyncio.gather(
        *(batcher.submit("g", item) for item in ("a", "bad", "c")), return_exceptions=True
    )
    assert [answers[0], answers[2]] == ["A", "C"]
    assert isinstance(answers[1], ValueError)


async def test_items_of_one_owner_are_done_in_their_order() -> None:
    done: list[int] = []

    async def run(_group: str, items: Sequence[int]) -> Sequence[int | Exception]:
        await asyncio.sleep(0.001 if items[0] % 3 else 0)
        done.extend(items)
        return items

    batcher = Batcher(run, size=2, workers=4)
    await asyncio.gather(*(batcher.submit("g", n, owner="alice") for n in range(50)))
    assert done == list(range(50))


async def test_groups_are_never_mixed_and_each_has_its_turn() -> None:
    desk = Desk()
    batcher = Batcher(desk.run, size=2, workers=1)
    await asyncio.gather(
        *(batcher.submit("one", f"one{n}") for n in range(6)), batcher.submit("two", "two")
    )
    assert all(len({item[:3] for item in batch}) == 1 for batch in desk.batches)
    assert desk.batches.index(["two"]) < len(desk.batches) - 1


async def test_a_cancelled_item_does_not_disturb_the_others() -> None:
    desk = Desk()
    desk.open.clear()
    batcher = Batcher(desk.run, size=10, workers=1)
    gone = asyncio.create_task(batcher.submit("g", "a"))
    stays = asyncio.create_task(batcher.submit("g", "b"))
    await asyncio.sleep(0)
    gone.cancel()
    desk.open.set()
    assert await stays == "B"


async def test_an_item_that_comes_just_when_the_last_worker_ends_is_still_done() -> None:
    """A worker that found nothing more, but whose task has not been cleared away yet, must not
    count as one that will look again."""
    batcher = Batcher(Desk().run, size=10, workers=1)
    first = asyncio.create_task(batcher.submit("g", "first"))
    await asyncio.sleep(0)  # now the worker is next to run, and after it
    late = asyncio.create_task(batcher.submit("g", "late"))
    assert await asyncio.wait_for(asyncio.gather(first, late), 2) == ["FIRST", "LATE"]


async def test_a_batch_that_fails_fails_each_of_its_items() -> None:
    async def run(_group: str, _items: Sequence[str]) -> Sequence[str | Exception]:
        raise RuntimeError("no")

    batcher = Batcher(run, size=10, workers=1)
    for _ in range(2):  # and the batcher lives on
        with pytest.raises(RuntimeError):
            await batcher.submit("g", "a")
