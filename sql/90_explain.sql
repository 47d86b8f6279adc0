-- Explains an access decision: which channel governs a name, which policies apply, and what follows
-- from their values. Only roles that may write policies can execute these functions.

-- The first row is the governing channel; the others are shadowed by it. A permissive pattern that
-- an operator expects to open a name is listed here below the strict one that closes it. A
-- subscription to a pattern itself is decided only by the row of that pattern.
create or replace function rowcast.matching_channels(p_name text)
returns table (channel_id uuid, pattern text, enabled boolean, wildcard boolean, place integer)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
begin atomic
    select
        c.id,
        c.pattern,
        c.enabled,
        c.wildcard,
        row_number() over (order by t.n)::integer as place
    from unnest(
            rowcast.templates(cardinality(string_to_array(p_name, ':')))
        ) with ordinality as t (template, n)
    join public.realtime_channels as c
        on c.pattern = format(t.template, variadic string_to_array(p_name, ':'))
    where position('*' in p_name) = 0
    union all
    select
        c.id,
        c.pattern,
        c.enabled,
        c.wildcard,
        1
    from public.realtime_channels as c
    where c.pattern = p_name and position('*' in p_name) > 0
    order by place;
end;

comment on function rowcast.matching_channels(text) is
'The channels whose patterns match a name, most specific first: the first governs, enabled or not, and shadows the others. For a pattern, only its own row.';

-- Some of these decide before the policies do, and some replace them.
create or replace function rowcast.barriers(p_action text, p_role text)
returns table (subject text, ok boolean, finding text)
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_table pg_catalog.pg_class;
    v_role pg_catalog.pg_roles;
    v_column text;
begin
    select c.* into v_table from pg_catalog.pg_class as c
    where c.oid = case p_action when 'publish' then 'public.realtime_messages'::regclass else 'public.realtime_channels'::regclass end;
    select r.* into v_role from pg_catalog.pg_roles as r where r.rolname = p_role;

    subject := 'caller role';
    ok := coalesce(p_role = any (rowcast.caller_roles()) and v_role.oid is not null, false);
    finding := format(case when ok then '%s is a caller role' else '%s is not a caller role: tokens that name it are refused' end, p_role);
    return next;
    if v_role.oid is null then
        return;
    end if;

    subject := 'row level security';
    ok := v_table.relrowsecurity;
    finding := format(case when ok then 'enabled on %s' else 'OFF on %s: its policies are not evaluated' end, v_table.relname);
    return next;

    subject := 'bypass';
    ok := not (v_role.rolsuper or v_role.rolbypassrls or pg_has_role(v_role.oid, v_table.relowner, 'usage') and not v_table.relforcerowsecurity);
    finding := format(case when ok then '%s is subject to the policies' else '%s bypasses every policy' end, p_role);
    return next;

    subject := 'grants';
    select string_agg(a.name, ', ') into v_column
    from unnest(
        case p_action when 'publish' then '{type,channel_name,event_name,payload,publish_key}'::text[] else '{id,enabled}' end
    ) as a (name)
    where not has_column_privilege(v_role.oid, v_table.oid, a.name, case p_action when 'publish' then 'insert' else 'select' end);
    ok := v_column is null and has_schema_privilege(v_role.oid, 'public', 'usage');
    finding := case
        when ok then format('%s has the column privileges that it needs', p_role)
        when v_column is null then format('%s lacks USAGE on schema public', p_role)
        else format('%s lacks %s on %s (%s): run `rowcast migrate --reapply`', p_role, case p_action when 'publish' then 'INSERT' else 'SELECT' end, v_table.relname, v_column)
    end;
    return next;
end;
$$;

comment on function rowcast.barriers(text, text) is
'What decides about subscribe or publish besides the policies: the role, row level security itself, and grants. ok is false where one stands in the way or bypasses the policies.';

-- Expressions as the server deparses them, so that two spellings of one rule compare equal. The
-- pinned search_path makes it qualify all names.
create or replace function rowcast.policies_of(p_table regclass)
returns table (
    policy text, permissive boolean, command text, roles text[], using_text text, check_text text
)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select
        p.polname::text,
        p.polpermissive,
        case p.polcmd
            when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update'
            when 'd' then 'delete' else 'all'
        end,
        array(
            select case r.id when 0 then 'public' else pg_get_userbyid(r.id)::text end as role
            from unnest(p.polroles) as r (id)
            order by role
        ),
        pg_get_expr(p.polqual, p.polrelid),
        pg_get_expr(p.polwithcheck, p.polrelid)
    from pg_catalog.pg_policy as p
    where p.polrelid = p_table
    order by p.polname;
end;

comment on function rowcast.policies_of(regclass) is
'The policies of a table, with sorted roles and expressions as the server deparses them, for comparing.';

-- Restrictive policies come first, because readers check them first. A policy without an expression
-- has no effect.
create or replace function rowcast.policies_for(p_action text, p_role text)
returns table (
    policy text, permissive boolean, command text, roles text[], applies boolean, expression text
)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select
        p.policy,
        p.permissive,
        p.command,
        p.roles,
        p.command in ('all', case p_action when 'publish' then 'insert' else 'select' end)
        and exists (
            select from unnest(p.roles) as r (name)
            where r.name = 'public' or pg_has_role(p_role::name, r.name::name, 'usage')
        ),
        case p_action when 'publish' then coalesce(p.check_text, p.using_text) else p.using_text end
    from rowcast.policies_of(
            case p_action
                when 'publish' then 'public.realtime_messages'::regclass
                else 'public.realtime_channels'::regclass
            end
        ) as p
    order by p.permissive, p.policy;
end;

comment on function rowcast.policies_for(text, text) is
'The policies of the table that subscribe or publish checks: kind, command, roles, expression, and whether each applies to a caller role.';

-- Postgres joins permissive policies by OR and restrictive ones by AND; NULL counts as false. If a
-- policy raises an error, the order of evaluation decides whether it is reached, and SQL does not
-- promise an order. The result is therefore a set, with one element unless a policy raised.
create or replace function rowcast.verdict(p_permissive boolean[], p_values text[])
returns text[]
language sql
immutable
parallel safe
begin atomic
    select
        array_remove(array[
            case when f.granted and not f.restricted and not f.restriction_failed then 'allow' end,
            case when not f.granted or f.restricted or f.restriction_failed then 'deny' end,
            case when f.failed then 'error' end
        ], null)
    from (
        select
            coalesce(bool_or(v.permissive and v.said = 'true'), false) as granted,
            coalesce(
                bool_or(not v.permissive and coalesce(v.said, 'false') not in ('true', 'error')),
                false
            ) as restricted,
            coalesce(bool_or(v.said = 'error'), false) as failed,
            coalesce(bool_or(not v.permissive and v.said = 'error'), false) as restriction_failed
        from unnest(p_permissive, p_values) as v (permissive, said)
    ) as f;
end;

comment on function rowcast.verdict(boolean[], text[]) is
'The outcomes (allow, deny, error) that are possible when the applying policies returned true, false, NULL or error.';
