"""`rowcast migrate`, `sql`, `status` and `doctor`: the commands of operators for a database."""

from __future__ import annotations

import argparse
import json
import os
import sys

from rowcast.errors import UsageError

from .options import Commands, add_database_url, command, database_url

__all__ = ["add"]

MIGRATE = """\
Creates roles, tables and functions, or upgrades them to this version; does nothing if they are
current. Needs a role with CREATEROLE, and CREATE on the database and on schema public, but not a
superuser. Sets the passwords of the two logins if ROWCAST_BRIDGE_PASSWORD and
ROWCAST_CALLER_PASSWORD are set.

example:
  rowcast migrate --database-url postgresql://owner@localhost/app
"""

SQL = """\
Prints what `rowcast migrate` would run on an empty database, as one transaction. Use it for a
database that you can reach only with psql or a web console.

example:
  rowcast sql | psql --set ON_ERROR_STOP=1 app
"""

STATUS = """\
Reads the database of ROWCAST_DATABASE_URL, or of a running `rowcast dev`.

example:
  rowcast status --json | jq .channels
"""

DOCTOR = """\
Checks the installation inside the database and, with the URLs of the environment, from outside:
logins, LISTEN, tokens, versions, clocks. Each line is ok, fail or skip. A fail comes with advice
and makes the exit code 1.

example:
  rowcast doctor
"""

NEXT_PASSWORDS = """\
 - Set passwords for the two logins: run \\password rowcast_bridge and
   \\password rowcast_caller in psql, or migrate again with ROWCAST_BRIDGE_PASSWORD and
   ROWCAST_CALLER_PASSWORD set."""
NEXT_POLICIES = """\
 - Write policies on realtime_channels (FOR SELECT, to subscribe) and realtime_messages
   (FOR INSERT, to publish). Without policies all clients are denied."""
NEXT_CHANNELS = """\
 - Create a channel: insert into realtime_channels (pattern) values ('chat:*');"""


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    parser = command(
        commands, "migrate", _migrate, "Install rowcast in a database, or upgrade it.", MIGRATE
    )
    add_database_url(parser, "the migrating role, instead of ROWCAST_MIGRATE_URL")
    parser.add_argument(
        "--reapply", action="store_true", help="apply the SQL code again although it is unchanged"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be applied without changing anything",
    )
    parser = command(commands, "sql", _sql, "Print the installation as one SQL script.", SQL)
    parser.add_argument(
        "--roles", action="store_true", help="print only the part that needs CREATEROLE"
    )
    parser.add_argument("--since", type=int, default=0, metavar="N", help="start after migration N")
    parser = command(commands, "status", _status, "Print the state of a database.", STATUS)
    add_database_url(parser, "the bridge login or of the owner")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser = command(
        commands, "doctor", _doctor, "Check an installation and say how to repair it.", DOCTOR
    )
    add_database_url(parser, "the login for the checks in the database, instead of the bridge's")
    parser.add_argument("--json", action="store_true", help="print one JSON array")


def _migrate(args: argparse.Namespace) -> int:
    from rowcast.dev.database import has_channels, policies_written
    from rowcast.install.migrate import migrate, pending
    from rowcast.postgres.connect import connect

    url = database_url(args, "ROWCAST_MIGRATE_URL", "ROWCAST_DATABASE_URL")
    if args.dry_run:
        todo = pending(url)
        for name in todo.migrations:
            print(f"would apply {name}")
        if todo.code or args.reapply:
            print("would apply the code")
        if not (todo.migrations or todo.code or args.reapply):
            print(f"nothing to do: the database is at version {todo.version}")
        return 0

    def tell(text: str) -> None:
        print(text, flush=True)

    applied = migrate(url, on_event=tell, reapply=args.reapply)
    if not (applied.migrations or applied.code):
        print(f"nothing to do: the database is at version {applied.version}")
        return 0
    print(f"the database is at version {applied.version}")
    with connect(url) as connection:
        steps = [] if policies_written(connection) else [NEXT_POLICIES]
        if not has_channels(connection):
            steps.append(NEXT_CHANNELS)
    if applied.migrations and not os.environ.get("ROWCAST_BRIDGE_PASSWORD"):
        steps.insert(0, NEXT_PASSWORDS)
    if steps:
        print("next:", *steps, sep="\n")
    return 0


def _sql(args: argparse.Namespace) -> int:
    from rowcast.install.release import Release
    from rowcast.install.script import install_script, roles_script

    newest = Release.shipped().migrations[-1].version
    if not 0 <= args.since <= newest:
        raise UsageError(f"--since {args.since}: the newest migration of this version is {newest}.")
    sys.stdout.write(roles_script() if args.roles else install_script(since=args.since))
    return 0


def _status(args: argparse.Namespace) -> int:
    from .queries import open_database

    with open_database(
        database_url(args, "ROWCAST_DATABASE_URL", "ROWCAST_MIGRATE_URL")
    ) as database:
        status = database.status()
    if args.json:
        print(json.dumps(status))
        return 0
    width = max(len(name) for name in status)
    for name, value in status.items():
        print(name.replace("_", " ").ljust(width), "-" if value is None else value)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from .doctor import examine

    findings = []
    for finding in examine(os.environ, args.database_url):
        findings.append(finding)
        if not args.json:
            print(finding, flush=True)
    if args.json:
        print(json.dumps([finding.shown() for finding in findings]))
    return 1 if any(finding.ok is False for finding in findings) else 0
