-- The census: bridges report which callers are subscribed to what, so that a change of policies can
-- be tried on them.
-- Bridges alone know the sessions, so a signal asks them; what they say lives for a moment.
--
-- Claims are personal data: only the owner can ask and read, only bridges can answer, and what was
-- read, or was not read within two minutes, is deleted.

-- Nodes that are added later never see the signal, so those that are there now are noted.
create or replace function rowcast.census_ask()
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_nodes constant uuid[] := array(
        select n.id from rowcast.node as n where n.expires_at > clock_timestamp()
    );
    v_request uuid;
begin
    perform rowcast.census_expire();
    if cardinality(v_nodes) = 0 then
        return null;
    end if;
    insert into rowcast.census_request (nodes) values (v_nodes) returning id into v_request;
    insert into rowcast.signal (kind, body) values ('census', jsonb_build_object('request', v_request));
    return v_request;
end;
$$;

comment on function rowcast.census_ask() is
'Asks all bridges, at commit, which callers are subscribed to what; returns the number of the request, NULL when no bridge is running.';

-- Also by upkeep, for those whose asker has gone away. Children go by their foreign keys.
create or replace function rowcast.census_expire()
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    delete from rowcast.census_request as r
    where r.asked_at < clock_timestamp() - interval '2 minutes';
end;
$$;

comment on function rowcast.census_expire() is
'Deletes requests of two minutes ago with all that was answered to them.';

-- In portions, of which the last one says how much was left out. The lock holds off a reader that
-- deletes meanwhile: nothing can be written to a request that is over. A node that has said all is
-- ignored afterwards, because a signal may be read twice.
create or replace function rowcast.census_answer(
    p_node uuid,
    p_request uuid,
    p_roles text[],
    p_claims text[],
    p_channels text[],
    p_counts integer[],
    p_left_out integer
)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform from rowcast.census_request as r where r.id = p_request for key share;
    if not found or exists (
        select from rowcast.census_answer as a where a.request = p_request and a.node = p_node
    ) then
        return false;
    end if;
    insert into rowcast.census (request, node, role, claims, channel, sessions)
    select p_request, p_node, s.role, s.claims, s.channel, s.sessions
    from unnest(p_roles, p_claims, p_channels, p_counts) as s (role, claims, channel, sessions);
    if p_left_out is not null then
        insert into rowcast.census_answer (request, node, left_out)
        values (p_request, p_node, p_left_out);
    end if;
    return true;
end;
$$;

comment on function rowcast.census_answer(uuid, uuid, text[], text[], text[], integer[], integer) is
'Says how many sessions of a node have this role and these claims and are subscribed to this channel; the last portion also how many subscriptions were left out, those before it NULL. False when the request is over.';

-- Each look has a snapshot of its own, so that it sees what bridges have committed meanwhile. A
-- node whose lease ends is not waited for.
create or replace function rowcast.census_wait(p_request uuid, p_patience interval)
returns table (bridges integer, answered integer, left_out integer)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_until constant timestamptz := clock_timestamp() + p_patience;
begin
    while clock_timestamp() < v_until and exists (
        select from rowcast.census_request as r
        join rowcast.node as n on n.id = any (r.nodes) and n.expires_at > clock_timestamp()
        where r.id = p_request and not exists (
            select from rowcast.census_answer as a where a.request = r.id and a.node = n.id
        )
    ) loop
        perform pg_sleep(0.02);
    end loop;
    return query
    select
        (
            select count(*)::integer from (
                select unnest(r.nodes) as node from rowcast.census_request as r where r.id = p_request
                union
                select a.node from rowcast.census_answer as a where a.request = p_request
            ) as n
        ),
        count(*)::integer,
        coalesce(sum(a.left_out), 0)::integer
    from rowcast.census_answer as a where a.request = p_request;
end;
$$;

comment on function rowcast.census_wait(uuid, interval) is
'Waits until every bridge that is still alive has answered, at most for so long; how many were asked, how many have answered, and how many subscriptions they left out. To be called after the asking transaction.';

-- Reading ends it. What a node said that has not said all is there, too: it is true of that node.
create or replace function rowcast.census_read(p_request uuid)
returns table (role text, claims text, channel text, sessions integer)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform from rowcast.census_request as r where r.id = p_request for update;
    return query
    select c.role, c.claims, c.channel, sum(c.sessions)::integer
    from rowcast.census as c where c.request = p_request
    group by 1, 2, 3;
    delete from rowcast.census_request as r where r.id = p_request;
end;
$$;

comment on function rowcast.census_read(uuid) is
'The sessions by role, claims and channel, of all bridges that have answered; the request and all that was answered to it is deleted.';
