-- Webhooks: endpoints, one delivery per message and endpoint, and the log of attempts.

alter table rowcast.settings
-- Most addresses of one channel: every message of it is written once for each.
add column webhook_limit integer not null default 10 check (webhook_limit >= 0),
-- The pause after each failed attempt, of Standard Webhooks 1.0.0; after the last there is none,
-- so there is one attempt more than pauses.
add column webhook_schedule interval[] not null
default '{5 s,5 m,30 m,2 h,5 h,10 h,14 h,20 h,24 h}' check (cardinality(webhook_schedule) <= 50),
-- An endpoint that only failed for so long is disabled.
add column webhook_disable_after interval not null default '5 days',
-- How long an old secret goes on signing beside the new one.
add column webhook_secret_grace interval not null default '24 hours',
-- How long the log of attempts is kept; deliveries live as long as messages do.
add column webhook_attempt_retention interval not null default '7 days';

-- Where messages of a channel go. One row per address for as long as the address is in
-- realtime_channels.webhook_urls; then it is retired, because deliveries still name it.
create table rowcast.endpoint (
    id uuid primary key default gen_random_uuid(),
    channel_id uuid not null,
    url text not null,
    secret text not null,
    previous_secret text,
    previous_until timestamptz,
    state text not null default 'active' check (state in ('active', 'disabled', 'retired')),
    -- Why it is not active: gone (410), failing, admin, removed.
    reason text,
    -- Requests at a time that a bridge may have under way: grows with successes, halves with
    -- failures, so that an endpoint that hangs never holds more than a few.
    room integer not null default 4 check (room >= 1),
    -- Failures since the last success, and since when; from a few on only one probe at a time.
    failures integer not null default 0,
    failing_since timestamptz,
    -- Nothing is sent before: it asked for it, or failed too often.
    pause_until timestamptz not null default '-infinity',
    -- Nothing unfinished is due before; a claim starts here, because an old snapshot somewhere
    -- keeps all that was finished long ago in its way.
    low_at timestamptz not null default '-infinity',
    created_at timestamptz not null default now(),
    changed_at timestamptz not null default now()
)
with (fillfactor = 70);

create unique index endpoint_channel on rowcast.endpoint (channel_id, url) where state <> 'retired';
create index endpoint_active on rowcast.endpoint (id) where state = 'active';

-- One message to one endpoint, written in the publisher's transaction. `state` says what counts:
-- a leased row is still pending, and a delivered one that is sent again stays delivered.
-- `next_at` says that there is something to send, and from when on.
create table rowcast.delivery (
    id bigint generated always as identity primary key,
    message_seq bigint not null,
    message_id uuid not null,
    -- Finds the leaf of the message.
    message_at timestamptz not null,
    channel_id uuid not null,
    endpoint_id uuid not null,
    state text not null default 'pending'
    check (state in ('pending', 'delivered', 'failed', 'cancelled')),
    -- Why it failed or was cancelled.
    reason text,
    attempt integer not null default 0,
    -- The attempts before it was queued last: a redelivery begins the schedule anew.
    attempts_before integer not null default 0,
    next_at timestamptz default clock_timestamp(),
    -- Not in any index, so that to lease is a change within the page.
    lease_by uuid,
    lease_until timestamptz,
    created_at timestamptz not null default now(),
    settled_at timestamptz,
    -- What is sent once the message itself has expired; otherwise it is made of the message.
    event_name text,
    channel_name text,
    body text,
    check (state <> 'pending' or next_at is not null)
)
with (fillfactor = 80);

create index delivery_due on rowcast.delivery (endpoint_id, next_at, id) where next_at is not null;
create index delivery_message on rowcast.delivery (message_seq, state);
create index delivery_channel on rowcast.delivery (channel_id, id);

-- What happened at each attempt; only ever added to, and expired by time.
create table rowcast.attempt (
    delivery_id bigint not null,
    attempt integer not null,
    -- When the answer was noted.
    at timestamptz not null default clock_timestamp(),
    -- NULL when there was no answer.
    status integer,
    ms integer,
    -- NULL, or what went wrong in one word: timeout, refused, denied_address, lost, …
    error text,
    -- The beginning of the answer's body.
    snippet text,
    primary key (delivery_id, attempt)
);

create index attempt_at on rowcast.attempt using brin (at);
