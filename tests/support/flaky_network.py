"""A network that fails: a way to a bridge that swallows answers and cuts connections."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator

__all__ = ["Cutter", "cutting"]


class Cutter:
    """Passes bytes on, until it is told otherwise.

    Args:
        port: where the bridge listens.
    """

    def __init__(self, port: int) -> None:
        self.url = ""
        self.swallowing = False
        self.swallowed = asyncio.Event()
        self.connected = asyncio.Event()  # again, since the last cut
        # Of each of the next connections: how many bytes it may carry up and down until it is cut.
        self.limits: deque[tuple[float, float]] = deque()
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a connection."""
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
        """Reset all connections, and swallow no more."""
        self.swallowing = False
        self.connected.clear()
        for writer in self._writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def cutting(url: str) -> AsyncIterator[Cutter]:
    """A cutter before a bridge, with a URL of its own."""
    cutter = Cutter(int(url.rsplit(":", 1)[1]))
    server = await asyncio.start_server(cutter.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    cutter.url = f"http://{host}:{port}"
    try:
        yield cutter
    finally:
        server.close()
        cutter.cut()
