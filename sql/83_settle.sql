-- Settling attempts: what each answer means for its delivery, when to try again, and what it means
-- for the endpoint: how many requests it may have under way, pauses, the circuit, and its end.

-- How long to wait after the attempt that was the p_tries-th: the schedule within a fifth either
-- way, so that what failed together does not return together; no sooner than the receiver
-- asked, and a minute where it is overloaded; at most a day. NULL: there is no further attempt.
create or replace function rowcast.retry_pause(
    p_tries integer, p_status integer, p_error text, p_retry_after integer
)
returns interval
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select
        case
            when s.webhook_schedule[p_tries] is not null
                then least(
                        interval '24 hours',
                        greatest(
                            s.webhook_schedule[p_tries] * (0.8 + 0.4 * random()),
                            interval '1 s' * p_retry_after,
                            case
                                when p_status in (429, 502, 503, 504) or p_error = 'timeout'
                                    then interval '60 s'
                            end
                        )
                    )
        end
    from rowcast.settings as s;
end;

comment on function rowcast.retry_pause(integer, integer, text, integer) is
'The pause after so many attempts, by the schedule and by what the receiver answered; NULL after the last.';

-- Notes what came of attempts, each only if the worker still holds the lease of that very attempt:
-- otherwise another worker sends it again and will report the outcome. Success is 2xx and
-- nothing else. What was delivered once stays delivered when it is sent again.
create or replace function rowcast.settle_deliveries(
    p_worker uuid, p_ids bigint[], p_attempts integer[], p_statuses integer[], p_ms integer[],
    p_errors text[], p_snippets text[], p_retry_after integer[]
)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    v_count integer := 0;
    v_heard record;
begin
    for v_heard in
        with judged as (
            select r.*, d.endpoint_id, p.pause,
                case
                    when r.status between 200 and 299 then 'delivered'
                    when r.status = 410 then 'gone'
                    when r.error = 'message_deleted' then 'message_deleted'
                    when e.state <> 'active' then coalesce(e.reason, e.state)
                    when p.pause is null then 'exhausted'
                    else 'retry'
                end as verdict
            from unnest(p_ids, p_attempts, p_statuses, p_ms, p_errors, p_snippets, p_retry_after)
                as r (id, attempt, status, ms, error, snippet, retry_after)
            join rowcast.delivery as d on d.id = r.id
            join rowcast.endpoint as e on e.id = d.endpoint_id
            cross join lateral (
                select case
                    when r.status between 200 and 299 then null
                    else rowcast.retry_pause(r.attempt - d.attempts_before, r.status, r.error, r.retry_after)
                end as pause
            ) as p
            where d.lease_by = p_worker and d.attempt = r.attempt
        ),

        settled as (
            update rowcast.delivery as d
            set
                state = case
                    when j.verdict = 'delivered' then 'delivered'
                    when j.verdict = 'retry' or d.state = 'delivered' then d.state
                    when j.verdict = 'exhausted' then 'failed'
                    else 'cancelled'
                end,
                reason = case when j.verdict not in ('delivered', 'retry') and d.state <> 'delivered' then j.verdict end,
                next_at = case when j.verdict = 'retry' then clock_timestamp() + j.pause end,
                settled_at = case when j.verdict <> 'retry' then clock_timestamp() else d.settled_at end,
                lease_by = null,
                lease_until = null
            from judged as j
            where d.id = j.id and d.lease_by = p_worker and d.attempt = j.attempt
            returning j.*
        ),

        logged as (
            insert into rowcast.attempt (delivery_id, attempt, status, ms, error, snippet)
            select s.id, s.attempt, s.status, s.ms, s.error, s.snippet from settled as s
            on conflict do nothing
        )

        select
            s.endpoint_id,
            count(*)::integer as settled,
            (count(*) filter (where s.verdict = 'delivered'))::integer as good,
            (avg(s.ms) filter (where s.verdict = 'delivered'))::integer as ms,
            (count(*) filter (where s.verdict in ('retry', 'exhausted')))::integer as bad,
            bool_or(s.verdict = 'gone') as gone,
            max(interval '1 s' * least(s.retry_after, 300))
            filter (where s.status in (429, 503) and s.retry_after is not null) as pause,
            array_agg(s.id) filter (where s.verdict = 'exhausted') as exhausted
        from settled as s
        group by s.endpoint_id
        order by s.endpoint_id
    loop
        v_count := v_count + v_heard.settled;
        perform rowcast.endpoint_answered(v_heard.endpoint_id, v_heard.good, v_heard.ms, v_heard.bad, v_heard.gone, v_heard.pause);
        if v_heard.exhausted is not null then
            perform rowcast.webhook_event('webhook.exhausted', v_heard.endpoint_id, jsonb_build_object('deliveries', to_jsonb(v_heard.exhausted)));
        end if;
    end loop;
    return v_count;
