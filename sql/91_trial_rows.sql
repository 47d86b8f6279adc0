-- Evaluates policy expressions as a caller, on the row that the caller would read or insert.
-- Nothing that an expression does stays.

-- Read with the rights of the owner, so that policies do not hide the row.
create or replace function rowcast.channel_row(p_name text)
returns public.realtime_channels
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select c
    from public.realtime_channels as c
    where c.id = (
            select m.channel_id from rowcast.matching_channels(p_name) as m
            where m.place = 1
        );
end;

comment on function rowcast.channel_row(text) is
'The channel row on which policies decide about a subscription to this name or pattern.';

-- The owner, to whom policies do not apply, inserts the message, so that messages_stamp fills it;
-- the insert is rolled back. Only the sender is replaced by the caller. A message that cannot be
-- published at all has the columns that are known without the trigger.
create or replace function rowcast.trial_message(
    p_role text, p_claims text, p_channel text, p_type text, p_event text, p_payload jsonb
)
returns public.realtime_messages
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_row public.realtime_messages;
begin
    begin
        insert into public.realtime_messages (type, channel_name, event_name, payload)
        values (p_type, p_channel, p_event, p_payload)
        returning * into v_row;
        raise exception 'undone' using errcode = 'RCX01', hint = 'Internal: this error is always caught; it rolls the trial back.';
    exception
        when sqlstate 'RCX01' then
            null;
        when others then
            v_row.type := p_type;
            v_row.channel_id := rowcast.governing_channel(p_channel);
            v_row.channel_name := p_channel;
            v_row.event_name := p_event;
            v_row.payload := p_payload;
            v_row.created_at := clock_timestamp();
    end;
    v_row.sender_type := case when p_role = any (rowcast.caller_roles()) then 'user' else 'system' end;
    v_row.sender_id := case when v_row.sender_type = 'user' then p_claims::jsonb ->> 'sub' end;
    return v_row;
end;
$$;

comment on function rowcast.trial_message(text, text, text, text, text, jsonb) is
'The row that a publish by this caller would insert, as policies would see it. It does not stay inserted.';

-- Each expression runs in a subtransaction that is always rolled back. That undoes everything a
-- policy function does, including its settings and its role, and an error hides only its own value.
-- A cancel is not caught: statement_timeout fires once per statement, so the next expression would
-- run without a limit. A subscribe is evaluated read-only, as bridges do.
--
-- The row is an argument named like its table, because the expressions use that name.
create or replace function rowcast.evaluate_as(
    p_role text,
    p_claims text,
    p_channel text,
    p_row anyelement,
    p_expressions text[],
    p_read_only boolean
)
returns table (n integer, said text, state text, error text, ms double precision)
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_table constant name := (select t.typname from pg_catalog.pg_type as t where t.oid = pg_typeof(p_row));
    v_begun timestamptz;
begin
    for i in 1..cardinality(p_expressions) loop
        n := i;
        said := null;
        state := null;
        error := null;
        begin
            if p_read_only then
                perform set_config('transaction_read_only', 'on', true);
            end if;
            perform rowcast.impersonate(p_role, p_claims, p_channel);
            v_begun := clock_timestamp();
            execute format('select (%s)::text from unnest($1) as %I', p_expressions[i], v_table)
            into said using array[p_row];
            ms := extract(epoch from clock_timestamp() - v_begun) * 1000;
            raise exception 'undone' using errcode = 'RCX01', hint = 'Internal: this error is always caught; it rolls the trial back.';
        exception
            when sqlstate 'RCX01' then
                null;
            when others then
                get stacked diagnostics state = returned_sqlstate, error = message_text;
                said := 'error';
                ms := extract(epoch from clock_timestamp() - v_begun) * 1000;
        end;
        return next;
    end loop;
end;
$$;

comment on function rowcast.evaluate_as(text, text, text, anyelement, text[], boolean) is
'The value of each expression on a row, evaluated as a caller: said is its text, or error with SQLSTATE and message. Everything that it does is rolled back.';

-- A subscribe evaluates the channel row, a publish the message.
create or replace function rowcast.evaluate_policy(
    p_action text,
    p_role text,
    p_claims text,
    p_channel text,
    p_type text,
    p_event text,
    p_payload jsonb,
    p_expressions text[]
)
returns table (n integer, said text, state text, error text, ms double precision)
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select e.*
    from rowcast.evaluate_as(
            p_role, p_claims, p_channel, rowcast.channel_row(p_channel), p_expressions, true
        ) as e
    where p_action = 'subscribe'
    union all
    select e.*
    from rowcast.evaluate_as(
            p_role,
            p_claims,
            p_channel,
            rowcast.trial_message(p_role, p_claims, p_channel, p_type, p_event, p_payload),
            p_expressions,
            false
        ) as e
    where p_action = 'publish';
end;

comment on function rowcast.evaluate_policy(text, text, text, text, text, text, jsonb, text[]) is
'The value of each policy expression for a caller who subscribes or publishes. Nothing stays written.';

-- Sequential scans are disabled, so one that remains in the plan has no index to replace it,
-- however small the table is today.
create or replace function rowcast.plan_policy(
    p_action text, p_role text, p_claims text, p_channel text, p_expression text
)
returns json
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_plan json;
begin
    begin
        perform set_config('transaction_read_only', 'on', true);
        perform set_config('enable_seqscan', 'off', true);
        perform rowcast.impersonate(p_role, p_claims, p_channel);
        if p_action = 'publish' then
            execute format(
                'explain (verbose, format json) select (%s) from unnest(null::public.realtime_messages[]) as realtime_messages',
                p_expression
            ) into v_plan;
        else
            execute format(
                'explain (verbose, format json) select (%s) from unnest(null::public.realtime_channels[]) as realtime_channels',
                p_expression
            ) into v_plan;
        end if;
        raise exception 'undone' using errcode = 'RCX01', hint = 'Internal: this error is always caught; it rolls the trial back.';
    exception
        when sqlstate 'RCX01' then
            return v_plan;
        when others then
            return null; -- evaluate_policy reports the error
    end;
end;
$$;

comment on function rowcast.plan_policy(text, text, text, text, text) is
'The plan of a policy expression for a caller, with sequential scans disabled; NULL if it cannot be planned.';
