-- Counts messages and deliveries ahead of a request for statistics: exactly, in the transactions
-- of others, and off the path of publishers. An update adds what became visible since the last one,
-- by the rule of the feed; a reader adds what became visible since the last update.
--
-- Counts that change afterwards, because a message was deleted or a delivery settled, are noted
-- and added by the next update.

-- A snapshot says nothing about the transaction that takes it: its own xid looks ended once a
-- later one has. What this transaction has yet to write must not look counted.
create or replace function rowcast.snapshot_without_own()
returns pg_snapshot
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select
        case
            when o.own is null or o.own >= pg_snapshot_xmax(o.now) then o.now
            else (
                least(pg_snapshot_xmin(o.now), o.own) || ':' || pg_snapshot_xmax(o.now) || ':'
                || (
                    select string_agg(r.x::text, ',' order by r.x)
                    from (
                        select x.x from pg_snapshot_xip(o.now) as x (x)
                        union
                        select o.own
                    ) as r
                )
            )::pg_snapshot
        end
    from (
        select
            pg_current_snapshot() as now,
            pg_current_xact_id_if_assigned() as own
    ) as o;
end;

comment on function rowcast.snapshot_without_own() is
'The present snapshot, in which this transaction itself is not visible.';

-- The statement that adds to the rollup. One text, because what is counted comes from the table,
-- from one leaf, or from what was deleted, and always has to end up in every scope.
create or replace function rowcast.rollup_query(p_with text, p_delta text)
returns text
language sql
immutable
parallel safe
return 'with ' || p_with || ' delta as ('
|| 'select d.channel_id::text as channel, d.channel_name as name, d.event_name as event,'
|| ' date_trunc(''hour'', d.created_at, ''UTC'') as hour, sum(d.n) as n'
|| ' from (' || p_delta || ') as d group by 1, 2, 3, 4), summed as ('
|| 'select case when grouping(t.channel) = 0 then ''channel'''
|| ' when grouping(t.name) = 0 then ''name'' else ''all'' end as scope,'
|| ' coalesce(t.channel, t.name, '''') as key, coalesce(t.hour, ''-infinity'') as bucket,'
|| ' t.event, sum(t.n) as n from delta as t group by grouping sets ((t.event), (t.event, t.hour),'
|| ' (t.event, t.channel), (t.event, t.channel, t.hour), (t.event, t.name)))'
|| ' insert into rowcast.message_rollup as r (scope, key, bucket, event_name, messages)'
|| ' select s.scope, s.key, s.bucket, s.event, s.n from summed as s where s.n <> 0'
|| ' on conflict (scope, key, bucket, event_name)'
|| ' do update set messages = r.messages + excluded.messages';

comment on function rowcast.rollup_query(text, text) is
'The statement that adds (channel_id, channel_name, event_name, created_at, n) to the rollup in every scope.';

-- One update. Rows, the snapshot up to which they are counted, and the deletions that are settled
-- belong to one statement. A message that came and went between two updates is in neither; one that
-- was counted and has gone is taken out. After a restore, xids tell nothing: all is counted anew.
--
-- After a long pause it goes only as far as p_rows, so that no call runs into its timeout, again
-- and again: up to an xid below every running one, before which a snapshot sees all.
create or replace function rowcast.statistics_update(p_rows integer default 500000)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set timezone = 'UTC'
as $$
declare
    v_floor constant bigint := coalesce((select o.seq_floor from rowcast.origin as o), 0);
    v_rollup rowcast.rollup;
    v_step xid8;
begin
    select r.* into v_rollup from rowcast.rollup as r for update skip locked;
    if not found then
        return false;
    end if;
    if v_rollup.seq_floor <> v_floor then
        delete from rowcast.message_rollup;
        perform set_config('enable_seqscan', 'on', true);
    else
        select m.xid into v_step from public.realtime_messages as m
        where m.type = 'message' and m.seq > v_floor and m.xid >= pg_snapshot_xmax(v_rollup.snapshot)
        order by m.xid offset p_rows limit 1;
        if v_step >= pg_snapshot_xmin(pg_current_snapshot()) or v_step <= pg_snapshot_xmax(v_rollup.snapshot) then
            v_step := null;
        end if;
    end if;
    execute rowcast.rollup_query(
        'here as materialized (select coalesce($3, rowcast.snapshot_without_own()) as upto),'
        ' spans as materialized (select s.first, s.last from here as h, lateral rowcast.xid_ranges($1, h.upto) as s),'
        ' moved as (update rowcast.rollup set snapshot = (select h.upto from here as h), seq_floor = $2),'
        ' gone as (delete from rowcast.removal as g returning g.*),',
        case when v_rollup.seq_floor = v_floor
            then 'select m.channel_id, m.channel_name, m.event_name, m.created_at, 1 as n'
            ' from spans as s, lateral (select * from public.realtime_messages as l where l.type = ''message'''
            ' and l.xid between s.first and s.last and l.seq > $2 offset 0) as m'
            ' union all select g.channel_id, g.channel_name, g.event_name, g.created_at, -1 from gone as g'
            ' where g.seq <= $2 or pg_visible_in_snapshot(g.message_xid, $1)'
            else 'select m.channel_id, m.channel_name, m.event_name, m.created_at, 1 as n'
            ' from here as h, public.realtime_messages as m where m.type = ''message'''
            ' and (m.seq <= $2 or pg_visible_in_snapshot(m.xid, h.upto))'
        end
    ) using v_rollup.snapshot, v_floor, (v_step || ':' || v_step || ':')::pg_snapshot;
    with gone as (
        delete from rowcast.delivery_change as c returning c.*
    )

    insert into rowcast.delivery_rollup as r (key, bucket, delivered, failed)
    select coalesce(g.channel_id::text, ''), coalesce(g.hour, '-infinity'), sum(g.delivered), sum(g.failed)
    from (
        select c.channel_id, date_trunc('hour', c.message_at, 'UTC') as hour, c.delivered, c.failed
        from gone as c
    ) as g
    group by grouping sets ((), (g.hour), (g.channel_id), (g.channel_id, g.hour))
    having count(*) > 0
    on conflict (key, bucket) do update
    set delivered = r.delivered + excluded.delivered, failed = r.failed + excluded.failed;
    return true;
