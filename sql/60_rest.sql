-- The REST API: the administrators, and the JSON of times, lists and channels.
--
-- Functions rowcast.admin_* are for the bridge login, and take the claims of the caller.

-- The bridge login is not an administrator, so each rowcast.admin_* function begins with this.
-- The claims were verified by the bridge; which roles administer is a setting of the
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

-- What check_subscribe() says to a caller, for an administrator, who may hear every
-- enabled channel without a policy being asked. The same columns, so that bridges treat both alike.
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

-- Milliseconds and Z, as JavaScript writes it and as the bridge does.
create or replace function rowcast.iso_time(p_at timestamptz)
returns text
language sql
stable
parallel safe
return to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"');

comment on function rowcast.iso_time(timestamptz) is
'A time as ISO 8601 in UTC with milliseconds.';

-- A JSON array of strings as text[], NULL for null.
create or replace function rowcast.text_array(p_array jsonb)
returns text[]
language sql
immutable
parallel safe
return case
    when jsonb_typeof(p_array) = 'array'
        then array(
                select t.value
                from jsonb_array_elements_text(p_array) with ordinality as t (value, n)
                order by t.n
            )
end;

comment on function rowcast.text_array(jsonb) is 'The strings of a JSON array, NULL when it is none.';

-- Columns, not a row, because callers may not read the addresses; as text, because jsonb would
-- put the fields into an order of its own and json cannot be put together.
create or replace function rowcast.channel_json(
    p_id uuid,
    p_pattern text,
    p_description text,
    p_webhook_urls text[],
    p_enabled boolean,
    p_is_public boolean,
    p_owner_id text,
    p_wildcard boolean,
    p_created_at timestamptz,
    p_updated_at timestamptz,
    p_full boolean,
    p_addresses boolean
)
returns json
language sql
stable
parallel safe
return (
    select
        (
            '{'
            || string_agg(
                to_json(f.name)::text || ': ' || coalesce(f.value::text, 'null'), ', ' order by f.n
            )
            || '}'
        )::json
    from (
        values
        (1, 'id', to_json(p_id), true),
        (2, 'pattern', to_json(p_pattern), true),
        (3, 'description', to_json(p_description), true),
        (4, 'webhookUrls', to_json(p_webhook_urls), p_addresses),
        (5, 'enabled', to_json(p_enabled), true),
        (6, 'createdAt', to_json(rowcast.iso_time(p_created_at)), true),
        (7, 'updatedAt', to_json(rowcast.iso_time(p_updated_at)), true),
        (8, 'isPublic', to_json(p_is_public), p_full),
        (9, 'ownerId', to_json(p_owner_id), p_full),
        (10, 'wildcard', to_json(p_wildcard), p_full)
    ) as f (n, name, value, wanted)
    where f.wanted
);

comment on function rowcast.channel_json(
    uuid, text, text, text[], boolean, boolean, text, boolean, timestamptz, timestamptz, boolean, boolean
) is
'A channel as REST shows it; p_full adds who may see it, p_addresses where its webhooks go.';
