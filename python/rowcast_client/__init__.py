"""The rowcast client for asyncio.

    import rowcast_client

    async with rowcast_client.connect("http://127.0.0.1:8080", token=token) as realtime:
        channel = realtime.channel("chat:room1")
        await channel.subscribe()
        await channel.send(event="message.new", payload={"text": "hello"})
        async for message in channel:
            print(message.event, message.payload)

The client reconnects by itself and resumes every channel from the position that the session had
reached: no message is lost and none arrives twice. `Realtime.cursor` is the position up to which
the application has handled everything; a later process that passes it as `after` continues there.

- `realtime`: the connection's life: connects, reconnects, closes
- `connection`: one WebSocket, its requests and their answers
- `channel`: a channel as applications use it
- `channels`: which channels are wanted, the requests for them, and the frames for them
- `channel_state`: the state of one channel
- `dispatch`: calls callbacks in order, and stops reading when too much waits
- `publishing`: publishes that wait for their answer
- `presence`: the members of channels, and this client among them
- `identity`: the token and its refresh
- `resume`: the cursor, and the message ids that a replay may repeat
- `frames`: frames as Python values
- `options`: the options of `connect`
"""

from __future__ import annotations

from urllib.parse import urlencode, urlsplit, urlunsplit

from .channel import Channel
from .frames import Message, RealtimeError
from .identity import Token
from .options import Options
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
    """Make a client; use it with `async with`.

    Args:
        url: ``http(s)://`` address of the server.
        token: the caller's JWT, or a function or coroutine function that returns it. A function
            is called at every connect and when the token is about to expire.
        api_key: the public key, for clients without a token.
        after: a `Realtime.cursor` of an earlier process: the first subscription of every channel
            resumes from it. Subscribe to all channels before storing a new cursor.
        timeout: seconds until an unanswered request is an error.
        connect_timeout: seconds until the first connect gives up.
        min_delay: shortest pause before a reconnect, in seconds.
        max_delay: longest pause before a reconnect, in seconds.
        max_queue: number of messages that may wait for the application before reading stops.
        max_pending: number of sends that may wait for an answer.
    """
    parts = urlsplit(url)
    address = parts._replace(
        scheme={"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme),
        path=parts.path.rstrip("/") + "/realtime",
        query=urlencode({"apikey": api_key}) if api_key else "",
        fragment="",
    )
    options = Options(
        after=after,
        timeout=timeout,
        connect_timeout=connect_timeout,
        min_delay=min_delay,
        max_delay=max_delay,
        max_queue=max_queue,
        max_pending=max_pending,
    )
    return Realtime(urlunsplit(address), token, options)
