-- The compiled form of reading what is new, for the leaves that are written now.

-- To plan leaves_query() anew for each drain takes twice as long as to run it, and leaves change
-- once a day: so the query of the leaves written now is a function, which upkeep replaces, and
-- whose plan every bridge keeps. What stands here is what it starts from, and covers nothing.
--
-- The first row is `covers` where it reads all that this reader needs. To ask leaves_for() before
-- each drain took a third of it, and what is asked apart can be replaced in between.
--
-- Without settings and rights of its own, because it has to be inlined. The body is a string: a
-- parsed one would depend on the leaves, and nobody could drop them.
create or replace function rowcast.fresh_span(
    p_first xid8[], p_last xid8[], p_floor bigint, p_leaves bigint, p_xmin xid8, p_now timestamptz
)
returns table (
    kind text,
    seq bigint,
    id uuid,
    type text,
    channel_id uuid,
    channel_name text,
    event_name text,
    payload text,
    sender_type text,
    sender_id text,
    created_at timestamptz
)
language sql
stable
security invoker
as $$
select null::text, null::bigint, null::uuid, null::text, null::uuid, null::text, null::text, null::text,
    null::text, null::text, null::timestamptz
where false
$$;

comment on function rowcast.fresh_span(xid8[], xid8[], bigint, bigint, xid8, timestamptz) is
'What one span of xids holds of the leaves that are written now, of signals and presence, by seq; after a row `covers` if that is all that a cursor with this xmin needs at this time, in this version of the registry of leaves.';

-- The same for several spans: when transactions run, which is always so under load.
create or replace function rowcast.fresh_spans(
    p_first xid8[], p_last xid8[], p_floor bigint, p_leaves bigint, p_xmin xid8, p_now timestamptz
)
returns table (
    kind text,
    seq bigint,
    id uuid,
    type text,
    channel_id uuid,
    channel_name text,
    event_name text,
    payload text,
    sender_type text,
    sender_id text,
    created_at timestamptz
)
language sql
stable
security invoker
as $$
select null::text, null::bigint, null::uuid, null::text, null::uuid, null::text, null::text, null::text,
    null::text, null::text, null::timestamptz
where false
$$;

comment on function rowcast.fresh_spans(xid8[], xid8[], bigint, bigint, xid8, timestamptz) is
'What spans of xids hold of the leaves that are written now, as fresh_span().';

-- The version of the registry is read in the snapshot of the drain: a leaf which that shows, and
-- the query does not name, has changed it. The xmin and the times are the conditions of
-- leaves_for(), turned round, for the leaves left out: an older cursor, a clock set back, the next
-- leaf.
--
-- Nothing is replaced as long as that would change nothing: every bridge would plan anew. Times are
-- written as ISO has them, in UTC: who compiles and who reads need not agree on a DateStyle.
create or replace function rowcast.fresh_compile()
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO'
set timezone = 'UTC'
as $$
declare
    v_version constant bigint := (select o.leaves from rowcast.origin as o);
    v_leaves constant text[] := rowcast.leaves_for(
        pg_snapshot_xmin(pg_current_snapshot()), null
    );
    v_covers text;
    v_name text;
    v_single boolean;
begin
    select
        format(
            'select ''covers''::text, -9223372036854775807, null::uuid, null::text, null::uuid, null::text,'
            ' null::text, null::text, null::text, null::text, null::timestamptz'
            ' where $4 = %L::bigint and $5 >= %L::xid8 and $6 between %L::timestamptz and %L::timestamptz'
            ' union all ',
            v_version,
            coalesce(max(l.closed_xid), '0'),
            coalesce(max(l.to_at + interval '90 seconds') filter (where l.closed_xid is not null), '-infinity'),
            coalesce(min(l.from_at - interval '1 hour') filter (where l.closed_xid is null), 'infinity')
        )
    into v_covers
    from rowcast.leaf as l
    where l.name <> all (v_leaves);
    if exists (
        select from pg_catalog.pg_proc as p
        where p.pronamespace = 'rowcast'::regnamespace and p.proname = 'fresh_span'
            and p.prosrc = rowcast.leaves_query(v_leaves, true, false, v_covers)
    ) then
        return false;
    end if;
    for v_name, v_single in values ('fresh_span', true), ('fresh_spans', false) loop
        execute format(
            'create or replace function rowcast.%I('
            'p_first xid8[], p_last xid8[], p_floor bigint, p_leaves bigint, p_xmin xid8, p_now timestamptz)'
            ' returns table (kind text, seq bigint, id uuid, type text, channel_id uuid, channel_name text,'
            ' event_name text, payload text, sender_type text, sender_id text, created_at timestamptz)'
            ' language sql stable as %L',
            v_name, rowcast.leaves_query(v_leaves, v_single, false, v_covers)
        );
    end loop;
    return true;
end;
$$;

comment on function rowcast.fresh_compile() is
'Replaces fresh_span() and fresh_spans() when they would read other leaves, or cover other readers; whether it had to.';

-- Any change: who makes or drops a leaf need not think of it. For rows, because upkeep mostly
-- updates none, and a new version makes every bridge plan anew.
create or replace function rowcast.leaves_changed()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update rowcast.origin set leaves = leaves + 1;
    return null;
end;
$$;

comment on function rowcast.leaves_changed() is
'Trigger of leaf: gives the registry of leaves its next version.';

create or replace trigger leaf_90_changed
after insert or update or delete on rowcast.leaf
for each row execute function rowcast.leaves_changed();

select rowcast.fresh_compile();
