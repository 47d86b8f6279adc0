-- Counts of messages and deliveries, so that statistics need not read what they count.

-- Its answer gets another column; sql/ makes it again.
drop function if exists rowcast.identity();

-- Up to where messages are counted. What is not visible in this snapshot, and is visible now, is
-- counted when somebody asks, so a publisher writes nothing and waits for nobody.
create table rowcast.rollup (
    one boolean primary key default true check (one),
    snapshot pg_snapshot not null default '3:3:',
    -- The floor of rowcast.origin at the last count: after a restore everything is counted anew.
    seq_floor bigint not null default 0
);

insert into rowcast.rollup default values;

-- scope `all` (key ''), `channel` (key: its id) and `name`; for each one row of all time
-- (-infinity) and, but for names, of which there can be as many as messages, one of each hour.
create table rowcast.message_rollup (
    scope text not null check (scope in ('all', 'channel', 'name')),
    key text not null,
    bucket timestamptz not null,
    event_name text not null,
    messages bigint not null,
    primary key (scope, key, bucket, event_name)
)
with (fillfactor = 70);

-- Messages that were deleted since; counted or not, that is for the next count to find out.
create table rowcast.removal (
    message_xid xid8 not null,
    seq bigint not null,
    channel_id uuid,
    channel_name text not null,
    event_name text not null,
    created_at timestamptz not null
);

-- Deliveries by state, of all channels (key '') and of each; by the hour of the message.
create table rowcast.delivery_rollup (
    key text not null,
    bucket timestamptz not null,
    delivered bigint not null,
    failed bigint not null,
    primary key (key, bucket)
)
with (fillfactor = 70);

-- Changes of state since: only ever added, so that workers do not wait for each other.
create table rowcast.delivery_change (
    channel_id uuid not null,
    message_at timestamptz not null,
    delivered integer not null,
    failed integer not null
);

-- Next to nothing to keep, and finds the deliveries of the hour in which a period begins.
create index delivery_time on rowcast.delivery using brin (message_at);
