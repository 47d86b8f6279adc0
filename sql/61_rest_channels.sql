-- Channels, for administrators: create, list, change, delete.

-- Newest first. One of an id, NULL when there is none.
create or replace function rowcast.admin_channels(
    p_claims text, p_id uuid, p_limit integer, p_offset integer, p_full boolean
)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_rows json[];
begin
    perform rowcast.require_admin(p_claims);
    v_rows := array(
        select rowcast.channel_json(
            c.id, c.pattern, c.description, c.webhook_urls, c.enabled, c.is_public, c.owner_id,
            c.wildcard, c.created_at, c.updated_at, p_full, true
        )
        from public.realtime_channels as c
        where p_id is null or c.id = p_id
        order by c.created_at desc, c.id desc limit p_limit offset p_offset
    );
    if p_id is not null then
        return v_rows[1]::text;
    end if;
    return array_to_json(v_rows)::text;
end;
$$;

comment on function rowcast.admin_channels(text, uuid, integer, integer, boolean) is
'All channels, or the one of an id (NULL when there is none), as JSON text. Raises RCA01.';

-- The owner is the caller that creates it, unless the body names another: the column's default
-- reads claims that only callers' transactions have.
create or replace function rowcast.admin_create_channel(
    p_claims text, p_channel jsonb, p_full boolean
)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_id uuid;
begin
    perform rowcast.require_admin(p_claims);
    insert into public.realtime_channels (
        pattern, description, webhook_urls, enabled, is_public, owner_id, wildcard
    )
    select p_channel ->> 'pattern', p_channel ->> 'description', rowcast.text_array(p_channel -> 'webhookUrls'),
        coalesce((p_channel ->> 'enabled')::boolean, true),
        coalesce((p_channel ->> 'isPublic')::boolean, false),
        case when p_channel ? 'ownerId' then p_channel ->> 'ownerId' else p_claims::jsonb ->> 'sub' end,
        coalesce((p_channel ->> 'wildcard')::boolean, false)
    returning id into v_id;
    return rowcast.admin_channels(p_claims, v_id, 1, 0, p_full);
exception when unique_violation then
    raise exception 'there is a channel with the pattern "%" already', left(p_channel ->> 'pattern', 300)
    using errcode = 'RCC04', hint = 'Change that one, or choose another pattern.';
end;
$$;

comment on function rowcast.admin_create_channel(text, jsonb, boolean) is
'Creates a channel of {pattern, description, webhookUrls, enabled, isPublic, ownerId, wildcard}; returns it as JSON text. Raises RCA01, RCC04, RCN03.';

-- What is not named stays as it is; null empties what may be empty.
create or replace function rowcast.admin_update_channel(
    p_claims text, p_id uuid, p_changes jsonb, p_full boolean
)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    update public.realtime_channels as c
    set pattern = coalesce(p_changes ->> 'pattern', c.pattern),
        description = case when p_changes ? 'description' then p_changes ->> 'description' else c.description end,
        webhook_urls = case
            when p_changes ? 'webhookUrls' then rowcast.text_array(p_changes -> 'webhookUrls') else c.webhook_urls
        end,
        enabled = coalesce((p_changes ->> 'enabled')::boolean, c.enabled),
        is_public = coalesce((p_changes ->> 'isPublic')::boolean, c.is_public),
        owner_id = case when p_changes ? 'ownerId' then p_changes ->> 'ownerId' else c.owner_id end,
        wildcard = coalesce((p_changes ->> 'wildcard')::boolean, c.wildcard)
    where c.id = p_id;
    return rowcast.admin_channels(p_claims, p_id, 1, 0, p_full);
exception when unique_violation then
    raise exception 'there is a channel with the pattern "%" already', left(p_changes ->> 'pattern', 300)
    using errcode = 'RCC04', hint = 'Change that one, or choose another pattern.';
end;
$$;

comment on function rowcast.admin_update_channel(text, uuid, jsonb, boolean) is
'Changes what is named of a channel; returns it as JSON text, NULL when there is none. Raises RCA01, RCC04, RCN03.';

-- Its messages stay, with no channel.
create or replace function rowcast.admin_delete_channel(p_claims text, p_id uuid)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    delete from public.realtime_channels as c where c.id = p_id;
    return found;
end;
$$;

comment on function rowcast.admin_delete_channel(text, uuid) is
'Deletes a channel; false when there is none. Its history stays. Raises RCA01.';
