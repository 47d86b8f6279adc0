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
    "every_role",
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
# Roles that a token can name. For a role of trusted code `true` is intended.
CALLERS = {"public", "anon", "authenticated"}
WRITTEN_BY_USERS = re.compile(r"\buser_metadata\b|\braw_user_meta_data\b")


@rule("RCL101", Level.ERROR, catalogue=True)
def always_true(files: Files) -> Iterator[Mark]:
    """The condition is always true.

    `using (true)`, or `true` as one arm of an OR, allows every caller that TO names, whatever the
    other policies say: permissive policies of one command are joined by OR. If that is intended,
    write `-- rowcast:disable=RCL101` with the reason. On your own tables this is a warning.

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
                    f"policy {policy.name!r} allows every caller that TO names",
                    "Write the condition, or disable this rule with the reason.",
                    expression,
                    level,
                )


@rule("RCL102", Level.ERROR)
def compared_with_itself(files: Files) -> Iterator[Mark]:
    """A column is compared with itself.

    Inside a sub-select an unqualified column name means the inner table if that has such a column.
    So `m.channel_id = channel_id` compares the member's row with itself and is true for every row:
    a member of any channel gets into all of them. Qualify the column with the table of the policy.

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
                        f"Qualify it with the table of the policy: "
                        f"{policy.table.partition('.')[2]}.{first[-1]}.",
                        left,
                    )


@rule("RCL103", Level.ERROR)
def name_of_the_statement(files: Files) -> Iterator[Mark]:
    """A policy on messages uses the name of the statement instead of the row's.

    `rowcast.segment(2)` and `rowcast.channel_name()` return the name that is being subscribed to.
    An INSERT may have several rows for different channels; a helper without the name is evaluated
    once, so only the first row would be checked. For history there is no such name. Pass the row's
    `channel_name` to the helper.

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
                    f"{name}() returns the name of the statement, but each row has its own",
                    f"Write {form}.",
                    node,
                )
            elif any(names_channel(n) for tree in bodies for n, _ in walk(tree)):
                yield Mark(
                    policy.statement,
                    f"{name}() uses the name of the statement, but each row has its own",
                    "Pass the channel_name of the row to the function.",
                    node,
                )


@rule("RCL104", Level.ERROR)
def history_by_channel_id(files: Files) -> Iterator[Mark]:
    """History is opened by channel_id.

    All names that one pattern governs share its `channel_id`, so a member of one room of `chat:*`
    could read every room. Decide by the name of the message.

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
                f"policy {policy.name!r} opens every room of a pattern to members of one room",
                "Use rowcast.may_subscribe(channel_name), or compare channel_name.",
                used["channel_id"],
            )


@rule("RCL105", Level.ERROR)
def claims_that_users_write(files: Files) -> Iterator[Mark]:
    """The policy trusts data that users can write themselves.

    Users can set `user_metadata` in their token, and `raw_user_meta_data` from which it is made; in
    Supabase with a call of the client library. Keep a role or a tenant in `app_metadata`, in a
    claim that only your issuer sets, or in a table.

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
                    f"users can write {text} themselves",
                    "Use app_metadata, a claim that only your issuer sets, or a table.",
                    above[-1] if isinstance(node, ast.A_Const) else node,
                )


@rule("RCL112", Level.WARNING)
def null_inverted(files: Files) -> Iterator[Mark]:
    """A negated condition does not consider callers without a token.

    For a caller without a token `auth.user_id()` is NULL, and so is every comparison with it. NULL
    counts as false, also after NOT: `not (x = auth.user_id())` and `<>` refuse such a caller, and
    NOT IN with a sub-select refuses every caller as soon as one row is NULL. `is null`,
    `is distinct from` and `coalesce(…, true)` are worse, because they allow that caller. Write what
    is allowed instead of what is not.

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
                    "Write what is allowed. If you must negate, test `is not null` first.",
                    node,
                )


def _inversion(node: object) -> str:
    ast, enums = need("pglast.ast"), need("pglast.enums")
    kind = enums.A_Expr_Kind
    if isinstance(node, ast.BoolExpr) and node.boolop == enums.BoolExprType.NOT_EXPR:
        arm = node.args[0]
        if isinstance(arm, ast.SubLink):
            if arm.subLinkType == enums.SubLinkType.ANY_SUBLINK:
                return "NOT IN refuses every caller as soon as one row of the sub-select is NULL"
            return ""
        if isinstance(arm, ast.A_Expr | ast.BoolExpr) and nullable(arm):
            return "NOT of a comparison is NULL for a caller without a token, and refuses"
    if isinstance(node, ast.A_Expr):
        asked = is_helper_in(node.lexpr) or is_helper_in(node.rexpr)
        if node.kind == kind.AEXPR_DISTINCT and asked:
            return "IS DISTINCT FROM is true for a caller without a token"
        if node.kind in (kind.AEXPR_OP, kind.AEXPR_IN) and node.name[-1].sval == "<>" and asked:
            return "<> is NULL for a caller without a token, and refuses"
    if isinstance(node, ast.NullTest):
        if node.nulltesttype == enums.NullTestType.IS_NULL and is_helper_in(node.arg):
            return "IS NULL allows a caller without a token"
        return ""
    if isinstance(node, ast.BooleanTest) and nullable(node.arg):
        tests = enums.BoolTestType
        if node.booltesttype in (tests.IS_NOT_TRUE, tests.IS_NOT_FALSE, tests.IS_UNKNOWN):
            return "a caller without a token passes this test"
    if isinstance(node, ast.CoalesceExpr) and is_true(node.args[-1]) and nullable(node.args):
        return "coalesce(…, true) allows a caller without a token"
    return ""


