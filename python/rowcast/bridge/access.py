"""Questions to the policies, in batches, and what their errors mean for a client.

"Denied" is never said when the database is down, and an error of one policy is never another
caller's problem.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
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
from .feed import Feed, message_of
from .hub import Hub
from .model import Caller, Message
from .rest.calls import Administration
from .session import Subscription

__all__ = ["Access", "Verdict"]

CHECKS = 100
PUBLISHES = 50
REPLAYS = 25
STALE_TRIES = 20

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policies say of a subscription.

    Args:
        allowed: whether there may be one.
        channel_id: the row that decided, if there is one.
        code: why one that was allowed before has to end.
    """

    allowed: bool
    channel_id: str | None = None
    code: str = "revoked"

    def __bool__(self) -> bool:
        # A refusal that counts as true would open what it refuses.
        return self.allowed


# Mistakes in a message, by SQLSTATE: ours of sql/30_stamp.sql, and Postgres' for JSON and text.
MISTAKES = {
    "RCN02": "invalid_channel",
    "RCM01": "payload_too_large",
    "RCM02": "invalid_message",
    "RCM03": "invalid_message",
    "22P02": "invalid_message",
    "22P05": "invalid_message",
    "22021": "invalid_message",
    "22003": "invalid_message",
    "54000": "invalid_message",
    "54001": "invalid_message",
}
LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
)
# What is neither a name nor a pattern, where a policy would be asked.
NO_NAME = "RCN02"
# "No such channel" and "denied" answer alike.
DENIALS = {"RCN01", "RCM05"}


@dataclass(frozen=True, slots=True)
class _Replay:
    subscription: Subscription
    after: Position


