"""RCL1: what surrounds a policy and lets rows past it: tables, views, commands, roles."""

from __future__ import annotations

from collections.abc import Iterator

from rowcast.policy.lint.files import CHANNELS, MESSAGES, Files
from rowcast.policy.lint.findings import Level, Mark, rule

__all__ = [
    "all_without_check",
    "everybody",
    "one_for_all",
    "table_is_open",
    "view_of_the_owner",
]


@rule("RCL107", Level.WARNING, database=True)
def view_of_the_owner(files: Files) -> Iterator[Mark]:
    """A view asks the policies of its owner.

    A view reads its tables with the rights of whoever owns it, so their policies do not hold for
    the reader. With `security_invoker` they do. A materialized view never asks them: do not grant
    it to callers.

    Bad:

        create view latest as select channel_name, payload from realtime_messages;
        grant select on latest to authenticated;

    Good:

        create view latest with (security_invoker = true) as
        select channel_name, payload from realtime_messages;
        grant select on latest to authenticated;
    """
    for view in files.views:
        if not view.invoker and view.tables:
            yield Mark(
                view.statement,
                f"view {view.name} reads {', '.join(sorted(view.tables))} as its owner",
                "Write `with (security_invoker = true)`.",
            )


@rule("RCL108", Level.ERROR, database=True)
def table_is_open(files: Files) -> Iterator[Mark]:
    """A table has policies, and row level security is off.

    Policies do nothing until row level security is enabled on the table: everybody with a grant
    sees and writes all rows.

    Bad:

        create table room_members (room text, user_id text);
        create policy own on room_members for select to authenticated
        using (user_id = (select auth.user_id()));

    Good:

        create table room_members (room text, user_id text);
        alter table room_members enable row level security;
        create policy own on room_members for select to authenticated
        using (user_id = (select auth.user_id()));
    """
    governed = {policy.table for policy in files.policies} | {CHANNELS, MESSAGES}
    for name, table in files.tables.items():
        if name in governed and not table.secured:
            yield Mark(
                table.statement,
                f"{name} has policies, and row level security is not enabled",
                f"Run: alter table {name} enable row level security;",
            )
    for name, statement in files.opened:
        if name in governed:
            yield Mark(
                statement,
                f"{name} has policies, and this disables row level security",
                "Leave it enabled, and write policies for whoever needs more.",
            )


@rule("RCL109", Level.WARNING, database=True)
def all_without_check(files: Files) -> Iterator[Mark]:
    """FOR ALL without WITH CHECK.

    The USING condition is then also the check of what is inserted and updated: who may see a row
    may write such rows. Write a policy per command, or say WITH CHECK.

    Bad:

        create policy own on room_members to authenticated
        using (user_id = (select auth.user_id()));

    Good:

        create policy own on room_members for select to authenticated
        using (user_id = (select auth.user_id()));
    """
    for policy in files.policies:
        if policy.command == "all" and policy.check is None and not policy.altered:
            yield Mark(
                policy.statement,
                f"policy {policy.name!r} is for all commands, and USING is its check too",
                "Write a policy per command, or a WITH CHECK.",
            )


@rule("RCL110", Level.WARNING, database=True)
def one_for_all(files: Files) -> Iterator[Mark]:
    """One policy for all commands on a table of rowcast.

    On realtime_channels SELECT is listening, and whoever may also write a row makes channels; on
    realtime_messages INSERT is publishing, SELECT is history. They are different questions, and
    what was meant for one opens the other.

    Bad:

        create policy own on realtime_channels for all to authenticated
        using (owner_id = auth.user_id()) with check (owner_id = auth.user_id());

    Good:

        create policy own on realtime_channels for select to authenticated
        using (owner_id = auth.user_id());
    """
    for policy in files.policies:
        if policy.command == "all" and policy.table in (CHANNELS, MESSAGES) and not policy.altered:
            yield Mark(
                policy.statement,
                f"policy {policy.name!r} is for every command of {policy.table}",
                "Write FOR SELECT on realtime_channels, FOR INSERT or SELECT on realtime_messages.",
            )


@rule("RCL111", Level.INFO)
def everybody(files: Files) -> Iterator[Mark]:
    """The policy is for every role.

    Without TO, or with TO PUBLIC, it is also asked for callers without a token and for every other
    login. The condition may well refuse them; with TO it is not asked, and cannot be wrong.

    Bad:

        create policy own on realtime_channels for select
        using (owner_id = auth.user_id());

    Good:

        create policy own on realtime_channels for select to authenticated
        using (owner_id = auth.user_id());
    """
    for policy in files.policies:
        if policy.everybody:
            yield Mark(
                policy.statement,
                f"policy {policy.name!r} is for every role",
                "Name the roles: TO authenticated, or TO anon, authenticated.",
            )