end;
$$;

comment on function rowcast.statistics_update(integer) is
'Counts what was committed since the last update, about p_rows messages at most, so that statistics answer at once; false when another call is at it.';

-- What a leaf takes with it when it is dropped. Share mode keeps deletions out meanwhile: one that
-- commits between counting and dropping would be taken out twice.
create or replace function rowcast.rollup_forget(p_leaf text)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set jit = off
set timezone = 'UTC'
as $$
declare
    v_rollup rowcast.rollup;
begin
    execute format('lock table rowcast.%I in share mode', p_leaf);
    select r.* into v_rollup from rowcast.rollup as r for update;
    execute rowcast.rollup_query('', format(
        'select m.channel_id, m.channel_name, m.event_name, m.created_at, -1 as n from rowcast.%I as m'
        ' where m.seq <= $2 or pg_visible_in_snapshot(m.xid, $1)', p_leaf
    )) using v_rollup.snapshot, v_rollup.seq_floor;
    delete from rowcast.message_rollup as r where r.messages = 0;
    delete from rowcast.delivery_rollup as r where r.delivered = 0 and r.failed = 0;
end;
$$;

comment on function rowcast.rollup_forget(text) is
'Takes the messages of a leaf that is to be dropped out of the rollup.';

-- Only noted: whether the message was counted already, the update knows and this transaction does
-- not, because an update may be under way that still sees the message.
create or replace function rowcast.messages_removed()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into rowcast.removal (message_xid, seq, channel_id, channel_name, event_name, created_at)
    select g.xid, g.seq, g.channel_id, g.channel_name, g.event_name, g.created_at
    from gone as g
    where g.type = 'message';
    return null;
end;
$$;

