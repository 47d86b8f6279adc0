"""The command ``rowcast``: finds the sub-command, runs it, and turns errors into sentences.

Exit codes: 0 done, 1 an error or a finding, 2 wrong usage, 130 interrupted; `rowcast policy` also
ends with 3 for a refusal and 4 for a difference.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from rowcast import __version__
from rowcast.config import unknown
from rowcast.errors import RowcastError

from . import database, dev, messages, policy, serve, token, webhooks

__all__ = ["main"]

EPILOG = """\
to begin:
  rowcast dev                       a database, a bridge and keys, in one terminal
  rowcast listen chat:room1         in a second one
  rowcast publish chat:room1 message.new '{"text": "hello"}'

Settings are environment variables; `rowcast config` lists them.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the name of the program; those of the process by default.

    Returns:
        The exit code.
    """
    args, left_over = _parser().parse_known_args(argv)
    if left_over:
        # Left to argparse, this is told with the usage of `rowcast`, not of the command.
        args.parser.error(f"unrecognized arguments: {' '.join(left_over)}")
    for name, nearest in unknown(os.environ).items():
        meant = f": {nearest} is meant?" if nearest else "; `rowcast config` lists them."
        print(f"rowcast: warning: nothing reads {name}{meant}", file=sys.stderr)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except RowcastError as error:
        print(f"rowcast: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read us has seen enough; the interpreter must not try to flush at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class Parser(argparse.ArgumentParser):
    """Says where to read on, whatever was typed."""

    def error(self, message: str) -> NoReturn:
        super().error(f"{message} (`{self.prog} --help` tells more)")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="rowcast",
        description="Realtime for the Postgres you already have.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rowcast {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (dev, database, serve, messages, webhooks, token, policy):
        module.add(commands)
    return parser
