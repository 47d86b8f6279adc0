"""The rowcast client for asyncio.

    import rowcast_client

    async with rowcast_client.connect("http://127.0.0.1:8080", token=token) as realtime:
        channel = realtime.channel("chat:room1")
        await channel.subscribe()
        await channel.send(event="message.new", payload={"text": "hello"})
        async for message in channel:
            print(message.event, message.payload)

It reconnects by itself and resumes every channel from where the session stopped: no message is
lost and none comes twice. `Realtime.cursor` says how far the application has got; a later process
that gives it as `after` goes on from there.

- `realtime`: the connection's life: connects, reconnects, closes
- `connection`: one WebSocket, its requests and their answers
- `channel`: a channel as applications use it
- `channels`: which channels are wanted, the state of each, and the frames for them
- `dispatch`: calls callbacks in order, and stops reading when too much waits
- `publishing`: publishes that wait for their answer
- `presence`: the members of channels, and this client among them
- `identity`: the token and its refresh
- `resume`: the cursor, and the message ids that a replay may repeat
- `frames`: frames as Python values
"""

from __future__ import annotations

from urllib.parse import urlencode, urlsplit, urlunsplit

from .channel import Channel
from .frames import Message, RealtimeError
from .identity import Token
from .realtime import Realtime

__all__ = ["Channel", "Message", "Realtime", "RealtimeError", "__version__", "connect"]

__version__ = "0.1.0"


def connect(
    url: str,
    *,
    token: Token = None,
    api_key: str | None = None,
    after: str | None = None,
    timeout: float = 30.0,
    connect_timeout: float = 20.0,
    min_delay: float = 0.5,
    max_delay: float = 30.0,
    max_queue: int = 1000,
    max_pending: int = 5000,
) -> Realtime:
    """Make a client, to be used with `async with`.

    Args:
        url: ``http(s)://`` address of the server.
        token: whom the client speaks for. A callable, which may be asynchronous, is asked at
            every connect and when a token is about to expire.
        api_key: the key of those who have no token.
        after: a `Realtime.cursor` of an earlier process: the first subscription of every channel
            goes on from it. Subscribe to all of them before storing a new cursor.
        timeout: seconds until an unanswered request is an error.
        connect_timeout: seconds until the first connect gives up.
        min_delay: shortest pause before a reconnect, in seconds.
        max_delay: longest pause.
        max_queue: how many messages may wait for the application before reading stops.
        max_pending: how many sends may wait for an answer.
    """
    parts = urlsplit(url)
    address = parts._replace(
        scheme={"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme),
        path=parts.path.rstrip("/") + "/realtime",
        query=urlencode({"apikey": api_key}) if api_key else "",
        fragment="",
    )
    return Realtime(
        urlunsplit(address),
        token=token,
        after=after,
        timeouts=(timeout, connect_timeout),
        delays=(min_delay, max_delay),
        limits=(max_queue, max_pending),
    )
