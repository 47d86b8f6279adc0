"""`rowcast policy …`: the sub-commands are in modules of their own."""

from __future__ import annotations

import argparse

from . import policy_lint, policy_new, policy_port
from .common import Commands

__all__ = ["add"]

ABOUT = """\
What a team needs that writes its policies in SQL. Every sub-command has --help.

example:
  rowcast policy new chat --template room_members
  rowcast policy lint
"""


def add(commands: Commands) -> None:
    """Describe the command and its sub-commands."""
    summary = "Write, check and understand policies."
    parser = commands.add_parser(
        "policy",
        help=summary,
        description=f"{summary}\n\n{ABOUT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (policy_new, policy_lint, policy_port):
        module.add(subparsers)
