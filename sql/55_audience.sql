-- Audience: how many sessions are subscribed, which the stamping trigger notes in each message.

-- Changes the sums. In the order of names, so that two bridges never wait for each other crosswise.
create or replace function rowcast.audience_add(p_channels text[], p_changes integer[])
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
begin
    insert into rowcast.audience_total as t (channel_name, sessions)
    select c.name, sum(c.change) from unnest(p_channels, p_changes) as c (name, change)
    group by c.name having sum(c.change) <> 0 order by c.name
    on conflict (channel_name) do update set sessions = t.sessions + excluded.sessions;
    delete from rowcast.audience_total as t where t.channel_name = any (p_channels) and t.sessions = 0;
end;
$$;

comment on function rowcast.audience_add(text[], integer[]) is
'Adds to the sums of audience of these channels.';

-- Takes the present counts of some channels of one node; repeating it changes nothing. The lock
-- keeps the node from being reaped meanwhile, which would leave counts of a node that no longer
-- exists.
create or replace function rowcast.audience_write(
    p_node uuid, p_channels text[], p_counts integer[]
)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
begin
    perform from rowcast.node as n where n.id = p_node for key share;
    if not found then
        return false;
    end if;
    perform rowcast.audience_add(array_agg(c.name), array_agg(c.sessions - coalesce(a.sessions, 0)))
    from unnest(p_channels, p_counts) as c (name, sessions)
    left join rowcast.audience as a on a.channel_name = c.name and a.node = p_node;
    insert into rowcast.audience as a (channel_name, node, sessions)
    select c.name, p_node, c.sessions
    from unnest(p_channels, p_counts) as c (name, sessions)
    where c.sessions > 0
    on conflict (channel_name, node) do update set sessions = excluded.sessions
    where a.sessions <> excluded.sessions;
    delete from rowcast.audience as a
    where a.node = p_node and a.channel_name = any (array(
        select c.name from unnest(p_channels, p_counts) as c (name, sessions) where c.sessions = 0
    ));
    return true;
end;
$$;

comment on function rowcast.audience_write(uuid, text[], integer[]) is
'Writes how many sessions of a node are subscribed to each of these names; false, and nothing written, when the node is not known.';

-- What a node counted counts no more.
create or replace function rowcast.audience_end(p_nodes uuid[])
returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    with gone as (
        delete from rowcast.audience as a
        where a.node = any(p_nodes)
        returning a.channel_name, a.sessions
    )

    select rowcast.audience_add(array_agg(g.channel_name), array_agg(-g.sessions)) from gone as g;
end;

comment on function rowcast.audience_end(uuid[]) is
'Ends the counts of these nodes.';

-- The same as in messages_stamp: the name itself, and the pattern where its channel lets clients
-- subscribe to that.
create or replace function rowcast.audience(channel text)
returns integer
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
begin atomic
    select coalesce(sum(t.sessions), 0)::integer
    from rowcast.audience_total as t
    where t.channel_name = any(array[
            channel,
            (
                select c.pattern from public.realtime_channels as c
                where c.id = (select rowcast.governing_channel(channel)) and c.wildcard
            )
        ])
        and pg_sequence_last_value('rowcast.alive_until'::regclass)
        > date_part('epoch', clock_timestamp()) * 1000;
end;

comment on function rowcast.audience(text) is
'How many sessions are subscribed to the channel at this moment, on all bridges, subscribers of its wildcard pattern included.';

-- The answer of REST to a caller who may subscribe; the bridge has checked that before.
create or replace function rowcast.channel_audience(p_channel text)
returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select
        json_build_object(
            'channel', p_channel, 'wsAudienceCount', rowcast.audience(p_channel)
        )::text;
end;

comment on function rowcast.channel_audience(text) is
'The audience of a channel as JSON text, for a caller that the bridge has already allowed to subscribe.';

-- As REST answers it to an administrator.
create or replace function rowcast.admin_audience(p_claims text, p_channel text)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    return rowcast.channel_audience(p_channel);
end;
$$;

comment on function rowcast.admin_audience(text, text) is
'The audience of a channel as JSON text, for administrators; raises RCA01 for others.';
