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
Existing files are never overwritten. --list prints the recipes.

example:
  rowcast policy new chat --template room_members
"""

PORT = """\
Prints policies written for realtime.channels and realtime.messages of InsForge, or for
realtime.messages of Supabase, as policies for public.realtime_channels and
public.realtime_messages. A policy that cannot be ported stays as a comment with the reason. The
reasons, and notes about the others, are printed on standard error. Statements about other tables
stay.

exit code: 0 all was ported, 1 something was not, 2 a file that is not SQL, wrong usage

example:
  rowcast policy port supabase/policies.sql --from supabase > policies/ported.sql
"""


def add_new(commands: Commands) -> None:
    """Add `rowcast policy new` to the parser."""
    parser = command(commands, "new", _new, "Create a policy file from a recipe.", NEW)
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of the files, such as chat")
    parser.add_argument("--template", metavar="RECIPE", help="the recipe to copy; see --list")
    parser.add_argument(
        "--into",
        type=Path,
        default=Path("policies"),
        metavar="DIR",
        help="directory to write to; ./policies by default",
    )
    parser.add_argument("--list", action="store_true", help="print the recipes and exit")


def add_port(commands: Commands) -> None:
    """Add `rowcast policy port` to the parser."""
    parser = command(commands, "port", _port, "Rewrite policies of other systems.", PORT)
    parser.add_argument("file", metavar="FILE", help="the policy file; - reads standard input")
    parser.add_argument(
        "--from",
        dest="system",
        choices=("insforge", "supabase"),
        required=True,
        help="the system that they were written for",
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
        raise UsageError("Give a name and a recipe, like: rowcast policy new chat --template open.")
    sql, cases = write(args.name, args.template, args.into)
    print(f"wrote {sql} and {cases}")
    print("next:")
    print(f" - Read the first lines of {sql}, and adapt it to your tables.")
    print(f" - Find mistakes: rowcast policy lint {sql}")
    print(f" - Describe in {cases} who can do what, and run: rowcast policy test {cases}")
    print(f" - Apply it: rowcast policy apply {sql}, or copy it into your own migrations.")
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
