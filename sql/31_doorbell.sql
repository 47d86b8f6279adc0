-- The doorbell. NOTIFY takes one lock of the whole cluster from before the commit until it is
-- flushed, so transactions that notify cannot share an fsync: at 32 writers a fifth of the commit
-- rate is left. Therefore publishers do not ring while every bridge is awake and polling. A bridge
-- that is about to sleep holds the doorbell lock in share mode, and only then a publisher rings.

-- A sleeping bridge shares the lock, so a publisher that gets it exclusively knows that no bridge
-- sleeps. Where it cannot, another publisher may be testing at this moment, and ringing for that
-- would ring a hundred times an hour for no bridge under load. Therefore it tries share mode next.
-- A publisher that cannot share either has met one that holds the lock exclusively. A publisher
-- that can share, and can then also lock exclusively, has met one that has finished.
--
-- Postgres also refuses a share while a session waits for the exclusive lock. Rowcast never waits
-- for it, but any login may, while a bridge sleeps. So where a publisher gets neither mode, which
-- is rare, it reads the table of locks; reading it always would cost more than the publish.
--
-- All locks and releases stand in one expression: as two statements a cancel in between
-- leaves the session lock held for ever (89 of 150 cancels). Where prepared transactions are
-- possible bridges poll, because PREPARE refuses a transaction that notified.
--
-- No search_path: every name in here is qualified, and to set one costs more than the work.
create or replace function rowcast.notify_sleeping_bridges()
returns trigger
language plpgsql
volatile
security invoker
as $$
declare
    v_sleeps boolean := case
        when pg_catalog.pg_try_advisory_lock(1919903587, 1)
            then not pg_catalog.pg_advisory_unlock(1919903587, 1)
        when not pg_catalog.pg_try_advisory_lock_shared(1919903587, 1)
            then null
        when pg_catalog.pg_try_advisory_lock(1919903587, 1)
            then not (
                pg_catalog.pg_advisory_unlock(1919903587, 1)
                and pg_catalog.pg_advisory_unlock_shared(1919903587, 1)
            )
        else pg_catalog.pg_advisory_unlock_shared(1919903587, 1)
    end;
begin
    if v_sleeps is null then
        v_sleeps := exists (
            select from pg_catalog.pg_locks as l
            where l.locktype operator(pg_catalog.=) 'advisory'
            and l.classid operator(pg_catalog.=) 1919903587
            and l.objid operator(pg_catalog.=) 1
            and l.objsubid operator(pg_catalog.=) 2
            and l.mode operator(pg_catalog.=) 'ShareLock'
            and l.granted
        );
    end if;
    if v_sleeps then
        if pg_catalog.current_setting('max_prepared_transactions')::pg_catalog.int4 operator(pg_catalog.=) 0 then
            perform pg_catalog.pg_notify('rowcast', '');
        end if;
    end if;
    return null;
end;
$$;

comment on function rowcast.notify_sleeping_bridges() is
'Statement trigger: NOTIFY rowcast, only when a bridge sleeps (holds the advisory lock 1919903587, 1).';

create or replace trigger realtime_messages_90_ring
after insert on public.realtime_messages
for each statement execute function rowcast.notify_sleeping_bridges();

create or replace trigger signal_90_ring
after insert on rowcast.signal
for each statement execute function rowcast.notify_sleeping_bridges();

-- Transactions that may have passed the doorbell before they could see that a bridge sleeps: those
-- that hold a writer's lock on our tables. Locks are released after the transaction is visible, so
-- once these are gone a drain sees all they wrote. On leaves as well: a writer that names a leaf
-- holds none on its parent. Waiting for the oldest xid of the cluster instead would wait for
-- transactions that have nothing to do with us.
create or replace function rowcast.open_writers()
returns text[]
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select coalesce(array_agg(distinct l.virtualtransaction), '{}')
    from pg_catalog.pg_locks as l
    where l.locktype = 'relation'
        and l.database = (
            select d.oid from pg_catalog.pg_database as d
            where d.datname = current_database()
        )
        and (
            l.relation in (
                'public.realtime_messages'::regclass,
                'rowcast.signal'::regclass,
                'rowcast.presence'::regclass
            )
            -- Not by pg_partition_tree(), which locks each leaf and waits for a transaction that
            -- drops one.
            or exists (
                select from pg_catalog.pg_class as c
                where c.oid = l.relation and c.relispartition
                    and c.relnamespace = 'rowcast'::regnamespace
            )
        )
        and l.granted
        and l.mode in (
            'RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'
        );
end;

comment on function rowcast.open_writers() is
'Virtual transaction ids that hold a writer''s lock on the message table, a leaf of it, or the signal or presence table.';

-- A bridge's way to sleep. Never waits: a publisher holds the lock for microseconds only.
create or replace function rowcast.sleep_begin()
returns boolean
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
return pg_try_advisory_lock_shared(1919903587, 1);

comment on function rowcast.sleep_begin() is
'Takes the doorbell lock in share mode for this session; false when a publisher holds it right now.';

-- Awake again: from now on publishers need not ring for this bridge.
create or replace function rowcast.sleep_end()
returns boolean
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
return pg_advisory_unlock_shared(1919903587, 1);

comment on function rowcast.sleep_end() is 'Releases the doorbell lock of this session.';

-- Proves that this session still hears: the lock is what makes publishers ring, the
-- notification is what they ring with. A pooler in transaction mode fails the first.
create or replace function rowcast.probe(p_nonce text)
returns boolean
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select pg_notify('rowcast', p_nonce);
    select exists(
        select from pg_catalog.pg_locks as l
        where l.locktype = 'advisory'
            and l.pid = pg_backend_pid()
            and l.classid = 1919903587 and l.objid = 1 and l.objsubid = 2
            and l.mode = 'ShareLock'
            and l.granted
    );
end;

comment on function rowcast.probe(text) is
'Notifies this session with the nonce; true when it holds the doorbell lock.';
