-- Roles and memberships. The role that migrates runs this at each migrate, before anything else.
-- Roles belong to the whole cluster, so each thing is looked for first and made only when absent:
-- an idle run writes nothing. What this role may not do is collected and reported at once, as
-- statements for an administrator to run.
do $$
declare
    v_me constant text := quote_ident(current_user);
    v_database constant text := quote_ident(current_database());
    -- From 16 on a membership carries its own options; on 15 these words are a syntax error.
    v_modern constant boolean := current_setting('server_version_num')::integer >= 160000;
    v_may_set constant text := case when v_modern then 'set' else 'member' end;
    v_inherits constant text := case when v_modern then 'usage' else 'member' end;
    v_callers text[] := '{anon,authenticated}';
    v_needed text[] := '{}';
    v_name text;
    v_options text;
    v_grant text;
begin
    if current_setting('server_version_num')::integer < 150000 then
        raise exception 'rowcast needs PostgreSQL 15 or newer, and this is %', current_setting('server_version')
        using errcode = 'feature_not_supported', hint = 'Upgrade the server.';
    end if;

    for v_name, v_options in
        values
        -- owns schema, tables and definer functions, so that nothing ever belongs to a superuser
        ('rowcast_owner', 'nologin'),
        -- trusted code that publishes without being an end user
        ('rowcast_publisher', 'nologin'),
        -- the role claim that may administer channels
        ('rowcast_admin', 'nologin'),
        -- caller roles by PostgREST's convention, adopted as they are when they exist
        ('anon', 'nologin'),
        ('authenticated', 'nologin'),
        -- login that carries what is committed; a member of nothing
        ('rowcast_bridge', 'login'),
        -- login that becomes a caller role: inheriting would give it their rights unasked
        ('rowcast_caller', 'login noinherit')
    loop
        continue when to_regrole(v_name) is not null;
        if not (select r.rolcreaterole or r.rolsuper from pg_catalog.pg_roles as r where r.rolname = current_user) then
            v_needed := v_needed || format('alter role %s createrole;', v_me);
            exit;
        end if;
        begin
            execute format('create role %I %s', v_name, v_options);
        exception when duplicate_object or unique_violation then
            null; -- a run in another database was faster
        end;
    end loop;
    -- On 15 it is the role that inherits or not, on 16 each membership.
    if not v_modern and not (select r.rolinherit or r.rolsuper from pg_catalog.pg_roles as r where r.rolname = current_user) then
        v_needed := v_needed || format('alter role %s inherit;', v_me);
    end if;
    if cardinality(v_needed) > 0 then
        raise exception '% may not set up the roles of rowcast', v_me
        using errcode = 'insufficient_privilege',
        hint = 'Let an administrator run: ' || array_to_string(v_needed, ' ') || ' Or let them run what `rowcast sql --roles` prints.';
    end if;

    -- The names are fixed, because policies and functions are written with them.
    select format('schema rowcast belongs to %s', n.nspowner::regrole) into v_name
    from pg_catalog.pg_namespace as n
    where n.nspname = 'rowcast' and n.nspowner <> 'rowcast_owner'::regrole
    union all
    select format('%s belongs to %s', c.oid::regclass, c.relowner::regrole)
    from pg_catalog.pg_class as c
    where c.oid in (to_regclass('public.realtime_channels'), to_regclass('public.realtime_messages'))
        and c.relowner <> 'rowcast_owner'::regrole;
    if v_name is not null then
        raise exception '%, and not to rowcast_owner', v_name
        using errcode = 'object_not_in_prerequisite_state',
        hint = 'Rename it if it is not ours; if it came with a dump, restore that again without --no-owner.';
    end if;

    if to_regclass('rowcast.settings') is not null and pg_has_role('rowcast_owner', 'usage') then
        execute 'select s.caller_roles from rowcast.settings as s' into v_callers;
    end if;
    -- Tries what is missing, then collects what is missing still: a GRANT without the right to it
    -- is an error only for those who have no right at all, and otherwise a mere warning.
    for v_pass in 1..2 loop
        for v_grant in
            -- The migrating role creates objects as the owner, and a team may CREATE POLICY.
            select 'grant rowcast_owner to ' || v_me || case when v_modern then ' with inherit true, set true' else '' end
            where not (pg_has_role('rowcast_owner', v_may_set) and pg_has_role('rowcast_owner', v_inherits))
            union all
            -- From 16 on this takes ADMIN OPTION on the caller role, which its creator has. A role
            -- that leaves the setting is not revoked: another database may still name it.
            select format('grant %I to rowcast_caller', r.rolname) || case when v_modern then ' with inherit false, set true' else '' end
            from pg_catalog.pg_roles as r
            where r.rolname = any(v_callers) and not pg_has_role('rowcast_caller', r.oid, v_may_set)
            union all
            -- CREATE is asked for only as long as there is something to create.
            select format('grant create on database %s to %s', v_database, v_me)
            where to_regnamespace('rowcast') is null and not has_database_privilege(current_database(), 'create')
            union all
            select format('grant create on schema public to %s', v_me)
            where to_regclass('public.realtime_messages') is null and not has_schema_privilege('public', 'create')
            union all
            -- A hardened database has revoked the default privileges of PUBLIC.
            select 'grant usage on schema public to rowcast_owner'
            where not has_schema_privilege('rowcast_owner', 'public', 'usage')
            union all
            select format('grant connect on database %s to %I', v_database, l.name)
            from unnest('{rowcast_bridge,rowcast_caller}'::text[]) as l (name)
            where not has_database_privilege(l.name, current_database(), 'connect')
        loop
            if v_pass = 2 then
                v_needed := v_needed || (v_grant || ';');
                continue;
            end if;
            begin
                execute v_grant;
            exception when insufficient_privilege then
                null; -- the second pass says it
            end;
        end loop;
    end loop;
    if cardinality(v_needed) > 0 then
        raise exception 'role % lacks privileges that rowcast needs', v_me
        using errcode = 'insufficient_privilege',
        hint = 'Let an administrator run: ' || array_to_string(v_needed, ' ');
    end if;
end;
$$;
