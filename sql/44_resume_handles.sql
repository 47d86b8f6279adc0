-- Handles: clients of other makes keep no cursor, but repeat what their application gave them.
-- A bridge remembers their cursors here, so that any bridge can resume them, after any restart.

-- In the order of the keys, so that two bridges never wait for each other in a circle. A handle
-- that was not used for an hour is forgotten: a client that was away for longer loads history.
create or replace function rowcast.keep_handles(p_keys bytea[], p_cursors text[])
returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    with forgotten as (
        delete from rowcast.handle as h
        where h.kept_at < clock_timestamp() - interval '1 hour' and h.key <> all(p_keys)
    )

    insert into rowcast.handle as h (key, cursor)
    select
        given.key,
        given.cursor
    from unnest(p_keys, p_cursors) as given (key, cursor)
    order by given.key
    on conflict (key) do update set cursor = excluded.cursor, kept_at = excluded.kept_at;
end;

comment on function rowcast.keep_handles(bytea[], text[]) is
'Remembers the newest cursor of each handle, by digest, and forgets those unused for an hour.';

-- An array beside the array that was given: a handle that is not known leaves a NULL.
create or replace function rowcast.find_handles(p_keys bytea[])
returns text[]
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select array(
        select h.cursor
        from unnest(p_keys) with ordinality as given (key, place)
        left join rowcast.handle as h on given.key = h.key
        order by given.place
    );
end;

comment on function rowcast.find_handles(bytea[]) is
'The cursors of handles, by digest, in the same order; NULL for one that is not known.';
