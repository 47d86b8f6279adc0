"""RCL1 and RCL2: functions that run with the rights of their owner."""

from __future__ import annotations

from collections.abc import Iterator

from rowcast.policy.lint.files import CHANNELS, MESSAGES, Files
from rowcast.policy.lint.findings import Level, Mark, rule

__all__ = ["forced_on_definers", "path_is_not_pinned"]


@rule("RCL106", Level.ERROR, database=True)
def path_is_not_pinned(files: Files) -> Iterator[Mark]:
    """A SECURITY DEFINER function without its own search_path.

    It runs with the rights of its owner and looks names up on the path of whoever calls it: a
    caller who may create a table or a function in any schema of that path runs his own code with
    those rights. Pin the path, with pg_temp last, and write names with their schema.

    Bad:

        create function is_member(p_room text) returns boolean language sql stable
        security definer
        return exists (select from public.room_members as m where m.room = p_room);
        create policy members on realtime_channels for select to authenticated
        using (is_member(rowcast.segment(2)));

    Good:

        create function is_member(p_room text) returns boolean language sql stable
        security definer set search_path = pg_catalog, pg_temp
        return exists (select from public.room_members as m where m.room = p_room);
        create policy members on realtime_channels for select to authenticated
        using (is_member(rowcast.segment(2)));
    """
    for function in files.functions.values():
        if function.definer and "search_path" not in function.settings:
            yield Mark(
                function.statement,
                f"function {function.name} runs as its owner on the search_path of its caller",
                "Write `set search_path = pg_catalog, pg_temp`.",
            )


@rule("RCL212", Level.ERROR, database=True)
def forced_on_definers(files: Files) -> Iterator[Mark]:
    """Row level security is forced on a table that a definer function reads.

    FORCE makes policies hold for the owner, too. A SECURITY DEFINER helper of that owner is then
    filtered itself: it silently finds nothing, or calls the policy that calls it until the stack
    is full. rowcast's own functions are such helpers of both its tables.

    Bad:

        alter table realtime_messages force row level security;

    Good:

        alter table realtime_messages enable row level security;
    """
    read = {CHANNELS: "rowcast", MESSAGES: "rowcast"} | {
        table: function.name
        for function in files.functions.values()
        if function.definer
        for table in function.tables
    }
    for name, statement in files.forced:
        if name in read:
            yield Mark(
                statement,
                f"{name} is read by definer functions ({read[name]}), which FORCE blinds",
                f"Run: alter table {name} no force row level security;",
            )
