"""Asks the policies, in batches: may a caller subscribe, publish, read history.

An error of one policy never becomes the problem of another caller: a batch that fails is
repeated item by item.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any, TypeVar
from uuid import UUID

import asyncpg

from rowcast.config import Settings
from rowcast.errors import Refusal
from rowcast.observe import observe

from .batch import Batcher
from .cursor import Position
from .database import UNAVAILABLE, Database
from .feed import message_of
from .model import Caller, Message
from .refusals import INVALID_CHANNEL, Reader, refusal_for, rolled_back

__all__ = ["Access", "Verdict", "patiently"]

# Questions and messages in one batch.
CHECKS = 100
PUBLISHES = 50

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The policies' answer about a subscription; false when it is not allowed.

    Args:
        allowed: whether the caller may subscribe.
        channel_id: the channel row that decided, if there is one.
        code: why a subscription that was allowed before has to end.
    """

    allowed: bool
    channel_id: str | None = None
    code: str = "revoked"

    def __bool__(self) -> bool:
        # A refusal that counts as true would open what it refuses.
        return self.allowed


class Access:
    """Asks for all sessions, and for the doors that publish by HTTP.

    Args:
        database: the caller login; for administrators the functions that ask no policy.
        settings: timeouts, and how many connections there are.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        workers = max(1, settings.pool_size // 2)
        self._checks = Batcher(self._run_checks, size=CHECKS, workers=workers)
        self._publishes = Batcher(self._run_publishes, size=PUBLISHES, workers=workers)

    async def may_subscribe(self, caller: Caller, channel: str) -> Verdict:
        """Whether the policies let the caller see the channel row that governs the name, or the
        row of this pattern.

        Raises:
            Refusal: "unavailable".
        """
        return await patiently(
            self._checks.submit(caller.role, (caller.claims, channel)), self._settings
        )

    async def recheck(
        self, role: str, pairs: Sequence[tuple[str, str]], *, brief: bool = False
    ) -> list[Verdict | None]:
        """Ask again about (claims, channel) pairs, in one query.

        Args:
            role: the role of all of them.
            pairs: different ones.
            brief: give up after a short time.

        Returns:
            A verdict for each; None for all when the query took too long or was broken by one.

        Raises:
            Refusal: "unavailable", the database cannot be asked now.
        """
        try:
            return list(await self._ask(role, pairs, brief=brief))
        except asyncpg.QueryCanceledError:
            return [None] * len(pairs)
        except UNAVAILABLE as error:
            raise refusal_for(error, Reader.SUBSCRIBER) from error
        except asyncpg.PostgresError as error:
            if len(pairs) > 1:
                return [None] * len(pairs)
            observe("policy_error", channel=pairs[0][1], error=error)
            return [Verdict(False, code="unavailable")]

    async def publish(
        self,
        caller: Caller,
        owner: str | None,
        channel: str,
        kind: str,
        event: str,
        payload: str,
        key: UUID | None,
    ) -> UUID:
        """Insert a message as the caller; returns its id once it is committed.

        Args:
            caller: the policies see its claims.
            owner: the session, whose messages stay in order; None when there is no order.
            channel: a channel name.
            kind: "message" or "broadcast".
            event: its event name.
            payload: JSON text.
            key: the client's idempotency key.

        Raises:
            Refusal: denied, wrong, or the database cannot answer.
        """
        item = (caller.claims, channel, kind, event, payload, key)
        return await patiently(self._publishes.submit(caller.role, item, owner), self._settings)

    async def publish_all(
        self, caller: Caller, messages: Sequence[tuple[str, str, str, str, UUID | None]]
    ) -> list[UUID]:
        """Insert messages as the caller in one transaction, all or none; returns their ids.

        Args:
            caller: the policies see its claims.
            messages: (channel, kind, event, payload, key) each, as for `publish`.

        Raises:
            Refusal: one of them is denied or wrong, or the database cannot answer.
        """
        try:
            return await self._database.publish(
                caller.role, [(caller.claims, *message) for message in messages]
            )
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            raise refusal_for(error, Reader.PUBLISHER, messages[0][0]) from error

    async def history(
        self, caller: Caller, channel: str, limit: int, until: Position
    ) -> list[Message]:
        """Return the newest messages that the caller's SELECT policies show.

        Raises:
            Refusal: a policy failed, or the database cannot answer.
        """
        try:
            rows = await self._database.history(caller.role, caller.claims, channel, limit, until)
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            raise refusal_for(error, Reader.SUBSCRIBER, channel) from error
        return [message_of(row) for row in rows]

    async def _run_checks(
        self, role: str, items: Sequence[tuple[str, str]], *, brief: bool = False
    ) -> Sequence[Verdict | Exception]:
        try:
            return await self._ask(role, items, brief=brief)
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            if len(items) > 1 and not isinstance(error, OSError):
                # One of them broke it for all: a policy that takes too long is not caught by
                # the exception blocks in SQL. All at once, so that no one waits for another.
                alone = (self._run_checks(role, [item], brief=True) for item in items)
                return [answer for answers in await asyncio.gather(*alone) for answer in answers]
            if isinstance(error, UNAVAILABLE):
                return [refusal_for(error, Reader.SUBSCRIBER)] * len(items)
            observe("policy_error", channel=items[0][1], error=error)
            return [Verdict(False)] * len(items)

    async def _ask(
        self, role: str, pairs: Sequence[tuple[str, str]], *, brief: bool
    ) -> list[Verdict]:
        claims, channels = [c for c, _ in pairs], [n for _, n in pairs]
        if self._administers(role):
            rows = await asyncio.gather(
                *starmap(self._database.check_subscribe_as_administrator, pairs)
            )
        else:
            rows = await self._database.check_subscribe(role, claims, channels, brief=brief)
        for row in rows:
            if row["error"] and row["error"] != INVALID_CHANNEL:
                observe("policy_error", channel=channels[row["pair"] - 1], error=row["error"])
        return [_verdict(row) for row in rows]

    async def _run_publishes(
        self,
        role: str,
        items: Sequence[tuple[str, str, str, str, str, UUID | None]],
        *,
        brief: bool = False,
    ) -> Sequence[UUID | Exception]:
        if self._administers(role):
            return [await self._publish_as_administrator(*item) for item in items]
        try:
            return await self._database.publish(role, items, brief=brief)
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            if len(items) > 1 and rolled_back(error):
                # One after the other: they keep their order.
                return [
                    answer
                    for item in items
                    for answer in await self._run_publishes(role, [item], brief=True)
                ]
            return [refusal_for(error, Reader.PUBLISHER, items[0][1])] * len(items)

    def _administers(self, role: str) -> bool:
        """Whether policies are not asked. Where a role is among both, the policies decide."""
        facts = self._database.facts.current
        return role in facts.admin_roles and role not in facts.caller_roles

    async def _publish_as_administrator(
        self, claims: str, channel: str, *rest: Any
    ) -> UUID | Exception:
        """Publish as the system: a message of an administrator is the application's."""
        try:
            [message_id] = await self._database.publish_as_administrator(claims, [(channel, *rest)])
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            return refusal_for(error, Reader.PUBLISHER, channel)
        return message_id


async def patiently(answer: Coroutine[Any, Any, Answer], settings: Settings) -> Answer:
    """Wait for an answer long enough for a batch that fails and is repeated item by item.

    Raises:
        Refusal: "unavailable", it did not come.
    """
    try:
        return await asyncio.wait_for(answer, settings.query_timeout * 3)
    except TimeoutError:
        raise Refusal("unavailable") from None


def _verdict(row: asyncpg.Record) -> Verdict:
    channel_id = str(row["channel_id"]) if row["channel_id"] else None
    if row["allowed"]:
        return Verdict(True, channel_id)
    if row["error"] == INVALID_CHANNEL:
        return Verdict(False, None, "invalid_channel")
    if row["error"]:
        # A policy failed: that says nothing about the caller, and shows them nothing either.
        return Verdict(False, channel_id, "unavailable")
    if channel_id is None:
        return Verdict(False, None, "deleted")
    return Verdict(False, channel_id, "revoked" if row["enabled"] else "disabled")
