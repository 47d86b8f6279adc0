"""`rowcast policy new` and `rowcast policy port`: commands that write policy files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rowcast.cli.options import Commands, command
from rowcast.errors import UsageError

__all__ = ["add_new", "add_port"]

NEW = """\
Copies a recipe into NAME.sql, with policies named after it, and its cases into NAME.test.toml.
Existing files are never overwritten. --list tells which recipes there are.

example:
  rowcast policy new chat --template room_members
"""

PORT = """\
Prints policies written for realtime.channels and realtime.messages of InsForge, or for
realtime.messages of Supabase, as policies for public.realtime_channels and
public.realtime_messages. What cannot be said here stays as a comment with the reason, and is
listed on standard error with what else there is to know. Statements about other tables stay.

exit code: 0 all was ported, 1 something was not, 2 a file that is not SQL, wrong usage

example:
  rowcast policy port supabase/policies.sql --from supabase > policies/ported.sql
"""


def add_new(commands: Commands) -> None:
    """Add `rowcast policy new` to the parser."""
    parser = command(commands, "new", _new, "Begin a policy file with a recipe.", NEW)
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the files, such as chat")
    parser.add_argument("--template", metavar="RECIPE", help="which recipe; see --list")
    parser.add_argument(
        "--into", type=Path, default=Path("policies"), metavar="DIR", help="folder; ./policies"
    )
    parser.add_argument("--list", action="store_true", help="print the recipes and end")


def add_port(commands: Commands) -> None:
    """Add `rowcast policy port` to the parser."""
    parser = command(commands, "port", _port, "Rewrite policies of other systems.", PORT)
    parser.add_argument("file", metavar="FILE", help="policies; - reads standard input")
    parser.add_argument(
        "--from",
        dest="system",
        choices=("insforge", "supabase"),
        required=True,
        help="for which system they were written",
    )


def _new(args: argparse.Namespace) -> int:
    from rowcast.policy.recipes import recipes, write

    if args.list:
        known = recipes()
        width = max(map(len, known))
        for recipe in known.values():
            print(recipe.name.ljust(width), recipe.story)
        return 0
    if not args.name or not args.template:
        raise UsageError("Name the file and the recipe: rowcast policy new chat --template open.")
    sql, cases = write(args.name, args.template, args.into)
    print(f"wrote {sql} and {cases}")
    print("next:")
    print(f" - Read the first lines of {sql}, and change what is different with you.")
    print(f" - Look for mistakes: rowcast policy lint {sql}")
    print(f" - Say who can do what in {cases}, and ask: rowcast policy test {cases}")
    print(f" - Apply it: rowcast policy apply {sql}, or put it into your own migrations.")
    return 0


def _port(args: argparse.Namespace) -> int:
    from rowcast.policy.porting.writing import port_policies

    try:
        text = sys.stdin.read() if args.file == "-" else Path(args.file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"{args.file} cannot be read: {problem}.") from problem
    ported = port_policies(args.file, text, args.system)
    sys.stdout.write(ported.text)
    sys.stdout.flush()
    for sentence in ported.refused:
        print(f"not ported: {sentence}", file=sys.stderr)
    for sentence in ported.remarks:
        print(f"note: {sentence}", file=sys.stderr)
    return 1 if ported.refused else 0
