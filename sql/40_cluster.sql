-- Which cluster and which life of it: what a cursor must know before it may trust xids.

-- The boot row vanishes with every crash recovery and promotion. A reader that finds none makes
-- one.
create or replace function rowcast.boot_id()
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from rowcast.boot) then
        insert into rowcast.boot default values on conflict do nothing;
    end if;
    return (select b.id from rowcast.boot as b);
end;
$$;

comment on function rowcast.boot_id() is
'Id of this life of the cluster; another after each crash recovery or promotion.';

-- Makes the rows of a restored or copied database its own: everything up to now is history.
-- The unlogged side came with the dump, so it is emptied; cursors of the old cluster end here.
--
-- Rows that came by replication may have left their sequence behind: the highest of them is the
-- floor, and the sequence goes on above it.
create or replace function rowcast.adopt()
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_here constant bigint := (select c.system_identifier from pg_catalog.pg_control_system() as c);
    v_floor bigint;
    v_newest bigint;
begin
    lock table rowcast.origin in exclusive mode; -- not beside upkeep, which locks the row
    if exists (select from rowcast.origin as o where o.system_identifier = v_here) then
        return false;
    end if;
    -- Updated, because a transaction that waits to give the registry of leaves its next version
    -- would find neither the old row nor a new one.
    v_floor := (select case when s.is_called then s.last_value else 0 end from rowcast.message_seq as s);
    v_newest := (select max(m.seq) from public.realtime_messages as m);
    if v_newest > v_floor then
        v_floor := setval('rowcast.message_seq', v_newest);
    end if;
    update rowcast.origin set system_identifier = v_here, seq_floor = v_floor, leaves = leaves + 1;
    if not found then
        insert into rowcast.origin (system_identifier, seq_floor) values (v_here, v_floor);
    end if;
    update rowcast.leaf set closing_xid = null, closed_xid = null;
    delete from rowcast.expired;
    delete from rowcast.expired_broadcast;
    delete from rowcast.messages_broadcast;
    delete from rowcast.signal;
    delete from rowcast.census_request;
    delete from rowcast.node;
    delete from rowcast.audience;
    delete from rowcast.audience_total;
    delete from rowcast.presence;
    delete from rowcast.tick;
    delete from rowcast.boot;
    perform rowcast.compile_read_new();
    return true;
end;
$$;

comment on function rowcast.adopt() is
'Declares this cluster the home of the data after a restore; true when it was another one before.';

-- What a bridge must know before it reads: one row, asked at each new connection.
create or replace function rowcast.identity(
    out version integer,
    out boot uuid,
    out adopted boolean,
    out recovering boolean,
    out doorbell boolean,
    out cursor_key text,
    out caller_roles text[],
    out payload_limit integer,
    out seq_floor bigint,
    out clock_skew interval,
    out admin_roles text[]
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    recovering := pg_is_in_recovery();
    doorbell := current_setting('max_prepared_transactions') = '0';
    version := (select max(m.version) from rowcast.migration as m);
    adopted := exists (
        select from rowcast.origin as o
        where o.system_identifier = (select c.system_identifier from pg_catalog.pg_control_system() as c)
    );
    select s.caller_roles, s.payload_limit, s.clock_skew, s.admin_roles
    into caller_roles, payload_limit, clock_skew, admin_roles
    from rowcast.settings as s;
    seq_floor := (select o.seq_floor from rowcast.origin as o);
    cursor_key := (select k.key from rowcast.cursor_key as k);
    if not recovering then
        boot := rowcast.boot_id();
    end if;
end;
$$;

comment on function rowcast.identity() is
'Version, boot id, home, recovery state, doorbell mode, cursor key, limits and roles, for a bridge that starts.';
