"""The outbox: claims webhook deliveries, sends them, and records the outcome of each.

A claim is a lease in the database, so a delivery is not lost with this process: when the lease is
over, another bridge claims it and sends it again under the same `webhook-id`. Any number of
bridges share the work.

Claims and outcomes travel in batches beside the requests and do not hold them up: a claim is made
when requests can be begun again, and outcomes that come within a moment are recorded together.
Claimed deliveries are begun in small portions, so that a receiver that answers at once needs few
connections: of hundreds of requests at a time each costs half as much again, and they hold up
everything else in this process.
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

from rowcast.bridge.backoff import Backoff
from rowcast.bridge.database import UNAVAILABLE, Database
from rowcast.bridge.model import Delivery, Message, Response
from rowcast.config import Settings
from rowcast.observe import metrics, observe

from .egress import Sender
from .signing import headers

__all__ = ["Outbox"]

# Seconds until a claim is made without a reason.
POLL = 5.0
# Seconds between claims under load, so that they are fewer and larger.
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
# Seconds at the end to record outcomes, also where requests themselves get no time.
LAST_WORDS = 2.0
# A lease outlasts a request twice over, and a margin for the database.
LEASE_MARGIN = 5.0

Outcome = tuple[Delivery, Response]


class Outbox:
    """Sends what is due, as many requests at a time as the settings allow.

    Args:
        database: leases deliveries and takes their outcomes.
        sender: sends requests.
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
        # claimed and not begun, each with the time until which a request may still be begun
        self._waiting: deque[tuple[float, Delivery]] = deque()
        self._claimed = asyncio.Event()
        self._flying: dict[asyncio.Task[None], Delivery] = {}
        self._busy: Counter[UUID] = Counter()
        self._touched: set[UUID] = set()
        self._outcomes: list[Outcome] = []
        self._noted = asyncio.Event()
        self._woken = asyncio.Event()
        self._channels: frozenset[str] | None = None  # channels with endpoints, once known
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
        """Stop claiming; return when all deliveries have ended or were given back."""
        self._ending = True
        self._woken.set()
        await self._ended.wait()

    async def _claim(self) -> None:
        backoff, pace = Backoff(), PACE
        while not self._ending:
            self._woken.clear()
            began = time.monotonic()
            try:
                wait = await self._claim_once()
                backoff.reset()
                # The reason to wake may be an endpoint that is busy: ask less often then.
                pace = PACE if wait == 0 else min(pace * 2, PACE_MAX)
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                observe("outbox_lost", error=error)
                wait = backoff.next()
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._woken.wait()
            # Deliveries that come in between are claimed together.
            await asyncio.sleep(max(0.0, began + pace - time.monotonic()))

    async def _claim_once(self) -> float:
        """Claim what is due; returns the seconds until more is."""
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
        seconds, self._channels = await self._database.next_delivery(self._busy)
        most = POLL * (0.5 + random.random() / 2)
        return most if seconds is None else min(most, max(seconds, 0.0))

    async def _begin(self) -> None:
        """Begin claimed deliveries, a portion for each turn of the event loop."""
        while await self._claimed.wait() and not self._ending:
            for _ in range(min(PORTION, len(self._waiting))):
                until, delivery = self._waiting.popleft()
                if time.monotonic() > until:
                    # This process or the network stood still: another bridge may send it by now.
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
            # The lease runs out and counts as an attempt, so this does not repeat for ever.
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
        """Record all outcomes; an outcome is forgotten only once the database has it."""
        backoff = Backoff()
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
                        return  # another bridge has claimed them by now, and sends them again
                    await asyncio.sleep(backoff.next())
                    continue
                metrics.webhooks_lost.inc(len(outcomes) - held)
                return

    async def _move_marks(self) -> None:
        while True:
            began = time.monotonic()
            touched, self._touched = self._touched, set()
            try:
                await self._database.move_claim_marks(list(touched))
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                self._touched |= touched
                observe("outbox_lost", error=error)
            await asyncio.sleep(max(MARKS, 20 * (time.monotonic() - began)))

    async def _shut_down(self) -> None:
        """Wait for requests under way; give back those that take too long or were not begun."""
        # At once, so that another bridge need not wait for the receivers that this one waits for.
        waiting = [delivery for _, delivery in self._waiting]
        self._waiting.clear()
        back = asyncio.create_task(self._give_back(waiting))
        await asyncio.wait({back, *self._flying}, timeout=self._grace)
        cut_off = dict(self._flying)
        for task in cut_off:
            task.cancel()
        await asyncio.wait({back, *cut_off})
        await self._in_time(self._settle_noted())
        # The outcomes of some may just have been recorded; those are no longer held.
        await self._give_back(list(cut_off.values()))

    async def _give_back(self, deliveries: list[Delivery]) -> None:
        if deliveries:
            await self._in_time(self._database.return_deliveries(self._worker, deliveries))

    async def _in_time(self, work: Awaitable[None]) -> None:
        """Do it if the database answers soon; otherwise the leases run out."""
        try:
            async with asyncio.timeout(self._last_words):
                await work
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            observe("outbox_lost", error=error)


def _success(answer: Response) -> bool:
    return answer.status is not None and 200 <= answer.status < 300
