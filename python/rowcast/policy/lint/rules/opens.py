"""RCL1: conditions, functions, views and tables that give callers more than was meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rowcast.policy.lint.expressions import (
    CONTEXT,
    called,
    columns,
    comparisons,
    constant,
    is_helper,
    is_true,
    names_channel,
    nullable,
    resolve,
    scopes,
)
from rowcast.policy.lint.files import CHANNELS, MESSAGES, Files
from rowcast.policy.lint.findings import Level, Mark, rule
from rowcast.policy.optional import need
from rowcast.policy.source import walk

__all__ = [
    "all_without_check",
    "always_true",
    "claims_that_users_write",
    "compared_with_itself",
    "database_login_as_identity",
    "everybody",
    "history_by_channel_id",
    "like_for_names",
    "name_of_the_statement",
    "null_inverted",
    "one_for_all",
    "path_is_not_pinned",
    "table_is_open",
    "view_of_the_owner",
]

OURS = (CHANNELS, MESSAGES)
# Whom a token can make: for a role of trusted code `true` is what is meant.
CALLERS = {"public", "anon", "authenticated"}
WRITTEN_BY_USERS = re.compile(r"\buser_metadata\b|\braw_user_meta_data\b")


@rule("RCL101", Level.ERROR, catalogue=True)
def always_true(files: Files) -> Iterator[Mark]:
    """The condition is always true.

    `using (true)`, or `true` as one arm of an OR, lets everybody through whom TO names, whatever
    the other policies refuse: policies of one command are joined by OR. Where that is meant, say so
    with `-- rowcast:disable=RCL101` and the reason. On tables of your own this is a warning.

    Bad:

        create policy members on realtime_channels for select to authenticated
        using (owner_id = auth.user_id() or true);

    Good:

        create policy members on realtime_channels for select to authenticated
        using (owner_id = auth.user_id() or is_public);
    """
    for policy in files.policies:
        if not policy.permissive or not CALLERS & set(policy.roles):
            continue
        level = Level.ERROR if policy.table in OURS else Level.WARNING
        for expression in policy.expressions:
            if is_true(expression):
                yield Mark(
                    policy.statement,
                    f"policy {policy.name!r} lets everybody through whom TO names",
                    "Write the condition, or disable this rule with the reason.",
                    expression,
                    level,
                )


@rule("RCL102", Level.ERROR)
def compared_with_itself(files: Files) -> Iterator[Mark]:
    """A column is compared with itself.

    Inside a sub-select a bare column name means the inner table, if it has such a column. So
    `m.channel_id = channel_id` compares the member's row with itself, is true for every row, and a
    member of any channel is let into all of them. Name the table of the policy.

    Bad:

        create policy members on realtime_messages for insert to authenticated
        with check (exists (
            select from channel_members as m
            where m.channel_id = channel_id and m.user_id = auth.user_id()
        ));

    Good:

        create policy members on realtime_messages for insert to authenticated
        with check (exists (
            select from channel_members as m
            where m.channel_id = realtime_messages.channel_id and m.user_id = auth.user_id()
        ));
    """
    column = need("pglast.ast").ColumnRef
    for policy in files.policies:
        for expression in policy.expressions:
            for left, right, operator, above in comparisons(expression):
                if operator != "=" or not (isinstance(left, column) and isinstance(right, column)):
                    continue
                first, second = (
                    [getattr(part, "sval", "*") for part in side.fields] for side in (left, right)
                )
                if first[-1] != second[-1]:
                    continue
                inner = next(scopes(above), {policy.table.partition(".")[2]: policy.table})
                if first == second or (
                    {len(first), len(second)} == {1, 2}
                    and ((first if len(first) == 2 else second)[0] in inner)
                ):
                    yield Mark(
                        policy.statement,
                        f"{'.'.join(first)} = {'.'.join(second)} compares a column with itself",
                        f"Name the table of the policy: "
                        f"{policy.table.partition('.')[2]}.{first[-1]}.",
                        left,
                    )


@rule("RCL103", Level.ERROR)
def name_of_the_statement(files: Files) -> Iterator[Mark]:
    """A policy on messages asks for the name of the statement, not of the row.

    `rowcast.segment(2)` and `rowcast.channel_name()` tell the name that is being subscribed to.
    An INSERT may bring several rows, each for another channel; a helper without the name is
    evaluated once, so only the first row would be checked. In history it is no name at all. Give
    the helper the row's `channel_name`.

    Bad:

        create policy own on realtime_messages for insert to authenticated
        with check (rowcast.segment(2) = auth.user_id());

    Good:

        create policy own on realtime_messages for insert to authenticated
        with check (rowcast.segment(channel_name, 2) = auth.user_id());
    """
    for policy in files.policies:
        if policy.table != MESSAGES:
            continue
        for node, _ in policy.walk():
            name = called(node)
            bodies = [tree for made in files.functions_named(name) for tree in made.body]
            if names_channel(node):
                last = name.rpartition(".")[2]
                form = f"rowcast.{last}(channel_name, …)" if CONTEXT.get(name) else "channel_name"
                yield Mark(
                    policy.statement,
                    f"{name}() is the name of the statement, and each row has its own",
                    f"Write {form}.",
                    node,
                )
            elif any(names_channel(n) for tree in bodies for n, _ in walk(tree)):
                yield Mark(
                    policy.statement,
                    f"{name}() asks for the name of the statement, and each row has its own",
                    "Give the function the channel_name of the row as an argument.",
                    node,
                )


@rule("RCL104", Level.ERROR)
def history_by_channel_id(files: Files) -> Iterator[Mark]:
    """History is opened by channel_id.

    All names that one pattern governs share its `channel_id`: whoever may join one room of
    `chat:*` could read every room. Ask for the name of the message.

    Bad:

        create policy history on realtime_messages for select to authenticated
        using (exists (
            select from realtime_channels as c where c.id = realtime_messages.channel_id
        ));

    Good:

        create policy history on realtime_messages for select to authenticated
        using (rowcast.may_subscribe(channel_name));
    """
    for policy in files.policies:
        if policy.table != MESSAGES or not policy.selects:
            continue
        used = {
            column: node
            for parts, node, above in columns(policy)
            for table, column in [resolve(parts, above, policy, files)]
            if table == MESSAGES
        }
        if "channel_id" in used and "channel_name" not in used:
            yield Mark(
                policy.statement,
                f"policy {policy.name!r} opens every room of a pattern to a member of one",
                "Use rowcast.may_subscribe(channel_name), or compare the channel_name.",
                used["channel_id"],
            )


@rule("RCL105", Level.ERROR)
def claims_that_users_write(files: Files) -> Iterator[Mark]:
    """The policy trusts what users write about themselves.

    `user_metadata` in a token, and `raw_user_meta_data` behind it, can be set by the user: with
    Supabase by a call of the client library. A role or a tenant belongs into `app_metadata`, into
    a claim of your issuer's own, or into a table.

    Bad:

        create policy tenant on realtime_channels for select to authenticated
        using (rowcast.segment(2) = (select auth.jwt() -> 'user_metadata' ->> 'tenant'));

    Good:

        create policy tenant on realtime_channels for select to authenticated
        using (rowcast.segment(2) = (select auth.jwt() -> 'app_metadata' ->> 'tenant'));
    """
    ast = need("pglast.ast")
    for policy in files.policies:
        seen = False
        for node, above in policy.walk():
            text = constant(node) if isinstance(node, ast.A_Const) else called(node)
            if isinstance(node, ast.ColumnRef):
                text = getattr(node.fields[-1], "sval", "")
            if not seen and text and WRITTEN_BY_USERS.search(text):
                seen = True
                yield Mark(
                    policy.statement,
                    f"{text} can be written by the user himself",
                    "Use app_metadata, a claim of your issuer's own, or a table.",
                    above[-1] if isinstance(node, ast.A_Const) else node,
                )


@rule("RCL112", Level.WARNING)
def null_inverted(files: Files) -> Iterator[Mark]:
    """A condition about a caller is turned round, and NULL is not what was thought of.

    For a caller without a token `auth.user_id()` is NULL, and so is every comparison with it. NULL
    counts as no, also behind NOT: `not (x = auth.user_id())` and `<>` refuse such a caller, and
    NOT IN with a sub-select refuses everybody as soon as one row is NULL. `is null`, `is distinct
    from` and `coalesce(…, true)` are worse: they let him in. Say what is allowed, not what is not.

    Bad:

        create policy not_mine on realtime_channels for select to authenticated
        using (not (owner_id = auth.user_id()));

    Good:

        create policy not_mine on realtime_channels for select to authenticated
        using (auth.user_id() is not null and is_public);
    """
    for policy in files.policies:
        for node, _ in policy.walk():
            said = _inversion(node)
            if said:
                yield Mark(
                    policy.statement,
                    said,
                    "Say what is allowed; ask `is not null` first where it has to be turned round.",
                    node,
                )


def _inversion(node: object) -> str:
    ast, enums = need("pglast.ast"), need("pglast.enums")
    kind = enums.A_Expr_Kind
    if isinstance(node, ast.BoolExpr) and node.boolop == enums.BoolExprType.NOT_EXPR:
        arm = node.args[0]
        if isinstance(arm, ast.SubLink):
            if arm.subLinkType == enums.SubLinkType.ANY_SUBLINK:
                return "NOT IN refuses everybody as soon as one row of the sub-select is NULL"
            return ""
        if isinstance(arm, ast.A_Expr | ast.BoolExpr) and nullable(arm):
            return "NOT of a comparison that is NULL without a token is NULL, and refuses"
    if isinstance(node, ast.A_Expr):
        asked = is_helper_in(node.lexpr) or is_helper_in(node.rexpr)
        if node.kind == kind.AEXPR_DISTINCT and asked:
            return "IS DISTINCT FROM is true for a caller without a token"
        if node.kind in (kind.AEXPR_OP, kind.AEXPR_IN) and node.name[-1].sval == "<>" and asked:
            return "<> is NULL for a caller without a token, and refuses"
    if isinstance(node, ast.NullTest):
        if node.nulltesttype == enums.NullTestType.IS_NULL and is_helper_in(node.arg):
            return "IS NULL lets a caller without a token in"
        return ""
    if isinstance(node, ast.BooleanTest) and nullable(node.arg):
        tests = enums.BoolTestType
        if node.booltesttype in (tests.IS_NOT_TRUE, tests.IS_NOT_FALSE, tests.IS_UNKNOWN):
            return "a caller without a token passes this test"
    if isinstance(node, ast.CoalesceExpr) and is_true(node.args[-1]) and nullable(node.args):
        return "coalesce(…, true) lets a caller without a token in"
    return ""


def is_helper_in(node: object) -> bool:
    """A helper itself, or one in a scalar sub-select or an operator; not in a table's rows."""
    ast = need("pglast.ast")
    return any(
        is_helper(n) and not any(isinstance(a, ast.SelectStmt) and a.fromClause for a in above)
        for n, above in walk(node)
    )


