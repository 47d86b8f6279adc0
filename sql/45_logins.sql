-- What a bridge refuses to run with: a login that could do more than its task.

-- Rights to SET ROLE follow the login, so a hostile policy function can get exactly as far as
-- the caller login may; and a bridge login that is a caller could be asked by policies.
create or replace function rowcast.login_report(
    out login text, out faults text[], out bridge_faults text[], out caller_faults text[]
)
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_callers constant text[] := rowcast.caller_roles();
    v_role pg_catalog.pg_roles;
begin
    select r.* into v_role from pg_catalog.pg_roles as r where r.rolname = session_user;
    login := v_role.rolname;
    faults := array_remove(array[
        case when v_role.rolsuper then 'is a superuser' end,
        case when v_role.rolbypassrls then 'bypasses row level security' end,
        case when pg_has_role(v_role.oid, 'rowcast_owner', 'member') then 'is a member of rowcast_owner' end
    ], null);
    bridge_faults := array_remove(array[
        (
            select 'is a member of the caller role ' || min(n.name)
            from unnest(v_callers) as n (name)
            join pg_catalog.pg_roles as r on r.rolname = n.name
            where pg_has_role(v_role.oid, r.oid, 'member')
        )
    ], null);
    caller_faults := array_remove(array[
        case when v_role.rolinherit then 'inherits the rights of its roles' end,
        (
            select 'is a member of ' || min(r.rolname)
            from pg_catalog.pg_auth_members as m
            join pg_catalog.pg_roles as r on r.oid = m.roleid
            where m.member = v_role.oid and r.rolname <> all (v_callers)
        )
    ], null);
end;
$$;

comment on function rowcast.login_report() is
'What is wrong with the session''s login: as any login, as the bridge''s, as the callers''.';