end;
$$;

comment on function rowcast.settle_deliveries(uuid, bigint[], integer[], integer[], integer[], text[], text[], integer[]) is
'Notes the outcome of attempts (status NULL: no answer, see error) and decides what follows; returns how many the worker still held.';

-- A delivery that was claimed but not begun goes back as if it had never been claimed.
create or replace function rowcast.return_deliveries(
    p_worker uuid, p_ids bigint[], p_attempts integer[]
)
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
    set attempt = d.attempt - 1, lease_by = null, lease_until = null
    from unnest(p_ids, p_attempts) as r (id, attempt)
    where d.id = r.id and d.lease_by = p_worker and d.attempt = r.attempt;
    get diagnostics v_count = row_count;
    return v_count;
end;
$$;

comment on function rowcast.return_deliveries(uuid, bigint[], integer[]) is
'Gives back deliveries that were claimed and not begun; returns how many the worker still held.';

-- Tells operators, as a message on the channel `rowcast:webhooks`, if exactly this channel
-- exists: a pattern that merely covers the name must not show it to subscribers of that pattern.
-- Nothing is told about the endpoints of that channel itself, because each would report itself.
--
-- A trigger of the team's own may refuse the message; the outcome of a delivery must not be lost
-- for that, so it becomes a warning in the log of the server.
create or replace function rowcast.webhook_event(p_event text, p_endpoint_id uuid, p_more jsonb)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into public.realtime_messages (channel_name, event_name, payload)
    select 'rowcast:webhooks', p_event, jsonb_build_object(
        'endpointId', e.id, 'channelId', e.channel_id, 'url', e.url, 'state', e.state,
        'reason', e.reason, 'failures', e.failures, 'failingSince', rowcast.iso_time(e.failing_since)
    ) || p_more
    from rowcast.endpoint as e
    join public.realtime_channels as c on c.pattern = 'rowcast:webhooks' and c.enabled and c.id <> e.channel_id
    where e.id = p_endpoint_id;
exception when others then
    raise warning 'webhook event "%" of endpoint % was not published: %', p_event, p_endpoint_id, sqlerrm;
end;
$$;

comment on function rowcast.webhook_event(text, uuid, jsonb) is
'Publishes an event about an endpoint on the channel rowcast:webhooks, if there is one.';

-- In portions, because a queue may be long and the caller may be a user's UPDATE; upkeep
-- takes the rest. What is being sent at this moment is left to its answer.
create or replace function rowcast.cancel_deliveries(p_endpoint_id uuid, p_reason text)
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
    set state = case when d.state = 'pending' then 'cancelled' else d.state end,
        reason = case when d.state = 'pending' then p_reason else d.reason end,
        next_at = null, lease_by = null, lease_until = null, settled_at = clock_timestamp()
    where d.id in (
        select q.id from rowcast.delivery as q
        where q.endpoint_id = p_endpoint_id and q.next_at is not null
        and (q.lease_until is null or q.lease_until <= clock_timestamp())
        order by q.next_at
        limit 5000
        for update skip locked
    );
    get diagnostics v_count = row_count;
    return v_count;
