-- Retention and upkeep, without pg_cron: a bridge calls upkeep() now and then.

-- Part of upkeep(). In portions, so that no call takes long. What waits for an endpoint that is no
-- longer active is cancelled here too: a publisher may have written it while that happened.
-- Deliveries live as long as messages, whose counts they are.
create or replace function rowcast.webhook_upkeep()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_settings rowcast.settings;
    v_endpoint rowcast.endpoint;
    v_deleted integer;
begin
    select s.* into v_settings from rowcast.settings as s;
    for v_endpoint in
        select e.* from rowcast.endpoint as e where e.state <> 'active' order by e.id
    loop
        perform rowcast.cancel_deliveries(v_endpoint.id, coalesce(v_endpoint.reason, v_endpoint.state));
    end loop;
    delete from rowcast.attempt as a where a.ctid = any (array(
        select o.ctid from rowcast.attempt as o
        where o.at < now() - v_settings.webhook_attempt_retention
        limit 20000
    ));
    delete from rowcast.delivery as d where d.id in (
        select o.id from rowcast.delivery as o
        where o.created_at < now() - v_settings.retention and o.next_at is null
        order by o.id
        limit 20000
    );
    get diagnostics v_deleted = row_count;
    delete from rowcast.endpoint as e
    where e.state = 'retired' and e.changed_at < now() - interval '1 day'
    and not exists (
        select from rowcast.delivery as d where d.channel_id = e.channel_id and d.endpoint_id = e.id
    );
    return v_deleted;
end;
$$;

comment on function rowcast.webhook_upkeep() is
'Cancels what waits for endpoints that are not active, and expires attempts and deliveries; returns how many deliveries expired.';

-- Drops closed leaves past retention: no writer can add to them, so what each channel loses is
-- remembered without a lock, for a resume to know whether it really missed something; but not
-- what a restore brought, whose foreign xids would call every cursor too old. DROP is
-- 160 times faster than DELETE, but needs a short exclusive lock: it waits for it 50 ms at most,
-- and otherwise the next call tries again.
create or replace function rowcast.drop_leaves()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
as $$
declare
    v_leaf text;
    v_dropped integer := 0;
begin
    for v_leaf in
        select l.name from rowcast.leaf as l, rowcast.settings as s
        where l.to_at < clock_timestamp() - s.retention and l.closed_xid is not null
        order by l.from_at
    loop
        begin
            perform rowcast.copy_bodies_of_leaf(v_leaf);
            execute format(
                'insert into rowcast.expired (channel_name, xid)'
                ' select m.channel_name, max(m.xid::text::bigint)::text::xid8 from rowcast.%I as m'
                ' where m.seq > (select coalesce(max(o.seq_floor), 0) from rowcast.origin as o) group by 1'
                ' on conflict (channel_name) do update'
                ' set xid = greatest(expired.xid, excluded.xid), expired_at = excluded.expired_at', v_leaf
            );
            perform rowcast.rollup_forget(v_leaf);
            execute format('drop table rowcast.%I', v_leaf);
            delete from rowcast.leaf as l where l.name = v_leaf;
            v_dropped := v_dropped + 1;
        exception when lock_not_available then
            exit;
        end;
    end loop;
    return v_dropped;
end;
$$;

comment on function rowcast.drop_leaves() is
'Drops durable leaves past retention and remembers what each channel lost; returns how many.';

-- Broadcasts have no index on time, but xids grow with it: `tick` says which xid was newest when.
-- At most 50,000 in one transaction; there are more when it deleted so many.
create or replace function rowcast.expire_broadcasts()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_keep constant interval := (select s.broadcast_retention from rowcast.settings as s);
    v_before xid8;
    v_deleted integer;
begin
    insert into rowcast.tick default values on conflict do nothing;
    select t.xid into v_before from rowcast.tick as t
    where t.at < clock_timestamp() - v_keep order by t.at desc limit 1;
    delete from rowcast.tick as t where t.xid < v_before;
    with gone as (
        delete from rowcast.messages_broadcast as m
        where m.ctid = any (array(
            select d.ctid from rowcast.messages_broadcast as d where d.xid < v_before limit 50000
        ))
        returning m.channel_name, m.xid
    ),

    remembered as (
        insert into rowcast.expired_broadcast (channel_name, xid)
        select g.channel_name, max(g.xid::text::bigint)::text::xid8 from gone as g group by 1
        on conflict (channel_name) do update
        set xid = greatest(expired_broadcast.xid, excluded.xid), expired_at = excluded.expired_at
    )

    select count(*) into v_deleted from gone;
    return v_deleted;
end;
$$;

comment on function rowcast.expire_broadcasts() is
'Deletes broadcasts past their retention and remembers what each channel lost; returns how many.';

-- Everything that must happen now and then. One caller at a time; the others return at once. The
-- lock is one of a row: an advisory one any login could take, and keep, and nothing would ever
-- expire. `again` asks for the next call without delay.
create or replace function rowcast.upkeep()
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
as $$
declare
    v_made integer;
    v_broadcasts integer;
    v_forget constant interval := (select s.cursor_retention + interval '1 day' from rowcast.settings as s);
begin
    perform from rowcast.origin for no key update skip locked;
    if not found then
        return null;
    end if;
    begin
        v_made := rowcast.make_leaves();
    exception when lock_not_available or deadlock_detected then
        v_made := 0; -- a week of leaves is ahead: the next call will do
    end;
    delete from rowcast.signal as g where g.created_at < clock_timestamp() - interval '2 minutes';
    perform rowcast.census_expire();
    delete from rowcast.presence as p where p.left_at < clock_timestamp() - interval '1 minute';
    delete from rowcast.publish_key as k
    where k.created_at < now() - (select s.publish_key_retention from rowcast.settings as s);
    delete from rowcast.expired as e where e.expired_at < now() - v_forget;
    delete from rowcast.expired_broadcast as e where e.expired_at < now() - v_forget;
    v_broadcasts := rowcast.expire_broadcasts();
    return jsonb_build_object(
        'made', v_made,
        'closed', rowcast.close_leaves(),
        'dropped', rowcast.drop_leaves(),
        'compiled', rowcast.compile_read_new(),
        'broadcasts', v_broadcasts,
        'again', v_broadcasts >= 50000,
        'deliveries', rowcast.webhook_upkeep()
    );
end;
$$;

comment on function rowcast.upkeep() is
'Makes, closes and drops leaves, expires broadcasts, keys, signals, censuses, deliveries and members who left; NULL while another call runs it.';
