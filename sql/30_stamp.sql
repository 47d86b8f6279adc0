-- Stamps the columns that no writer may choose. Fires for every row on every leaf, for every role.

-- Remembers the role whose statement this is. It must be a function of its own: in the definer
-- function below current_user is already the owner, and the setting `role` cannot replace it,
-- because it stays the end user's inside a definer function of another role.
--
-- No search_path: nothing in here is looked up, and to set one costs more than the work.
create or replace function rowcast.messages_caller()
returns trigger
language plpgsql
volatile
security invoker
as $$
begin
    new.sender_type := current_user;
    return new;
end;
$$;

comment on function rowcast.messages_caller() is
'Trigger of realtime_messages: hands the current role to messages_stamp in sender_type.';

-- A UUID version 7 (RFC 9562: 48 bits of milliseconds, here 12 bits of the sequence, then 53 random
-- bits), so that ids are in order of time and a message is found by its id through the index on
-- time. random(), because an id is not a secret, and gen_random_uuid() opens /dev/urandom for every
-- message where Postgres is built without OpenSSL: a tenth of what a publish costs.
create or replace function rowcast.message_id(p_created_at timestamptz, p_seq bigint)
returns uuid
language sql
volatile
parallel restricted
return encode(
    int8send(((date_part('epoch', p_created_at) * 1000)::bigint << 16) | 28672 | (p_seq & 4095))
    || int8send((random() * 4611686018427387904)::bigint | '-9223372036854775808'::bigint),
    'hex'
)::uuid;

comment on function rowcast.message_id(timestamptz, bigint) is
'A new UUID version 7 for a message created at that time with that sequence number.';

-- Says in words why a message cannot be published. Apart, because the trigger below finds out in
-- one expression that something is wrong, and what it is does not concern the others.
create or replace function rowcast.messages_refuse(
    p_type text, p_channel text, p_event text, p_payload jsonb, p_created_at timestamptz
)
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Compared, not subtracted: before 17 the difference to infinity is an error of its own.
    if p_created_at is null or p_created_at not between clock_timestamp() - interval '1 minute' and clock_timestamp() + interval '1 minute' then
        raise exception 'created_at % is more than a minute off the database clock', p_created_at
        using errcode = 'RCM04', hint = 'Leave created_at out: it defaults to the time of the insert.';
    elsif p_type is null or p_type not in ('message', 'broadcast') then
        raise exception 'message type "%" does not exist', left(p_type, 100)
        using errcode = 'RCM02', hint = 'Use "message" (durable, in history) or "broadcast" (ephemeral).';
    elsif p_event is null or octet_length(p_event) not between 1 and 255 or p_event ~ '[\u0001-\u001F\u007F-\u009F]' then
        raise exception 'event name "%" is not valid', left(p_event, 300)
        using errcode = 'RCM03', hint = 'Use 1 to 255 bytes without control characters.';
    elsif rowcast.is_name(p_channel) is not true then
        raise exception 'channel name "%" is not valid', left(p_channel, 300)
        using errcode = 'RCN02',
        hint = 'Use up to 16 non-empty segments joined by ":", at most 255 bytes, without blanks and "*".';
    elsif p_payload is null then
        raise exception 'payload for channel "%" is NULL', p_channel
        using errcode = 'RCM01', hint = 'Leave the payload out for {}, or publish the JSON value null.';
    elsif octet_length(p_payload::text) > rowcast.payload_limit() then
        raise exception 'payload of % bytes for channel "%" is over the limit of % bytes',
            octet_length(p_payload::text), p_channel, rowcast.payload_limit()
        using errcode = 'RCM01', hint = 'Store the data and publish its id, or raise payload_limit in rowcast.settings.';
    end if;
    raise exception 'there is no enabled channel for "%"', p_channel
    using errcode = 'RCN01',
    hint = 'Insert a matching pattern into realtime_channels, enable it, or publish with missing_ok => true.';
end;
$$;

comment on function rowcast.messages_refuse(text, text, text, jsonb, timestamptz) is
'Raises RCM01 to RCM04, RCN01 or RCN02 for a message that messages_stamp cannot accept.';

