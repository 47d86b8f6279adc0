"""RCL2: policies that refuse every caller without an error."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from rowcast.policy.lint.expressions import comparisons, is_false
from rowcast.policy.lint.files import MESSAGES, Files, Policy
from rowcast.policy.lint.findings import Level, Mark, catalogue_rule, rule
from rowcast.policy.optional import need

__all__ = [
    "equals_null",
    "function_without_grant",
    "name_without_schema",
    "only_restrictive",
    "role_without_callers",
    "without_effect",
]


@rule("RCL204", Level.ERROR)
def equals_null(files: Files) -> Iterator[Mark]:
    """Something is compared with NULL.

    `= null` is neither true nor false but NULL, which refuses. Write `is null`.

    Bad:

        create policy unowned on realtime_channels for select to authenticated
        using (owner_id = null);

    Good:

        create policy unowned on realtime_channels for select to authenticated
        using (owner_id is null);
    """
    ast = need("pglast.ast")
    for policy in files.policies:
        for expression in policy.expressions:
            for left, right, operator, _ in comparisons(expression):
                plain = (s.arg if isinstance(s, ast.TypeCast) else s for s in (left, right))
                if any(isinstance(side, ast.A_Const) and side.isnull for side in plain):
                    yield Mark(
                        policy.statement,
                        f"{operator} NULL is NULL, which refuses",
                        "Write `is null` or `is not null`.",
                        left,
                    )


@rule("RCL208", Level.WARNING)
def only_restrictive(files: Files) -> Iterator[Mark]:
    """There are only restrictive policies.

    A restrictive policy narrows what permissive policies allow. Without a permissive policy for the
    same command every caller is refused, and no error says why. If that is intended, write `false`.
    In files this looks only at the files given: the permissive policy may be elsewhere.

    Bad:

        create policy in_hours on realtime_channels as restrictive for select to authenticated
        using (enabled);

    Good:

        create policy in_hours on realtime_channels as restrictive for select to authenticated
        using (enabled);
        create policy own on realtime_channels for select to authenticated
        using (owner_id = auth.user_id());
    """
    by_table: dict[str, list[Policy]] = defaultdict(list)
    for policy in files.policies:
        by_table[policy.table].append(policy)
    for policies in by_table.values():
        for policy in policies:
            helped = any(
                other.permissive
                and (other.command == policy.command or "all" in (other.command, policy.command))
                for other in policies
            )
            if not (policy.permissive or helped or _is_false(policy)):
                yield Mark(
                    policy.statement,
                    f"policy {policy.name!r} is restrictive, and no permissive policy exists",
                    "Add a permissive policy for the same command.",
                )


def _is_false(policy: Policy) -> bool:
    """Say whether the policy refuses every caller on purpose."""
    return all(is_false(expression) for expression in policy.expressions)


@rule("RCL211", Level.WARNING)
def without_effect(files: Files) -> Iterator[Mark]:
    """A policy is for changing or deleting messages.

    Messages are written once: callers may never update or delete one, whatever policies say.
    `rowcast.delete_message()` removes a message and also tells subscribers.

    Bad:

        create policy take_back on realtime_messages for delete to authenticated
        using (sender_id = auth.user_id());

    Good:

        create policy say on realtime_messages for insert to authenticated
        with check (sender_id = auth.user_id());
    """
    for policy in files.policies:
        if policy.table == MESSAGES and policy.command in ("update", "delete"):
            yield Mark(
                policy.statement,
                f"policy {policy.name!r} has no effect: callers never {policy.command} messages",
                "Drop the policy; call rowcast.delete_message() in a function of your own.",
            )


@rule("RCL215", Level.INFO, database=False)
def name_without_schema(files: Files) -> Iterator[Mark]:
    """A table is named without its schema.

    Which table is meant depends on the search_path when the file is applied. With the schema the
    file means the same everywhere.

    Bad:

        create policy own on realtime_channels for select to authenticated
        using (owner_id = auth.user_id());

    Good:

        create policy own on public.realtime_channels for select to authenticated
        using (owner_id = auth.user_id());
    """
    for policy in files.policies:
        nodes = [policy.statement.node.table, *(node for _, node in policy.reads)]
        bare = [node for node in nodes if not node.schemaname]
        if bare:
            names = list(dict.fromkeys(node.relname for node in bare))
            yield Mark(
                policy.statement,
                f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} named without a schema",
                f"Write the schema, such as public.{names[0]}.",
                bare[0],
            )


@catalogue_rule("RCL213", Level.WARNING)
def role_without_callers() -> None:
    """The policy is for a role that callers do not have.

    A token can only name the caller roles of `rowcast.settings` (`anon` and `authenticated`). A
    policy for another role never applies, unless a caller role is a member of that role.

    Bad:

        create policy staff on public.realtime_channels for select to rowcast_admin
        using (enabled);

    Good:

        create policy staff on public.realtime_channels for select to authenticated
        using ((select auth.jwt()) ->> 'staff' = 'true');
    """


@catalogue_rule("RCL214", Level.ERROR)
def function_without_grant() -> None:
    """A policy calls a function that callers may not execute.

    A policy runs with the rights of the caller, so it fails with *permission denied* for every
    caller to whom it applies.

    Bad:

        create function public.in_hours() returns boolean language sql stable return true;
        revoke execute on function public.in_hours() from public;
        create policy in_hours on public.realtime_channels for select to authenticated
        using (public.in_hours());

    Good:

        create function public.in_hours() returns boolean language sql stable return true;
        grant execute on function public.in_hours() to authenticated;
        create policy in_hours on public.realtime_channels for select to authenticated
        using (public.in_hours());
    """
