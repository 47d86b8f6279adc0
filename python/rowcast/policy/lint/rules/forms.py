"""RCL0: rules about the files themselves and the comments that disable rules."""

from __future__ import annotations

from collections.abc import Iterator

from rowcast.policy.lint.files import Files
from rowcast.policy.lint.findings import RULES, Level, Mark, rule
from rowcast.policy.source import Statement

__all__ = ["disable_is_needed", "disable_names_rules", "disable_says_why", "syntax"]


@rule("RCL001", Level.ERROR, database=False)
def syntax(files: Files) -> Iterator[Mark]:
    """PostgreSQL cannot parse the statement.

    The grammar is that of the server, so the file would fail there, too. Commands of psql and
    variables such as `:name` are not SQL: do not use them in policy files.

    Bad:

        create policy members on realtime_channels fro select using (enabled);

    Good:

        create policy members on realtime_channels for select using (enabled);
    """
    for source in files.sources:
        for fault in source.faults:
            yield Mark(Statement(source, 0, None, fault.offset), fault.message)


@rule("RCL002", Level.WARNING, database=False)
def disable_says_why(files: Files) -> Iterator[Mark]:
    """A rule is disabled without a reason.

    A later reader of the policy has to know whether the reason still holds. Write it after the
    codes, on the same line.

    Bad:

        -- rowcast:disable=RCL101
        create policy lobby on realtime_channels for select to anon using (true);

    Good:

        -- rowcast:disable=RCL101 the demo is public
        create policy lobby on realtime_channels for select to anon using (true);
    """
    for source in files.sources:
        for disable in source.disables:
            if len(disable.reason.split()) < 2:
                yield Mark(
                    Statement(source, disable.statement or 0, None, disable.offset),
                    f"{', '.join(disable.codes)} is disabled without a reason",
                    "Write the reason after the code.",
                )


@rule("RCL003", Level.WARNING, database=False)
def disable_is_needed(files: Files) -> Iterator[Mark]:
    """A rule is disabled where it finds nothing.

    A comment that is left over from an earlier version would hide the next mistake. A comment
    applies to the statement that it is in, above, or after on the same line.

    Bad:

        -- rowcast:disable=RCL101 all users may listen
        create policy lobby on realtime_channels for select to anon using (is_public);

    Good:

        create policy lobby on realtime_channels for select to anon using (is_public);
    """
    # Known only after all other rules have run: see `linting`.
    yield from ()


@rule("RCL004", Level.WARNING, database=False)
def disable_names_rules(files: Files) -> Iterator[Mark]:
    """A rule is disabled that does not exist.

    A comment with a mistyped code has no effect.

    Bad:

        -- rowcast:disable=RCL999 all users may listen
        create policy lobby on realtime_channels for select to anon using (is_public);

    Good:

        create policy lobby on realtime_channels for select to anon using (is_public);
    """
    for source in files.sources:
        for disable in source.disables:
            for code in disable.codes:
                if code not in RULES:
                    yield Mark(
                        Statement(source, disable.statement or 0, None, disable.offset),
                        f"rule {code} does not exist",
                        "The rules are listed in policies/README.md.",
                    )
