-- What policies say: findings in their conditions. The codes are those of `rowcast policy lint`,
-- which explains each; see policies/README.md.

-- What stands in USING and WITH CHECK.
create or replace function rowcast.policy_lint_expressions()
returns table (code text, level text, object text, message text, hint text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    with recursive asked as (
        select
            p.*,
            p.polrelid in (
                'public.realtime_channels'::regclass, 'public.realtime_messages'::regclass
            ) as ours,
            p.polrelid = 'public.realtime_messages'::regclass as on_messages,
            rowcast.policy_label(p.polname, p.polrelid) as label,
            concat(p.polqual::text, p.polwithcheck::text) as tree,
            coalesce(pg_get_expr(p.polqual, p.polrelid), '') as using_text,
            coalesce(pg_get_expr(p.polwithcheck, p.polrelid), '') as check_text
        from rowcast.policies_asked() as p
    ),

    mentions as (
        select
            p.oid as policy,
            m.kind,
            m.id
        from asked as p
        cross join lateral rowcast.policy_mentions(p.oid) as m
    ),

    -- Tables whose reading asks a policy with a sub-select: the second time in one query is the
    -- recursion that Postgres refuses, also where the sub-select itself would end.
    nested as (
        select p.polrelid as relid from asked as p
        where p.polcmd in ('r', '*') and p.tree ~ '[{]SUBLINK'
    ),

    -- From each table to all those that are read in order to read it.
    reached (start, relid) as (
        select
            p.polrelid,
            m.id
        from asked as p
        join mentions as m on p.oid = m.policy and m.kind = 'relid'
        where p.polcmd in ('r', '*')
        union
        select
            t.start,
            m.id
        from reached as t
        join asked as p on t.relid = p.polrelid and p.polcmd in ('r', '*')
        join mentions as m on p.oid = m.policy and m.kind = 'relid'
    )

    select
        'RCL101',
        case when p.ours then 'error' else 'warning' end,
        p.label,
        'lets everybody through whom TO names',
        'Write the condition.'
    from asked as p
    where p.polpermissive
        and (
            'true' in (p.using_text, p.check_text)
            or (p.using_text || p.check_text) ~ '\mOR true\)|\(true OR\M'
        )
        and exists (select from rowcast.policy_callers(p.polroles))
    union all
    select
        'RCL103',
        'error',
        p.label,
        m.id::regprocedure || ' is the name of the statement, and each row has its own',
        'Use the form with channel_name, such as rowcast.segment(channel_name, 2).'
    from asked as p
    join mentions as m on p.oid = m.policy and m.kind = 'funcid'
    where p.on_messages and m.id in (
            'rowcast.channel_name()'::regprocedure, 'rowcast.segment(integer)'::regprocedure,
            'rowcast.segment_uuid(integer)'::regprocedure,
            'rowcast.segment_int(integer)'::regprocedure,
            to_regprocedure('realtime.topic()'), to_regprocedure('realtime.channel_name()')
        )
    union all
    select
        'RCL104',
        'error',
        p.label,
        'opens every room of a pattern to a member of one',
        'Use rowcast.may_subscribe(channel_name), or compare the channel_name.'
    from asked as p
    where p.on_messages and p.polcmd in ('r', '*') and (
            select bool_or(a.attname = 'channel_id') and not bool_or(a.attname = 'channel_name')
            from pg_catalog.pg_depend as d
            join
                pg_catalog.pg_attribute as a
                on d.refobjid = a.attrelid and d.refobjsubid = a.attnum
            where d.classid = 'pg_catalog.pg_policy'::regclass
                and d.objid = p.oid
                and d.refobjid = p.polrelid
        )
    union all
    select
        'RCL105',
        'error',
        p.label,
        'trusts what users write about themselves',
        'Use app_metadata, a claim of your issuer''s own, or a table.'
    from asked as p
    where (p.using_text || p.check_text) ~ '\muser_metadata\M|\mraw_user_meta_data\M'
    union all
    select
        'RCL114',
        'warning',
        p.label,
        'asks for the database role as if it were the user',
        'Use auth.user_id() for who asks, and TO for the role.'
    from asked as p
    where p.tree ~ 'SQLVALUEFUNCTION :op (9|10|11|12) '
    union all
    select distinct
        'RCL202',
        'error',
        p.label,
        'infinite recursion: it reads ' || m.id::regclass,
        'Read the table through a SECURITY DEFINER function with a pinned search_path.'
    from asked as p
    join mentions as m on p.oid = m.policy and m.kind = 'relid'
    where m.id = p.polrelid and p.polrelid in (select n.relid from nested as n) or exists (
            select from reached as t
            where t.start = m.id
                and t.relid in (m.id, p.polrelid)
                and t.relid in (select n.relid from nested as n)
        )
    union all
    select
        'RCL206',
        'warning',
        p.label,
        m.id::regprocedure || ' is volatile: it waits, writes, or answers anew each time',
        'Decide by what the row, the token and tables say.'
    from asked as p
    join mentions as m on p.oid = m.policy and m.kind = 'funcid'
    join pg_catalog.pg_proc as f on m.id = f.oid
    where f.provolatile = 'v' and f.pronamespace <> 'rowcast'::regnamespace;
end;

comment on function rowcast.policy_lint_expressions() is
'Findings in the conditions of policies; part of policy_lint().';
