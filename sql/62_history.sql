-- History: pages of durable messages, newest first, for administrators and, under the policies of
-- SELECT, for callers; and the channels that a caller may see. What is read as a caller goes
-- through the caller login.

-- Finds a page with the rights of the role that runs it. A page continues after the last row of the
-- one before, by the order of an index, so what arrives meanwhile moves nothing:
--
-- * of a channel by seq, through (channel_id, seq);
-- * otherwise by xid and seq, through (channel_name, xid) or (xid). There rows up to the floor
--   come last: a restore brought them, and their xids belong to another cluster.
--
-- The text has only the conditions that were asked for, because `$1 is null or …` uses no index.
-- A leaf that was never analyzed looks as if it held a handful of messages, and would be read and
-- sorted whole; so the order has to come from an index, but where both ends of a time are given.
create or replace function rowcast.history(
    p_channel_id uuid,
    p_channel_name text,
    p_event_name text,
    p_sender_id text,
    p_since timestamptz,
    p_until timestamptz,
    p_limit integer,
    p_offset integer,
    p_xid xid8,
    p_seq bigint,
    p_floor bigint
)
returns public.realtime_messages[]
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
declare
    v_by_seq constant boolean := p_channel_id is not null and p_channel_name is null;
    v_base constant text := 'select m.* from public.realtime_messages as m where m.type = ''message'''
        || case when p_channel_id is null then '' else ' and m.channel_id = $1' end
        || case when p_channel_name is null then '' else ' and m.channel_name = $2' end
        || case when p_event_name is null then '' else ' and m.event_name = $3' end
        || case when p_sender_id is null then '' else ' and m.sender_id = $4' end
        || case when p_since is null then '' else ' and m.created_at >= $5' end
        || case when p_until is null then '' else ' and m.created_at < $6' end;
    v_after constant text := case when p_seq is null then '' else ' and (m.xid, m.seq) < ($9, $10)' end;
    v_order constant text := ' order by m.xid desc, m.seq desc limit $7 + $8';
    v_text text;
    v_page public.realtime_messages[];
begin
    if p_since is not null and p_until is not null then
        perform set_config('enable_bitmapscan', 'on', true);
        perform set_config('enable_sort', 'on', true);
    end if;
    if v_by_seq then
        v_text := v_base || case when p_seq is null then '' else ' and m.seq < $10' end
            || ' order by m.seq desc limit $7 + $8';
    elsif p_floor = 0 then
        v_text := v_base || v_after || v_order;
    elsif p_seq <= p_floor then
        v_text := v_base || ' and m.seq <= $11' || v_after || v_order;
    else
        v_text := 'select m.* from ((' || v_base || ' and m.seq > $11' || v_after || v_order
            || ') union all (' || v_base || ' and m.seq <= $11' || v_order
            || ')) as m order by m.seq > $11 desc, m.xid desc, m.seq desc limit $7 + $8';
    end if;
    execute 'select array(select m from (' || v_text || ') as m offset $8)' into v_page
    using p_channel_id, p_channel_name, p_event_name, p_sender_id, p_since, p_until, p_limit, p_offset,
        p_xid, p_seq, p_floor;
    return v_page;
end;
$$;

comment on function rowcast.history(uuid, text, text, text, timestamptz, timestamptz, integer, integer, xid8, bigint, bigint) is
'A page of durable messages that the current role may read, newest first, after (p_xid, p_seq) when given; p_floor is that of rowcast.origin.';

