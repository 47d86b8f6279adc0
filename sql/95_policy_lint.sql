-- Finds mistakes in policies that only the catalogue can show: privileges, roles, row level
-- security, indexes. The codes are those of `rowcast policy lint`, which explains each. That
-- command also reads the text of policies, functions and views with the grammar of Postgres and
-- finds many more.
--
-- RCL101, RCL108, RCL207 and RCL212 are also rules for files, because files are linted before there
-- is a database. Here they see the caller roles with their memberships, tables that no file
-- mentions, effective privileges, and the owners of functions.

-- Runs with the rights of the caller: it reads only catalogues. JIT would compile for seconds what
-- runs for milliseconds.
create or replace function rowcast.policy_lint()
returns table (code text, level text, object text, message text, hint text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
set jit = off
begin atomic
    with asked as (
        select
            p.oid,
            p.polrelid,
            p.polroles,
            p.polpermissive,
            p.polrelid in (
                'public.realtime_channels'::regclass, 'public.realtime_messages'::regclass
            ) as ours,
            rowcast.policy_label(p.polname, p.polrelid) as label,
            coalesce(pg_get_expr(p.polqual, p.polrelid), '') as using_text,
            coalesce(pg_get_expr(p.polwithcheck, p.polrelid), '') as check_text
        from rowcast.policies_asked() as p
    ),

    mentions as (
        select
            a.oid as policy,
            a.label,
            a.polroles,
            m.kind,
            m.id
        from asked as a
        cross join lateral rowcast.policy_mentions(a.oid) as m
    ),

    findings (code, level, object, message, hint) as (
        select
            'RCL101',
            case when a.ours then 'error' else 'warning' end,
            a.label,
            'allows every caller to whom it applies',
            'Write the condition.'
        from asked as a
        where a.polpermissive
            and (
                'true' in (a.using_text, a.check_text)
                or (a.using_text || a.check_text) ~ '\mOR true\)|\(true OR\M'
            )
            and exists (select from rowcast.policy_callers(a.polroles))
        union all
        select
            'RCL108',
            'error',
            c.oid::regclass::text,
            'has policies, but row level security is not enabled',
            format('alter table %s enable row level security;', c.oid::regclass)
        from pg_catalog.pg_class as c
        where not c.relrowsecurity and (
                c.oid in (
                    'public.realtime_channels'::regclass, 'public.realtime_messages'::regclass
                )
                or c.oid in (select a.polrelid from asked as a)
            )
        union all
        select distinct
            'RCL207',
            'error',
            m.label,
            format('reads %s, on which %s has no SELECT privilege', c.oid::regclass, r.id::regrole),
            format('grant select on %s to %s;', c.oid::regclass, r.id::regrole)
        from mentions as m
        join pg_catalog.pg_class as c on m.id = c.oid and m.kind = 'relid'
        cross join lateral rowcast.policy_callers(m.polroles) as r (id)
        where not (
                has_any_column_privilege(r.id, c.oid, 'select')
                and has_schema_privilege(r.id, c.relnamespace, 'usage')
            )
        union all
        select
            'RCL212',
            'error',
            c.oid::regclass::text,
            'is read by SECURITY DEFINER functions, whose rows FORCE ROW LEVEL SECURITY filters',
            format('alter table %s no force row level security;', c.oid::regclass)
        from pg_catalog.pg_class as c
        where c.relforcerowsecurity and (
                c.oid in (
                    'public.realtime_channels'::regclass, 'public.realtime_messages'::regclass
                )
                or exists (
                    select
                    from mentions as m
                    join pg_catalog.pg_proc as f on m.id = f.oid and m.kind = 'funcid'
                    where f.prosecdef and f.proowner = c.relowner
                        and concat(f.prosrc, pg_get_function_sqlbody(f.oid))
                        ~* ('\m' || c.relname || '\M')
                )
            )
        union all
        -- A policy for a login of trusted code is intended.
        select
            'RCL213',
            'warning',
            a.label,
            'applies to no caller: no caller role is a member of a role in TO',
            'The caller roles are ' || array_to_string(rowcast.caller_roles(), ', ') || '.'
        from asked as a
        where a.ours
            and not exists (select from rowcast.policy_callers(a.polroles))
            and not exists (
                select from pg_catalog.pg_roles as l, unnest(a.polroles) as n (role)
                where l.rolcanlogin and not l.rolsuper and pg_has_role(l.oid, n.role, 'usage')
            )
        union all
        select distinct
            'RCL214',
            'error',
            m.label,
            format('calls %s, which %s may not execute', f.oid::regprocedure, r.id::regrole),
            format('grant execute on function %s to %s;', f.oid::regprocedure, r.id::regrole)
        from mentions as m
        join pg_catalog.pg_proc as f on m.id = f.oid and m.kind = 'funcid'
        cross join lateral rowcast.policy_callers(m.polroles) as r (id)
        where not (
                has_function_privilege(r.id, f.oid, 'execute')
                and has_schema_privilege(r.id, f.pronamespace, 'usage')
            )
        union all
        select
            'RCL302',
            case
                when c.reltuples < 1000 then 'info'
                when c.reltuples < 1000000 then 'warning'
                else 'error'
            end,
            m.label,
            format(
                'looks up %s of %s (%s rows), and no index begins with one of them',
                string_agg(a.attname, ', ' order by a.attnum),
                c.oid::regclass,
                greatest(c.reltuples, 0)::bigint
            ),
            format('create index on %s (…);', c.oid::regclass)
        from mentions as m
        join pg_catalog.pg_class as c on m.id = c.oid and m.kind = 'relid'
        join
            pg_catalog.pg_depend as d
            on d.classid = 'pg_catalog.pg_policy'::regclass
                and m.policy = d.objid
                and c.oid = d.refobjid
        join pg_catalog.pg_attribute as a on c.oid = a.attrelid and d.refobjsubid = a.attnum
        where c.relkind in ('r', 'p', 'm') and not c.oid in (
                'public.realtime_channels'::regclass, 'public.realtime_messages'::regclass
            )
        group by m.policy, m.label, c.oid, c.reltuples
        having not exists (
                select from pg_catalog.pg_index as i
                where i.indrelid = c.oid
                    and i.indisvalid
                    and i.indkey[0] = any(array_agg(a.attnum))
            )
    )

    select
        f.code,
        f.level,
        f.object,
        f.message,
        f.hint
    from findings as f
    order by array_position('{error,warning,info}', f.level), f.code, f.object, f.message;
end;

comment on function rowcast.policy_lint() is
'Mistakes in policies that the catalogue shows: code, level (error, warning, info), object, message, hint. `rowcast policy lint --database-url` finds more, because it also reads the text of policies, functions and views; `--explain CODE` explains a code.';
