"""Revokes access when data changes: the policies are asked again, and lost subscriptions closed.

A subscription becomes stale by a signal in the feed (`rowcast.recheck`, an attached table, a
channel row), by a new token, or when the feed's connection was lost. Signals are read before the
messages of the same drain, and a stale subscription holds its messages back until the policies
have answered. So no message that was published after a revoking commit reaches a client that it
revoked, and other subscriptions are not held up. Besides, all subscriptions are rechecked at an
interval, without holding messages.

Questions go in batches over one connection. A question that cannot be answered is repeated. A
subscription that stays stale for too long is closed as `unavailable`: its client comes back with
its cursor and misses no message that it may have.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from rowcast.config import Settings
from rowcast.errors import Refusal
from rowcast.observe import metrics, observe

from .access import Access, Verdict
from .feed import Feed
from .hub import Hub
from .names import is_pattern
from .session import Session
from .subscription import State, Subscription
from .wire.protocol import Closed

__all__ = ["Question", "Revocation"]

# Different questions in a batch, and subscriptions that one batch may answer.
QUESTIONS = 200
ANSWERS = 2000
BURST = 500
# Close a subscription that has been stale for this many query timeouts.
PATIENCE = 2
# Sweeps in one interval, so that no subscription is rechecked later than that.
SWEEPS = 3
# Seconds until a question is repeated that could not be answered.
PAUSE = 0.2
PAUSE_MAX = 2.0


@dataclass(frozen=True, slots=True)
class Question:
    """A question to the policies; its answer holds for all messages that were read before it.

    Args:
        marks: `stale_marks` of the subscription when it was asked.
        next_generation: the hub's, likewise.
    """

    marks: int
    next_generation: int


Asked = list[tuple[Session, Subscription, Question]]


class Revocation:
    """Asks the policies about subscriptions, and again when that is necessary.

    Args:
        settings: the interval, and how long a query may take.
        hub: finds subscriptions, and ends those that are not allowed any more.
        feed: tells whether the database can be reached.
        access: asks the policies.
    """

    def __init__(self, settings: Settings, hub: Hub, feed: Feed, access: Access) -> None:
        self._interval = settings.recheck_interval
        self._patience = settings.query_timeout * PATIENCE
        self._buffer = settings.buffer_bytes
        self._hub = hub
        self._feed = feed
        self._access = access
        self._urgent: dict[Subscription, Session] = {}
        self._routine: dict[Subscription, Session] = {}
        # subscriptions of a batch that failed: asked one by one, beside the batches
        self._alone: dict[Subscription, Session] = {}
        self._since: dict[Subscription, tuple[Session, float]] = {}
        self._taken = 0
        self._stirred = asyncio.Event()
        self._stirred_alone = asyncio.Event()
        self._back = asyncio.Event()

    # Reasons to ask again

    def signal(self, kind: str, body: dict[str, Any]) -> None:
        """Take a signal of the feed, before the messages that were read with it.

        Args:
            kind: "recheck", "channel" or "kick"; other kinds are not for this class.
            body: what the signal holds.
        """
        if kind == "recheck":
            for of in body["of"]:
                self._mark_all(self._hub.affected_by(of.get("user"), of.get("channel")))
        elif kind == "channel":
            for pattern in body["patterns"]:
                self._mark_all(self._hub.affected_by(None, pattern), anew=True)
        elif kind == "kick":
            for session in self._hub.sessions_of(body["user"]):
                session.close("recalled" if body.get("reconnect") else "kicked")

    def recheck_all(self) -> None:
        """Recheck everything: the connection of the feed was lost, with signals perhaps."""
        self._since.clear()
        self._back.set()  # the database can be reached again
        self._mark_all(self._hub.affected_by(None, None), anew=True)

    def claims_changed(self, session: Session) -> None:
        """Recheck a session that has a token with other claims."""
        for subscription in list(session.subscriptions.values()):
            self.mark_stale(session, subscription)

    def mark_stale(self, session: Session, subscription: Subscription) -> None:
        """Hold the subscription's messages back until the policies have answered."""
        if subscription.mark_stale():
            self._queue(session, subscription)

    def _queue(self, session: Session, subscription: Subscription) -> None:
        self._since.setdefault(subscription, (session, time.monotonic()))
        self._alone.pop(subscription, None)
        self._urgent[subscription] = session
        self._stirred.set()

    def _mark_all(
        self, concerned: Iterable[tuple[Session, Subscription]], *, anew: bool = False
    ) -> None:
        for session, subscription in concerned:
            if anew and is_pattern(subscription.channel):
                self._hub.unbind_pattern(subscription.channel)
            self.mark_stale(session, subscription)

    def congested(self) -> bool:
        """Whether some stale subscription holds half of what it may hold."""
        return any(subscription.held_bytes * 2 > self._buffer for subscription in self._since)

    # Answers

    async def ask(self, session: Session, subscription: Subscription) -> tuple[Question, Verdict]:
        """Ask the policies about one subscription, with the claims of this moment.

        Raises:
            Refusal: "unavailable".
        """
        asked = self.question(subscription)
        caller = session.authenticated()
        return asked, await self._access.may_subscribe(caller, subscription.channel)

    def question(self, subscription: Subscription) -> Question:
        """Note what the answer to a question that is asked now will hold for."""
        return Question(subscription.stale_marks, self._hub.next_generation)

    def allowed(
        self, session: Session, subscription: Subscription, asked: Question, verdict: Verdict
    ) -> bool:
        """Let the messages of a subscription flow that the policies have allowed.

        If it became stale again after the question, only those that were read before it.

        Returns:
            Whether something held back was written.
        """
        self._since.pop(subscription, None)
        if not subscription.allow(time.monotonic(), asked.marks):
            self._queue(session, subscription)
            return self._hub.release(session, subscription, asked.next_generation)
        if is_pattern(subscription.channel):
            self._hub.bind_pattern(subscription.channel, verdict.channel_id)
        return self._hub.release(session, subscription)

    def _answer(
        self, session: Session, subscription: Subscription, asked: Question, verdict: Verdict
    ) -> None:
        if not self._current(session, subscription) or subscription.state is State.PENDING:
            return  # left, or being subscribed anew: then that answer decides
        if verdict.allowed:
            self.allowed(session, subscription, asked, verdict)
        else:
            self._close(session, subscription, verdict.code)

    def _close(self, session: Session, subscription: Subscription, code: str) -> None:
        self._since.pop(subscription, None)
        self._hub.leave(session, subscription.channel)
        metrics.closed.labels(code).inc()
        observe("closed", session=session.id, channel=subscription.channel, code=code)
        session.tell(Closed(subscription.channel, code))

    @staticmethod
    def _current(session: Session, subscription: Subscription) -> bool:
        return session.subscriptions.get(subscription.channel) is subscription

    # Asking

    async def run(self) -> None:
        """Ask for ever; returns only when cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for work in (self._batches, self._singles, self._sweeps, self._deadlines):
                tasks.create_task(work())

    async def _batches(self) -> None:
        pause = PAUSE
        while True:
            taken = self._take()
            if taken is None:
                self._stirred.clear()
                await self._stirred.wait()
                continue
            role, batch = taken
            try:
                verdicts = await self._access.recheck(role, list(batch))
            except Refusal:
                # The policies cannot be asked now. Stale subscriptions stay stale.
                self._put_back(batch.values())
                self._back.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._back.wait()
                pause = min(pause * 2, PAUSE_MAX)
                continue
            pause = PAUSE
            metrics.rechecks.inc(len(batch))
            for verdict, asked in zip(verdicts, batch.values(), strict=True):
                if verdict is None:
                    self._alone.update({s: session for session, s, _ in asked})
                    self._stirred_alone.set()
                    continue
                for entry in asked:
                    self._answer(*entry, verdict)
            await asyncio.sleep(0)

    def _take(self) -> tuple[str, dict[tuple[str, str], Asked]] | None:
        """Return a role and its next batch: (claims, channel) → subscriptions that wait for it."""
        self._taken += 1
        # Stale ones go first three times out of four, so that a storm does not stop the sweeps.
        queues = (self._urgent, self._routine) if self._taken % 4 else (self._routine, self._urgent)
        for queue in queues:
            role = ""
            batch: dict[tuple[str, str], Asked] = {}
            taken: list[Subscription] = []
            # Subscriptions that hold messages go before those that do not.
            pressing = [entry for entry in queue.items() if entry[0].held]
            for subscription, session in chain(
                pressing, (entry for entry in queue.items() if not entry[0].held)
            ):
                caller = session.caller
                if caller is None or not self._current(session, subscription):
                    taken.append(subscription)
                    continue
                role = role or caller.role
                if caller.role != role:
                    continue
                key = (caller.claims, subscription.channel)
                if len(taken) == ANSWERS or (key not in batch and len(batch) == QUESTIONS):
                    break
                entry = (session, subscription, self.question(subscription))
                batch.setdefault(key, []).append(entry)
                taken.append(subscription)
            for subscription in taken:
                del queue[subscription]
            if batch:
                return role, batch
        return None

    def _put_back(self, asked: Iterable[Asked]) -> None:
        for entries in asked:
            for session, subscription, _ in entries:
                queue = self._urgent if subscription.stale else self._routine
                queue[subscription] = session

    async def _singles(self) -> None:
        while True:
            if not self._alone:
                self._stirred_alone.clear()
                await self._stirred_alone.wait()
            subscription, session = next(iter(self._alone.items()))
            del self._alone[subscription]
            caller = session.caller
            if caller is None or not self._current(session, subscription):
                continue
            asked = self.question(subscription)
            pair = (caller.claims, subscription.channel)
            try:
                # Other subscriptions must not wait for a policy that never ends.
                [verdict] = await self._access.recheck(caller.role, [pair], brief=bool(self._alone))
            except Refusal:
                verdict = None
                await asyncio.sleep(PAUSE)
            if verdict is not None:
                self._answer(session, subscription, asked, verdict)
            elif self._current(session, subscription):
                if not subscription.stale:
                    self.mark_stale(session, subscription)
                    self._urgent.pop(subscription, None)
                if subscription.stale and subscription not in self._urgent:
                    self._alone[subscription] = session

    async def _sweeps(self) -> None:
        while True:
            await asyncio.sleep(self._interval / SWEEPS)
            before = time.monotonic() - self._interval / SWEEPS
            for swept, session in enumerate(list(self._hub.sessions), 1):
                for subscription in session.subscriptions.values():
                    if subscription.state is State.LIVE and subscription.checked <= before:
                        self._routine[subscription] = session
                if swept % BURST == 0:
                    self._stirred.set()
                    await asyncio.sleep(0)
            self._stirred.set()

    async def _deadlines(self) -> None:
        """Close subscriptions that were stale for too long. While the feed is lost, nothing is
        delivered anyway, so their clients may as well wait for it."""
        while True:
            await asyncio.sleep(min(PAUSE, self._patience / 4))
            if not self._feed.up.is_set():
                continue
            late = time.monotonic() - self._patience
            for subscription, (session, since) in list(self._since.items()):
                if not self._current(session, subscription):
                    del self._since[subscription]
                elif since < late and subscription.state is State.LIVE:
                    self._close(session, subscription, "unavailable")
