"""Sends requests to addresses that users chose, and only to public ones (SSRF protection).

A name proves nothing: it may resolve to another address by the time of the connection. So the
address itself is checked at the one place that makes a socket for it, however the URL was spelled.
Proxies of the environment and redirects are not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias

import aiohttp

from rowcast.bridge.model import Response
from rowcast.errors import ConfigError

__all__ = ["Guard", "Sender"]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# The special-purpose registries of IANA (RFC 6890 and later), and addresses that clouds reserve.
DENIED_4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32",
        "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24",
        "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15",
        "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
# In IPv6 only global unicast is public, except for networks that embed an IPv4 address (Teredo and
# 6to4) or are for documentation and protocols. NAT64, v4-mapped, loopback, link-local, unique local
# and multicast lie outside of it.
GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
DENIED_6 = tuple(
    ipaddress.IPv6Network(text)
    for text in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)

DENIED = "the address is not public"
READ_BYTES = 16384
SNIPPET_BYTES = 4096
SNIPPET_SHOWN = 1024
CONNECT_TIMEOUT = 5.0
# Seconds for the body after the status, which counts; the body is only for the log.
BODY_TIMEOUT = 2.0
LARGEST_PAUSE = 86400
# Seconds: shorter than usual servers', so that a request does not meet a closing connection.
KEEPALIVE = 4.0


class DeniedAddressError(OSError):
    """The address must not be connected to."""


class Guard:
    """Checks addresses, and makes sockets for those that may be connected to.

    Args:
        allowed: networks that may be reached although they are not public.

    Raises:
        ConfigError: one of them is not a network.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        try:
            self._allowed = tuple(ipaddress.ip_network(text) for text in allowed)
        except ValueError as error:
            raise ConfigError(
                f"ROWCAST_WEBHOOK_ALLOW_CIDRS: {error}; write networks like 10.1.0.0/16."
            ) from None

    def permits(self, text: str) -> bool:
        """Say whether an address, as `getaddrinfo` writes it, may be connected to."""
        address: Address = ipaddress.ip_address(text.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped  # the kernel connects to this one
        if any(address in network for network in self._allowed):
            return True
        if isinstance(address, ipaddress.IPv4Address):
            return not any(address in network for network in DENIED_4)
        return address in GLOBAL_6 and not any(address in network for network in DENIED_6)

    def __call__(self, info: tuple[Any, ...]) -> socket.socket:
        """Make the socket for one address.

        Raises:
            DeniedAddressError: it is not permitted; no socket was made.
        """
        family, kind, proto, _, address = info
        if family not in (socket.AF_INET, socket.AF_INET6) or not self.permits(address[0]):
            raise DeniedAddressError(errno.EPERM, DENIED)
        return _Socket(family=family, type=kind, proto=proto)


class _Socket(socket.socket):
    """Reads at most as much as answers need. asyncio asks for 256 KiB, and memory of that size is
    mapped and unmapped at every read."""

    def recv(self, size: int, flags: int = 0) -> bytes:
        return super().recv(min(size, READ_BYTES), flags)


class Sender:
    """Sends POST requests; each has one outcome, whatever the receiver does.

    It is an asynchronous context manager.

    Args:
        guard: decides which addresses may be reached.
        timeout: seconds for a whole request.
    """

    def __init__(self, guard: Guard, timeout: float) -> None:
        self._guard = guard
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Sender:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, socket_factory=self._guard, keepalive_timeout=KEEPALIVE
            ),
            timeout=aiohttp.ClientTimeout(
                total=self._timeout, sock_connect=min(CONNECT_TIMEOUT, self._timeout)
            ),
            headers={"Accept-Encoding": "identity"},  # the log is for people
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Response:
        """Send one request; returns its status, or what prevented an answer."""
        assert self._session is not None
        began = time.monotonic()
        status: int | None = None
        error: str | None = None
        snippet: str | None = None
        pause: int | None = None
        try:
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                status = response.status
                pause = retry_after(response.headers)
                snippet = await _beginning(response)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as problem:
            # An error after the status does not change the outcome.
            error = word(problem) if status is None else None
        ms = round((time.monotonic() - began) * 1000)
        return Response(ms, status, error, snippet, pause)


async def _beginning(response: aiohttp.ClientResponse) -> str | None:
    """Read the beginning of a body; a longer one costs the connection and not the time."""
    content = response.content
    if content.is_eof():  # it came with the head, as most do
        found = content.read_nowait(SNIPPET_BYTES)
    else:
        found = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BODY_TIMEOUT):
                while len(found) < SNIPPET_BYTES and not content.at_eof():
                    found += await content.read(SNIPPET_BYTES - len(found))
    if not content.at_eof():
        response.close()
    text = (
        found[:SNIPPET_SHOWN].decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    )
    return text or None


def retry_after(headers: Mapping[str, str]) -> int | None:
    """Return the seconds of Retry-After (RFC 9110, 10.2.3), at most a day, or None."""
    text = headers.get("Retry-After", "").strip()
    if not text:
        return None
    if text.isascii() and text.isdecimal():
        return min(int(text[:10]), LARGEST_PAUSE)
    try:
        until = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    try:
        now = parsedate_to_datetime(headers.get("Date", "")).timestamp()  # by the same clock
    except (ValueError, TypeError, IndexError, OverflowError):
        now = time.time()
    return min(int(until - now), LARGEST_PAUSE) if until > now else None


def word(problem: BaseException) -> str:
    """Return what prevented an answer, in one word for the log."""
    if isinstance(problem, TimeoutError):
        return "timeout"
    if isinstance(problem, aiohttp.InvalidURL):
        return "invalid_url"
    if isinstance(problem, aiohttp.ClientConnectorDNSError):
        return "dns"
    if isinstance(problem, aiohttp.ClientSSLError):
        return "tls"
    if isinstance(problem, aiohttp.ClientConnectorError):
        if DENIED in str(problem.os_error):
            return "denied_address"
        return "refused" if problem.os_error.errno == errno.ECONNREFUSED else "connect"
    if isinstance(problem, aiohttp.ServerDisconnectedError | OSError):
        return "disconnected"
    return "invalid_answer"
