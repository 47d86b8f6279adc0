-- What changes counts afterwards: deleted messages, and deliveries that are settled.

-- Only noted: whether the message was counted already, the fold knows and this transaction does
-- not, because a fold may be under way that still sees the message.
create or replace function rowcast.messages_removed()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into rowcast.removal (message_xid, seq, channel_id, channel_name, event_name, created_at)
    select g.xid, g.seq, g.channel_id, g.channel_name, g.event_name, g.created_at
    from gone as g
    where g.type = 'message';
    return null;
end;
$$;

comment on function rowcast.messages_removed() is
'Trigger of realtime_messages: notes deleted messages for the next fold.';

create or replace trigger realtime_messages_80_remove
after delete on public.realtime_messages
referencing old table as gone
for each statement execute function rowcast.messages_removed();

-- TRUNCATE shows no rows; nobody else can have written meanwhile, so counting begins anew here.
create or replace function rowcast.messages_emptied()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update rowcast.rollup set snapshot = rowcast.others_snapshot();
    delete from rowcast.message_rollup;
    delete from rowcast.removal;
    return null;
end;
$$;

comment on function rowcast.messages_emptied() is
'Trigger of realtime_messages: counts from zero after TRUNCATE.';

create or replace trigger realtime_messages_80_empty
after truncate on public.realtime_messages
for each statement execute function rowcast.messages_emptied();

-- A row for each delivery whose outcome becomes known or changes. The conditions stand at the
-- triggers: a publisher, who only adds pending ones, and a claim, call nothing.
create or replace function rowcast.delivery_counted()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_delivered constant integer := case when tg_op = 'DELETE' then 0 else (new.state = 'delivered')::integer end;
    v_failed constant integer := case when tg_op = 'DELETE' then 0 else (new.state = 'failed')::integer end;
    v_channel constant uuid := case when tg_op = 'INSERT' then new.channel_id else old.channel_id end;
    v_at constant timestamptz := case when tg_op = 'INSERT' then new.message_at else old.message_at end;
begin
    insert into rowcast.delivery_change (channel_id, message_at, delivered, failed)
    values (
        v_channel, v_at,
        v_delivered - case when tg_op = 'INSERT' then 0 else (old.state = 'delivered')::integer end,
        v_failed - case when tg_op = 'INSERT' then 0 else (old.state = 'failed')::integer end
    );
    return null;
end;
$$;

comment on function rowcast.delivery_counted() is
'Trigger of delivery: notes outcomes for the next fold.';

create or replace trigger delivery_80_settle
after update of state on rowcast.delivery
for each row
when (
    old.state is distinct from new.state
    and (old.state in ('delivered', 'failed') or new.state in ('delivered', 'failed'))
)
execute function rowcast.delivery_counted();

create or replace trigger delivery_80_add
after insert on rowcast.delivery
for each row when (new.state in ('delivered', 'failed'))
execute function rowcast.delivery_counted();

create or replace trigger delivery_80_remove
after delete on rowcast.delivery
for each row when (old.state in ('delivered', 'failed'))
execute function rowcast.delivery_counted();
