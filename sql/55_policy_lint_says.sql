-- What policies say: findings in their expressions, commands and roles. The codes are those of
-- `rowcast policy lint`, which explains each; see policies/README.md.

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
            p.polrelid in ('public.realtime_channels'::regclass, 'public.realtime_messages'::regclass) as ours,
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
        select p.polrelid, m.id
        from asked as p
        join mentions as m on m.policy = p.oid and m.kind = 'relid'
        where p.polcmd in ('r', '*')
        union
        select t.start, m.id
        from reached as t
        join asked as p on p.polrelid = t.relid and p.polcmd in ('r', '*')
        join mentions as m on m.policy = p.oid and m.kind = 'relid'
    )

    select 'RCL101', case when p.ours then 'error' else 'warning' end, p.label,
        'lets everybody through whom TO names', 'Write the condition.'
    from asked as p
    where p.polpermissive
        and ('true' in (p.using_text, p.check_text) or p.using_text || p.check_text ~ '\mOR true\)|\(true OR\M')
        and exists (select from rowcast.policy_callers(p.polroles))
    union all
    select 'RCL103', 'error', p.label,
        m.id::regprocedure || ' is the name of the statement, and each row has its own',
        'Use the form with channel_name, such as rowcast.segment(channel_name, 2).'
    from asked as p
    join mentions as m on m.policy = p.oid and m.kind = 'funcid'
    where p.on_messages and m.id in (
        'rowcast.channel_name()'::regprocedure, 'rowcast.segment(integer)'::regprocedure,
        'rowcast.segment_uuid(integer)'::regprocedure, 'rowcast.segment_int(integer)'::regprocedure,
        to_regprocedure('realtime.topic()'), to_regprocedure('realtime.channel_name()')
    )
    union all
    select 'RCL104', 'error', p.label, 'opens every room of a pattern to a member of one',
        'Use rowcast.may_subscribe(channel_name), or compare the channel_name.'
    from asked as p
    where p.on_messages and p.polcmd in ('r', '*') and (
        select bool_or(a.attname = 'channel_id') and not bool_or(a.attname = 'channel_name')
        from pg_catalog.pg_depend as d
        join pg_catalog.pg_attribute as a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
        where d.classid = 'pg_catalog.pg_policy'::regclass and d.objid = p.oid and d.refobjid = p.polrelid
    )
    union all
    select 'RCL105', 'error', p.label, 'trusts what users write about themselves',
        'Use app_metadata, a claim of your issuer''s own, or a table.'
    from asked as p
    where (p.using_text || p.check_text) ~ '\muser_metadata\M|\mraw_user_meta_data\M'
    union all
    select 'RCL114', 'warning', p.label, 'asks for the database role as if it were the user',
        'Use auth.user_id() for who asks, and TO for the role.'
    from asked as p
    where p.tree ~ 'SQLVALUEFUNCTION :op (9|10|11|12) '
    union all
    select distinct 'RCL202', 'error', p.label, 'infinite recursion: it reads ' || m.id::regclass,
        'Read the table through a SECURITY DEFINER function with a pinned search_path.'
    from asked as p
    join mentions as m on m.policy = p.oid and m.kind = 'relid'
    where m.id = p.polrelid and p.polrelid in (select n.relid from nested as n) or exists (
        select from reached as t
        where t.start = m.id and t.relid in (m.id, p.polrelid) and t.relid in (select n.relid from nested as n)
    )
    union all
    select 'RCL206', 'warning', p.label, m.id::regprocedure || ' is volatile: it waits, writes, or answers anew each time',
        'Decide by what the row, the token and tables say.'
    from asked as p
    join mentions as m on m.policy = p.oid and m.kind = 'funcid'
    join pg_catalog.pg_proc as f on f.oid = m.id
    where f.provolatile = 'v' and f.pronamespace <> 'rowcast'::regnamespace;
end;

comment on function rowcast.policy_lint_expressions() is
'Findings in the conditions of policies; part of policy_lint().';

-- For which command and for whom a policy is.
create or replace function rowcast.policy_lint_commands()
returns table (code text, level text, object text, message text, hint text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    with asked as (
        select
            p.*,
            p.polrelid in ('public.realtime_channels'::regclass, 'public.realtime_messages'::regclass) as ours,
            rowcast.policy_label(p.polname, p.polrelid) as label
        from rowcast.policies_asked() as p
    )

    select 'RCL109', 'warning', p.label, 'is for all commands, and USING is its check too',
        'Write a policy per command, or a WITH CHECK.'
    from asked as p
    where p.polcmd = '*' and p.polwithcheck is null
    union all
    select 'RCL110', 'warning', p.label, 'is for every command of ' || p.polrelid::regclass,
        'Write FOR SELECT on realtime_channels, FOR INSERT or SELECT on realtime_messages.'
    from asked as p
    where p.polcmd = '*' and p.ours
    union all
    select 'RCL208', 'warning', p.label, 'takes away from what no policy allows',
        'Add a permissive policy for the same command.'
    from asked as p
    where not p.polpermissive
        and 'false' not in (coalesce(pg_get_expr(p.polqual, p.polrelid), ''), coalesce(pg_get_expr(p.polwithcheck, p.polrelid), ''))
        and not exists (
        select from asked as o
        where o.polrelid = p.polrelid and o.polpermissive and (o.polcmd = p.polcmd or '*' in (o.polcmd, p.polcmd))
    )
    union all
    select 'RCL211', 'warning', p.label, 'has no effect: no caller may change or delete a message',
        'Drop it; call rowcast.delete_message() in a function of your own.'
    from asked as p
    where p.polrelid = 'public.realtime_messages'::regclass and p.polcmd in ('w', 'd')
    union all
    -- A policy for a login of trusted code is what it seems.
    select 'RCL213', 'warning', p.label, 'is never asked: no caller has a role that TO names',
        'The caller roles are ' || array_to_string(rowcast.caller_roles(), ', ') || '.'
    from asked as p
    where p.ours and not exists (select from rowcast.policy_callers(p.polroles)) and not exists (
        select from pg_catalog.pg_roles as l, unnest(p.polroles) as n (role)
        where l.rolcanlogin and not l.rolsuper and pg_has_role(l.oid, n.role, 'usage')
    );
end;

comment on function rowcast.policy_lint_commands() is
'Findings in commands and roles of policies; part of policy_lint().';
