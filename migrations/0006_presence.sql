-- Who is there: bridges with a lease, how many subscribe through each, and who is present.
--
-- All tables are UNLOGGED, because all of it can be written again: a crash empties them, every
-- bridge then finds its own row of `node` missing, and writes down what it has.

-- One row per bridge, as long as it is heard of. What a bridge wrote counts until its lease ends.
create unlogged table rowcast.node (
    id uuid primary key,
    started_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

-- Until when, in milliseconds since 1970, some bridge is alive. A sequence, because its value is
-- the one shared number that a publisher can read without another node in its plan.
create sequence rowcast.alive_until as bigint;

-- Absolute counts, one row per channel and bridge and none per subscription: to write one again
-- does no harm. With room in each page, because a count changes in place.
create unlogged table rowcast.audience (
    channel_name text not null,
    node uuid not null,
    sessions integer not null check (sessions > 0),
    primary key (channel_name, node)
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- Their sums, for publishers: one row to read, however many bridges there are. An aggregate over
-- the table above would cost each publish three times as much.
create unlogged table rowcast.audience_total (
    channel_name text primary key,
    sessions integer not null
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- One row per channel, member and bridge, which holds the member's newest state there. A member
-- with tabs at two bridges is in two rows; the one with the higher seq speaks for both, and the
-- other one when the first is gone. A row that ended stays for a minute, so that the feed can
-- tell of it, which reads these rows as it reads messages: what changed is what has a new xid.
create unlogged table rowcast.presence (
    channel_name text not null,
    key text not null,
    node uuid not null,
    state jsonb not null,
    anonymous boolean not null,
    sessions integer not null,
    seq bigint not null default nextval('rowcast.message_seq'),
    xid xid8 not null default pg_current_xact_id(),
    joined_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    left_at timestamptz,
    primary key (channel_name, key, node)
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
create index presence_xid on rowcast.presence (xid);
create index presence_left_at on rowcast.presence (left_at) where left_at is not null;
