"""The connection of one Engine.IO client: long polling, a WebSocket, or an upgrade to it."""

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

from .codec import SocketIO
from .packets import CLOSE as CLOSE_PACKET
from .packets import NOOP, PING, disconnect, join_packets, split_frames

__all__ = ["Connection"]

# Share of the pause between two pings within which a client must answer: 20 of 25 seconds, as
# with the usual servers.
PATIENCE = 0.8
# Seconds for a client that is being closed to poll once more
LAST_POLL = 1.0
# Seconds after which a client is made to reconnect, chosen at random to spread the reconnects
ADRIFT = (0.5, 3.0)
# Close codes after which a client must not reconnect by itself
FOR_GOOD = {CLOSE[why][0] for why in ("abuse", "kicked")}
PING_FRAME = text_frame(PING)
# Packets in the answer to a poll: python-engineio accepts 16, and disconnects at more.
PACKETS = 15


class Connection:
    """A session's pipe to its client (see `session.Pipe`) over the transport in use.

    Packets for a client that polls are queued here, with the same limit as the buffer of a
    WebSocket. A client that vanishes is noticed when it does not answer the next ping.

    Args:
        sid: the id that the client's requests name. It authenticates them, so it is secret.
        settings: pauses and limits.
        wire: decodes and encodes the client's packets.
        ended: called once when the connection has ended, with whether the client said goodbye.
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
        self.polling = False  # a poll is waiting
        self.posting = False  # a post is being read
        self.probing = False  # a WebSocket is open and not used yet
        self.pipe: SocketPipe | None = None
        self._settings = settings
        self._ended = ended
        self._queue: deque[bytes] = deque()
        self._queued = 0  # bytes
        self._news = asyncio.Event()
        self._closing = False
        self._unanswered = False
        self._loop = asyncio.get_running_loop()
        self._beat = self._loop.call_later(settings.heartbeat, self._ping)
        self._timers: list[asyncio.TimerHandle] = []

    # To the client

    def write(self, data: bytes) -> None:
        self._reconnect_if_adrift()
        if self.pipe is not None:
            self.pipe.write(data)
        elif not self.gone:
            self._queue.extend(split_frames(data))
            self._queued += len(data)
            self._news.set()

    def waiting(self) -> int:
        return self._queued if self.pipe is None else self.pipe.waiting()

    def close(self, code: int, reason: str) -> None:
        if code in FOR_GOOD:
            self.write(disconnect())
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

    def _take(self, limit: int) -> list[bytes]:
        packets = [self._queue.popleft() for _ in range(min(limit, len(self._queue)))]
        self._queued = self._queued - sum(map(len, packets)) if self._queue else 0
        return packets

    async def poll(self) -> bytes:
        """Wait for packets, and return them as the body that answers a poll."""
        self.polling = True
        try:
            while not (self._queue or self._closing or self.has_socket or self.gone):
                self._news.clear()
                await self._news.wait()
        finally:
            self.polling = False
        packets = self._take(PACKETS)
        if self.closing:
            packets.append(CLOSE_PACKET)
        # During an upgrade to a WebSocket the poll must end.
        return join_packets(packets or [NOOP])

    @property
    def closing(self) -> bool:
        """Whether the next answer to a poll is the last."""
        return self.gone or (self._closing and not self._queue)

    @property
    def has_socket(self) -> bool:
        """Whether a WebSocket is in use, or being probed."""
        return self.pipe is not None or self.probing

    def probe(self, *, begins: bool) -> None:
        """Note that the probe of a WebSocket begins or has ended."""
        self.probing = begins
        self._news.set()

    def upgrade(self, pipe: SocketPipe) -> None:
        """Send the queue and all further packets to a WebSocket."""
        self.probing = False
        self.pipe = pipe
        if packets := self._take(len(self._queue)):
            pipe.write(b"".join(map(text_frame, packets)))

    # From the client

    def pong(self) -> None:
        """Note that the client has answered a ping."""
        if self._unanswered and not self.gone:
            self._unanswered = False
            self._beat.cancel()
            self._beat = self._loop.call_later(self._settings.heartbeat, self._ping)

    def _ping(self) -> None:
        self._unanswered = True
        self.write(PING_FRAME)
        self._beat = self._loop.call_later(self._settings.heartbeat * PATIENCE, self._missed)

    def _missed(self) -> None:
        if self.pipe is not None:
            self.pipe.abort()
        self.end()

    def after_packet(self) -> None:
        """End or reconnect the client if the wire says so after a packet was handled."""
        if self.wire.left:
            self.end(goodbye=True)
        self._reconnect_if_adrift()

    def _reconnect_if_adrift(self) -> None:
        if self.wire.adrift and not self.gone:
            self.wire.adrift = False
            self._later(random.uniform(*ADRIFT), lambda: self.session.close("internal"))

    def end(self, *, goodbye: bool = False) -> None:
        """End the connection, once.

        Args:
            goodbye: whether the client has said that it does not come back.
        """
        if self.gone:
            return
        self.gone = True
        for timer in (self._beat, *self._timers):
            timer.cancel()
        self._news.set()
        if self.pipe is not None:
            self.pipe.close(1000, "")
        self._ended(self, goodbye)
