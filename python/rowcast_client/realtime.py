"""The client itself: it connects, reconnects and closes."""

from __future__ import annotations

import asyncio
import random
import time
from types import TracebackType
from urllib.parse import urlsplit

import aiohttp

from .channel import Channel
from .channels import Channels
from .connection import Connection, LostError
from .dispatch import Callback, Dispatcher
from .frames import Frame, RealtimeError, refusal
from .identity import Identity, Token
from .options import Options
from .presence import Presence
from .publishing import Publishing

__all__ = ["Realtime"]

TOKEN_CODES = {"invalid_token", "token_expired"}
OPEN_TIMEOUT = 10.0
STABLE = 5.0  # seconds after which a connection resets the count of failures
CLOSE_TIMEOUT = 1.0
LONGEST_PAUSE = 300.0
LARGEST_FRAME = 64 * 1024 * 1024


class Realtime:
    """A client, made by `rowcast_client.connect`.

    Args:
        address: the URL of the WebSocket.
        token: see `rowcast_client.connect`.
        options: see `rowcast_client.connect`.
    """

    def __init__(self, address: str, token: Token, options: Options) -> None:
        self._address = address
        self._server = urlsplit(address).netloc  # the rest may contain a key
        self._options = options
        self._connection: Connection | None = None
        self._dispatcher = Dispatcher(options.max_queue, options.after)
        self._identity = Identity(token, self._dispatcher)
        self._presence = Presence(self._dispatcher, options.timeout)
        self._channels = Channels(self._dispatcher, self._identity, self._presence, options)
        self._publishing = Publishing(options.timeout, options.max_pending)
        self._tasks: list[asyncio.Task[None]] = []
        self._opened: asyncio.Future[None] | None = None
        self._ever_open = False
        self._last_error: RealtimeError | None = None
        self._pause: float | None = None  # seconds that the server asks to wait for

    @property
    def connected(self) -> bool:
        """Whether there is a connection at the moment."""
        return self._connection is not None

    @property
    def cursor(self) -> str | None:
        """The position up to which the application has handled everything.

        A message is handled when its callbacks have returned, or when the iterating code has
        asked for the next one. A later process that passes the cursor to `connect` as `after`
        continues from there.
        """
        return self._dispatcher.cursor

    def channel(self, name: str) -> Channel:
        """Return the channel of this name."""
        if not isinstance(name, str) or not name:
            raise TypeError("channel(name) takes the name of a channel.")
        return Channel(name, self._channels, self._publishing)

    def on(self, kind: str, callback: Callback) -> Realtime:
        """Add a callback for an event of the client.

        Args:
            kind: `connect`, `disconnect`, `reconnecting` or `status` (the callback gets a dict),
                or `error` (it gets a `RealtimeError`).
            callback: a function or coroutine function with one argument.
        """
        self._dispatcher.listeners.add(kind, callback)
        return self

    def off(self, kind: str, callback: Callback | None = None) -> Realtime:
        """Remove a callback, or all of a kind."""
        self._dispatcher.listeners.remove(kind, callback)
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
            RealtimeError: the token is not accepted, or the server did not answer in time.
            RuntimeError: the client was opened before.
        """
        if self._opened is not None:
            raise RuntimeError("A client can be opened once: make another one with connect().")
        self._opened = asyncio.get_running_loop().create_future()
        self._tasks = [
            asyncio.create_task(self._dispatcher.run()),
            asyncio.create_task(self._run()),
        ]
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                await asyncio.shield(self._opened)
        except TimeoutError:
            await self.close()
            text = f"{self._server} did not answer in time."
            raise self._last_error or RealtimeError("unreachable", text) from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect. Calls that wait for an answer raise an error, and iterations end."""
        self._dispatcher.stopped = True
        self._stop(None)
        # A task whose callback calls this ends by itself once the callback has returned.
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
        self._publishing.stop(closed)
        self._channels.stop(error)
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(closed)
            self._opened.exception()  # mark it as retrieved: open() may have timed out already

    async def _run(self) -> None:
        """Connect again and again, until the server or the application ends it."""
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await self._connect_once()
            except LostError as lost:
                was_open = self._connection is not None
                if was_open:
                    failures = 0 if time.monotonic() - began > STABLE else failures
                    self._interrupt(lost)
                error = self._reconnect_reason(lost, was_open)
            except RealtimeError as failed:  # the application's token callable failed
                error = failed
                if not self._ever_open or self._dispatcher.stopped:
                    self._stop(failed)
                    return
                self._dispatcher.report(failed)
            if error is None:
                return
            delay = min(self._options.max_delay, self._options.min_delay * 2.0**failures)
            delay *= random.uniform(0.25, 1)
            if self._pause is not None:
                delay, self._pause = self._pause, None
            failures += 1
            self._last_error = error
            told = {"attempt": failures, "delay": delay, "reason": str(error)}
            self._dispatcher.announce("reconnecting", told)
            await asyncio.sleep(delay)

    async def _connect_once(self) -> None:
        """Connect, and read until the connection ends.

        Raises:
            LostError: always, unless the token callable failed.
            RealtimeError: the token callable failed, or has closed the client.
        """
        token = await self._identity.token()
        if self._dispatcher.stopped:  # by the token callable
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
            connection = Connection(socket, self._dispatcher.check_room)
            writing: asyncio.Task[None] | None = None
            try:
                await connection.handshake(token)
                writing = asyncio.create_task(connection.write())
                self._connected(connection)
                await self._read(connection)
            finally:
                if writing is not None:
                    writing.cancel()
                await connection.close()

    def _connected(self, connection: Connection) -> None:
        self._connection = connection
        self._ever_open = True
        # Channels before publishes: their subscriptions then receive what is published.
        self._identity.connected(connection)
        self._presence.connected(connection)
        self._channels.connected(connection)
        self._publishing.connected(connection)
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(None)
        self._dispatcher.announce("connect", {"session": connection.greeting.get("session")})

    async def _read(self, connection: Connection) -> None:
        while True:
            try:
                self._handle(await connection.read())
            except LostError:
                raise
            except RealtimeError as error:
                self._dispatcher.report(error)
            except Exception as error:  # no frame of a server may end the client
                text = f"The server sent a frame that this client cannot use: {error!r}."
                self._dispatcher.report(RealtimeError("invalid_frame", text))
            await self._dispatcher.wait_for_room(connection.awaits_answer)

    def _handle(self, frame: Frame) -> None:
        match frame["op"]:
            case "messages":
                self._channels.on_messages(frame)
            case "cursor":
                self._channels.on_cursor(frame)
            case "presence":
                self._channels.on_presence(frame)
            case "closed":
                self._channels.on_closed(frame)
            case "deleted":
                self._channels.on_deleted(frame)
            case "status":
                self._on_status(frame)
            case "error":
                self._dispatcher.report(refusal(frame))
            # A newer server may send operations that this client does not know.

    def _on_status(self, frame: Frame) -> None:
        status, after = frame.get("status"), frame.get("retryAfter")
        self._dispatcher.announce("status", {"status": status})
        if status == "token_expiring":
            self._channels.refresh_token()
        if status == "draining" and isinstance(after, int | float):
            self._pause = min(max(float(after), 0.0), LONGEST_PAUSE)

    def _interrupt(self, lost: LostError) -> None:
        self._connection = None
        self._channels.interrupted()
        self._presence.interrupted()
        self._publishing.interrupted(lost.code)
        self._dispatcher.check_room()
        self._dispatcher.announce("disconnect", {"code": lost.code, "reason": str(lost)})

    def _reconnect_reason(self, lost: LostError, was_open: bool) -> RealtimeError | None:
        """Return the error to report while reconnecting; stop and return None if it is final."""
        if not lost.final:
            text = f"Cannot connect to {self._server} ({lost.code}): {lost}"
            return RealtimeError("unreachable", text)
        text = f"The server closed the connection and refuses another ({lost.code}): {lost}"
        error = lost.refusal or RealtimeError("closed", text)
        # A refusal on an open session arrived as a frame, which was reported already.
        reported = was_open and lost.refusal is not None
        if not reported and self._ever_open:
            self._dispatcher.report(error)
        # A callable may return a better token the next time; a string stays the same.
        if error.code in TOKEN_CODES and self._identity.renewable and self._ever_open:
            return error
        self._stop(error)
        return None
