-- Names and patterns. Segments are joined by ':'. In a pattern '*' is exactly one segment and
-- '**', last only, one or more; a name is literal and has no '*' at all, so that no name can be
-- spelled like somebody's pattern.

-- Visible characters only: controls, blanks, and the marks that change how text is displayed
-- are refused, because names end up in headers, logs and URLs.
create or replace function rowcast.is_name(p_name text)
returns boolean
language sql
immutable
parallel safe
return octet_length(p_name) between 1 and 255
and p_name !~ (
    '[\u0001-\u0020\u007F-\u00A0\u00AD\u061C\u1680\u180E\u2000-\u200F'
    '\u2028-\u202F\u205F-\u206F\u3000\uFEFF*]'
)
and left(p_name, 1) <> ':'
and right(p_name, 1) <> ':'
and position('::' in p_name) = 0
and length(p_name) - length(replace(p_name, ':', '')) <= 15;

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

-- Which channel row governs a name: the most specific pattern, and it alone, also when it is
-- disabled. One probe of the unique index for every shape in use that fits the number of
-- segments; LIKE or a regex over stored patterns costs a thousand times more at 100,000 rows.
--
-- This runs for every message. So the shapes are an argument, which the stamping trigger has at
-- hand; the answer is one uuid, because a row of two columns costs 9 us more; and the pattern is
-- put together as text, because arrays cost 5 us more.
--
-- Without sequential scans: a session that planned for ten channels keeps its plan, and would
-- read the whole table for every message once there are thousands.
create or replace function rowcast.governing(p_name text, p_shapes text[], p_disabled boolean)
returns uuid
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_depth constant integer := length(p_name) - length(replace(p_name, ':', '')) + 1;
    v_shape text;
    v_pattern text;
    v_id uuid;
    v_enabled boolean;
begin
    if position('*' in p_name) > 0 then
        return null;
    end if;
    foreach v_shape in array p_shapes loop
        continue when length(v_shape) > v_depth or length(v_shape) < v_depth and right(v_shape, 1) <> 'c';
        v_pattern := '';
        for i in 1..length(v_shape) loop
            v_pattern := v_pattern || case substr(v_shape, i, 1)
                when 'a' then ':' || split_part(p_name, ':', i)
                when 'b' then ':*'
                else ':**'
            end;
        end loop;
        select c.id, c.enabled into v_id, v_enabled
        from public.realtime_channels as c
        -- The shapes are in collation "C" and pass it on to all text in here, and to the
        -- comparison, for which the index would then be of no use.
        where c.pattern = substr(v_pattern, 2) collate "default";
        if found then
            return case when v_enabled or p_disabled then v_id end;
        end if;
    end loop;
    return null;
end;
$$;

comment on function rowcast.governing(text, text[], boolean) is
'Id of the channel row that governs a name, given the shapes in use; NULL when there is none, or when it is disabled and those are not asked for.';

-- The same for a name alone, with what a caller must know to say why not. A join instead of the
-- sub-select would be hashed, which reads every channel. Without jit: the one row of settings
-- has no index, and a forbidden scan is priced as worth compiling.
create or replace function rowcast.resolve(
    p_name text, out channel_id uuid, out channel_enabled boolean
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
begin atomic
    select
        c.id,
        c.enabled
    from public.realtime_channels as c
    where c.id = (
            select rowcast.governing(p_name, s.shapes, true)
            from rowcast.settings as s
        );
end;

comment on function rowcast.resolve(text) is
'The one channel row that governs a name, enabled or not; NULLs when there is none.';
