-- What REST reads as a caller: history and channels, under the policies, through the caller login.

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
        raise exception '"%" is no id of a channel', left(p_id, 100)
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
