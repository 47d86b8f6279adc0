-- Presence: the members of a channel, and their states. Bridges write it for their clients, under a
-- key that the bridge takes from the token; the feed tells all bridges what has changed.

create or replace trigger presence_90_ring
after insert or update on rowcast.presence
for each statement execute function rowcast.notify_sleeping_bridges();

-- Takes the present state of some members of one node, NULL for those who left; repeating it does
-- no harm. seq is taken anew while the row is locked, so a higher one is a later state. The
-- size is that of the text which others are sent: eight bytes of 1e131000 are 131 kB of it.
create or replace function rowcast.presence_write(
    p_node uuid,
    p_channels text[],
    p_keys text[],
    p_states text[],
    p_sessions integer[],
    p_anonymous boolean[],
    p_limit integer
)
returns integer[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_refused integer[];
begin
    perform from rowcast.node as n where n.id = p_node for key share;
    if not found then
        return null;
    end if;
    with given as materialized (
        select m.channel_name, m.key, m.state::jsonb as state, m.sessions, m.anonymous, m.n,
            octet_length(m.state::jsonb::text) <= p_limit as fits
        from unnest(p_channels, p_keys, p_states, p_sessions, p_anonymous) with ordinality
            as m (channel_name, key, state, sessions, anonymous, n)
        where m.state is not null
    ),

    written as (
        insert into rowcast.presence as p (channel_name, key, node, state, sessions, anonymous)
        select g.channel_name, g.key, p_node, g.state, g.sessions, g.anonymous from given as g where g.fits
        on conflict (channel_name, key, node) do update
        set state = excluded.state, sessions = excluded.sessions, anonymous = excluded.anonymous,
            seq = nextval('rowcast.message_seq'), xid = pg_current_xact_id(), updated_at = clock_timestamp(),
            joined_at = case when p.left_at is null then p.joined_at else excluded.joined_at end, left_at = null
    )

    select coalesce(array_agg(g.n::integer), '{}') into v_refused from given as g where not g.fits;
    if array_position(p_states, null) is not null then
        update rowcast.presence as p
        set left_at = clock_timestamp(), updated_at = clock_timestamp(), sessions = 0,
            seq = nextval('rowcast.message_seq'), xid = pg_current_xact_id()
        from unnest(p_channels, p_keys, p_states) as m (channel_name, key, state)
        where m.state is null and p.channel_name = m.channel_name and p.key = m.key
        and p.node = p_node and p.left_at is null;
    end if;
    return v_refused;
end;
$$;

comment on function rowcast.presence_write(uuid, text[], text[], text[], integer[], boolean[], integer) is
'Writes the state of each (channel, member) of a node, NULL when it left. Returns the positions of states over the limit in bytes, which were not written; NULL, and nothing written, when the node is not known.';

-- What a bridge begins with when the first client of a channel comes; the feed goes on from there.
create or replace function rowcast.presence_read(p_channels text[])
returns table (
    channel_name text,
    key text,
    node uuid,
    seq bigint,
    state text,
    anonymous boolean,
    joined_at timestamptz
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
begin atomic
    select
        p.channel_name,
        p.key,
        p.node,
        p.seq,
        p.state::text,
        p.anonymous,
        p.joined_at
    from rowcast.presence as p
    where p.channel_name = any(p_channels) and p.left_at is null;
end;

comment on function rowcast.presence_read(text[]) is
'All rows of members who are present in these channels, for a bridge.';

-- One row per member; a table to join with, and the same that clients see.
create or replace function rowcast.presence_state(channel text)
returns table (
    key text,
    state jsonb,
    anonymous boolean,
    updated_at timestamptz,
    sessions bigint,
    joined_at timestamptz
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select distinct on (p.key)
        p.key,
        p.state,
        p.anonymous,
        p.updated_at,
        sum(p.sessions) over (partition by p.key) as sessions,
        min(p.joined_at) over (partition by p.key) as joined_at
    from rowcast.presence as p
    where p.channel_name = channel
        and p.left_at is null
        and p.node in (
            select n.id from rowcast.node as n
            where n.expires_at > clock_timestamp()
        )
    order by p.key asc, p.seq desc;
end;

comment on function rowcast.presence_state(text) is
'Who is present in the channel, one row per member: key (the sub, or the session of an anonymous caller), newest state, on how many sessions, since when.';

-- The answer of REST to a caller who may subscribe; the bridge has checked that before.
create or replace function rowcast.channel_presence(p_channel text)
returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select
        json_build_object(
            'channel', p_channel,
            'presence', coalesce(json_agg(
                json_build_object(
                    'key', s.key,
                    'presence', s.state,
                    'anonymous', s.anonymous,
                    'sessions', s.sessions,
                    'joinedAt',
                    to_char(s.joined_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
                ) order by s.joined_at, s.key
            ), '[]')
        )::text
    from rowcast.presence_state(p_channel) as s;
end;

comment on function rowcast.channel_presence(text) is
'The members present in a channel as JSON text, for a caller that the bridge has already allowed to subscribe.';

-- As REST answers it to an administrator.
create or replace function rowcast.admin_presence(p_claims text, p_channel text)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    return rowcast.channel_presence(p_channel);
end;
$$;

comment on function rowcast.admin_presence(text, text) is
'Who is present in a channel as JSON text, for administrators; raises RCA01 for others.';
