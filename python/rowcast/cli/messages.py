"""`rowcast publish` and `rowcast listen`.

The client is imported only by the functions that use it, so that other commands start fast.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from rowcast.errors import RowcastError, UsageError

from .options import Commands, add_database_url, bridge_target, command, database_url

if TYPE_CHECKING:
    from rowcast_client import Channel, Message, Realtime, RealtimeError

__all__ = ["add"]

PUBLISH = """\
Publishes directly in the database of --database-url or ROWCAST_DATABASE_URL, or of a running
`rowcast dev`. That login must own rowcast or be granted rowcast_publisher. With --url or --token
the message goes through a bridge instead, as the client of the token and subject to the policies.
Prints the id of the message.

PAYLOAD is JSON, @FILE, or - for standard input; {} by default.

example:
  rowcast publish chat:room1 message.new '{"text": "hello"}'
  echo '{"status": "paid"}' | rowcast publish order:123 order.paid - --type broadcast
"""

LISTEN = """\
Prints one line per message until Ctrl-C. Reconnects after a lost connection without losing
messages. Without --url and --token it uses a running `rowcast dev`. Changes of the connection are
reported on standard error, and at the end the cursor for --after.

example:
  rowcast listen chat:room1 global --history 10
  rowcast listen order:123 --url https://realtime.example.com --token "$TOKEN" --json
