"""A channel as applications see it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from .channels import EVENTS, Join, Joins, Phase
from .dispatch import Callback, Inbox
from .frames import Message, RealtimeError
from .presence import Presences

__all__ = ["Channel"]

Publish = Callable[[str, dict[str, Any], Any], Awaitable[str]]


class Channel:
    """One channel by its name, as `Realtime.channel` makes it; all of one name are the same.

    `on("message")` hears every message of type `message`, `on("<event>")` that event, `on("*")`
    all; the callback gets the `Message`. `on("error")` gets a `RealtimeError`. `on("closed")`,
    `on("deleted")`, `on("resync")` and `on("subscribed")` get a dict, and so does
    `on("presence")`: `{"type": "join" | "update" | "leave", "key", "presence"}`.

    A channel to which no callback for messages listens keeps them for `async for`. When too many
    wait, the client stops reading until some were taken: iterate it, or unsubscribe.
    """

    def __init__(
        self,
        name: str,
        joins: Joins,
        presences: Presences,
        publish: Publish,
        timeout: float,
        inbox: Callable[[], Inbox],
    ) -> None:
        self._name = name
        self._joins = joins
        self._presences = presences
        self._publish = publish
        self._timeout = timeout
        self._inbox = inbox

    def __repr__(self) -> str:
        return f"<Channel {self._name!r} {self._join.phase.value}>"

    @property
    def name(self) -> str:
        return self._name

    @property
    def subscribed(self) -> bool:
        """Whether the server has confirmed, on the present connection."""
        return self._join.phase is Phase.JOINED

    @property
    def _join(self) -> Join:
        return self._joins.find(self._name) or Join(self._name)

    def on(self, kind: str, callback: Callback) -> Channel:
        """Call this for each message or event of the kind, in order; it may be asynchronous."""
        join = self._joins.of(self._name)
        join.listeners.add(kind, callback)
        if kind not in EVENTS and join.inbox is not None and not join.inbox.used:
            join.inbox.close()
            join.inbox = None
        return self

    def off(self, kind: str, callback: Callback | None = None) -> Channel:
        """Remove a callback, or all of a kind."""
        join = self._join
        join.listeners.remove(kind, callback)
        self._joins.settle(join)
        return self

    async def subscribe(
        self, *, history: int = 0, echo: bool = True, after: str | None = None
    ) -> Channel:
        """Subscribe, and return when the server has confirmed.

        Args:
            history: how many earlier messages to ask for.
            echo: whether this client hears what it sends itself.
            after: a cursor to go on from; the one given to `connect` by default.

        Raises:
            RealtimeError: the server refused, or did not answer in time.
        """
        join = self._joins.of(self._name)
        if join.phase is Phase.IDLE:
            join.history, join.echo, join.after = history, echo, after
        confirmed = self._joins.want(join)
        join.waiting += 1
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.shield(confirmed)
        except TimeoutError:
            text = f"The subscription of {self._name} was not answered in time."
            raise RealtimeError("timeout", text, channel=self._name) from None
        finally:
            join.waiting -= 1
            # Given up, or cancelled: nobody would read what came.
            if not join.waiting and not confirmed.done():
                self._joins.leave(join)
        return self

    async def unsubscribe(self) -> None:
        """Leave the channel. Callbacks stay; `async for` ends."""
        join = self._join
        if join.phase is not Phase.IDLE:
            self._joins.leave(join)

    async def send(
        self,
        event: str,
        payload: Any = None,
        *,
        type: str = "message",  # noqa: A002 (the wire's word)
        id: str | None = None,  # noqa: A002
    ) -> str:
        """Publish, and return the message's id once it is committed.

        One need not be subscribed. What is sent while there is no connection waits for it, and
        what was not answered before a connection was lost is sent again under the same key: it
        lands once.

        Args:
            event: its event name.
            payload: anything that can be written as JSON.
            type: `message` is kept and replayed, `broadcast` is for those who listen now.
            id: the idempotency key, a UUID; one is made by default.

        Raises:
            RealtimeError: it was refused; with code `timeout` it may have been stored, and
                sending it again with the error's `id` is safe.
        """
        key = str(uuid.uuid4()) if id is None else str(id)
        head = {"op": "publish", "channel": self._name, "type": type, "event": event, "id": key}
        return await self._publish(key, head, payload)

    async def track(self, state: Mapping[str, Any]) -> None:
        """Show this user as present, in a state that all subscribers see.

        Subscribes if needed, until `untrack`. Call it as often as the state changes: of what is
        still to be sent only the newest is. After a reconnect it is sent again.

        Args:
            state: what can be written as a JSON object.

        Raises:
            RealtimeError: the server refused, or did not answer in time.
        """
        await self._presences.track(self._name, state)

    async def untrack(self) -> None:
        """Show this user no more.

        Raises:
            RealtimeError: the server did not answer in time.
        """
        await self._presences.untrack(self._name)

    def presence_state(self) -> list[Any]:
        """The states of all who are present; empty unless the channel is subscribed."""
        return list(self._join.members.values())

    def __aiter__(self) -> AsyncIterator[Message]:
        """Iterate the messages until the channel is left.

        Raises:
            RealtimeError: it is not subscribed; later, that the server has closed it.
        """
        join = self._join
        if join.phase is Phase.IDLE:
            text = f"Subscribe to {self._name} before iterating it."
            raise RealtimeError("not_subscribed", text, channel=self._name)
        if join.inbox is None:
            join.inbox = self._inbox()
        return _Messages(join.inbox)


class _Messages:
    """Takes from one inbox, so that it learns how that inbox ended."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def __aiter__(self) -> _Messages:
        return self

    async def __anext__(self) -> Message:
        message = await self._inbox.take()
        if message is None:
            raise StopAsyncIteration
        return message
