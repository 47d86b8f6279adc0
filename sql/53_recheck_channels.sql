-- The table of channels, attached to the subscriptions that it decides about.

-- A row that changes, comes or goes decides anew for all names that its pattern matches, also
-- where another row governed them before.
create or replace function rowcast.channels_changed()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_most constant integer := 100;
    v_patterns text[];
begin
    if tg_op = 'INSERT' then
        select array_agg(n.pattern) into v_patterns from rowcast_new as n;
    elsif tg_op = 'DELETE' then
        select array_agg(o.pattern) into v_patterns from rowcast_old as o;
    elsif tg_op = 'UPDATE' then
        select array_agg(c.pattern) into v_patterns
        from (select n.pattern from rowcast_new as n union select o.pattern from rowcast_old as o) as c;
    else
        v_patterns := '{**}';
    end if;
    if v_patterns is not null then
        insert into rowcast.signal (kind, body) values (
            'channel', jsonb_build_object(
                'patterns', case when cardinality(v_patterns) > v_most then '{**}'::text[] else v_patterns end
            )
        );
    end if;
    return null;
end;
$$;

comment on function rowcast.channels_changed() is
'Statement trigger of realtime_channels: signals the patterns of changed rows, "**" for very many.';

create or replace trigger realtime_channels_50_inserted
after insert on public.realtime_channels
referencing new table as rowcast_new
for each statement execute function rowcast.channels_changed();

create or replace trigger realtime_channels_50_updated
after update on public.realtime_channels
referencing old table as rowcast_old new table as rowcast_new
for each statement execute function rowcast.channels_changed();

create or replace trigger realtime_channels_50_deleted
after delete on public.realtime_channels
referencing old table as rowcast_old
for each statement execute function rowcast.channels_changed();

create or replace trigger realtime_channels_50_truncated
after truncate on public.realtime_channels
for each statement execute function rowcast.channels_changed();