"""

# seconds; a bridge may be starting at the same time as this command
CONNECT_TIMEOUT = 10.0
# publishes that wait for their answers at the same time
AT_ONCE = 50
# Control characters that JSON leaves unescaped and a terminal might obey.
ESCAPES = {code: f"\\u{code:04x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}


def add(commands: Commands) -> None:
    """Add both commands to the parser."""
    parser = command(commands, "publish", _publish, "Publish a message.", PUBLISH)
    parser.add_argument("channel", metavar="CHANNEL")
    parser.add_argument("event", metavar="EVENT")
    parser.add_argument("payload", metavar="PAYLOAD", nargs="?", default="{}")
    parser.add_argument(
        "--type", choices=("message", "broadcast"), default="message", help="message by default"
    )
    parser.add_argument(
        "--id", metavar="UUID", help="id of the message; publishing it again has no effect"
    )
    parser.add_argument(
        "--count", type=int, default=1, metavar="N", help="publish the message N times"
    )
    add_database_url(parser, "the login that publishes")
    _add_bridge(parser)
    parser = command(commands, "listen", _listen, "Print messages as they arrive.", LISTEN)
    parser.add_argument("channels", metavar="CHANNEL", nargs="+")
    _add_bridge(parser)
    parser.add_argument("--after", metavar="CURSOR", help="resume after this cursor")
    parser.add_argument(
        "--history", type=int, default=0, metavar="N", help="print the newest N messages first"
    )
    parser.add_argument("--json", action="store_true", help="print each message as JSON")


def _add_bridge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="URL of a bridge, instead of ROWCAST_URL")
    parser.add_argument("--token", help="token of the client, instead of ROWCAST_TOKEN")


def _publish(args: argparse.Namespace) -> int:
    payload = _read_payload(args.payload)
    key = _message_id(args.id)
    if args.count < 1:
        raise UsageError(f"--count {args.count}: use at least 1.")
    if key is not None and args.count > 1:
        raise UsageError("--id names one message: leave out --count.")
    if (args.url or args.token) and args.database_url:
        raise UsageError("--database-url and --url are two ways to publish: give one of them.")
    if args.url or args.token:
        _refuse_empty(args.channel)
        url, token = bridge_target(args)
        message_id = asyncio.run(_publish_through_bridge(url, token, args, payload, key))
        _print_published(message_id, args.count)
        return 0
    from .queries import open_database

    with open_database(database_url(args, "ROWCAST_DATABASE_URL")) as database:
        if args.count == 1:
            stored = database.publish(args.channel, args.event, payload, args.type, key)
            _print_published(str(stored), 1)
        else:
            count = database.publish_many(args.channel, args.event, payload, args.type, args.count)
            _print_published("", count)
    return 0


def _print_published(message_id: str, count: int) -> None:
    print(message_id if count == 1 else f"{count} messages published")


def _read_payload(text: str) -> str:
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"The payload {text} cannot be read: {error}.") from error
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f'The payload is not JSON ({error}): write it like \'{{"text": "hello"}}\', or '
            "name a file with @."
        ) from error
    return text


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _refuse_empty(channel: str) -> None:
    if not channel:
        raise UsageError("CHANNEL is empty: name one, such as chat:room1.")


def _message_id(text: str | None) -> UUID | None:
    if text is None:
        return None
    try:
        return UUID(text)
    except ValueError:
        raise UsageError(f"--id {text} is not a UUID.") from None


def _listen(args: argparse.Namespace) -> int:
    if args.history < 0:
        raise UsageError(f"--history {args.history}: use 0 or more.")
    for channel in args.channels:
        _refuse_empty(channel)
    url, token = bridge_target(args)
    asyncio.run(_follow(url, token, args))
    return 0


async def _publish_through_bridge(
    url: str, token: str, args: argparse.Namespace, payload: str, key: UUID | None
) -> str:
    """Publish the message `args.count` times; return the id of the last one.

    Raises:
        RowcastError: the bridge cannot be reached, or refused the message.
    """
    from rowcast_client import RealtimeError

    value, message_id = json.loads(payload), ""
    try:
        async with _connect_client(url, token) as realtime:
            channel = realtime.channel(args.channel)
            for first in range(0, args.count, AT_ONCE):
                *_, message_id = await asyncio.gather(
                    *(
                        channel.send(
                            args.event, value, type=args.type, id=str(key) if key else None
                        )
                        for _ in range(min(AT_ONCE, args.count - first))
                    )
                )
    except RealtimeError as error:
        raise _client_error(error, url, "publish") from error
    return message_id


async def _follow(url: str, token: str, args: argparse.Namespace) -> None:
    """Print the messages of all channels until the last channel is closed.

    Raises:
        RowcastError: the bridge cannot be reached or refused the token, or the last channel was
            refused or closed.
    """
    from rowcast_client import RealtimeError

    try:
        async with _connect_client(url, token, args.after) as realtime:
            _report_connection(realtime)
            tasks = [
                asyncio.create_task(_print_messages(realtime.channel(name), args))
                for name in dict.fromkeys(args.channels)
            ]
            try:
                await _until_all_end(tasks, url)
            finally:
                for task in tasks:
                    task.cancel()
                if realtime.cursor:
                    _note(f"to resume from here: --after {realtime.cursor}")
    except RealtimeError as error:
        raise _client_error(error, url) from error


def _connect_client(url: str, token: str, after: str | None = None) -> Realtime:
    from rowcast_client import connect

    realtime = connect(url, token=token, after=after, connect_timeout=CONNECT_TIMEOUT)

    def failed(attempt: dict[str, Any]) -> None:
        if attempt["attempt"] == 1 and realtime.cursor == after and not realtime.connected:
            _note(f"no answer from {url} yet")

    return realtime.on("reconnecting", failed)


async def _print_messages(channel: Channel, args: argparse.Namespace) -> None:
    channel.on("resync", _report_gap)
    channel.on("error", lambda _: None)  # subscribing or iterating raises the same error
    await channel.subscribe(history=args.history)
    _note(f"listening to {channel.name}")
    async for message in channel:
        print(_json(message) if args.json else _text(message), flush=True)


async def _until_all_end(tasks: Sequence[asyncio.Task[None]], url: str) -> None:
    from rowcast_client import RealtimeError

    left = set(tasks)
    while left:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = task.exception()
            if isinstance(error, RealtimeError) and left:
                _note(str(_client_error(error, url)))
            elif error is not None:
                raise error


def _report_connection(realtime: Realtime) -> None:
    realtime.on("disconnect", lambda end: _note(f"the connection is lost: {end['reason']}"))
    realtime.on("connect", lambda _: _note("connected"))
    realtime.on("error", lambda error: None if error.channel else _note(str(error)))


def _report_gap(event: dict[str, Any]) -> None:
    if not event.get("recovered"):
        _note(
            f"messages of {event['channel']} were missed and cannot be replayed"
            f" ({event.get('reason')}): --history shows the newest"
        )


def _client_error(error: RealtimeError, url: str, action: str = "subscribe") -> RowcastError:
    text = f"{error.channel}: {error}" if error.channel else str(error)
    if error.code == "unreachable":
        reason = text.partition("): ")[2] or text
        text = (
            f"No bridge answers at {url} ({reason.rstrip('.')}): start one with `rowcast serve` or"
            " `rowcast dev`, or check --url."
        )
    elif error.code in ("invalid_token", "token_expired"):
        text += " Create one with `rowcast token` and the bridge's ROWCAST_JWT_SECRET."
    elif error.code == "forbidden" and error.channel:
        text += f" The owner's `rowcast policy explain {action} {error.channel}` tells which."
    return RowcastError(text)


def _text(message: Message) -> str:
    line = f"{message.timestamp} {message.channel} {message.event} {_payload_text(message)}"
    return line.translate(ESCAPES)


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
    return f'{known[:-1]}, "payload": {_payload_text(message)}}}'


def _payload_text(message: Message) -> str:
    if message.raw:
        return str(message.payload)
    return json.dumps(message.payload, ensure_ascii=False)


def _note(text: str) -> None:
    print(f"rowcast: {text}", file=sys.stderr, flush=True)
