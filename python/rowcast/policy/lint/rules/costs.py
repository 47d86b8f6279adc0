"""RCL3: policies that are correct but slow."""

from __future__ import annotations

from collections.abc import Iterator

from rowcast.policy.lint.expressions import called, in_subselect, is_helper, wrapped
from rowcast.policy.lint.files import CHANNELS, MESSAGES, Files
from rowcast.policy.lint.findings import Level, Mark, catalogue_rule, rule

__all__ = ["column_without_index", "once_per_row"]


@rule("RCL301", Level.WARNING)
def once_per_row(files: Files) -> Iterator[Mark]:
    """A helper is evaluated for every row of a table.

    `auth.user_id()` is the same for all rows of a statement. Inside `(select …)` it is evaluated
    once, and an index on the column can be used. It does not matter on realtime_channels and for
    inserts, which check one row, nor inside a sub-select that compares an indexed column.

    Bad:

        create policy own on room_members for select to authenticated
        using (user_id = auth.user_id());

    Good:

        create policy own on room_members for select to authenticated
        using (user_id = (select auth.user_id()));
    """
    for policy in files.policies:
        if policy.table == CHANNELS or policy.command in ("insert", ""):
            continue
        for node, above in policy.walk():
            # On messages such a helper is wrong (RCL103) rather than slow.
            if policy.table == MESSAGES and not called(node).startswith(("auth.", "rowcast.u")):
                continue
            if is_helper(node) and not wrapped(above) and not in_subselect(above):
                yield Mark(
                    policy.statement,
                    f"{called(node)}() is evaluated for every row of {policy.table}",
                    f"Write (select {called(node)}()).",
                    node,
                )


@catalogue_rule("RCL302", Level.WARNING)
def column_without_index() -> None:
    """A policy looks up rows of a table without an index.

    Each check reads the whole table: at every subscribe, every minute again, and for every message.
    An index that begins with a column that the policy compares is enough. Below a thousand rows
    this is an info, from a million on an error.

    Bad:

        create table public.room_members (room text, user_id text);
        insert into public.room_members select n, n from generate_series(1, 5000) as n;
        analyze public.room_members;
        create policy members on public.realtime_channels for select to authenticated
        using (exists (select from public.room_members as m where m.user_id = auth.user_id()));

    Good:

        create table public.room_members (room text, user_id text, primary key (user_id, room));
        insert into public.room_members select n, n from generate_series(1, 5000) as n;
        analyze public.room_members;
        create policy members on public.realtime_channels for select to authenticated
        using (exists (select from public.room_members as m where m.user_id = auth.user_id()));
    """
