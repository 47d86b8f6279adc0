-- Claiming deliveries: a lease of some seconds instead of a lock held, so that whatever happens to
-- a bridge, another one sends what it had. Only the clock of the database counts.
--
-- Marks say from where a claim reads, so that what was sent long ago is not in its way.

-- Each endpoint with something due gets an equal part of what is asked for, at most its room less
-- what this bridge has under way there: a queue of 100,000 rows starves no other, and an endpoint
-- that hangs holds only its room. A lease that ran out is claimed like anything else; its attempt
-- counts, so a message that crashes every bridge that sends it ends in `failed`, not in a loop.
--
-- An endpoint that fails again and again gets one probe at a time, of all bridges together: the
-- probe is out for as long as a lease.
--
-- A lease changes no indexed column, so it stays within the page; and the search starts at low_at,
-- because under an old snapshot the index keeps all that was ever sent. What it finds first is
-- where the claim starts, so that nothing of that is read twice.
--
-- A claim need not wait for the disk: if a crash of Postgres takes the lease back, the delivery is
-- claimed again, as after a crash of the bridge. What came of it is another matter, and waits.
create or replace function rowcast.claim_deliveries(
    p_worker uuid, p_limit integer, p_lease interval, p_busy uuid[], p_counts integer[]
)
returns table (
    id bigint, attempt integer, message_id uuid, endpoint_id uuid, url text, secrets text[],
    bare boolean, event_name text, channel_name text, body text
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    v_now constant timestamptz := clock_timestamp();
    v_most constant integer := (select cardinality(s.webhook_schedule) + 1 from rowcast.settings as s);
begin
    perform set_config('synchronous_commit', 'off', true);
    return query
    with due as (
        select e.id, f.next_at, e.failures, case when e.failures >= 5 then 1 else e.room - b.n end as room
        from rowcast.endpoint as e
        cross join lateral coalesce(p_counts[array_position(p_busy, e.id)], 0) as b (n)
        cross join lateral (
            select d.next_at from rowcast.delivery as d
            where d.endpoint_id = e.id and d.next_at >= e.low_at and d.next_at <= v_now
            and (d.lease_until is null or d.lease_until <= v_now)
            order by d.next_at
            limit 1
        ) as f
        where e.state = 'active' and e.pause_until <= v_now and (e.failures >= 5 or e.room > b.n)
    ),

    probe as (
        update rowcast.endpoint as e set pause_until = v_now + p_lease
        where e.id in (
            select p.id from rowcast.endpoint as p
            where p.id in (select f.id from due as f where f.failures >= 5) and p.pause_until <= v_now
            order by p.id
            for no key update skip locked
        )
        returning e.id
    ),

    chosen as (
        select f.id, f.next_at, least(f.room, greatest(1, p_limit / count(*) over ())) as room
        from due as f
        where f.failures < 5 or exists (select from probe as p where p.id = f.id)
        order by random()
    ),

    picked as (
        select q.id, q.died, q.died and q.attempt - q.attempts_before >= v_most as dead
        from chosen as c
        cross join lateral (
            select d.id, d.attempt, d.attempts_before, d.lease_by is not null as died
            from rowcast.delivery as d
            where d.endpoint_id = c.id and d.next_at >= c.next_at and d.next_at <= v_now
            and (d.lease_until is null or d.lease_until <= v_now)
            order by d.next_at, d.id
            limit c.room
            for no key update skip locked
        ) as q
        limit p_limit
    ),

    leased as (
        update rowcast.delivery as d
        set
            attempt = d.attempt + case when p.dead then 0 else 1 end,
            lease_by = case when not p.dead then p_worker end,
            lease_until = case when not p.dead then v_now + p_lease end,
            next_at = case when not p.dead then d.next_at end,
            state = case when p.dead and d.state = 'pending' then 'failed' else d.state end,
            reason = case when p.dead then 'exhausted' else d.reason end,
            settled_at = case when p.dead then v_now else d.settled_at end
        from picked as p
        where d.id = p.id
        returning d.*, p.died, p.dead
    ),

    lost as (
        insert into rowcast.attempt (delivery_id, attempt, error)
        select l.id, l.attempt - case when l.dead then 0 else 1 end, 'lost' from leased as l where l.died
        on conflict do nothing
    )

    select
        l.id, l.attempt, l.message_id, l.endpoint_id, e.url,
        case when e.previous_until > v_now then array[e.secret, e.previous_secret] else array[e.secret] end,
        rowcast.wants_bare_body(c.options),
        coalesce(m.event_name, l.event_name), coalesce(m.channel_name, l.channel_name),
        case
            when m.id is not null
                then rowcast.webhook_body(rowcast.wants_bare_body(c.options), m.event_name, m.channel_name, m.channel_id, m.payload, m.sender_id, m.created_at)
            else l.body
        end
    from leased as l
    join rowcast.endpoint as e on e.id = l.endpoint_id
    left join public.realtime_channels as c on c.id = l.channel_id
    left join public.realtime_messages as m
        on m.type = 'message' and m.created_at = l.message_at and m.channel_id = l.channel_id
        and m.seq = l.message_seq and m.id = l.message_id
    where not l.dead;
end;
$$;

comment on function rowcast.claim_deliveries(uuid, integer, interval, uuid[], integer[]) is
'Leases up to p_limit due deliveries to a worker that has p_counts under way at the endpoints p_busy. A NULL body: the message was deleted.';

-- When to claim again if nothing happens before. What this bridge has no room for is left out: it
-- claims again anyway when something of it is done. And which channels have endpoints, so that a
-- bridge need not claim for messages of others.
create or replace function rowcast.next_delivery(
    p_busy uuid[], p_counts integer[], out wait double precision, out channels uuid[]
)
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
begin atomic
    select
        extract(epoch from min(d.next_at) - clock_timestamp()),
        coalesce(array_agg(distinct e.channel_id), '{}')
    from rowcast.endpoint as e
    cross join lateral coalesce(p_counts[array_position(p_busy, e.id)], 0) as b (n)
    left join lateral (
        select greatest(q.next_at, e.pause_until) as next_at from rowcast.delivery as q
        where q.endpoint_id = e.id and q.next_at >= e.low_at
            and (q.lease_until is null or q.lease_until <= clock_timestamp())
            and (e.failures >= 5 or e.room > b.n)
        order by q.next_at
        limit 1
    ) as d on true
    where e.state = 'active';
end;

comment on function rowcast.next_delivery(uuid[], integer[]) is
'Seconds until the next delivery is due (NULL: none waits), and the channels with active endpoints.';

-- Raises low_at of endpoints that were busy to what is unfinished, and no further than to five
-- seconds ago, for transactions that have not committed. What was written before that and commits
-- later is found by the next call, for it always reads from the beginning and lowers the mark.
--
-- One row at a time in order of id, as in settle_deliveries(), so the two never deadlock. One call
-- at a time, and none during an update of the statistics, by a row that no caller can lock.
create or replace function rowcast.move_claim_marks(p_busy uuid[])
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

comment on function rowcast.move_claim_marks(uuid[]) is
'Moves the marks below which endpoints have nothing unfinished: up for busy ones, down for any that needs it.';
