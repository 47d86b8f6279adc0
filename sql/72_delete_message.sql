-- Removing a message: from history, from replay, and from the screens of its subscribers.

-- The id carries the time to the millisecond, so the index on time finds the row.
create or replace function rowcast.message_time(p_id uuid)
returns timestamptz
language sql
immutable
parallel safe
return to_timestamp(('x' || substr(replace(p_id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0);

comment on function rowcast.message_time(uuid) is
'The time in a message id, to the millisecond.';

-- Subscribers are told by a signal, which commits together with the removal.
create or replace function rowcast.delete_message(id uuid)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_channel text;
    v_channel_id uuid;
begin
    if substr(delete_message.id::text, 15, 1) is distinct from '7' then
        return false;
    end if;
    delete from public.realtime_messages as m
    where m.id = delete_message.id
    and m.created_at >= rowcast.message_time(delete_message.id) - interval '2 milliseconds'
    and m.created_at < rowcast.message_time(delete_message.id) + interval '2 milliseconds'
    returning m.channel_name, m.channel_id into v_channel, v_channel_id;
    if v_channel is null then
        return false;
    end if;
    insert into rowcast.signal (kind, body)
    values (
        'deleted',
        jsonb_build_object('channel', v_channel, 'channel_id', v_channel_id, 'id', delete_message.id)
    );
    return true;
end;
$$;

comment on function rowcast.delete_message(uuid) is
'Removes a message from history and replay and tells its subscribers; false when there is none of that id.';
