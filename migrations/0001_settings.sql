-- One row of settings that SQL itself obeys, and the identity of this database.
--
-- Settings of the daemon (ports, rates, URLs) are environment variables; here stands only what
-- must hold for every writer, also for the one who uses psql. ALTER DATABASE … SET is refused to
-- non-superusers, therefore a table.
create table rowcast.settings (
    one boolean primary key default true check (one),
    -- Roles whose messages are stamped `user`, and which a token may name.
    caller_roles text[] not null default '{anon,authenticated}',
    -- Role claims that may administer channels and read everything.
    admin_roles text[] not null default '{rowcast_admin}',
    -- Largest payload in bytes, measured as the text that goes over the wire.
    payload_limit integer not null default 262144 check (payload_limit between 1 and 16777216),
    -- How long messages stay in history and can be replayed; null keeps them for ever.
    retention interval default '30 days' check (retention >= '1 hour'),
    -- How long broadcasts can be replayed after a short disconnection.
    broadcast_retention interval not null default '5 minutes'
    check (broadcast_retention between '10 seconds' and '1 day'),
    -- How long a publish key protects from a second insert.
    publish_key_retention interval not null default '24 hours',
    -- A resume that would need more is told to load history instead.
    replay_rows integer not null default 10000 check (replay_rows > 0),
    replay_bytes integer not null default 8388608 check (replay_bytes > 0),
    -- How old a cursor may be at most; expiry is remembered this long.
    cursor_retention interval not null default '30 days',
    -- After a crash of Postgres xids are handed out again, so rows are found by their time;
    -- the skew covers a new primary whose clock is behind.
    clock_skew interval not null default '5 seconds',
    -- Which shapes the stored patterns have, one letter a segment ('a' literal, 'b' *, 'c' **),
    -- most specific first. A name is looked up once per shape in the unique index on pattern, so
    -- the cost does not depend on the number of patterns. Kept by a trigger; shapes are never
    -- removed, because removing one races with an insert that relies on it, and an unused one
    -- costs half a microsecond.
    shapes text[] collate "C" not null default '{}'
);

insert into rowcast.settings default values;

-- The key that signs resume cursors: a forged cursor would be a permission to read history.
-- uuid v4 carries 122 random bits; two of them make a key without any extension.
create table rowcast.cursor_key (
    one boolean primary key default true check (one),
    key text not null default replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '')
);

insert into rowcast.cursor_key default values;

-- Which cluster wrote these rows. xids mean nothing in another cluster, so after a logical
-- restore `rowcast.adopt()` raises the floor and rows from before are history, never news.
create table rowcast.origin (
    one boolean primary key default true check (one),
    system_identifier bigint not null,
    seq_floor bigint not null default 0
);

-- Empty after every crash recovery and promotion (UNLOGGED), which is when xids are handed out
-- again: a cursor that carries another boot id must not trust its xids alone.
create unlogged table rowcast.boot (
    one boolean primary key default true check (one),
    id uuid not null default gen_random_uuid()
);
