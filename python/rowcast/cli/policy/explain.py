"""`rowcast policy explain`."""

from __future__ import annotations

import argparse
import json
import sys

from rowcast.cli.options import Commands, command

from .options import add_question, question, url_of, who

__all__ = ["add"]

ABOUT = """\
Shows which channel governs the name and what it shadows; for each policy whether it applies, what
it says and how long that takes, with the value of every AND, OR and NOT in it; what its plan lacks;
and whether the database then does what the policies seem to say. Nothing is written. The login is
the migrating role. With only psql, select * from rowcast.explain_access(…) has most of it.

Exit codes: 0 explained, 1 the verdict is not what the database does, 2 wrong usage.

example:
  rowcast policy explain subscribe chat:room1 --as alice
  rowcast policy explain publish chat:room1 message.new --as bob --format json
"""


def add(commands: Commands) -> None:
    """Describe the sub-command."""
    parser = command(commands, "explain", _run, "Show why somebody may or may not.", ABOUT)
    add_question(parser)
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="text by default"
    )


def _run(args: argparse.Namespace) -> int:
    from rowcast.policy.database import connect
    from rowcast.policy.explain import explain
    from rowcast.policy.render import as_json, as_text

    persona = who(args)
    asked = question(args, persona)
    with connect(url_of(args)) as workbench, workbench.trial():
        workbench.become(asked.role)
        found = explain(workbench, asked)
    if args.format == "json":
        print(json.dumps(as_json(found, persona.name), ensure_ascii=False))
    else:
        print(as_text(found, str(persona)))
    if not found.agrees:
        print(
            "rowcast: the verdict by the policies is not what the database does: "
            "a policy is volatile, or looks at what is not in the row; please report it.",
            file=sys.stderr,
        )
    return 0 if found.agrees else 1