class Access:
    """Asks for all sessions.

    Args:
        database: the caller login.
        administration: for administrators, of whom no policy is asked.
        settings: timeouts.
        hub: where the bridge stands when a replay begins.
        feed: to wait for after a crash of Postgres.
    """

    def __init__(
        self,
        database: Database,
        administration: Administration,
        settings: Settings,
        hub: Hub,
        feed: Feed,
    ) -> None:
        self._database = database
        self._administration = administration
        self._hub = hub
        self._feed = feed
        # Long enough for a batch that fails and is repeated one by one.
        self._patience = settings.query_timeout * 3
        workers = max(1, settings.pool_size // 2)
        self._checks = Batcher(self._run_checks, size=CHECKS, workers=workers)
        self._publishes = Batcher(self._run_publishes, size=PUBLISHES, workers=workers)
        self._replays = Batcher(self._run_replays, size=REPLAYS, workers=workers)

    async def may_subscribe(self, caller: Caller, channel: str) -> Verdict:
        """Whether the policies let the caller see the channel row that governs the name, or the
        one of this pattern.

        Raises:
            Refusal: "unavailable".
        """
        return await self._patiently(self._checks.submit(caller.role, (caller.claims, channel)))

    async def recheck(
        self, role: str, pairs: Sequence[tuple[str, str]], *, brief: bool = False
    ) -> list[Verdict | None]:
        """Ask again about (claims, channel) pairs, in one query.

        Args:
            role: of all of them.
            pairs: different ones.
            brief: give up after a short time.

        Returns:
            A verdict for each; None for all when the query took too long or was broken by one.

        Raises:
            Refusal: "unavailable", nobody can be asked now.
        """
        try:
            return list(await self._ask(role, pairs, brief=brief))
        except asyncpg.QueryCanceledError:
            return [None] * len(pairs)
        except UNAVAILABLE as error:
            raise unavailable(error) from error
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
            caller: whose claims the policies see.
            owner: the session, whose messages stay in order; None when there is no order.
            channel: a name.
            kind: "message" or "broadcast".
            event: its event name.
            payload: JSON text.
            key: the client's idempotency key.

        Raises:
            Refusal: denied, wrong, or the database cannot answer.
        """
        item = (caller.claims, channel, kind, event, payload, key)
        return await self._patiently(self._publishes.submit(caller.role, item, owner))

    async def publish_all(
        self, caller: Caller, messages: Sequence[tuple[str, str, str, str, UUID | None]]
    ) -> list[UUID]:
        """Insert messages as the caller in one transaction, all or none; returns their ids.

        Args:
            caller: whose claims the policies see.
            messages: (channel, kind, event, payload, key) each, as for `publish`.

        Raises:
            Refusal: one of them is denied or wrong, or the database cannot answer.
        """
        try:
            return await self._database.publish(
                caller.role, [(caller.claims, *message) for message in messages]
            )
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            raise self._refusal(error, messages[0][0]) from error

    async def replay(
        self, subscription: Subscription, after: Position
    ) -> tuple[str, list[Message]]:
        """What the channel got after a position, up to where the bridge stands when it asks.

        What the subscription held until then is dropped, because the replay covers it.

        Returns:
            The state ("complete", "durable", "expired", "too_far") and the messages.

        Raises:
            Refusal: "unavailable".
        """
        return await self._patiently(self._replays.submit("", _Replay(subscription, after)))

    async def history(
        self, caller: Caller, channel: str, limit: int, until: Position
    ) -> list[Message]:
        """The newest messages that the caller's SELECT policies show.

        Raises:
            Refusal: a policy failed, or the database cannot answer.
        """
        try:
            rows = await self._database.history(caller.role, caller.claims, channel, limit, until)
        except UNAVAILABLE as error:
            raise unavailable(error) from error
        except asyncpg.PostgresError as error:
            observe("policy_error", channel=channel, error=error)
            raise Refusal("forbidden") from error
        return [message_of(row) for row in rows]

    async def _patiently(self, answer: Coroutine[Any, Any, Answer]) -> Answer:
        try:
            return await asyncio.wait_for(answer, self._patience)
        except TimeoutError:
            raise Refusal("unavailable") from None

    async def _run_checks(
        self, role: str, items: Sequence[tuple[str, str]], *, brief: bool = False
    ) -> Sequence[Verdict | Exception]:
        try:
            return await self._ask(role, items, brief=brief)
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            if len(items) > 1 and not isinstance(error, OSError):
                # One of them broke it for all: a policy that takes too long is not caught by
                # the exception blocks in SQL. At once, so that the others do not wait for it.
                alone = (self._run_checks(role, [item], brief=True) for item in items)
                return [answer for answers in await asyncio.gather(*alone) for answer in answers]
            if isinstance(error, UNAVAILABLE):
                return [unavailable(error)] * len(items)
            observe("policy_error", channel=items[0][1], error=error)
            return [Verdict(False)] * len(items)

    async def _ask(
        self, role: str, pairs: Sequence[tuple[str, str]], *, brief: bool
    ) -> list[Verdict]:
        claims, channels = [c for c, _ in pairs], [n for _, n in pairs]
        if self._administers(role):
            rows = await asyncio.gather(*starmap(self._administration.check_subscribe, pairs))
        else:
            rows = await self._database.check_subscribe(role, claims, channels, brief=brief)
        for row in rows:
            if row["error"] and row["error"] != NO_NAME:
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
            return [await self._publish_as_system(*item) for item in items]
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
            return [self._refusal(error, items[0][1])] * len(items)

    def _administers(self, role: str) -> bool:
        """Whether no policy is asked. Where a role is among both, the policies decide."""
        facts = self._database.facts.current
        return role in facts.admin_roles and role not in facts.caller_roles

    async def _publish_as_system(self, claims: str, channel: str, *rest: Any) -> UUID | Exception:
        """What an administrator publishes is the application's."""
        try:
            return (await self._administration.publish(claims, [(channel, *rest)]))[0]
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            return self._refusal(error, channel)

    def _moved_on(self, before: Position) -> bool:
        return self._hub.position is not before

    async def _run_replays(
        self, _group: str, items: Sequence[_Replay]
    ) -> Sequence[tuple[str, list[Message]] | Exception]:
        for _ in range(STALE_TRIES):
            until = self._hub.position
            if until is None:
                return [Refusal("unavailable")] * len(items)
            for item in items:
                item.subscription.forget(self._hub.generation)
            try:
                rows = await self._database.replay(
                    [(item.subscription.channel, item.after) for item in items], until
                )
            except (*UNAVAILABLE, asyncpg.PostgresError) as error:
                return [unavailable(error)] * len(items)
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

    @staticmethod
    def _refusal(error: Exception, channel: str) -> Refusal:
        if isinstance(error, UNAVAILABLE):
            return unavailable(error)
        assert isinstance(error, asyncpg.PostgresError)
        state = error.sqlstate or ""
        if state in MISTAKES:
            return Refusal(MISTAKES[state], sentence(error))
        by_policy = getattr(error, "server_source_function", None) == "ExecWithCheckOptions"
        if state not in DENIALS and not by_policy:
            # A policy that fails: for us to read, not for the client.
            observe("policy_error", channel=channel, error=error, sqlstate=state)
        return Refusal("forbidden")


def _verdict(row: asyncpg.Record) -> Verdict:
    channel_id = str(row["channel_id"]) if row["channel_id"] else None
    if row["allowed"]:
        return Verdict(True, channel_id)
    if row["error"] == NO_NAME:
        return Verdict(False, None, "invalid_channel")
    if row["error"]:
        # A policy failed: that says nothing about the caller, and shows him nothing either.
        return Verdict(False, channel_id, "unavailable")
    if channel_id is None:
        return Verdict(False, None, "deleted")
    return Verdict(False, channel_id, "revoked" if row["enabled"] else "disabled")


def rolled_back(error: Exception) -> bool:
    """Whether the server said that nothing of it was done. A connection that was lost says
    nothing: the commit may have been on its way, and a repeat would publish twice."""
    if isinstance(error, asyncpg.InterfaceError):
        return isinstance(error, ValueError)  # an argument that could not even be sent
    return isinstance(error, asyncpg.PostgresError) and not isinstance(error, LOST)


def unavailable(error: Exception) -> Refusal:
    """The refusal for what says nothing about permissions."""
    if isinstance(error, asyncpg.QueryCanceledError):
        return Refusal("unavailable", "A policy took too long: try again.")
    return Refusal("unavailable")


def sentence(error: asyncpg.PostgresError) -> str:
    """What Postgres said and what to do about it, in one line."""
    said = str(error.args[0]).rstrip(".")
    return f"{said[:1].upper()}{said[1:]}." + (f" {error.hint}" if error.hint else "")
