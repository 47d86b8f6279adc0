"""`rowcast policy lint`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rowcast.cli.options import Commands, add_database_url, command
from rowcast.errors import UsageError

if TYPE_CHECKING:
    from rowcast.policy.lint.findings import Finding

__all__ = ["add"]

ABOUT = """\
Parses policy files with the grammar of PostgreSQL and finds policies that allow too much, refuse
every caller, fail, or are slow. With --database-url it also checks the policies of a database with
the functions and views around them, and calls rowcast.policy_lint(), which knows privileges, roles
and indexes.

Paths are files or folders; ./policies if neither paths nor a database are given. A comment
`-- rowcast:disable=RCL101 the reason` disables a rule for the statement below it or around it.

exit code: 0 no finding at the level of --fail-on, 1 findings, 2 a file that is not SQL, wrong usage

example:
  rowcast policy lint policies --fail-on error
  rowcast policy lint --explain RCL104
"""

SYNTAX = "RCL001"
LEVELS = ("error", "warning", "info")


def add(commands: Commands) -> None:
    """Add `rowcast policy lint` to the parser."""
    parser = command(commands, "lint", _run, "Find mistakes in policies.", ABOUT)
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="files or folders")
    add_database_url(parser, "the owner or the bridge login, to check the database as well")
    parser.add_argument(
        "--format",
        choices=("text", "json", "sarif", "github"),
        default="text",
        help="for readers, for programs, for code scanning, or for the log of GitHub Actions",
    )
    parser.add_argument(
        "--fail-on", choices=LEVELS, default="warning", help="lowest level for exit code 1"
    )
    parser.add_argument(
        "--style", action="store_true", help="also check the style of the files with sqlfluff"
    )
    parser.add_argument(
        "--style-config", action="store_true", help="print the configuration of sqlfluff and exit"
    )
    parser.add_argument("--explain", metavar="CODE", help="explain a rule, or `all`, and exit")


def _run(args: argparse.Namespace) -> int:
    from rowcast.policy.lint import report
    from rowcast.policy.lint.findings import Level
    from rowcast.policy.lint.linting import lint_files, open_findings
    from rowcast.policy.source import find_sql_files

    if args.style_config:
        from rowcast.files import style_config

        sys.stdout.write(style_config().read_text())
        return 0
    if args.explain:
        return _explain(args.explain)

    files = find_sql_files(args.paths or ([] if args.database_url else [Path("policies")]))
    findings = lint_files(files)
    if args.style:
        from rowcast.policy.lint.style import style_findings

        findings += style_findings(files)
    if args.database_url:
        findings += _in_database(args.database_url)
    shown = report.FORMATS[args.format](findings)
    if shown:
        print(shown)
    if any(finding.code == SYNTAX for finding in findings):
        return 2
    return 1 if open_findings(findings, Level[args.fail_on.upper()]) else 0


def _in_database(url: str) -> list[Finding]:
    from rowcast.policy.database import connect_workbench, database_errors
    from rowcast.policy.lint.linting import lint_database

    with connect_workbench(url) as workbench, database_errors(workbench.connection):
        return lint_database(workbench)


def _explain(code: str) -> int:
    from rowcast.policy.lint.report import explain_rule
    from rowcast.policy.lint.rules import RULES

    if code == "all":
        print("\n\n\n".join(explain_rule(RULES[known]) for known in sorted(RULES)))
        return 0
    rule = RULES.get(code.upper())
    if rule is None:
        raise UsageError(f"Rule {code} does not exist; use one of {', '.join(sorted(RULES))}.")
    print(explain_rule(rule))
    return 0
