-- Subscribing to a stored pattern itself. A policy that ignores the name would open every room to
-- whoever may join one, so the channel row must say `wildcard`, and policies are asked besides.

-- Segment by segment, because what is stored must never be run as a regex or LIKE.
create or replace function rowcast.pattern_matches(p_pattern text, p_name text)
returns boolean
language sql
immutable
parallel safe
begin atomic
    select
        case
            when split_part(p_pattern, ':', -1) = '**'
                then cardinality(n.segments) >= cardinality(p.segments)
            else cardinality(n.segments) = cardinality(p.segments)
        end
        and not exists (
            select from unnest(p.segments) with ordinality as s (segment, i)
            where s.segment not in ('*', '**') and s.segment is distinct from n.segments[s.i]
        )
    from (select string_to_array(p_name, ':') as segments) as n,
        (select string_to_array(p_pattern, ':') as segments) as p;
end;

comment on function rowcast.pattern_matches(text, text) is
'True when the pattern matches the name, whether or not another row governs it.';

-- The row that answers for a subscription: for a name the governing one, for a pattern its own.
-- A join instead of the sub-selects would be hashed, which reads every channel.
create or replace function rowcast.subscribable(
    p_name text, out channel_id uuid, out channel_enabled boolean, out channel_open boolean
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
begin atomic
    select
        c.id,
        c.enabled,
        c.wildcard or position('*' in p_name) = 0
    from public.realtime_channels as c
    where c.id = case
            when position('*' in p_name) = 0 then (select rowcast.governing(p_name))
            else (
                select w.id from public.realtime_channels as w
                where w.pattern = p_name
            )
        end;
end;

comment on function rowcast.subscribable(text) is
'The channel row that a subscription to this name or pattern is judged by, whether it is enabled, and whether the row allows such a subscription at all; NULLs when there is none.';
