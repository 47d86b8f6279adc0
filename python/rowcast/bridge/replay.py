"""Reads what channels got since a client's cursor, many replays in one query."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import asyncpg

from rowcast.config import Settings
from rowcast.errors import Refusal

from .access import patiently
from .batch import Batcher
from .cursor import Position
from .database import UNAVAILABLE, Database
from .feed import Feed, message_of
from .hub import Hub
from .model import Message
from .refusals import Reader, refusal_for
from .subscription import Subscription

__all__ = ["Replays"]

# Replays in one batch.
REPLAYS = 25
# Attempts after a crash of Postgres, until the feed stands at a position of the new boot.
STALE_TRIES = 20


@dataclass(frozen=True, slots=True)
class _Replay:
    subscription: Subscription
    after: Position


class Replays:
    """Replays for all sessions.

    Args:
        database: the bridge login.
        settings: timeouts, and how many connections there are.
        hub: where the bridge stands when a replay begins.
        feed: waited for after a crash of Postgres.
    """

    def __init__(self, database: Database, settings: Settings, hub: Hub, feed: Feed) -> None:
        self._database = database
        self._settings = settings
        self._hub = hub
        self._feed = feed
        workers = max(1, settings.pool_size // 2)
        self._replays = Batcher(self._run, size=REPLAYS, workers=workers)

    async def start_of(self, subscription: Subscription) -> Position:
        """Wait until what was being delivered when a subscription joined is behind it.

        Returns:
            Where the subscription begins: it gets everything from there on.

        Raises:
            Refusal: "unavailable", the feed does not move.
        """
        try:
            async with asyncio.timeout(self._settings.query_timeout), self._feed.drained:
                await self._feed.drained.wait_for(lambda: subscription.start is not None)
        except TimeoutError:
            raise Refusal("unavailable") from None
        assert subscription.start is not None
        return subscription.start

    async def read(
        self, subscription: Subscription, cursor: str, subject: str
    ) -> tuple[str, list[Message]]:
        """Return what the channel got since a cursor, up to where the bridge stands by then.

        What the subscription held until then is dropped, because the replay covers it.

        Args:
            subscription: joined, so that it gets what comes after the replay.
            cursor: the client's.
            subject: it must have been signed for this one.

        Returns:
            The state ("complete", "durable", "expired", "too_far", "invalid_cursor") and the
            messages. An invalid cursor counts as none, and the client must know that it starts
            anew.

        Raises:
            Refusal: "unavailable".
        """
        key = self._database.facts.current.cursor_key
        after = key.read(cursor, subject) if key is not None else None
        if after is None:
            return "invalid_cursor", []
        answer = self._replays.submit("", _Replay(subscription, after))
        return await patiently(answer, self._settings)

    async def _run(
        self, _group: str, items: Sequence[_Replay]
    ) -> Sequence[tuple[str, list[Message]] | Exception]:
        for _ in range(STALE_TRIES):
            until = self._hub.position
            if until is None:
                return [Refusal("unavailable")] * len(items)
            for item in items:
                item.subscription.drop_held(self._hub.generation)
            try:
                rows = await self._database.replay(
                    [(item.subscription.channel, item.after) for item in items], until
                )
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                return [self._refusal(error)] * len(items)
            if rows[0]["state"] != "stale":
                break
            # Postgres crashed and our position is from before: the feed will notice, or just did.
            async with self._feed.drained:
                await self._feed.drained.wait_for(partial(self._moved_on, until))
        else:
            return [Refusal("unavailable")] * len(items)
        answers: list[tuple[str, list[Message]]] = []
        for row in rows:
            if row["state"]:
                answers.append((row["state"], []))
            else:
                answers[-1][1].append(message_of(row))
        return answers

    def _moved_on(self, before: Position) -> bool:
        return self._hub.position is not before

    @staticmethod
    def _refusal(error: Exception) -> Refusal:
        # No policy is asked here, so also an error of the statement says nothing about the caller.
        if isinstance(error, UNAVAILABLE):
            return refusal_for(error, Reader.SUBSCRIBER)
        return Refusal("unavailable")
