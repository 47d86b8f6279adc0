-- What an operator asks, also with only psql at hand.

-- One object, so that a fact added later breaks nobody who reads the others.
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
    advice := 'Nobody can subscribe or publish: insert a pattern into realtime_channels.';
    return next;

    subject := 'policies';
    select count(*) into v_count from pg_catalog.pg_policy as p
    where p.polrelid = 'public.realtime_channels'::regclass and p.polcmd in ('r', '*');
    ok := v_count > 0;
    finding := v_count || ' policies on realtime_channels for SELECT';
    advice := 'Without one nobody may subscribe: apply a recipe from policies/.';
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
    finding := coalesce('granted to others: ' || v_names, 'nobody but the owner reaches a leaf');
    advice := 'select rowcast.seal(''<leaf>''); and remove the default privileges that granted it.';
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
