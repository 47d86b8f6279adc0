-- Channels: valid patterns, a known shape, an honest updated_at; and subscribing to a pattern
-- itself.
--
-- A policy that ignores the name would open every channel of a pattern to each client that may
-- subscribe to one of them, so the channel row must say `wildcard`, and policies are asked besides.

do $$
begin
    if not exists (
        select from pg_catalog.pg_constraint as k
        where k.conrelid = 'public.realtime_channels'::regclass
        and k.conname = 'realtime_channels_pattern_check'
    ) then
        alter table public.realtime_channels
        add constraint realtime_channels_pattern_check check (rowcast.is_pattern(pattern));
    end if;
end;
$$;

-- Definer, because a role that may write a channel need not see the table of shapes.
-- The check constraint would refuse a bad pattern too, but cannot say how to mend it.
create or replace function rowcast.channels_guard()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_shape constant text := rowcast.pattern_shape_of(new.pattern);
begin
    if rowcast.is_pattern(new.pattern) is not true then
        raise exception 'channel pattern "%" is not valid', left(new.pattern, 300)
        using errcode = 'RCN03',
        hint = 'Use up to 16 non-empty segments joined by ":", at most 255 bytes, without blanks; a whole segment may be "*", and only the last one "**".';
    end if;
    if tg_op = 'UPDATE' then
        new.updated_at := now();
    end if;
    -- The array is read with every publish, so it is written only when the shape is new.
    if (select v_shape <> all (s.shapes) from rowcast.settings as s) then
        update rowcast.settings as s
        set shapes = array(select u.shape from unnest(s.shapes || v_shape) as u (shape) order by u.shape)
        where v_shape <> all (s.shapes);
    end if;
    return new;
end;
$$;

comment on function rowcast.channels_guard() is
'Trigger of realtime_channels: refuses bad patterns in words, records the shape, sets updated_at.';

create or replace trigger realtime_channels_10_guard
before insert or update on public.realtime_channels
for each row execute function rowcast.channels_guard();

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
            when position('*' in p_name) = 0 then (select rowcast.governing_channel(p_name))
            else (
                select w.id from public.realtime_channels as w
                where w.pattern = p_name
            )
        end;
end;

comment on function rowcast.subscribable(text) is
'The channel row that a subscription to this name or pattern is judged by, whether it is enabled, and whether the row allows such a subscription at all; NULLs when there is none.';
