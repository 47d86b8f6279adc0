"""`rowcast policy can`."""

from __future__ import annotations

import argparse

from rowcast.cli.options import Commands, command
from rowcast.errors import UsageError

from .options import add_question, question, url_of, who

__all__ = ["add"]

ABOUT = """\
Asks what a bridge would ask, with the functions that it calls, and rolls back. Prints allow or
deny with the class of the reason: denied, no channel, disabled, invalid channel, invalid message,
policy error, timeout. The login is the migrating role or rowcast_caller.

Exit codes: 0 allow, 3 deny, 1 it could not be asked, 2 wrong usage.

example:
  rowcast policy can subscribe chat:room1 --as alice
  rowcast policy can publish chat:room1 message.new --payload '{"text": "hi"}' --as bob
  rowcast policy can subscribe chat:room1 --claims '{"sub": "alice"}' --repeat 500
"""


def add(commands: Commands) -> None:
    """Describe the sub-command."""
    parser = command(commands, "can", _run, "Say whether somebody may do something.", ABOUT)
    add_question(parser)
    parser.add_argument(
        "--repeat", type=int, default=0, metavar="N", help="also print the median time of N checks"
    )


def _run(args: argparse.Namespace) -> int:
    from rowcast.policy.check import ask, time_of
    from rowcast.policy.database import connect

    if args.repeat < 0:
        raise UsageError(f"--repeat {args.repeat}: use a number of checks.")
    asked = question(args, who(args))
    with connect(url_of(args, "ROWCAST_CALLER_URL")) as workbench, workbench.trial():
        workbench.become(asked.role)
        answer = ask(workbench, asked)
        print(answer, flush=True)
        if args.repeat and (answer.allowed or asked.action == "subscribe"):
            median, least = time_of(workbench, asked, args.repeat)
            print(f"median of {args.repeat}: {median:.3f} ms, fastest {least:.3f} ms")
    return 0 if answer.allowed else 1 if answer.reason == "timeout" else 3
