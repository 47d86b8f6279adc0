-- History: pages of durable messages, newest first, for administrators and, under the policies of
-- SELECT, for callers.

-- Finds a page with the rights of whoever runs it. A page continues after the last row of the one
-- before, by the order of an index, so what arrives meanwhile moves nothing:
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
