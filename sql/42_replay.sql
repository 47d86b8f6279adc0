-- Replay: what a channel got between a client's cursor and the moment it went live again.

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
    v_settings rowcast.settings;
    v_leaves text[];
    v_sql text;
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
            when exists (
                select from rowcast.expired as e
                where e.channel_name = p_channels[i] and e.xid >= v_xmin
            ) then 'expired'
        end;
        v_ephemeral := v_same and v_lost is null and not exists (
            select from rowcast.expired_broadcast as e
            where e.channel_name = p_channels[i] and e.xid >= v_xmin
        );
        if v_lost is null then
            if v_leaves is distinct from rowcast.leaves_for(v_xmin, v_since) or v_sql is null then
                v_leaves := rowcast.leaves_for(v_xmin, v_since);
                select string_agg(format(
                    'select m.seq, m.id, m.type, m.event_name, m.payload::text, m.sender_type, m.sender_id, m.created_at'
                    ' from rowcast.%I as m where m.channel_name = $1 and m.xid >= $2 and m.seq > $3'
                    ' and pg_visible_in_snapshot(m.xid, $4)'
                    ' and (not pg_visible_in_snapshot(m.xid, $5) or m.created_at >= $6)', l.name
                ), ' union all ') || ' order by 1' into v_sql
                from unnest(v_leaves) as l (name);
            end if;
            -- Counted first: a client must not get half of what it missed.
            execute 'select count(*), coalesce(sum(octet_length(r.payload)), 0) from (select * from ('
            || v_sql || ') as a limit ' || v_settings.replay_rows + 1 || ') as r'
            into v_rows, v_bytes
            using p_channels[i], case when v_same then v_xmin else '0'::xid8 end, v_floor, v_until,
                p_snapshots[i]::pg_snapshot, v_since;
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
            for seq, id, type, event_name, payload, sender_type, sender_id, created_at in
                execute v_sql
                using p_channels[i], case when v_same then v_xmin else '0'::xid8 end, v_floor, v_until,
                    p_snapshots[i]::pg_snapshot, v_since
            loop
                return next;
            end loop;
        end if;
    end loop;
end;
$$;

comment on function rowcast.replay(text[], text[], uuid[], timestamptz[], text, uuid) is
'Per pair first a state row (complete, durable, expired, too_far), then the rows of the channel not visible in the cursor and visible in p_until, by seq. A single row (0, stale) when p_boot is not this boot.';
