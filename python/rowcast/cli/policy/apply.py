"""`rowcast policy diff` and `rowcast policy apply`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rowcast.cli.options import Commands, add_database_url, command
from rowcast.errors import UsageError

from .options import workbench_url

if TYPE_CHECKING:
    from rowcast.policy.apply import PolicyDiff
    from rowcast.policy.census import CensusReport, Listener
    from rowcast.policy.database import Workbench
    from rowcast.policy.statements import Script

__all__ = ["add"]

FILES = """\
The files contain CREATE, ALTER and DROP POLICY, and repeatable statements: functions, views,
grants, blocks, CREATE TABLE IF NOT EXISTS. The server says what a policy means, so spelling does
not matter. The command compares the policies of realtime_channels, realtime_messages and the
tables that the files name. Policies that the files do not mention stay, unless --prune is given.
"""

# Seconds that a dry run may lock tables for while it checks connected callers.
LOCKED = 2.0

DIFF = f"""\
Prints the fewest statements that would make the database match the files. Nothing is changed:
statements beside the policies are run and rolled back.

{FILES}
Exit codes: 0 the same, 4 it differs, 1 a statement failed, 2 wrong usage.

example:
  rowcast policy diff policies
"""

APPLY = f"""\
Runs what `rowcast policy diff` prints, in one transaction that waits for locks only briefly and
tries again. Afterwards the bridges recheck all connected clients.

{FILES}
With --dry-run nothing is changed, and the command prints which connected callers would lose or
gain a channel. It asks all bridges for at most five seconds. With --sessions it checks the sessions
of a TOML file instead: [[session]] tables, each with as = "persona" (or role and claims) and
channels = […]. The tables that change are locked during the checks.

example:
  rowcast policy apply policies --dry-run
  rowcast policy apply policies
"""


def add(commands: Commands) -> None:
    """Add `rowcast policy diff` and `rowcast policy apply` to the parser."""
    summary = "Compare policy files with the database."
    parser = command(commands, "diff", _diff, summary, DIFF)
    _add_files(parser)
    summary = "Make the policies of the database those of the files."
    parser = command(commands, "apply", _apply, summary, APPLY)
    _add_files(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print the changes without making them"
    )
    parser.add_argument(
        "--sessions",
        metavar="FILE",
        type=Path,
        help="with --dry-run: check these sessions, not connected clients",
    )
    parser.add_argument(
        "--no-census", action="store_true", help="with --dry-run: do not check connected clients"
    )


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        type=Path,
        help="files or directories; ./policies by default",
    )
    parser.add_argument(
        "--prune", action="store_true", help="drop policies that the files do not mention"
    )
    add_database_url(parser, "the migrating role, instead of ROWCAST_MIGRATE_URL")


def _diff(args: argparse.Namespace) -> int:
    from rowcast.policy.apply import compare
    from rowcast.policy.database import connect_workbench
    from rowcast.policy.statements import read_script

    script = read_script(args.paths or [Path("policies")])
    with connect_workbench(workbench_url(args)) as workbench:
        found = compare(workbench, script, prune=args.prune)
        _print(workbench, found)
    return 4 if found else 0


def _apply(args: argparse.Namespace) -> int:
    from rowcast.policy.apply import apply
    from rowcast.policy.database import connect_workbench
    from rowcast.policy.statements import read_script

    if (args.sessions or args.no_census) and not args.dry_run:
        raise UsageError("--sessions and --no-census only work with --dry-run.")
    script = read_script(args.paths or [Path("policies")])
    listeners = _listeners(args.sessions) if args.sessions else None
    with connect_workbench(workbench_url(args)) as workbench:
        if args.dry_run:
            _dry_run(args, workbench, script, listeners)
            return 0
        found, told = apply(workbench, script, _tell, prune=args.prune)
        _print(workbench, found)
    if not found and found.sides:
        _tell("the other statements of the files were run")
    if (found or found.sides) and not told:
        _tell("bridges recheck connected clients within a minute")
    return 0


def _dry_run(
    args: argparse.Namespace,
    workbench: Workbench,
    script: Script,
    listeners: list[Listener] | None,
) -> None:
    """Check the listeners of a file, or else those that are connected."""
    from rowcast.policy.census import CensusReport, take_census
    from rowcast.policy.dry_run import describe_changes, dry_run

    census = None
    if listeners is None:
        census = CensusReport([]) if args.no_census else take_census(workbench)
        listeners = census.listeners
    limit = None if census is None else LOCKED
    done = dry_run(workbench, script, listeners, prune=args.prune, limit=limit)
    _print(workbench, done.difference)
    if census is not None and not args.no_census:
        _print_census(census)
    for line in describe_changes(done.access):
        print(line)
    for role, reason in done.refused.items():
        _tell(f"callers of role {role} were not checked: {reason}")
    if done.unasked:
        _tell(
            f"{_count(done.unasked, 'session')} not checked: the tables would have been locked "
            f"for more than {LOCKED:.0f} seconds"
        )


def _print_census(census: CensusReport) -> None:
    if not census.bridges:
        print("no bridge is running, so callers cannot be connected")
        return
    number = sum(listener.sessions for listener in census.listeners)
    people = len({listener.who for listener in census.listeners})
    print(
        f"{census.answered} of {census.bridges} bridges answered: "
        f"{_count(number, 'subscription')} of {_count(people, 'caller')}"
    )
    if census.answered < census.bridges:
        _tell("some bridges did not answer: their callers may lose a channel, too")
    if census.left_out:
        _tell(
            f"{census.left_out} subscriptions exceeded the limit of an answer and were not checked"
        )


def _count(number: int, of: str) -> str:
    return f"{number} {of}" if number == 1 else f"{number} {of}s"


def _print(workbench: Workbench, found: PolicyDiff) -> None:
    for statement in found.statements():
        print(f"{statement.as_string(workbench.connection)};")
    for table, policy in found.kept:
        _tell(f'policy "{policy}" on {table} is not in the files and stays; --prune drops it')
    if not found:
        print("the policies are the same")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _listeners(path: Path) -> list[Listener]:
    from rowcast.policy.census import listener_for
    from rowcast.policy.personas import (
        DEFAULT_FILE,
        from_claims,
        personas_of,
        read_personas,
        read_toml,
    )

    document = read_toml(path)
    known = read_personas(DEFAULT_FILE) if DEFAULT_FILE.exists() else {}
    known |= personas_of(document, path)
    found: list[Listener] = []
    tables: Any = document.get("session", [])
    for n, table in enumerate(tables if isinstance(tables, list) else [], 1):
        name, channels = table.get("as"), table.get("channels")
        if not isinstance(channels, list) or (name is not None and name not in known):
            raise UsageError(
                f'{path}, session {n}: write as = "persona" (of {", ".join(known)}) or claims, '
                "and channels = […]."
            )
        persona = known[name] if name else from_claims(table.get("claims", {}), table.get("role"))
        found += (listener_for(persona, str(channel)) for channel in channels)
    if not found:
        raise UsageError(f"{path} has no [[session]] tables.")
    return found
