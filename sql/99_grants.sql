-- The whole privilege surface on one screen. PUBLIC may execute only what a policy may call,
-- for whatever role it is evaluated; those functions tell callers only about themselves.

revoke execute on all routines in schema rowcast from public;
revoke all on all tables in schema rowcast from public;
revoke all on all sequences in schema rowcast from public;

grant execute on function
rowcast.jwt(), rowcast.user_id(), rowcast.uid(), rowcast.role(), rowcast.email(),
rowcast.channel_name(),
rowcast.segment(integer),
rowcast.segment_uuid(integer),
rowcast.segment_int(integer),
rowcast.segment(text, integer),
rowcast.segment_uuid(text, integer),
rowcast.segment_int(text, integer),
rowcast.is_name(text), rowcast.is_pattern(text)
to public;

-- The publisher: trusted code that is not an end user.
grant execute on function
rowcast.publish(text, text, jsonb, text, uuid, boolean), rowcast.publish_many(jsonb),
rowcast.publish_as_system(text, text, jsonb, text, uuid, boolean),
rowcast.attach(regclass, text, text[], text[], text, boolean), rowcast.detach(regclass, text),
rowcast.publish_row(), rowcast.resolve(text), rowcast.open_channel(text),
rowcast.audience(text), rowcast.presence_state(text),
rowcast.recheck(text, text), rowcast.kick(text, boolean), rowcast.recheck_rows(),
rowcast.recheck_on_change(regclass, text, text, text[]), rowcast.recheck_detach(regclass)
to rowcast_publisher;
grant insert (
    type, channel_name, event_name, payload, publish_key
) on public.realtime_messages to rowcast_publisher;

do $$
begin
    if not exists (
        select from pg_catalog.pg_policy as p
        where p.polrelid = 'public.realtime_messages'::regclass and p.polname = 'rowcast_publisher'
    ) then
        create policy rowcast_publisher on public.realtime_messages for insert to rowcast_publisher with check (true);
    end if;
end;
$$;

-- The bridge: carries what is committed, and asks nothing that a caller role would be asked.
grant execute on function
rowcast.identity(), rowcast.feed(text, uuid, timestamptz, integer, integer),
rowcast.replay(text[], text[], uuid[], timestamptz[], text, uuid),
rowcast.open_writers(), rowcast.sleep_begin(), rowcast.sleep_end(), rowcast.probe(text),
rowcast.upkeep(), rowcast.status(), rowcast.doctor(), rowcast.boot_id(),
rowcast.login_report(), rowcast.caller_roles(), rowcast.statistics_update(integer),
rowcast.admin_channels(text, uuid, integer, integer, boolean),
rowcast.admin_create_channel(text, jsonb, boolean),
rowcast.admin_update_channel(text, uuid, jsonb, boolean),
rowcast.admin_delete_channel(text, uuid),
rowcast.admin_permissions(text), rowcast.admin_config(text),
rowcast.admin_update_config(text, jsonb),
rowcast.admin_messages(
    text, text, text, text, text, timestamptz, timestamptz, integer, integer, text, bigint, bigint
),
rowcast.admin_statistics(text, text, text, timestamptz),
rowcast.channel_statistics(text, timestamptz),
rowcast.admin_check_subscribe(text, text),
rowcast.admin_publish(text, text[], text[], text[], text[], uuid[]),
rowcast.admin_delete_message(text, uuid),
rowcast.claim_deliveries(uuid, integer, interval, uuid[], integer[]),
rowcast.settle_deliveries(
    uuid, bigint[], integer[], integer[], integer[], text[], text[], integer[]
),
rowcast.return_deliveries(uuid, bigint[], integer[]),
rowcast.next_delivery(uuid[], integer[]), rowcast.move_claim_marks(uuid[]),
rowcast.admin_deliveries(text, uuid, text, integer, text),
rowcast.admin_delivery_attempts(text, bigint), rowcast.admin_redeliver(text, bigint),
rowcast.admin_endpoints(text, uuid), rowcast.admin_rotate_secret(text, uuid),
rowcast.node_beat(uuid, interval), rowcast.node_leave(uuid, interval),
rowcast.audience_write(uuid, text[], integer[]),
rowcast.presence_write(uuid, text[], text[], text[], integer[], boolean[], integer),
rowcast.presence_read(text[]),
rowcast.channel_audience(text), rowcast.channel_presence(text),
rowcast.admin_audience(text, text), rowcast.admin_presence(text, text),
rowcast.keep_handles(bytea[], text[]), rowcast.find_handles(bytea[]),
rowcast.census_answer(uuid, uuid, text[], text[], text[], integer[], integer)
to rowcast_bridge;

