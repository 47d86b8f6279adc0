-- The schema, run as the migrating role after the roles. It is apart from them, because a restore
-- needs the roles before it brings the schema itself.
do $$
begin
    if to_regnamespace('rowcast') is null then
        create schema rowcast authorization rowcast_owner;
    end if;
    -- Policies of every role call helpers by name; what may be executed is granted one by one.
    if not has_schema_privilege('public', 'rowcast', 'usage') then
        grant usage on schema rowcast to public;
    end if;
    -- Functions are born executable by PUBLIC. The IN SCHEMA form cannot take that away.
    if not exists (
        select from pg_catalog.pg_default_acl as d
        where d.defaclrole = 'rowcast_owner'::regrole and d.defaclobjtype = 'f' and d.defaclnamespace = 0
    ) then
        alter default privileges for role rowcast_owner revoke execute on functions from public;
    end if;
end;
$$;
