-- Sending a delivery again by hand.

-- Refuses in words what cannot be sent; otherwise the schedule begins anew. One that was delivered
-- stays delivered whatever comes of it, so a message that is sent twice counts once.
create or replace function rowcast.redeliver(delivery bigint)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_row rowcast.delivery;
    v_endpoint rowcast.endpoint;
begin
    select d.* into v_row from rowcast.delivery as d where d.id = redeliver.delivery for update;
    if v_row.id is null then
        raise exception 'there is no delivery %', redeliver.delivery
        using errcode = 'RCW03', hint = 'List them with `rowcast webhooks deliveries`.';
    end if;
    if v_row.next_at is not null and v_row.lease_until > clock_timestamp() then
        return false;
    end if;
    select e.* into v_endpoint from rowcast.endpoint as e where e.id = v_row.endpoint_id;
    if v_endpoint.state is distinct from 'active' then
        raise exception 'the endpoint % of delivery % is %', v_endpoint.url, redeliver.delivery, coalesce(v_endpoint.state, 'gone')
        using errcode = 'RCW04', hint = 'A disabled one can receive again after select rowcast.enable_endpoint(id); a retired one must be a webhook URL of its channel again, and then gets new messages.';
    end if;
    if v_row.body is null and not exists (
        select from public.realtime_messages as m
        where m.type = 'message' and m.created_at = v_row.message_at
        and m.channel_id = v_row.channel_id and m.seq = v_row.message_seq
    ) then
        raise exception 'the message of delivery % has expired or was deleted', redeliver.delivery
        using errcode = 'RCW05', hint = 'Messages are kept for rowcast.settings.retention; publish it again.';
    end if;
    update rowcast.delivery as d
    set state = case when d.state = 'delivered' then 'delivered' else 'pending' end,
        reason = null, next_at = clock_timestamp(), attempts_before = d.attempt,
        lease_by = null, lease_until = null
    where d.id = v_row.id;
    insert into rowcast.signal (kind, body) values ('webhooks', '{}');
    return true;
end;
$$;

comment on function rowcast.redeliver(bigint) is
'Sends a delivery again, now and with a new schedule; false when it is being sent at this moment. Raises RCW03 to RCW05.';

-- After an outage at the receiver: all that failed since then, oldest first.
create or replace function rowcast.redeliver_failed(endpoint uuid, since timestamptz)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_count integer;
begin
    update rowcast.delivery as d
    set state = 'pending', reason = null, next_at = clock_timestamp(), attempts_before = d.attempt
    from rowcast.endpoint as e
    where e.id = redeliver_failed.endpoint and e.state = 'active'
    and d.channel_id = e.channel_id and d.endpoint_id = e.id and d.state = 'failed'
    and d.settled_at >= redeliver_failed.since;
    get diagnostics v_count = row_count;
    insert into rowcast.signal (kind, body) values ('webhooks', '{}');
    return v_count;
end;
$$;

comment on function rowcast.redeliver_failed(uuid, timestamptz) is
'Sends again what failed at an active endpoint since a time; returns how many.';
