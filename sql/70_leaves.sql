-- Leaves: made a week ahead, closed when nothing can be added, dropped when expired.

-- Databases whose default privileges grant everything to `anon` must not open a leaf: it would
-- be read and truncated past the parent's policies.
create or replace function rowcast.lock_down_table(p_table regclass)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_role text;
begin
    for v_role in
        select distinct case when a.grantee = 0 then 'public' else quote_ident(r.rolname) end
        from pg_catalog.pg_class as c
        cross join aclexplode(c.relacl) as a
        left join pg_catalog.pg_roles as r on r.oid = a.grantee
        where c.oid = p_table and a.grantee <> c.relowner
    loop
        execute format('revoke all on %s from %s', p_table, v_role);
    end loop;
    execute format('alter table %s enable row level security', p_table);
end;
$$;

comment on function rowcast.lock_down_table(regclass) is
'Revokes every privilege on a table from all roles but its owner and enables row level security.';

-- The width follows retention so that a reader of all history meets about a dozen leaves.
create or replace function rowcast.leaf_width()
returns interval
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select
        case
            when s.retention is null then interval '30 days'
            when s.retention <= interval '1 day' then interval '6 hours'
            when s.retention <= interval '8 days' then interval '1 day'
            when s.retention <= interval '40 days' then interval '4 days'
            else interval '1 day' * ceil(extract(epoch from s.retention) / 86400 / 10)
        end
    from rowcast.settings as s;
end;

comment on function rowcast.leaf_width() is 'The width of new leaves under the present retention.';

-- Made standalone, filled with what fell into the default leaf, then attached: attaching then
-- locks only briefly, and moved rows keep their xid because no trigger is on the table yet.
-- Columns are named, because a team may have added some that Postgres computes.
create or replace function rowcast.make_leaf(p_from timestamptz, p_to timestamptz)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    v_name constant text := 'messages_' || to_char(p_from, 'YYYYMMDD_HH24MI');
    v_columns text;
begin
    execute format('create table rowcast.%I (like rowcast.messages_durable including defaults including generated including constraints)', v_name);
    perform rowcast.lock_down_table(format('rowcast.%I', v_name)::regclass);
    if p_from < clock_timestamp() + interval '2 minutes' then
        lock table rowcast.messages_default in share row exclusive mode;
        select string_agg(quote_ident(a.attname), ', ' order by a.attnum) into v_columns
        from pg_catalog.pg_attribute as a
        where a.attrelid = 'rowcast.messages_default'::regclass and a.attnum > 0 and not a.attisdropped and a.attgenerated = '';
        execute format(
            'with moved as (delete from rowcast.messages_default where created_at >= %L and created_at < %L returning *)'
            ' insert into rowcast.%I (%s) select %s from moved', p_from, p_to, v_name, v_columns, v_columns
        );
    end if;
    execute format(
        'alter table rowcast.messages_durable attach partition rowcast.%I for values from (%L) to (%L)',
        v_name, p_from, p_to
    );
    perform rowcast.add_leaf_triggers(v_name);
    insert into rowcast.leaf (name, from_at, to_at) values (v_name, p_from, p_to);
    return v_name;
end;
$$;

comment on function rowcast.make_leaf(timestamptz, timestamptz) is
'Creates and attaches one durable leaf, moving rows of its range out of the default leaf.';

-- Leaves up to a week ahead, at least one after the present one, without gaps. A leaf that was
-- detached or dropped by hand is no longer ours, and what it held is lost to replay; dropped before
-- its time was over, it is made again, because the default leaf never expires. What lies ahead is
-- empty, and is made anew where a shorter retention wants it narrower.
create or replace function rowcast.make_leaves()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    v_width constant interval := rowcast.leaf_width();
    v_start constant timestamptz := date_bin(v_width, now(), timestamptz '2000-01-01');
    v_from timestamptz := (select max(l.to_at) from rowcast.leaf as l);
    v_made integer := 0;
    v_lost rowcast.leaf;
begin
    for v_lost in
        delete from rowcast.leaf as l
        where not exists (select from pg_catalog.pg_inherits as i where i.inhrelid = to_regclass(format('rowcast.%I', l.name)))
        returning l.*
    loop
        if v_lost.from_at < clock_timestamp() + interval '1 minute' then
            perform rowcast.lose_everything(false);
        end if;
        if v_lost.to_at > now() and to_regclass(format('rowcast.%I', v_lost.name)) is null then
            perform rowcast.make_leaf(v_lost.from_at, v_lost.to_at);
            v_made := v_made + 1;
        end if;
    end loop;
    for v_lost in
        delete from rowcast.leaf as l
        where l.from_at > clock_timestamp() + interval '5 minutes' and l.to_at - l.from_at > v_width
        returning l.*
    loop
        execute format('drop table rowcast.%I', v_lost.name);
        v_from := least(v_from, v_lost.from_at);
    end loop;
    -- Aligned to the width since an epoch, so that names and bounds are predictable. After a
    -- long pause one leaf takes the whole gap: in the default leaf its rows would never expire.
    if v_from is null then
        v_from := v_start;
    elsif v_from < now() - v_width then
        perform rowcast.make_leaf(v_from, v_start);
        v_from := v_start;
        v_made := 1;
    end if;
    while v_from < now() + least(interval '7 days', v_width * 4) or v_made = 0 and v_from < now() + v_width loop
        perform rowcast.make_leaf(v_from, v_from + v_width);
        v_from := v_from + v_width;
        v_made := v_made + 1;
    end loop;
    return v_made;
end;
$$;

comment on function rowcast.make_leaves() is 'Creates the leaves of the next week; returns how many.';

-- Two steps over two calls: first an xid that is newer than every writer that can still hold a
-- row for the range, then, when all older transactions have ended, the leaf is closed.
-- Pruning by time instead loses the transaction that stayed open longer than the margin. A closed
-- leaf whose range is not past was closed by a clock that has been set back.
create or replace function rowcast.close_leaves()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_closed integer;
begin
    update rowcast.leaf set closed_xid = closing_xid
    where closed_xid is null and closing_xid < pg_snapshot_xmin(pg_current_snapshot());
    get diagnostics v_closed = row_count;
    update rowcast.leaf set closing_xid = null, closed_xid = null
    where closing_xid is not null and to_at >= clock_timestamp() - interval '90 seconds';
    update rowcast.leaf set closing_xid = pg_current_xact_id()
    where closing_xid is null and to_at < clock_timestamp() - interval '90 seconds';
    return v_closed;
end;
$$;

comment on function rowcast.close_leaves() is
'Closes leaves whose range is past and whose writers have ended; returns how many closed now.';
