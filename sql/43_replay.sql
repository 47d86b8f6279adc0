-- Replay: what a channel got between a client's cursor and the moment it went live again.

-- Reads leaves for one name, or for all that one channel row governed, which is what a subscribed
-- pattern hears. The planner sees the values and takes the index on xid, or the one on the
-- channel, or both: a busy row has most of the new rows, a quiet one few of them.
create or replace function rowcast.replay_query(p_leaves text[], p_of_row boolean)
returns text
language sql
immutable
parallel safe
begin atomic
    select
        string_agg(
            format(
                'select m.seq, m.id, m.type, m.channel_name, m.event_name, m.payload::text,'
                ' m.sender_type, m.sender_id, m.created_at from rowcast.%I as m where ', l.name
            )
            || case when p_of_row then 'm.channel_id = $7' else 'm.channel_name = $1' end
            || ' and m.xid >= $2 and m.seq > $3 and pg_visible_in_snapshot(m.xid, $4)'
            ' and (not pg_visible_in_snapshot(m.xid, $5) or m.created_at >= $6)',
            ' union all '
        )
        || ' order by 1'
    from unnest(p_leaves) as l (name);
end;

comment on function rowcast.replay_query(text[], boolean) is
'SQL that reads leaves for the name $1 or the channel row $7: xids from $2, seq above $3, visible in $4 and not in $5, or created_at from $6 on.';

-- Whether the channel lost a row that a cursor may not have seen; a pattern loses what its names
-- do, and '**' in the place of a name is what all of them did (sql/73_losses.sql).
create or replace function rowcast.lost_since(p_channel text, p_xmin xid8, p_broadcasts boolean)
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select case
        when position('*' in p_channel) = 0 and p_broadcasts
            then exists (
                    select from rowcast.expired_broadcast as e
                    where e.channel_name in (p_channel, '**') and e.xid >= p_xmin
                )
        when position('*' in p_channel) = 0
            then exists (
                    select from rowcast.expired as e
                    where e.channel_name in (p_channel, '**') and e.xid >= p_xmin
                )
        when p_broadcasts
            then exists (
                    select from rowcast.expired_broadcast as e
                    where e.xid >= p_xmin and (
                            e.channel_name = '**'
                            or rowcast.pattern_matches(p_channel, e.channel_name)
                        )
                )
        else exists (
                select from rowcast.expired as e
                where e.xid >= p_xmin and (
                        e.channel_name = '**'
                        or rowcast.pattern_matches(p_channel, e.channel_name)
                    )
            )
    end;
end;

comment on function rowcast.lost_since(text, xid8, boolean) is
'Whether messages, or broadcasts, of a channel or pattern have expired that a cursor with this xmin may not have seen.';

-- Answers many (channel, cursor) pairs in one call, each up to the snapshot at which the bridge
-- went live. One row `state` per pair comes first: recovered (durable), ephemeral, the reason,
-- and `stale` when the bridge's own snapshot is from before a crash and it must drain first.
-- Sorting for every page costs more than reading at most replay_rows once, so there is one read.
create or replace function rowcast.replay(
    p_channels text[],
    p_snapshots text[],
    p_boots uuid[],
    p_issued timestamptz[],
    p_until text,
    p_boot uuid
)
returns table (
    pair integer,
    state text,
    seq bigint,
    id uuid,
    type text,
    channel_name text,
    event_name text,
    payload text,
    sender_type text,
    sender_id text,
    created_at timestamptz
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_until constant pg_snapshot := p_until::pg_snapshot;
    v_boot constant uuid := (select b.id from rowcast.boot as b);
    v_floor constant bigint := (select o.seq_floor from rowcast.origin as o);
    -- For leaves that were removed before upkeep noticed it: until when they received rows.
    v_taken constant xid8 := (
        select max(coalesce(l.closed_xid, '18446744073709551615'))
        from rowcast.leaf as l
        where l.from_at < clock_timestamp() + interval '1 minute'
        and not exists (select from pg_catalog.pg_inherits as i where i.inhrelid = to_regclass('rowcast.' || l.name))
    );
    v_settings rowcast.settings;
    v_leaves text[];
    v_read text[];
    v_sql text;
    v_of_row boolean;
    v_row uuid;
    v_xmin xid8;
    v_since timestamptz;
    v_same boolean;
    v_lost text;
    v_ephemeral boolean;
    v_rows bigint;
    v_bytes bigint;
begin
    if v_boot is distinct from p_boot then
        pair := 0;
        state := 'stale';
        return next;
        return;
    end if;
    select s.* into v_settings from rowcast.settings as s;
    for i in 1..cardinality(p_channels) loop
        pair := i;
        v_same := p_boots[i] is not distinct from v_boot;
        v_xmin := pg_snapshot_xmin(p_snapshots[i]::pg_snapshot);
        v_since := case when not v_same then p_issued[i] - v_settings.clock_skew end;
        v_lost := case
            when p_issued[i] < clock_timestamp() - v_settings.cursor_retention then 'expired'
            when v_taken > v_xmin or rowcast.lost_since(p_channels[i], v_xmin, false) then 'expired'
        end;
        v_ephemeral := v_same and v_lost is null and not rowcast.lost_since(p_channels[i], v_xmin, true);
        if v_lost is null then
            if v_leaves is distinct from rowcast.leaves_for(v_xmin, v_since) or v_sql is null
                or v_of_row is distinct from (position('*' in p_channels[i]) > 0)
            then
                v_of_row := position('*' in p_channels[i]) > 0;
                v_leaves := rowcast.leaves_for(v_xmin, v_since);
                v_read := v_read || v_leaves;
                v_sql := rowcast.replay_query(v_leaves, v_of_row);
            end if;
            v_row := case when v_of_row then (rowcast.subscribable(p_channels[i])).channel_id end;
            -- Counted first: a client must not get half of what it missed.
            execute 'select count(*), coalesce(sum(octet_length(r.payload)), 0) from (select * from ('
            || v_sql || ') as a limit ' || v_settings.replay_rows + 1 || ') as r'
            into v_rows, v_bytes
            using p_channels[i], case when v_same then v_xmin else '0'::xid8 end, v_floor, v_until,
                p_snapshots[i]::pg_snapshot, v_since, v_row;
            if v_rows > v_settings.replay_rows or v_bytes > v_settings.replay_bytes then
                v_lost := 'too_far';
            end if;
        end if;
        state := coalesce(v_lost, case when v_ephemeral then 'complete' else 'durable' end);
        seq := null; id := null; type := null; channel_name := p_channels[i]; event_name := null;
        payload := null; sender_type := null; sender_id := null; created_at := null;
        return next;
        if v_lost is null and v_rows > 0 then
            state := null;
            for seq, id, type, channel_name, event_name, payload, sender_type, sender_id, created_at in
                execute v_sql
                using p_channels[i], case when v_same then v_xmin else '0'::xid8 end, v_floor, v_until,
                    p_snapshots[i]::pg_snapshot, v_since, v_row
            loop
                return next;
            end loop;
        end if;
    end loop;
    if rowcast.leaf_was_rewritten(v_read) then
        raise exception 'realtime_messages was rewritten while a replay waited for it'
        using errcode = '40001', hint = 'Ask again.';
    end if;
end;
$$;

comment on function rowcast.replay(text[], text[], uuid[], timestamptz[], text, uuid) is
'Per pair of a channel or pattern and a cursor first a state row (complete, durable, expired, too_far), then its rows not visible in the cursor and visible in p_until, by seq. A single row (0, stale) when p_boot is not this boot.';