-- Definer, because the counts are those of the machinery, and whether a channel still exists is
-- no question to the policies: a message of a channel that was deleted has none.
--
-- Numbered, not WITH ORDINALITY: pg_dump spells that so that it cannot be restored once a team has
-- added a column to messages.
create or replace function rowcast.messages_json(p_messages public.realtime_messages[])
returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select
        coalesce(
            json_agg(
                json_build_object(
                    'id', m.id,
                    'eventName', m.event_name,
                    'channelId', c.id,
                    'channelName', m.channel_name,
                    'payload', m.payload,
                    'senderType', m.sender_type,
                    'senderId', m.sender_id,
                    'wsAudienceCount', m.ws_audience_count,
                    'whAudienceCount', m.wh_audience_count,
                    'whDeliveredCount', (
                        select count(*) from rowcast.delivery as d
                        where d.message_seq = m.seq and d.state = 'delivered'
                    ),
                    'createdAt', rowcast.iso_time(m.created_at)
                )
                order by m.ordinality
            ), '[]'
        )::text
    from (
        select
            u.*,
            row_number() over () as ordinality
        from unnest(p_messages) as u
    ) as m
    left join public.realtime_channels as c on m.channel_id = c.id;
end;

comment on function rowcast.messages_json(public.realtime_messages[]) is
'Messages as REST shows them, in the order given, as JSON text.';

