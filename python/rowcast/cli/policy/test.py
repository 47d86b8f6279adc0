"""`rowcast policy test`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rowcast.cli.options import Commands, add_database_url, command
from rowcast.errors import UsageError

if TYPE_CHECKING:
    from rowcast.policy.cases import CaseResult

__all__ = ["add"]

ABOUT = """\
Runs the cases of TOML files, or of all *.test.toml in a directory. Each case is checked under its
real role in a transaction that is rolled back. Without --database-url the command starts a
PostgreSQL for the test (rowcast[dev]). A case fails, too, if it would also pass without the
policies. Failures are explained.

  policies = ["chat.sql"]                       the .sql of the same name by default
  channels = ["chat:*"]
  fixtures = "insert into members values ('room1', 'alice')"
  [personas.alice]
  claims = { sub = "alice" }
  [[case]]
  as = "alice"
  can = "subscribe"
  to = "chat:room1"

Exit codes: 0 all pass, 1 one fails, 2 wrong usage.

example:
  rowcast policy test policies --junit policies.xml
"""


def add(commands: Commands) -> None:
    """Add `rowcast policy test` to the parser."""
    parser = command(commands, "test", _run, "Run the test cases of policies.", ABOUT)
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        type=Path,
        help="files or directories; ./policies by default",
    )
    add_database_url(parser, "the migrating role; ROWCAST_MIGRATE_URL is not read")
    parser.add_argument("--junit", metavar="FILE", type=Path, help="also write JUnit XML")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only failures")


def _run(args: argparse.Namespace) -> int:
    from rowcast.policy.cases import find_case_files, junit_xml, read_case_file, run_cases
    from rowcast.policy.database import connect_workbench

    files = [read_case_file(path) for path in find_case_files(args.paths or [Path("policies")])]
    runs = []
    with _database(args.database_url) as url, connect_workbench(url) as workbench:
        for file in files:
            results = run_cases(workbench, file)
            runs.append((file, results))
            _print(str(file.path), results, args.quiet)
    if args.junit:
        try:
            args.junit.write_text(junit_xml(runs))
        except OSError as problem:
            raise UsageError(f"{args.junit} cannot be written: {problem.strerror}.") from problem
    failed = sum(not result.passed for _, results in runs for result in results)
    total = sum(len(results) for _, results in runs)
    print(f"{total - failed} passed" + (f", {failed} failed" if failed else ""))
    return 1 if failed else 0


def _print(path: str, results: list[CaseResult], quiet: bool) -> None:
    if not quiet or not all(result.passed for result in results):
        print(path)
    for result in results:
        if not result.passed:
            print(f"  FAIL  {result.case}")
            print(f"        {result.failure}")
            print(
                *(f"        | {line}".rstrip() for line in result.explained.splitlines()), sep="\n"
            )
        elif not quiet:
            print(f"  ok    {result.case}", flush=True)


@contextmanager
def _database(url: str | None) -> Iterator[str]:
    """Yield the given URL, or that of a temporary server: never production by default."""
    if url:
        yield url
        return
    from rowcast.policy.temp_server import temporary_server

    with temporary_server() as own:
        yield own
