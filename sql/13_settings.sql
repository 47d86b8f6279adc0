-- The settings that every publish needs, compiled into constants. To read the one row of settings
-- costs a publisher a tenth of its throughput; a constant costs nothing, and Postgres itself
-- plans anew in every session when one of these functions is replaced, because it was inlined.

-- The values here are placeholders, which the end of this file replaces.
create or replace function rowcast.payload_limit()
returns integer
language sql
immutable
parallel safe
return 0;

comment on function rowcast.payload_limit() is
'The largest payload in bytes of text; a constant that a change of the settings replaces.';

-- The roles that publish as an end user, and the roles that a token may name.
create or replace function rowcast.caller_roles()
returns text[]
language sql
immutable
parallel safe
return '{}'::text[];

comment on function rowcast.caller_roles() is
'The roles a token may name; a constant that a change of the settings replaces.';

-- Which patterns could govern a name; the shapes in use are part of it, see templates_of().
create or replace function rowcast.templates(p_segments integer)
returns text[]
language sql
immutable
parallel safe
return '{}'::text[];

comment on function rowcast.templates(integer) is
'Templates of the patterns in use that can match a name of so many segments, most specific first; a constant that a new shape replaces.';

-- Definer: a role that adds the first channel of a new shape changes the settings with it. The
-- change holds a lock on the row, so two transactions cannot replace a function at once.
create or replace function rowcast.settings_compile()
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_settings rowcast.settings;
begin
    select s.* into v_settings from rowcast.settings as s;
    execute format(
        'create or replace function rowcast.payload_limit() returns integer'
        ' language sql immutable parallel safe return %L::integer',
        v_settings.payload_limit
    );
    execute format(
        'create or replace function rowcast.caller_roles() returns text[]'
        ' language sql immutable parallel safe return %L::text[]',
        v_settings.caller_roles
    );
    execute format(
        'create or replace function rowcast.templates(p_segments integer) returns text[]'
        ' language sql immutable parallel safe'
        ' return coalesce(string_to_array((%L::text[])[p_segments], '' ''), ''{}'')',
        rowcast.templates_of(v_settings.shapes)
    );
end;
$$;

comment on function rowcast.settings_compile() is
'Replaces payload_limit(), caller_roles() and templates() by constants of the present settings.';

-- A trigger, so that a change of the settings cannot forget it.
create or replace function rowcast.settings_changed()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.settings_compile();
    return null;
end;
$$;

comment on function rowcast.settings_changed() is
'Trigger of settings: compiles them.';

create or replace trigger settings_90_changed
after insert or update on rowcast.settings
for each row execute function rowcast.settings_changed();

select rowcast.settings_compile();
