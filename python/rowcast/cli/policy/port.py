"""`rowcast policy port`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rowcast.cli.options import Commands, command
from rowcast.errors import UsageError

__all__ = ["add"]

ABOUT = """\
Prints policies written for realtime.channels and realtime.messages of InsForge, or for
realtime.messages of Supabase, as policies for public.realtime_channels and
public.realtime_messages. What cannot be said here stays as a comment with the reason, and is
listed on standard error with what else there is to know. Statements about other tables stay.

exit code: 0 all was ported, 1 something was not, 2 a file that is not SQL, wrong usage

example:
  rowcast policy port supabase/policies.sql --from supabase > policies/ported.sql
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = command(commands, "port", _run, "Rewrite policies of other systems.", ABOUT)
    parser.add_argument("file", metavar="FILE", help="policies; - reads standard input")
    parser.add_argument(
        "--from",
        dest="system",
        choices=("insforge", "supabase"),
        required=True,
        help="for which system they were written",
    )


def _run(args: argparse.Namespace) -> int:
    from rowcast.policy.porting.writing import port

    try:
        text = sys.stdin.read() if args.file == "-" else Path(args.file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"{args.file} cannot be read: {problem}.") from problem
    ported = port(args.file, text, args.system)
    sys.stdout.write(ported.text)
    sys.stdout.flush()
    for sentence in ported.refused:
        print(f"not ported: {sentence}", file=sys.stderr)
    for sentence in ported.remarks:
        print(f"note: {sentence}", file=sys.stderr)
    return 1 if ported.refused else 0
