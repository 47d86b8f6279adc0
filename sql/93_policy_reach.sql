-- Finds the policies that subscribing, publishing and reading evaluate, and what they depend on.
--
-- pg_depend does not record that a policy reads its own table, nor built-in functions. The stored
-- expression tree has both. It stores literals as bytes in decimal, so text that a user wrote
-- cannot be mistaken for a field of the tree.

-- The regular expression reads pg_node_tree as text, because SQL has no other access to it.
create or replace function rowcast.policy_mentions(p_policy oid)
returns table (kind text, id oid)
language sql
stable
parallel safe
security invoker
rows 10
set search_path = pg_catalog, pg_temp
begin atomic
    select distinct
        m.found[1]::text,
        m.found[2]::oid
    from pg_catalog.pg_policy as p
    cross join
        lateral regexp_matches(
            concat(p.polqual::text, p.polwithcheck::text), ':(relid|funcid) ([1-9][0-9]*)', 'g'
        ) as m (found)
    where p.oid = p_policy;
end;

comment on function rowcast.policy_mentions(oid) is
'The tables that a policy reads (relid) and the functions that it calls (funcid), from its stored tree.';

-- A policy reads tables as the caller, so the policies of those tables apply too, and so on. The
-- policy rowcast_publisher is left out: `migrate` creates it for trusted code.
create or replace function rowcast.policies_asked()
returns setof pg_catalog.pg_policy
language sql
stable
parallel safe
security invoker
rows 20
set search_path = pg_catalog, pg_temp
begin atomic
    with recursive asked (relid) as (
        select c.oid
        from pg_catalog.pg_class as c
        where c.oid in ('public.realtime_channels'::regclass, 'public.realtime_messages'::regclass)
        union
        select m.id
        from asked as a
        join pg_catalog.pg_policy as p on a.relid = p.polrelid
        cross join lateral rowcast.policy_mentions(p.oid) as m
        where m.kind = 'relid'
    )

    select p.*
    from asked as a
    join pg_catalog.pg_policy as p on a.relid = p.polrelid
    where p.polname <> 'rowcast_publisher';
end;

comment on function rowcast.policies_asked() is
'The policies of realtime_channels and realtime_messages, and of all tables that these policies read, directly or through others.';

-- Membership counts, too: a caller role that inherits a role in TO is subject to the policy.
create or replace function rowcast.policy_callers(p_roles oid[])
returns setof oid
language sql
stable
parallel safe
security invoker
rows 2
set search_path = pg_catalog, pg_temp
begin atomic
    select r.oid
    from pg_catalog.pg_roles as r
    where r.rolname = any(rowcast.caller_roles()) and exists (
            select from unnest(p_roles) as n (role)
            where n.role = 0 or pg_has_role(r.oid, n.role, 'usage')
        );
end;

comment on function rowcast.policy_callers(oid[]) is
'The caller roles to which a policy with these roles (polroles) applies.';

-- One name for a policy everywhere, so that findings of both halves of the linter can be compared.
create or replace function rowcast.policy_label(p_name name, p_table oid)
returns text
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
return format('policy %I on %s', p_name, p_table::regclass);

comment on function rowcast.policy_label(name, oid) is
'The name of a policy in findings: policy and table.';

-- For `rowcast policy lint`, which parses them. The pinned search_path makes all names qualified.
create or replace function rowcast.policy_texts()
returns table (object text, statement text)
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select
        rowcast.policy_label(p.polname, p.polrelid),
        concat(
            format('create policy %I on %s', p.polname, p.polrelid::regclass),
            case when not p.polpermissive then ' as restrictive' end,
            ' for ',
            case p.polcmd
                when 'r' then 'select'
                when 'a' then 'insert'
                when 'w' then 'update'
                when 'd' then 'delete'
                else 'all'
            end,
            ' to ',
            (
                select
                    string_agg(
                        case when n.role = 0 then 'public' else n.role::regrole::text end, ', '
                    )
                from unnest(p.polroles) as n (role)
            ),
            ' using (' || pg_get_expr(p.polqual, p.polrelid) || ')',
            ' with check (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')'
        )
    from rowcast.policies_asked() as p;
end;

comment on function rowcast.policy_texts() is
'The policies of policies_asked() as CREATE POLICY statements, each with its name in findings.';

-- Functions of schema rowcast are left out, and so are built-in ones unless they are volatile: the
-- linter has nothing to say about them. A view is here if it does not check the policies of its
-- reader, reads a table with policies, and a caller may read it.
create or replace function rowcast.policy_context_texts()
returns table (object text, statement text)
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    with asked as (
        select
            p.oid,
            p.polrelid
        from rowcast.policies_asked() as p
    ),

    governed as (
        select a.polrelid as relid from asked as a
        union
        select c.oid from pg_catalog.pg_class as c
        where c.oid in ('public.realtime_channels'::regclass, 'public.realtime_messages'::regclass)
    )

    select
        f.oid::regprocedure::text,
        pg_get_functiondef(f.oid)
    from pg_catalog.pg_proc as f
    where f.oid in (
            select m.id from asked as a
            cross join lateral rowcast.policy_mentions(a.oid) as m
            where m.kind = 'funcid'
        )
        and f.prokind = 'f'
        and f.pronamespace <> 'rowcast'::regnamespace
        and (f.pronamespace <> 'pg_catalog'::regnamespace or f.provolatile = 'v')
    union all
    select
        v.oid::regclass::text,
        concat(
            format(
                'create %s %s as %s',
                case v.relkind when 'v' then 'view' else 'materialized view' end,
                v.oid::regclass,
                rtrim(pg_get_viewdef(v.oid), ';')
            ),
            format(
                '; grant select on %s to %s', v.oid::regclass, string_agg(r.id::regrole::text, ', ')
            )
        )
    from pg_catalog.pg_class as v
    cross join lateral rowcast.policy_callers('{0}') as r (id)
    where v.relkind in ('v', 'm')
        and not coalesce(
            v.reloptions && '{security_invoker=true,security_invoker=on,security_invoker=1}', false
        )
        and has_any_column_privilege(r.id, v.oid, 'select')
        and exists (
            select
            from pg_catalog.pg_rewrite as w
            join
                pg_catalog.pg_depend as d
                on w.oid = d.objid and d.classid = 'pg_catalog.pg_rewrite'::regclass
            join governed as g on d.refobjid = g.relid
            where w.ev_class = v.oid
        )
    group by v.oid, v.relkind;
end;

comment on function rowcast.policy_context_texts() is
'The functions that the policies of policies_asked() call, and the views through which callers read past those policies, as statements.';
