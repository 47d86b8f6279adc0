-- Nodes: each bridge has a row, and a lease that it renews. Whatever a bridge writes about its
-- clients is written under a lock of that row, so nothing of a node can outlive it.

-- What a dead node wrote ends here: its counts at once, its members as left, for the feed to tell.
-- The node's row goes first. A bridge that still writes for it holds the row, and the delete waits;
-- a bridge that comes later finds no row.
create or replace function rowcast.reap_nodes()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_dead uuid[];
begin
    with dead as (
        delete from rowcast.node as n
        where n.id in (
            select d.id from rowcast.node as d where d.expires_at < clock_timestamp()
            for update skip locked
        )
        returning n.id
    )

    select array_agg(d.id) into v_dead from dead as d;
    if v_dead is null then
        return 0;
    end if;
    perform rowcast.audience_end(v_dead);
    update rowcast.presence as p
    set left_at = clock_timestamp(), updated_at = clock_timestamp(), sessions = 0,
        xid = pg_current_xact_id(), seq = nextval('rowcast.message_seq')
    where p.node = any (v_dead) and p.left_at is null;
    return cardinality(v_dead);
end;
$$;

comment on function rowcast.reap_nodes() is
'Ends the nodes whose lease has run out: their counts vanish, their members have left. Returns how many.';

-- The heartbeat. A node that finds no row of its own has been reaped, or Postgres has crashed:
-- in both cases it has to write down again all that it has.
create or replace function rowcast.node_beat(p_node uuid, p_lease interval)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_known boolean;
begin
    update rowcast.node as n set expires_at = clock_timestamp() + p_lease where n.id = p_node;
    v_known := found;
    if not v_known then
        insert into rowcast.node (id, expires_at) values (p_node, clock_timestamp() + p_lease);
    end if;
    perform rowcast.reap_nodes();
    perform setval('rowcast.alive_until', ceil(date_part('epoch', max(n.expires_at)) * 1000)::bigint)
    from rowcast.node as n;
    return v_known;
end;
$$;

comment on function rowcast.node_beat(uuid, interval) is
'Renews the lease of a node and reaps others; false when the node was not known, and has to write all anew.';

-- A bridge that ends in order takes its counts along at once. Its members stay for a moment:
-- clients who are on their way to another bridge have not left.
create or replace function rowcast.node_leave(p_node uuid, p_grace interval)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.audience_end(array[p_node]);
    if exists (select from rowcast.presence as p where p.node = p_node and p.left_at is null) then
        update rowcast.node as n set expires_at = clock_timestamp() + p_grace where n.id = p_node;
    else
        delete from rowcast.node as n where n.id = p_node;
    end if;
end;
$$;

comment on function rowcast.node_leave(uuid, interval) is
'Ends a node: its counts at once, its members after the grace time unless other nodes have them by then.';
