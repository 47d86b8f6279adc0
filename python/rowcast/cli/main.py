"""The command ``rowcast``: runs a sub-command and prints errors as sentences.

Exit codes: 0 success, 1 an error or a finding, 2 wrong usage, 130 interrupted; `rowcast policy`
also returns 3 for a refusal and 4 for a difference.
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
getting started:
  rowcast dev                       starts a database and a bridge, prints keys
  rowcast listen chat:room1         in a second terminal
  rowcast publish chat:room1 message.new '{"text": "hello"}'

Settings are environment variables; `rowcast config` lists them.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the program name; those of the process by default.

    Returns:
        The exit code.
    """
    args, left_over = _parser().parse_known_args(argv)
    if left_over:
        # argparse itself would print the usage of `rowcast` instead of that of the command.
        args.parser.error(f"unrecognized arguments: {' '.join(left_over)}")
    for name, nearest in unknown(os.environ).items():
        meant = f": did you mean {nearest}?" if nearest else "; `rowcast config` lists them."
        print(f"rowcast: warning: unknown setting {name}{meant}", file=sys.stderr)
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
        # The reader closed the pipe; the interpreter must not flush to it when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class Parser(argparse.ArgumentParser):
    """A parser whose errors point to ``--help``."""

    def error(self, message: str) -> NoReturn:
        super().error(f"{message} (see `{self.prog} --help`)")


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
