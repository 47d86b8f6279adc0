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
Starts its own PostgreSQL (or uses that of --database-url), migrates it, applies the recipe `open`,
creates demo channels, and runs a bridge until Ctrl-C. Data and keys are kept for the next start.
Only the first start creates policies and channels, so your changes to them stay.

--policies takes none, a file of CREATE POLICY statements, or the name of a recipe. Without
--policies, the database of --database-url gets no policies.

With --json, one line is written to standard output when clients can connect:
{"url", "database_url", "anon_key", "admin_key", "jwt_secret", "pid"}

example:
  rowcast dev --port 8080
  rowcast dev --ephemeral --port 0 --json
"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = command(
        commands, "dev", _run, "Run everything on this machine, for development.", ABOUT
    )
    parser.add_argument("--port", type=port, help="port of the bridge; 0 chooses a free one")
    parser.add_argument("--data", type=Path, metavar="DIR", help="directory for data and keys")
    parser.add_argument(
        "--ephemeral", action="store_true", help="delete all data and keys at the end"
    )
    parser.add_argument(
        "--policies", metavar="open|none|FILE", help="policies to apply at this start"
    )
    parser.add_argument(
        "--database-url",
        metavar="URL",
        help="use this database; its role must be able to migrate it",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line when ready")


def _run(args: argparse.Namespace) -> int:
    if args.ephemeral and args.data is not None:
        raise ConfigError("--ephemeral deletes all data, so it excludes --data: give one of them.")
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
    # Standard output may be a closed pipe, and these lines are for the developer at the terminal.
    print(f"rowcast dev: {text}", file=sys.stderr, flush=True)


def _text(report: Report) -> str:
    running = report.running
    if report.ephemeral:
        kept = "all data is deleted at the end"
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
        "Ctrl-C stops everything.",
    ]
    return "\n".join(lines)


def _psql(url: str) -> str:
    quoted = "'" + url.replace("'", "%27") + "'"
    if shutil.which("psql"):
        return f"psql {quoted}"
    return f"{quoted} (psql is not installed; `rowcast publish` works without it)"
