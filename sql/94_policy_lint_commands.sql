-- What policies are for: findings in their commands and roles.

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
            p.polrelid in (
                'public.realtime_channels'::regclass, 'public.realtime_messages'::regclass
            ) as ours,
            rowcast.policy_label(p.polname, p.polrelid) as label
        from rowcast.policies_asked() as p
    )

    select
        'RCL109',
        'warning',
        p.label,
        'is for all commands, and USING is its check too',
        'Write a policy per command, or a WITH CHECK.'
    from asked as p
    where p.polcmd = '*' and p.polwithcheck is null
    union all
    select
        'RCL110',
        'warning',
        p.label,
        'is for every command of ' || p.polrelid::regclass,
        'Write FOR SELECT on realtime_channels, FOR INSERT or SELECT on realtime_messages.'
    from asked as p
    where p.polcmd = '*' and p.ours
    union all
    select
        'RCL208',
        'warning',
        p.label,
        'takes away from what no policy allows',
        'Add a permissive policy for the same command.'
    from asked as p
    where not p.polpermissive
        and 'false' not in (
            coalesce(pg_get_expr(p.polqual, p.polrelid), ''),
            coalesce(pg_get_expr(p.polwithcheck, p.polrelid), '')
        )
        and not exists (
            select from asked as o
            where o.polrelid = p.polrelid
                and o.polpermissive
                and (o.polcmd = p.polcmd or '*' in (o.polcmd, p.polcmd))
        )
    union all
    select
        'RCL211',
        'warning',
        p.label,
        'has no effect: no caller may change or delete a message',
        'Drop it; call rowcast.delete_message() in a function of your own.'
    from asked as p
    where p.polrelid = 'public.realtime_messages'::regclass and p.polcmd in ('w', 'd')
    union all
    -- A policy for a login of trusted code is what it seems.
    select
        'RCL213',
        'warning',
        p.label,
        'is never asked: no caller has a role that TO names',
        'The caller roles are ' || array_to_string(rowcast.caller_roles(), ', ') || '.'
    from asked as p
    where p.ours and not exists (select from rowcast.policy_callers(p.polroles)) and not exists (
            select from pg_catalog.pg_roles as l, unnest(p.polroles) as n (role)
            where l.rolcanlogin and not l.rolsuper and pg_has_role(l.oid, n.role, 'usage')
        );
end;

comment on function rowcast.policy_lint_commands() is
'Findings in commands and roles of policies; part of policy_lint().';
