-- Settling attempts: what each answer means, when to try again, and how an endpoint is doing.

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
-- otherwise somebody else sends it again and will say what came of it. Success is 2xx and
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
        perform rowcast.endpoint_heard(v_heard.endpoint_id, v_heard.good, v_heard.ms, v_heard.bad, v_heard.gone, v_heard.pause);
        if v_heard.exhausted is not null then
            perform rowcast.webhook_event('webhook.exhausted', v_heard.endpoint_id, jsonb_build_object('deliveries', to_jsonb(v_heard.exhausted)));
        end if;
    end loop;
    return v_count;
end;
$$;

comment on function rowcast.settle_deliveries(uuid, bigint[], integer[], integer[], integer[], text[], text[], integer[]) is
'Notes the outcome of attempts (status NULL: no answer, see error) and decides what follows; returns how many the worker still held.';

-- What was claimed and not begun goes back as if nobody had touched it.
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
