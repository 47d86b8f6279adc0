"""Webhook receivers on this machine: they record requests and answer as the test decides."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.waiting import eventually

__all__ = ["Heard", "Receiver", "receiver"]


@dataclass(frozen=True)
class Heard:
    """One received request."""

    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes
    at: float

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


Reply = int | tuple[int, dict[str, str], bytes]


@dataclass
class Receiver:
    """The requests received, and `answer`: a status, or a status, headers and a body."""

    port: int
    answer: Callable[[Heard], Reply]
    heard: list[Heard] = field(default_factory=list)

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def wait(self, count: int, timeout: float = 20.0) -> list[Heard]:
        """Return the requests once there are at least `count`."""
        eventually(lambda: len(self.heard) >= count, timeout=timeout, what=f"{count} requests")
        return self.heard


@contextlib.contextmanager
def receiver(answer: Callable[[Heard], Reply] = lambda _: 200) -> Iterator[Receiver]:
    """Run a receiver for the duration of a block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            heard = Heard(
                self.path,
                {name.lower(): value for name, value in self.headers.items()},
                body,
                time.monotonic(),
            )
            found.heard.append(heard)
            reply = found.answer(heard)
            status, headers, content = (reply, {}, b"") if isinstance(reply, int) else reply
            with contextlib.suppress(ConnectionError):
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: Any) -> None:
            return  # a killed bridge is not an error of the receiver

    server = Server(("127.0.0.1", 0), Handler)
    found = Receiver(server.server_address[1], answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
