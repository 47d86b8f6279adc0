-- Reading what is new from leaves, and the compiled form of it for the leaves written now.

-- The leaves in which a reader with this cursor can still find something new. An hour ahead, so
-- that no midnight waits for an upkeep. One that somebody dropped by hand stays in the registry
-- until the next upkeep, and must not stop everybody until then. One whose time is not over is
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
-- `offset 0` is a fence: as a plain join the planner thinks each span worth a hundredth of the
-- leaf, and from three on (that is, three running transactions) it reads the whole leaf and
-- compares every row with every span: 160 to 900 ms instead of 0.1 at 300,000 rows.
--
-- Signals first: who may have lost access with one of them must not get a message of the same
-- read, which may have been committed after it whatever their numbers say. Theirs are therefore
-- negative here, because a second sort key costs a tenth of a large drain.
create or replace function rowcast.leaves_query(p_leaves text[], p_since boolean)
returns text
language sql
immutable
parallel safe
begin atomic
    select
        'with spans as (select s.first, s.last from unnest($1, $2) as s (first, last)) '
        || string_agg(
            format(
                'select ''message''::text, m.seq, m.id, m.type, m.channel_id, m.channel_name,'
                ' m.event_name, m.payload::text, m.sender_type, m.sender_id, m.created_at'
                ' from spans as s, lateral (select * from rowcast.%I as l'
                ' where l.xid between s.first and s.last and l.seq > $3 offset 0) as m', l.name
            )
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
        || ' union all select g.kind, g.seq - 9223372036854775807, null, null, null, null, null,'
        ' g.body::text, null, null, g.created_at'
        ' from spans as s, lateral (select * from rowcast.signal as l'
        ' where l.xid between s.first and s.last offset 0) as g'
        || ' union all select ''presence'', p.seq, p.node, null, null, p.channel_name, null,'
        ' case when p.left_at is null then p.state::text else ''null'' end,'
        ' case when p.anonymous then ''anonymous'' else ''user'' end, p.key, p.updated_at'
        ' from spans as s, lateral (select * from rowcast.presence as l'
        ' where l.xid between s.first and s.last offset 0) as p order by 2'
    from unnest(p_leaves) as l (name);
end;

comment on function rowcast.leaves_query(text[], boolean) is
'SQL that reads leaves, signals and presence: xids between $1 and $2, seq above $3, and created_at from $4 on when asked for.';

-- To plan this anew for each drain takes twice as long as to run it, and leaves change once a
-- day: so the query of the leaves written now is a function, which upkeep replaces, and whose
-- plan every bridge keeps. The two functions here are what it starts from.
create or replace function rowcast.fresh_leaves()
returns text[]
language sql
immutable
parallel safe
return '{}'::text[];

comment on function rowcast.fresh_leaves() is
'The leaves that fresh() reads; a constant that upkeep replaces.';

-- Without settings and rights of its own, because it has to be inlined. The body is a string: a
-- parsed one would depend on the leaves, and nobody could drop them.
create or replace function rowcast.fresh(p_first xid8[], p_last xid8[], p_floor bigint)
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

comment on function rowcast.fresh(xid8[], xid8[], bigint) is
'What spans of xids hold of the leaves that are written now, of signals and presence, by seq.';

-- Nothing is replaced as long as the same leaves are written: every bridge would plan anew.
create or replace function rowcast.fresh_compile()
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_leaves constant text[] := rowcast.leaves_for(
        pg_snapshot_xmin(pg_current_snapshot()), null
    );
begin
    if v_leaves = rowcast.fresh_leaves() then
        return false;
    end if;
    execute format(
        'create or replace function rowcast.fresh_leaves() returns text[]'
        ' language sql immutable parallel safe return %L::text[]', v_leaves
    );
    execute format(
        'create or replace function rowcast.fresh(p_first xid8[], p_last xid8[], p_floor bigint)'
        ' returns table (kind text, seq bigint, id uuid, type text, channel_id uuid, channel_name text,'
        ' event_name text, payload text, sender_type text, sender_id text, created_at timestamptz)'
        ' language sql stable as %L', rowcast.leaves_query(v_leaves, false)
    );
    return true;
end;
$$;

comment on function rowcast.fresh_compile() is
'Replaces fresh() when other leaves are written now than it reads; whether it had to.';

select rowcast.fresh_compile();
