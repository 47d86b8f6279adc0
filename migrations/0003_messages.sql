-- Messages: one table for its users, two lives underneath.
--
-- `message` is durable: logged, in history, replayable. `broadcast` is ephemeral: UNLOGGED and
-- kept for minutes. The writer chooses by `type`, and nothing else differs.
create sequence rowcast.message_seq as bigint cache 1;

create table rowcast.realtime_messages (
    -- seq and id have no defaults: the stamping trigger sets both.
    seq bigint not null,
    id uuid not null,
    -- The transaction that wrote the row. With a snapshot it tells what a reader has not seen;
    -- sequence numbers cannot, because they commit out of order.
    xid xid8 not null default pg_current_xact_id(),
    type text not null default 'message',
    channel_id uuid,
    channel_name text not null,
    event_name text not null,
    payload jsonb not null default '{}',
    sender_type text not null default 'system',
    sender_id text,
    ws_audience_count integer not null default 0,
    wh_audience_count integer not null default 0,
    -- A caller's own key: a second insert with the same key is answered with the first message.
    publish_key uuid,
    created_at timestamptz not null default clock_timestamp()
) partition by list (type);

alter table rowcast.realtime_messages enable row level security;

create table rowcast.messages_durable
partition of rowcast.realtime_messages for values in ('message')
partition by range (created_at);

-- No insert may ever fail for want of a leaf; upkeep empties this one again.
create table rowcast.messages_default
partition of rowcast.messages_durable default;

create unlogged table rowcast.messages_broadcast
partition of rowcast.realtime_messages for values in ('broadcast')
with (autovacuum_vacuum_scale_factor = 0.05);

-- A row of any other type lands here, where the stamping trigger refuses it in words;
-- without this leaf the refusal would be Postgres' "no partition found".
create table rowcast.messages_untyped
partition of rowcast.realtime_messages default;

-- Each index costs 15 to 20 points of the batch insert rate, so only what the feed, the replay
-- and history need. BRIN costs next to nothing and finds rows by time: after a crash, by id.
create index messages_durable_xid on rowcast.messages_durable (xid);
create index messages_durable_channel on rowcast.messages_durable (channel_name, xid);
create index messages_durable_history on rowcast.messages_durable (channel_id, seq);
create index messages_durable_time on rowcast.messages_durable using brin (created_at);
create index messages_broadcast_xid on rowcast.messages_broadcast (xid);
create index messages_broadcast_channel on rowcast.messages_broadcast (channel_name, xid);

-- The leaves of the durable side, so that a reader names only those its cursor can still need.
-- closing_xid: an xid taken after the range was past. closed_xid: the same, once every
-- transaction older than it had ended; a cursor whose xmin is not below it needs the leaf no more.
create table rowcast.leaf (
    name text primary key,
    from_at timestamptz not null,
    to_at timestamptz not null,
    closing_xid xid8,
    closed_xid xid8,
    check (from_at < to_at)
);

create table rowcast.publish_key (
    sender text not null,
    key uuid not null,
    message_id uuid not null,
    seq bigint not null,
    created_at timestamptz not null default now(),
    primary key (sender, key)
);
create index publish_key_created_at on rowcast.publish_key using brin (created_at);

-- The newest expired row of each channel name, so that a quiet channel is never called lost
-- only because a cursor is old. Broadcasts are remembered apart: they vanish with a crash.
create table rowcast.expired (
    channel_name text primary key,
    xid xid8 not null,
    expired_at timestamptz not null default now()
);
create unlogged table rowcast.expired_broadcast (
    like rowcast.expired including all
);

-- Minutes and the xid of that moment: what is older than a time, asked of an index on xid.
create unlogged table rowcast.tick (
    at timestamptz primary key default clock_timestamp(),
    xid xid8 not null default pg_current_xact_id()
);

-- What bridges must learn and clients must not find in history: a deleted message, a re-check.
-- Read by the same snapshot rule as messages.
create unlogged table rowcast.signal (
    seq bigint not null default nextval('rowcast.message_seq'),
    xid xid8 not null default pg_current_xact_id(),
    kind text not null,
    body jsonb not null,
    created_at timestamptz not null default clock_timestamp()
);
create index signal_xid on rowcast.signal (xid);

reset role;
alter table rowcast.realtime_messages set schema public;
set local role rowcast_owner;
