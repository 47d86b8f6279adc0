-- Statistics: the rollup, and what became visible since it was made.

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
        else coalesce(rowcast.governing(p_channel_name), '00000000-0000-0000-0000-000000000000')
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
            ' union all select m.event_name, 1 from (select s.first, s.last from rowcast.spans($7, pg_current_snapshot()) as s'
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
