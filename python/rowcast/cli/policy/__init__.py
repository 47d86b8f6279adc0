"""`rowcast policy …`: the sub-commands are in modules of their own."""

from __future__ import annotations

import argparse

from rowcast.cli.options import Commands

from . import apply as policy_apply
from . import can as policy_can
from . import explain as policy_explain
from . import lint as policy_lint
from . import matrix as policy_matrix
from . import new as policy_new
from . import port as policy_port
from . import test as policy_test

__all__ = ["add"]

ABOUT = """\
What a team needs that writes its policies in SQL. Every sub-command has --help.

example:
  rowcast policy new chat --template room_members
  rowcast policy lint
  rowcast policy can subscribe chat:room1 --as alice
  rowcast policy explain subscribe chat:room1 --as alice
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
    for module in (
        policy_new,
        policy_lint,
        policy_can,
        policy_explain,
        policy_test,
        policy_matrix,
        policy_apply,
        policy_port,
    ):
        module.add(subparsers)
