"""What `rowcast listen`, and `rowcast publish` through a bridge, do with the client."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from rowcast.errors import RowcastError
from rowcast_client import Channel, Message, Realtime, RealtimeError, connect

__all__ = ["follow", "publish"]

# Long enough for a bridge that is just being started beside this command.
CONNECT_TIMEOUT = 10.0
# So many publishes wait for their answers at a time.
AT_ONCE = 50
# What a terminal might obey instead of showing it, and JSON leaves as it is.
UNSEEN = {code: f"\\u{code:04x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}


async def publish(
    url: str,
    token: str,
    name: str,
    event: str,
    payload: str,
    kind: str,
    key: UUID | None,
    count: int,
) -> str:
    """Publish through a bridge, `count` times; return the id of the last message.

    Raises:
        RowcastError: the bridge cannot be reached, or refused.
    """
    value, message_id = json.loads(payload), ""
    try:
        async with _bridge(url, token) as realtime:
            channel = realtime.channel(name)
            for first in range(0, count, AT_ONCE):
                *_, message_id = await asyncio.gather(
                    *(
                        channel.send(event, value, type=kind, id=str(key) if key else None)
                        for _ in range(min(AT_ONCE, count - first))
                    )
                )
    except RealtimeError as error:
        raise _named(error, url, "publish") from error
    return message_id


async def follow(
    url: str,
    token: str,
    names: Sequence[str],
    *,
    after: str | None,
    history: int,
    as_json: bool,
) -> None:
    """Print what comes on these channels until the last of them is closed.

    Raises:
        RowcastError: the bridge cannot be reached or refused the token, or the last channel was
            refused or closed.
    """
    try:
        async with _bridge(url, token, after) as realtime:
            _tell_state(realtime)
            tasks = [
                asyncio.create_task(_print(realtime.channel(name), history, as_json))
                for name in names
            ]
            try:
                await _until_none_is_left(tasks, url)
            finally:
                for task in tasks:
                    task.cancel()
                if realtime.cursor:
                    _note(f"to go on from here: --after {realtime.cursor}")
    except RealtimeError as error:
        raise _named(error, url) from error


def _bridge(url: str, token: str, after: str | None = None) -> Realtime:
    realtime = connect(url, token=token, after=after, connect_timeout=CONNECT_TIMEOUT)

    def failed(attempt: dict[str, Any]) -> None:
        if attempt["attempt"] == 1 and realtime.cursor == after and not realtime.connected:
            _note(f"no answer from {url} yet")

    return realtime.on("reconnecting", failed)


async def _print(channel: Channel, history: int, as_json: bool) -> None:
    channel.on("resync", _tell_resync)
    channel.on("error", lambda _: None)  # what subscribing or iterating raises, too
    await channel.subscribe(history=history)
    _note(f"listening to {channel.name}")
    async for message in channel:
        print(_json(message) if as_json else _text(message), flush=True)


async def _until_none_is_left(tasks: Sequence[asyncio.Task[None]], url: str) -> None:
    left = set(tasks)
    while left:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = task.exception()
            if isinstance(error, RealtimeError) and left:
                _note(str(_named(error, url)))
            elif error is not None:
                raise error


def _tell_state(realtime: Realtime) -> None:
    realtime.on("disconnect", lambda end: _note(f"the connection is lost: {end['reason']}"))
    realtime.on("connect", lambda _: _note("connected"))
    realtime.on("error", lambda error: None if error.channel else _note(str(error)))


def _tell_resync(event: dict[str, Any]) -> None:
    if not event.get("recovered"):
        _note(
            f"messages of {event['channel']} were missed that cannot be replayed"
            f" ({event.get('reason')}): --history shows the newest"
        )


def _named(error: RealtimeError, url: str, action: str = "subscribe") -> RowcastError:
    text = f"{error.channel}: {error}" if error.channel else str(error)
    if error.code == "unreachable":
        reason = text.partition("): ")[2] or text
        text = (
            f"There is no bridge at {url} ({reason.rstrip('.')}): start one with `rowcast serve` or"
            " `rowcast dev`, or check --url."
        )
    elif error.code in ("invalid_token", "token_expired"):
        text += " Make one with `rowcast token` and the bridge's ROWCAST_JWT_SECRET."
    elif error.code == "forbidden" and error.channel:
        text += f" The owner's `rowcast policy explain {action} {error.channel}` tells which."
    return RowcastError(text)


def _text(message: Message) -> str:
    line = f"{message.timestamp} {message.channel} {message.event} {_payload(message)}"
    return line.translate(UNSEEN)


def _json(message: Message) -> str:
    fields: dict[str, Any] = {
        "id": message.id,
        "type": message.type,
        "event": message.event,
        "channel": message.channel,
        "senderId": message.sender_id,
        "timestamp": message.timestamp,
    }
    known = json.dumps({name: value for name, value in fields.items() if value is not None})
    return f'{known[:-1]}, "payload": {_payload(message)}}}'


def _payload(message: Message) -> str:
    if message.raw:
        return str(message.payload)
    return json.dumps(message.payload, ensure_ascii=False)


def _note(text: str) -> None:
    print(f"rowcast: {text}", file=sys.stderr, flush=True)
