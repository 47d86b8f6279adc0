"""`rowcast policy matrix`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rowcast.cli.options import Commands, add_database_url, command
from rowcast.errors import UsageError

from .options import PERSONAS, text_or_file, workbench_url

__all__ = ["add"]

ABOUT = """\
Checks subscribe and publish for every persona and every channel, and prints a table: sub, pub,
both, - for neither, ! if a policy raises an error. The channels are those given, or `channels` of
the personas' file, or those of the database whose pattern is a plain name.

--snapshot FILE keeps the answers as JSON. The first run writes the file, later runs print the
answers that differ, and --update writes the file again. Keep it beside the policies, so that
reviews show what a change does.

Exit codes: 0 written or the same, 4 it differs, 1 an error, 2 wrong usage.

example:
  rowcast policy matrix chat:room1 news:today --format markdown
  rowcast policy matrix --snapshot policies/matrix.json
"""


def add(commands: Commands) -> None:
    """Add `rowcast policy matrix` to the parser."""
    parser = command(commands, "matrix", _run, "Show who may do what.", ABOUT)
    parser.add_argument("channels", metavar="CHANNEL", nargs="*")
    parser.add_argument("--personas", metavar="FILE", type=Path, help=PERSONAS)
    parser.add_argument(
        "--event", default="message", help="event of the publish; message by default"
    )
    parser.add_argument(
        "--payload",
        metavar="JSON",
        default="{}",
        help="payload of the publish, or @FILE; {} by default",
    )
    parser.add_argument(
        "--format",
        choices=("text", "markdown", "json", "csv"),
        default="text",
        help="text by default",
    )
    parser.add_argument(
        "--snapshot", metavar="FILE", type=Path, help="write the snapshot, or compare with it"
    )
    parser.add_argument("--update", action="store_true", help="write the snapshot again")
    add_database_url(parser, "the migrating role, instead of ROWCAST_MIGRATE_URL")


def _run(args: argparse.Namespace) -> int:
    from rowcast.policy import matrix
    from rowcast.policy.database import connect_workbench
    from rowcast.policy.personas import DEFAULT_FILE, channels_of, personas_of, read_toml

    path = args.personas or DEFAULT_FILE
    document = read_toml(path)
    personas = list(personas_of(document, path).values())
    listed = [str(channel) for channel in channels_of(document, path)]
    with (
        connect_workbench(workbench_url(args, "ROWCAST_CALLER_URL")) as workbench,
        workbench.trial(),
    ):
        channels = args.channels or listed or workbench.literal_channels()
        if not channels:
            raise UsageError(f"Give channels as arguments, or write channels = […] into {path}.")
        payload = text_or_file(args.payload)
        found = matrix.measure(workbench, personas, channels, args.event, payload)
    if args.snapshot:
        return _snapshot(args.snapshot, found, args.update)
    if args.format in ("text", "markdown"):
        print(matrix.as_table(found, markdown=args.format == "markdown"))
    else:
        print(matrix.as_json(found) if args.format == "json" else matrix.as_csv(found))
    return 0


def _snapshot(path: Path, found: Any, update: bool) -> int:
    from rowcast.policy import matrix

    try:
        before = json.loads(path.read_text()) if path.exists() else None
        lines = [] if before is None else matrix.compare(before, found)
        if before is None or (update and lines):
            path.write_text(matrix.as_json(found) + "\n")
    except OSError as problem:
        reason = problem.strerror or problem
        raise UsageError(f"{path} cannot be read or written: {reason}.") from problem
    except (ValueError, AttributeError) as problem:
        raise UsageError(f"{path} is not a snapshot of a matrix: {problem}.") from problem
    for line in lines:
        print(line)
    if before is None or update:
        print(f"{path} written")
        return 0
    print(f"{len(lines)} answers changed" if lines else "the same")
    return 4 if lines else 0
