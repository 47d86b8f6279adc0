-- What an administrator sees and does: JSON as text, which the bridge passes on as it is.

-- Newest first; the cursor is the id of the last one seen. States are those of the delivery.
create or replace function rowcast.admin_deliveries(
    p_claims text, p_channel_id uuid, p_state text, p_limit integer, p_after text
)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_limit constant integer := least(greatest(coalesce(p_limit, 50), 1), 1000);
    v_after bigint;
begin
    perform rowcast.require_admin(p_claims);
    if p_state is not null and p_state not in ('pending', 'delivered', 'failed', 'cancelled') then
        raise exception 'there is no delivery state "%"', left(p_state, 100)
        using errcode = 'RCW07', hint = 'Use pending, delivered, failed or cancelled.';
    end if;
    if p_after is not null and p_after !~ '^[0-9]{1,18}$' then
        raise exception 'the cursor "%" is not valid', left(p_after, 100)
        using errcode = 'RCW07', hint = 'Use the value of `next` in the answer before.';
    end if;
    v_after := p_after;
    return (
        with page as (
            select d.* from rowcast.delivery as d
            where (p_channel_id is null or d.channel_id = p_channel_id)
            and (p_state is null or d.state = p_state)
            and (v_after is null or d.id < v_after)
            order by d.id desc
            limit v_limit
        )

        select json_build_object(
            'deliveries', coalesce(json_agg(json_build_object(
                'id', p.id,
                'messageId', p.message_id,
                'channelId', p.channel_id,
                'endpointId', p.endpoint_id,
                'url', e.url,
                'state', p.state,
                'reason', p.reason,
                'attempts', p.attempt,
                'nextAttemptAt', rowcast.iso_time(p.next_at),
                'lastStatus', a.status,
                'lastError', a.error,
                'createdAt', rowcast.iso_time(p.created_at),
                'settledAt', rowcast.iso_time(p.settled_at)
            ) order by p.id desc), '[]'),
            'next', case when count(*) = v_limit then min(p.id)::text end
        )::text
        from page as p
        left join rowcast.endpoint as e on e.id = p.endpoint_id
        left join rowcast.attempt as a on a.delivery_id = p.id and a.attempt = p.attempt
    );
end;
$$;

comment on function rowcast.admin_deliveries(text, uuid, text, integer, text) is
'Deliveries, newest first, of a channel and in a state where given: {"deliveries": […], "next": cursor or null}. Raises RCA01, RCW07.';

-- Every attempt with what was answered, oldest first.
create or replace function rowcast.admin_delivery_attempts(p_claims text, p_delivery_id bigint)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    if not exists (select from rowcast.delivery as d where d.id = p_delivery_id) then
        raise exception 'there is no delivery %', p_delivery_id
        using errcode = 'RCW03', hint = 'List them with `rowcast webhooks deliveries`.';
    end if;
    return (
        select coalesce(json_agg(json_build_object(
            'attempt', a.attempt,
            'at', rowcast.iso_time(a.at),
            'status', a.status,
            'durationMs', a.ms,
            'error', a.error,
            'body', a.snippet
        ) order by a.attempt), '[]')::text
        from rowcast.attempt as a where a.delivery_id = p_delivery_id
    );
end;
$$;

comment on function rowcast.admin_delivery_attempts(text, bigint) is
'The attempts of a delivery as a JSON array, oldest first. Raises RCA01, RCW03.';

-- `queued` is false where it is being sent at this moment anyway.
create or replace function rowcast.admin_redeliver(p_claims text, p_delivery_id bigint)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    return json_build_object('id', p_delivery_id, 'queued', rowcast.redeliver(p_delivery_id))::text;
end;
$$;

comment on function rowcast.admin_redeliver(text, bigint) is
'Sends a delivery again: {"id": …, "queued": …}. Raises RCA01, RCW03 to RCW05.';

-- Everything about endpoints but their secrets; those of removed URLs are left out.
create or replace function rowcast.admin_endpoints(p_claims text, p_channel_id uuid)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    return (
        select coalesce(json_agg(json_build_object(
            'id', e.id,
            'channelId', e.channel_id,
            'pattern', c.pattern,
            'url', e.url,
            'state', case
                when e.state <> 'active' then e.state
                when e.failures >= 5 then 'open'
                when e.pause_until > clock_timestamp() then 'throttled'
                else 'active'
            end,
            'reason', e.reason,
            'failures', e.failures,
            'failingSince', rowcast.iso_time(e.failing_since),
            'pausedUntil', case when e.pause_until > clock_timestamp() then rowcast.iso_time(e.pause_until) end,
            'pending', (
                select count(*) from rowcast.delivery as d where d.endpoint_id = e.id and d.next_at is not null
            ),
            'oldSecretUntil', case when e.previous_until > clock_timestamp() then rowcast.iso_time(e.previous_until) end,
            'createdAt', rowcast.iso_time(e.created_at)
        ) order by c.pattern, e.created_at, e.id), '[]')::text
        from rowcast.endpoint as e
        join public.realtime_channels as c on c.id = e.channel_id
        where e.state <> 'retired' and (p_channel_id is null or e.channel_id = p_channel_id)
    );
end;
$$;

comment on function rowcast.admin_endpoints(text, uuid) is
'The endpoints of a channel, or of all, as a JSON array without secrets. Raises RCA01.';

-- Besides the owner's SELECT this is the one place where a secret can be seen, and it is a new one.
create or replace function rowcast.admin_rotate_secret(p_claims text, p_endpoint_id uuid)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_secret text;
begin
    perform rowcast.require_admin(p_claims);
    v_secret := rowcast.rotate_secret(p_endpoint_id);
    return (
        select json_build_object(
            'id', e.id, 'url', e.url, 'secret', v_secret, 'oldSecretUntil', rowcast.iso_time(e.previous_until)
        )::text
        from rowcast.endpoint as e where e.id = p_endpoint_id
    );
end;
$$;

comment on function rowcast.admin_rotate_secret(text, uuid) is
'Gives an endpoint a new secret and shows it: {"id", "url", "secret", "oldSecretUntil"}. Raises RCA01, RCW06.';
