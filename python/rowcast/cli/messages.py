"""`rowcast publish` and `rowcast listen`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from rowcast.errors import UsageError

from .options import Commands, add_database_url, bridge_target, command, database_url

__all__ = ["add"]

PUBLISH = """\
Publishes in the database of --database-url, ROWCAST_DATABASE_URL, or a `rowcast dev` that runs;
the login must own rowcast or be granted rowcast_publisher. With --url it publishes through a
bridge instead, as the client of --token, under the policies. Prints the id of the message.

PAYLOAD is JSON, @FILE, or - for standard input; {} when left out.

example:
  rowcast publish chat:room1 message.new '{"text": "hello"}'
  echo '{"status": "paid"}' | rowcast publish order:123 order.paid - --type broadcast
"""

LISTEN = """\
Prints one line per message until Ctrl-C, and connects again whenever the connection is lost,
without losing messages. Without --url and --token it finds a `rowcast dev` that runs. What
happens to the connection goes to standard error, and at the end the cursor that --after takes.

example:
  rowcast listen chat:room1 global --history 10
  rowcast listen order:123 --url https://realtime.example.com --token "$TOKEN" --json
"""


def add(commands: Commands) -> None:
    """Describe the commands."""
    parser = command(commands, "publish", _publish, "Publish a message.", PUBLISH)
    parser.add_argument("channel", metavar="CHANNEL")
    parser.add_argument("event", metavar="EVENT")
    parser.add_argument("payload", metavar="PAYLOAD", nargs="?", default="{}")
    parser.add_argument(
        "--type", choices=("message", "broadcast"), default="message", help="message by default"
    )
    parser.add_argument("--id", metavar="UUID", help="a repeat with this id publishes nothing")
    parser.add_argument(
        "--count", type=int, default=1, metavar="N", help="publish it so many times"
    )
    add_database_url(parser, "the login that publishes")
    _add_bridge(parser)
    parser = command(commands, "listen", _listen, "Print messages as they come.", LISTEN)
    parser.add_argument("channels", metavar="CHANNEL", nargs="+")
    _add_bridge(parser)
    parser.add_argument("--after", metavar="CURSOR", help="go on from where another one stopped")
    parser.add_argument(
        "--history", type=int, default=0, metavar="N", help="print the newest N messages first"
    )
    parser.add_argument("--json", action="store_true", help="print each message as JSON")


def _add_bridge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="address of a bridge, instead of ROWCAST_URL")
    parser.add_argument("--token", help="token of the client, instead of ROWCAST_TOKEN")


def _publish(args: argparse.Namespace) -> int:
    payload = _payload(args.payload)
    key = _key(args.id)
    if args.count < 1:
        raise UsageError(f"--count {args.count}: use at least 1.")
    if key is not None and args.count > 1:
        raise UsageError("--id names one message: leave out --count.")
    if (args.url or args.token) and args.database_url:
        raise UsageError("--database-url and --url are two ways to publish: give one of them.")
    if args.url or args.token:
        _refuse_nameless(args.channel)
        import asyncio

        from .following import publish

        url, token = bridge_target(args)
        message_id = asyncio.run(
            publish(url, token, args.channel, args.event, payload, args.type, key, args.count)
        )
        _published(message_id, args.count)
        return 0
    from rowcast.postgres.connect import connect

    with connect(database_url(args, "ROWCAST_DATABASE_URL")) as database:
        if args.count == 1:
            stored = database.publish(args.channel, args.event, payload, args.type, key)
            _published(str(stored), 1)
        else:
            count = database.publish_many(args.channel, args.event, payload, args.type, args.count)
            _published("", count)
    return 0


def _published(message_id: str, count: int) -> None:
    print(message_id if count == 1 else f"{count} messages published")


def _payload(text: str) -> str:
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as problem:
            raise UsageError(f"The payload {text} cannot be read: {problem}.") from problem
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as problem:
        raise UsageError(
            f'The payload is not JSON ({problem}): write it like \'{{"text": "hello"}}\', or '
            "name a file with @."
        ) from problem
    return text


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _refuse_nameless(channel: str) -> None:
    if not channel:
        raise UsageError("CHANNEL is empty: name one, such as chat:room1.")


def _key(text: str | None) -> UUID | None:
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
        _refuse_nameless(channel)
    url, token = bridge_target(args)

    import asyncio

    from .following import follow

    asyncio.run(
        follow(
            url,
            token,
            list(dict.fromkeys(args.channels)),
            after=args.after,
            history=args.history,
            as_json=args.json,
        )
    )
    return 0
