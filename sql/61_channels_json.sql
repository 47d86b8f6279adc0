-- Channels as every JSON of the REST API has them.

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
