-- The state of an installation for its operator, also with only psql at hand: status, doctor, and
-- what a bridge refuses to run with.

-- One object, so that a fact added later does not break readers of the others.
create or replace function rowcast.status()
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_boot uuid;
begin
    -- On a standby even planning a query of an unlogged table is an error.
    if not pg_is_in_recovery() then
        v_boot := (select b.id from rowcast.boot as b);
    end if;
    return jsonb_build_object(
        'version', (select max(m.version) from rowcast.migration as m),
        'boot', v_boot,
        'doorbell', case when current_setting('max_prepared_transactions') = '0' then 'notify' else 'poll' end,
        'bridges_asleep', (
            select count(*) from pg_catalog.pg_locks as l
            where l.locktype = 'advisory' and l.classid = 1919903587 and l.objid = 1 and l.objsubid = 2
            and l.mode = 'ShareLock' and l.granted
            and l.database = (select d.oid from pg_catalog.pg_database as d where d.datname = current_database())
        ),
        'channels', (select count(*) from public.realtime_channels),
        'shapes', (select cardinality(s.shapes) from rowcast.settings as s),
        'last_seq', (select case when s.is_called then s.last_value else 0 end from rowcast.message_seq as s),
        'retention', (select s.retention::text from rowcast.settings as s),
        'leaves', (select count(*) from rowcast.leaf),
        'leaves_until', (select max(l.to_at) from rowcast.leaf as l),
        'default_rows', (select count(*) from (select from rowcast.messages_default limit 10000) as d),
        'oldest_transaction_seconds', (
            select coalesce(floor(extract(epoch from max(clock_timestamp() - a.xact_start))), 0)
            from pg_catalog.pg_stat_activity as a where a.backend_type = 'client backend'
        ),
        'notify_queue', round(pg_notification_queue_usage()::numeric, 4)
    );
end;
$$;

comment on function rowcast.status() is 'State of the installation as one JSON object.';

-- Each row is a fact that must hold, and what to do when it does not.
create or replace function rowcast.doctor()
returns table (subject text, ok boolean, finding text, advice text)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_status constant jsonb := rowcast.status();
    v_count bigint;
    v_names text;
