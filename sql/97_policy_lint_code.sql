-- What surrounds policies: findings in functions and views.

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

    select distinct
        'RCL106',
        'error',
        f.oid::regprocedure::text,
        'runs as its owner on the search_path of its caller',
        format('alter function %s set search_path = pg_catalog, pg_temp;', f.oid::regprocedure)
    from called as f
    where f.prosecdef and not exists (
            select from unnest(f.proconfig) as s (setting)
            where s.setting like 'search_path=%'
        )
    union all
    select distinct
        'RCL214',
        'error',
        f.label,
        format('calls %s, which %s may not execute', f.oid::regprocedure, r.id::regrole),
        format('grant execute on function %s to %s;', f.oid::regprocedure, r.id::regrole)
    from called as f
    cross join lateral rowcast.policy_callers(f.polroles) as r (id)
    where not (
            has_function_privilege(r.id, f.oid, 'execute')
            and has_schema_privilege(r.id, f.pronamespace, 'usage')
        )
    union all
    select distinct
        'RCL107',
        'warning',
        v.oid::regclass::text,
        'reads ' || g.relid::regclass || ' as its owner, and callers may read it',
        case
            when
                v.relkind = 'v'
                then format('alter view %s set (security_invoker = true);', v.oid::regclass)
            else format('revoke select on %s from anon, authenticated;', v.oid::regclass)
        end
    from governed as g
    join
        pg_catalog.pg_depend as d
        on g.relid = d.refobjid and d.classid = 'pg_catalog.pg_rewrite'::regclass
    join pg_catalog.pg_rewrite as w on d.objid = w.oid
    join pg_catalog.pg_class as v on w.ev_class = v.oid
    where v.relkind in ('v', 'm')
        and not coalesce(
            v.reloptions && '{security_invoker=true,security_invoker=on,security_invoker=1}', false
        )
        and exists (
            select
            from rowcast.policy_callers('{0}') as r (id)
            where has_any_column_privilege(r.id, v.oid, 'select')
        );
end;

comment on function rowcast.policy_lint_code() is
'Findings in functions that policies call and in views that go around them; part of policy_lint().';
