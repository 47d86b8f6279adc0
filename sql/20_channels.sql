-- Keeps what every lookup relies on: valid patterns, a known shape, an honest updated_at.

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

-- Definer, because whoever may write a channel need not see the table of shapes.
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
