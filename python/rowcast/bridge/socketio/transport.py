"""One client of Engine.IO: polled at first, perhaps, and on a WebSocket then."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable

from rowcast.bridge.http.websocket import SocketPipe
from rowcast.bridge.session import Session
from rowcast.bridge.wire.frames import text_frame
from rowcast.config import Settings
from rowcast.errors import CLOSE
from rowcast.observe import observe

from . import engineio
from .codec import SocketIO
from .packets import disconnected

__all__ = ["Connection"]

# Of a client that does not answer a ping within this share of the pause between two, no more is
# expected: 20 of 25 seconds, as these servers have it.
PATIENCE = 0.8
# Seconds for a client that is being closed to poll once more.
LAST_POLL = 1.0
# Seconds until a client that shall connect again is made to: all at once would be a storm.
ADRIFT = (0.5, 3.0)
# Closed for these reasons, a client shall not come back by itself.
FOR_GOOD = {CLOSE[why][0] for why in ("abuse", "kicked")}
PING = text_frame(engineio.PING)
# Packets in the answer to a poll: python-engineio takes 16, and gives up at more.
PACKETS = 15


class Connection:
    """A session's way to its client (see `session.Pipe`), over whichever transport it has.

    While the client polls, what is for it waits here; that is as bounded as what waits for a
    WebSocket, and a client that vanishes is missed at the next ping.

    Args:
        sid: what its requests name. Whoever knows it is the client, so nobody else is told.
        settings: pauses and limits.
        wire: what its packets say.
        ended: called once, when it is gone, with whether it said goodbye.
    """

    def __init__(
        self,
        sid: str,
        settings: Settings,
        wire: SocketIO,
        ended: Callable[[Connection, bool], None],
    ) -> None:
        self.sid = sid
        self.wire = wire
        self.session = Session(self, settings, wire)
        self.gone = False
        self.polled = False  # a poll is waiting
        self.posting = False
        self.probing = False  # a WebSocket is there, and is not used yet
        self.pipe: SocketPipe | None = None
        self._settings = settings
        self._ended = ended
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._news = asyncio.Event()
        self._closing = False
        self._unanswered = False
        self._loop = asyncio.get_running_loop()
        self._beat = self._loop.call_later(settings.heartbeat, self._ping)
        self._timers: list[asyncio.TimerHandle] = []

    # To the client

    def write(self, data: bytes) -> None:
        self._drift()
        if self.pipe is not None:
            self.pipe.write(data)
        elif not self.gone:
            self._queue.extend(engineio.payloads(data))
            self._queued += len(data)
            self._news.set()

    def waiting(self) -> int:
        return self._queued if self.pipe is None else self.pipe.waiting()

    def close(self, code: int, reason: str) -> None:
        if code in FOR_GOOD:
            self.write(disconnected())
        self._closing = True
        if self.pipe is not None:
            self.pipe.close(code, reason)
            return
        if code == CLOSE["slow"][0]:
            observe("slow_client", waiting=self._queued)
            self._take(len(self._queue))
        self._news.set()
        self._later(LAST_POLL, self.end)

    def _later(self, delay: float, call: Callable[[], None]) -> None:
        self._timers.append(self._loop.call_later(delay, call))

    def _take(self, most: int) -> list[bytes]:
        packets = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
        self._queued = self._queued - sum(map(len, packets)) if self._queue else 0
        return packets

    async def poll(self) -> bytes:
        """Wait for something to say, and return it as the answer to a poll."""
        self.polled = True
        try:
            while not (self._queue or self._closing or self.taken or self.gone):
                self._news.clear()
                await self._news.wait()
        finally:
            self.polled = False
        packets = self._take(PACKETS)
        if self.closing:
            packets.append(engineio.CLOSE)
        # While it goes over to a WebSocket its poll must end.
        return engineio.join(packets or [engineio.NOOP])

    @property
    def closing(self) -> bool:
        """Whether nothing is to follow what a poll gets."""
        return self.gone or (self._closing and not self._queue)

    @property
    def taken(self) -> bool:
        """Whether a WebSocket is used, or tried."""
        return self.pipe is not None or self.probing

    def probe(self, *, begins: bool) -> None:
        """A WebSocket is being tried, or was not taken."""
        self.probing = begins
        self._news.set()

    def upgrade(self, pipe: SocketPipe) -> None:
        """From now on everything goes to a WebSocket."""
        self.probing = False
        self.pipe = pipe
        if packets := self._take(len(self._queue)):
            pipe.write(b"".join(map(text_frame, packets)))

    # From the client

    def pong(self) -> None:
        """The client has answered a ping."""
        if self._unanswered and not self.gone:
            self._unanswered = False
            self._beat.cancel()
            self._beat = self._loop.call_later(self._settings.heartbeat, self._ping)

    def _ping(self) -> None:
        self._unanswered = True
        self.write(PING)
        self._beat = self._loop.call_later(self._settings.heartbeat * PATIENCE, self._missed)

    def _missed(self) -> None:
        if self.pipe is not None:
            self.pipe.abort()
        self.end()

    def check(self) -> None:
        """Look at what the wire has seen in what was read."""
        if self.wire.left:
            self.end(goodbye=True)
        self._drift()

    def _drift(self) -> None:
        if self.wire.adrift and not self.gone:
            self.wire.adrift = False
            self._later(random.uniform(*ADRIFT), lambda: self.session.close("internal"))

    def end(self, *, goodbye: bool = False) -> None:
        """It is gone; once."""
        if self.gone:
            return
        self.gone = True
        for timer in (self._beat, *self._timers):
            timer.cancel()
        self._news.set()
        if self.pipe is not None:
            self.pipe.close(1000, "")
        self._ended(self, goodbye)
