"""From the socket to the application: in order, one at a time, and never more than fits.

Everything that is to be told waits in one queue, so callbacks come in the order of the wire and
an asynchronous one holds back the next. A channel that is iterated has an inbox of its own. What
waits in the queue and in inboxes is counted together; when it is too much, reading stops, TCP holds
the server back, and what the server drops is replayed later from the database.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .frames import Message, RealtimeError

__all__ = ["Callback", "Delivery", "Inbox", "Listeners"]

Callback = Callable[[Any], Any]
logger = logging.getLogger("rowcast_client")
# Over the limit reading goes on as long as a request waits for its answer: the one who would
# make room may be waiting for it. At this many times the limit it stops nevertheless.
HARD_LIMIT = 10


class Listeners:
    """Callbacks by kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, list[Callback]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._kinds.values()))

    @property
    def kinds(self) -> set[str]:
        return {kind for kind, callbacks in self._kinds.items() if callbacks}

    def add(self, kind: str, callback: Callback) -> None:
        if not isinstance(kind, str) or not callable(callback):
            raise TypeError("on(kind, callback) takes the name of an event and a callable.")
        self._kinds.setdefault(kind, []).append(callback)

    def remove(self, kind: str, callback: Callback | None) -> None:
        """Remove one callback, or all of a kind."""
        if callback is None:
            self._kinds.pop(kind, None)
        elif callback in self._kinds.get(kind, ()):
            self._kinds[kind].remove(callback)

    def of(self, *kinds: str) -> list[Callback]:
        return [callback for kind in kinds for callback in self._kinds.get(kind, ())]


class Inbox:
    """Messages of a channel for `async for`, until the channel is left."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._messages: deque[Message] = deque()
        self._changed = asyncio.Event()
        self._taking = False
        self.closed = False
        self.used = False  # somebody iterates
        self.blamed = False
        self.error: RealtimeError | None = None
        self.given = 0
        self.done = 0  # taken, and the consumer has come back for the next

    def put(self, message: Message) -> None:
        self._messages.append(message)
        self.given += 1
        self._changed.set()

    def close(self, error: RealtimeError | None = None) -> None:
        """End it. With an error a consumer gets what was not taken yet, and then the error."""
        self.closed, self.error = True, error
        # Nobody may come for them any more, so they must not keep others waiting.
        self._delivery.leave(len(self._messages))
        if error is None:
            self._messages.clear()
        self._delivery.settle()
        self._changed.set()

    async def take(self) -> Message | None:
        """The next message, or None when the channel was left.

        Raises:
            RealtimeError: the server or the connection ended it.
        """
        if self._taking:
            raise RuntimeError("Only one task at a time can iterate a channel.")
        self.used = True
        self.done = self.given - len(self._messages)
        self._delivery.settle()
        self._taking = True
        try:
            while not self._messages:
                if self.error is not None:
                    raise self.error
                if self.closed:
                    return None
                self._changed.clear()
                await self._changed.wait()
        finally:
            self._taking = False
        if not self.closed:
            self._delivery.leave(1)
        return self._messages.popleft()


@dataclass(slots=True)
class _Event:
    callbacks: Callable[[], list[Callback]]
    argument: Any
    inbox: Inbox | None


@dataclass(slots=True)
class _Mark:
    cursor: str


@dataclass(slots=True)
class _End:
    inbox: Inbox
    error: RealtimeError


class Delivery:
    """The queue.

    Args:
        limit: how many messages may wait before reading stops.
        urgent: whether somebody waits for an answer.
        failed: told when a callback raised.
    """

    def __init__(
        self, limit: int, urgent: Callable[[], bool], failed: Callable[[RealtimeError], None]
    ) -> None:
        self.cursor: str | None = None
        self.stopped = False
        self._limit = limit
        self._urgent = urgent
        self._failed = failed
        self._items: deque[_Event | _Mark | _End] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._waiting = 0
        self._marks: deque[tuple[str, dict[Inbox, int]]] = deque()
        self._inboxes: set[Inbox] = set()

    def tell(
        self, callbacks: Callable[[], list[Callback]], argument: Any, inbox: Inbox | None = None
    ) -> None:
        """Queue something for callbacks, looked up when its turn comes, and for an inbox."""
        self._items.append(_Event(callbacks, argument, inbox))
        self._waiting += 1
        self._arrived.set()

    def mark(self, cursor: str) -> None:
        """Queue a cursor: it is the application's once everything before it was handled."""
        self._items.append(_Mark(cursor))
        self._arrived.set()

    def end(self, inbox: Inbox, error: RealtimeError) -> None:
        """Queue the end of an inbox, behind what was queued for it."""
        self._items.append(_End(inbox, error))
        self._arrived.set()

    def leave(self, count: int) -> None:
        """So many have left the queue or an inbox."""
        self._waiting -= count
        self.stir()

    def stir(self) -> None:
        """Whether there is room may have changed."""
        self._room.set()

    async def room(self) -> None:
        """Return when more may be read."""
        while self._waiting >= self._limit and not (
            self._urgent() and self._waiting < self._limit * HARD_LIMIT
        ):
            self._room.clear()
            await self._room.wait()

    def settle(self) -> None:
        """Move the application's cursor over everything it has handled."""
        while self._marks:
            cursor, unread = self._marks[0]
            if any(inbox.done < given and not inbox.closed for inbox, given in unread.items()):
                return
            self._marks.popleft()
            self.cursor = cursor

    async def run(self) -> None:
        """Hand out what is queued, until it is cancelled, or stopped by one of its callbacks."""
        while not self.stopped:
            while not self._items:
                self._arrived.clear()
                await self._arrived.wait()
            item = self._items.popleft()
            if isinstance(item, _Mark):
                self._inboxes = {f for f in self._inboxes if not f.closed and f.done < f.given}
                unread = {inbox: inbox.given for inbox in self._inboxes}
                if self._marks and self._marks[-1][1] == unread:
                    self._marks.pop()  # the newer one waits for the same
                self._marks.append((item.cursor, unread))
                self.settle()
                continue
            if isinstance(item, _End):
                item.inbox.close(item.error)
                continue
            for callback in item.callbacks():
                if not self.stopped:
                    await self._call(callback, item.argument)
            if item.inbox is not None and not item.inbox.closed:
                item.inbox.put(item.argument)
                self._inboxes.add(item.inbox)
                if self._waiting >= self._limit and not (item.inbox.used or item.inbox.blamed):
                    self._blame(item.inbox, item.argument.channel)
            else:
                self.leave(1)

    def _blame(self, inbox: Inbox, channel: str) -> None:
        """Else nobody would find out why nothing comes any more."""
        inbox.blamed = True
        text = (
            f"Nobody iterates {channel}, so reading stops: iterate it, unsubscribe from it, or hear"
            " its messages with on()."
        )
        self._failed(RealtimeError("unread", text, channel=channel))

    async def _call(self, callback: Callback, argument: Any) -> None:
        try:
            result = callback(argument)
            if inspect.isawaitable(result):
                await result
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._report(callback, argument, asyncio.CancelledError("it was cancelled"))
        except Exception as error:
            self._report(callback, argument, error)

    def _report(self, callback: Callback, argument: Any, error: BaseException) -> None:
        name = getattr(callback, "__qualname__", repr(callback))
        failure = RealtimeError("callback_failed", f"Callback {name} failed: {error!r}")
        failure.__cause__ = error
        # One that fails while it hears of errors would hear of itself for ever.
        if isinstance(argument, RealtimeError):
            logger.error("%s", failure, exc_info=error)
        else:
            self._failed(failure)
