-- Publishing from SQL. publish() runs with the caller's rights: policies decide.
-- publish_as_system() is for trusted code, and only for roles granted rowcast_publisher.

-- Inside a trigger a refusal rolls back the user's own statement, so it must say which two ways
-- there are. The exception block is a subtransaction, therefore only there. And the trigger may
-- be one of realtime_messages, whose own publisher still waits for its id.
--
-- A trigger of the team may drop the row after it was stamped. So an id is answered for a row that
-- was inserted, and where a key was given, because then it may be the first message's.
create or replace function rowcast.publish(
    channel text,
    event text,
    payload jsonb default '{}',
    type text default 'message',
    id uuid default null,
    missing_ok boolean default false
)
returns uuid
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_outer text;
    v_message text;
    v_id uuid;
begin
    if publish.missing_ok and rowcast.is_name(publish.channel)
        and rowcast.open_channel(publish.channel) is null
    then
        return null;
    end if;
    if pg_trigger_depth() = 0 then
        perform set_config('rowcast.message_id', 'wanted', true);
        insert into public.realtime_messages (type, channel_name, event_name, payload, publish_key)
        values (publish.type, publish.channel, publish.event, publish.payload, publish.id);
        return case when found or publish.id is not null then nullif(current_setting('rowcast.message_id', true), 'wanted')::uuid end;
    else
        v_outer := coalesce(current_setting('rowcast.message_id', true), '');
        perform set_config('rowcast.message_id', 'wanted', true);
        begin
            insert into public.realtime_messages (type, channel_name, event_name, payload, publish_key)
            values (publish.type, publish.channel, publish.event, publish.payload, publish.id);
        exception when insufficient_privilege then
            get stacked diagnostics v_message = message_text;
            raise exception '%', v_message
            using errcode = '42501',
            hint = 'This trigger publishes as the end user, whom the policies of realtime_messages refuse. Let trusted code publish with rowcast.publish_as_system() in a SECURITY DEFINER function of a role granted rowcast_publisher, or use rowcast.attach().';
        end;
        if found or publish.id is not null then
            v_id := nullif(current_setting('rowcast.message_id', true), 'wanted')::uuid;
        end if;
        perform set_config('rowcast.message_id', v_outer, true);
        return v_id;
    end if;
end;
$$;

comment on function rowcast.publish(text, text, jsonb, text, uuid, boolean) is
'Publishes one message in the caller''s transaction under the policies; returns its id. With an id (a key of the caller''s choice) a repeat within 24 hours returns the first message. Raises RCN01, RCN02, RCM01 to RCM05, 42501; missing_ok returns NULL where no enabled channel matches.';

-- One statement for many messages: 100 in one are about as fast as four alone.
create or replace function rowcast.publish_many(messages jsonb)
returns integer
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_count integer;
begin
    if jsonb_typeof(publish_many.messages) is distinct from 'array' then
        raise exception 'publish_many needs a JSON array of messages'
        using errcode = '22023',
        hint = 'Each element: {"channel": …, "event": …, "payload": {…}, "type": "message" | "broadcast", "id": …}; the last three may be left out.';
    end if;
    insert into public.realtime_messages (type, channel_name, event_name, payload, publish_key)
    select coalesce(m.value ->> 'type', 'message'), m.value ->> 'channel', m.value ->> 'event',
        coalesce(m.value -> 'payload', '{}'), (m.value ->> 'id')::uuid
    from jsonb_array_elements(publish_many.messages) with ordinality as m (value, n)
    order by m.n;
    get diagnostics v_count = row_count;
    return v_count;
end;
$$;

comment on function rowcast.publish_many(jsonb) is
'Publishes an array of {channel, event, payload, type, id} in one statement and in its order, under the policies; returns how many were new. All or none.';

-- Definer, so that a trigger of trusted code is not refused by a policy made for end users.
create or replace function rowcast.publish_as_system(
    channel text,
    event text,
    payload jsonb default '{}',
    type text default 'message',
    id uuid default null,
    missing_ok boolean default false
)
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_outer constant text := coalesce(current_setting('rowcast.message_id', true), '');
    v_id uuid;
begin
    if publish_as_system.missing_ok and rowcast.is_name(publish_as_system.channel)
        and rowcast.open_channel(publish_as_system.channel) is null
    then
        return null;
    end if;
    perform set_config('rowcast.message_id', 'wanted', true);
    insert into public.realtime_messages (type, channel_name, event_name, payload, publish_key)
    values (
        publish_as_system.type, publish_as_system.channel, publish_as_system.event,
        publish_as_system.payload, publish_as_system.id
    );
    if found or publish_as_system.id is not null then
        v_id := nullif(current_setting('rowcast.message_id', true), 'wanted')::uuid;
    end if;
    if pg_trigger_depth() > 0 then
        perform set_config('rowcast.message_id', v_outer, true);
    end if;
    return v_id;
end;
$$;

comment on function rowcast.publish_as_system(text, text, jsonb, text, uuid, boolean) is
'Like publish(), but as the system: no policy is asked and the sender is stamped `system`. Executable by rowcast_publisher.';
