"""The outbox: claims webhook deliveries, sends them, and notes what came of each.

A claim is a lease in the database, so nothing is lost with this process: what it had is claimed by
somebody else when the lease is over, and sent again under the same `webhook-id`. Any number of
bridges share the work.

Claims and outcomes travel in batches beside the requests, never in their way: a claim is made
when there is room again, and outcomes that come within a moment are noted together. What was
claimed is begun in small portions, so that a receiver that answers at once needs few connections:
hundreds of requests at a time cost half as much again, each, and hold up everything else here.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Collection, Iterable
from uuid import UUID, uuid4

import asyncpg

from rowcast.bridge.database import UNAVAILABLE, Database
from rowcast.bridge.model import Delivery, Message, Response
from rowcast.config import Settings
from rowcast.observe import metrics, observe

from .egress import Sender
from .signing import headers

__all__ = ["Outbox"]

# Seconds until a claim is made although nothing suggests it.
POLL = 5.0
# Seconds between claims under load: fewer and larger ones.
PACE = 0.01
PACE_MAX = 0.03
# Deliveries of one claim.
BATCH = 200
# Requests begun before answers are looked at.
PORTION = 16
# Seconds in which outcomes are gathered.
GATHER = 0.02
# Seconds between calls that move the marks; slower where they take long.
MARKS = 5.0
BACKOFF_MAX = 5.0
# Seconds at the end to note what came of requests, also where they themselves get none.
LAST_WORDS = 2.0
# A lease outlasts a request twice over, and a margin for the database.
LEASE_MARGIN = 5.0

Outcome = tuple[Delivery, Response]


class Outbox:
    """Sends what is due, as many requests at a time as the settings allow.

    Args:
        database: where to claim and settle.
        sender: how to send.
        settings: concurrency and timeouts.
    """

    def __init__(self, database: Database, sender: Sender, settings: Settings) -> None:
        self._database = database
        self._sender = sender
        self._worker = uuid4()
        self._most = settings.webhook_concurrency
        self._lease = 2 * settings.webhook_timeout + LEASE_MARGIN
        self._fresh = self._lease - settings.webhook_timeout
        self._grace = settings.drain_timeout
        self._last_words = max(self._grace, LAST_WORDS)
        # Claimed and not begun, with the time until which there is time for a request.
        self._waiting: deque[tuple[float, Delivery]] = deque()
        self._claimed = asyncio.Event()
        self._flying: dict[asyncio.Task[None], Delivery] = {}
        self._busy: Counter[UUID] = Counter()
        self._touched: set[UUID] = set()
        self._outcomes: list[Outcome] = []
        self._noted = asyncio.Event()
        self._woken = asyncio.Event()
        self._channels: frozenset[str] | None = None  # those with endpoints, once known
        self._settling = asyncio.Lock()
        self._ending = False
        self._ended = asyncio.Event()
        self._ended.set()

    def wake_for(
        self, messages: Iterable[Message], signals: Collection[tuple[str, object]]
    ) -> None:
        """Claim soon if what the feed read may be due to be sent."""
        if self._woken.is_set():
            return
        if (
            any(kind == "webhooks" for kind, _ in signals)
            or self._channels is None
            or not self._channels.isdisjoint(
                message.channel_id for message in messages if message.type == "message"
            )
        ):
            self._woken.set()

    async def run(self) -> None:
        """Send until `finish`; returns only when cancelled."""
        if self._most == 0:
            await asyncio.Event().wait()
        self._ended.clear()
        try:
            async with self._sender, asyncio.TaskGroup() as group:
                helpers = [
                    group.create_task(work())
                    for work in (self._begin, self._settle, self._move_marks)
                ]
                await self._claim()
                await self._shut_down()
                for helper in helpers:
                    helper.cancel()
        finally:
            self._ended.set()
        await asyncio.Event().wait()

    async def finish(self) -> None:
        """Claim nothing more; return when what was under way has ended or was given back."""
        self._ending = True
        self._woken.set()
        await self._ended.wait()

    async def _claim(self) -> None:
        backoff, pace = 0.1, PACE
        while not self._ending:
            self._woken.clear()
            began = time.monotonic()
            try:
                wait = await self._claim_once()
                backoff = 0.1
                # What wakes us may be for endpoints that have no room: ask less often then.
                pace = PACE if wait == 0 else min(pace * 2, PACE_MAX)
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                observe("outbox_lost", error=error)
                wait = backoff * (0.5 + random.random())
                backoff = min(backoff * 2, BACKOFF_MAX)
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._woken.wait()
            # Whatever comes in between is claimed together.
            await asyncio.sleep(max(0.0, began + pace - time.monotonic()))

    async def _claim_once(self) -> float:
        """Claim what there is; returns how long there is nothing to do."""
        free = self._most - len(self._flying) - len(self._waiting)
        if free <= 0:
            return POLL  # woken when a request has ended
        until = time.monotonic() + self._fresh
        claimed = await self._database.claim_deliveries(
            self._worker, min(free, BATCH), self._lease, self._busy
        )
        for delivery in claimed:
            self._busy[delivery.endpoint_id] += 1
            self._touched.add(delivery.endpoint_id)
        if claimed:
            self._waiting.extend((until, delivery) for delivery in claimed)
            self._claimed.set()
            return 0.0
        seconds, self._channels = await self._database.delivery_outlook(self._busy)
        most = POLL * (0.5 + random.random() / 2)
        return most if seconds is None else min(most, max(seconds, 0.0))

    async def _begin(self) -> None:
        """Begin what was claimed, a portion for each time the loop looks at its sockets."""
        while await self._claimed.wait() and not self._ending:
            for _ in range(min(PORTION, len(self._waiting))):
                until, delivery = self._waiting.popleft()
                if time.monotonic() > until:
                    # This process or the network stood still: somebody else may send it by now.
                    self._release(delivery)
                    continue
                task = asyncio.create_task(self._deliver(delivery))
                self._flying[task] = delivery
                task.add_done_callback(self._landed)
            if not self._waiting:
                self._claimed.clear()
            await asyncio.sleep(0)

    async def _deliver(self, delivery: Delivery) -> None:
        if delivery.body is None:
            answer = Response(0, error="message_deleted")
        else:
            answer = await self._sender.post(
                delivery.url, delivery.body, headers(delivery, int(time.time()))
            )
            metrics.webhooks.labels("delivered" if _success(answer) else "failed").inc()
        self._outcomes.append((delivery, answer))
        self._noted.set()

    def _landed(self, task: asyncio.Task[None]) -> None:
        delivery = self._flying.pop(task)
        self._release(delivery)
        if not task.cancelled() and (error := task.exception()) is not None:
            # The lease runs out and counts as an attempt, so this ends.
            observe("internal_error", error=repr(error), delivery=delivery.id)

    def _release(self, delivery: Delivery) -> None:
        self._busy[delivery.endpoint_id] -= 1
        if not self._busy[delivery.endpoint_id]:
            del self._busy[delivery.endpoint_id]
        self._woken.set()

    async def _settle(self) -> None:
        while True:
            await self._noted.wait()
            await asyncio.sleep(GATHER)
            await self._settle_noted()

    async def _settle_noted(self) -> None:
        """Note all outcomes; an outcome is forgotten only once the database has it."""
        backoff = 0.1
        deadline = time.monotonic() + self._lease
        async with self._settling:
            self._noted.clear()
            outcomes, self._outcomes = self._outcomes, []
            while outcomes:
                try:
                    held = await self._database.settle_deliveries(self._worker, outcomes)
                except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                    observe("outbox_lost", error=error)
                    if time.monotonic() > deadline:
                        return  # somebody else has claimed them by now, and sends them again
                    await asyncio.sleep(backoff * (0.5 + random.random()))
                    backoff = min(backoff * 2, BACKOFF_MAX)
                    continue
                metrics.webhooks_lost.inc(len(outcomes) - held)
                return

    async def _move_marks(self) -> None:
        while True:
            began = time.monotonic()
            touched, self._touched = self._touched, set()
            try:
                await self._database.raise_marks(list(touched))
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                self._touched |= touched
                observe("outbox_lost", error=error)
            await asyncio.sleep(max(MARKS, 20 * (time.monotonic() - began)))

    async def _shut_down(self) -> None:
        """Wait for what is under way; what takes too long or was not begun is given back."""
        # Now: another bridge need not wait for the receivers that this one waits for.
        waiting = [delivery for _, delivery in self._waiting]
        self._waiting.clear()
        back = asyncio.create_task(self._give_back(waiting))
        await asyncio.wait({back, *self._flying}, timeout=self._grace)
        cut_off = dict(self._flying)
        for task in cut_off:
            task.cancel()
        await asyncio.wait({back, *cut_off})
        await self._in_time(self._settle_noted())
        # Of these some may just have been noted; those are no longer held.
        await self._give_back(list(cut_off.values()))

    async def _give_back(self, deliveries: list[Delivery]) -> None:
        if deliveries:
            await self._in_time(self._database.return_deliveries(self._worker, deliveries))

    async def _in_time(self, work: Awaitable[None]) -> None:
        """Do it if the database answers soon; the leases run out otherwise."""
        try:
            async with asyncio.timeout(self._last_words):
                await work
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            observe("outbox_lost", error=error)


def _success(answer: Response) -> bool:
    return answer.status is not None and 200 <= answer.status < 300
