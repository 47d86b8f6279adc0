-- The query of what is new: which leaves it reads, its text, and its compiled form for the leaves
-- that are written now.

-- The leaves in which a reader with this cursor can still find something new. An hour ahead, so
-- that no midnight waits for an upkeep. A leaf that was dropped by hand stays in the registry
-- until the next upkeep, and must not stop all readers until then. One whose time is not over is
-- needed even when it is closed: the clock was ahead then, and has been set back.
--
-- In plpgsql, which keeps the plan: every drain asks this, and in SQL it takes eight times as long.
create or replace function rowcast.leaves_for(p_xmin xid8, p_since timestamptz)
returns text[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select array['messages_default', 'messages_broadcast'] || coalesce(array_agg(l.name order by l.from_at), '{}')
        from rowcast.leaf as l
        where (
            l.closed_xid is null or l.closed_xid > p_xmin or l.to_at >= p_since
            or l.to_at > clock_timestamp() - interval '90 seconds'
        )
            and l.from_at < clock_timestamp() + interval '1 hour'
            and to_regclass(format('rowcast.%I', l.name)) is not null
    );
end;
$$;

comment on function rowcast.leaves_for(xid8, timestamptz) is
'Leaves that a cursor with this xmin may still need, or that reach beyond the time when it is given.';

-- SQL that reads what spans of xids hold of some leaves, of signals and presence; with a time also
-- what is younger, since after a crash xids do not tell all.
--
-- A single span, which is what a message finds that comes alone, needs no join: half the cost.
-- `offset 0` is a fence: as a plain join the planner thinks each span worth a hundredth of the
-- leaf, and from three on (that is, three running transactions) it reads the whole leaf and
-- compares every row with every span: 160 to 900 ms instead of 0.1 at 300,000 rows.
--
-- Signals first: a client that may have lost access with one of them must not get a message of the
-- same read, which may have been committed after it whatever their numbers say. Theirs are
-- therefore negative here, because a second sort key costs a tenth of a large drain.
create or replace function rowcast.leaves_query(
    p_leaves text[], p_single boolean, p_since boolean, p_first text
)
returns text
language sql
immutable
parallel safe
begin atomic
    select
        case
            when p_single then ''
            else 'with spans as (select s.first, s.last from unnest($1, $2) as s (first, last)) '
        end
        || p_first
        || string_agg(
            'select ''message''::text, m.seq, m.id, m.type, m.channel_id, m.channel_name,'
            ' m.event_name, m.payload::text, m.sender_type, m.sender_id, m.created_at from '
            || format(i.source, l.name, ' and l.seq > $3')
            || case
                when p_since
                    then format(
                            ' union select ''message'', m.seq, m.id, m.type, m.channel_id,'
                            ' m.channel_name, m.event_name, m.payload::text, m.sender_type,'
                            ' m.sender_id, m.created_at from rowcast.%I as m'
                            ' where m.created_at >= $4 and m.seq > $3', l.name
                        )
                else ''
            end,
            ' union all '
        )
        || ' union all select m.kind, m.seq - 9223372036854775807, null, null, null, null, null,'
        ' m.body::text, null, null, m.created_at from '
        || format(i.source, 'signal', '')
        || ' union all select ''presence'', m.seq, m.node, null, null, m.channel_name, null,'
        ' case when m.left_at is null then m.state::text else ''null'' end,'
        ' case when m.anonymous then ''anonymous'' else ''user'' end, m.key, m.updated_at from '
        || format(i.source, 'presence', '')
        || ' order by 2'
    from unnest(p_leaves) as l (name), (
        select
            case
                when p_single
                    then '(select * from rowcast.%I as l'
                        ' where l.xid between $1[1] and $2[1]%s) as m'
                else 'spans as s, lateral (select * from rowcast.%I as l'
                    ' where l.xid between s.first and s.last%s offset 0) as m'
            end as source
    ) as i
    group by i.source;
end;

comment on function rowcast.leaves_query(text[], boolean, boolean, text) is
'SQL that reads leaves, signals and presence: xids between $1 and $2, of which only the first count when single, seq above $3, and created_at from $4 on when asked for; after rows of its own that p_first may add.';

