-- The explanation as one table, for users of psql.

-- The verdict is computed from the policies. The last row is what the database really does: it
-- subscribes, or publishes in a subtransaction that is rolled back. Comparing both rows shows
-- whether the verdict holds. `rowcast policy explain` also shows each AND and OR of a policy.
create or replace function rowcast.explain_access(
    action text,
    channel text,
    role text,
    claims jsonb default '{}',
    event text default 'message',
    payload jsonb default '{}',
    type text default 'message'
)
returns table (
    part text, subject text, applies boolean, said text, detail text, ms double precision
)
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_claims constant text := (jsonb_build_object('role', explain_access.role) || coalesce(explain_access.claims, '{}'))::text;
    v_expressions text[] := '{}';
    v_permissive boolean[] := '{}';
    v_values text[] := '{}';
    v_enabled boolean;
    v_decided text;
    v_row record;
begin
    if explain_access.action is null or explain_access.action not in ('subscribe', 'publish') then
        raise exception 'action "%" does not exist', explain_access.action
        using errcode = '22023', hint = 'Use subscribe or publish.';
    end if;

    part := 'channel';
    for v_row in select c.* from rowcast.matching_channels(explain_access.channel) as c loop
        subject := v_row.pattern;
        applies := v_row.place = 1;
        said := case when v_row.enabled then 'enabled' else 'disabled' end;
        detail := case when applies then 'governs: the most specific pattern' else 'shadowed' end;
        v_enabled := coalesce(v_enabled, v_row.enabled);
        if position('*' in explain_access.channel) > 0 and not v_row.wildcard then
            v_decided := 'deny';
            detail := 'callers may not subscribe to the pattern itself: its wildcard is false';
        end if;
        return next;
    end loop;

    part := 'barrier';
    for v_row in select b.* from rowcast.barriers(explain_access.action, explain_access.role) as b loop
        subject := v_row.subject;
        applies := not v_row.ok;
        said := case when v_row.ok then 'ok' else 'attention' end;
        detail := v_row.finding;
        if not v_row.ok then
            v_decided := coalesce(v_decided, case when v_row.subject in ('row level security', 'bypass') then 'allow' else 'deny' end);
        end if;
        return next;
    end loop;
    if v_enabled is not true then
        v_decided := 'deny';
    end if;

    part := 'policy';
    for v_row in select p.* from rowcast.policies_for(explain_access.action, explain_access.role) as p loop
        subject := v_row.policy;
        applies := v_row.applies;
        said := null;
        ms := null;
        detail := case when v_row.permissive then '' else 'RESTRICTIVE ' end || format('for %s to %s', v_row.command, array_to_string(v_row.roles, ', '));
        if v_row.applies and v_row.expression is null then
            detail := detail || ': without an expression it has no effect';
        elsif v_row.applies and v_enabled is not null then
            detail := detail || ': ' || v_row.expression;
            select e.said, e.ms, detail || coalesce(' -- ' || e.state || ' ' || e.error, '') into said, ms, detail
            from rowcast.evaluate_policy(explain_access.action, explain_access.role, v_claims, explain_access.channel,
                explain_access.type, explain_access.event, explain_access.payload, array[v_row.expression]) as e;
            v_permissive := v_permissive || v_row.permissive;
            v_values := v_values || said;
            said := coalesce(said, 'NULL: counts as false');
        end if;
        return next;
    end loop;

    part := 'verdict';
    subject := 'by the policies';
    applies := true;
    ms := null;
    said := coalesce(v_decided, array_to_string(rowcast.verdict(v_permissive, v_values), ' or '));
    detail := case
        when v_enabled is null then 'no channel matches the name'
        when not v_enabled then 'the channel that governs the name is disabled'
        when v_decided is not null then 'decided by a barrier, or by the channel'
        when not coalesce(true = any (v_permissive), false) then 'no permissive policy applies: default deny'
        else 'one permissive policy must be true, and every restrictive one'
    end;
    return next;

    subject := 'by the database';
    begin
        if explain_access.action = 'subscribe' then
            select case when c.allowed then 'allow' when c.error is not null then 'error' else 'deny' end, c.error
            into said, detail
            from rowcast.check_subscribe(explain_access.role, array[v_claims], array[explain_access.channel]) as c;
        else
            perform rowcast.publish_as(explain_access.role, array[v_claims], array[explain_access.channel], array[explain_access.type],
                array[explain_access.event], array[explain_access.payload::text], array[null]::uuid[]);
            said := 'allow';
            detail := null;
        end if;
        raise exception 'undone' using errcode = 'RCX01', hint = 'Internal: this error is always caught; it rolls the trial back.';
    exception
        when sqlstate 'RCX01' then
            null;
        when others then
            said := 'deny';
            detail := sqlstate || ' ' || sqlerrm;
    end;
    return next;
end;
$$;

comment on function rowcast.explain_access(text, text, text, jsonb, text, jsonb, text) is
'Explains why a caller with this role and these claims may or may not subscribe or publish: channels, policies with their values, the verdict, and what the database does. Nothing stays written.';
