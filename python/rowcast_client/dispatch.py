"""Calls callbacks in the order of the frames, one at a time, and bounds what waits.

Everything that an application is told waits in one queue, so callbacks run in the order of the
wire, and an asynchronous one delays the next. A channel that is iterated has an inbox of its own.
The items in the queue and in all inboxes are counted together. At the limit the client stops
reading, TCP slows the server down, and what the server drops is replayed later from the database.
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

__all__ = ["Callback", "Dispatcher", "Inbox", "Listeners"]

Callback = Callable[[Any], Any]
logger = logging.getLogger("rowcast_client")
# Above the limit reading continues while a request waits for its answer: the code that would make
# room may be waiting for that answer. At this multiple of the limit it stops nevertheless.
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

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._messages: deque[Message] = deque()
        self._changed = asyncio.Event()
        self._taking = False
        self.closed = False
        self.used = False  # iterated at least once
        self.warned = False  # the application was told that it is full
        self.error: RealtimeError | None = None
        self.given = 0  # messages put in
        self.done = 0  # messages taken whose consumer has returned for the next

    def put(self, message: Message) -> None:
        self._messages.append(message)
        self.given += 1
        self._changed.set()

    def close(self, error: RealtimeError | None = None) -> None:
        """End it. With an error the consumer first gets the remaining messages."""
        self.closed, self.error = True, error
        # The remaining messages may never be taken, so they must not stop the reading.
        self._dispatcher.release(len(self._messages))
        if error is None:
            self._messages.clear()
        self._dispatcher.advance_cursor()
        self._changed.set()

    async def take(self) -> Message | None:
        """Return the next message, or None when the channel was left.

        Raises:
            RealtimeError: the server ended the subscription, or the client ended.
            RuntimeError: another task is iterating.
        """
        if self._taking:
            raise RuntimeError("Only one task at a time can iterate a channel.")
        self.used = True
        self.done = self.given - len(self._messages)
        self._dispatcher.advance_cursor()
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
            self._dispatcher.release(1)
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


class Dispatcher:
    """The queue of what an application is told, and the callbacks of the client itself.

    Args:
        limit: number of messages that may wait before reading stops.
        cursor: the cursor that the application starts from.
    """

    def __init__(self, limit: int, cursor: str | None = None) -> None:
        self.listeners = Listeners()
        self.cursor = cursor  # everything up to here was handled
        self.stopped = False
        self._limit = limit
        self._items: deque[_Event | _Mark | _End] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._waiting = 0
        self._marks: deque[tuple[str, dict[Inbox, int]]] = deque()
        self._inboxes: set[Inbox] = set()

    def tell(
        self, callbacks: Callable[[], list[Callback]], argument: Any, inbox: Inbox | None = None
    ) -> None:
        """Queue an argument for callbacks, which are looked up at their turn, and for an inbox."""
        self._items.append(_Event(callbacks, argument, inbox))
        self._waiting += 1
        self._arrived.set()

    def announce(self, kind: str, argument: Any) -> None:
        """Queue an event of the client itself."""
        self.tell(lambda: self.listeners.of(kind), argument)

    def report(self, error: RealtimeError, listeners: Listeners | None = None) -> None:
        """Queue an error for a channel's listeners and the client's; without any, log it."""

        def callbacks() -> list[Callback]:
            found = [*(listeners.of("error") if listeners else ()), *self.listeners.of("error")]
            if not found:
                logger.warning("%s: %s", error.code, error)
            return found

        self.tell(callbacks, error)

    def mark(self, cursor: str) -> None:
        """Queue a cursor: `cursor` becomes this one once everything before it was handled."""
        self._items.append(_Mark(cursor))
        self._arrived.set()

    def end(self, inbox: Inbox, error: RealtimeError) -> None:
        """Queue the end of an inbox, behind the messages for it."""
        self._items.append(_End(inbox, error))
        self._arrived.set()

    def release(self, count: int) -> None:
        """Count items that have left the queue or an inbox."""
        self._waiting -= count
        self.check_room()

    def check_room(self) -> None:
        """Let `wait_for_room` look again."""
        self._room.set()

    async def wait_for_room(self, urgent: Callable[[], bool]) -> None:
        """Return when more may be read.

        Args:
            urgent: whether a request waits for its answer, so that reading must continue.
        """
        while self._waiting >= self._limit and not (
            urgent() and self._waiting < self._limit * HARD_LIMIT
        ):
            self._room.clear()
            await self._room.wait()

    def advance_cursor(self) -> None:
        """Move the cursor over everything that the application has handled."""
        while self._marks:
            cursor, unread = self._marks[0]
            if any(inbox.done < given and not inbox.closed for inbox, given in unread.items()):
                return
            self._marks.popleft()
            self.cursor = cursor

    async def run(self) -> None:
        """Handle the queue until the task is cancelled, or a callback has closed the client."""
        while not self.stopped:
            while not self._items:
                self._arrived.clear()
                await self._arrived.wait()
            item = self._items.popleft()
            if isinstance(item, _Mark):
                self._inboxes = {f for f in self._inboxes if not f.closed and f.done < f.given}
                unread = {inbox: inbox.given for inbox in self._inboxes}
                if self._marks and self._marks[-1][1] == unread:
                    self._marks.pop()  # the newer one waits for the same messages
                self._marks.append((item.cursor, unread))
                self.advance_cursor()
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
                if self._waiting >= self._limit and not (item.inbox.used or item.inbox.warned):
                    self._warn(item.inbox, item.argument.channel)
            else:
                self.release(1)

    def _warn(self, inbox: Inbox, channel: str) -> None:
        """Tell the application why it gets nothing more."""
        inbox.warned = True
        text = (
            f"The client has stopped reading because the messages of {channel} are not taken:"
            " iterate it, unsubscribe from it, or handle its messages with on()."
        )
        self.report(RealtimeError("unread", text, channel=channel))

    async def _call(self, callback: Callback, argument: Any) -> None:
        try:
            result = callback(argument)
            if inspect.isawaitable(result):
                await result
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._failed(callback, argument, asyncio.CancelledError("it was cancelled"))
        except Exception as error:
            self._failed(callback, argument, error)

    def _failed(self, callback: Callback, argument: Any, error: BaseException) -> None:
        name = getattr(callback, "__qualname__", repr(callback))
        failure = RealtimeError("callback_failed", f"Callback {name} failed: {error!r}")
        failure.__cause__ = error
        # A callback for errors that fails would otherwise be called with its own failures forever.
        if isinstance(argument, RealtimeError):
            logger.error("%s", failure, exc_info=error)
        else:
            self.report(failure)