comment on function rowcast.messages_removed() is
'Trigger of realtime_messages: notes deleted messages for the next statistics_update().';

create or replace trigger realtime_messages_80_remove
after delete on public.realtime_messages
referencing old table as gone
for each statement execute function rowcast.messages_removed();

-- TRUNCATE shows no rows; no other transaction can have written meanwhile, so counting begins anew
-- here.
create or replace function rowcast.messages_emptied()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update rowcast.rollup set snapshot = rowcast.snapshot_without_own();
    delete from rowcast.message_rollup;
    delete from rowcast.removal;
    return null;
end;
$$;

comment on function rowcast.messages_emptied() is
'Trigger of realtime_messages: counts from zero after TRUNCATE.';

create or replace trigger realtime_messages_80_empty
after truncate on public.realtime_messages
for each statement execute function rowcast.messages_emptied();

-- A row for each delivery whose outcome becomes known or changes. The conditions stand at the
-- triggers: a publisher, who only adds pending ones, and a claim, call nothing.
create or replace function rowcast.delivery_counted()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_delivered constant integer := case when tg_op = 'DELETE' then 0 else (new.state = 'delivered')::integer end;
    v_failed constant integer := case when tg_op = 'DELETE' then 0 else (new.state = 'failed')::integer end;
    v_channel constant uuid := case when tg_op = 'INSERT' then new.channel_id else old.channel_id end;
    v_at constant timestamptz := case when tg_op = 'INSERT' then new.message_at else old.message_at end;
begin
    insert into rowcast.delivery_change (channel_id, message_at, delivered, failed)
    values (
        v_channel, v_at,
        v_delivered - case when tg_op = 'INSERT' then 0 else (old.state = 'delivered')::integer end,
        v_failed - case when tg_op = 'INSERT' then 0 else (old.state = 'failed')::integer end
    );
    return null;
end;
$$;

comment on function rowcast.delivery_counted() is
'Trigger of delivery: notes outcomes for the next statistics_update().';

create or replace trigger delivery_80_settle
after update of state on rowcast.delivery
for each row
when (
    old.state is distinct from new.state
    and (old.state in ('delivered', 'failed') or new.state in ('delivered', 'failed'))
)
execute function rowcast.delivery_counted();

create or replace trigger delivery_80_add
after insert on rowcast.delivery
for each row when (new.state in ('delivered', 'failed'))
execute function rowcast.delivery_counted();

create or replace trigger delivery_80_remove
after delete on rowcast.delivery
for each row when (old.state in ('delivered', 'failed'))
execute function rowcast.delivery_counted();

-- The share of settled deliveries that arrived; 0 where none was settled. What lies between `since`
-- and the first whole hour is counted where it lies.
create or replace function rowcast.delivery_rate(
    p_channel_id uuid, p_since timestamptz, p_full timestamptz
)
returns numeric
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select
        coalesce(
            trim_scale(round(sum(c.delivered) / nullif(sum(c.delivered + c.failed), 0), 4)), 0
        )
    from (
        select
            r.delivered::numeric,
            r.failed
        from rowcast.delivery_rollup as r
        where r.key = coalesce(p_channel_id::text, '')
            and ((p_since is null and r.bucket = '-infinity') or r.bucket >= p_full)
        union all
        select
            d.delivered,
            d.failed
        from rowcast.delivery_change as d
        where (p_channel_id is null or d.channel_id = p_channel_id)
            and (p_since is null or d.message_at >= p_full)
        union all
        select
            (d.state = 'delivered')::integer,
            (d.state = 'failed')::integer
        from rowcast.delivery as d
        where d.message_at >= p_since and d.message_at < p_full
            and (p_channel_id is null or d.channel_id = p_channel_id)
    ) as c;
end;

comment on function rowcast.delivery_rate(uuid, timestamptz, timestamptz) is
'Share of the settled webhook deliveries that were delivered, of one channel or of all, for messages since a time.';

