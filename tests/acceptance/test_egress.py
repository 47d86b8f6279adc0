"""Addresses that a webhook must never reach, and receivers that misbehave.

Listeners that are never connected to prove the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from rowcast.bridge.model import Response
from rowcast.bridge.webhooks.egress import Guard, Sender
from rowcast.errors import ConfigError
from support.webhook_receiver import receiver

pytestmark = pytest.mark.acceptance

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listener:
    """A port of this machine in both address families; counts connections."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0

    async def accept(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    found = Listener()
    async with contextlib.AsyncExitStack() as stack:
        four = await asyncio.start_server(found.accept, "127.0.0.1", 0)
        await stack.enter_async_context(four)
        found.port = four.sockets[0].getsockname()[1]
        with contextlib.suppress(OSError):  # IPv6 is not available
            six = await asyncio.start_server(found.accept, "::1", found.port)
            await stack.enter_async_context(six)
        yield found


async def post(url: str, *allowed: str, seconds: float = 5.0) -> Response:
    async with Sender(Guard(allowed), seconds) as sender:
        return await sender.post(url, b"{}", {"Content-Type": "application/json"})


@contextlib.asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[str]:
    """A server that writes raw bytes."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


SPELLINGS = [
    "127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.1", "127.0.1", "0x7f.1",
    "0x7f000001", "0x7f.0.0.1", "2130706433", "017700000001", "0177.0.0.1", "127.0.0.1.",
    "①②⑦.⓪.⓪.①", "127。0。0。1", "%31%32%37.0.0.1", "0", "0.0.0.0", "127.255.255.254",
    "[::1]", "[0:0:0:0:0:0:0:1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[0:0:0:0:0:ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[::1%25lo]", "[fe80::1%25lo]",
]  # fmt: skip


@pytest.mark.parametrize("host", SPELLINGS)
async def test_no_spelling_of_this_machine_is_connected_to(listener: Listener, host: str) -> None:
    answer = await post(f"http://{host}:{listener.port}/")
    assert answer.status is None
    assert answer.error is not None
    assert listener.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "[::ffff:127.0.0.1]"])
async def test_the_listener_would_hear_it(listener: Listener, host: str) -> None:
    """Otherwise the test above would prove nothing."""
    answer = await post(f"http://{host}:{listener.port}/", "127.0.0.0/8", "::1/128")
    assert answer.status == 200
    assert listener.connections == 1


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200",
        "127.0.0.1", "168.63.129.16", "169.254.169.254", "169.254.170.2", "172.16.0.1",
        "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1",
        "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1",
        "255.255.255.255", "::", "::1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "::7f00:1",
        "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:a00:1::",
        "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1",
        "ff02::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    guard = Guard()
    assert not guard.permits(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pytest.raises(OSError, match="not public"):
        guard((family, socket.SOCK_STREAM, 6, "", (address, 80)))


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1",
     "192.167.1.1", "223.255.255.255", "2606:4700::1111", "2a00:1450::1", "::ffff:8.8.8.8"],
)  # fmt: skip
def test_a_public_address_is_permitted(address: str) -> None:
    assert Guard().permits(address)


def test_only_listed_networks_are_permitted_in_addition() -> None:
    guard = Guard(["10.1.0.0/16", "fd12::/16"])
    assert guard.permits("10.1.2.3")
    assert guard.permits("::ffff:10.1.2.3")
    assert guard.permits("fd12::1")
    assert not guard.permits("10.2.0.1")
    assert not guard.permits("fd13::1")
    assert not guard.permits("127.0.0.1")
    with pytest.raises(ConfigError, match="ROWCAST_WEBHOOK_ALLOW_CIDRS"):
        Guard(["10.1.2.3/16"])


def test_no_other_family_gets_a_socket() -> None:
    with pytest.raises(OSError, match="not public"):
        Guard(["0.0.0.0/0", "::/0"])((socket.AF_UNIX, socket.SOCK_STREAM, 0, "", ("/tmp/s",)))


async def test_dns_rebinding_does_not_reach_this_machine(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look-up answers with another address, one of which is this machine's."""
    answers = [["192.0.2.1"], ["127.0.0.1"], ["192.0.2.1", "127.0.0.1"], ["127.0.0.1", "::1"]]
    asked = iter(answers)

    async def getaddrinfo(_: object, host: str, port: int, **__: Any) -> list[Any]:
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port))
            for a in next(asked)
        ]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    for _ in answers:
        answer = await post(f"http://rebind.example:{listener.port}/", "192.0.2.0/24", seconds=0.5)
        assert answer.status is None
    assert listener.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(listener: Listener, status: int) -> None:
    target = {"Location": f"http://[::1]:{listener.port}/"}
    with receiver(lambda _: (status, target, b"")) as hook:
        answer = await post(hook.url(), "127.0.0.0/8", "::1/128")
        assert answer.status == status
        assert len(hook.heard) == 1
    assert listener.connections == 0


