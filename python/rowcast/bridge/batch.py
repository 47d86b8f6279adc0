"""Collects many small questions into few large ones: round trips are the cost, not policies."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Batcher"]

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item, Answer]):
    item: Item
    owner: Hashable | None
    answer: asyncio.Future[Answer]


class Batcher(Generic[Item, Answer]):
    """Collects items while earlier ones are under way, and runs them in groups.

    Items of one owner are never in two batches at a time, so they are done in their order.

    Args:
        run: does one batch of a group; returns an answer, or an exception, per item.
        size: items in a batch.
        workers: batches at a time.
    """

    def __init__(
        self,
        run: Callable[[str, Sequence[Item]], Awaitable[Sequence[Answer | Exception]]],
        *,
        size: int,
        workers: int,
    ) -> None:
        self._run = run
        self._size = size
        self._workers = workers
        self._groups: dict[str, deque[_Waiting[Item, Answer]]] = {}
        self._busy: set[Hashable] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._working = 0

    async def submit(self, group: str, item: Item, owner: Hashable | None = None) -> Answer:
        """Add an item and wait for its answer.

        Args:
            group: only items of one group share a batch.
            item: what `run` gets.
            owner: items of one owner stay in order.

        Raises:
            Exception: what `run` returned or raised for it.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._groups.setdefault(group, deque()).append(_Waiting(item, owner, answer))
        self._start()
        return await answer

    def _start(self) -> None:
        if self._groups and self._working < self._workers:
            self._working += 1
            task = asyncio.create_task(self._work())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self) -> None:
        # Counted down in the very step that finds no more items: the task itself ends one turn
        # of the loop later, and an item submitted in between would wait without a worker.
        try:
            while taken := self._take():
                await self._do(*taken)
        finally:
            self._working -= 1

    async def _do(self, group: str, batch: list[_Waiting[Item, Answer]]) -> None:
        owners = {entry.owner for entry in batch} - {None}
        self._busy |= owners
        try:
            answers = await self._run(group, [entry.item for entry in batch])
        except Exception as error:
            answers = [error] * len(batch)
        finally:
            self._busy -= owners
        for entry, answer in zip(batch, answers, strict=True):
            if entry.answer.done():
                continue  # cancelled: its caller does not wait any more
            if isinstance(answer, Exception):
                entry.answer.set_exception(answer)
            else:
                entry.answer.set_result(answer)

    def _take(self) -> tuple[str, list[_Waiting[Item, Answer]]] | None:
        for group in list(self._groups):
            waiting = self._groups.pop(group)
            batch: list[_Waiting[Item, Answer]] = []
            left: deque[_Waiting[Item, Answer]] = deque()
            while waiting and len(batch) < self._size:
                entry = waiting.popleft()
                (left if entry.owner in self._busy else batch).append(entry)
            waiting.extendleft(reversed(left))
            if waiting:
                self._groups[group] = waiting  # now the last group, so that each has its turn
            if batch:
                return group, batch
        return None