@rule("RCL113", Level.WARNING)
def like_for_names(files: Files) -> Iterator[Mark]:
    """LIKE decides about a channel.

    `%` and `_` are wildcards, also when they come from a subject or a column: a user named `%`
    matches `'user:' || auth.user_id() || ':%'` for everybody. And `chat:%` matches names of any
    depth. Compare segments: they are literal.

    Bad:

        create policy own on realtime_channels for select to authenticated
        using (rowcast.channel_name() like 'user:' || auth.user_id() || ':%');

    Good:

        create policy own on realtime_channels for select to authenticated
        using (rowcast.segment(1) = 'user' and rowcast.segment(2) = auth.user_id());
    """
    ast, kind = need("pglast.ast"), need("pglast.enums").A_Expr_Kind
    for policy in files.policies:
        for node, _ in policy.walk():
            # As an operator it comes back from a database.
            like = isinstance(node, ast.A_Expr) and (
                node.kind in (kind.AEXPR_LIKE, kind.AEXPR_ILIKE, kind.AEXPR_SIMILAR)
                or node.name[-1].sval in ("~~", "~~*", "!~~", "!~~*")
            )
            if like and not is_about_events(node):
                yield Mark(
                    policy.statement,
                    "LIKE takes % and _ for wildcards, wherever they come from",
                    "Compare with rowcast.segment(…) instead.",
                    node,
                )


