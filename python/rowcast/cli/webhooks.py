"""`rowcast webhooks`: endpoints, deliveries, and a test request to a receiver."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from rowcast.errors import ConfigError

from .options import Commands, add_database_url, command, database_url

__all__ = ["add"]

ABOUT = """\
Uses the database of ROWCAST_DATABASE_URL, or of a running `rowcast dev`. The URLs themselves are
set in realtime_channels.webhook_urls.

example:
  rowcast webhooks list
  rowcast webhooks deliveries --state failed
  rowcast webhooks redeliver 42
"""

LIST = """\
Shows each endpoint with its state: active, throttled (the receiver asked for a pause), open (it
fails and gets one probe at a time) or disabled.

example:
  rowcast webhooks list --json | jq '.[] | select(.state != "active")'
"""

DELIVERIES = """\
Shows deliveries, newest first. --attempts ID shows the response to each attempt of one delivery.

example:
  rowcast webhooks deliveries --state failed --limit 20
  rowcast webhooks deliveries --attempts 42
"""

REDELIVER = """\
Sends deliveries again: at once, and with a new schedule of retries if that fails. A delivered
one stays delivered whatever the result, so it counts once.

example:
  rowcast webhooks redeliver 42 43
"""

ROTATE = """\
Creates a new signing secret for an endpoint and prints it; it is not shown again. The old one
also signs for a day (rowcast.settings.webhook_secret_grace): update the receiver within that time.

example:
  rowcast webhooks rotate 0f6c1a52-7f2f-4a31-9a8b-3f6a1de0c111
"""

TEST = """\
Sends one signed request from this machine to a URL and prints the response, without using the
database. As in a bridge, addresses that are not public are refused unless
ROWCAST_WEBHOOK_ALLOW_CIDRS contains them. The exit code is 1 unless the status is 2xx.

example:
  ROWCAST_WEBHOOK_ALLOW_CIDRS=127.0.0.0/8 rowcast webhooks test http://127.0.0.1:3000/webhook
