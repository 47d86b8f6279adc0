-- Names and patterns. Segments are joined by ':'. In a pattern '*' is exactly one segment and
-- '**', last only, one or more; a name is literal and has no '*' at all, so that a name can
-- never be spelled like a pattern.

-- Visible characters only: controls, blanks, and the marks that change how text is displayed
-- are refused, because names end up in headers, logs and URLs. One expression for characters,
-- segments and their number: every node of it is set up anew in every transaction that publishes.
create or replace function rowcast.is_name(p_name text)
returns boolean
language sql
immutable
parallel safe
return octet_length(p_name) <= 255
and p_name !~ (
    '[\u0001-\u0020\u007F-\u00A0\u00AD\u061C\u1680\u180E\u2000-\u200F'
    '\u2028-\u202F\u205F-\u206F\u3000\uFEFF*]|::|^:|:$|^$|(:[^:]*){16}'
);

comment on function rowcast.is_name(text) is
'True for a channel name: up to 16 non-empty segments joined by ":", at most 255 bytes, no blanks, no "*".';

-- No wildcard inside a segment: what a pattern matches must be plain to see, and cheap to find.
create or replace function rowcast.is_pattern(p_pattern text)
returns boolean
language sql
immutable
parallel safe
return octet_length(p_pattern) <= 255
and p_pattern ~ '^(\*\*|([^:*]+|\*)(:([^:*]+|\*))*(:\*\*)?)$'
and rowcast.is_name(replace(p_pattern, '*', 'x'));

comment on function rowcast.is_pattern(text) is
'True for a channel pattern: a name in which a whole segment may be "*" and the last one "**".';

-- 'a' literal, 'b' *, 'c' **: in "C" order the most specific shape comes first.
create or replace function rowcast.pattern_shape_of(p_pattern text)
returns text
language sql
immutable
parallel safe
return (
    select
        string_agg(
            case s.segment when '*' then 'b' when '**' then 'c' else 'a' end, '' order by s.n
        )
    from unnest(string_to_array(p_pattern, ':')) with ordinality as s (segment, n)
);

comment on function rowcast.pattern_shape_of(text) is
'The shape of a pattern, one letter per segment, that sorts by specificity in collation "C".';

-- Which patterns could govern a name of so many segments, as templates for format() in order of
-- specificity, joined by blanks: element 2 of the result is '%1$s:%2$s %1$s:*' where the shapes
-- in use are 'aa' and 'ab'.
create or replace function rowcast.templates_of(p_shapes text[])
returns text[]
language sql
immutable
parallel safe
begin atomic
    select
        array_agg((
            select
                string_agg(
                    (
                        select
                            string_agg(
                                case substr(u.shape, i, 1)
                                    when 'a' then '%' || i || '$s' when 'b' then '*' else '**'
                                end,
                                ':' order by i
                            )
                        from generate_series(1, length(u.shape)) as i
                    ), ' ' order by u.shape collate "C"
                )
            from unnest(p_shapes) as u (shape)
            where length(u.shape) = d or length(u.shape) < d and right(u.shape, 1) = 'c'
        ) order by d)
    from generate_series(1, 16) as d;
end;

comment on function rowcast.templates_of(text[]) is
'For names of 1 to 16 segments the templates of the patterns that can match them, most specific first.';

-- Which channel row governs a name: the most specific pattern, and it alone, also when it is
-- disabled. One probe of the unique index for every shape in use that fits the number of
-- segments; LIKE or a regex over stored patterns costs a thousand times more at 100,000 rows.
--
-- The stamping trigger has the same loop of its own, because a call costs as much as the lookup.
--
-- Without sequential scans: a session that planned for ten channels keeps its plan, and would
-- read the whole table for every message once there are thousands.
create or replace function rowcast.governing_channel(p_name text)
returns uuid
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_segments constant text[] := string_to_array(p_name, ':');
    v_template text;
    v_id uuid;
begin
    -- Text that is not a name has no channel, even where a pattern would match or equal it.
    if rowcast.is_name(p_name) is not true then
        return null;
    end if;
    foreach v_template in array rowcast.templates(cardinality(v_segments)) loop
        select c.id into v_id
        from public.realtime_channels as c
        where c.pattern = format(v_template, variadic v_segments);
        exit when found;
    end loop;
    return v_id;
end;
$$;

comment on function rowcast.governing_channel(text) is
'Id of the channel row that governs a name, enabled or not; NULL when there is none.';

-- The same with what publishers must know to say why not. A join instead of the sub-select would be
-- hashed, which reads every channel.
create or replace function rowcast.resolve(
    p_name text, out channel_id uuid, out channel_enabled boolean
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
begin atomic
    select
        c.id,
        c.enabled
    from public.realtime_channels as c
    where c.id = (select rowcast.governing_channel(p_name));
end;

comment on function rowcast.resolve(text) is
'The one channel row that governs a name, enabled or not; NULLs when there is none.';

-- All of this that callers may know without a policy. Whether an enabled channel takes a message to
-- the name is what publishing tells them anyway; that one is disabled, or that there is a pattern
-- of this spelling, it does not tell.
create or replace function rowcast.open_channel(p_name text)
returns uuid
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
begin atomic
    select c.id
    from public.realtime_channels as c
    where c.id = (select rowcast.governing_channel(p_name)) and c.enabled;
end;

comment on function rowcast.open_channel(text) is
'Id of the channel row that governs a name, if it is enabled; otherwise NULL, as where there is none.';
