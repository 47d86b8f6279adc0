-- Deliveries: one row per message and endpoint, written in the publisher's transaction.

-- Asked only where a channel has addresses: the stamping trigger calls it from a CASE on
-- webhook_urls, so a channel without any pays only for a null test. A count kept in the channel's
-- row would have to be written whenever an endpoint is disabled, and every such change of a channel
-- makes bridges check its subscribers again. Volatile, so that within a transaction each message
-- counts what stands at its moment; plpgsql, because an inlined query is set up by every publish.
create or replace function rowcast.webhook_count(p_channel_id uuid)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select count(*) from rowcast.endpoint as e where e.channel_id = p_channel_id and e.state = 'active'
    );
end;
$$;

comment on function rowcast.webhook_count(uuid) is
'How many endpoints of a channel are active.';

-- AFTER the row, because a BEFORE trigger's rows survive an ON CONFLICT DO NOTHING. For the row
-- and not the statement, because WHEN is judged before anything is queued: a message without
-- webhooks costs a comparison, while a transition table keeps a copy of every message. The
-- limit is what was stamped: an endpoint that came in between begins with the next message, so
-- a message never has more deliveries than its audience.
create or replace function rowcast.messages_enqueue()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into rowcast.delivery (message_seq, message_id, message_at, channel_id, endpoint_id)
    select new.seq, new.id, new.created_at, new.channel_id, e.id
    from rowcast.endpoint as e
    where e.channel_id = new.channel_id and e.state = 'active'
    order by e.created_at, e.id
    limit new.wh_audience_count;
    return null;
end;
$$;

comment on function rowcast.messages_enqueue() is
'Trigger of realtime_messages: writes one delivery for each active endpoint of the channel.';

create or replace trigger realtime_messages_50_enqueue
after insert on public.realtime_messages
for each row when (new.wh_audience_count > 0)
execute function rowcast.messages_enqueue();

-- The same bytes at every attempt, made of the message each time: a copy in each delivery would
-- double what is stored. Pasted together, because jsonb would sort the keys.
create or replace function rowcast.webhook_body(
    p_bare boolean,
    p_event text,
    p_channel text,
    p_channel_id uuid,
    p_payload jsonb,
    p_sender text,
    p_at timestamptz
)
returns text
language sql
stable
parallel safe
return case
    when p_bare then p_payload::text
    else '{"event":' || to_json(p_event)::text || ',"channelName":' || to_json(p_channel)::text
        || ',"channelId":"' || p_channel_id::text || '","payload":' || p_payload::text
        || ',"senderId":' || coalesce(to_json(p_sender)::text, 'null')
        || ',"timestamp":"' || rowcast.iso_time(p_at) || '"}'
end;

comment on function rowcast.webhook_body(boolean, text, text, uuid, jsonb, text, timestamptz) is
'The body of a webhook request: the envelope, or the payload alone.';

-- Receivers made for InsForge expect the payload alone, and the rest in headers.
create or replace function rowcast.wants_bare_body(p_options jsonb)
returns boolean
language sql
immutable
parallel safe
return coalesce(p_options ->> 'webhookBody' = 'payload', false);

comment on function rowcast.wants_bare_body(jsonb) is
'Whether the options of a channel ask for webhooks with the payload alone as body.';

-- A leaf is about to go, and the schedule of an attempt may reach beyond the retention.
create or replace function rowcast.copy_bodies_of_leaf(p_leaf text)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format(
        'update rowcast.delivery as d set event_name = m.event_name, channel_name = m.channel_name,'
        ' body = rowcast.webhook_body(rowcast.wants_bare_body(c.options), m.event_name, m.channel_name,'
        ' m.channel_id, m.payload, m.sender_id, m.created_at)'
        ' from rowcast.%I as m join public.realtime_channels as c on c.id = m.channel_id'
        ' where d.next_at is not null and d.body is null'
        ' and m.channel_id = d.channel_id and m.seq = d.message_seq and m.id = d.message_id', p_leaf
    );
end;
$$;

comment on function rowcast.copy_bodies_of_leaf(text) is
'Copies what is still to be sent from a leaf that expires into its deliveries.';
