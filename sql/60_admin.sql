-- Administration: functions of the bridge login that take the claims of whoever asks.

-- The bridge login is nobody's administrator, so each rowcast.admin_* function begins with this.
-- The claims were verified by the bridge; whom they make an administrator is a setting of the
-- database and not of the bridge, so that all bridges agree.
create or replace function rowcast.require_admin(p_claims text)
returns void
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_role constant text := p_claims::jsonb ->> 'role';
begin
    if v_role is null or not exists (
        select from rowcast.settings as s where v_role = any (s.admin_roles)
    ) then
        raise exception 'role "%" may not administer channels', left(coalesce(v_role, ''), 100)
        using errcode = 'RCA01', hint = 'Use a token whose role is in rowcast.settings.admin_roles.';
    end if;
end;
$$;

comment on function rowcast.require_admin(text) is
'Raises RCA01 unless the role claim is one of the administrators.';

-- What check_subscribe() says to a caller, for an administrator: he hears every channel that is
-- enabled, and no policy is asked. The same columns, so that bridges treat both alike.
create or replace function rowcast.admin_check_subscribe(
    p_claims text,
    p_channel text,
    out allowed boolean,
    out channel_id uuid,
    out enabled boolean,
    out error text
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    select s.channel_id, s.channel_enabled, s.channel_open and s.channel_enabled
    into channel_id, enabled, allowed
    from rowcast.subscribable(p_channel) as s;
    allowed := coalesce(allowed, false);
    if channel_id is null and not (rowcast.is_name(p_channel) or rowcast.is_pattern(p_channel)) then
        error := 'RCN02';
    end if;
end;
$$;

comment on function rowcast.admin_check_subscribe(text, text) is
'Whether there is an enabled channel of this name or pattern for an administrator to subscribe to, and which row decides. Raises RCA01.';