end;
$$;

comment on function rowcast.cancel_deliveries(uuid, text) is
'Cancels up to 5,000 waiting deliveries of an endpoint; returns how many.';

-- Every bridge sees it at its next claim; the signal takes the channel off their lists at once.
create or replace function rowcast.disable_endpoint(p_endpoint_id uuid, p_reason text)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update rowcast.endpoint as e set state = 'disabled', reason = p_reason, changed_at = now()
    where e.id = p_endpoint_id and e.state = 'active';
    if not found then
        return false;
    end if;
    perform rowcast.cancel_deliveries(p_endpoint_id, p_reason);
    perform rowcast.webhook_event('webhook.disabled', p_endpoint_id, '{}');
    insert into rowcast.signal (kind, body) values ('webhooks', '{}');
    return true;
end;
$$;

comment on function rowcast.disable_endpoint(uuid, text) is
'Stops an endpoint and cancels what waits for it; false when it is not active.';

-- Room grows by one with each success, up to 32, and to 256 where answers take less than half a
-- second, which is not many at a time then; it halves with each portion that failed. From
-- five failures in a row on the circuit is open: a pause that doubles from 10 s to 5 minutes, and
-- one probe after each. An endpoint that answered 429 or 503 with Retry-After is left alone for so
-- long, at most five minutes. Where nothing changes nothing is written: endpoints that work are
-- settled many times a second.
create or replace function rowcast.endpoint_answered(
    p_endpoint_id uuid,
    p_good integer,
    p_ms integer,
    p_bad integer,
    p_gone boolean,
    p_pause interval
)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_before rowcast.endpoint;
    v_now constant timestamptz := clock_timestamp();
    v_most constant integer := case when p_ms < 500 then 256 else 32 end;
begin
    select e.* into v_before from rowcast.endpoint as e where e.id = p_endpoint_id;
    if v_before.state <> 'active' or (
        p_bad = 0 and not p_gone and v_before.failures = 0 and (p_good = 0 or v_before.room = v_most)
    ) then
        return;
    end if;
    if p_gone then
        perform rowcast.disable_endpoint(p_endpoint_id, 'gone');
        return;
    end if;
    if p_good > 0 then
        update rowcast.endpoint as e
        set room = greatest(least(v_most, e.room + p_good), e.room / 2), failures = 0, failing_since = null,
            pause_until = case when e.failures >= 5 then v_now else greatest(e.pause_until, v_now + p_pause) end
        where e.id = p_endpoint_id;
        if v_before.failures >= 5 then
            perform rowcast.webhook_event('webhook.recovered', p_endpoint_id, '{}');
        end if;
        return;
    end if;
    if p_bad = 0 then
        return; -- all were cancelled
    end if;
    update rowcast.endpoint as e
    set room = greatest(1, e.room / 2),
        failures = e.failures + p_bad,
        failing_since = coalesce(e.failing_since, v_now),
        -- The pause that a probe began with ends with it.
        pause_until = case
            when e.failures + p_bad >= 5
                then v_now + greatest(p_pause, interval '10 s' * least(30, 2 ^ least(5, e.failures + p_bad - 5)))
            else greatest(e.pause_until, v_now + p_pause)
        end
    where e.id = p_endpoint_id;
    if v_before.failures < 5 and v_before.failures + p_bad >= 5 then
        perform rowcast.webhook_event('webhook.failing', p_endpoint_id, '{}');
    end if;
    if v_before.failing_since < v_now - (select s.webhook_disable_after from rowcast.settings as s) then
        perform rowcast.disable_endpoint(p_endpoint_id, 'failing');
    end if;
end;
$$;

comment on function rowcast.endpoint_answered(uuid, integer, integer, integer, boolean, interval) is
'Takes what came of a portion of attempts into the state of their endpoint.';
