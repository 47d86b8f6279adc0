"""RCL2: policies that raise an error, for callers or when they are created."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rowcast.policy.lint.expressions import (
    IDENTITY,
    called,
    calls,
    comparisons,
    constant,
    kind_of,
    names_channel,
)
from rowcast.policy.lint.files import CHANNELS, MESSAGES, Files, Policy
from rowcast.policy.lint.findings import Level, Mark, rule
from rowcast.policy.optional import need
from rowcast.policy.source import walk

__all__ = [
    "cast_that_fails",
    "forced_on_definers",
    "kinds_that_differ",
    "reads_itself",
    "setting_that_is_missing",
    "table_without_grant",
    "volatile",
    "wrong_clause",
    "wrong_table",
]

# Casts of text to these types cannot fail.
HARMLESS = {"text", "varchar", "bpchar", "name", "citext"}
VOLATILE = {
    *("pg_sleep", "pg_sleep_for", "pg_sleep_until", "random", "clock_timestamp", "timeofday"),
    *("nextval", "setval", "set_config", "pg_notify", "gen_random_uuid", "uuid_generate_v4"),
    *("pg_advisory_lock", "pg_try_advisory_lock", "pg_advisory_xact_lock", "txid_current"),
    *("pg_current_xact_id", "dblink", "dblink_exec", "http_get", "http_post", "net.http_post"),
}


@rule("RCL201", Level.ERROR)
def cast_that_fails(files: Files) -> Iterator[Mark]:
    """A part of a name is cast, which fails for other names.

    All policies of a command run for every caller, in any order. So a cast that fails for `chat:x`
    refuses `chat:x` even if another policy allows it. The helpers return NULL instead of an error.
    The same applies to a subject that is not a UUID.

    Bad:

        create policy rooms on realtime_channels for select to authenticated
        using (exists (
            select from rooms as r where r.id = split_part(rowcast.channel_name(), ':', 2)::uuid
        ));

    Good:

        create policy rooms on realtime_channels for select to authenticated
        using (exists (select from rooms as r where r.id = rowcast.segment_uuid(2)));
    """
    for policy in files.policies:
        for node, _ in policy.walk():
            if not isinstance(node, need("pglast.ast").TypeCast):
                continue
            to = node.typeName.names[-1].sval
            if to in HARMLESS or node.typeName.arrayBounds:
                continue
            if _user(node.arg) and to == "uuid":
                yield Mark(
                    policy.statement,
                    "this cast fails for a subject that is not a UUID, for all policies",
                    "Use auth.uid(), which is then NULL.",
                    node,
                )
            elif _from_name(node.arg):
                helper = {"uuid": "segment_uuid"}.get(to, "segment_int")
                yield Mark(
                    policy.statement,
                    f"this cast fails for a name without a {to} there, for all policies",
                    f"Use rowcast.{helper}(…), which is then NULL.",
                    node,
                )


def _user(tree: Any) -> bool:
    return any(name.endswith(".user_id") for name, _ in calls(tree) if name in IDENTITY)


def _from_name(tree: Any) -> bool:
    ast = need("pglast.ast")
    for node, above in walk(tree):
        if any(isinstance(a, ast.SelectStmt) and a.fromClause for a in above):
            continue
        if called(node) == "rowcast.segment" or names_channel(node):
            return True
        if isinstance(node, ast.ColumnRef):
            last = getattr(node.fields[-1], "sval", "")
            if last in ("channel_name", "topic"):
                return True
    return False


@rule("RCL202", Level.ERROR)
def reads_itself(files: Files) -> Iterator[Mark]:
    """A policy reads its own table, or two tables read each other.

    Reading a table evaluates its SELECT policies, which read the table again: PostgreSQL refuses
    with 42P17, *infinite recursion detected*. Call a SECURITY DEFINER function with a pinned
    search_path instead, or compare columns of the row.

    Bad:

        create policy same_room on room_members for select to authenticated
        using (room in (select m.room from room_members as m where m.user_id = auth.user_id()));

    Good:

        create policy own on room_members for select to authenticated
        using (user_id = (select auth.user_id()));
    """
    for policy in files.policies:
        for table, node in policy.reads:
            path = _path(files, table, policy)
            if path:
                yield Mark(
                    policy.statement,
                    f"infinite recursion: {' reads '.join(path)}",
                    "Read the table through a SECURITY DEFINER function with a pinned search_path.",
                    node,
                )


def _path(files: Files, start: str, policy: Policy) -> list[str] | None:
    """Return the tables from that of a policy, through one that it reads, to a recursion.

    PostgreSQL refuses when it meets a table for the second time and the SELECT policies of that
    table have a sub-select.
    """
    waiting = [[policy.table, start]]
    while waiting:
        trail = waiting.pop(0)
        readers = files.policies_for_reading(trail[-1])
        if trail[-1] not in trail[:-1]:
            waiting += [[*trail, table] for reader in readers for table, _ in reader.reads]
        elif any(isinstance(n, need("pglast.ast").SubLink) for r in readers for n, _ in r.walk()):
            return trail
    return None


@rule("RCL203", Level.ERROR, database=False)
def kinds_that_differ(files: Files) -> Iterator[Mark]:
    """A uuid is compared with a text.

    Such an operator does not exist, so PostgreSQL refuses to create the policy. `auth.user_id()`
    and `rowcast.segment()` are text, like `owner_id` and `sender_id`; `auth.uid()` and
    `rowcast.segment_uuid()` are uuid, like `id` and `channel_id`.

    Bad:

        create policy own on realtime_channels for select to authenticated
        using (owner_id = auth.uid());

    Good:

        create policy own on realtime_channels for select to authenticated
        using (owner_id = auth.user_id());
    """
    for policy in files.policies:
        for expression in policy.expressions:
            for left, right, _, above in comparisons(expression):
                kinds = [kind_of(side, above, policy, files) for side in (left, right)]
                if None not in kinds and kinds[0] != kinds[1]:
                    yield Mark(
                        policy.statement,
                        f"{kinds[0]} is compared with {kinds[1]}",
                        "Use auth.user_id() and segment() for text, auth.uid() and segment_uuid() "
                        "for uuid, segment_int() for numbers.",
                        left,
                    )


@rule("RCL205", Level.WARNING)
def setting_that_is_missing(files: Files) -> Iterator[Mark]:
    """A setting is read that may be missing or empty.

    `current_setting('request.jwt.claims')` raises an error without a token, and after a commit a
    local setting is `''`, which is not JSON. Either error also refuses callers that another policy
    allows. `auth.jwt()` handles both.

    Bad:

        create policy tenant on realtime_channels for select to authenticated
        using (current_setting('request.jwt.claims')::json ->> 'tenant' = rowcast.segment(2));

    Good:

        create policy tenant on realtime_channels for select to authenticated
        using ((select auth.jwt()) ->> 'tenant' = rowcast.segment(2));
    """
    ast = need("pglast.ast")
    for policy in files.policies:
        for node, above in policy.walk():
            if called(node) != "current_setting":
                continue
            cast = any(
                isinstance(a, ast.TypeCast) and a.typeName.names[-1].sval not in HARMLESS
                for a in above
            )
            emptied = any(
                isinstance(a, ast.A_Expr)
                and a.kind == need("pglast.enums").A_Expr_Kind.AEXPR_NULLIF
                for a in above
            )
            if len(node.args or ()) < 2 or (cast and not emptied):
                yield Mark(
                    policy.statement,
                    f"the setting {constant(node.args[0]) or ''} may be missing or empty",
                    "Use auth.jwt(), or nullif(current_setting(…, true), '').",
                    node,
                )


@rule("RCL206", Level.WARNING)
def volatile(files: Files) -> Iterator[Mark]:
    """A policy calls a volatile function: it waits, writes, or its result changes.

    A policy runs for every row and has a time limit. A subscribe is checked in a read-only
    transaction and rechecked every minute. A function is volatile unless it is declared STABLE or
    IMMUTABLE.

    Bad:

        create policy lottery on realtime_channels for select to authenticated
        using (random() < 0.5 and enabled);

    Good:

        create policy own on realtime_channels for select to authenticated
        using (owner_id = auth.user_id() and created_at < now());
    """
    for policy in files.policies:
        for node, _ in policy.walk():
            name = called(node)
            declared = any(function.volatile for function in files.functions_named(name))
            if name and (declared or name in VOLATILE or name.startswith("pg_sleep")):
                yield Mark(
                    policy.statement,
                    f"{name}() is volatile: it waits, writes, or its result changes",
                    "Decide by the row, the token and tables; declare your functions STABLE.",
                    node,
                )


@rule("RCL207", Level.ERROR, catalogue=True)
def table_without_grant(files: Files) -> Iterator[Mark]:
    """A policy reads a table that callers may not read.

    A policy runs with the rights of the caller. Without SELECT on the table it fails with
    *permission denied* for every caller to whom it applies. Grant SELECT, and let policies of that
    table decide which rows are visible.

    Bad:

        create table room_members (room text, user_id text);
        alter table room_members enable row level security;
        create policy members on realtime_channels for select to authenticated
        using (exists (select from room_members as m where m.user_id = auth.user_id()));

    Good:

        create table room_members (room text, user_id text);
        alter table room_members enable row level security;
        grant select on room_members to authenticated;
        create policy own on room_members for select to authenticated
        using (user_id = (select auth.user_id()));
        create policy members on realtime_channels for select to authenticated
        using (exists (select from room_members as m where m.user_id = auth.user_id()));
    """
    for policy in files.policies:
        for table, node in policy.reads:
            if table in files.tables and table not in files.readable:
                yield Mark(
                    policy.statement,
                    f"policy {policy.name!r} reads {table}, on which these files grant no SELECT",
                    f"Run: grant select on {table} to anon, authenticated;",
                    node,
                )


@rule("RCL209", Level.ERROR, database=False)
def wrong_clause(files: Files) -> Iterator[Mark]:
    """The command does not take this clause.

    SELECT and DELETE check existing rows and take USING. INSERT checks the new row and takes WITH
    CHECK. PostgreSQL refuses the other clause when the policy is created.

    Bad:

        create policy own on realtime_messages for insert to authenticated
        using (sender_id = auth.user_id());

    Good:

        create policy own on realtime_messages for insert to authenticated
        with check (sender_id = auth.user_id());
    """
    for policy in files.policies:
        wrong = {"insert": policy.using, "select": policy.check, "delete": policy.check}
        found = wrong.get(policy.command)
        if found is not None:
            right = "WITH CHECK" if policy.command == "insert" else "USING"
            yield Mark(
                policy.statement,
                f"FOR {policy.command.upper()} takes {right} only",
                f"Write {right} (…).",
                found,
            )


@rule("RCL210", Level.ERROR, database=False)
def wrong_table(files: Files) -> Iterator[Mark]:
    """The policy is for a view or for an internal table of rowcast.

    `realtime.channels` and `realtime.messages` are views here, for applications that were written
    for another system; PostgreSQL does not allow policies on views. Tables in schema rowcast are
    only accessed by functions. `rowcast policy port` rewrites such files.

    Bad:

        create policy listen on realtime.messages for select to authenticated using (true);

    Good:

        create policy listen on public.realtime_channels for select to authenticated
        using (is_public);
    """
    ours = {"realtime.channels": CHANNELS, "realtime.messages": MESSAGES}
    for policy in files.policies:
        if policy.table in ours or policy.table.startswith("rowcast."):
            yield Mark(
                policy.statement,
                f"{policy.table} cannot have policies of yours",
                "Write it for public.realtime_channels or public.realtime_messages; "
                "`rowcast policy port` rewrites files made for another system.",
            )


@rule("RCL212", Level.ERROR, catalogue=True)
def forced_on_definers(files: Files) -> Iterator[Mark]:
    """Row level security is forced on a table that a definer function reads.

    FORCE applies policies to the owner, too. A SECURITY DEFINER helper of that owner is then
    filtered itself: it silently finds no rows, or calls the policy that calls it until the stack is
    full. rowcast's own functions are such helpers for both of its tables.

    Bad:

        alter table realtime_messages force row level security;

    Good:

        alter table realtime_messages enable row level security;
    """
    read = {CHANNELS: "rowcast", MESSAGES: "rowcast"} | {
        table: function.name
        for function in files.functions
        if function.definer
        for table in function.tables
    }
    for name, statement in files.forced:
        if name in read:
            yield Mark(
                statement,
                f"{name} is read by definer functions ({read[name]}), whose rows FORCE filters",
                f"Run: alter table {name} no force row level security;",
            )
