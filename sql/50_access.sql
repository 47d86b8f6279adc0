-- Access checks: the questions that bridges ask, and the one that policies ask.

-- May the caller listen to this name? The name is resolved first, with the owner's eyes, then
-- row level security is asked for that one row with the caller's. Asking "is any visible row a
-- match" would let a lax `chat:*` open what `chat:secret` closes. A pattern is its own row.
--
-- A page of history asks for each of its rows. Where messages_as() says that nothing changes
-- meanwhile, the last answer is remembered; only on the bridge's own login, because in any other
-- session the caller could set what is remembered.
create or replace function rowcast.may_subscribe(p_name text)
returns boolean
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_before constant text := coalesce(current_setting('rowcast.channel_name', true), '');
    v_asked constant text := case
        when session_user = 'rowcast_caller' then nullif(current_setting('rowcast.asked', true), '')
    end;
    v_id constant uuid := rowcast.open_channel(p_name);
    v_answer boolean;
begin
    if substr(v_asked, 3) = p_name then
        return left(v_asked, 1) = 't';
    end if;
    perform set_config('rowcast.channel_name', p_name, true);
    if position('*' in p_name) > 0 then
        v_answer := exists (
            select from public.realtime_channels as c where c.pattern = p_name and c.wildcard and c.enabled
        );
    else
        v_answer := exists (select from public.realtime_channels as c where c.id = v_id and c.enabled);
    end if;
    perform set_config('rowcast.channel_name', v_before, true);
    if v_asked is not null then
        perform set_config('rowcast.asked', case when v_answer then 't:' else 'f:' end || p_name, true);
    end if;
    return v_answer;
end;
$$;

comment on function rowcast.may_subscribe(text) is
'True when the caller may subscribe to the name, that is, can SELECT the enabled channel row that governs it. For policies that open history to subscribers.';

-- The same for many callers of one role, read-only, an exception block for each: a policy that
-- fails denies only its own question, and so do claims that Postgres cannot take, such as a
-- \u0000 in a user's name. statement_timeout is not caught by the blocks; the bridge then asks
-- one by one. Runs with the session's rights; becomes the caller, which may not ask for the row.
--
-- A policy function may have set a role for the whole session. The last word of each function here
-- is therefore a reset that outlives the transaction, or the next one to get this connection from
-- the pool would find it spoiled.
create or replace function rowcast.check_subscribe(
    p_role text, p_claims text[], p_channels text[]
)
returns table (pair integer, allowed boolean, channel_id uuid, enabled boolean, error text)
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_open boolean;
begin
    perform set_config('transaction_read_only', 'on', true);
    for i in 1..cardinality(p_channels) loop
        pair := i;
        allowed := false;
        error := null;
        channel_id := null;
        enabled := null;
        perform set_config('role', session_user, true);
        begin
            select s.channel_id, s.channel_enabled, s.channel_open
            into channel_id, enabled, v_open
            from rowcast.subscribable(p_channels[i]) as s;
            if channel_id is null and not (rowcast.is_name(p_channels[i]) or rowcast.is_pattern(p_channels[i])) then
                error := 'RCN02';
            end if;
            perform rowcast.impersonate(p_role, p_claims[i], p_channels[i]);
            allowed := v_open is true and exists (
                select from public.realtime_channels as c
                where c.id = check_subscribe.channel_id and c.enabled
            );
        exception when others then
            error := sqlstate || ' ' || sqlerrm;
        end;
        return next;
    end loop;
    perform set_config('role', 'none', false);
end;
$$;

comment on function rowcast.check_subscribe(text, text[], text[]) is
'For each (claims, channel or pattern): may a caller of this role subscribe; the row that decides and whether it is enabled, NULL when there is none; what a failing policy said, or RCN02 for what is neither.';

-- Publishes for many clients of one role in one transaction, each under its own claims. No
-- exception blocks: they would be subtransactions. On any error the bridge repeats one by one.
create or replace function rowcast.publish_as(
    p_role text,
    p_claims text[],
    p_channels text[],
    p_types text[],
    p_events text[],
    p_payloads text[],
    p_keys uuid[]
)
returns uuid[]
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_ids uuid[] := '{}';
begin
    for i in 1..cardinality(p_channels) loop
        perform set_config('role', session_user, true);
        perform rowcast.impersonate(p_role, p_claims[i], p_channels[i]);
        perform set_config('rowcast.message_id', 'wanted', true);
        insert into public.realtime_messages (type, channel_name, event_name, payload, publish_key)
        values (p_types[i], p_channels[i], p_events[i], p_payloads[i]::jsonb, p_keys[i]);
        v_ids := v_ids || case when found or p_keys[i] is not null then nullif(current_setting('rowcast.message_id', true), 'wanted')::uuid end;
    end loop;
    perform set_config('role', 'none', false);
    return v_ids;
end;
$$;

comment on function rowcast.publish_as(text, text[], text[], text[], text[], text[], uuid[]) is
'Publishes each message as a caller of this role with its claims, all or none; returns the message ids.';
