"""`rowcast policy`: adds the sub-commands, which stand in modules of their own."""

from __future__ import annotations

import argparse

from rowcast.cli.options import Commands

from . import apply, check, files, lint, matrix, test

__all__ = ["add"]

ABOUT = """\
Tools for teams that write their policies in SQL. Every sub-command has --help.

example:
  rowcast policy new chat --template room_members
  rowcast policy lint
  rowcast policy can subscribe chat:room1 --as alice
  rowcast policy explain subscribe chat:room1 --as alice
"""


def add(commands: Commands) -> None:
    """Add `rowcast policy` and its sub-commands to the parser."""
    summary = "Write, check and understand policies."
    parser = commands.add_parser(
        "policy",
        help=summary,
        description=f"{summary}\n\n{ABOUT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_command in (
        files.add_new,
        lint.add,
        check.add_can,
        check.add_explain,
        test.add,
        matrix.add,
        apply.add,
        files.add_port,
    ):
        add_command(subparsers)
