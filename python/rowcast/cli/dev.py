"""`rowcast dev`."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rowcast import __version__
from rowcast.errors import ConfigError

from .options import Commands, command, port

if TYPE_CHECKING:
    from rowcast.dev.run import Report

__all__ = ["add"]

ABOUT = """\
Starts a PostgreSQL of its own (or uses that of --database-url), migrates it, applies the policies
`open`, makes channels to play with, and runs a bridge, until Ctrl-C. Data and keys are kept for
the next start; the policies and channels of the first one are not put back when you change them.

--policies takes none, a file of CREATE POLICY statements, or the name of a recipe. On a database
of --database-url nothing is opened unless you ask for it.

With --json, standard output is one line when all is ready:
{"url", "database_url", "anon_key", "admin_key", "jwt_secret", "pid"}

example:
  rowcast dev --port 8080
  rowcast dev --ephemeral --port 0 --json
"""


def add(commands: Commands) -> None:
    """Describe the command."""
    parser = command(
        commands, "dev", _run, "Run everything on this machine, to try and to develop.", ABOUT
    )
    parser.add_argument("--port", type=port, help="port of the bridge; 0 takes a free one")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where data and keys are kept")
    parser.add_argument(
        "--ephemeral", action="store_true", help="keep nothing: everything is gone at the end"
    )
    parser.add_argument(
        "--policies", metavar="open|none|FILE", help="policies to apply at this start"
    )
    parser.add_argument(
        "--database-url", metavar="URL", help="use this database; the role migrates it"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line when ready")


def _run(args: argparse.Namespace) -> int:
    if args.ephemeral and args.data is not None:
        raise ConfigError("--ephemeral keeps nothing, so --data has no meaning: give one of them.")
    from rowcast.dev.run import Options, dev

    def ready(report: Report) -> None:
        print(report.running.line() if args.json else _text(report), flush=True)
        if report.hidden is not None:
            _tell(f"other commands need --url and --token: {report.hidden}")

    options = Options(
        port=args.port,
        data=args.data,
        ephemeral=args.ephemeral,
        policies=args.policies,
        database_url=args.database_url,
    )
    dev(options, ready=ready, tell=_tell)
    return 0


def _tell(text: str) -> None:
    # A log may have closed standard output long ago; the steps are for the person who waits.
    print(f"rowcast dev: {text}", file=sys.stderr, flush=True)


def _text(report: Report) -> str:
    running = report.running
    if report.ephemeral:
        kept = "nothing is kept"
    elif report.embedded:
        kept = f"data in {report.home}"
    else:
        kept = f"keys in {report.home}"
    lines = [
        f"\nrowcast {__version__} is ready; {kept}\n",
        f"  bridge      {running.url}",
        f"  try it      {running.url}/#key={running.anon_key}",
        f"  policies    {report.policies}",
        f"  anon key    {running.anon_key}",
        f"  admin key   {running.admin_key}",
        f"  jwt secret  {running.jwt_secret}",
        f"  database    {_psql(running.database_url)}\n",
        "In other terminals:",
        "  rowcast listen chat:room1",
        """  rowcast publish chat:room1 message.new '{"text": "hello"}'\n""",
        "Ctrl-C stops all of it.",
    ]
    return "\n".join(lines)


def _psql(url: str) -> str:
    quoted = "'" + url.replace("'", "%27") + "'"
    if shutil.which("psql"):
        return f"psql {quoted}"
    return f"{quoted} (no psql here; `rowcast publish` needs none)"
