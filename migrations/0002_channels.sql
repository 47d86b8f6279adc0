-- Channels: one row governs every name that its pattern matches most specifically.
--
-- Created in schema rowcast and moved: that way the owner role never needs CREATE on schema
-- public, only the migrating role does.
create table rowcast.realtime_channels (
    id uuid primary key default gen_random_uuid(),
    pattern text not null unique,
    description text,
    webhook_urls text[],
    enabled boolean not null default true,
    is_public boolean not null default false,
    -- The subject of the creator's token; text, because not every issuer uses UUIDs.
    owner_id text default (
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
    ),
    wildcard boolean not null default false,
    options jsonb not null default '{}',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

alter table rowcast.realtime_channels enable row level security;

reset role;
alter table rowcast.realtime_channels set schema public;
set local role rowcast_owner;
