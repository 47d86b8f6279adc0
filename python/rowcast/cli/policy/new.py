"""`rowcast policy new`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rowcast.cli.options import Commands, command
from rowcast.errors import UsageError

__all__ = ["add"]

ABOUT = """\
Copies a recipe into NAME.sql, with policies named after it, and its cases into NAME.test.toml.
Existing files are never overwritten. --list tells which recipes there are.

example:
  rowcast policy new chat --template room_members
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = command(commands, "new", _run, "Begin a policy file with a recipe.", ABOUT)
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the files, such as chat")
    parser.add_argument("--template", metavar="RECIPE", help="which recipe; see --list")
    parser.add_argument(
        "--into", type=Path, default=Path("policies"), metavar="DIR", help="folder; ./policies"
    )
    parser.add_argument("--list", action="store_true", help="print the recipes and end")


def _run(args: argparse.Namespace) -> int:
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