-- Whole hours and all time come from the rollup; the rest is counted where it lies. Rows of a
-- single name have no hours, so with a time they are counted by the index on names.
--
-- STABLE: the rollup, its snapshot and the rows after it are seen at one moment.
create or replace function rowcast.statistics(
    p_channel_id uuid, p_channel_name text, p_since timestamptz
)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_scope constant text := case
        when p_channel_name is not null then 'name' when p_channel_id is not null then 'channel' else 'all'
    end;
    v_key constant text := coalesce(p_channel_name, p_channel_id::text, '');
    v_rollup rowcast.rollup;
    v_since timestamptz := p_since;
    -- From here on whole hours are counted.
    v_full timestamptz := date_trunc('hour', p_since + interval '1 hour' - interval '1 microsecond', 'UTC');
    v_filter constant text := case v_scope
        when 'name' then ' and m.channel_name = $2' when 'channel' then ' and m.channel_id = $1' else ''
    end;
    -- Webhooks belong to channels: a name has the rate of the channel that governs it.
    v_channel constant uuid := case
        when p_channel_name is null then p_channel_id
        else coalesce(rowcast.governing_channel(p_channel_name), '00000000-0000-0000-0000-000000000000')
    end;
    v_answer json;
begin
    select r.* into v_rollup from rowcast.rollup as r;
    if p_since is not null and v_scope = 'name' then
        v_full := 'infinity';
    elsif v_rollup.seq_floor <> coalesce((select o.seq_floor from rowcast.origin as o), 0) then
        -- Restored and not yet counted anew.
        v_since := coalesce(p_since, '-infinity');
        v_full := 'infinity';
    end if;
    execute 'with counted as ('
        ' select r.event_name, r.messages as n from rowcast.message_rollup as r where r.scope = $3 and r.key = $4'
        || case when v_since is null then ' and r.bucket = ''-infinity''' else ' and r.bucket >= $6' end
        || case when v_full = 'infinity' then '' else
            -- A transaction sees its own rows, although its xid may lie beyond its snapshot.
            ' union all select m.event_name, 1 from (select s.first, s.last from rowcast.xid_ranges($7, pg_current_snapshot()) as s'
            ' union all select o.x, o.x from pg_current_xact_id_if_assigned() as o (x)'
            ' where o.x >= pg_snapshot_xmax(pg_current_snapshot())) as s, lateral (select * from public.realtime_messages as l where l.type = ''message'''
            ' and l.xid between s.first and s.last and l.seq > $8 offset 0) as m where ($6 is null or m.created_at >= $6)' || v_filter
            || ' union all select m.event_name, -1 from rowcast.removal as m'
            ' where (m.seq <= $8 or pg_visible_in_snapshot(m.message_xid, $7)) and ($6 is null or m.created_at >= $6)' || v_filter
        end
        || case when v_since is null then '' else
            ' union all select m.event_name, 1 from public.realtime_messages as m'
            ' where m.type = ''message'' and m.created_at >= $5 and m.created_at < $6' || v_filter
        end
        || '), events as (select c.event_name, sum(c.n) as n from counted as c group by 1 having sum(c.n) > 0)'
        ' select json_build_object(''totalMessages'', coalesce(sum(e.n), 0), ''whDeliveryRate'','
        ' rowcast.delivery_rate($11, $9, $10), ''topEvents'', coalesce((select json_agg(json_build_object('
        '''eventName'', t.event_name, ''count'', t.n) order by t.n desc, t.event_name)'
        ' from (select * from events as e order by e.n desc, e.event_name limit 10) as t), ''[]''))'
        ' from events as e'
    into v_answer
    using p_channel_id, p_channel_name, v_scope, v_key, v_since, v_full, v_rollup.snapshot, v_rollup.seq_floor,
        p_since, date_trunc('hour', p_since + interval '1 hour' - interval '1 microsecond', 'UTC'), v_channel;
    return v_answer::text;
end;
$$;

comment on function rowcast.statistics(uuid, text, timestamptz) is
'Messages, delivery rate and the ten most frequent events, of everything, of one channel or of one name, since a time, as JSON text.';
