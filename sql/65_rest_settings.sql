-- Settings and policies, for administrators: what governs all users, to read and to change.

-- The policies on both tables as InsForge shows them, but our own for rowcast_publisher; and
-- whether a policy opens or restricts, without which a list of them says the opposite of half.
create or replace function rowcast.admin_permissions(p_claims text)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_table text;
    v_list json[] := '{}';
begin
    perform rowcast.require_admin(p_claims);
    foreach v_table in array array['realtime_channels', 'realtime_messages'] loop
        v_list := v_list || (
            select json_build_object('policies', coalesce(json_agg(json_build_object(
                'policyName', p.policyname, 'tableName', p.tablename, 'command', p.cmd, 'roles', p.roles,
                'using', p.qual, 'withCheck', p.with_check, 'permissive', p.permissive = 'PERMISSIVE'
            ) order by p.policyname), '[]'))
            from pg_catalog.pg_policies as p
            where p.schemaname = 'public' and p.tablename = v_table and p.policyname <> 'rowcast_publisher'
        );
    end loop;
    return json_build_object('subscribe', v_list[1], 'publish', v_list[2])::text;
end;
$$;

comment on function rowcast.admin_permissions(text) is
'The policies of realtime_channels (subscribe) and realtime_messages (publish, history) as JSON text. Raises RCA01.';

-- Numbers, because a client that sets thirty days should not have to know how Postgres spells them.
create or replace function rowcast.admin_config(p_claims text)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    return (
        select json_build_object(
            'retentionDays', trim_scale(round(extract(epoch from s.retention) / 86400, 4)),
            'broadcastRetentionSeconds', trim_scale(extract(epoch from s.broadcast_retention)),
            'cursorRetentionDays', trim_scale(round(extract(epoch from s.cursor_retention) / 86400, 4)),
            'payloadLimit', s.payload_limit,
            'replayRows', s.replay_rows,
            'replayBytes', s.replay_bytes
        )::text
        from rowcast.settings as s
    );
end;
$$;

comment on function rowcast.admin_config(text) is
'How long and how much is kept, as JSON text. Raises RCA01.';

-- What is not named stays; retentionDays null keeps messages for ever.
create or replace function rowcast.admin_update_config(p_claims text, p_changes jsonb)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    update rowcast.settings as s
    set retention = case
            when p_changes ? 'retentionDays' then (p_changes ->> 'retentionDays')::numeric * interval '1 day'
            else s.retention
        end,
        broadcast_retention = coalesce(
            (p_changes ->> 'broadcastRetentionSeconds')::numeric * interval '1 second', s.broadcast_retention
        ),
        cursor_retention = coalesce(
            (p_changes ->> 'cursorRetentionDays')::numeric * interval '1 day', s.cursor_retention
        ),
        payload_limit = coalesce((p_changes ->> 'payloadLimit')::integer, s.payload_limit),
        replay_rows = coalesce((p_changes ->> 'replayRows')::integer, s.replay_rows),
        replay_bytes = coalesce((p_changes ->> 'replayBytes')::integer, s.replay_bytes);
    return rowcast.admin_config(p_claims);
end;
$$;

comment on function rowcast.admin_update_config(text, jsonb) is
'Changes what is named of the settings that admin_config() shows; returns all of them. Raises RCA01.';
