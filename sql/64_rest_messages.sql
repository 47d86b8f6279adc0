-- Messages, for administrators: all of history, statistics, publishing, deleting.

-- Newest first, whatever the policies say.
create or replace function rowcast.admin_messages(
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
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_page public.realtime_messages[];
begin
    perform rowcast.require_admin(p_claims);
    v_page := rowcast.history(
        rowcast.channel_by_id(p_channel), p_channel_name, p_event_name, p_sender_id, p_since, p_until,
        p_limit, p_offset, p_xid::xid8, p_seq, p_floor
    );
    select p.body, p.last_xid, p.last_seq into body, last_xid, last_seq
    from rowcast.history_page(v_page, p_limit) as p;
end;
$$;

comment on function rowcast.admin_messages(text, text, text, text, text, timestamptz, timestamptz, integer, integer, text, bigint, bigint) is
'A page of all history as JSON text, and after what the next page begins when there may be one. Raises RCA01, RCC01 to RCC03.';

-- Of everything, of one channel, or of one name.
create or replace function rowcast.admin_statistics(
    p_claims text, p_channel text, p_channel_name text, p_since timestamptz
)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    return rowcast.statistics(rowcast.channel_by_id(p_channel), p_channel_name, p_since);
end;
$$;

comment on function rowcast.admin_statistics(text, text, text, timestamptz) is
'Statistics of all messages, of a channel or of a name, as JSON text. Raises RCA01, RCC01 to RCC03.';

-- The bridge asks this for a caller who may subscribe to the name; it has checked that before.
create or replace function rowcast.channel_statistics(p_channel_name text, p_since timestamptz)
returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
return rowcast.statistics(null, p_channel_name, p_since);

comment on function rowcast.channel_statistics(text, timestamptz) is
'Statistics of one name as JSON text, for a bridge that knows that its caller may subscribe.';

-- All or none, stamped `system`: an administrator speaks for the application.
create or replace function rowcast.admin_publish(
    p_claims text,
    p_channels text[],
    p_types text[],
    p_events text[],
    p_payloads text[],
    p_keys uuid[]
)
returns uuid[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_ids uuid[] := '{}';
begin
    perform rowcast.require_admin(p_claims);
    for i in 1..cardinality(p_channels) loop
        v_ids := v_ids || rowcast.publish_as_system(
            p_channels[i], p_events[i], p_payloads[i]::jsonb, p_types[i], p_keys[i]
        );
    end loop;
    return v_ids;
end;
$$;

comment on function rowcast.admin_publish(text, text[], text[], text[], text[], uuid[]) is
'Publishes each message as the system, all or none; returns the message ids. Raises RCA01 and what publish() raises.';

-- From history, replay and screens.
create or replace function rowcast.admin_delete_message(p_claims text, p_id uuid)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    return rowcast.delete_message(p_id);
end;
$$;

comment on function rowcast.admin_delete_message(text, uuid) is
'Deletes a message and tells its subscribers; false when there is none of that id. Raises RCA01.';