def is_about_events(node: Any) -> bool:
    """It compares the event, which is no part of a channel, with a pattern that is written out."""
    ast = need("pglast.ast")
    written = node.rexpr.arg if isinstance(node.rexpr, ast.TypeCast) else node.rexpr
    named = isinstance(node.lexpr, ast.ColumnRef) and node.lexpr.fields[-1]
    return getattr(named, "sval", "") == "event_name" and constant(written) is not None


@rule("RCL114", Level.WARNING)
def database_login_as_identity(files: Files) -> Iterator[Mark]:
    """The policy asks for the database role as if it were the user.

    Every user with a token is the same role, `authenticated`, and `session_user` is the login of
    the bridge. Who asks is `auth.user_id()`; for which roles a policy is, TO says.

    Bad:

        create policy own on realtime_channels for select to authenticated
        using (owner_id = current_user);

    Good:

        create policy own on realtime_channels for select to authenticated
        using (owner_id = auth.user_id());
    """
    ast, functions = need("pglast.ast"), need("pglast.enums").SQLValueFunctionOp
    identities = {
        functions.SVFOP_CURRENT_ROLE,
        functions.SVFOP_CURRENT_USER,
        functions.SVFOP_USER,
        functions.SVFOP_SESSION_USER,
    }
    for policy in files.policies:
        for node, _ in policy.walk():
            if isinstance(node, ast.SQLValueFunction) and node.op in identities:
                yield Mark(
                    policy.statement,
                    "every user is the same database role",
                    "Use auth.user_id() for who asks, and TO for the role.",
                    node,
                )


@rule("RCL106", Level.ERROR)
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
    for function in files.functions:
        if function.definer and "search_path" not in function.settings:
            yield Mark(
                function.statement,
                f"function {function.name} runs as its owner on the search_path of its caller",
                "Write `set search_path = pg_catalog, pg_temp`.",
            )


@rule("RCL107", Level.WARNING)
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
        reads = ", ".join(sorted(view.tables))
        if view.materialized and view.tables and view.name in files.readable:
            yield Mark(
                view.statement,
                f"materialized view {view.name} holds rows of {reads} that its owner read",
                f"Run: revoke select on {view.name} from anon, authenticated;",
            )
        elif not (view.materialized or view.invoker) and view.tables:
            yield Mark(
                view.statement,
                f"view {view.name} reads {reads} as its owner",
                "Write `with (security_invoker = true)`.",
            )


@rule("RCL108", Level.ERROR, catalogue=True)
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


@rule("RCL109", Level.WARNING)
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


@rule("RCL110", Level.WARNING)
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