def is_helper_in(node: object) -> bool:
    """Say whether a helper is used outside the rows of a table.

    A scalar sub-select or an operator around it makes no difference.
    """
    ast = need("pglast.ast")
    return any(
        is_helper(n) and not any(isinstance(a, ast.SelectStmt) and a.fromClause for a in above)
        for n, above in walk(node)
    )


@rule("RCL113", Level.WARNING)
def like_for_names(files: Files) -> Iterator[Mark]:
    """LIKE decides about a channel.

    `%` and `_` are wildcards, also when they come from a subject or a column: for a user named `%`,
    `'user:' || auth.user_id() || ':%'` matches the channels of all users. And `chat:%` matches
    names of any depth. Compare segments instead: they are literal.

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
            # A database prints LIKE as an operator.
            like = isinstance(node, ast.A_Expr) and (
                node.kind in (kind.AEXPR_LIKE, kind.AEXPR_ILIKE, kind.AEXPR_SIMILAR)
                or node.name[-1].sval in ("~~", "~~*", "!~~", "!~~*")
            )
            if like and not is_about_events(node):
                yield Mark(
                    policy.statement,
                    "LIKE treats % and _ as wildcards, wherever they come from",
                    "Compare with rowcast.segment(…) instead.",
                    node,
                )


def is_about_events(node: Any) -> bool:
    """Say whether LIKE compares the event name with a constant pattern, which is safe."""
    ast = need("pglast.ast")
    written = node.rexpr.arg if isinstance(node.rexpr, ast.TypeCast) else node.rexpr
    named = isinstance(node.lexpr, ast.ColumnRef) and node.lexpr.fields[-1]
    return getattr(named, "sval", "") == "event_name" and constant(written) is not None


@rule("RCL114", Level.WARNING)
def database_login_as_identity(files: Files) -> Iterator[Mark]:
    """The policy uses the database role as if it were the user.

    All users with a token have the same role, `authenticated`, and `session_user` is the login of
    the bridge. The user is `auth.user_id()`; the roles of a policy belong in TO.

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
                    "all users have the same database role",
                    "Use auth.user_id() for the user, and TO for the role.",
                    node,
                )


@rule("RCL106", Level.ERROR)
def path_is_not_pinned(files: Files) -> Iterator[Mark]:
    """A SECURITY DEFINER function does not pin its search_path.

    It runs with the rights of its owner but resolves names on the search_path of its caller. A
    caller that may create a table or a function in a schema of that path can run its own code with
    those rights. Pin the path, with pg_temp last, and qualify names.

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
                f"function {function.name} runs as its owner with the search_path of its caller",
                "Write `set search_path = pg_catalog, pg_temp`.",
            )


@rule("RCL107", Level.WARNING)
def view_of_the_owner(files: Files) -> Iterator[Mark]:
    """A view applies the policies of its owner.

    A view reads its tables with the rights of its owner, so the policies for the reader do not
    apply. With `security_invoker` they do. A materialized view can never apply them: do not grant
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
    """A table has policies, but row level security is off.

    Policies have no effect until row level security is enabled on the table: every role with a
    grant reads and writes all rows.

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
                f"{name} has policies, but row level security is not enabled",
                f"Run: alter table {name} enable row level security;",
            )
    for name, statement in files.opened:
        if name in governed:
            yield Mark(
                statement,
                f"{name} has policies, but this disables row level security",
                "Leave it enabled, and write policies for roles that need more.",
            )


@rule("RCL109", Level.WARNING)
def all_without_check(files: Files) -> Iterator[Mark]:
    """FOR ALL has no WITH CHECK.

    The USING condition then also checks inserted and updated rows, so a caller that may read a row
    may also write such rows. Write one policy per command, or add WITH CHECK.

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
                f"policy {policy.name!r} is for all commands, and USING also checks new rows",
                "Write one policy per command, or add WITH CHECK.",
            )


@rule("RCL110", Level.WARNING)
def one_for_all(files: Files) -> Iterator[Mark]:
    """One policy covers all commands on a table of rowcast.

    On realtime_channels SELECT means subscribing, and writing a row creates a channel. On
    realtime_messages INSERT means publishing and SELECT means history. A condition that was written
    for one of them also opens the others.

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
def every_role(files: Files) -> Iterator[Mark]:
    """The policy is for every role.

    Without TO, or with TO PUBLIC, it also applies to callers without a token and to every other
    login. Its condition may refuse them, but with TO it does not have to.

    Bad:

        create policy own on realtime_channels for select
        using (owner_id = auth.user_id());

    Good:

        create policy own on realtime_channels for select to authenticated
        using (owner_id = auth.user_id());
    """
    for policy in files.policies:
        if policy.every_role:
            yield Mark(
                policy.statement,
                f"policy {policy.name!r} is for every role",
                "Name the roles: TO authenticated, or TO anon, authenticated.",
            )