-- Stamps xid, seq, id, sender, channel and counts, and refuses what cannot be delivered.
--
-- This is the hot path of every publisher. A query is set up for every row with all it computes,
-- and an expression once for every transaction: so queries fetch columns, and constants with them.
--
-- The xid is taken first, before the clock is tested: a leaf is closed at an xid taken a minute
-- after its range, and a writer that passed the clock test must have an older one. created_at
-- itself is not stamped, because a BEFORE trigger cannot move a row to another leaf.
--
-- The audience is one row that bridges keep up to date (sql/55_audience.sql), and counts as long as
-- one of them is alive: the dead are cleared away by the living, so without any it would stay.
--
-- The payload is measured as text, not as stored: eight bytes of 1e131000 are 131 kB on the wire.
create or replace function rowcast.messages_stamp()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_segments constant text[] := string_to_array(new.channel_name, ':');
    v_template text;
    -- A probe that finds nothing leaves NULLs in all it fills.
    v_enabled boolean;
    v_webhooks boolean;
    v_pattern text;
    v_sessions integer;
    v_asked text;
    v_first uuid;
begin
    new.xid := pg_current_xact_id();
    new.seq := nextval('rowcast.message_seq');
    foreach v_template in array rowcast.templates(cardinality(v_segments)) loop
        select c.id, c.enabled, c.webhook_urls is not null, case when c.wildcard then c.pattern end, 0, 0, null
        into new.channel_id, v_enabled, v_webhooks, v_pattern, new.ws_audience_count, new.wh_audience_count, new.sender_id
        from public.realtime_channels as c
        where c.pattern = format(v_template, variadic v_segments);
        exit when found;
    end loop;
    if (
        v_enabled
        and new.type in ('message', 'broadcast')
        and new.created_at between clock_timestamp() - interval '1 minute' and clock_timestamp() + interval '1 minute'
        and octet_length(new.event_name) between 1 and 255
        and new.event_name !~ '[\u0001-\u001F\u007F-\u009F]'
        and rowcast.is_name(new.channel_name)
        and octet_length(new.payload::text) <= rowcast.payload_limit()
    ) is not true then
        perform rowcast.messages_refuse(new.type, new.channel_name, new.event_name, new.payload, new.created_at);
    end if;
    new.id := rowcast.message_id(new.created_at, new.seq);

    if pg_sequence_last_value('rowcast.alive_until'::regclass) > date_part('epoch', new.created_at) * 1000 then
        select a.sessions into v_sessions from rowcast.audience_total as a where a.channel_name = new.channel_name;
        new.ws_audience_count := coalesce(v_sessions, 0);
        -- Subscribers to the pattern itself receive this, too.
        if v_pattern is not null then
            select a.sessions into v_sessions from rowcast.audience_total as a where a.channel_name = v_pattern;
            new.ws_audience_count := new.ws_audience_count + coalesce(v_sessions, 0);
        end if;
    end if;
    if v_webhooks and new.type = 'message' then
        new.wh_audience_count := rowcast.webhook_count(new.channel_id);
    end if;

    if new.sender_type = any (rowcast.caller_roles()) then
        new.sender_type := 'user';
        -- The policies were asked for one name, and a caller's other rows must not travel along
        -- with it. Policies do not apply to what the system publishes meanwhile in a trigger.
        v_asked := current_setting('rowcast.channel_name', true);
        if v_asked <> '' and v_asked <> new.channel_name then
            raise exception 'channel "%" is not the channel "%" of this publish', new.channel_name, v_asked
            using errcode = 'RCM05', hint = 'Publish to each channel with a statement of its own.';
        end if;
        new.sender_id := rowcast.user_id();
    else
        new.sender_type := 'system';
    end if;

    if new.publish_key is not null then
        insert into rowcast.publish_key (sender, key, message_id, seq)
        values (new.sender_type || ':' || coalesce(new.sender_id, ''), new.publish_key, new.id, new.seq)
        on conflict do nothing;
        if not found then
            select k.message_id into v_first
            from rowcast.publish_key as k
            where k.sender = new.sender_type || ':' || coalesce(new.sender_id, '')
            and k.key = new.publish_key;
        end if;
    end if;
    -- RETURNING would need a SELECT policy, so publish() asks for the id here.
    if current_setting('rowcast.message_id', true) = 'wanted' then
        perform set_config('rowcast.message_id', coalesce(v_first, new.id)::text, true);
    end if;
    if v_first is not null then
        return null;
    end if;
    return new;
end;
$$;

comment on function rowcast.messages_stamp() is
'Trigger of realtime_messages: stamps what no writer may choose, and refuses with RCN01, RCN02, RCM01 to RCM05.';

create or replace trigger realtime_messages_10_caller
before insert on public.realtime_messages
for each row execute function rowcast.messages_caller();

create or replace trigger realtime_messages_20_stamp
before insert on public.realtime_messages
for each row execute function rowcast.messages_stamp();
