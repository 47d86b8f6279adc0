-- The marks from which claims read, so that what was sent long ago is not in their way.

-- Raises low_at of endpoints that were busy to what is unfinished, and no further than to five
-- seconds ago, for transactions that have not committed. What was written before that and commits
-- later is found by the next call, for it always reads from the beginning and lowers the mark.
--
-- One row at a time in order of id, as in settle_deliveries(), so the two never deadlock. One call
-- at a time, and none during a fold, by a row that no caller can lock.
create or replace function rowcast.raise_marks(p_busy uuid[])
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_mark record;
begin
    perform from rowcast.rollup for no key update skip locked;
    if not found then
        return;
    end if;
    for v_mark in
        select e.id, e.low_at, least(d.next_at, clock_timestamp() - interval '5 s') as low
        from rowcast.endpoint as e
        left join lateral (
            select q.next_at from rowcast.delivery as q
            where q.endpoint_id = e.id and q.next_at > '-infinity'
            order by q.next_at
            limit 1
        ) as d on true
        where e.state = 'active' and (e.low_at > '-infinity' or e.id = any (p_busy))
        order by e.id
    loop
        if v_mark.low < v_mark.low_at or v_mark.id = any (p_busy) then
            update rowcast.endpoint as e set low_at = v_mark.low where e.id = v_mark.id;
        end if;
    end loop;
end;
$$;

comment on function rowcast.raise_marks(uuid[]) is
'Moves the marks below which endpoints have nothing unfinished: up for busy ones, down for any that needs it.';
