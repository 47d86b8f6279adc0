-- The feed: what became visible since a snapshot.
--
-- A row is new exactly when it is visible now and its transaction was not visible then. Such a
-- transaction has an xid that then was running (xip) or not yet handed out (from xmax on).
-- Sequence numbers commit out of order: reading by `seq > last` loses half the rows.

-- The ranges of xids that can have become visible between two snapshots, both ends included.
-- What runs now is left out: the rows of a large unfinished transaction would be visited, and
-- found invisible, at every poll.
create or replace function rowcast.xid_ranges(p_then pg_snapshot, p_now pg_snapshot)
returns table (first xid8, last xid8)
language sql
immutable
parallel safe
begin atomic
    select
        t.x as low,
        t.x as high
    from pg_snapshot_xip(p_then) as t (x)
    where t.x < pg_snapshot_xmax(p_now)
        and not exists (
            select from pg_snapshot_xip(p_now) as n (x)
            where n.x = t.x
        )
    union all
    select
        g.low::text::xid8,
        g.high::text::xid8
    from (
        select
            coalesce(
                lag(e.edge) over (order by e.edge) + 1, pg_snapshot_xmax(p_then)::text::bigint
            ) as low,
            e.edge - 1 as high
        from (
            select n.x::text::bigint as edge
            from pg_snapshot_xip(p_now) as n (x)
            where n.x >= pg_snapshot_xmax(p_then)
            union all
            select pg_snapshot_xmax(p_now)::text::bigint
        ) as e
    ) as g
    where g.low <= g.high;
end;

comment on function rowcast.xid_ranges(pg_snapshot, pg_snapshot) is
'Inclusive ranges of xids that were not visible in the first snapshot and have ended by the second.';

-- Older databases have a feed() that spells its columns out, and a return type cannot be
-- replaced. In the transaction of all code: no bridge meets a database without feed().
do $$
begin
    if exists (
        select from pg_catalog.pg_proc as p
        where p.oid = to_regprocedure('rowcast.feed(text, uuid, timestamptz, integer, integer)')
            and p.prorettype <> 'rowcast.feed_row'::regtype
    ) then
        drop function if exists rowcast.feed(text, uuid, timestamptz, integer, integer);
    end if;
end
$$;

-- One drain. The first row is the snapshot itself, also when nothing is new: rows, snapshot and
-- boot id belong to one statement. STABLE, so that every query in here uses that snapshot.
--
-- It names only the few leaves that are needed: through the parent an empty drain costs 42 ms with
-- 400 leaves. Mostly these are the ones for which there is a compiled query, which says so with its
-- first row. No LIMIT: it misleads the planner; the loop stops early, and answers `more` when the
-- caller has to read by portal. A query that waited for a lock took longer than a millisecond, and
-- only then it is asked what for.
create or replace function rowcast.feed(
    p_snapshot text, p_boot uuid, p_issued_at timestamptz, p_rows integer, p_bytes integer
)
returns setof rowcast.feed_row
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    v_now constant pg_snapshot := pg_current_snapshot();
    v_then constant pg_snapshot := p_snapshot::pg_snapshot;
    v_xmin constant xid8 := pg_snapshot_xmin(v_then);
    v_xmax constant xid8 := pg_snapshot_xmax(v_now);
    v_time constant timestamptz := clock_timestamp();
    v_boot uuid;
    v_floor bigint;
    v_registry bigint;
    v_since timestamptz;
    v_first xid8[];
    v_last xid8[];
    v_rows bigint := 0;
    v_bytes bigint := 0;
    v_found refcursor;
    v_row rowcast.feed_row;
begin
    select b.id, o.seq_floor, o.leaves into v_boot, v_floor, v_registry
    from rowcast.origin as o left join rowcast.boot as b on true;
    v_row.kind := 'snapshot';
    v_row.id := v_boot;
    v_row.payload := v_now::text;
    v_row.created_at := v_time;
    return next v_row;
    if v_then is null or v_boot is null then
        return;
    end if;

    if v_boot is distinct from p_boot then
        v_since := p_issued_at - (select s.clock_skew from rowcast.settings as s);
    end if;
    if v_xmin = pg_snapshot_xmax(v_then) and v_xmax = pg_snapshot_xmin(v_now) then
        -- Nothing ran then, nothing runs now: one range, and no query to find it.
        if v_xmin < v_xmax then
            v_first := array[v_xmin];
            v_last := array[(v_xmax::text::bigint - 1)::text::xid8];
        end if;
    else
        select array_agg(s.first), array_agg(s.last) into v_first, v_last
        from rowcast.xid_ranges(v_then, v_now) as s;
    end if;
    if v_first is null and v_since is null then
        return;
    end if;

    if v_since is null then
        begin
            if cardinality(v_first) = 1 then
                open v_found no scroll for select f.*
                from rowcast.read_new_range(v_first, v_last, v_floor, v_registry, v_xmin, v_time) as f;
            else
                open v_found no scroll for select f.*
                from rowcast.read_new_ranges(v_first, v_last, v_floor, v_registry, v_xmin, v_time) as f;
            end if;
            fetch v_found into v_row;
            if v_row.kind is distinct from 'covers' then
                close v_found;
                v_found := null;
            end if;
        exception when undefined_table then
            v_found := null; -- a leaf was dropped by hand, and there was no upkeep since
        end;
    end if;
    if v_found is null then
        open v_found no scroll for
        execute rowcast.leaves_query(rowcast.leaves_for(v_xmin, v_since), false, v_since is not null, '')
        using v_first, v_last, v_floor, v_since;
    end if;
    loop
        fetch v_found into v_row;
        exit when not found;
        if v_row.seq < 0 then
            v_row.seq := v_row.seq + 9223372036854775807; -- a signal, see leaves_query()
        end if;
        v_rows := v_rows + 1;
        v_bytes := v_bytes + octet_length(v_row.payload);
        if v_rows > p_rows or v_bytes > p_bytes then
            v_row.kind := 'more';
            return next v_row;
            exit;
        end if;
        return next v_row;
    end loop;
    close v_found;
    if clock_timestamp() > v_time + interval '1 millisecond'
        and rowcast.leaf_was_rewritten(rowcast.leaves_for(v_xmin, v_since))
    then
        raise exception 'realtime_messages was rewritten while a drain waited for it'
        using errcode = '40001', hint = 'Drain again from the same snapshot.';
    end if;
end;
$$;

comment on function rowcast.feed(text, uuid, timestamptz, integer, integer) is
'All messages, signals and changes of presence that became visible since the snapshot, in order of seq, after one row `snapshot` (payload: the new snapshot, id: boot, created_at: its time). Ends with `more` when over the row or byte limit; NULL limits read all. A NULL snapshot only asks for the present one.';