-- An ALTER TABLE that rewrites a leaf, as a new column with a volatile default does, makes all its
-- rows its own: a snapshot from before it is over sees none of them. A reader that waited for the
-- lock of such a statement has found nothing, and must not go on from there. The snapshot shows the
-- leaf's old file then, and the function knows the new one. It asks for what was read and locks
-- nothing.
create or replace function rowcast.leaf_was_rewritten(p_leaves text[])
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select exists(
        select from unnest(p_leaves) as l (name)
        join pg_catalog.pg_class as c on c.oid = to_regclass(format('rowcast.%I', l.name))
        where c.relfilenode <> pg_relation_filenode(c.oid)
    );
end;

comment on function rowcast.leaf_was_rewritten(text[]) is
'Whether one of these leaves has another file now than in the snapshot of this statement.';

-- To plan leaves_query() anew for each drain takes twice as long as to run it, and leaves change
-- once a day: so the query of the leaves written now is a function, which upkeep replaces, and
-- whose plan every bridge keeps. What stands here is what it starts from, and covers nothing.
--
-- The first row is `covers` where it reads all that this reader needs. To ask leaves_for() before
-- each drain took a third of it, and what is asked apart can be replaced in between.
--
-- Without settings and rights of its own, because it has to be inlined. The body is a string: a
-- parsed one would depend on the leaves, and they could not be dropped.
create or replace function rowcast.read_new_range(
    p_first xid8[], p_last xid8[], p_floor bigint, p_leaves bigint, p_xmin xid8, p_now timestamptz
)
returns setof rowcast.feed_row
language sql
stable
security invoker
as $$
select null::text, null::bigint, null::uuid, null::text, null::uuid, null::text, null::text, null::text,
    null::text, null::text, null::timestamptz
where false
$$;

comment on function rowcast.read_new_range(xid8[], xid8[], bigint, bigint, xid8, timestamptz) is
'What one span of xids holds of the leaves that are written now, of signals and presence, by seq; after a row `covers` if that is all that a cursor with this xmin needs at this time, in this version of the registry of leaves.';

-- The same for several spans: when transactions run, which is always so under load.
create or replace function rowcast.read_new_ranges(
    p_first xid8[], p_last xid8[], p_floor bigint, p_leaves bigint, p_xmin xid8, p_now timestamptz
)
returns setof rowcast.feed_row
language sql
stable
security invoker
as $$
select null::text, null::bigint, null::uuid, null::text, null::uuid, null::text, null::text, null::text,
    null::text, null::text, null::timestamptz
where false
$$;

comment on function rowcast.read_new_ranges(xid8[], xid8[], bigint, bigint, xid8, timestamptz) is
'What spans of xids hold of the leaves that are written now, as read_new_range().';

-- The version of the registry is read in the snapshot of the drain: a leaf which that shows, and
-- the query does not name, has changed it. The xmin and the times are the conditions of
-- leaves_for(), turned round, for the leaves left out: an older cursor, a clock set back, the next
-- leaf.
--
-- Nothing is replaced as long as that would change nothing: every bridge would plan anew. Times are
-- written as ISO has them, in UTC: the compiling and the reading session need not agree on a
-- DateStyle.
create or replace function rowcast.compile_read_new()
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
        where p.pronamespace = 'rowcast'::regnamespace and p.proname = 'read_new_range'
            and p.prosrc = rowcast.leaves_query(v_leaves, true, false, v_covers)
    ) then
        return false;
    end if;
    for v_name, v_single in values ('read_new_range', true), ('read_new_ranges', false) loop
        execute format(
            'create or replace function rowcast.%I('
            'p_first xid8[], p_last xid8[], p_floor bigint, p_leaves bigint, p_xmin xid8, p_now timestamptz)'
            ' returns setof rowcast.feed_row language sql stable as %L',
            v_name, rowcast.leaves_query(v_leaves, v_single, false, v_covers)
        );
    end loop;
    return true;
end;
$$;

comment on function rowcast.compile_read_new() is
'Replaces read_new_range() and read_new_ranges() when they would read other leaves, or cover other readers; whether it had to.';

-- Any change: code that makes or drops a leaf need not request it. For rows, because upkeep mostly
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

select rowcast.compile_read_new();
