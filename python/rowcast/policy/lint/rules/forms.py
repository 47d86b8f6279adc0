"""RCL0: rules about the files themselves, and the comments that disable rules."""

from __future__ import annotations

from collections.abc import Iterator

from rowcast.policy.lint.files import Files
from rowcast.policy.lint.findings import RULES, Level, Mark, rule
from rowcast.policy.source import Statement

__all__ = ["disable_is_needed", "disable_names_rules", "disable_says_why", "syntax"]


@rule("RCL001", Level.ERROR, database=False)
def syntax(files: Files) -> Iterator[Mark]:
    """PostgreSQL cannot read the statement.

    The grammar is that of the server, so the file would fail there too. Commands of psql, and
    variables such as `:name`, are no SQL: keep policy files free of them.

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

    Whoever reads the policy next year has to know whether the reason still holds. Write it behind
    the codes, in the same line.

    Bad:

        -- rowcast:disable=RCL101
        create policy everybody on realtime_channels for select to anon using (true);

    Good:

        -- rowcast:disable=RCL101 the demo is open to everybody
        create policy everybody on realtime_channels for select to anon using (true);
    """
    for source in files.sources:
        for disable in source.disables:
            if len(disable.reason.split()) < 2:
                yield Mark(
                    Statement(source, disable.statement or 0, None, disable.offset),
                    f"{', '.join(disable.codes)} is disabled without a reason",
                    "Say behind the code why it is right here.",
                )


@rule("RCL003", Level.WARNING, database=False)
def disable_is_needed(files: Files) -> Iterator[Mark]:
    """A rule is disabled where it finds nothing.

    What is left over from an earlier version would hide the next mistake. A comment counts for the
    statement that it stands in, or above, or behind in the same line.

    Bad:

        -- rowcast:disable=RCL101 everybody may listen
        create policy everybody on realtime_channels for select to anon using (is_public);

    Good:

        create policy everybody on realtime_channels for select to anon using (is_public);
    """
    # Only known when all others have been asked: see `lint`.
    yield from ()


@rule("RCL004", Level.WARNING, database=False)
def disable_names_rules(files: Files) -> Iterator[Mark]:
    """A rule is disabled that does not exist.

    Mistyped, the comment has no effect.

    Bad:

        -- rowcast:disable=RCL999 everybody may listen
        create policy everybody on realtime_channels for select to anon using (is_public);

    Good:

        create policy everybody on realtime_channels for select to anon using (is_public);
    """
    for source in files.sources:
        for disable in source.disables:
            for code in disable.codes:
                if code not in RULES:
                    yield Mark(
                        Statement(source, disable.statement or 0, None, disable.offset),
                        f"there is no rule {code}",
                        "The rules are listed in policies/README.md.",
                    )
