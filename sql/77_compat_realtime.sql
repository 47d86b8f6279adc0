-- The names that applications written for InsForge or Supabase call. Only where the schema name
-- `realtime` is free, or was made here: what belongs to another owner is not touched.
-- Policies cannot be created on views, so policies go to the tables in schema public.
reset role;

do $$
declare
    v_mark constant text := 'Made by rowcast: names for compatibility.';
    v_schema constant oid := to_regnamespace('realtime');
    v_role text;
begin
    if v_schema is not null and obj_description(v_schema, 'pg_namespace') is distinct from v_mark then
        return;
    end if;
    if v_schema is null then
        if not has_database_privilege(current_database(), 'create') then
            return;
        end if;
        create schema realtime authorization rowcast_owner;
    end if;
    set local role rowcast_owner;
    execute format('comment on schema realtime is %L', v_mark);

    create or replace view realtime.channels with (security_invoker = true) as
    select c.id, c.pattern, c.description, c.enabled, c.created_at, c.updated_at
    from public.realtime_channels as c;

    create or replace view realtime.messages with (security_invoker = true) as
    select m.id, m.event_name, m.channel_id, m.channel_name, m.payload, m.sender_type, m.sender_id,
        m.ws_audience_count, m.wh_audience_count, m.created_at
    from public.realtime_messages as m;

    create or replace function realtime.channel_name() returns text
    language sql stable parallel safe return rowcast.channel_name();

    create or replace function realtime.topic() returns text
    language sql stable parallel safe return rowcast.channel_name();

    create or replace function realtime.publish(channel_name text, event_name text, payload jsonb)
    returns uuid
    language sql volatile security invoker set search_path = pg_catalog, pg_temp
    begin atomic
        select rowcast.publish(publish.channel_name, publish.event_name, publish.payload);
    end;

    create or replace function realtime.send(payload jsonb, event text, topic text, private boolean default true)
    returns void
    language sql volatile security invoker set search_path = pg_catalog, pg_temp
    begin atomic
        select rowcast.publish(send.topic, send.event, send.payload, 'broadcast');
    end;

    create or replace function realtime.broadcast_changes(
        topic_name text, event_name text, operation text, table_name text, table_schema text,
        new record, old record, level text default 'ROW'
    )
    returns void
    language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp
    as $f$
    begin
        if broadcast_changes.level = 'STATEMENT' then
            raise exception 'broadcast_changes() needs a trigger for each row'
            using errcode = '0A000', hint = 'A statement has no NEW and no OLD: create the trigger with FOR EACH ROW.';
        end if;
        perform rowcast.publish(
            broadcast_changes.topic_name, broadcast_changes.event_name,
            jsonb_build_object(
                'id', gen_random_uuid(), 'schema', broadcast_changes.table_schema, 'table', broadcast_changes.table_name,
                'operation', broadcast_changes.operation,
                'record', to_jsonb(broadcast_changes.new), 'old_record', to_jsonb(broadcast_changes.old)
            ),
            'broadcast'
        );
    end;
    $f$;

    comment on function realtime.channel_name() is 'Same as rowcast.channel_name().';
    comment on function realtime.topic() is 'Same as rowcast.channel_name().';
    comment on function realtime.publish(text, text, jsonb) is 'Same as rowcast.publish(): durable, under the policies.';
    comment on function realtime.send(jsonb, text, text, boolean) is 'rowcast.publish() of type broadcast; every channel is private here.';
    comment on function realtime.broadcast_changes(text, text, text, text, text, record, record, text) is
    'Publishes a row change as a broadcast, for triggers written for Supabase.';

    revoke execute on all functions in schema realtime from public;
    grant usage on schema realtime to public;
    grant execute on function realtime.channel_name(), realtime.topic() to public;
    for v_role in
        select quote_ident(r.rolname)
        from pg_catalog.pg_roles as r
        where r.rolname = any (rowcast.caller_roles()) or r.rolname = 'rowcast_publisher'
    loop
        execute format('grant execute on all functions in schema realtime to %s', v_role);
        execute format('grant select on all tables in schema realtime to %s', v_role);
    end loop;
end;
$$;