-- What is wrong with policies: read from the catalogues with the rights of the role that asks.
grant execute on function
rowcast.policy_mentions(oid), rowcast.policies_asked(), rowcast.policy_callers(oid[]),
rowcast.policy_label(name, oid), rowcast.policy_texts(), rowcast.policy_context_texts(),
rowcast.policy_lint()
to rowcast_bridge;

-- The caller login: becomes a caller role inside these functions, and is nothing by itself.
grant execute on function
rowcast.impersonate(text, text, text), rowcast.check_subscribe(text, text[], text[]),
rowcast.publish_as(text, text[], text[], text[], text[], text[], uuid[]),
rowcast.history_as(text, text, text, integer, text, bigint),
rowcast.messages_as(
    text, text, text, text, text, text, timestamptz, timestamptz, integer, integer, text, bigint,
    bigint
),
rowcast.history_page(public.realtime_messages[], integer),
rowcast.channels_as(text, text, uuid, integer, integer, boolean),
rowcast.subscribable(text), rowcast.login_report(), rowcast.caller_roles()
to rowcast_caller;

-- A role that may write policies may grant, so what was granted to PUBLIC is taken back from them.
revoke all on public.realtime_channels, public.realtime_messages from public;

-- Caller roles. Column grants are the second lock behind the stamping trigger; channels show
-- everything but the webhook addresses. What a table-wide grant or default privileges opened
-- before is taken back, above all the key that signs cursors; a grant to insert, update or delete
-- channels is a team's own decision and stays.
do $$
declare
    v_role text;
begin
    for v_role in
        select quote_ident(r.rolname)
        from rowcast.settings as s, unnest(s.caller_roles) as n (name)
        join pg_catalog.pg_roles as r on r.rolname = n.name
    loop
        execute format('revoke all on all tables in schema rowcast from %s', v_role);
        execute format('revoke all on all sequences in schema rowcast from %s', v_role);
        execute format('revoke execute on all routines in schema rowcast from %s', v_role);
        execute format('revoke select, truncate, references, trigger on public.realtime_channels from %s', v_role);
        execute format('revoke all on public.realtime_messages from %s', v_role);
        execute format('grant select (id, pattern, description, enabled, is_public, owner_id, wildcard, options, created_at, updated_at) on public.realtime_channels to %s', v_role);
        execute format('grant select on public.realtime_messages to %s', v_role);
        execute format('grant insert (type, channel_name, event_name, payload, publish_key) on public.realtime_messages to %s', v_role);
        execute format('grant execute on function rowcast.publish(text, text, jsonb, text, uuid, boolean), rowcast.publish_many(jsonb), rowcast.may_subscribe(text), rowcast.open_channel(text) to %s', v_role);
        execute format('grant execute on function rowcast.history(uuid, text, text, text, timestamptz, timestamptz, integer, integer, xid8, bigint, bigint), rowcast.channel_by_id(text), rowcast.channel_json(uuid, text, text, text[], boolean, boolean, text, boolean, timestamptz, timestamptz, boolean, boolean), rowcast.iso_time(timestamptz) to %s', v_role);
    end loop;
end;
$$;

-- Leaves and parents may have been opened by default privileges of the database.
select rowcast.lock_down_table(i.inhrelid::regclass)
from pg_catalog.pg_inherits as i
join pg_catalog.pg_class as c on i.inhrelid = c.oid
where c.relnamespace = 'rowcast'::regnamespace and c.relkind in ('r', 'p');

select rowcast.make_leaves();

select rowcast.compile_read_new();
