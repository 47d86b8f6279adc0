"""A TCP proxy in front of a bridge that drops answers and cuts connections."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator

__all__ = ["FlakyNetwork", "flaky_network"]


class FlakyNetwork:
    """Forwards bytes until the test says otherwise.

    Set `swallowing` to drop what the bridge answers; `swallowed` is set when that has happened.

    Args:
        port: port of the bridge.
    """

    def __init__(self, port: int) -> None:
        self.url = ""
        self.swallowing = False
        self.swallowed = asyncio.Event()
        self.connected = asyncio.Event()  # a connection exists since the last cut
        # for each of the next connections: the bytes it may carry up and down before it is cut
        self.limits: deque[tuple[float, float]] = deque()
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection in both directions."""
        try:
            there, here = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        self.connected.set()
        self._writers |= {writer, here}
        up, down = self.limits.popleft() if self.limits else (math.inf, math.inf)
        await asyncio.gather(
            self._pass(reader, here, up), self._pass(there, writer, down, answers=True)
        )
        self._writers -= {writer, here}

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        left: float,
        answers: bool = False,
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while left > 0 and (data := await reader.read(int(min(left, 65536)))):
                left -= len(data)
                if answers and self.swallowing:
                    self.swallowed.set()
                    continue
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        """Reset all connections and stop dropping answers."""
        self.swallowing = False
        self.connected.clear()
        for writer in self._writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def flaky_network(url: str) -> AsyncIterator[FlakyNetwork]:
    """Put a flaky network in front of the bridge at `url`; clients connect to its own `url`."""
    network = FlakyNetwork(int(url.rsplit(":", 1)[1]))
    server = await asyncio.start_server(network.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    network.url = f"http://{host}:{port}"
    try:
        yield network
    finally:
        server.close()
        network.cut()
