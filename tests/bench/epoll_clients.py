"""Many cheap WebSocket clients in one process.

They use plain sockets and epoll, because a client library would cost more than the measured
server.
"""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["MARK", "Client", "EpollClients", "frame"]

# Every message of a benchmark contains this once, and other frames never do. A single byte is
# not enough, because it also appears in the lengths of frames.
MARK = b"<#>"
PING, PONG = b"\x89\x00", b"\x8a\x80\x00\x00\x00\x00"
UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
# connections between accept and answer; more would only queue at the server
CONNECTING = 512


def frame(body: dict[str, object]) -> bytes:
    """Return a client's text frame; the mask is zero, so the payload stays as it is."""
    data = json.dumps(body, separators=(",", ":")).encode()
    size = bytes((0x80 | len(data),)) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
    return b"\x81" + size + b"\0\0\0\0" + data


@dataclass(slots=True, eq=False)
class Client:
    """One connection: its request and its state."""

    token: str
    channel: str
    cursor: str | None = None
    socket: socket.socket | None = None
    state: str = "new"
    buffer: bytes = field(default=b"", repr=False)
    answer: bytes = b""


class EpollClients:
    """The clients of one process; `marks` counts messages.

    Args:
        port: port of the server, on 127.0.0.1.
        clients: the clients that `connect` may connect.
    """

    def __init__(self, port: int, clients: list[Client]) -> None:
        self.port = port
        self.clients = clients
        self.marks = 0
        self.last = 0.0
        self.ready = 0
        self.failed: list[bytes] = []
        self._poll = select.epoll()
        self._by_fd: dict[int, Client] = {}
        self._waiting = 0

    def connect(self, clients: list[Client], *, timeout: float = 120.0) -> float:
        """Connect and subscribe, with `after` if a client has a cursor.

        Returns:
            Seconds until the last `ok`.

        Raises:
            TimeoutError: not all clients were answered.
        """
        self.ready = self._waiting = 0
        started = time.monotonic()
        todo = iter(clients)
        left = len(clients)
        while self.ready + len(self.failed) < len(clients):
            while left and self._waiting < CONNECTING:
                self._open(next(todo))
                left -= 1
            self.turn(0.05)
            if time.monotonic() - started > timeout:
                raise TimeoutError(f"{self.ready} of {len(clients)} are subscribed")
        return time.monotonic() - started

    def run(self, until: Callable[[], bool]) -> None:
        """Read, and answer pings, until the condition holds."""
        while not until():
            self.turn(0.05)

    def close(self) -> None:
        """Drop all connections."""
        for fd, client in self._by_fd.items():
            self._poll.unregister(fd)
            assert client.socket is not None
            client.socket.close()
            client.state, client.buffer = "new", b""
        self._by_fd.clear()

    def _open(self, client: Client) -> None:
        client.socket = socket.create_connection(("127.0.0.1", self.port))
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.socket.setblocking(False)
        client.socket.send(UPGRADE.format(path=f"/realtime?token={client.token}").encode())
        client.state = "connecting"
        self._by_fd[client.socket.fileno()] = client
        self._poll.register(client.socket.fileno(), select.EPOLLIN)
        self._waiting += 1

    def turn(self, timeout: float) -> None:
        """Read the available bytes."""
        for fd, _ in self._poll.poll(timeout):
            client = self._by_fd[fd]
            assert client.socket is not None
            try:
                data = client.socket.recv(262144)
            except BlockingIOError:
                continue
            except ConnectionError:
                data = b""
            if not data:
                self._poll.unregister(fd)
                del self._by_fd[fd]
                if client.state != "live":
                    self._waiting -= 1
                    self.failed.append(client.buffer[-200:])
                client.state = "closed"
                continue
            if PING in data:
                client.socket.send(PONG)
            if client.state == "live":
                data = client.buffer + data  # the mark may arrive in two parts
                client.buffer = data[1 - len(MARK) :]
                found = data.count(MARK)
                if found:
                    self.marks += found
                    self.last = time.monotonic()
                continue
            client.buffer += data
            self._advance(client)

    def _advance(self, client: Client) -> None:
        assert client.socket is not None
        if client.state == "connecting" and b'"op":"welcome"' in client.buffer:
            body: dict[str, object] = {"op": "subscribe", "ref": "1", "channel": client.channel}
            if client.cursor:
                body["after"] = client.cursor
            client.socket.send(frame(body))
            client.state, client.buffer = "subscribing", b""
        elif client.state == "subscribing" and b'"op":"ok"' in client.buffer:
            client.answer = client.buffer
            before, found, after = client.buffer.rpartition(b'"cursor":"')
            if found:
                client.cursor = after.partition(b'"')[0].decode()
            self.marks += before.count(MARK)
            client.state, client.buffer = "live", b""
            self.ready += 1
            self._waiting -= 1
        elif b'"op":"error"' in client.buffer:
            self.failed.append(client.buffer[-200:])
            client.state = "closed"
            self._waiting -= 1
