-- What grants of others, default privileges and people at a console do to an installation.

-- Part of doctor(). Each of these is made by a migrate, and nothing but a bridge that fails, or a
-- caller who can do more than he should, would tell that it is no longer so.
create or replace function rowcast.doctor_access()
returns table (subject text, ok boolean, finding text, advice text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_callers constant text[] := rowcast.caller_roles();
    v_may_set constant text := case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end;
    v_found text;
begin
    subject := 'caller roles';
    select string_agg(n.name || ' ' || f.fault, ', ' order by n.name) into v_found
    from unnest(v_callers) as n (name)
    left join pg_catalog.pg_roles as r on r.rolname = n.name
    cross join lateral (
        select case
            when r.oid is null then 'does not exist'
            when not pg_has_role('rowcast_caller', r.oid, v_may_set) then 'is not granted to rowcast_caller'
            when r.rolsuper or r.rolbypassrls then 'bypasses row level security'
            when pg_has_role(r.oid, 'rowcast_owner', 'member') then 'is a member of rowcast_owner'
        end as fault
    ) as f
    where f.fault is not null;
    ok := v_found is null;
    finding := coalesce(v_found, array_to_string(v_callers, ', '));
    advice := 'Create it, or revoke what it has, and run `rowcast migrate --reapply`; or change rowcast.settings.caller_roles.';
    return next;

    subject := 'caller grants';
    select string_agg(r.rolname || ' ' || m.missing, ', ' order by r.rolname) into v_found
    from pg_catalog.pg_roles as r
    cross join lateral (
        select case
            when not has_schema_privilege(r.oid, 'public', 'usage') then 'may not use schema public'
            when not has_schema_privilege(r.oid, 'rowcast', 'usage') then 'may not use schema rowcast'
            when not has_column_privilege(r.oid, 'public.realtime_channels', 'id', 'select') then 'may not select from realtime_channels'
            when not has_column_privilege(r.oid, 'public.realtime_messages', 'channel_name', 'insert') then 'may not insert into realtime_messages'
            when not has_function_privilege(r.oid, 'rowcast.may_subscribe(text)', 'execute') then 'may not execute rowcast.may_subscribe()'
        end as missing
    ) as m
    where r.rolname = any (v_callers) and m.missing is not null;
    ok := v_found is null;
    finding := coalesce(v_found, 'callers have the grants that they need');
    advice := 'Run `rowcast migrate --reapply`, and grant usage on schema public where it was taken away: without them no policy is even asked.';
    return next;

    subject := 'caller privileges';
    select string_agg(distinct r.rolname || ' may ' || m.more, ', ') into v_found
    from pg_catalog.pg_roles as r
    cross join lateral (
        select 'read webhook_urls' as more where has_column_privilege(r.oid, 'public.realtime_channels', 'webhook_urls', 'select')
        union all
        select 'truncate ' || c.oid::regclass from pg_catalog.pg_class as c
        where c.oid in ('public.realtime_channels'::regclass, 'public.realtime_messages'::regclass)
        and has_table_privilege(r.oid, c.oid, 'truncate')
        union all
        select 'change realtime_messages' where has_table_privilege(r.oid, 'public.realtime_messages', 'update, delete, trigger')
        union all
        select 'reach tables of schema rowcast' from pg_catalog.pg_class as c
        where c.relnamespace = 'rowcast'::regnamespace and c.relkind in ('r', 'p')
        and has_table_privilege(r.oid, c.oid, 'select, insert, update, delete, truncate')
    ) as m
    where r.rolname = any (v_callers) and not (r.rolsuper or pg_has_role(r.oid, 'rowcast_owner', 'member'));
    ok := v_found is null;
    finding := coalesce(v_found, 'callers can do no more than publish and read what policies show');
    advice := 'Run `rowcast migrate --reapply`, which takes it back, and change what granted it: default privileges, or GRANT … ON ALL TABLES.';
    return next;

    subject := 'triggers';
    select string_agg(p.proname, ', ' order by p.proname) into v_found
    from pg_catalog.pg_proc as p
    where p.pronamespace = 'rowcast'::regnamespace and p.prorettype = 'trigger'::regtype
    and p.proname not in ('publish_row', 'recheck_rows') -- of tables that people attach
    and (
        not exists (select from pg_catalog.pg_trigger as t where t.tgfoid = p.oid)
        or exists (select from pg_catalog.pg_trigger as t where t.tgfoid = p.oid and t.tgenabled not in ('O', 'A'))
    );
    ok := v_found is null;
    finding := coalesce('missing or disabled: ' || v_found, 'all triggers are enabled');
    advice := 'Run `rowcast migrate --reapply`, and alter table … enable trigger all: without them messages are neither checked nor told.';
    return next;
end;
$$;

comment on function rowcast.doctor_access() is
'What grants, roles and triggers have become since the last migrate; part of doctor().';
