-- Counting messages and deliveries ahead of who asks for statistics: exactly, in the transactions
-- of others, and off the path of publishers. A fold adds what became visible since the last one,
-- by the rule of the feed; who asks adds what became visible since the last fold.

-- A snapshot says nothing about the transaction that takes it: its own xid looks ended once a
-- later one has. What this transaction has yet to write must not look counted.
create or replace function rowcast.others_snapshot()
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

comment on function rowcast.others_snapshot() is
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

-- One fold. Rows, the snapshot up to which they are counted, and the deletions that are settled
-- belong to one statement. A message that came and went between two folds is in neither; one that
-- was counted and has gone is taken out. After a restore, xids tell nothing: all is counted anew.
--
-- After a long pause it goes only as far as p_rows, so that no call runs into its timeout, again
-- and again: up to an xid below every running one, before which a snapshot sees all.
create or replace function rowcast.fold(p_rows integer default 500000)
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
        'here as materialized (select coalesce($3, rowcast.others_snapshot()) as upto),'
        ' spans as materialized (select s.first, s.last from here as h, lateral rowcast.spans($1, h.upto) as s),'
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

comment on function rowcast.fold(integer) is
'Counts what was committed since the last fold, about p_rows messages at most, so that statistics answer at once; false when another call is at it.';

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
