-- Which policies are asked when somebody subscribes, publishes or reads, and what they mention.
--
-- pg_depend does not tell whether a policy reads its own table, and knows no function that came
-- with the server. The stored tree tells both: its literals are numbers of bytes there, so nothing
-- that a user wrote can look like one of these words.

-- The tables of the sub-selects of a policy, and the functions that it calls.
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
'What a policy reads (relid) and calls (funcid), as its stored tree says.';

-- A policy reads tables as the caller, so their policies are asked, too, and so on. The policy
-- of rowcast_publisher is the one that `migrate` makes for trusted code.
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
'The policies of realtime_channels and realtime_messages, and of all tables that policies among them read.';

-- The callers for whom a policy is asked: those whom it names, and those who have such a role.
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
'The caller roles for which a policy with these roles (polroles) is asked.';

-- How a finding names its policy.
create or replace function rowcast.policy_label(p_name name, p_table oid)
returns text
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
return format('policy %I on %s', p_name, p_table::regclass);

comment on function rowcast.policy_label(name, oid) is
'Policy and table as a finding of policy_lint() names them.';

-- Policies as statements, for a reader of SQL; with the names of tables and functions in full.
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
'The policies that callers meet as CREATE POLICY statements, each under the name that findings give it.';
