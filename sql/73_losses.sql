-- Messages that vanished other than by expiry: by TRUNCATE, or with a leaf dropped by hand. A
-- replay across it must not call itself complete.

-- The channels that lost messages are no longer known, so all are marked: '**', which is not a
-- name. What is lost was committed, so its xid is below the next one; a cursor from before has an
-- older xmin than that. The greatest, because a transaction that waited for the row may have read
-- its xid earlier.
create or replace function rowcast.lose_everything(p_broadcasts boolean)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_newest constant xid8 := greatest(
        pg_current_xact_id(), ((pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1)::text)::xid8
    );
begin
    if p_broadcasts then
        insert into rowcast.expired_broadcast (channel_name, xid) values ('**', v_newest)
        on conflict (channel_name) do update
        set xid = greatest(expired_broadcast.xid, excluded.xid), expired_at = excluded.expired_at;
    else
        insert into rowcast.expired (channel_name, xid) values ('**', v_newest)
        on conflict (channel_name) do update
        set xid = greatest(expired.xid, excluded.xid), expired_at = excluded.expired_at;
    end if;
end;
$$;

comment on function rowcast.lose_everything(boolean) is
'Notes that every channel may have lost messages, or broadcasts, that are older than this moment.';

-- After the lock, so no transaction has written since. A repeatable read snapshot may be from long
-- before it, and would leave cursors of the time between unwarned.
create or replace function rowcast.messages_lost()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        raise exception '% cannot be truncated at isolation level %', tg_relid::regclass, current_setting('transaction_isolation')
        using errcode = '25001', hint = 'Truncate it in a transaction of level READ COMMITTED.';
    end if;
    perform rowcast.lose_everything(tg_relid = 'rowcast.messages_broadcast'::regclass);
    return null;
end;
$$;

comment on function rowcast.messages_lost() is
'Trigger of realtime_messages and its leaves: notes at TRUNCATE that every channel lost messages.';

create or replace trigger realtime_messages_85_lost
after truncate on public.realtime_messages
for each statement execute function rowcast.messages_lost();

-- What a leaf does not have from its parent. A statement trigger there does not fire for a leaf
-- that is named itself. And where a publication of logical replication has all tables, a message
-- without a replica identity could not be deleted any more. New leaves get theirs from make_leaf().
create or replace function rowcast.add_leaf_triggers(p_leaf text)
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format(
        'create or replace trigger realtime_messages_85_lost after truncate on rowcast.%I'
        ' for each statement execute function rowcast.messages_lost()', p_leaf
    );
    execute format(
        'create or replace trigger realtime_messages_90_ring after insert on rowcast.%I'
        ' for each statement execute function rowcast.notify_sleeping_bridges()', p_leaf
    );
    -- Once only: it waits for all readers, and all readers wait for it.
    if exists (
        select from pg_catalog.pg_class as c
        where c.oid = to_regclass(format('rowcast.%I', p_leaf)) and c.relreplident <> 'f'
    ) then
        execute format('alter table rowcast.%I replica identity full', p_leaf);
    end if;
end;
$$;

comment on function rowcast.add_leaf_triggers(text) is
'Gives a leaf the triggers that note its TRUNCATE and ring for what is inserted into it by name, and a replica identity.';

select rowcast.add_leaf_triggers(c.relname)
from pg_catalog.pg_partition_tree('public.realtime_messages') as t
join pg_catalog.pg_class as c on t.relid = c.oid
where t.isleaf;
