"""`rowcast serve` and `rowcast config`."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from rowcast.config import Settings

from .options import Commands, command, port

__all__ = ["add"]

SERVE = """\
Runs until SIGTERM or Ctrl-C, then closes its clients and ends. When clients can connect, it
writes to standard output: a sentence on a terminal, otherwise one line of JSON that begins with
{"event":"ready". Log lines go to standard error.

example:
  export ROWCAST_DATABASE_URL=postgresql://rowcast_bridge:...@db/app
  export ROWCAST_CALLER_URL=postgresql://rowcast_caller:...@db/app
  export ROWCAST_JWT_SECRET=...
  rowcast serve --port 8080 --workers 4
"""

CONFIG = """\
Prints each variable with its effective value and its meaning. Secrets are masked. --all adds the
settings that rarely need to change, such as the intervals of polling.

example:
  ROWCAST_PORT=9000 rowcast config | grep PORT
"""


def add(commands: Commands) -> None:
    """Add both commands to the parser."""
    parser = command(commands, "serve", _serve, "Run a bridge.", SERVE)
    parser.add_argument("--host", help="address to listen on, instead of ROWCAST_HOST")
    parser.add_argument(
        "--port", type=port, help="port to listen on, instead of ROWCAST_PORT; 0 chooses a free one"
    )
    parser.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help="number of processes, instead of ROWCAST_WORKERS",
    )
    parser.add_argument(
        "--end-with-stdin",
        action="store_true",
        help="end as with SIGTERM when standard input closes",
    )
    parser = command(commands, "config", _config, "Print the effective settings.", CONFIG)
    parser.add_argument("--all", action="store_true", help="include the rarely changed settings")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _workers(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes: use 1 to 256")
    return int(text)


def _serve(args: argparse.Namespace) -> int:
    given = {"host": args.host, "port": args.port, "workers": args.workers}
    settings = dataclasses.replace(
        Settings.from_env(os.environ), **{k: v for k, v in given.items() if v is not None}
    ).for_serve()

    def ready(url: str, workers: list[int] | None = None) -> None:
        if settings.log_format == "json" or not sys.stdout.isatty():
            event: dict[str, Any] = {"event": "ready", "url": url, "pid": os.getpid()}
            if workers is not None:
                event["workers"] = workers
            print(json.dumps(event, separators=(",", ":")), flush=True)
        else:
            print(f"rowcast listens on {url} (Ctrl-C stops it)", flush=True)

    asyncio.run(_run(settings, ready, args.end_with_stdin))
    return 0


async def _run(settings: Settings, ready: Callable[..., None], end_with_stdin: bool) -> None:
    if end_with_stdin:
        loop = asyncio.get_running_loop()

        def ended() -> None:
            if not os.read(sys.stdin.fileno(), 4096):
                loop.remove_reader(sys.stdin.fileno())
                signal.raise_signal(signal.SIGTERM)

        loop.add_reader(sys.stdin.fileno(), ended)
    if settings.workers > 1:
        from rowcast.bridge.workers import supervise

        await supervise(settings, ready=ready)
    else:
        from rowcast.bridge.app import serve

        await serve(settings, ready=ready)


def _config(args: argparse.Namespace) -> int:
    settings = Settings.from_env(os.environ)
    about = {field.name: field.metadata["about"] for field in dataclasses.fields(settings)}
    rows = [
        (variable, value, about[variable.removeprefix("ROWCAST_").lower()])
        for variable, value in settings.shown(internal=args.all).items()
    ]
    if args.json:
        print(json.dumps({name: {"value": value, "about": text} for name, value, text in rows}))
        return 0
    width = max(len(f"{name}={value}") for name, value, _ in rows)
    for name, value, text in rows:
        print(f"{name}={value}".ljust(width), "#", text)
    return 0
