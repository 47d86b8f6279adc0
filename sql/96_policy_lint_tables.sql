-- What surrounds policies: findings in tables, their grants and indexes.

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

    select
        'RCL108',
        'error',
        c.oid::regclass::text,
        'has policies, and row level security is not enabled',
        format('alter table %s enable row level security;', c.oid::regclass)
    from pg_catalog.pg_class as c
    where not c.relrowsecurity and (
            c.oid in ('public.realtime_channels'::regclass, 'public.realtime_messages'::regclass)
            or c.oid in (select p.polrelid from asked as p)
        )
    union all
    select
        'RCL212',
        'error',
        c.oid::regclass::text,
        'is read by definer functions, which FORCE blinds',
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
                    and concat(f.prosrc, pg_get_function_sqlbody(f.oid))
                    ~* ('\m' || c.relname || '\M')
            )
        )
    union all
    select distinct
        'RCL207',
        'error',
        m.label,
        format('reads %s, which %s may not read', m.relid::regclass, r.id::regrole),
        format('grant select on %s to %s;', m.relid::regclass, r.id::regrole)
    from mentioned as m
    cross join lateral rowcast.policy_callers(m.polroles) as r (id)
    where not (
            has_any_column_privilege(r.id, m.relid, 'select')
            and has_schema_privilege(r.id, m.relnamespace, 'usage')
        )
    union all
    select
        'RCL302',
        case
            when m.reltuples < 1000 then 'info' when m.reltuples < 1000000 then 'warning' else
                'error'
        end,
        m.label,
        format(
            'looks for %s of %s (%s rows), and no index begins with one of them',
            string_agg(a.attname, ', ' order by a.attnum),
            m.relid::regclass,
            greatest(m.reltuples, 0)::bigint
        ),
        format('create index on %s (…);', m.relid::regclass)
    from mentioned as m
    join
        pg_catalog.pg_depend as d
        on d.classid = 'pg_catalog.pg_policy'::regclass
            and m.policy = d.objid
            and m.relid = d.refobjid
    join pg_catalog.pg_attribute as a on m.relid = a.attrelid and d.refobjsubid = a.attnum
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
