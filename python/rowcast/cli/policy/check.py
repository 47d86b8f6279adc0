"""`rowcast policy can` and `rowcast policy explain`: what one caller may do, and why."""

from __future__ import annotations

import argparse
import json
import sys

from rowcast.cli.options import Commands, command
from rowcast.errors import UsageError

from .options import add_request, persona_of, request_of, workbench_url

__all__ = ["add_can", "add_explain"]

CAN = """\
Checks what a bridge would check, with the functions that it calls, and rolls back. Prints allow or
deny with the class of the reason: denied, no channel, disabled, invalid channel, invalid message,
policy error, timeout. Log in as the migrating role or as rowcast_caller.

Exit codes: 0 allow, 3 deny, 1 the check failed, 2 wrong usage.

example:
  rowcast policy can subscribe chat:room1 --as alice
  rowcast policy can publish chat:room1 message.new --payload '{"text": "hi"}' --as bob
  rowcast policy can subscribe chat:room1 --claims '{"sub": "alice"}' --repeat 500
"""

EXPLAIN = """\
Shows which channel governs the name and which channels it shadows; for each policy whether it
applies, its value and time, with the value of every AND, OR and NOT in it; what makes its plan
expensive; and whether the database decides as the policies say. Nothing is written. Log in as the
migrating role. In psql, select * from rowcast.explain_access(…) shows most of this.

Exit codes: 0 explained, 1 the database does not decide as the policies say, 2 wrong usage.

example:
  rowcast policy explain subscribe chat:room1 --as alice
  rowcast policy explain publish chat:room1 message.new --as bob --format json
"""


def add_can(commands: Commands) -> None:
    """Add `rowcast policy can` to the parser."""
    parser = command(commands, "can", _can, "Check whether a caller may subscribe or publish.", CAN)
    add_request(parser)
    parser.add_argument(
        "--repeat", type=int, default=0, metavar="N", help="also print the median time of N checks"
    )


def add_explain(commands: Commands) -> None:
    """Add `rowcast policy explain` to the parser."""
    parser = command(commands, "explain", _explain, "Explain why a caller may or may not.", EXPLAIN)
    add_request(parser)
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="text by default"
    )


def _can(args: argparse.Namespace) -> int:
    from rowcast.policy.check import check, check_times
    from rowcast.policy.database import connect_workbench

    if args.repeat < 0:
        raise UsageError(f"--repeat {args.repeat}: use a positive number of checks.")
    asked = request_of(args, persona_of(args))
    with (
        connect_workbench(workbench_url(args, "ROWCAST_CALLER_URL")) as workbench,
        workbench.trial(),
    ):
        workbench.ensure_role(asked.role)
        answer = check(workbench, asked)
        print(answer, flush=True)
        if args.repeat and (answer.allowed or asked.action == "subscribe"):
            median, least = check_times(workbench, asked, args.repeat)
            print(f"median of {args.repeat}: {median:.3f} ms, fastest {least:.3f} ms")
    return 0 if answer.allowed else 1 if answer.reason == "timeout" else 3


def _explain(args: argparse.Namespace) -> int:
    from rowcast.policy.database import connect_workbench
    from rowcast.policy.explain import explain_access
    from rowcast.policy.render import explanation_json, explanation_text

    persona = persona_of(args)
    asked = request_of(args, persona)
    with connect_workbench(workbench_url(args)) as workbench, workbench.trial():
        workbench.ensure_role(asked.role)
        found = explain_access(workbench, asked)
    if args.format == "json":
        print(json.dumps(explanation_json(found, persona.name), ensure_ascii=False))
    else:
        print(explanation_text(found, str(persona)))
    if not found.agrees:
        print(
            "rowcast: the database does not decide as the policies say: "
            "a policy is volatile, or depends on more than the row; please report it.",
            file=sys.stderr,
        )
    return 0 if found.agrees else 1
