"""Opens the port, alone or shared with other bridges of this machine."""

from __future__ import annotations

import errno
import os
import socket

from rowcast.config import Settings
from rowcast.errors import ConfigError

__all__ = ["BACKLOG", "hold_port", "open_port", "url_of"]

BACKLOG = 4096
REMEDIES: dict[int | None, str] = {
    errno.EADDRINUSE: "stop what uses it, or set ROWCAST_PORT",
    errno.EACCES: "set ROWCAST_PORT to one from 1024 on",
}


def open_port(settings: Settings) -> socket.socket:
    """Return a listening socket.

    With `reuse_port` the kernel distributes clients among all bridges that listen on the port, and
    a bridge that ends leaves new clients to the others.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    return _open(settings, shared=settings.reuse_port == "yes", listening=True)


def hold_port(settings: Settings) -> socket.socket:
    """Return a bound socket that gets no clients: it keeps the port for bridges that share it.

    Raises:
        ConfigError: the address cannot be bound.
    """
    if settings.reuse_port == "no":
        # Otherwise it could be shared with a bridge that serves here already, perhaps another
        # database.
        _open(settings, shared=False, listening=False).close()
    return _open(settings, shared=True, listening=False)


def _open(settings: Settings, *, shared: bool, listening: bool) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        if listening:
            opened = socket.create_server(
                address, family=family, backlog=BACKLOG, reuse_port=shared
            )
        else:
            opened = socket.socket(family, socket.SOCK_STREAM)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
            opened.bind(address)
    except (OSError, ValueError, AttributeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        why = os.strerror(number) if number and number > 0 else error  # Python adds the address
        remedy = REMEDIES.get(number, "set ROWCAST_HOST to an address of this machine")
        raise ConfigError(
            f"{settings.host}:{settings.port} cannot be listened on ({why}): {remedy}."
        ) from error
    opened.setblocking(False)
    return opened


def url_of(opened: socket.socket) -> str:
    """The base URL of a bound socket."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