begin
    subject := 'server';
    ok := current_setting('server_version_num')::integer >= 150000 and not pg_is_in_recovery();
    finding := 'PostgreSQL ' || current_setting('server_version') || case when pg_is_in_recovery() then ', a standby' else '' end;
    advice := 'Connect to a primary of version 15 or newer.';
    return next;

    subject := 'origin';
    ok := (rowcast.identity()).adopted;
    finding := case when ok then 'the data belongs to this cluster' else 'the data was restored from another cluster' end;
    advice := 'Run `rowcast migrate` or select rowcast.adopt().';
    return next;

    subject := 'leaves';
    ok := coalesce((v_status ->> 'leaves_until')::timestamptz > now() + interval '1 day', false) or
        coalesce((v_status ->> 'leaves_until')::timestamptz > now() + rowcast.leaf_width(), false);
    finding := 'leaves exist until ' || coalesce(v_status ->> 'leaves_until', 'never');
    advice := 'Start a bridge, or call select rowcast.upkeep() from a scheduler.';
    return next;

    subject := 'default leaf';
    ok := (v_status ->> 'default_rows')::bigint = 0;
    finding := (v_status ->> 'default_rows') || ' messages in the default leaf';
    advice := 'Upkeep moves them when it makes the leaf of their time; keep a bridge running.';
    return next;

    subject := 'channels';
    ok := (v_status ->> 'channels')::bigint > 0;
    finding := (v_status ->> 'channels') || ' channels';
    advice := 'No client can subscribe or publish: insert a pattern into realtime_channels.';
    return next;

    subject := 'policies';
    select count(*) into v_count from pg_catalog.pg_policy as p
    where p.polrelid = 'public.realtime_channels'::regclass and p.polcmd in ('r', '*');
    ok := v_count > 0;
    finding := v_count || ' policies on realtime_channels for SELECT';
    advice := 'Without one no caller may subscribe: apply a recipe from policies/.';
    return next;

    subject := 'row level security';
    select string_agg(c.oid::regclass::text, ', ') into v_names from pg_catalog.pg_class as c
    where c.oid in ('public.realtime_channels'::regclass, 'public.realtime_messages'::regclass)
    and (not c.relrowsecurity or c.relforcerowsecurity);
    ok := v_names is null;
    finding := coalesce(v_names || ': not enabled, or forced', 'enabled, not forced');
    advice := 'alter table … enable row level security; alter table … no force row level security.';
    return next;

    subject := 'leaf privileges';
    select string_agg(c.oid::regclass::text, ', ') into v_names
    from pg_catalog.pg_inherits as i
    join pg_catalog.pg_class as c on c.oid = i.inhrelid
    where c.relnamespace = 'rowcast'::regnamespace and c.relkind in ('r', 'p')
    and exists (select from aclexplode(c.relacl) as a where a.grantee <> c.relowner);
    ok := v_names is null;
    finding := coalesce('granted to others: ' || v_names, 'only the owner reaches a leaf');
    advice := 'select rowcast.lock_down_table(''<leaf>''); and remove the default privileges that granted it.';
    return next;

    subject := 'old transaction';
    ok := (v_status ->> 'oldest_transaction_seconds')::bigint < 3600;
    finding := 'the oldest transaction is ' || (v_status ->> 'oldest_transaction_seconds') || ' s old';
    advice := 'Live delivery does not wait for it, but leaves stay open and vacuum stands still: end it.';
    return next;

    subject := 'notify queue';
    ok := (v_status ->> 'notify_queue')::numeric < 0.5;
    finding := 'the NOTIFY queue is ' || (v_status ->> 'notify_queue') || ' full';
    advice := 'Find the session that listens inside an open transaction and end it.';
    return next;
    return query select d.* from rowcast.doctor_access() as d;
end;
$$;

comment on function rowcast.doctor() is
'Facts that must hold for the installation to work, each with what to do when it does not.';

-- Part of doctor(). Each of these is made by a migrate. Without this check only a failing bridge,
-- or a caller who can do more than they should, would show that it is no longer so.
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

-- Rights to SET ROLE follow the login, so a hostile policy function can get exactly as far as
-- the caller login may; and a bridge login that is a caller could be asked by policies.
create or replace function rowcast.login_report(
    out login text, out faults text[], out bridge_faults text[], out caller_faults text[]
)
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_callers constant text[] := rowcast.caller_roles();
    v_role pg_catalog.pg_roles;
begin
    select r.* into v_role from pg_catalog.pg_roles as r where r.rolname = session_user;
    login := v_role.rolname;
    faults := array_remove(array[
        case when v_role.rolsuper then 'is a superuser' end,
        case when v_role.rolbypassrls then 'bypasses row level security' end,
        case when pg_has_role(v_role.oid, 'rowcast_owner', 'member') then 'is a member of rowcast_owner' end
    ], null);
    bridge_faults := array_remove(array[
        (
            select 'is a member of the caller role ' || min(n.name)
            from unnest(v_callers) as n (name)
            join pg_catalog.pg_roles as r on r.rolname = n.name
            where pg_has_role(v_role.oid, r.oid, 'member')
        )
    ], null);
    caller_faults := array_remove(array[
        case when v_role.rolinherit then 'inherits the rights of its roles' end,
        (
            select 'is a member of ' || min(r.rolname)
            from pg_catalog.pg_auth_members as m
            join pg_catalog.pg_roles as r on r.oid = m.roleid
            where m.member = v_role.oid and r.rolname <> all (v_callers)
        )
    ], null);
end;
$$;

comment on function rowcast.login_report() is
'What is wrong with the session''s login: as any login, as the bridge''s, as the callers''.';
