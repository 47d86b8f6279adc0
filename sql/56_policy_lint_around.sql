-- What surrounds policies: tables, grants, functions, views and indexes.

-- Tables that policies read, or are for.
create or replace function rowcast.policy_lint_tables()
returns table (code text, level text, object text, message text, hint text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    with asked as (
        select
            p.*,
            rowcast.policy_label(p.polname, p.polrelid) as label
        from rowcast.policies_asked() as p
    ),

    mentioned as (
        select distinct
            p.oid as policy,
            p.label,
            p.polroles,
            c.oid as relid,
            c.relkind,
            c.relowner,
            c.relnamespace,
            c.reltuples,
            c.relname
        from asked as p
        cross join lateral rowcast.policy_mentions(p.oid) as m
        join pg_catalog.pg_class as c on m.id = c.oid and m.kind = 'relid'
    )

    select 'RCL108', 'error', c.oid::regclass::text, 'has policies, and row level security is not enabled',
        format('alter table %s enable row level security;', c.oid::regclass)
    from pg_catalog.pg_class as c
    where not c.relrowsecurity and (
        c.oid in ('public.realtime_channels'::regclass, 'public.realtime_messages'::regclass)
        or c.oid in (select p.polrelid from asked as p)
    )
    union all
    select 'RCL212', 'error', c.oid::regclass::text, 'is read by definer functions, which FORCE blinds',
        format('alter table %s no force row level security;', c.oid::regclass)
    from pg_catalog.pg_class as c
    where c.relforcerowsecurity and (
        c.oid in ('public.realtime_channels'::regclass, 'public.realtime_messages'::regclass)
        or exists (
            select
            from asked as p
            cross join lateral rowcast.policy_mentions(p.oid) as m
            join pg_catalog.pg_proc as f on m.id = f.oid and m.kind = 'funcid'
            where f.prosecdef and f.proowner = c.relowner
                and concat(f.prosrc, pg_get_function_sqlbody(f.oid)) ~* ('\m' || c.relname || '\M')
        )
    )
    union all
    select distinct 'RCL207', 'error', m.label,
        format('reads %s, which %s may not read', m.relid::regclass, r.id::regrole),
        format('grant select on %s to %s;', m.relid::regclass, r.id::regrole)
    from mentioned as m
    cross join lateral rowcast.policy_callers(m.polroles) as r (id)
    where not (
        has_any_column_privilege(r.id, m.relid, 'select') and has_schema_privilege(r.id, m.relnamespace, 'usage')
    )
    union all
    select 'RCL302', case when m.reltuples < 1000 then 'info' when m.reltuples < 1000000 then 'warning' else 'error' end,
        m.label, format(
            'looks for %s of %s (%s rows), and no index begins with one of them',
            string_agg(a.attname, ', ' order by a.attnum), m.relid::regclass, greatest(m.reltuples, 0)::bigint
        ), format('create index on %s (…);', m.relid::regclass)
    from mentioned as m
    join pg_catalog.pg_depend as d on d.classid = 'pg_catalog.pg_policy'::regclass and d.objid = m.policy and d.refobjid = m.relid
    join pg_catalog.pg_attribute as a on a.attrelid = m.relid and a.attnum = d.refobjsubid
    where m.relkind in ('r', 'p', 'm') and not m.relid in (
        'public.realtime_channels'::regclass, 'public.realtime_messages'::regclass
    )
    group by m.policy, m.label, m.relid, m.reltuples
    having not exists (
        select from pg_catalog.pg_index as i
        where i.indrelid = m.relid and i.indisvalid and i.indkey[0] = any(array_agg(a.attnum))
    );
end;

comment on function rowcast.policy_lint_tables() is
'Findings in tables that policies read or are for; part of policy_lint().';

-- Functions that policies call, and views that go around policies.
create or replace function rowcast.policy_lint_code()
returns table (code text, level text, object text, message text, hint text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    with asked as (
        select
            p.*,
            rowcast.policy_label(p.polname, p.polrelid) as label
        from rowcast.policies_asked() as p
    ),

    called as (
        select distinct
            p.label,
            p.polroles,
            f.oid,
            f.prosecdef,
            f.proconfig,
            f.pronamespace
        from asked as p
        cross join lateral rowcast.policy_mentions(p.oid) as m
        join pg_catalog.pg_proc as f on m.id = f.oid and m.kind = 'funcid'
    ),

    -- Whatever has policies, among the tables of this database that are asked about.
    governed as (
        select p.polrelid as relid from asked as p
        union
        select c.oid from pg_catalog.pg_class as c
        where c.oid in ('public.realtime_channels'::regclass, 'public.realtime_messages'::regclass)
    )

    select distinct 'RCL106', 'error', f.oid::regprocedure::text,
        'runs as its owner on the search_path of its caller',
        format('alter function %s set search_path = pg_catalog, pg_temp;', f.oid::regprocedure)
    from called as f
    where f.prosecdef and not exists (
        select from unnest(f.proconfig) as s (setting) where s.setting like 'search_path=%'
    )
    union all
    select distinct 'RCL214', 'error', f.label,
        format('calls %s, which %s may not execute', f.oid::regprocedure, r.id::regrole),
        format('grant execute on function %s to %s;', f.oid::regprocedure, r.id::regrole)
    from called as f
    cross join lateral rowcast.policy_callers(f.polroles) as r (id)
    where not (
        has_function_privilege(r.id, f.oid, 'execute') and has_schema_privilege(r.id, f.pronamespace, 'usage')
    )
    union all
    select distinct 'RCL107', 'warning', v.oid::regclass::text,
        'reads ' || g.relid::regclass || ' as its owner, and callers may read it',
        case
            when v.relkind = 'v' then format('alter view %s set (security_invoker = true);', v.oid::regclass)
            else format('revoke select on %s from anon, authenticated;', v.oid::regclass)
        end
    from governed as g
    join pg_catalog.pg_depend as d on g.relid = d.refobjid and d.classid = 'pg_catalog.pg_rewrite'::regclass
    join pg_catalog.pg_rewrite as w on d.objid = w.oid
    join pg_catalog.pg_class as v on w.ev_class = v.oid
    where v.relkind in ('v', 'm')
        and not coalesce(v.reloptions && '{security_invoker=true,security_invoker=on,security_invoker=1}', false)
        and exists (
            select from rowcast.policy_callers('{0}') as r (id) where has_any_column_privilege(r.id, v.oid, 'select')
        );
end;

comment on function rowcast.policy_lint_code() is
'Findings in functions that policies call and in views that go around them; part of policy_lint().';

-- What is wrong with the policies of this database, for people who have only psql. With the
-- caller's rights: it reads the catalogues, which everybody may.
create or replace function rowcast.policy_lint()
returns table (code text, level text, object text, message text, hint text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select l.*
    from (
        select * from rowcast.policy_lint_expressions()
        union all
        select * from rowcast.policy_lint_commands()
        union all
        select * from rowcast.policy_lint_tables()
        union all
        select * from rowcast.policy_lint_code()
    ) as l (code, level, object, message, hint)
    order by array_position('{error,warning,info}', l.level), l.code, l.object, l.message;
end;

comment on function rowcast.policy_lint() is
'What is wrong with the policies that callers meet: code, level (error, warning, info), object, message, hint. `rowcast policy lint --explain CODE` explains a code.';