-- What goes out at once is bounded in bytes, too: a thousand messages may have 256 MB of payload.
create or replace function rowcast.history_page(
    p_messages public.realtime_messages[],
    p_limit integer,
    out body text,
    out last_xid text,
    out last_seq bigint
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_fit integer;
begin
    select greatest(1, count(*) filter (where m.bytes <= (select s.replay_bytes from rowcast.settings as s)))
    into v_fit
    from (
        select sum(octet_length(u.payload::text)) over (order by u.ordinality) as bytes
        from unnest(p_messages) with ordinality as u
    ) as m;
    body := rowcast.messages_json(p_messages[1:v_fit]);
    if cardinality(p_messages) = p_limit or cardinality(p_messages) > v_fit then
        last_xid := p_messages[v_fit].xid::text;
        last_seq := p_messages[v_fit].seq;
    end if;
end;
$$;

comment on function rowcast.history_page(public.realtime_messages[], integer) is
'As many of the messages as fit into replay_bytes as JSON text, and after what the next page begins when there may be one.';

-- The channel that a UUID or its first eight or more digits name, among those that the current
-- role may see. A whole UUID is taken as it is: its channel may have been deleted.
create or replace function rowcast.channel_by_id(p_id text)
returns uuid
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_digits constant text := lower(replace(p_id, '-', ''));
    v_ids uuid[];
begin
    if p_id is null or v_digits ~ '^[0-9a-f]{32}$' then
        return v_digits::uuid;
    elsif v_digits !~ '^[0-9a-f]{8,31}$' then
        raise exception '"%" is not a channel id', left(p_id, 100)
        using errcode = 'RCC01', hint = 'Give the whole id, or at least its first 8 digits.';
    end if;
    v_ids := array(
        select c.id from public.realtime_channels as c
        where c.id between rpad(v_digits, 32, '0')::uuid and rpad(v_digits, 32, 'f')::uuid limit 2
    );
    if cardinality(v_ids) > 1 then
        raise exception 'the ids of several channels begin with "%"', p_id
        using errcode = 'RCC02', hint = 'Give more digits of the id.';
    elsif cardinality(v_ids) = 0 then
        raise exception 'there is no channel whose id begins with "%"', p_id
        using errcode = 'RCC03', hint = 'List the channels to see their ids.';
    end if;
    return v_ids[1];
end;
$$;

comment on function rowcast.channel_by_id(text) is
'The channel id that the text is or uniquely begins; raises RCC01, RCC02, RCC03.';

-- A page of history as the caller. What the policies let through is rendered with the rights of
-- the session again. may_subscribe(), which recipes ask for every row, remembers its last answer
-- here: nothing changes in a read-only transaction of one caller.
create or replace function rowcast.messages_as(
    p_role text,
    p_claims text,
    p_channel text,
    p_channel_name text,
    p_event_name text,
    p_sender_id text,
    p_since timestamptz,
    p_until timestamptz,
    p_limit integer,
    p_offset integer,
    p_xid text,
    p_seq bigint,
    p_floor bigint,
    out body text,
    out last_xid text,
    out last_seq bigint
)
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_page public.realtime_messages[];
begin
    perform set_config('transaction_read_only', 'on', true);
    perform rowcast.impersonate(p_role, p_claims, p_channel_name);
    perform set_config('rowcast.asked', 'f:', true);
    v_page := rowcast.history(
        rowcast.channel_by_id(p_channel), p_channel_name, p_event_name, p_sender_id, p_since, p_until,
        p_limit, p_offset, p_xid::xid8, p_seq, p_floor
    );
    perform set_config('role', 'none', false);
    select p.body, p.last_xid, p.last_seq into body, last_xid, last_seq
    from rowcast.history_page(v_page, p_limit) as p;
end;
$$;

comment on function rowcast.messages_as(text, text, text, text, text, text, timestamptz, timestamptz, integer, integer, text, bigint, bigint) is
'A page of history under the caller''s SELECT policies as JSON text, and after what the next page begins when there may be one.';

-- The channels that the caller can see, newest first. No name is being asked for here, so a policy
-- that depends on one shows nothing: a list says what is open, not what might be.
create or replace function rowcast.channels_as(
    p_role text, p_claims text, p_id uuid, p_limit integer, p_offset integer, p_full boolean
)
returns text
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_rows json[];
begin
    perform set_config('transaction_read_only', 'on', true);
    perform rowcast.impersonate(p_role, p_claims, null);
    v_rows := array(
        select rowcast.channel_json(
            c.id, c.pattern, c.description, null, c.enabled, c.is_public, c.owner_id, c.wildcard,
            c.created_at, c.updated_at, p_full, false
        )
        from public.realtime_channels as c
        where p_id is null or c.id = p_id
        order by c.created_at desc, c.id desc limit p_limit offset p_offset
    );
    perform set_config('role', 'none', false);
    if p_id is not null then
        return v_rows[1]::text;
    end if;
    return array_to_json(v_rows)::text;
end;
$$;

comment on function rowcast.channels_as(text, text, uuid, integer, integer, boolean) is
'The channels that the caller can see, or the one of an id (NULL when there is none), as JSON text without webhook addresses.';

-- The newest messages of a channel under the caller's SELECT policies, no newer than the
-- snapshot at which the bridge went live: what is newer comes live. Rows up to the floor came
-- with a restore; their xids belong to another cluster and are always older.
create or replace function rowcast.history_as(
    p_role text, p_claims text, p_channel text, p_limit integer, p_until text, p_floor bigint
)
returns table (
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
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_row uuid;
begin
    perform set_config('transaction_read_only', 'on', true);
    if position('*' in p_channel) > 0 then
        v_row := (select s.channel_id from rowcast.subscribable(p_channel) as s);
    end if;
    perform rowcast.impersonate(p_role, p_claims, p_channel);
    return query
    select h.seq, h.id, h.type, h.channel_name, h.event_name, h.payload::text,
        h.sender_type, h.sender_id, h.created_at
    from (
        select b.*
        from (
            (
                select m.* from public.realtime_messages as m
                where m.channel_name = p_channel and m.type = 'message' and m.seq > p_floor
                and pg_visible_in_snapshot(m.xid, p_until::pg_snapshot)
                order by m.xid desc, m.seq desc limit p_limit
            )
            union all
            (
                select m.* from public.realtime_messages as m
                where p_floor > 0 and m.channel_name = p_channel and m.type = 'message' and m.seq <= p_floor
                order by m.xid desc, m.seq desc limit p_limit
            )
            union all
            (
                -- A pattern: all that its row governed, by the index on the row.
                select m.* from public.realtime_messages as m
                where m.channel_id = v_row and m.type = 'message'
                and (m.seq <= p_floor or pg_visible_in_snapshot(m.xid, p_until::pg_snapshot))
                order by m.seq desc limit p_limit
            )
        ) as b
        order by b.seq > p_floor desc, b.xid desc, b.seq desc limit p_limit
    ) as h
    order by h.seq;
    perform set_config('role', 'none', false);
end;
$$;

comment on function rowcast.history_as(text, text, text, integer, text, bigint) is
'The newest durable messages of a channel or pattern that a caller may read, oldest first, visible in p_until or from before a restore (seq up to p_floor).';
