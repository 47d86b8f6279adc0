-- What no writer may choose. Fires for every row on every leaf, whoever inserts.

-- Remembers the role whose statement this is. It must be a function of its own: in the definer
-- function below current_user is already the owner, and the setting `role` is no substitute,
-- because it stays the end user's inside somebody else's definer function.
create or replace function rowcast.messages_caller()
returns trigger
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    new.sender_type := current_user;
    return new;
end;
$$;

comment on function rowcast.messages_caller() is
'Trigger of realtime_messages: hands the current role to messages_stamp in sender_type.';

-- A time-ordered UUID (version 7 of RFC 9562: 48 bits of milliseconds, 12 bits of their
-- fraction, 62 random bits), so that a message is found by its id through the index on time.
create or replace function rowcast.message_id(p_created_at timestamptz)
returns uuid
language sql
volatile
parallel safe
return (
    lpad(to_hex(
        (((date_part('epoch', p_created_at) * 1000000)::bigint / 1000) << 16)
        | x'7000'::bigint
        | (((date_part('epoch', p_created_at) * 1000000)::bigint % 1000) * 4096 / 1000)
    ), 16, '0')
    || substr(gen_random_uuid()::text, 20)
)::uuid;

comment on function rowcast.message_id(timestamptz) is
'A new UUID version 7 for a message created at that time.';

-- Stamps xid, seq, id, sender, channel and counts, and refuses what cannot be delivered.
--
-- The xid is taken first, before the clock is tested: a leaf is closed at an xid taken a minute
-- after its range, and whoever passed the clock test must have an older one. created_at itself
-- is not stamped, because a BEFORE trigger cannot move a row to another leaf.
create or replace function rowcast.messages_stamp()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_limit integer;
    v_callers text [];
    v_shapes text [];
    v_asked constant text := current_setting('rowcast.channel_name', true);
    v_first uuid;
    v_size bigint;
begin
    new.xid := pg_current_xact_id();
    -- Compared, not subtracted: before 17 the difference to infinity is an error of its own.
    if new.created_at not between clock_timestamp() - interval '1 minute' and clock_timestamp() + interval '1 minute' then
        raise exception 'created_at % is more than a minute off the database clock', new.created_at
        using errcode = 'RCM04', hint = 'Leave created_at out: it defaults to the time of the insert.';
    end if;
    if new.type is null or new.type not in ('message', 'broadcast') then
        raise exception 'message type "%" does not exist', left(new.type, 100)
        using errcode = 'RCM02', hint = 'Use "message" (durable, in history) or "broadcast" (ephemeral).';
    end if;
    if new.event_name is null or octet_length(new.event_name) not between 1 and 255 or new.event_name ~ '[\u0001-\u001F\u007F-\u009F]' then
        raise exception 'event name "%" is not valid', left(new.event_name, 300)
        using errcode = 'RCM03', hint = 'Use 1 to 255 bytes without control characters.';
    end if;
    if rowcast.is_name(new.channel_name) is not true then
        raise exception 'channel name "%" is not valid', left(new.channel_name, 300)
        using errcode = 'RCN02',
        hint = 'Use up to 16 non-empty segments joined by ":", at most 255 bytes, without blanks and "*".';
    end if;
    select s.payload_limit, s.caller_roles, s.shapes into v_limit, v_callers, v_shapes
    from rowcast.settings as s;
    -- Measured as text, not as stored: eight bytes of 1e131000 are 131 kB on the wire.
    v_size := octet_length(new.payload::text);
    if v_size > v_limit then
        raise exception 'payload of % bytes for channel "%" is over the limit of % bytes',
            v_size, new.channel_name, v_limit
        using errcode = 'RCM01', hint = 'Store the data and publish its id, or raise payload_limit in rowcast.settings.';
    end if;

    new.channel_id := rowcast.governing(new.channel_name, v_shapes, false);
    if new.channel_id is null then
        raise exception 'there is no enabled channel for "%"', new.channel_name
        using errcode = 'RCN01',
        hint = 'Insert a matching pattern into realtime_channels, enable it, or publish with missing_ok => true.';
    end if;

    if new.sender_type = any (v_callers) then
        -- The policies were asked for one name, and a caller's other rows must not travel along
        -- with it. What the system publishes meanwhile, in a trigger, is no affair of policies.
        if v_asked <> '' and v_asked <> new.channel_name then
            raise exception 'channel "%" is not the channel "%" of this publish', new.channel_name, v_asked
            using errcode = 'RCM05', hint = 'Publish to each channel with a statement of its own.';
        end if;
        new.sender_type := 'user';
        new.sender_id := rowcast.user_id();
    else
        new.sender_type := 'system';
        new.sender_id := null;
    end if;
    new.seq := nextval('rowcast.message_seq');
    new.id := rowcast.message_id(new.created_at);
    new.ws_audience_count := 0;
    new.wh_audience_count := 0;

    if new.publish_key is not null then
        insert into rowcast.publish_key (sender, key, message_id, seq)
        values (new.sender_type || ':' || coalesce(new.sender_id, ''), new.publish_key, new.id, new.seq)
        on conflict do nothing;
        if not found then
            select k.message_id into v_first
            from rowcast.publish_key as k
            where k.sender = new.sender_type || ':' || coalesce(new.sender_id, '')
            and k.key = new.publish_key;
            perform set_config('rowcast.message_id', v_first::text, true);
            return null;
        end if;
    end if;
    -- RETURNING would need a SELECT policy, so publish() reads the id from here.
    perform set_config('rowcast.message_id', new.id::text, true);
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
