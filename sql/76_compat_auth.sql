-- auth.user_id() and its sisters, as the policies of PostgREST and Supabase users call them.
--
-- Schema auth often belongs to another owner. Missing functions are added where the migrating
-- role may create them; what exists is never replaced unless it carries our mark. The same
-- functions always exist as rowcast.*.
reset role;

do $$
declare
    v_mark constant text := 'Made by rowcast.';
    v_pair text[];
    v_old oid;
begin
    if to_regnamespace('auth') is null then
        if not has_database_privilege(current_database(), 'create') then
            return;
        end if;
        create schema auth authorization rowcast_owner;
        grant usage on schema auth to public;
    end if;
    if not has_schema_privilege('auth', 'create') then
        return;
    end if;
    foreach v_pair slice 1 in array array[
        ['jwt', 'jsonb'], ['user_id', 'text'], ['uid', 'uuid'], ['role', 'text'], ['email', 'text']
    ] loop
        v_old := to_regprocedure(format('auth.%I()', v_pair[1]));
        if v_old is null or obj_description(v_old, 'pg_proc') like v_mark || '%' then
            execute format(
                'create or replace function auth.%1$I() returns %2$s language sql stable parallel safe return rowcast.%1$I()',
                v_pair[1], v_pair[2]
            );
            execute format('comment on function auth.%1$I() is %2$L', v_pair[1], v_mark || ' Same as rowcast.' || v_pair[1] || '().');
            execute format('grant execute on function auth.%I() to public', v_pair[1]);
        end if;
    end loop;
end;
$$;