"""

# The example key of the Standard Webhooks specification, for a receiver without a secret.
EXAMPLE_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    parser = command(commands, "webhooks", _never, "Show and control webhooks.", ABOUT)
    group = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    sub = command(group, "list", _list, "Show the endpoints.", LIST)
    _add_common(sub)
    sub.add_argument("--channel", metavar="PATTERN", help="show only those of this channel")
    sub = command(group, "deliveries", _deliveries, "Show deliveries.", DELIVERIES)
    _add_common(sub)
    sub.add_argument("--channel", metavar="PATTERN", help="show only those of this channel")
    sub.add_argument("--state", help="pending, delivered, failed or cancelled")
    sub.add_argument(
        "--limit", type=int, default=50, metavar="N", help="number of deliveries, 50 by default"
    )
    sub.add_argument(
        "--after", metavar="CURSOR", help="continue after this cursor of the page before"
    )
    sub.add_argument(
        "--attempts", type=int, metavar="ID", help="show the attempts of this delivery"
    )
    sub = command(group, "redeliver", _redeliver, "Send deliveries again.", REDELIVER)
    add_database_url(sub, "the bridge login or of the owner")
    sub.add_argument("delivery", type=int, nargs="+", help="number of a delivery")
    sub = command(group, "rotate", _rotate, "Create a new secret for an endpoint.", ROTATE)
    _add_common(sub)
    sub.add_argument("endpoint", type=_uuid, help="id of an endpoint, as shown by `list`")
    sub = command(group, "test", _test, "Send one request to a URL.", TEST)
    sub.add_argument("url", metavar="URL")
    sub.add_argument(
        "--secret", default=EXAMPLE_SECRET, help="signing secret; an example key by default"
    )
    sub.add_argument("--json", action="store_true", help="print one JSON object")


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_database_url(parser, "the bridge login or of the owner")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not the id of an endpoint") from None


def _never(args: argparse.Namespace) -> int:
    raise AssertionError("a sub-command is required")


def _url(args: argparse.Namespace) -> str:
    return database_url(args, "ROWCAST_DATABASE_URL", "ROWCAST_MIGRATE_URL")


def _list(args: argparse.Namespace) -> int:
    from .queries import open_database

    with open_database(_url(args)) as database:
        found = database.endpoints()
    if args.channel:
        found = [endpoint for endpoint in found if endpoint["pattern"] == args.channel]
    if args.json:
        print(json.dumps(found))
    elif not found:
        print("no endpoints: add a URL to webhook_urls of a channel in realtime_channels")
    else:
        _table(found, ["id", "pattern", "url", "state", "pending", "failures", "reason"])
    return 0


def _deliveries(args: argparse.Namespace) -> int:
    from .queries import open_database

    with open_database(_url(args)) as database:
        if args.attempts is not None:
            attempts = database.delivery_attempts(args.attempts)
            if args.json:
                print(json.dumps(attempts))
            else:
                _table(attempts, ["attempt", "at", "status", "durationMs", "error", "body"])
            return 0
        channel = None
        if args.channel:
            ids = {e["pattern"]: e["channelId"] for e in database.endpoints()}
            if args.channel not in ids:
                raise ConfigError(
                    f"No channel {args.channel!r} has webhooks: see `rowcast webhooks list`."
                )
            channel = UUID(ids[args.channel])
        page = database.deliveries(channel, args.state, args.limit, args.after)
    if args.json:
        print(json.dumps(page))
        return 0
    _table(
        page["deliveries"],
        ["id", "createdAt", "url", "state", "attempts", "lastStatus", "lastError", "nextAttemptAt"],
    )
    if page["next"]:
        print(f"more: --after {page['next']}")
    return 0


def _redeliver(args: argparse.Namespace) -> int:
    from .queries import open_database

    with open_database(_url(args)) as database:
        for number in args.delivery:
            queued = database.redeliver(number)["queued"]
            print(f"delivery {number} {'is queued' if queued else 'is being sent at this moment'}")
    return 0


def _rotate(args: argparse.Namespace) -> int:
    from .queries import open_database

    with open_database(_url(args)) as database:
        rotated = database.rotate_secret(args.endpoint)
    if args.json:
        print(json.dumps(rotated))
    else:
        print(rotated["secret"])
    return 0


def _test(args: argparse.Namespace) -> int:
    import asyncio

    from rowcast.bridge.model import Delivery
    from rowcast.bridge.webhooks.egress import Guard, Sender
    from rowcast.bridge.webhooks.signing import headers, key_of
    from rowcast.config import Settings

    try:
        key_of(args.secret)
    except ValueError as problem:
        raise ConfigError(f"--secret is not valid: {problem}.") from None
    settings = Settings.from_env(os.environ)
    body = {
        "event": "webhook.test",
        "channelName": "rowcast:test",
        "channelId": str(UUID(int=0)),
        "payload": {"text": "Hello from rowcast"},
        "senderId": None,
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()),
    }
    delivery = Delivery(
        id=0,
        attempt=1,
        message_id=uuid4(),
        endpoint_id=UUID(int=0),
        url=args.url,
        secrets=(args.secret,),
        bare=False,
        event="webhook.test",
        channel="rowcast:test",
        body=json.dumps(body, separators=(",", ":")).encode(),
    )

    async def send() -> Any:
        guard = Guard(settings.webhook_allow_cidrs)
        async with Sender(guard, settings.webhook_timeout) as sender:
            assert delivery.body is not None
            return await sender.post(args.url, delivery.body, headers(delivery, int(time.time())))

    answer = asyncio.run(send())
    good = answer.status is not None and 200 <= answer.status < 300
    if args.json:
        print(json.dumps({"status": answer.status, "error": answer.error,
                          "durationMs": answer.ms, "body": answer.snippet}))  # fmt: skip
    else:
        said = answer.error if answer.status is None else f"status {answer.status}"
        print(f"{'delivered' if good else 'failed'}: {said} after {answer.ms} ms")
        if answer.error == "denied_address":
            print("the address is not public: add its network to ROWCAST_WEBHOOK_ALLOW_CIDRS")
        if answer.error == "invalid_url":
            print("the address is not a URL: write it like https://example.com/webhook")
        if answer.snippet:
            print(answer.snippet)
    return 0 if good else 1


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    shown = [columns, *(["-" if r[c] is None else str(r[c]) for c in columns] for r in rows)]
    widths = [max(len(row[n]) for row in shown) for n in range(len(columns))]
    for row in shown:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