async def test_a_proxy_of_the_environment_is_not_used(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{listener.port}")
    with receiver() as hook:
        answer = await post(hook.url(), "127.0.0.0/8")
    assert answer.status == 200
    assert listener.connections == 0


async def test_cookies_are_not_kept() -> None:
    with receiver(lambda _: (200, {"Set-Cookie": "a=b; Path=/"}, b"")) as hook:
        async with Sender(Guard(["127.0.0.0/8"]), 5) as sender:
            for _ in range(2):
                await sender.post(hook.url(), b"{}", {})
        assert [h.headers.get("cookie") for h in hook.heard] == [None, None]


async def test_an_uncompressed_answer_is_requested() -> None:
    """Its beginning is shown to operators and is not decompressed."""
    with receiver() as hook:
        await post(hook.url(), "127.0.0.0/8")
    assert hook.heard[0].headers["accept-encoding"] == "identity"


async def test_an_answer_is_read_in_small_pieces() -> None:
    """By default asyncio reads 256 KiB at a time and maps and unmaps that memory for each read."""

    async def much(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 1_000_000)
        await writer.drain()

    loop = asyncio.get_running_loop()
    async with serving(much) as url:
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1].strip("/")))
        with Guard(["127.0.0.0/8"])((socket.AF_INET, socket.SOCK_STREAM, 6, "", address)) as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            await loop.sock_sendall(sock, b"\r\n\r\n")
            sizes = []
            while found := await loop.sock_recv(sock, 262_144):
                sizes.append(len(found))
    assert sum(sizes) == 1_000_000
    assert max(sizes) <= 16_384


async def hangs(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def closes(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    return


async def drips(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nX-Drip: " + b"x" * 500:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.1)


async def only_continues(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
        await writer.drain()
        await asyncio.sleep(0.01)


async def huge_header(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX-Huge: " + b"x" * 2_000_000 + b"\r\n\r\n")
    await writer.drain()


async def no_http(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example ESMTP\r\n")
    await writer.drain()


@pytest.mark.parametrize(
    ("serve", "error"),
    [
        (hangs, "timeout"),
        (drips, "timeout"),
        (only_continues, "timeout"),
        (closes, "disconnected"),
        (huge_header, "invalid_answer"),
        (no_http, "invalid_answer"),
    ],
)
async def test_every_receiver_ends_within_the_timeout(serve: Serve, error: str) -> None:
    async with serving(serve) as url:
        began = time.monotonic()
        answer = await post(url, "127.0.0.0/8", seconds=1.0)
        assert time.monotonic() - began < 3
    assert (answer.status, answer.error) == (None, error)


async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
        await writer.drain()


async def never_ends(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegun")
    await writer.drain()
    await asyncio.sleep(60)


async def bomb(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    body = gzip.compress(b"\0" * 10_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    writer.write(head + body)
    await writer.drain()


@pytest.mark.parametrize("serve", [endless, never_ends, bomb])
async def test_a_status_counts_although_its_body_does_not_end(serve: Serve) -> None:
    async with serving(serve) as url:
        began = time.monotonic()
        answer = await post(url, "127.0.0.0/8", seconds=10)
        assert time.monotonic() - began < 4
    assert (answer.status, answer.error) == (200, None)
    assert len(answer.snippet or "") <= 1024


async def test_an_unknown_status_is_reported_as_it_is() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with serving(serve) as url:
        assert (await post(url, "127.0.0.0/8")).status == 999


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://127.0.0.1:1/", "refused"),
        ("http://name.invalid/", "dns"),
        ("http://127.0.0.1:99999/", "invalid_url"),
        ("http://[::1/", "invalid_url"),
    ],
)
async def test_the_cause_of_a_missing_answer_is_named(url: str, error: str) -> None:
    assert (await post(url, "127.0.0.0/8")).error == error


async def test_a_receiver_without_tls_is_named() -> None:
    with receiver() as hook:
        answer = await post(hook.url().replace("http:", "https:"), "127.0.0.0/8")
    assert answer.error == "tls"
