"""What outlives sockets: the will to reconnect, the session's cursor, unanswered publishes."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from .channel import Channel
from .channels import Joins
from .connection import Link, LostError
from .dispatch import Callback, Delivery, Inbox, Listeners
from .frames import Frame, RealtimeError, refusal
from .identity import Identity, Token
from .presence import Presences
from .publishing import Outbox
from .resume import Progress

__all__ = ["Realtime"]

TOKEN_CODES = {"invalid_token", "token_expired"}
OPEN_TIMEOUT = 10.0
STABLE = 5.0
CLOSE_TIMEOUT = 1.0
LONGEST_PAUSE = 300.0
LARGEST_FRAME = 64 * 1024 * 1024
logger = logging.getLogger("rowcast_client")


class Realtime:
    """A client, as `rowcast_client.connect` makes it."""

    def __init__(
        self,
        address: str,
        *,
        token: Token,
        after: str | None,
        timeouts: tuple[float, float],
        delays: tuple[float, float],
        limits: tuple[int, int],
    ) -> None:
        self._address = address
        self._server = urlsplit(address).netloc  # the rest may hold a key
        self._timeout, self._connect_timeout = timeouts
        self._delays = delays
        self._listeners = Listeners()
        self._link: Link | None = None
        self._delivery = Delivery(limits[0], self._urgent, self._report)
        self._delivery.cursor = after
        self._identity = Identity(token, self._report, lambda: self._joins.again())
        self._joins = Joins(
            self._delivery,
            Progress(after),
            self._report,
            self._identity.refresh,
            delays,
            timeouts[0],
        )
        self._presences = Presences(self._joins, self._delivery, self._report, timeouts[0])
        self._joins.joined, self._joins.left = self._presences.joined, self._presences.left
        self._outbox = Outbox(self._timeout, limits[1])
        self._tasks: list[asyncio.Task[None]] = []
        self._opened: asyncio.Future[None] | None = None
        self._ever_open = False
        self._trouble: RealtimeError | None = None
        self._pause: float | None = None  # that the server asks for before the next attempt

    @property
    def connected(self) -> bool:
        """Whether there is a connection at the moment."""
        return self._link is not None

    @property
    def cursor(self) -> str | None:
        """Everything up to here was handled: callbacks returned, iterating code came back for
        more. Given to `connect` as `after`, a later process goes on from here."""
        return self._delivery.cursor

    def channel(self, name: str) -> Channel:
        """The channel of this name."""
        if not isinstance(name, str) or not name:
            raise TypeError("channel(name) takes the name of a channel.")
        return Channel(
            name,
            self._joins,
            self._presences,
            self._outbox.send,
            self._timeout,
            lambda: Inbox(self._delivery),
        )

    def on(self, kind: str, callback: Callback) -> Realtime:
        """Hear `connect`, `disconnect`, `reconnecting`, `status` (dicts) or `error`."""
        self._listeners.add(kind, callback)
        return self

    def off(self, kind: str, callback: Callback | None = None) -> Realtime:
        """Remove a callback, or all of a kind."""
        self._listeners.remove(kind, callback)
        return self

    async def __aenter__(self) -> Realtime:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect.

        Raises:
            RealtimeError: the token is bad, or nobody answered in time.
            RuntimeError: it was opened before.
        """
        if self._opened is not None:
            raise RuntimeError("A client is opened once: make another one with connect().")
        self._opened = asyncio.get_running_loop().create_future()
        self._tasks = [
            asyncio.create_task(self._delivery.run()),
            asyncio.create_task(self._run()),
        ]
        try:
            async with asyncio.timeout(self._connect_timeout):
                await asyncio.shield(self._opened)
        except TimeoutError:
            await self.close()
            text = f"There is no answer from {self._server}."
            raise self._trouble or RealtimeError("unreachable", text) from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Leave. What waits for an answer gets an error, iterations end."""
        self._delivery.stopped = True
        self._stop(None)
        # The one that a callback closes us from ends by itself, when the callback has.
        own = asyncio.current_task()
        tasks = [task for task in (*self._tasks, *self._identity.tasks) if task is not own]
        self._tasks = []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()

    def _stop(self, error: RealtimeError | None) -> None:
        closed = error or RealtimeError("disconnected", "The client was closed.")
        self._outbox.stop(closed)
        self._joins.stop(error)
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(closed)
            self._opened.exception()  # retrieved: open() may have given up already

    # The connection

    async def _run(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await self._once()
            except LostError as lost:
                was_open = self._link is not None
                if was_open:
                    failures = 0 if time.monotonic() - began > STABLE else failures
                    self._interrupt(lost)
                error = self._judge(lost, was_open)
            except RealtimeError as failed:  # the token could not be had
                error = failed
                if not self._ever_open or self._delivery.stopped:
                    self._stop(failed)
                    return
                self._report(failed)
            if error is None:
                return
            delay = min(self._delays[1], self._delays[0] * 2.0**failures)
            delay *= random.uniform(0.25, 1)
            if self._pause is not None:
                delay, self._pause = self._pause, None
            failures += 1
            self._trouble = error
            told = {"attempt": failures, "delay": delay, "reason": str(error)}
            self._tell("reconnecting", told)
            await asyncio.sleep(delay)

    async def _once(self) -> None:
        """One connection, to its end."""
        token = await self._identity.token()
        if self._delivery.stopped:  # by the one who was asked
            raise RealtimeError("disconnected", "The client was closed.")
        limits = aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=OPEN_TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            try:
                async with asyncio.timeout(OPEN_TIMEOUT):
                    socket = await session.ws_connect(
                        self._address, timeout=limits, max_msg_size=LARGEST_FRAME, compress=0
                    )
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise LostError(1006, str(error) or "The server did not answer.") from error
            link = Link(socket, self._delivery.stir)
            writing: asyncio.Task[None] | None = None
            try:
                await link.greet(token)
                writing = asyncio.create_task(link.write())
                self._connected(link)
                await self._read(link)
            finally:
                if writing is not None:
                    writing.cancel()
                await link.close()

    def _connected(self, link: Link) -> None:
        self._link = link
        self._ever_open = True
        # Subscriptions first: what is published then is heard by them.
        self._identity.connected(link)
        self._presences.connected(link)
        self._joins.connected(link)
        self._outbox.connected(link)
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)
        self._tell("connect", {"session": link.greeting.get("session")})

    async def _read(self, link: Link) -> None:
        while True:
            try:
                self._handle(await link.read())
            except LostError:
                raise
            except RealtimeError as error:
                self._report(error)
            except Exception as error:  # whatever a server sends must not end the client
                text = f"The server sent a frame this client cannot use: {error!r}."
                self._report(RealtimeError("invalid_frame", text))
            await self._delivery.room()

    def _handle(self, frame: Frame) -> None:
        match frame["op"]:
            case "messages":
                self._joins.messages(frame)
            case "cursor":
                self._joins.cursor(frame)
            case "presence":
                self._presences.frame(frame)
            case "closed":
                self._joins.closed(frame)
            case "deleted":
                self._joins.deleted(frame)
            case "status":
                self._tell("status", {"status": frame.get("status")})
                if frame.get("status") == "token_expiring":
                    self._identity.refresh()
                after = frame.get("retryAfter")
                if frame.get("status") == "draining" and isinstance(after, int | float):
                    self._pause = min(max(float(after), 0.0), LONGEST_PAUSE)
            case "error":
                self._report(refusal(frame))
            # A newer server may say more than this client knows.

    def _interrupt(self, lost: LostError) -> None:
        self._link = None
        self._joins.interrupted()
        self._presences.interrupted()
        self._outbox.interrupted(lost.code)
        self._delivery.stir()
        self._tell("disconnect", {"code": lost.code, "reason": str(lost)})

    def _judge(self, lost: LostError, was_open: bool) -> RealtimeError | None:
        """Return what to say while trying again, or None when that would be of no use."""
        if not lost.final:
            text = f"There is no connection to {self._server} ({lost.code}): {lost}"
            return RealtimeError("unreachable", text)
        error = lost.refusal or RealtimeError(
            "closed", f"The server closed the connection for good ({lost.code}): {lost}"
        )
        told = was_open and lost.refusal is not None  # it came as a frame of the open session
        if not told and self._ever_open:
            self._report(error)
        # A callable may have a better token the next time; a text stays what it is.
        if error.code in TOKEN_CODES and self._identity.renewable and self._ever_open:
            return error
        self._stop(error)
        return None

    # Telling

    def _urgent(self) -> bool:
        return self._link is not None and self._link.waiting

    def _tell(self, kind: str, argument: Any) -> None:
        self._delivery.tell(lambda: self._listeners.of(kind), argument)

    def _report(self, error: RealtimeError, listeners: Listeners | None = None) -> None:
        def callbacks() -> list[Callback]:
            found = [*(listeners.of("error") if listeners else ()), *self._listeners.of("error")]
            if not found:
                logger.warning("%s: %s", error.code, error)
            return found

        self._delivery.tell(callbacks, error)
