"""`rowcast policy`: a list of sub-commands, each in a module of its own."""

from __future__ import annotations

import argparse

from . import policy_apply, policy_can, policy_explain, policy_matrix, policy_test
from .common import Commands

__all__ = ["add"]

MODULES = (policy_can, policy_explain, policy_test, policy_matrix, policy_apply)

ABOUT = """\
What the policies say, before a change and after a refusal. Nothing is left in the database but
what `apply` is for.

example:
  rowcast policy can subscribe chat:room1 --as alice
"""


def add(commands: Commands) -> None:
    """Describe the group and its sub-commands."""
    summary = "Ask, explain, test and apply policies."
    parser = commands.add_parser(
        "policy",
        help=summary,
        description=f"{summary}\n\n{ABOUT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subcommands = parser.add_subparsers(title="sub-commands", metavar="SUBCOMMAND", required=True)
    for module in MODULES:
        module.add(subcommands)
