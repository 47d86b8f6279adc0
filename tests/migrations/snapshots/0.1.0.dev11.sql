-- rowcast 0.1.0: the installation as one transaction; an error undoes all of it.
begin isolation level read committed read write;
set local search_path = pg_catalog, pg_temp;
set local statement_timeout = '0';
set local lock_timeout = '2s';
set local idle_in_transaction_session_timeout = '0';
set local client_min_messages = 'warning';
set local check_function_bodies = 'on';
set local standard_conforming_strings = 'on';

select pg_advisory_xact_lock(hashtextextended('rowcast.migrate', 0));

do $$
declare
    v_at integer := 0;
begin
    if to_regclass('rowcast.migration') is not null then
        execute 'select coalesce(max(m.version), 0) from rowcast.migration as m' into v_at;
    end if;
    if v_at <> 0 then
        raise exception 'the database is at migration %, and this script goes on from 0', v_at
        using hint = 'Run `rowcast migrate`, or what `rowcast sql --since ' || v_at || '` prints.';
    end if;
end;
$$;

-- sql/00_roles.sql
-- Roles and memberships. The role that migrates runs this at each migrate, before anything else.
-- Roles belong to the whole cluster, so each thing is looked for first and made only when absent:
-- an idle run writes nothing. What this role may not do is collected and said at once, as
-- statements for somebody who may.
do $$
declare
    v_me constant text := quote_ident(current_user);
    v_database constant text := quote_ident(current_database());
    -- From 16 on a membership itself says what it is good for; on 15 these words are no syntax.
    v_modern constant boolean := current_setting('server_version_num')::integer >= 160000;
    v_may_set constant text := case when v_modern then 'set' else 'member' end;
    v_inherits constant text := case when v_modern then 'usage' else 'member' end;
    v_callers text[] := '{anon,authenticated}';
    v_needed text[] := '{}';
    v_name text;
    v_options text;
    v_grant text;
begin
    if current_setting('server_version_num')::integer < 150000 then
        raise exception 'rowcast needs PostgreSQL 15 or newer, and this is %', current_setting('server_version')
        using errcode = 'feature_not_supported', hint = 'Upgrade the server.';
    end if;

    for v_name, v_options in
        values
        -- owns schema, tables and definer functions, so that nothing ever belongs to a superuser
        ('rowcast_owner', 'nologin'),
        -- trusted code that publishes without being an end user
        ('rowcast_publisher', 'nologin'),
        -- the role claim that may administer channels
        ('rowcast_admin', 'nologin'),
        -- caller roles by PostgREST's convention, adopted as they are when they exist
        ('anon', 'nologin'),
        ('authenticated', 'nologin'),
        -- login that carries what is committed; a member of nothing
        ('rowcast_bridge', 'login'),
        -- login that becomes a caller role: inheriting would give it their rights unasked
        ('rowcast_caller', 'login noinherit')
    loop
        continue when to_regrole(v_name) is not null;
        if not (select r.rolcreaterole or r.rolsuper from pg_catalog.pg_roles as r where r.rolname = current_user) then
            v_needed := v_needed || format('alter role %s createrole;', v_me);
            exit;
        end if;
        begin
            execute format('create role %I %s', v_name, v_options);
        exception when duplicate_object or unique_violation then
            null; -- a run in another database was faster
        end;
    end loop;
    -- On 15 it is the role that inherits or not, on 16 each membership.
    if not v_modern and not (select r.rolinherit or r.rolsuper from pg_catalog.pg_roles as r where r.rolname = current_user) then
        v_needed := v_needed || format('alter role %s inherit;', v_me);
    end if;
    if cardinality(v_needed) > 0 then
        raise exception '% may not set up the roles of rowcast', v_me
        using errcode = 'insufficient_privilege',
        hint = 'Let an administrator run: ' || array_to_string(v_needed, ' ') || ' Or let them run what `rowcast sql --roles` prints.';
    end if;

    -- The names are fixed, because policies and functions are written with them.
    select format('schema rowcast belongs to %s', n.nspowner::regrole) into v_name
    from pg_catalog.pg_namespace as n
    where n.nspname = 'rowcast' and n.nspowner <> 'rowcast_owner'::regrole
    union all
    select format('%s belongs to %s', c.oid::regclass, c.relowner::regrole)
    from pg_catalog.pg_class as c
    where c.oid in (to_regclass('public.realtime_channels'), to_regclass('public.realtime_messages'))
        and c.relowner <> 'rowcast_owner'::regrole;
    if v_name is not null then
        raise exception '%, and not to rowcast_owner', v_name
        using errcode = 'object_not_in_prerequisite_state',
        hint = 'Rename it if it is not ours; if it came with a dump, restore that again without --no-owner.';
    end if;

    if to_regclass('rowcast.settings') is not null and pg_has_role('rowcast_owner', 'usage') then
        execute 'select s.caller_roles from rowcast.settings as s' into v_callers;
    end if;
    -- Tries what is missing, then collects what is missing still: a GRANT without the right to it
    -- is an error only for those who have no right at all, and otherwise a mere warning.
    for v_pass in 1..2 loop
        for v_grant in
            -- Whoever migrates creates as the owner, and a team may CREATE POLICY.
            select 'grant rowcast_owner to ' || v_me || case when v_modern then ' with inherit true, set true' else '' end
            where not (pg_has_role('rowcast_owner', v_may_set) and pg_has_role('rowcast_owner', v_inherits))
            union all
            -- From 16 on this takes ADMIN OPTION on the caller role, which its creator has. A role
            -- that leaves the setting is not revoked: another database may still name it.
            select format('grant %I to rowcast_caller', r.rolname) || case when v_modern then ' with inherit false, set true' else '' end
            from pg_catalog.pg_roles as r
            where r.rolname = any(v_callers) and not pg_has_role('rowcast_caller', r.oid, v_may_set)
            union all
            -- CREATE is asked for only as long as there is something to create.
            select format('grant create on database %s to %s', v_database, v_me)
            where to_regnamespace('rowcast') is null and not has_database_privilege(current_database(), 'create')
            union all
            select format('grant create on schema public to %s', v_me)
            where to_regclass('public.realtime_messages') is null and not has_schema_privilege('public', 'create')
            union all
            -- A hardened database has taken from PUBLIC what everybody had.
            select 'grant usage on schema public to rowcast_owner'
            where not has_schema_privilege('rowcast_owner', 'public', 'usage')
            union all
            select format('grant connect on database %s to %I', v_database, l.name)
            from unnest('{rowcast_bridge,rowcast_caller}'::text[]) as l (name)
            where not has_database_privilege(l.name, current_database(), 'connect')
        loop
            if v_pass = 2 then
                v_needed := v_needed || (v_grant || ';');
                continue;
            end if;
            begin
                execute v_grant;
            exception when insufficient_privilege then
                null; -- the second pass says it
            end;
        end loop;
    end loop;
    if cardinality(v_needed) > 0 then
        raise exception '% may not do all that rowcast needs', v_me
        using errcode = 'insufficient_privilege',
        hint = 'Let an administrator run: ' || array_to_string(v_needed, ' ');
    end if;
end;
$$;

-- sql/00_schema.sql
-- The schema, run as the migrating role after the roles. It is apart from them, because a restore
-- needs the roles before it brings the schema itself.
do $$
begin
    if to_regnamespace('rowcast') is null then
        create schema rowcast authorization rowcast_owner;
    end if;
    -- Policies of every role call helpers by name; what may be executed is granted one by one.
    if not has_schema_privilege('public', 'rowcast', 'usage') then
        grant usage on schema rowcast to public;
    end if;
    -- Functions are born executable by PUBLIC. The IN SCHEMA form cannot take that away.
    if not exists (
        select from pg_catalog.pg_default_acl as d
        where d.defaclrole = 'rowcast_owner'::regrole and d.defaclobjtype = 'f' and d.defaclnamespace = 0
    ) then
        alter default privileges for role rowcast_owner revoke execute on functions from public;
    end if;
end;
$$;

set local role rowcast_owner;
create table if not exists rowcast.migration (
    version integer primary key,
    name text not null,
    sha256 text not null,
    applied_at timestamptz not null default now(),
    ms integer,
    applied_by name not null default current_user
);
create table if not exists rowcast.code (
    name text primary key,
    sha256 text not null,
    applied_at timestamptz not null default now()
);
revoke all on rowcast.migration, rowcast.code from public;
reset role;

set local role rowcast_owner;
-- migrations/0001_settings.sql
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
reset role;

insert into rowcast.migration (version, name, sha256) values (1, '0001_settings', '8d73f1a404e341e0291bbbda3b0d0378e3e8301e4d3ff73de1ead48bf3af5990');

set local role rowcast_owner;
-- migrations/0002_channels.sql
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
reset role;

insert into rowcast.migration (version, name, sha256) values (2, '0002_channels', '2d8aee8116ea3c344d2411691609681086f45daf37f9543a438530794025171b');

set local role rowcast_owner;
-- migrations/0003_messages.sql
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
reset role;

insert into rowcast.migration (version, name, sha256) values (3, '0003_messages', 'd7c574f0e2341391b6c0ca48eab14223e26689560eb553e974aa11ba357a6cfe');

set local role rowcast_owner;
-- migrations/0004_webhooks.sql
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
reset role;

insert into rowcast.migration (version, name, sha256) values (4, '0004_webhooks', '2d4b2c1db9ccd6169ae763c00c9e1e19a378e8107965a6bf0d16e7724c670364');

set local role rowcast_owner;
-- migrations/0005_statistics.sql
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
reset role;

insert into rowcast.migration (version, name, sha256) values (5, '0005_statistics', 'ab1ba980c84e8c0c72b87ce704689b980fc57d529bf76e73843c43d674f8aeb7');

set local role rowcast_owner;
-- migrations/0006_presence.sql
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
reset role;

insert into rowcast.migration (version, name, sha256) values (6, '0006_presence', 'f9bf537f058d9da43f2610cbd5108fd179c27ac10ae20687becfadb9e164126c');

set local role rowcast_owner;
-- migrations/0007_revocation.sql
-- What live revocation and subscriptions of whole patterns need.

-- It answers more than it did, and the result of a function cannot be replaced.
drop function if exists rowcast.check_subscribe(text, text[], text[]);

-- A resumed pattern asks for losses of all its names, which only the newest of them can answer.
create index expired_xid on rowcast.expired (xid);
create index expired_broadcast_xid on rowcast.expired_broadcast (xid);
reset role;

insert into rowcast.migration (version, name, sha256) values (7, '0007_revocation', '6655ccebe7b6d38f9700cacf1e861015141d099e99117be06e4a989c2862569c');

set local role rowcast_owner;
-- migrations/0008_handles.sql
-- Where clients that keep no cursor left off. Unlogged: after a crash they start live, and are
-- told so. The key is a digest of subject, handle and channel: rows are small, whatever those are.
create unlogged table rowcast.handle (
    key bytea primary key check (octet_length(key) = 32),
    cursor text not null check (octet_length(cursor) <= 65536),
    kept_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);
create index handle_kept_at on rowcast.handle (kept_at);
reset role;

insert into rowcast.migration (version, name, sha256) values (8, '0008_handles', 'c2842f1087b960c81c47e0cb2eb9d4ebd53bcdfeebf9ca48e2069faf3986bb26');

set local role rowcast_owner;
-- migrations/0009_census.sql
-- Who is connected, for as long as somebody asks: a request, the bridges that have answered, and
-- what they have said.
--
-- Claims of tokens are personal data. UNLOGGED keeps them out of the WAL, of its archive and of
-- standbys, and all of it goes with the request: when it was read, or after two minutes.
--
-- Nothing is checked but by keys: a row that a check refuses would stand in the server's log, with
-- its claims.

create unlogged table rowcast.census_request (
    id uuid primary key default gen_random_uuid(),
    asked_at timestamptz not null default clock_timestamp(),
    nodes uuid[] not null
);

-- One row per bridge that has said all; left_out counts subscriptions that were too many.
create unlogged table rowcast.census_answer (
    request uuid not null references rowcast.census_request (id) on delete cascade,
    node uuid not null,
    left_out integer not null,
    primary key (request, node)
);

-- How many sessions of a node are subscribed to a channel with these very claims.
create unlogged table rowcast.census (
    request uuid references rowcast.census_request (id) on delete cascade,
    node uuid,
    role text,
    claims text,
    channel text,
    sessions integer
);
create index census_request_idx on rowcast.census (request);
reset role;

insert into rowcast.migration (version, name, sha256) values (9, '0009_census', 'e66eec4d191da92287c188c4c17d4d0f22e64fdc61cf16c33a71189ee756fcaa');

set local role rowcast_owner;
-- migrations/0010_leaves.sql
-- Which state of the registry of leaves this is: one more after every change of it.
--
-- A drain reads this row anyway, in its own snapshot. So it knows that the compiled query still
-- names every leaf it needs without looking at all of them, which took a third of a drain.
alter table rowcast.origin add column leaves bigint not null default 0;

-- The index that drains read comes last. Of two indexes that cost the same Postgres takes the
-- younger one, and all cost the same on a leaf that was vacuumed while it was empty. A bridge keeps
-- the plan it made then, and with (channel_id, seq) or (channel_name, xid) each drain would read
-- the whole index of the day, until the leaf is analyzed.
drop index rowcast.messages_durable_xid;
create index messages_durable_xid on rowcast.messages_durable (xid);
drop index rowcast.messages_broadcast_xid;
create index messages_broadcast_xid on rowcast.messages_broadcast (xid);
reset role;

insert into rowcast.migration (version, name, sha256) values (10, '0010_leaves', '5f04c0c181692a692ee977386dacb7936072c4a1e723c9cd665dbc66950907c4');

set local role rowcast_owner;
-- migrations/0011_replica_identity.sql
-- Where somebody publishes all tables for logical replication, nothing can be deleted from one that
-- has neither a primary key nor this, and the fold does delete from these. Leaves get theirs from
-- watch_leaf(). Costs nothing where nothing is replicated.
alter table rowcast.removal replica identity full;
alter table rowcast.delivery_change replica identity full;
reset role;

insert into rowcast.migration (version, name, sha256) values (11, '0011_replica_identity', '559d2525fc2977d584e7dff9d2ec091626c6b102eb358d5dbad86dd089f799a9');

set local role rowcast_owner;
-- sql/10_context.sql
-- Who is asking, in the words of PostgREST and Supabase, so that people's policies work as they
-- are. A transaction-local setting reads back as '' after commit, never as NULL, hence nullif
-- everywhere. One-line bodies are inlined and bound at creation: no search_path can move them.

-- The verified claims of the token.
create or replace function rowcast.jwt()
returns jsonb
language sql
stable
parallel safe
return nullif(current_setting('request.jwt.claims', true), '')::jsonb;

comment on function rowcast.jwt() is 'Claims of the caller as jsonb, NULL without a token.';

-- The subject as text: third-party subjects are not UUIDs.
create or replace function rowcast.user_id()
returns text
language sql
stable
parallel safe
return coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    rowcast.jwt() ->> 'sub'
);

comment on function rowcast.user_id() is 'The `sub` claim as text, NULL for anonymous callers.';

-- The subject as uuid. A subject that is none gives NULL: an error here would poison every
-- policy of the statement, also those for other roles.
create or replace function rowcast.uid()
returns uuid
language sql
stable
parallel safe
return case
    when rowcast.user_id() ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
        then rowcast.user_id()::uuid
end;

comment on function rowcast.uid() is 'The `sub` claim as uuid, NULL when it is none.';

-- The role claim, which PostgREST also makes the current role.
create or replace function rowcast.role()
returns text
language sql
stable
parallel safe
return coalesce(
    nullif(current_setting('request.jwt.claim.role', true), ''),
    rowcast.jwt() ->> 'role'
);

comment on function rowcast.role() is 'The `role` claim, NULL without a token.';

-- The address, as far as the issuer puts one into its tokens.
create or replace function rowcast.email()
returns text
language sql
stable
parallel safe
return coalesce(
    nullif(current_setting('request.jwt.claim.email', true), ''),
    rowcast.jwt() ->> 'email'
);

comment on function rowcast.email() is 'The `email` claim, NULL when there is none.';

-- Names are tested in policies for one channel at a time; the bridge sets the name before it asks.
create or replace function rowcast.channel_name()
returns text
language sql
stable
parallel safe
return nullif(current_setting('rowcast.channel_name', true), '');

comment on function rowcast.channel_name() is
'The name that is being asked for. For policies on realtime_channels only: in a policy on realtime_messages use the row''s channel_name.';

-- Sets who asks, for one statement's worth of policies: claims, their legacy names, the channel.
-- All local to the transaction. The role is set first and for every single question, because a
-- policy function may have changed it while the question before was answered.
create or replace function rowcast.impersonate(p_role text, p_claims text, p_channel text)
returns void
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select
        set_config('role', p_role, true),
        set_config('request.jwt.claims', coalesce(p_claims, ''), true),
        set_config('request.jwt.claim.sub', coalesce(p_claims::jsonb ->> 'sub', ''), true),
        set_config('request.jwt.claim.role', coalesce(p_claims::jsonb ->> 'role', ''), true),
        set_config('rowcast.channel_name', coalesce(p_channel, ''), true);
end;

comment on function rowcast.impersonate(text, text, text) is
'Sets role, claims and channel for the rest of the transaction. Role must be granted to the session user.';
reset role;

set local role rowcast_owner;
-- sql/11_patterns.sql
-- Names and patterns. Segments are joined by ':'. In a pattern '*' is exactly one segment and
-- '**', last only, one or more; a name is literal and has no '*' at all, so that no name can be
-- spelled like somebody's pattern.

-- Visible characters only: controls, blanks, and the marks that change how text is displayed
-- are refused, because names end up in headers, logs and URLs. One expression for characters,
-- segments and their number: every node of it is set up anew in every transaction that publishes.
create or replace function rowcast.is_name(p_name text)
returns boolean
language sql
immutable
parallel safe
return octet_length(p_name) <= 255
and p_name !~ (
    '[\u0001-\u0020\u007F-\u00A0\u00AD\u061C\u1680\u180E\u2000-\u200F'
    '\u2028-\u202F\u205F-\u206F\u3000\uFEFF*]|::|^:|:$|^$|(:[^:]*){16}'
);

comment on function rowcast.is_name(text) is
'True for a channel name: up to 16 non-empty segments joined by ":", at most 255 bytes, no blanks, no "*".';

-- No wildcard inside a segment: what a pattern matches must be plain to see, and cheap to find.
create or replace function rowcast.is_pattern(p_pattern text)
returns boolean
language sql
immutable
parallel safe
return octet_length(p_pattern) <= 255
and p_pattern ~ '^(\*\*|([^:*]+|\*)(:([^:*]+|\*))*(:\*\*)?)$'
and rowcast.is_name(replace(p_pattern, '*', 'x'));

comment on function rowcast.is_pattern(text) is
'True for a channel pattern: a name in which a whole segment may be "*" and the last one "**".';

-- 'a' literal, 'b' *, 'c' **: in "C" order the most specific shape comes first.
create or replace function rowcast.pattern_shape_of(p_pattern text)
returns text
language sql
immutable
parallel safe
return (
    select
        string_agg(
            case s.segment when '*' then 'b' when '**' then 'c' else 'a' end, '' order by s.n
        )
    from unnest(string_to_array(p_pattern, ':')) with ordinality as s (segment, n)
);

comment on function rowcast.pattern_shape_of(text) is
'The shape of a pattern, one letter per segment, that sorts by specificity in collation "C".';

-- Which patterns could govern a name of so many segments, as templates for format() in order of
-- specificity, joined by blanks: element 2 of the result is '%1$s:%2$s %1$s:*' where the shapes
-- in use are 'aa' and 'ab'.
create or replace function rowcast.templates_of(p_shapes text[])
returns text[]
language sql
immutable
parallel safe
begin atomic
    select
        array_agg((
            select
                string_agg(
                    (
                        select
                            string_agg(
                                case substr(u.shape, i, 1)
                                    when 'a' then '%' || i || '$s' when 'b' then '*' else '**'
                                end,
                                ':' order by i
                            )
                        from generate_series(1, length(u.shape)) as i
                    ), ' ' order by u.shape collate "C"
                )
            from unnest(p_shapes) as u (shape)
            where length(u.shape) = d or length(u.shape) < d and right(u.shape, 1) = 'c'
        ) order by d)
    from generate_series(1, 16) as d;
end;

comment on function rowcast.templates_of(text[]) is
'For names of 1 to 16 segments the templates of the patterns that can match them, most specific first.';

-- Which channel row governs a name: the most specific pattern, and it alone, also when it is
-- disabled. One probe of the unique index for every shape in use that fits the number of
-- segments; LIKE or a regex over stored patterns costs a thousand times more at 100,000 rows.
--
-- The stamping trigger has the same loop of its own, because a call costs as much as the lookup.
--
-- Without sequential scans: a session that planned for ten channels keeps its plan, and would
-- read the whole table for every message once there are thousands.
create or replace function rowcast.governing(p_name text)
returns uuid
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_segments constant text[] := string_to_array(p_name, ':');
    v_template text;
    v_id uuid;
begin
    -- What is no name has no channel, although a pattern would fit, or be it.
    if rowcast.is_name(p_name) is not true then
        return null;
    end if;
    foreach v_template in array rowcast.templates(cardinality(v_segments)) loop
        select c.id into v_id
        from public.realtime_channels as c
        where c.pattern = format(v_template, variadic v_segments);
        exit when found;
    end loop;
    return v_id;
end;
$$;

comment on function rowcast.governing(text) is
'Id of the channel row that governs a name, enabled or not; NULL when there is none.';

-- The same with what publishers must know to say why not. A join instead of the sub-select would be
-- hashed, which reads every channel.
create or replace function rowcast.resolve(
    p_name text, out channel_id uuid, out channel_enabled boolean
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
begin atomic
    select
        c.id,
        c.enabled
    from public.realtime_channels as c
    where c.id = (select rowcast.governing(p_name));
end;

comment on function rowcast.resolve(text) is
'The one channel row that governs a name, enabled or not; NULLs when there is none.';

-- All of this that callers may know without a policy. Whether an enabled channel takes a message to
-- the name is what publishing tells them anyway; that one is disabled, or that there is a pattern
-- of this spelling, it does not tell.
create or replace function rowcast.open_channel(p_name text)
returns uuid
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
begin atomic
    select c.id
    from public.realtime_channels as c
    where c.id = (select rowcast.governing(p_name)) and c.enabled;
end;

comment on function rowcast.open_channel(text) is
'Id of the channel row that governs a name, if it is enabled; otherwise NULL, as where there is none.';
reset role;

set local role rowcast_owner;
-- sql/12_segments.sql
-- Parts of a name, for policies. NULL instead of an error everywhere: a cast that fails in one
-- policy would make every other channel fail with it, because all policies of a table run.
--
-- On realtime_messages only the forms with a name: a form without arguments in a scalar
-- sub-select is evaluated once per statement, and a two-row INSERT then publishes to a channel
-- that was never checked.

-- For policies on realtime_messages, with the channel_name of the row.
create or replace function rowcast.segment(p_name text, p_n integer)
returns text
language sql
immutable
parallel safe
return case when p_n <> 0 then nullif(split_part(p_name, ':', p_n), '') end;

comment on function rowcast.segment(text, integer) is
'The n-th segment of a name, counted from 1, or from the end when negative; NULL when absent.';

-- To compare with a uuid column whose index is then used.
create or replace function rowcast.segment_uuid(p_name text, p_n integer)
returns uuid
language sql
immutable
parallel safe
return case
    when rowcast.segment(p_name, p_n) ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
        then rowcast.segment(p_name, p_n)::uuid
end;

comment on function rowcast.segment_uuid(text, integer) is
'The n-th segment as uuid, NULL when it is none.';

-- At most 18 digits: every such number is a bigint.
create or replace function rowcast.segment_int(p_name text, p_n integer)
returns bigint
language sql
immutable
parallel safe
return case
    when rowcast.segment(p_name, p_n) ~ '^-?[0-9]{1,18}$'
        then rowcast.segment(p_name, p_n)::bigint
end;

comment on function rowcast.segment_int(text, integer) is
'The n-th segment as bigint, NULL when it is none.';

-- For policies on realtime_channels, where there is one name per question.
create or replace function rowcast.segment(p_n integer)
returns text
language sql
stable
parallel safe
return rowcast.segment(rowcast.channel_name(), p_n);

comment on function rowcast.segment(integer) is
'The n-th segment of the name being asked for. For policies on realtime_channels only.';

-- The same as uuid, for policies on realtime_channels.
create or replace function rowcast.segment_uuid(p_n integer)
returns uuid
language sql
stable
parallel safe
return rowcast.segment_uuid(rowcast.channel_name(), p_n);

comment on function rowcast.segment_uuid(integer) is
'The n-th segment of the name being asked for as uuid. For policies on realtime_channels only.';

-- The same as bigint, for policies on realtime_channels.
create or replace function rowcast.segment_int(p_n integer)
returns bigint
language sql
stable
parallel safe
return rowcast.segment_int(rowcast.channel_name(), p_n);

comment on function rowcast.segment_int(integer) is
'The n-th segment of the name being asked for as bigint. For policies on realtime_channels only.';
reset role;

set local role rowcast_owner;
-- sql/13_constants.sql
-- The settings that every publish needs, compiled into constants. To read the one row of settings
-- costs a publisher a tenth of its throughput; a constant costs nothing, and Postgres itself
-- plans anew in every session when one of these functions is replaced, because it was inlined.

-- The values here are placeholders, which the end of this file replaces.
create or replace function rowcast.payload_limit()
returns integer
language sql
immutable
parallel safe
return 0;

comment on function rowcast.payload_limit() is
'The largest payload in bytes of text; a constant that a change of the settings replaces.';

-- Who publishes as an end user, and whom a token may name.
create or replace function rowcast.caller_roles()
returns text[]
language sql
immutable
parallel safe
return '{}'::text[];

comment on function rowcast.caller_roles() is
'The roles a token may name; a constant that a change of the settings replaces.';

-- Which patterns could govern a name; the shapes in use are part of it, see templates_of().
create or replace function rowcast.templates(p_segments integer)
returns text[]
language sql
immutable
parallel safe
return '{}'::text[];

comment on function rowcast.templates(integer) is
'Templates of the patterns in use that can match a name of so many segments, most specific first; a constant that a new shape replaces.';

-- Definer: whoever adds the first channel of a new shape changes the settings with it. Whoever
-- changes them holds a lock on the row, so two cannot replace a function at once.
create or replace function rowcast.settings_compile()
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_settings rowcast.settings;
begin
    select s.* into v_settings from rowcast.settings as s;
    execute format(
        'create or replace function rowcast.payload_limit() returns integer'
        ' language sql immutable parallel safe return %L::integer',
        v_settings.payload_limit
    );
    execute format(
        'create or replace function rowcast.caller_roles() returns text[]'
        ' language sql immutable parallel safe return %L::text[]',
        v_settings.caller_roles
    );
    execute format(
        'create or replace function rowcast.templates(p_segments integer) returns text[]'
        ' language sql immutable parallel safe'
        ' return coalesce(string_to_array((%L::text[])[p_segments], '' ''), ''{}'')',
        rowcast.templates_of(v_settings.shapes)
    );
end;
$$;

comment on function rowcast.settings_compile() is
'Replaces payload_limit(), caller_roles() and templates() by constants of the present settings.';

-- A trigger, so that nobody who changes the settings has to think of it.
create or replace function rowcast.settings_changed()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.settings_compile();
    return null;
end;
$$;

comment on function rowcast.settings_changed() is
'Trigger of settings: compiles them.';

create or replace trigger settings_90_changed
after insert or update on rowcast.settings
for each row execute function rowcast.settings_changed();

select rowcast.settings_compile();
reset role;

set local role rowcast_owner;
-- sql/14_times.sql
-- Times as every JSON of ours has them.

-- Milliseconds and Z, as JavaScript writes it and as the bridge does.
create or replace function rowcast.iso_time(p_at timestamptz)
returns text
language sql
stable
parallel safe
return to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"');

comment on function rowcast.iso_time(timestamptz) is
'A time as ISO 8601 in UTC with milliseconds.';
reset role;

set local role rowcast_owner;
-- sql/20_channels.sql
-- Keeps what every lookup relies on: valid patterns, a known shape, an honest updated_at.

do $$
begin
    if not exists (
        select from pg_catalog.pg_constraint as k
        where k.conrelid = 'public.realtime_channels'::regclass
        and k.conname = 'realtime_channels_pattern_check'
    ) then
        alter table public.realtime_channels
        add constraint realtime_channels_pattern_check check (rowcast.is_pattern(pattern));
    end if;
end;
$$;

-- Definer, because whoever may write a channel need not see the table of shapes.
-- The check constraint would refuse a bad pattern too, but cannot say how to mend it.
create or replace function rowcast.channels_guard()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_shape constant text := rowcast.pattern_shape_of(new.pattern);
begin
    if rowcast.is_pattern(new.pattern) is not true then
        raise exception 'channel pattern "%" is not valid', left(new.pattern, 300)
        using errcode = 'RCN03',
        hint = 'Use up to 16 non-empty segments joined by ":", at most 255 bytes, without blanks; a whole segment may be "*", and only the last one "**".';
    end if;
    if tg_op = 'UPDATE' then
        new.updated_at := now();
    end if;
    -- The array is read with every publish, so it is written only when the shape is new.
    if (select v_shape <> all (s.shapes) from rowcast.settings as s) then
        update rowcast.settings as s
        set shapes = array(select u.shape from unnest(s.shapes || v_shape) as u (shape) order by u.shape)
        where v_shape <> all (s.shapes);
    end if;
    return new;
end;
$$;

comment on function rowcast.channels_guard() is
'Trigger of realtime_channels: refuses bad patterns in words, records the shape, sets updated_at.';

create or replace trigger realtime_channels_10_guard
before insert or update on public.realtime_channels
for each row execute function rowcast.channels_guard();
reset role;

set local role rowcast_owner;
-- sql/21_wildcard.sql
-- Subscribing to a stored pattern itself. A policy that ignores the name would open every room to
-- whoever may join one, so the channel row must say `wildcard`, and policies are asked besides.

-- Segment by segment, because what is stored must never be run as a regex or LIKE.
create or replace function rowcast.pattern_matches(p_pattern text, p_name text)
returns boolean
language sql
immutable
parallel safe
begin atomic
    select
        case
            when split_part(p_pattern, ':', -1) = '**'
                then cardinality(n.segments) >= cardinality(p.segments)
            else cardinality(n.segments) = cardinality(p.segments)
        end
        and not exists (
            select from unnest(p.segments) with ordinality as s (segment, i)
            where s.segment not in ('*', '**') and s.segment is distinct from n.segments[s.i]
        )
    from (select string_to_array(p_name, ':') as segments) as n,
        (select string_to_array(p_pattern, ':') as segments) as p;
end;

comment on function rowcast.pattern_matches(text, text) is
'True when the pattern matches the name, whether or not another row governs it.';

-- The row that answers for a subscription: for a name the governing one, for a pattern its own.
-- A join instead of the sub-selects would be hashed, which reads every channel.
create or replace function rowcast.subscribable(
    p_name text, out channel_id uuid, out channel_enabled boolean, out channel_open boolean
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
begin atomic
    select
        c.id,
        c.enabled,
        c.wildcard or position('*' in p_name) = 0
    from public.realtime_channels as c
    where c.id = case
            when position('*' in p_name) = 0 then (select rowcast.governing(p_name))
            else (
                select w.id from public.realtime_channels as w
                where w.pattern = p_name
            )
        end;
end;

comment on function rowcast.subscribable(text) is
'The channel row that a subscription to this name or pattern is judged by, whether it is enabled, and whether the row allows such a subscription at all; NULLs when there is none.';
reset role;

set local role rowcast_owner;
-- sql/30_stamp.sql
-- What no writer may choose. Fires for every row on every leaf, whoever inserts.

-- Remembers the role whose statement this is. It must be a function of its own: in the definer
-- function below current_user is already the owner, and the setting `role` is no substitute,
-- because it stays the end user's inside somebody else's definer function.
--
-- No search_path: nothing in here is looked up, and to set one costs more than the work.
create or replace function rowcast.messages_caller()
returns trigger
language plpgsql
volatile
security invoker
as $$
begin
    new.sender_type := current_user;
    return new;
end;
$$;

comment on function rowcast.messages_caller() is
'Trigger of realtime_messages: hands the current role to messages_stamp in sender_type.';

-- A UUID version 7 (RFC 9562: 48 bits of milliseconds, here 12 bits of the sequence, then 53 random
-- bits), so that ids are in order of time and a message is found by its id through the index on
-- time. random(), because an id is no secret, and gen_random_uuid() opens /dev/urandom for every
-- message where Postgres is built without OpenSSL: a tenth of what a publish costs.
create or replace function rowcast.message_id(p_created_at timestamptz, p_seq bigint)
returns uuid
language sql
volatile
parallel restricted
return encode(
    int8send(((date_part('epoch', p_created_at) * 1000)::bigint << 16) | 28672 | (p_seq & 4095))
    || int8send((random() * 4611686018427387904)::bigint | '-9223372036854775808'::bigint),
    'hex'
)::uuid;

comment on function rowcast.message_id(timestamptz, bigint) is
'A new UUID version 7 for a message created at that time with that sequence number.';

-- Says in words why a message cannot be published. Apart, because the trigger below finds out in
-- one expression that something is wrong, and what it is does not concern the others.
create or replace function rowcast.messages_refuse(
    p_type text, p_channel text, p_event text, p_payload jsonb, p_created_at timestamptz
)
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    -- Compared, not subtracted: before 17 the difference to infinity is an error of its own.
    if p_created_at is null or p_created_at not between clock_timestamp() - interval '1 minute' and clock_timestamp() + interval '1 minute' then
        raise exception 'created_at % is more than a minute off the database clock', p_created_at
        using errcode = 'RCM04', hint = 'Leave created_at out: it defaults to the time of the insert.';
    elsif p_type is null or p_type not in ('message', 'broadcast') then
        raise exception 'message type "%" does not exist', left(p_type, 100)
        using errcode = 'RCM02', hint = 'Use "message" (durable, in history) or "broadcast" (ephemeral).';
    elsif p_event is null or octet_length(p_event) not between 1 and 255 or p_event ~ '[\u0001-\u001F\u007F-\u009F]' then
        raise exception 'event name "%" is not valid', left(p_event, 300)
        using errcode = 'RCM03', hint = 'Use 1 to 255 bytes without control characters.';
    elsif rowcast.is_name(p_channel) is not true then
        raise exception 'channel name "%" is not valid', left(p_channel, 300)
        using errcode = 'RCN02',
        hint = 'Use up to 16 non-empty segments joined by ":", at most 255 bytes, without blanks and "*".';
    elsif p_payload is null then
        raise exception 'payload for channel "%" is NULL', p_channel
        using errcode = 'RCM01', hint = 'Leave the payload out for {}, or publish the JSON value null.';
    elsif octet_length(p_payload::text) > rowcast.payload_limit() then
        raise exception 'payload of % bytes for channel "%" is over the limit of % bytes',
            octet_length(p_payload::text), p_channel, rowcast.payload_limit()
        using errcode = 'RCM01', hint = 'Store the data and publish its id, or raise payload_limit in rowcast.settings.';
    end if;
    raise exception 'there is no enabled channel for "%"', p_channel
    using errcode = 'RCN01',
    hint = 'Insert a matching pattern into realtime_channels, enable it, or publish with missing_ok => true.';
end;
$$;

comment on function rowcast.messages_refuse(text, text, text, jsonb, timestamptz) is
'Raises RCM01 to RCM04, RCN01 or RCN02 for a message that messages_stamp cannot accept.';

-- Stamps xid, seq, id, sender, channel and counts, and refuses what cannot be delivered.
--
-- This is the hot path of every publisher. A query is set up for every row with all it computes,
-- and an expression once for every transaction: so queries fetch columns, and constants with them.
--
-- The xid is taken first, before the clock is tested: a leaf is closed at an xid taken a minute
-- after its range, and whoever passed the clock test must have an older one. created_at itself
-- is not stamped, because a BEFORE trigger cannot move a row to another leaf.
--
-- The audience is one row that bridges keep up to date (sql/55_audience.sql), and counts as long as
-- one of them is alive: the dead are cleared away by the living, so without any it would stay.
--
-- The payload is measured as text, not as stored: eight bytes of 1e131000 are 131 kB on the wire.
create or replace function rowcast.messages_stamp()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_segments constant text[] := string_to_array(new.channel_name, ':');
    v_template text;
    -- A probe that finds nothing leaves NULLs in all it fills.
    v_enabled boolean;
    v_webhooks boolean;
    v_pattern text;
    v_sessions integer;
    v_asked text;
    v_first uuid;
begin
    new.xid := pg_current_xact_id();
    new.seq := nextval('rowcast.message_seq');
    foreach v_template in array rowcast.templates(cardinality(v_segments)) loop
        select c.id, c.enabled, c.webhook_urls is not null, case when c.wildcard then c.pattern end, 0, 0, null
        into new.channel_id, v_enabled, v_webhooks, v_pattern, new.ws_audience_count, new.wh_audience_count, new.sender_id
        from public.realtime_channels as c
        where c.pattern = format(v_template, variadic v_segments);
        exit when found;
    end loop;
    if (
        v_enabled
        and new.type in ('message', 'broadcast')
        and new.created_at between clock_timestamp() - interval '1 minute' and clock_timestamp() + interval '1 minute'
        and octet_length(new.event_name) between 1 and 255
        and new.event_name !~ '[\u0001-\u001F\u007F-\u009F]'
        and rowcast.is_name(new.channel_name)
        and octet_length(new.payload::text) <= rowcast.payload_limit()
    ) is not true then
        perform rowcast.messages_refuse(new.type, new.channel_name, new.event_name, new.payload, new.created_at);
    end if;
    new.id := rowcast.message_id(new.created_at, new.seq);

    if pg_sequence_last_value('rowcast.alive_until'::regclass) > date_part('epoch', new.created_at) * 1000 then
        select a.sessions into v_sessions from rowcast.audience_total as a where a.channel_name = new.channel_name;
        new.ws_audience_count := coalesce(v_sessions, 0);
        -- Who subscribes to the pattern itself hears this, too.
        if v_pattern is not null then
            select a.sessions into v_sessions from rowcast.audience_total as a where a.channel_name = v_pattern;
            new.ws_audience_count := new.ws_audience_count + coalesce(v_sessions, 0);
        end if;
    end if;
    if v_webhooks and new.type = 'message' then
        new.wh_audience_count := rowcast.webhook_count(new.channel_id);
    end if;

    if new.sender_type = any (rowcast.caller_roles()) then
        new.sender_type := 'user';
        -- The policies were asked for one name, and a caller's other rows must not travel along
        -- with it. What the system publishes meanwhile, in a trigger, is no affair of policies.
        v_asked := current_setting('rowcast.channel_name', true);
        if v_asked <> '' and v_asked <> new.channel_name then
            raise exception 'channel "%" is not the channel "%" of this publish', new.channel_name, v_asked
            using errcode = 'RCM05', hint = 'Publish to each channel with a statement of its own.';
        end if;
        new.sender_id := rowcast.user_id();
    else
        new.sender_type := 'system';
    end if;

    if new.publish_key is not null then
        insert into rowcast.publish_key (sender, key, message_id, seq)
        values (new.sender_type || ':' || coalesce(new.sender_id, ''), new.publish_key, new.id, new.seq)
        on conflict do nothing;
        if not found then
            select k.message_id into v_first
            from rowcast.publish_key as k
            where k.sender = new.sender_type || ':' || coalesce(new.sender_id, '')
            and k.key = new.publish_key;
        end if;
    end if;
    -- RETURNING would need a SELECT policy, so publish() asks for the id here.
    if current_setting('rowcast.message_id', true) = 'wanted' then
        perform set_config('rowcast.message_id', coalesce(v_first, new.id)::text, true);
    end if;
    if v_first is not null then
        return null;
    end if;
    return new;
end;
$$;

comment on function rowcast.messages_stamp() is
'Trigger of realtime_messages: stamps what no writer may choose, and refuses with RCN01, RCN02, RCM01 to RCM05.';

create or replace trigger realtime_messages_10_caller
before insert on public.realtime_messages
for each row execute function rowcast.messages_caller();

create or replace trigger realtime_messages_20_stamp
before insert on public.realtime_messages
for each row execute function rowcast.messages_stamp();
reset role;

set local role rowcast_owner;
-- sql/31_doorbell.sql
-- The doorbell. NOTIFY takes one lock of the whole cluster from before the commit until it is
-- flushed, so transactions that notify cannot share an fsync: at 32 writers a fifth of the commit
-- rate is left. Therefore nobody rings while every bridge is awake and polling. A bridge that is
-- about to sleep holds the doorbell lock in share mode, and only then a publisher rings.

-- A sleeper shares the lock, so a publisher that gets it alone knows that nobody sleeps. Where it
-- cannot, another publisher may be asking at this moment, and to ring for that would ring a
-- hundred times an hour for nobody under load: whoever then gets not even a share has met a
-- publisher that holds it alone, and whoever gets a share and with it the whole has met one
-- that is gone.
--
-- No share is given either while somebody waits for the whole. Nobody of ours ever does, but any
-- login may, beside a bridge that sleeps. So where there is neither, which is rare, the table of
-- locks is asked; to ask it always would cost more than the publish.
--
-- All locks and releases stand in one expression: as two statements a cancel in between
-- leaves the session lock held for ever (89 of 150 cancels). Where prepared transactions are
-- possible bridges poll, because PREPARE refuses a transaction that notified.
--
-- No search_path: every name in here is qualified, and to set one costs more than the work.
create or replace function rowcast.ring()
returns trigger
language plpgsql
volatile
security invoker
as $$
declare
    v_sleeps boolean := case
        when pg_catalog.pg_try_advisory_lock(1919903587, 1)
            then not pg_catalog.pg_advisory_unlock(1919903587, 1)
        when not pg_catalog.pg_try_advisory_lock_shared(1919903587, 1)
            then null
        when pg_catalog.pg_try_advisory_lock(1919903587, 1)
            then not (
                pg_catalog.pg_advisory_unlock(1919903587, 1)
                and pg_catalog.pg_advisory_unlock_shared(1919903587, 1)
            )
        else pg_catalog.pg_advisory_unlock_shared(1919903587, 1)
    end;
begin
    if v_sleeps is null then
        v_sleeps := exists (
            select from pg_catalog.pg_locks as l
            where l.locktype operator(pg_catalog.=) 'advisory'
            and l.classid operator(pg_catalog.=) 1919903587
            and l.objid operator(pg_catalog.=) 1
            and l.objsubid operator(pg_catalog.=) 2
            and l.mode operator(pg_catalog.=) 'ShareLock'
            and l.granted
        );
    end if;
    if v_sleeps then
        if pg_catalog.current_setting('max_prepared_transactions')::pg_catalog.int4 operator(pg_catalog.=) 0 then
            perform pg_catalog.pg_notify('rowcast', '');
        end if;
    end if;
    return null;
end;
$$;

comment on function rowcast.ring() is
'Statement trigger: NOTIFY rowcast, only when a bridge sleeps (holds the advisory lock 1919903587, 1).';

create or replace trigger realtime_messages_90_ring
after insert on public.realtime_messages
for each statement execute function rowcast.ring();

create or replace trigger signal_90_ring
after insert on rowcast.signal
for each statement execute function rowcast.ring();

-- Who may have passed the doorbell without hearing that a bridge sleeps: transactions that hold
-- a writer's lock on our tables. Locks are released after the transaction is visible, so once
-- these are gone a drain sees all they wrote. On leaves as well: whoever names one holds none on
-- their parent. Waiting for the oldest xid of the cluster instead would wait for transactions that
-- have nothing to do with us.
create or replace function rowcast.writers()
returns text[]
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select coalesce(array_agg(distinct l.virtualtransaction), '{}')
    from pg_catalog.pg_locks as l
    where l.locktype = 'relation'
        and l.database = (
            select d.oid from pg_catalog.pg_database as d
            where d.datname = current_database()
        )
        and (
            l.relation in (
                'public.realtime_messages'::regclass,
                'rowcast.signal'::regclass,
                'rowcast.presence'::regclass
            )
            -- Not by pg_partition_tree(), which locks each leaf and waits for who drops one.
            or exists (
                select from pg_catalog.pg_class as c
                where c.oid = l.relation and c.relispartition
                    and c.relnamespace = 'rowcast'::regnamespace
            )
        )
        and l.granted
        and l.mode in (
            'RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'
        );
end;

comment on function rowcast.writers() is
'Virtual transaction ids that hold a writer''s lock on the message table, a leaf of it, or the signal or presence table.';

-- A bridge's way to sleep. Never waits: a publisher holds the lock for microseconds only.
create or replace function rowcast.doze()
returns boolean
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
return pg_try_advisory_lock_shared(1919903587, 1);

comment on function rowcast.doze() is
'Takes the doorbell lock in share mode for this session; false when a publisher holds it right now.';

-- Awake again: from now on publishers need not ring for this bridge.
create or replace function rowcast.wake()
returns boolean
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
return pg_advisory_unlock_shared(1919903587, 1);

comment on function rowcast.wake() is 'Releases the doorbell lock of this session.';

-- Proves that this session still hears: the lock is what makes publishers ring, the
-- notification is what they ring with. A pooler in transaction mode fails the first.
create or replace function rowcast.probe(p_nonce text)
returns boolean
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select pg_notify('rowcast', p_nonce);
    select exists(
        select from pg_catalog.pg_locks as l
        where l.locktype = 'advisory'
            and l.pid = pg_backend_pid()
            and l.classid = 1919903587 and l.objid = 1 and l.objsubid = 2
            and l.mode = 'ShareLock'
            and l.granted
    );
end;

comment on function rowcast.probe(text) is
'Notifies this session with the nonce; true when it holds the doorbell lock.';
reset role;

set local role rowcast_owner;
-- sql/32_publish.sql
-- Publishing from SQL. publish() runs with the caller's rights: policies decide.
-- publish_as_system() is for trusted code, and only for roles granted rowcast_publisher.

-- Inside a trigger a refusal rolls back the user's own statement, so it must say which two ways
-- there are. The exception block is a subtransaction, therefore only there. And the trigger may
-- be one of realtime_messages, whose own publisher still waits for its id.
--
-- A trigger of the team may drop the row after it was stamped. So an id is answered for a row that
-- was inserted, and where a key was given, because then it may be the first message's.
create or replace function rowcast.publish(
    channel text,
    event text,
    payload jsonb default '{}',
    type text default 'message',
    id uuid default null,
    missing_ok boolean default false
)
returns uuid
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_outer text;
    v_message text;
    v_id uuid;
begin
    if publish.missing_ok and rowcast.is_name(publish.channel)
        and rowcast.open_channel(publish.channel) is null
    then
        return null;
    end if;
    if pg_trigger_depth() = 0 then
        perform set_config('rowcast.message_id', 'wanted', true);
        insert into public.realtime_messages (type, channel_name, event_name, payload, publish_key)
        values (publish.type, publish.channel, publish.event, publish.payload, publish.id);
        return case when found or publish.id is not null then nullif(current_setting('rowcast.message_id', true), 'wanted')::uuid end;
    else
        v_outer := coalesce(current_setting('rowcast.message_id', true), '');
        perform set_config('rowcast.message_id', 'wanted', true);
        begin
            insert into public.realtime_messages (type, channel_name, event_name, payload, publish_key)
            values (publish.type, publish.channel, publish.event, publish.payload, publish.id);
        exception when insufficient_privilege then
            get stacked diagnostics v_message = message_text;
            raise exception '%', v_message
            using errcode = '42501',
            hint = 'This trigger publishes as the end user, whom the policies of realtime_messages refuse. Let trusted code publish with rowcast.publish_as_system() in a SECURITY DEFINER function of a role granted rowcast_publisher, or use rowcast.attach().';
        end;
        if found or publish.id is not null then
            v_id := nullif(current_setting('rowcast.message_id', true), 'wanted')::uuid;
        end if;
        perform set_config('rowcast.message_id', v_outer, true);
        return v_id;
    end if;
end;
$$;

comment on function rowcast.publish(text, text, jsonb, text, uuid, boolean) is
'Publishes one message in the caller''s transaction under the policies; returns its id. With an id (a key of the caller''s choice) a repeat within 24 hours returns the first message. Raises RCN01, RCN02, RCM01 to RCM05, 42501; missing_ok returns NULL where no enabled channel matches.';

-- One statement for many messages: 100 in one are about as fast as four alone.
create or replace function rowcast.publish_many(messages jsonb)
returns integer
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_count integer;
begin
    if jsonb_typeof(publish_many.messages) is distinct from 'array' then
        raise exception 'publish_many needs a JSON array of messages'
        using errcode = '22023',
        hint = 'Each element: {"channel": …, "event": …, "payload": {…}, "type": "message" | "broadcast", "id": …}; the last three may be left out.';
    end if;
    insert into public.realtime_messages (type, channel_name, event_name, payload, publish_key)
    select coalesce(m.value ->> 'type', 'message'), m.value ->> 'channel', m.value ->> 'event',
        coalesce(m.value -> 'payload', '{}'), (m.value ->> 'id')::uuid
    from jsonb_array_elements(publish_many.messages) with ordinality as m (value, n)
    order by m.n;
    get diagnostics v_count = row_count;
    return v_count;
end;
$$;

comment on function rowcast.publish_many(jsonb) is
'Publishes an array of {channel, event, payload, type, id} in one statement and in its order, under the policies; returns how many were new. All or none.';

-- Definer, so that a trigger of trusted code is not refused by a policy made for end users.
create or replace function rowcast.publish_as_system(
    channel text,
    event text,
    payload jsonb default '{}',
    type text default 'message',
    id uuid default null,
    missing_ok boolean default false
)
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_outer constant text := coalesce(current_setting('rowcast.message_id', true), '');
    v_id uuid;
begin
    if publish_as_system.missing_ok and rowcast.is_name(publish_as_system.channel)
        and rowcast.open_channel(publish_as_system.channel) is null
    then
        return null;
    end if;
    perform set_config('rowcast.message_id', 'wanted', true);
    insert into public.realtime_messages (type, channel_name, event_name, payload, publish_key)
    values (
        publish_as_system.type, publish_as_system.channel, publish_as_system.event,
        publish_as_system.payload, publish_as_system.id
    );
    if found or publish_as_system.id is not null then
        v_id := nullif(current_setting('rowcast.message_id', true), 'wanted')::uuid;
    end if;
    if pg_trigger_depth() > 0 then
        perform set_config('rowcast.message_id', v_outer, true);
    end if;
    return v_id;
end;
$$;

comment on function rowcast.publish_as_system(text, text, jsonb, text, uuid, boolean) is
'Like publish(), but as the system: no policy is asked and the sender is stamped `system`. Executable by rowcast_publisher.';
reset role;

set local role rowcast_owner;
-- sql/33_attach.sql
-- Changes of the user's own tables as messages, without a trigger written by hand.

-- Subscribers see the listed columns of every row, whatever row level security the table has:
-- who may see them is decided by the policies on the channel alone.
create or replace function rowcast.publish_row()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_new constant jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) end;
    v_old constant jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) end;
    v_columns constant text[] := nullif(tg_argv[1], '')::text[];
    v_channel text := '';
    v_before text;
    v_column text;
    v_value text;
begin
    -- Put together from left to right: a value that contains "{status}" is not filled in again.
    for v_before, v_column in
        select r.m[1], r.m[2] from regexp_matches(tg_argv[0], '(.*?)\{([^{}]+)\}', 'g') as r (m)
    loop
        v_value := coalesce(v_new, v_old) ->> v_column;
        if v_value is null then
            raise exception 'column "%" of %.% is null, so the channel "%" has no name',
                v_column, tg_table_schema, tg_table_name, tg_argv[0]
            using errcode = 'RCN02', hint = 'Name the channel by columns that are not null.';
        end if;
        -- One column is one segment: a ':' in the data must not reach another channel.
        if position(':' in v_value) > 0 then
            raise exception 'column "%" of %.% contains ":", which separates the segments of a channel',
                v_column, tg_table_schema, tg_table_name
            using errcode = 'RCN02', hint = 'Name the channel by a column without ":".';
        end if;
        v_channel := v_channel || v_before || v_value;
    end loop;
    v_channel := v_channel || regexp_replace(tg_argv[0], '^.*\{[^{}]+\}', '');
    if tg_argv[3]::boolean and rowcast.is_name(v_channel) and rowcast.open_channel(v_channel) is null then
        return null;
    end if;
    insert into public.realtime_messages (type, channel_name, event_name, payload)
    select tg_argv[2], v_channel, tg_op, jsonb_build_object(
        'schema', tg_table_schema, 'table', tg_table_name, 'operation', tg_op,
        'record', (
            select jsonb_object_agg(c.key, c.value) from jsonb_each(v_new) as c
            where v_columns is null or c.key = any (v_columns)
        ),
        'old_record', (
            select jsonb_object_agg(c.key, c.value) from jsonb_each(v_old) as c
            where v_columns is null or c.key = any (v_columns)
        )
    );
    return null;
end;
$$;

comment on function rowcast.publish_row() is
'Row trigger made by attach(); arguments: channel template, columns, type, missing_ok.';

-- Runs with the caller's rights: only who may create triggers on the table may attach it, and
-- only who may publish as the system may use the trigger function.
create or replace function rowcast.attach(
    "table" regclass,
    channel text,
    columns text[] default null,
    events text[] default '{insert,update,delete}',
    type text default 'message',
    missing_ok boolean default false
)
returns text
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_name constant text := 'rowcast_' || substr(md5(attach.channel), 1, 12);
    v_bad text;
begin
    select string_agg(e, ', ') into v_bad from unnest(attach.events) as e
    where lower(e) not in ('insert', 'update', 'delete');
    if v_bad is not null or coalesce(cardinality(attach.events), 0) = 0 then
        raise exception 'events "%" cannot be attached', coalesce(v_bad, '')
        using errcode = '22023', hint = 'Use insert, update, delete or some of them.';
    end if;
    if attach.type is null or attach.type not in ('message', 'broadcast') then
        raise exception 'message type "%" does not exist', attach.type
        using errcode = 'RCM02', hint = 'Use "message" (durable, in history) or "broadcast" (ephemeral).';
    end if;
    select string_agg(quote_ident(c.name), ', ') into v_bad
    from (
        select r.m[1] as name from regexp_matches(attach.channel, '\{([^{}]+)\}', 'g') as r (m)
        union
        select n.name from unnest(attach.columns) as n (name)
    ) as c
    where not exists (
        select from pg_catalog.pg_attribute as a
        where a.attrelid = attach."table" and a.attname = c.name and a.attnum > 0 and not a.attisdropped
    );
    if v_bad is not null then
        raise exception 'table % has no column %', attach."table", v_bad
        using errcode = '42703', hint = 'Name existing columns in the channel template and in columns.';
    end if;
    if rowcast.is_name(regexp_replace(attach.channel, '\{[^{}]+\}', 'x', 'g')) is not true then
        raise exception 'channel template "%" is not valid', attach.channel
        using errcode = 'RCN02', hint = 'Write a channel name with columns in braces, such as order:{id}.';
    end if;
    -- Otherwise the first change of a row would fail in production.
    if not attach.missing_ok
        and rowcast.open_channel(regexp_replace(attach.channel, '\{[^{}]+\}', 'x', 'g')) is null
    then
        raise exception 'there is no enabled channel for "%"', attach.channel
        using errcode = 'RCN01', hint = 'Insert a matching pattern into realtime_channels first, or attach with missing_ok => true.';
    end if;
    execute format(
        'create or replace trigger %I after %s on %s for each row execute function rowcast.publish_row(%L, %L, %L, %L)',
        v_name, (select string_agg(lower(e), ' or ') from unnest(attach.events) as e), attach."table",
        -- An argument of a trigger is a text and never NULL.
        attach.channel, coalesce(attach.columns::text, ''), attach.type, attach.missing_ok
    );
    return v_name;
end;
$$;

comment on function rowcast.attach(regclass, text, text[], text[], text, boolean) is
'Publishes row changes of a table to the channel named by a template such as order:{id}. Subscribers see the listed columns (all when NULL) whatever the table''s own row level security says. Returns the trigger''s name.';

-- Names the trigger as attach() did: by the template, so nobody has to remember the name.
create or replace function rowcast.detach("table" regclass, channel text)
returns boolean
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_name constant text := 'rowcast_' || substr(md5(detach.channel), 1, 12);
begin
    if not exists (
        select from pg_catalog.pg_trigger as t where t.tgrelid = detach."table" and t.tgname = v_name
    ) then
        return false;
    end if;
    execute format('drop trigger %I on %s', v_name, detach."table");
    return true;
end;
$$;

comment on function rowcast.detach(regclass, text) is
'Ends what attach() with this template began; false when there was nothing.';
reset role;

set local role rowcast_owner;
-- sql/40_identity.sql
-- Which cluster and which life of it: what a cursor must know before it may trust xids.

-- The boot row vanishes with every crash recovery and promotion. Whoever finds none makes one.
create or replace function rowcast.boot_id()
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from rowcast.boot) then
        insert into rowcast.boot default values on conflict do nothing;
    end if;
    return (select b.id from rowcast.boot as b);
end;
$$;

comment on function rowcast.boot_id() is
'Id of this life of the cluster; another after each crash recovery or promotion.';

-- Makes the rows of a restored or copied database its own: everything up to now is history.
-- The unlogged side came with the dump, so it is emptied; cursors of the old cluster end here.
--
-- Rows that came by replication may have left their sequence behind: the highest of them is the
-- floor, and the sequence goes on above it.
create or replace function rowcast.adopt()
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_here constant bigint := (select c.system_identifier from pg_catalog.pg_control_system() as c);
    v_floor bigint;
    v_newest bigint;
begin
    lock table rowcast.origin in exclusive mode; -- not beside upkeep, which locks the row
    if exists (select from rowcast.origin as o where o.system_identifier = v_here) then
        return false;
    end if;
    -- Updated, because whoever waits to give the registry of leaves its next version would find a
    -- new row as little as the old one.
    v_floor := (select case when s.is_called then s.last_value else 0 end from rowcast.message_seq as s);
    v_newest := (select max(m.seq) from public.realtime_messages as m);
    if v_newest > v_floor then
        v_floor := setval('rowcast.message_seq', v_newest);
    end if;
    update rowcast.origin set system_identifier = v_here, seq_floor = v_floor, leaves = leaves + 1;
    if not found then
        insert into rowcast.origin (system_identifier, seq_floor) values (v_here, v_floor);
    end if;
    update rowcast.leaf set closing_xid = null, closed_xid = null;
    delete from rowcast.expired;
    delete from rowcast.expired_broadcast;
    delete from rowcast.messages_broadcast;
    delete from rowcast.signal;
    delete from rowcast.census_request;
    delete from rowcast.node;
    delete from rowcast.audience;
    delete from rowcast.audience_total;
    delete from rowcast.presence;
    delete from rowcast.tick;
    delete from rowcast.boot;
    perform rowcast.fresh_compile();
    return true;
end;
$$;

comment on function rowcast.adopt() is
'Declares this cluster the home of the data after a restore; true when it was another one before.';

-- What a bridge must know before it reads: one row, asked at each new connection.
create or replace function rowcast.identity(
    out version integer,
    out boot uuid,
    out adopted boolean,
    out recovering boolean,
    out doorbell boolean,
    out cursor_key text,
    out caller_roles text[],
    out payload_limit integer,
    out seq_floor bigint,
    out clock_skew interval,
    out admin_roles text[]
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    recovering := pg_is_in_recovery();
    doorbell := current_setting('max_prepared_transactions') = '0';
    version := (select max(m.version) from rowcast.migration as m);
    adopted := exists (
        select from rowcast.origin as o
        where o.system_identifier = (select c.system_identifier from pg_catalog.pg_control_system() as c)
    );
    select s.caller_roles, s.payload_limit, s.clock_skew, s.admin_roles
    into caller_roles, payload_limit, clock_skew, admin_roles
    from rowcast.settings as s;
    seq_floor := (select o.seq_floor from rowcast.origin as o);
    cursor_key := (select k.key from rowcast.cursor_key as k);
    if not recovering then
        boot := rowcast.boot_id();
    end if;
end;
$$;

comment on function rowcast.identity() is
'Version, boot id, home, recovery state, doorbell mode, cursor key, limits and roles, for a bridge that starts.';
reset role;

set local role rowcast_owner;
-- sql/40_leaves_query.sql
-- Reading what is new from leaves: which leaves, and the query of it.

-- The leaves in which a reader with this cursor can still find something new. An hour ahead, so
-- that no midnight waits for an upkeep. One that somebody dropped by hand stays in the registry
-- until the next upkeep, and must not stop everybody until then. One whose time is not over is
-- needed even when it is closed: the clock was ahead then, and has been set back.
--
-- In plpgsql, which keeps the plan: every drain asks this, and in SQL it takes eight times as long.
create or replace function rowcast.leaves_for(p_xmin xid8, p_since timestamptz)
returns text[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select array['messages_default', 'messages_broadcast'] || coalesce(array_agg(l.name order by l.from_at), '{}')
        from rowcast.leaf as l
        where (
            l.closed_xid is null or l.closed_xid > p_xmin or l.to_at >= p_since
            or l.to_at > clock_timestamp() - interval '90 seconds'
        )
            and l.from_at < clock_timestamp() + interval '1 hour'
            and to_regclass(format('rowcast.%I', l.name)) is not null
    );
end;
$$;

comment on function rowcast.leaves_for(xid8, timestamptz) is
'Leaves that a cursor with this xmin may still need, or that reach beyond the time when it is given.';

-- SQL that reads what spans of xids hold of some leaves, of signals and presence; with a time also
-- what is younger, since after a crash xids do not tell all.
--
-- A single span, which is what a message finds that comes alone, needs no join: half the cost.
-- `offset 0` is a fence: as a plain join the planner thinks each span worth a hundredth of the
-- leaf, and from three on (that is, three running transactions) it reads the whole leaf and
-- compares every row with every span: 160 to 900 ms instead of 0.1 at 300,000 rows.
--
-- Signals first: who may have lost access with one of them must not get a message of the same
-- read, which may have been committed after it whatever their numbers say. Theirs are therefore
-- negative here, because a second sort key costs a tenth of a large drain.
create or replace function rowcast.leaves_query(
    p_leaves text[], p_single boolean, p_since boolean, p_first text
)
returns text
language sql
immutable
parallel safe
begin atomic
    select
        case
            when p_single then ''
            else 'with spans as (select s.first, s.last from unnest($1, $2) as s (first, last)) '
        end
        || p_first
        || string_agg(
            'select ''message''::text, m.seq, m.id, m.type, m.channel_id, m.channel_name,'
            ' m.event_name, m.payload::text, m.sender_type, m.sender_id, m.created_at from '
            || format(i.source, l.name, ' and l.seq > $3')
            || case
                when p_since
                    then format(
                            ' union select ''message'', m.seq, m.id, m.type, m.channel_id,'
                            ' m.channel_name, m.event_name, m.payload::text, m.sender_type,'
                            ' m.sender_id, m.created_at from rowcast.%I as m'
                            ' where m.created_at >= $4 and m.seq > $3', l.name
                        )
                else ''
            end,
            ' union all '
        )
        || ' union all select m.kind, m.seq - 9223372036854775807, null, null, null, null, null,'
        ' m.body::text, null, null, m.created_at from '
        || format(i.source, 'signal', '')
        || ' union all select ''presence'', m.seq, m.node, null, null, m.channel_name, null,'
        ' case when m.left_at is null then m.state::text else ''null'' end,'
        ' case when m.anonymous then ''anonymous'' else ''user'' end, m.key, m.updated_at from '
        || format(i.source, 'presence', '')
        || ' order by 2'
    from unnest(p_leaves) as l (name), (
        select
            case
                when p_single
                    then '(select * from rowcast.%I as l'
                        ' where l.xid between $1[1] and $2[1]%s) as m'
                else 'spans as s, lateral (select * from rowcast.%I as l'
                    ' where l.xid between s.first and s.last%s offset 0) as m'
            end as source
    ) as i
    group by i.source;
end;

comment on function rowcast.leaves_query(text[], boolean, boolean, text) is
'SQL that reads leaves, signals and presence: xids between $1 and $2, of which only the first count when single, seq above $3, and created_at from $4 on when asked for; after rows of its own that p_first may add.';

-- An ALTER TABLE that rewrites a leaf, as a new column with a volatile default does, makes all its
-- rows its own: a snapshot from before it is over sees none of them. Who has waited for the lock of
-- such a statement has found nothing, and must not go on from there. The snapshot shows the leaf's
-- old file then, and the function knows the new one. It asks for what was read and locks nothing.
create or replace function rowcast.rewritten(p_leaves text[])
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select exists(
        select from unnest(p_leaves) as l (name)
        join pg_catalog.pg_class as c on c.oid = to_regclass(format('rowcast.%I', l.name))
        where c.relfilenode <> pg_relation_filenode(c.oid)
    );
end;

comment on function rowcast.rewritten(text[]) is
'Whether one of these leaves has another file now than in the snapshot of this statement.';
reset role;

set local role rowcast_owner;
-- sql/41_fresh.sql
-- The compiled form of reading what is new, for the leaves that are written now.

-- To plan leaves_query() anew for each drain takes twice as long as to run it, and leaves change
-- once a day: so the query of the leaves written now is a function, which upkeep replaces, and
-- whose plan every bridge keeps. What stands here is what it starts from, and covers nothing.
--
-- The first row is `covers` where it reads all that this reader needs. To ask leaves_for() before
-- each drain took a third of it, and what is asked apart can be replaced in between.
--
-- Without settings and rights of its own, because it has to be inlined. The body is a string: a
-- parsed one would depend on the leaves, and nobody could drop them.
create or replace function rowcast.fresh_span(
    p_first xid8[], p_last xid8[], p_floor bigint, p_leaves bigint, p_xmin xid8, p_now timestamptz
)
returns table (
    kind text,
    seq bigint,
    id uuid,
    type text,
    channel_id uuid,
    channel_name text,
    event_name text,
    payload text,
    sender_type text,
    sender_id text,
    created_at timestamptz
)
language sql
stable
security invoker
as $$
select null::text, null::bigint, null::uuid, null::text, null::uuid, null::text, null::text, null::text,
    null::text, null::text, null::timestamptz
where false
$$;

comment on function rowcast.fresh_span(xid8[], xid8[], bigint, bigint, xid8, timestamptz) is
'What one span of xids holds of the leaves that are written now, of signals and presence, by seq; after a row `covers` if that is all that a cursor with this xmin needs at this time, in this version of the registry of leaves.';

-- The same for several spans: when transactions run, which is always so under load.
create or replace function rowcast.fresh_spans(
    p_first xid8[], p_last xid8[], p_floor bigint, p_leaves bigint, p_xmin xid8, p_now timestamptz
)
returns table (
    kind text,
    seq bigint,
    id uuid,
    type text,
    channel_id uuid,
    channel_name text,
    event_name text,
    payload text,
    sender_type text,
    sender_id text,
    created_at timestamptz
)
language sql
stable
security invoker
as $$
select null::text, null::bigint, null::uuid, null::text, null::uuid, null::text, null::text, null::text,
    null::text, null::text, null::timestamptz
where false
$$;

comment on function rowcast.fresh_spans(xid8[], xid8[], bigint, bigint, xid8, timestamptz) is
'What spans of xids hold of the leaves that are written now, as fresh_span().';

-- The version of the registry is read in the snapshot of the drain: a leaf which that shows, and
-- the query does not name, has changed it. The xmin and the times are the conditions of
-- leaves_for(), turned round, for the leaves left out: an older cursor, a clock set back, the next
-- leaf.
--
-- Nothing is replaced as long as that would change nothing: every bridge would plan anew. Times are
-- written as ISO has them, in UTC: who compiles and who reads need not agree on a DateStyle.
create or replace function rowcast.fresh_compile()
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO'
set timezone = 'UTC'
as $$
declare
    v_version constant bigint := (select o.leaves from rowcast.origin as o);
    v_leaves constant text[] := rowcast.leaves_for(
        pg_snapshot_xmin(pg_current_snapshot()), null
    );
    v_covers text;
    v_name text;
    v_single boolean;
begin
    select
        format(
            'select ''covers''::text, -9223372036854775807, null::uuid, null::text, null::uuid, null::text,'
            ' null::text, null::text, null::text, null::text, null::timestamptz'
            ' where $4 = %L::bigint and $5 >= %L::xid8 and $6 between %L::timestamptz and %L::timestamptz'
            ' union all ',
            v_version,
            coalesce(max(l.closed_xid), '0'),
            coalesce(max(l.to_at + interval '90 seconds') filter (where l.closed_xid is not null), '-infinity'),
            coalesce(min(l.from_at - interval '1 hour') filter (where l.closed_xid is null), 'infinity')
        )
    into v_covers
    from rowcast.leaf as l
    where l.name <> all (v_leaves);
    if exists (
        select from pg_catalog.pg_proc as p
        where p.pronamespace = 'rowcast'::regnamespace and p.proname = 'fresh_span'
            and p.prosrc = rowcast.leaves_query(v_leaves, true, false, v_covers)
    ) then
        return false;
    end if;
    for v_name, v_single in values ('fresh_span', true), ('fresh_spans', false) loop
        execute format(
            'create or replace function rowcast.%I('
            'p_first xid8[], p_last xid8[], p_floor bigint, p_leaves bigint, p_xmin xid8, p_now timestamptz)'
            ' returns table (kind text, seq bigint, id uuid, type text, channel_id uuid, channel_name text,'
            ' event_name text, payload text, sender_type text, sender_id text, created_at timestamptz)'
            ' language sql stable as %L',
            v_name, rowcast.leaves_query(v_leaves, v_single, false, v_covers)
        );
    end loop;
    return true;
end;
$$;

comment on function rowcast.fresh_compile() is
'Replaces fresh_span() and fresh_spans() when they would read other leaves, or cover other readers; whether it had to.';

-- Any change: who makes or drops a leaf need not think of it. For rows, because upkeep mostly
-- updates none, and a new version makes every bridge plan anew.
create or replace function rowcast.leaves_changed()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update rowcast.origin set leaves = leaves + 1;
    return null;
end;
$$;

comment on function rowcast.leaves_changed() is
'Trigger of leaf: gives the registry of leaves its next version.';

create or replace trigger leaf_90_changed
after insert or update or delete on rowcast.leaf
for each row execute function rowcast.leaves_changed();

select rowcast.fresh_compile();
reset role;

set local role rowcast_owner;
-- sql/42_feed.sql
-- The feed: what became visible since a snapshot.
--
-- A row is new exactly when it is visible now and its transaction was not visible then. Such a
-- transaction has an xid that then was running (xip) or not yet handed out (from xmax on).
-- Sequence numbers commit out of order: reading by `seq > last` loses half the rows.

-- The ranges of xids that can have become visible between two snapshots, both ends included.
-- What runs now is left out: the rows of a large unfinished transaction would be visited, and
-- found invisible, at every poll.
create or replace function rowcast.spans(p_then pg_snapshot, p_now pg_snapshot)
returns table (first xid8, last xid8)
language sql
immutable
parallel safe
begin atomic
    select
        t.x as low,
        t.x as high
    from pg_snapshot_xip(p_then) as t (x)
    where t.x < pg_snapshot_xmax(p_now)
        and not exists (
            select from pg_snapshot_xip(p_now) as n (x)
            where n.x = t.x
        )
    union all
    select
        g.low::text::xid8,
        g.high::text::xid8
    from (
        select
            coalesce(
                lag(e.edge) over (order by e.edge) + 1, pg_snapshot_xmax(p_then)::text::bigint
            ) as low,
            e.edge - 1 as high
        from (
            select n.x::text::bigint as edge
            from pg_snapshot_xip(p_now) as n (x)
            where n.x >= pg_snapshot_xmax(p_then)
            union all
            select pg_snapshot_xmax(p_now)::text::bigint
        ) as e
    ) as g
    where g.low <= g.high;
end;

comment on function rowcast.spans(pg_snapshot, pg_snapshot) is
'Inclusive ranges of xids that were not visible in the first snapshot and have ended by the second.';

-- One drain. The first row is the snapshot itself, also when nothing is new: rows, snapshot and
-- boot id belong to one statement. STABLE, so that every query in here uses that snapshot.
--
-- It names only the few leaves that are needed: through the parent an empty drain costs 42 ms with
-- 400 leaves. Mostly these are the ones for which there is a compiled query, which says so with
-- its first row. No LIMIT: it misleads the planner; the loop stops early, and answers `more` when
-- the caller has to read by portal. Who waits for a lock waits longer than a millisecond, and only
-- then it is asked what for.
create or replace function rowcast.feed(
    p_snapshot text, p_boot uuid, p_issued_at timestamptz, p_rows integer, p_bytes integer
)
returns table (
    kind text,
    seq bigint,
    id uuid,
    type text,
    channel_id uuid,
    channel_name text,
    event_name text,
    payload text,
    sender_type text,
    sender_id text,
    created_at timestamptz
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    v_now constant pg_snapshot := pg_current_snapshot();
    v_then constant pg_snapshot := p_snapshot::pg_snapshot;
    v_xmin constant xid8 := pg_snapshot_xmin(v_then);
    v_xmax constant xid8 := pg_snapshot_xmax(v_now);
    v_time constant timestamptz := clock_timestamp();
    v_boot uuid;
    v_floor bigint;
    v_registry bigint;
    v_since timestamptz;
    v_first xid8[];
    v_last xid8[];
    v_rows bigint := 0;
    v_bytes bigint := 0;
    v_found refcursor;
begin
    select b.id, o.seq_floor, o.leaves into v_boot, v_floor, v_registry
    from rowcast.origin as o left join rowcast.boot as b on true;
    kind := 'snapshot';
    id := v_boot;
    payload := v_now::text;
    created_at := v_time;
    return next;
    if v_then is null or v_boot is null then
        return;
    end if;

    if v_boot is distinct from p_boot then
        v_since := p_issued_at - (select s.clock_skew from rowcast.settings as s);
    end if;
    if v_xmin = pg_snapshot_xmax(v_then) and v_xmax = pg_snapshot_xmin(v_now) then
        -- Nothing ran then, nothing runs now: one span, and no query to find it.
        if v_xmin < v_xmax then
            v_first := array[v_xmin];
            v_last := array[(v_xmax::text::bigint - 1)::text::xid8];
        end if;
    else
        select array_agg(s.first), array_agg(s.last) into v_first, v_last
        from rowcast.spans(v_then, v_now) as s;
    end if;
    if v_first is null and v_since is null then
        return;
    end if;

    if v_since is null then
        begin
            if cardinality(v_first) = 1 then
                open v_found no scroll for select f.*
                from rowcast.fresh_span(v_first, v_last, v_floor, v_registry, v_xmin, v_time) as f;
            else
                open v_found no scroll for select f.*
                from rowcast.fresh_spans(v_first, v_last, v_floor, v_registry, v_xmin, v_time) as f;
            end if;
            fetch v_found into kind;
            if kind is distinct from 'covers' then
                close v_found;
                v_found := null;
            end if;
        exception when undefined_table then
            v_found := null; -- somebody dropped a leaf by hand, and there was no upkeep since
        end;
    end if;
    if v_found is null then
        open v_found no scroll for
        execute rowcast.leaves_query(rowcast.leaves_for(v_xmin, v_since), false, v_since is not null, '')
        using v_first, v_last, v_floor, v_since;
    end if;
    loop
        fetch v_found into kind, seq, id, type, channel_id, channel_name, event_name, payload,
            sender_type, sender_id, created_at;
        exit when not found;
        if seq < 0 then
            seq := seq + 9223372036854775807; -- a signal, see leaves_query()
        end if;
        v_rows := v_rows + 1;
        v_bytes := v_bytes + octet_length(payload);
        if v_rows > p_rows or v_bytes > p_bytes then
            kind := 'more';
            return next;
            exit;
        end if;
        return next;
    end loop;
    close v_found;
    if clock_timestamp() > v_time + interval '1 millisecond'
        and rowcast.rewritten(rowcast.leaves_for(v_xmin, v_since))
    then
        raise exception 'realtime_messages was rewritten while a drain waited for it'
        using errcode = '40001', hint = 'Drain again from the same snapshot.';
    end if;
end;
$$;

comment on function rowcast.feed(text, uuid, timestamptz, integer, integer) is
'All messages, signals and changes of presence that became visible since the snapshot, in order of seq, after one row `snapshot` (payload: the new snapshot, id: boot, created_at: its time). Ends with `more` when over the row or byte limit; NULL limits read all. A NULL snapshot only asks for the present one.';

-- What the feed before this one called. Here and not in a migration, which is committed earlier: if
-- the code then has to wait for a lock, no bridge could read anything meanwhile.
drop function if exists rowcast.fresh(xid8[], xid8[], bigint);
drop function if exists rowcast.fresh_leaves();
drop function if exists rowcast.leaves_query(text[], boolean);
reset role;

set local role rowcast_owner;
-- sql/43_replay.sql
-- Replay: what a channel got between a client's cursor and the moment it went live again.

-- Reads leaves for one name, or for all that one channel row governed, which is what a subscribed
-- pattern hears. The planner sees the values and takes the index on xid, or the one on the
-- channel, or both: a busy row has most of the new rows, a quiet one few of them.
create or replace function rowcast.replay_query(p_leaves text[], p_of_row boolean)
returns text
language sql
immutable
parallel safe
begin atomic
    select
        string_agg(
            format(
                'select m.seq, m.id, m.type, m.channel_name, m.event_name, m.payload::text,'
                ' m.sender_type, m.sender_id, m.created_at from rowcast.%I as m where ', l.name
            )
            || case when p_of_row then 'm.channel_id = $7' else 'm.channel_name = $1' end
            || ' and m.xid >= $2 and m.seq > $3 and pg_visible_in_snapshot(m.xid, $4)'
            ' and (not pg_visible_in_snapshot(m.xid, $5) or m.created_at >= $6)',
            ' union all '
        )
        || ' order by 1'
    from unnest(p_leaves) as l (name);
end;

comment on function rowcast.replay_query(text[], boolean) is
'SQL that reads leaves for the name $1 or the channel row $7: xids from $2, seq above $3, visible in $4 and not in $5, or created_at from $6 on.';

-- Whether the channel lost a row that a cursor may not have seen; a pattern loses what its names
-- do, and '**' in the place of a name is what all of them did (sql/74_losses.sql).
create or replace function rowcast.lost(p_channel text, p_xmin xid8, p_broadcasts boolean)
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select case
        when position('*' in p_channel) = 0 and p_broadcasts
            then exists (
                    select from rowcast.expired_broadcast as e
                    where e.channel_name in (p_channel, '**') and e.xid >= p_xmin
                )
        when position('*' in p_channel) = 0
            then exists (
                    select from rowcast.expired as e
                    where e.channel_name in (p_channel, '**') and e.xid >= p_xmin
                )
        when p_broadcasts
            then exists (
                    select from rowcast.expired_broadcast as e
                    where e.xid >= p_xmin and (
                            e.channel_name = '**'
                            or rowcast.pattern_matches(p_channel, e.channel_name)
                        )
                )
        else exists (
                select from rowcast.expired as e
                where e.xid >= p_xmin and (
                        e.channel_name = '**'
                        or rowcast.pattern_matches(p_channel, e.channel_name)
                    )
            )
    end;
end;

comment on function rowcast.lost(text, xid8, boolean) is
'Whether messages, or broadcasts, of a channel or pattern have expired that a cursor with this xmin may not have seen.';

-- Answers many (channel, cursor) pairs in one call, each up to the snapshot at which the bridge
-- went live. One row `state` per pair comes first: recovered (durable), ephemeral, the reason,
-- and `stale` when the bridge's own snapshot is from before a crash and it must drain first.
-- Sorting for every page costs more than reading at most replay_rows once, so there is one read.
create or replace function rowcast.replay(
    p_channels text[],
    p_snapshots text[],
    p_boots uuid[],
    p_issued timestamptz[],
    p_until text,
    p_boot uuid
)
returns table (
    pair integer,
    state text,
    seq bigint,
    id uuid,
    type text,
    channel_name text,
    event_name text,
    payload text,
    sender_type text,
    sender_id text,
    created_at timestamptz
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_until constant pg_snapshot := p_until::pg_snapshot;
    v_boot constant uuid := (select b.id from rowcast.boot as b);
    v_floor constant bigint := (select o.seq_floor from rowcast.origin as o);
    -- Of leaves that somebody took away and upkeep has not noticed yet: until when they got rows.
    v_taken constant xid8 := (
        select max(coalesce(l.closed_xid, '18446744073709551615'))
        from rowcast.leaf as l
        where l.from_at < clock_timestamp() + interval '1 minute'
        and not exists (select from pg_catalog.pg_inherits as i where i.inhrelid = to_regclass('rowcast.' || l.name))
    );
    v_settings rowcast.settings;
    v_leaves text[];
    v_read text[];
    v_sql text;
    v_of_row boolean;
    v_row uuid;
    v_xmin xid8;
    v_since timestamptz;
    v_same boolean;
    v_lost text;
    v_ephemeral boolean;
    v_rows bigint;
    v_bytes bigint;
begin
    if v_boot is distinct from p_boot then
        pair := 0;
        state := 'stale';
        return next;
        return;
    end if;
    select s.* into v_settings from rowcast.settings as s;
    for i in 1..cardinality(p_channels) loop
        pair := i;
        v_same := p_boots[i] is not distinct from v_boot;
        v_xmin := pg_snapshot_xmin(p_snapshots[i]::pg_snapshot);
        v_since := case when not v_same then p_issued[i] - v_settings.clock_skew end;
        v_lost := case
            when p_issued[i] < clock_timestamp() - v_settings.cursor_retention then 'expired'
            when v_taken > v_xmin or rowcast.lost(p_channels[i], v_xmin, false) then 'expired'
        end;
        v_ephemeral := v_same and v_lost is null and not rowcast.lost(p_channels[i], v_xmin, true);
        if v_lost is null then
            if v_leaves is distinct from rowcast.leaves_for(v_xmin, v_since) or v_sql is null
                or v_of_row is distinct from (position('*' in p_channels[i]) > 0)
            then
                v_of_row := position('*' in p_channels[i]) > 0;
                v_leaves := rowcast.leaves_for(v_xmin, v_since);
                v_read := v_read || v_leaves;
                v_sql := rowcast.replay_query(v_leaves, v_of_row);
            end if;
            v_row := case when v_of_row then (rowcast.subscribable(p_channels[i])).channel_id end;
            -- Counted first: a client must not get half of what it missed.
            execute 'select count(*), coalesce(sum(octet_length(r.payload)), 0) from (select * from ('
            || v_sql || ') as a limit ' || v_settings.replay_rows + 1 || ') as r'
            into v_rows, v_bytes
            using p_channels[i], case when v_same then v_xmin else '0'::xid8 end, v_floor, v_until,
                p_snapshots[i]::pg_snapshot, v_since, v_row;
            if v_rows > v_settings.replay_rows or v_bytes > v_settings.replay_bytes then
                v_lost := 'too_far';
            end if;
        end if;
        state := coalesce(v_lost, case when v_ephemeral then 'complete' else 'durable' end);
        seq := null; id := null; type := null; channel_name := p_channels[i]; event_name := null;
        payload := null; sender_type := null; sender_id := null; created_at := null;
        return next;
        if v_lost is null and v_rows > 0 then
            state := null;
            for seq, id, type, channel_name, event_name, payload, sender_type, sender_id, created_at in
                execute v_sql
                using p_channels[i], case when v_same then v_xmin else '0'::xid8 end, v_floor, v_until,
                    p_snapshots[i]::pg_snapshot, v_since, v_row
            loop
                return next;
            end loop;
        end if;
    end loop;
    if rowcast.rewritten(v_read) then
        raise exception 'realtime_messages was rewritten while a replay waited for it'
        using errcode = '40001', hint = 'Ask again.';
    end if;
end;
$$;

comment on function rowcast.replay(text[], text[], uuid[], timestamptz[], text, uuid) is
'Per pair of a channel or pattern and a cursor first a state row (complete, durable, expired, too_far), then its rows not visible in the cursor and visible in p_until, by seq. A single row (0, stale) when p_boot is not this boot.';
reset role;

set local role rowcast_owner;
-- sql/44_handles.sql
-- Handles: clients of other makes keep no cursor, but repeat what their application gave them.
-- A bridge remembers their cursors here, so that any bridge can resume them, after any restart.

-- In the order of the keys, so that two bridges never wait for each other in a circle. A handle
-- that nobody has used for an hour is forgotten: who was away for longer loads history.
create or replace function rowcast.keep_handles(p_keys bytea[], p_cursors text[])
returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    with forgotten as (
        delete from rowcast.handle as h
        where h.kept_at < clock_timestamp() - interval '1 hour' and h.key <> all(p_keys)
    )

    insert into rowcast.handle as h (key, cursor)
    select
        given.key,
        given.cursor
    from unnest(p_keys, p_cursors) as given (key, cursor)
    order by given.key
    on conflict (key) do update set cursor = excluded.cursor, kept_at = excluded.kept_at;
end;

comment on function rowcast.keep_handles(bytea[], text[]) is
'Remembers the newest cursor of each handle, by digest, and forgets those unused for an hour.';

-- An array beside the array that was given: a handle that is not known leaves a NULL.
create or replace function rowcast.find_handles(p_keys bytea[])
returns text[]
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select array(
        select h.cursor
        from unnest(p_keys) with ordinality as given (key, place)
        left join rowcast.handle as h on given.key = h.key
        order by given.place
    );
end;

comment on function rowcast.find_handles(bytea[]) is
'The cursors of handles, by digest, in the same order; NULL for one that is not known.';
reset role;

set local role rowcast_owner;
-- sql/45_logins.sql
-- What a bridge refuses to run with: a login that could do more than its task.

-- Rights to SET ROLE follow the login, so a hostile policy function can get exactly as far as
-- the caller login may; and a bridge login that is a caller could be asked by policies.
create or replace function rowcast.login_report(
    out login text, out faults text[], out bridge_faults text[], out caller_faults text[]
)
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_callers constant text[] := rowcast.caller_roles();
    v_role pg_catalog.pg_roles;
begin
    select r.* into v_role from pg_catalog.pg_roles as r where r.rolname = session_user;
    login := v_role.rolname;
    faults := array_remove(array[
        case when v_role.rolsuper then 'is a superuser' end,
        case when v_role.rolbypassrls then 'bypasses row level security' end,
        case when pg_has_role(v_role.oid, 'rowcast_owner', 'member') then 'is a member of rowcast_owner' end
    ], null);
    bridge_faults := array_remove(array[
        (
            select 'is a member of the caller role ' || min(n.name)
            from unnest(v_callers) as n (name)
            join pg_catalog.pg_roles as r on r.rolname = n.name
            where pg_has_role(v_role.oid, r.oid, 'member')
        )
    ], null);
    caller_faults := array_remove(array[
        case when v_role.rolinherit then 'inherits the rights of its roles' end,
        (
            select 'is a member of ' || min(r.rolname)
            from pg_catalog.pg_auth_members as m
            join pg_catalog.pg_roles as r on r.oid = m.roleid
            where m.member = v_role.oid and r.rolname <> all (v_callers)
        )
    ], null);
end;
$$;

comment on function rowcast.login_report() is
'What is wrong with the session''s login: as any login, as the bridge''s, as the callers''.';
reset role;

set local role rowcast_owner;
-- sql/50_access.sql
-- Who may: the questions that bridges ask, and the one that policies ask.

-- May the caller listen to this name? The name is resolved first, with the owner's eyes, then
-- row level security is asked for that one row with the caller's. Asking "is any visible row a
-- match" would let a lax `chat:*` open what `chat:secret` closes. A pattern is its own row.
--
-- A page of history asks for each of its rows. Where messages_as() says that nothing changes
-- meanwhile, the last answer is remembered; only on the bridge's own login, because in any other
-- session the caller could set what is remembered.
create or replace function rowcast.may_subscribe(p_name text)
returns boolean
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_before constant text := coalesce(current_setting('rowcast.channel_name', true), '');
    v_asked constant text := case
        when session_user = 'rowcast_caller' then nullif(current_setting('rowcast.asked', true), '')
    end;
    v_id constant uuid := rowcast.open_channel(p_name);
    v_answer boolean;
begin
    if substr(v_asked, 3) = p_name then
        return left(v_asked, 1) = 't';
    end if;
    perform set_config('rowcast.channel_name', p_name, true);
    if position('*' in p_name) > 0 then
        v_answer := exists (
            select from public.realtime_channels as c where c.pattern = p_name and c.wildcard and c.enabled
        );
    else
        v_answer := exists (select from public.realtime_channels as c where c.id = v_id and c.enabled);
    end if;
    perform set_config('rowcast.channel_name', v_before, true);
    if v_asked is not null then
        perform set_config('rowcast.asked', case when v_answer then 't:' else 'f:' end || p_name, true);
    end if;
    return v_answer;
end;
$$;

comment on function rowcast.may_subscribe(text) is
'True when the caller may subscribe to the name: he can SELECT the enabled channel row that governs it. For policies that open history to subscribers.';

-- The same for many callers of one role, read-only, an exception block for each: a policy that
-- fails denies only its own question, and so do claims that Postgres cannot take, such as a
-- \u0000 in somebody's name. statement_timeout is not caught by the blocks; the bridge then asks
-- one by one. Runs with the session's rights; becomes the caller, who may not ask for the row.
--
-- A policy function may have set a role for the whole session. The last word of each function here
-- is therefore a reset that outlives the transaction, or the next one to get this connection from
-- the pool would find it spoiled.
create or replace function rowcast.check_subscribe(
    p_role text, p_claims text[], p_channels text[]
)
returns table (pair integer, allowed boolean, channel_id uuid, enabled boolean, error text)
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_open boolean;
begin
    perform set_config('transaction_read_only', 'on', true);
    for i in 1..cardinality(p_channels) loop
        pair := i;
        allowed := false;
        error := null;
        channel_id := null;
        enabled := null;
        perform set_config('role', session_user, true);
        begin
            select s.channel_id, s.channel_enabled, s.channel_open
            into channel_id, enabled, v_open
            from rowcast.subscribable(p_channels[i]) as s;
            if channel_id is null and not (rowcast.is_name(p_channels[i]) or rowcast.is_pattern(p_channels[i])) then
                error := 'RCN02';
            end if;
            perform rowcast.impersonate(p_role, p_claims[i], p_channels[i]);
            allowed := v_open is true and exists (
                select from public.realtime_channels as c
                where c.id = check_subscribe.channel_id and c.enabled
            );
        exception when others then
            error := sqlstate || ' ' || sqlerrm;
        end;
        return next;
    end loop;
    perform set_config('role', 'none', false);
end;
$$;

comment on function rowcast.check_subscribe(text, text[], text[]) is
'For each (claims, channel or pattern): may a caller of this role subscribe; the row that decides and whether it is enabled, NULL when there is none; what a failing policy said, or RCN02 for what is neither.';

-- Publishes for many clients of one role in one transaction, each under its own claims. No
-- exception blocks: they would be subtransactions. On any error the bridge repeats one by one.
create or replace function rowcast.publish_as(
    p_role text,
    p_claims text[],
    p_channels text[],
    p_types text[],
    p_events text[],
    p_payloads text[],
    p_keys uuid[]
)
returns uuid[]
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_ids uuid[] := '{}';
begin
    for i in 1..cardinality(p_channels) loop
        perform set_config('role', session_user, true);
        perform rowcast.impersonate(p_role, p_claims[i], p_channels[i]);
        perform set_config('rowcast.message_id', 'wanted', true);
        insert into public.realtime_messages (type, channel_name, event_name, payload, publish_key)
        values (p_types[i], p_channels[i], p_events[i], p_payloads[i]::jsonb, p_keys[i]);
        v_ids := v_ids || case when found or p_keys[i] is not null then nullif(current_setting('rowcast.message_id', true), 'wanted')::uuid end;
    end loop;
    perform set_config('role', 'none', false);
    return v_ids;
end;
$$;

comment on function rowcast.publish_as(text, text[], text[], text[], text[], text[], uuid[]) is
'Publishes each message as a caller of this role with its claims, all or none; returns the message ids.';

-- The newest messages of a channel under the caller's SELECT policies, no newer than the
-- snapshot at which the bridge went live: what is newer comes live. Rows up to the floor came
-- with a restore; their xids belong to another cluster and are always older.
create or replace function rowcast.history_as(
    p_role text, p_claims text, p_channel text, p_limit integer, p_until text, p_floor bigint
)
returns table (
    seq bigint,
    id uuid,
    type text,
    channel_name text,
    event_name text,
    payload text,
    sender_type text,
    sender_id text,
    created_at timestamptz
)
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_row uuid;
begin
    perform set_config('transaction_read_only', 'on', true);
    if position('*' in p_channel) > 0 then
        v_row := (select s.channel_id from rowcast.subscribable(p_channel) as s);
    end if;
    perform rowcast.impersonate(p_role, p_claims, p_channel);
    return query
    select h.seq, h.id, h.type, h.channel_name, h.event_name, h.payload::text,
        h.sender_type, h.sender_id, h.created_at
    from (
        select b.*
        from (
            (
                select m.* from public.realtime_messages as m
                where m.channel_name = p_channel and m.type = 'message' and m.seq > p_floor
                and pg_visible_in_snapshot(m.xid, p_until::pg_snapshot)
                order by m.xid desc, m.seq desc limit p_limit
            )
            union all
            (
                select m.* from public.realtime_messages as m
                where p_floor > 0 and m.channel_name = p_channel and m.type = 'message' and m.seq <= p_floor
                order by m.xid desc, m.seq desc limit p_limit
            )
            union all
            (
                -- A pattern: all that its row governed, by the index on the row.
                select m.* from public.realtime_messages as m
                where m.channel_id = v_row and m.type = 'message'
                and (m.seq <= p_floor or pg_visible_in_snapshot(m.xid, p_until::pg_snapshot))
                order by m.seq desc limit p_limit
            )
        ) as b
        order by b.seq > p_floor desc, b.xid desc, b.seq desc limit p_limit
    ) as h
    order by h.seq;
    perform set_config('role', 'none', false);
end;
$$;

comment on function rowcast.history_as(text, text, text, integer, text, bigint) is
'The newest durable messages of a channel or pattern that a caller may read, oldest first, visible in p_until or from before a restore (seq up to p_floor).';
reset role;

set local role rowcast_owner;
-- sql/51_recheck.sql
-- Access that follows the data: telling bridges whose subscriptions to ask about again.
--
-- A signal commits together with what it is about, and bridges read it with the messages of the
-- same moment. Whatever is published after the revoking commit is read with it or later, so a
-- bridge that first asks again delivers none of it to who has lost access.

-- One signal, and never a long one: it is read by every bridge. NULL stands for everybody, or for
-- every channel. Over 100 pairs it says only which channels, or only whom, or everything.
create or replace function rowcast.recheck_signal(p_pairs jsonb[])
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_most constant integer := 100;
    v_of jsonb := to_jsonb(p_pairs);
begin
    if cardinality(p_pairs) = 0 or p_pairs is null then
        return;
    elsif cardinality(p_pairs) > v_most then
        select jsonb_agg(distinct jsonb_build_object('channel', p -> 'channel')) into v_of
        from unnest(p_pairs) as p;
        if jsonb_array_length(v_of) > v_most then
            select jsonb_agg(distinct jsonb_build_object('user', p -> 'user')) into v_of
            from unnest(p_pairs) as p;
        end if;
        if jsonb_array_length(v_of) > v_most then
            v_of := '[{}]';
        end if;
    end if;
    insert into rowcast.signal (kind, body) values ('recheck', jsonb_build_object('of', v_of));
end;
$$;

comment on function rowcast.recheck_signal(jsonb[]) is
'Writes one signal for objects with user and channel, each NULL for all; more than 100 are coarsened.';

-- For what triggers cannot see: a policy that was changed, a table in another database.
create or replace function rowcast.recheck(user_id text default null, channel text default null)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if rowcast.is_pattern(recheck.channel) is false then
        raise exception 'channel "%" is neither a name nor a pattern', left(recheck.channel, 300)
        using errcode = 'RCN03', hint = 'Give a channel name, a pattern such as chat:*, or NULL for all.';
    end if;
    perform rowcast.recheck_signal(array[
        jsonb_build_object('user', recheck.user_id, 'channel', recheck.channel)
    ]);
end;
$$;

comment on function rowcast.recheck(text, text) is
'Has the policies asked again for subscriptions: of this user, to this name or to names of this pattern, NULL for all. Whoever lost access is told and unsubscribed.';

-- Whoever was kicked may come back if his token is still good: make policies refuse him first.
create or replace function rowcast.kick(user_id text, reconnect boolean default false)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if kick.user_id is null then
        raise exception 'nobody is named' using errcode = '22004', hint = 'Give the sub of the tokens to close.';
    end if;
    insert into rowcast.signal (kind, body) values (
        'kick', jsonb_build_object('user', kick.user_id, 'reconnect', coalesce(kick.reconnect, false))
    );
end;
$$;

comment on function rowcast.kick(text, boolean) is
'Closes all sessions of a user at commit: with 3504 (do not come back), or with 3004 when reconnect (come back with a new token).';

-- Fills a template such as chat:{room} from a row; NULL where that makes no channel name. A
-- value with ":" or "*" therefore widens the question instead of asking about another channel.
create or replace function rowcast.recheck_channel(p_template text, p_row jsonb)
returns text
language sql
immutable
parallel safe
begin atomic
    select case when rowcast.is_name(f.name) then f.name end
    from (
        select
            case
                when bool_and(v.value is not null and position(':' in v.value) = 0) is not false
                    then coalesce(string_agg(r.m[1] || v.value, '' order by r.n), '')
                        || regexp_replace(p_template, '^.*\{[^{}]+\}', '')
            end as name
        from regexp_matches(p_template, '(.*?)\{([^{}]+)\}', 'g') with ordinality as r (m, n),
            lateral (select p_row ->> r.m[2] as value) as v
    ) as f;
end;

comment on function rowcast.recheck_channel(text, jsonb) is
'The channel name that a template makes of a row, NULL when it makes none.';

-- What of a row matters: the listed columns, or all of it.
create or replace function rowcast.recheck_columns(p_row jsonb, p_columns text[])
returns jsonb
language sql
immutable
parallel safe
begin atomic
    select case
        when p_columns is null then p_row
        else (
            select jsonb_object_agg(c.key, c.value) from jsonb_each(p_row) as c
            where c.key = any(p_columns)
        )
    end;
end;

comment on function rowcast.recheck_columns(jsonb, text[]) is
'The row reduced to the listed columns, the whole row when NULL.';
reset role;

set local role rowcast_owner;
-- sql/52_recheck_on_change.sql
-- Tables on which policies depend, attached: each change has the right people asked again.

-- One signal a statement, with what is known of it. A column that was renamed since reads as
-- NULL, which means everybody: the statement of the user must not fail for it.
--
-- Definer: whoever writes the table need not be allowed to signal.
create or replace function rowcast.recheck_rows()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_columns constant text[] := nullif(tg_argv[2], '')::text[];
    v_rows jsonb[];
begin
    if tg_op = 'INSERT' then
        select array_agg(to_jsonb(n)) into v_rows from rowcast_new as n;
    elsif tg_op = 'DELETE' then
        select array_agg(to_jsonb(o)) into v_rows from rowcast_old as o;
    elsif tg_op = 'UPDATE' then
        -- Only where something that matters has another value now; both who had it and who has it.
        select array_agg(c.r) into v_rows
        from (
            (
                select rowcast.recheck_columns(to_jsonb(o), v_columns) as r from rowcast_old as o
                except
                select rowcast.recheck_columns(to_jsonb(n), v_columns) from rowcast_new as n
            )
            union all
            (
                select rowcast.recheck_columns(to_jsonb(n), v_columns) from rowcast_new as n
                except
                select rowcast.recheck_columns(to_jsonb(o), v_columns) from rowcast_old as o
            )
        ) as c;
    else
        v_rows := '{"{}"}';
    end if;
    perform rowcast.recheck_signal(array(
        select distinct jsonb_build_object(
            'user', nullif(r ->> tg_argv[0], ''),
            'channel', rowcast.recheck_channel(nullif(tg_argv[1], ''), r)
        )
        from unnest(v_rows) as r
    ));
    return null;
end;
$$;

comment on function rowcast.recheck_rows() is
'Statement trigger made by recheck_on_change(); arguments: user column, channel template, columns.';

-- Runs with the caller's rights: who may create triggers on the table may attach it. Four
-- triggers, because a transition table belongs to one kind of statement.
create or replace function rowcast.recheck_on_change(
    "table" regclass,
    user_column text default null,
    channel text default null,
    columns text[] default null
)
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_named text[];
    v_bad text;
    v_event text;
begin
    select array_agg(distinct c.name) into v_named
    from (
        select r.m[1] as name from regexp_matches(recheck_on_change.channel, '\{([^{}]+)\}', 'g') as r (m)
        union all
        select recheck_on_change.user_column
        union all
        select n.name from unnest(recheck_on_change.columns) as n (name)
    ) as c
    where c.name is not null;
    select string_agg(quote_ident(c.name), ', ') into v_bad from unnest(v_named) as c (name)
    where not exists (
        select from pg_catalog.pg_attribute as a
        where a.attrelid = recheck_on_change."table" and a.attname = c.name and a.attnum > 0 and not a.attisdropped
    );
    if v_bad is not null then
        raise exception 'table % has no column %', recheck_on_change."table", v_bad
        using errcode = '42703', hint = 'Name existing columns in user_column, in the channel template and in columns.';
    end if;
    if rowcast.is_name(regexp_replace(recheck_on_change.channel, '\{[^{}]+\}', 'x', 'g')) is false then
        raise exception 'channel template "%" is not valid', recheck_on_change.channel
        using errcode = 'RCN02', hint = 'Write a channel name with columns in braces, such as chat:{room}.';
    end if;
    foreach v_event in array array['insert', 'update', 'delete', 'truncate'] loop
        execute format(
            'create or replace trigger %I after %s on %s %s'
            ' for each statement execute function rowcast.recheck_rows(%L, %L, %L)',
            'rowcast_recheck_' || v_event, v_event, recheck_on_change."table",
            case v_event
                when 'insert' then 'referencing new table as rowcast_new'
                when 'update' then 'referencing old table as rowcast_old new table as rowcast_new'
                when 'delete' then 'referencing old table as rowcast_old'
                else ''
            end,
            -- An argument of a trigger is a text and never NULL.
            coalesce(recheck_on_change.user_column, ''), coalesce(recheck_on_change.channel, ''),
            case when recheck_on_change.columns is null then '' else v_named::text end
        );
    end loop;
end;
$$;

comment on function rowcast.recheck_on_change(regclass, text, text, text[]) is
'Has the policies asked again whenever the table changes: for the users in user_column, for the channels of a template such as chat:{room}, for everything where neither is known. With columns, an update counts only when one of them changes.';

-- Ends what recheck_on_change() began.
create or replace function rowcast.recheck_detach("table" regclass)
returns boolean
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_name text;
    v_found boolean := false;
begin
    for v_name in
        select t.tgname from pg_catalog.pg_trigger as t
        where t.tgrelid = recheck_detach."table" and t.tgfoid = 'rowcast.recheck_rows()'::regprocedure
    loop
        execute format('drop trigger %I on %s', v_name, recheck_detach."table");
        v_found := true;
    end loop;
    return v_found;
end;
$$;

comment on function rowcast.recheck_detach(regclass) is
'Ends what recheck_on_change() began; false when there was nothing.';
reset role;

set local role rowcast_owner;
-- sql/53_recheck_channels.sql
-- The table of channels, attached to the subscriptions that it decides about.

-- A row that changes, comes or goes decides anew for all names that its pattern matches, also
-- where another row governed them before.
create or replace function rowcast.channels_changed()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_most constant integer := 100;
    v_patterns text[];
begin
    if tg_op = 'INSERT' then
        select array_agg(n.pattern) into v_patterns from rowcast_new as n;
    elsif tg_op = 'DELETE' then
        select array_agg(o.pattern) into v_patterns from rowcast_old as o;
    elsif tg_op = 'UPDATE' then
        select array_agg(c.pattern) into v_patterns
        from (select n.pattern from rowcast_new as n union select o.pattern from rowcast_old as o) as c;
    else
        v_patterns := '{**}';
    end if;
    if v_patterns is not null then
        insert into rowcast.signal (kind, body) values (
            'channel', jsonb_build_object(
                'patterns', case when cardinality(v_patterns) > v_most then '{**}'::text[] else v_patterns end
            )
        );
    end if;
    return null;
end;
$$;

comment on function rowcast.channels_changed() is
'Statement trigger of realtime_channels: signals the patterns of changed rows, "**" for very many.';

create or replace trigger realtime_channels_50_inserted
after insert on public.realtime_channels
referencing new table as rowcast_new
for each statement execute function rowcast.channels_changed();

create or replace trigger realtime_channels_50_updated
after update on public.realtime_channels
referencing old table as rowcast_old new table as rowcast_new
for each statement execute function rowcast.channels_changed();

create or replace trigger realtime_channels_50_deleted
after delete on public.realtime_channels
referencing old table as rowcast_old
for each statement execute function rowcast.channels_changed();

create or replace trigger realtime_channels_50_truncated
after truncate on public.realtime_channels
for each statement execute function rowcast.channels_changed();
reset role;

set local role rowcast_owner;
-- sql/54_nodes.sql
-- Nodes: each bridge has a row, and a lease that it renews. Whatever a bridge writes about its
-- clients is written under a lock of that row, so nothing of a node can outlive it.

-- What a dead node wrote ends here: its counts at once, its members as left, for the feed to tell.
-- The node goes first. Whoever still writes for it holds its row, and is waited for; who comes
-- later finds no row.
create or replace function rowcast.reap_nodes()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_dead uuid[];
begin
    with dead as (
        delete from rowcast.node as n
        where n.id in (
            select d.id from rowcast.node as d where d.expires_at < clock_timestamp()
            for update skip locked
        )
        returning n.id
    )

    select array_agg(d.id) into v_dead from dead as d;
    if v_dead is null then
        return 0;
    end if;
    perform rowcast.audience_end(v_dead);
    update rowcast.presence as p
    set left_at = clock_timestamp(), updated_at = clock_timestamp(), sessions = 0,
        xid = pg_current_xact_id(), seq = nextval('rowcast.message_seq')
    where p.node = any (v_dead) and p.left_at is null;
    return cardinality(v_dead);
end;
$$;

comment on function rowcast.reap_nodes() is
'Ends the nodes whose lease has run out: their counts vanish, their members have left. Returns how many.';

-- The heartbeat. A node that finds no row of its own has been reaped, or Postgres has crashed:
-- in both cases it has to write down again all that it has.
create or replace function rowcast.node_beat(p_node uuid, p_lease interval)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_known boolean;
begin
    update rowcast.node as n set expires_at = clock_timestamp() + p_lease where n.id = p_node;
    v_known := found;
    if not v_known then
        insert into rowcast.node (id, expires_at) values (p_node, clock_timestamp() + p_lease);
    end if;
    perform rowcast.reap_nodes();
    perform setval('rowcast.alive_until', ceil(date_part('epoch', max(n.expires_at)) * 1000)::bigint)
    from rowcast.node as n;
    return v_known;
end;
$$;

comment on function rowcast.node_beat(uuid, interval) is
'Renews the lease of a node and reaps others; false when the node was not known, and has to write all anew.';

-- A bridge that ends in order takes its counts along at once. Its members stay for a moment:
-- clients who are on their way to another bridge have not left.
create or replace function rowcast.node_leave(p_node uuid, p_grace interval)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.audience_end(array[p_node]);
    if exists (select from rowcast.presence as p where p.node = p_node and p.left_at is null) then
        update rowcast.node as n set expires_at = clock_timestamp() + p_grace where n.id = p_node;
    else
        delete from rowcast.node as n where n.id = p_node;
    end if;
end;
$$;

comment on function rowcast.node_leave(uuid, interval) is
'Ends a node: its counts at once, its members after the grace time unless other nodes have them by then.';
reset role;

set local role rowcast_owner;
-- sql/55_audience.sql
-- Audience: how many sessions are subscribed, which the stamping trigger notes in each message.

-- Changes the sums. In the order of names, so that two bridges never wait for each other crosswise.
create or replace function rowcast.audience_add(p_channels text[], p_changes integer[])
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
begin
    insert into rowcast.audience_total as t (channel_name, sessions)
    select c.name, sum(c.change) from unnest(p_channels, p_changes) as c (name, change)
    group by c.name having sum(c.change) <> 0 order by c.name
    on conflict (channel_name) do update set sessions = t.sessions + excluded.sessions;
    delete from rowcast.audience_total as t where t.channel_name = any (p_channels) and t.sessions = 0;
end;
$$;

comment on function rowcast.audience_add(text[], integer[]) is
'Adds to the sums of audience of these channels.';

-- Takes the present counts of some channels of one node; repeating it changes nothing. The lock
-- keeps the node from being reaped meanwhile, which would leave counts of nobody.
create or replace function rowcast.audience_write(
    p_node uuid, p_channels text[], p_counts integer[]
)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
begin
    perform from rowcast.node as n where n.id = p_node for key share;
    if not found then
        return false;
    end if;
    perform rowcast.audience_add(array_agg(c.name), array_agg(c.sessions - coalesce(a.sessions, 0)))
    from unnest(p_channels, p_counts) as c (name, sessions)
    left join rowcast.audience as a on a.channel_name = c.name and a.node = p_node;
    insert into rowcast.audience as a (channel_name, node, sessions)
    select c.name, p_node, c.sessions
    from unnest(p_channels, p_counts) as c (name, sessions)
    where c.sessions > 0
    on conflict (channel_name, node) do update set sessions = excluded.sessions
    where a.sessions <> excluded.sessions;
    delete from rowcast.audience as a
    where a.node = p_node and a.channel_name = any (array(
        select c.name from unnest(p_channels, p_counts) as c (name, sessions) where c.sessions = 0
    ));
    return true;
end;
$$;

comment on function rowcast.audience_write(uuid, text[], integer[]) is
'Writes how many sessions of a node are subscribed to each of these names; false, and nothing written, when the node is not known.';

-- What a node counted counts no more.
create or replace function rowcast.audience_end(p_nodes uuid[])
returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    with gone as (
        delete from rowcast.audience as a
        where a.node = any(p_nodes)
        returning a.channel_name, a.sessions
    )

    select rowcast.audience_add(array_agg(g.channel_name), array_agg(-g.sessions)) from gone as g;
end;

comment on function rowcast.audience_end(uuid[]) is
'Ends the counts of these nodes.';

-- The same as in messages_stamp: the name itself, and the pattern where its channel lets clients
-- subscribe to that.
create or replace function rowcast.audience(channel text)
returns integer
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
begin atomic
    select coalesce(sum(t.sessions), 0)::integer
    from rowcast.audience_total as t
    where t.channel_name = any(array[
            channel,
            (
                select c.pattern from public.realtime_channels as c
                where c.id = (select rowcast.governing(channel)) and c.wildcard
            )
        ])
        and pg_sequence_last_value('rowcast.alive_until'::regclass)
        > date_part('epoch', clock_timestamp()) * 1000;
end;

comment on function rowcast.audience(text) is
'How many sessions are subscribed to the channel at this moment, on all bridges, subscribers of its wildcard pattern included.';

-- As REST answers it to somebody who may subscribe, which the bridge has asked before.
create or replace function rowcast.channel_audience(p_channel text)
returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select
        json_build_object(
            'channel', p_channel, 'wsAudienceCount', rowcast.audience(p_channel)
        )::text;
end;

comment on function rowcast.channel_audience(text) is
'The audience of a channel as JSON text, for a caller of whom the bridge knows that he may subscribe.';

-- As REST answers it to an administrator.
create or replace function rowcast.admin_audience(p_claims text, p_channel text)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    return rowcast.channel_audience(p_channel);
end;
$$;

comment on function rowcast.admin_audience(text, text) is
'The audience of a channel as JSON text, for administrators; raises RCA01 for others.';
reset role;

set local role rowcast_owner;
-- sql/56_presence.sql
-- Presence: who is in a channel, and in what state. Bridges write it for their clients, under a
-- key that the bridge takes from the token; the feed tells all bridges what has changed.

create or replace trigger presence_90_ring
after insert or update on rowcast.presence
for each statement execute function rowcast.ring();

-- Takes the present state of some members of one node, NULL for those who left; repeating it does
-- no harm. seq is taken anew while the row is locked, so a higher one is a later state. The
-- size is that of the text which others are sent: eight bytes of 1e131000 are 131 kB of it.
create or replace function rowcast.presence_write(
    p_node uuid,
    p_channels text[],
    p_keys text[],
    p_states text[],
    p_sessions integer[],
    p_anonymous boolean[],
    p_limit integer
)
returns integer[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_refused integer[];
begin
    perform from rowcast.node as n where n.id = p_node for key share;
    if not found then
        return null;
    end if;
    with given as materialized (
        select m.channel_name, m.key, m.state::jsonb as state, m.sessions, m.anonymous, m.n,
            octet_length(m.state::jsonb::text) <= p_limit as fits
        from unnest(p_channels, p_keys, p_states, p_sessions, p_anonymous) with ordinality
            as m (channel_name, key, state, sessions, anonymous, n)
        where m.state is not null
    ),

    written as (
        insert into rowcast.presence as p (channel_name, key, node, state, sessions, anonymous)
        select g.channel_name, g.key, p_node, g.state, g.sessions, g.anonymous from given as g where g.fits
        on conflict (channel_name, key, node) do update
        set state = excluded.state, sessions = excluded.sessions, anonymous = excluded.anonymous,
            seq = nextval('rowcast.message_seq'), xid = pg_current_xact_id(), updated_at = clock_timestamp(),
            joined_at = case when p.left_at is null then p.joined_at else excluded.joined_at end, left_at = null
    )

    select coalesce(array_agg(g.n::integer), '{}') into v_refused from given as g where not g.fits;
    if array_position(p_states, null) is not null then
        update rowcast.presence as p
        set left_at = clock_timestamp(), updated_at = clock_timestamp(), sessions = 0,
            seq = nextval('rowcast.message_seq'), xid = pg_current_xact_id()
        from unnest(p_channels, p_keys, p_states) as m (channel_name, key, state)
        where m.state is null and p.channel_name = m.channel_name and p.key = m.key
        and p.node = p_node and p.left_at is null;
    end if;
    return v_refused;
end;
$$;

comment on function rowcast.presence_write(uuid, text[], text[], text[], integer[], boolean[], integer) is
'Writes the state of each (channel, member) of a node, NULL when it left. Returns the positions of states over the limit in bytes, which were not written; NULL, and nothing written, when the node is not known.';

-- What a bridge begins with when the first client of a channel comes; the feed goes on from there.
create or replace function rowcast.presence_read(p_channels text[])
returns table (
    channel_name text,
    key text,
    node uuid,
    seq bigint,
    state text,
    anonymous boolean,
    joined_at timestamptz
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
begin atomic
    select
        p.channel_name,
        p.key,
        p.node,
        p.seq,
        p.state::text,
        p.anonymous,
        p.joined_at
    from rowcast.presence as p
    where p.channel_name = any(p_channels) and p.left_at is null;
end;

comment on function rowcast.presence_read(text[]) is
'All rows of members who are present in these channels, for a bridge.';

-- One row per member; a table to join with, and the same that clients see.
create or replace function rowcast.presence_state(channel text)
returns table (
    key text,
    state jsonb,
    anonymous boolean,
    updated_at timestamptz,
    sessions bigint,
    joined_at timestamptz
)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select distinct on (p.key)
        p.key,
        p.state,
        p.anonymous,
        p.updated_at,
        sum(p.sessions) over (partition by p.key) as sessions,
        min(p.joined_at) over (partition by p.key) as joined_at
    from rowcast.presence as p
    where p.channel_name = channel
        and p.left_at is null
        and p.node in (
            select n.id from rowcast.node as n
            where n.expires_at > clock_timestamp()
        )
    order by p.key asc, p.seq desc;
end;

comment on function rowcast.presence_state(text) is
'Who is present in the channel, one row per member: key (the sub, or the session of an anonymous caller), newest state, on how many sessions, since when.';

-- As REST answers it to somebody who may subscribe, which the bridge has asked before.
create or replace function rowcast.channel_presence(p_channel text)
returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select
        json_build_object(
            'channel', p_channel,
            'presence', coalesce(json_agg(
                json_build_object(
                    'key', s.key,
                    'presence', s.state,
                    'anonymous', s.anonymous,
                    'sessions', s.sessions,
                    'joinedAt',
                    to_char(s.joined_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
                ) order by s.joined_at, s.key
            ), '[]')
        )::text
    from rowcast.presence_state(p_channel) as s;
end;

comment on function rowcast.channel_presence(text) is
'Who is present in a channel as JSON text, for a caller of whom the bridge knows that he may subscribe.';

-- As REST answers it to an administrator.
create or replace function rowcast.admin_presence(p_claims text, p_channel text)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    return rowcast.channel_presence(p_channel);
end;
$$;

comment on function rowcast.admin_presence(text, text) is
'Who is present in a channel as JSON text, for administrators; raises RCA01 for others.';
reset role;

set local role rowcast_owner;
-- sql/57_census.sql
-- The census: bridges say who is subscribed to what, for a change of policies to be tried on them.
-- Bridges alone know the sessions, so a signal asks them; what they say lives for a moment.
--
-- Claims are personal data: only the owner can ask and read, only bridges can answer, and what was
-- read, or was not read within two minutes, is deleted.

-- Nodes that are added later never see the signal, so those that are there now are noted.
create or replace function rowcast.census_ask()
returns uuid
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_nodes constant uuid[] := array(
        select n.id from rowcast.node as n where n.expires_at > clock_timestamp()
    );
    v_request uuid;
begin
    perform rowcast.census_expire();
    if cardinality(v_nodes) = 0 then
        return null;
    end if;
    insert into rowcast.census_request (nodes) values (v_nodes) returning id into v_request;
    insert into rowcast.signal (kind, body) values ('census', jsonb_build_object('request', v_request));
    return v_request;
end;
$$;

comment on function rowcast.census_ask() is
'Asks all bridges, at commit, who is subscribed to what; returns the number of the request, NULL when no bridge is running.';

-- Also by upkeep, for those whose asker has gone away. Children go by their foreign keys.
create or replace function rowcast.census_expire()
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    delete from rowcast.census_request as r
    where r.asked_at < clock_timestamp() - interval '2 minutes';
end;
$$;

comment on function rowcast.census_expire() is
'Deletes requests of two minutes ago with all that was answered to them.';

-- In portions, of which the last one says how much was left out. The lock holds off whoever reads
-- and deletes meanwhile: nothing can be written to a request that is over. Who has said all is not
-- listened to again, because a signal may be read twice.
create or replace function rowcast.census_answer(
    p_node uuid,
    p_request uuid,
    p_roles text[],
    p_claims text[],
    p_channels text[],
    p_counts integer[],
    p_left_out integer
)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform from rowcast.census_request as r where r.id = p_request for key share;
    if not found or exists (
        select from rowcast.census_answer as a where a.request = p_request and a.node = p_node
    ) then
        return false;
    end if;
    insert into rowcast.census (request, node, role, claims, channel, sessions)
    select p_request, p_node, s.role, s.claims, s.channel, s.sessions
    from unnest(p_roles, p_claims, p_channels, p_counts) as s (role, claims, channel, sessions);
    if p_left_out is not null then
        insert into rowcast.census_answer (request, node, left_out)
        values (p_request, p_node, p_left_out);
    end if;
    return true;
end;
$$;

comment on function rowcast.census_answer(uuid, uuid, text[], text[], text[], integer[], integer) is
'Says how many sessions of a node have this role and these claims and are subscribed to this channel; the last portion also how many subscriptions were left out, those before it NULL. False when nobody waits for it.';

-- Each look has a snapshot of its own, so that it sees what bridges have committed meanwhile. A
-- node whose lease ends is not waited for.
create or replace function rowcast.census_wait(p_request uuid, p_patience interval)
returns table (bridges integer, answered integer, left_out integer)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_until constant timestamptz := clock_timestamp() + p_patience;
begin
    while clock_timestamp() < v_until and exists (
        select from rowcast.census_request as r
        join rowcast.node as n on n.id = any (r.nodes) and n.expires_at > clock_timestamp()
        where r.id = p_request and not exists (
            select from rowcast.census_answer as a where a.request = r.id and a.node = n.id
        )
    ) loop
        perform pg_sleep(0.02);
    end loop;
    return query
    select
        (
            select count(*)::integer from (
                select unnest(r.nodes) as node from rowcast.census_request as r where r.id = p_request
                union
                select a.node from rowcast.census_answer as a where a.request = p_request
            ) as n
        ),
        count(*)::integer,
        coalesce(sum(a.left_out), 0)::integer
    from rowcast.census_answer as a where a.request = p_request;
end;
$$;

comment on function rowcast.census_wait(uuid, interval) is
'Waits until every bridge that is still alive has answered, at most for so long; how many were asked, how many have answered, and how many subscriptions they left out. To be called after the asking transaction.';

-- Reading ends it. What a node said that has not said all is there, too: it is true of that node.
create or replace function rowcast.census_read(p_request uuid)
returns table (role text, claims text, channel text, sessions integer)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform from rowcast.census_request as r where r.id = p_request for update;
    return query
    select c.role, c.claims, c.channel, sum(c.sessions)::integer
    from rowcast.census as c where c.request = p_request
    group by 1, 2, 3;
    delete from rowcast.census_request as r where r.id = p_request;
end;
$$;

comment on function rowcast.census_read(uuid) is
'The sessions by role, claims and channel, of all bridges that have answered; the request and all that was answered to it is deleted.';
reset role;

set local role rowcast_owner;
-- sql/60_admin.sql
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
reset role;

set local role rowcast_owner;
-- sql/61_channels_json.sql
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
reset role;

set local role rowcast_owner;
-- sql/62_admin_channels.sql
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

-- The owner is whoever creates it, unless the body says somebody else: the column's default reads
-- claims that only callers' transactions have.
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
reset role;

set local role rowcast_owner;
-- sql/63_admin_settings.sql
-- Settings and policies, for administrators: what governs everybody, to read and to change.

-- The policies on both tables as InsForge shows them, but our own for rowcast_publisher; and
-- whether a policy opens or restricts, without which a list of them says the opposite of half.
create or replace function rowcast.admin_permissions(p_claims text)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_table text;
    v_list json[] := '{}';
begin
    perform rowcast.require_admin(p_claims);
    foreach v_table in array array['realtime_channels', 'realtime_messages'] loop
        v_list := v_list || (
            select json_build_object('policies', coalesce(json_agg(json_build_object(
                'policyName', p.policyname, 'tableName', p.tablename, 'command', p.cmd, 'roles', p.roles,
                'using', p.qual, 'withCheck', p.with_check, 'permissive', p.permissive = 'PERMISSIVE'
            ) order by p.policyname), '[]'))
            from pg_catalog.pg_policies as p
            where p.schemaname = 'public' and p.tablename = v_table and p.policyname <> 'rowcast_publisher'
        );
    end loop;
    return json_build_object('subscribe', v_list[1], 'publish', v_list[2])::text;
end;
$$;

comment on function rowcast.admin_permissions(text) is
'The policies of realtime_channels (subscribe) and realtime_messages (publish, history) as JSON text. Raises RCA01.';

-- Numbers, because a client that sets thirty days should not have to know how Postgres spells them.
create or replace function rowcast.admin_config(p_claims text)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    return (
        select json_build_object(
            'retentionDays', trim_scale(round(extract(epoch from s.retention) / 86400, 4)),
            'broadcastRetentionSeconds', trim_scale(extract(epoch from s.broadcast_retention)),
            'cursorRetentionDays', trim_scale(round(extract(epoch from s.cursor_retention) / 86400, 4)),
            'payloadLimit', s.payload_limit,
            'replayRows', s.replay_rows,
            'replayBytes', s.replay_bytes
        )::text
        from rowcast.settings as s
    );
end;
$$;

comment on function rowcast.admin_config(text) is
'How long and how much is kept, as JSON text. Raises RCA01.';

-- What is not named stays; retentionDays null keeps messages for ever.
create or replace function rowcast.admin_update_config(p_claims text, p_changes jsonb)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    update rowcast.settings as s
    set retention = case
            when p_changes ? 'retentionDays' then (p_changes ->> 'retentionDays')::numeric * interval '1 day'
            else s.retention
        end,
        broadcast_retention = coalesce(
            (p_changes ->> 'broadcastRetentionSeconds')::numeric * interval '1 second', s.broadcast_retention
        ),
        cursor_retention = coalesce(
            (p_changes ->> 'cursorRetentionDays')::numeric * interval '1 day', s.cursor_retention
        ),
        payload_limit = coalesce((p_changes ->> 'payloadLimit')::integer, s.payload_limit),
        replay_rows = coalesce((p_changes ->> 'replayRows')::integer, s.replay_rows),
        replay_bytes = coalesce((p_changes ->> 'replayBytes')::integer, s.replay_bytes);
    return rowcast.admin_config(p_claims);
end;
$$;

comment on function rowcast.admin_update_config(text, jsonb) is
'Changes what is named of the settings that admin_config() shows; returns all of them. Raises RCA01.';
reset role;

set local role rowcast_owner;
-- sql/64_rollup.sql
-- Counting messages and deliveries ahead of who asks for statistics: exactly, in the transactions
-- of others, and off the path of publishers. A fold adds what became visible since the last one,
-- by the rule of the feed; who asks adds what became visible since the last fold.

-- A snapshot says nothing about the transaction that takes it: its own xid looks ended once a
-- later one has. What this transaction has yet to write must not look counted.
create or replace function rowcast.others_snapshot()
returns pg_snapshot
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select
        case
            when o.own is null or o.own >= pg_snapshot_xmax(o.now) then o.now
            else (
                least(pg_snapshot_xmin(o.now), o.own) || ':' || pg_snapshot_xmax(o.now) || ':'
                || (
                    select string_agg(r.x::text, ',' order by r.x)
                    from (
                        select x.x from pg_snapshot_xip(o.now) as x (x)
                        union
                        select o.own
                    ) as r
                )
            )::pg_snapshot
        end
    from (
        select
            pg_current_snapshot() as now,
            pg_current_xact_id_if_assigned() as own
    ) as o;
end;

comment on function rowcast.others_snapshot() is
'The present snapshot, in which this transaction itself is not visible.';

-- The statement that adds to the rollup. One text, because what is counted comes from the table,
-- from one leaf, or from what was deleted, and always has to end up in every scope.
create or replace function rowcast.rollup_query(p_with text, p_delta text)
returns text
language sql
immutable
parallel safe
return 'with ' || p_with || ' delta as ('
|| 'select d.channel_id::text as channel, d.channel_name as name, d.event_name as event,'
|| ' date_trunc(''hour'', d.created_at, ''UTC'') as hour, sum(d.n) as n'
|| ' from (' || p_delta || ') as d group by 1, 2, 3, 4), summed as ('
|| 'select case when grouping(t.channel) = 0 then ''channel'''
|| ' when grouping(t.name) = 0 then ''name'' else ''all'' end as scope,'
|| ' coalesce(t.channel, t.name, '''') as key, coalesce(t.hour, ''-infinity'') as bucket,'
|| ' t.event, sum(t.n) as n from delta as t group by grouping sets ((t.event), (t.event, t.hour),'
|| ' (t.event, t.channel), (t.event, t.channel, t.hour), (t.event, t.name)))'
|| ' insert into rowcast.message_rollup as r (scope, key, bucket, event_name, messages)'
|| ' select s.scope, s.key, s.bucket, s.event, s.n from summed as s where s.n <> 0'
|| ' on conflict (scope, key, bucket, event_name)'
|| ' do update set messages = r.messages + excluded.messages';

comment on function rowcast.rollup_query(text, text) is
'The statement that adds (channel_id, channel_name, event_name, created_at, n) to the rollup in every scope.';

-- One fold. Rows, the snapshot up to which they are counted, and the deletions that are settled
-- belong to one statement. A message that came and went between two folds is in neither; one that
-- was counted and has gone is taken out. After a restore, xids tell nothing: all is counted anew.
--
-- After a long pause it goes only as far as p_rows, so that no call runs into its timeout, again
-- and again: up to an xid below every running one, before which a snapshot sees all.
create or replace function rowcast.fold(p_rows integer default 500000)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
set timezone = 'UTC'
as $$
declare
    v_floor constant bigint := coalesce((select o.seq_floor from rowcast.origin as o), 0);
    v_rollup rowcast.rollup;
    v_step xid8;
begin
    select r.* into v_rollup from rowcast.rollup as r for update skip locked;
    if not found then
        return false;
    end if;
    if v_rollup.seq_floor <> v_floor then
        delete from rowcast.message_rollup;
        perform set_config('enable_seqscan', 'on', true);
    else
        select m.xid into v_step from public.realtime_messages as m
        where m.type = 'message' and m.seq > v_floor and m.xid >= pg_snapshot_xmax(v_rollup.snapshot)
        order by m.xid offset p_rows limit 1;
        if v_step >= pg_snapshot_xmin(pg_current_snapshot()) or v_step <= pg_snapshot_xmax(v_rollup.snapshot) then
            v_step := null;
        end if;
    end if;
    execute rowcast.rollup_query(
        'here as materialized (select coalesce($3, rowcast.others_snapshot()) as upto),'
        ' spans as materialized (select s.first, s.last from here as h, lateral rowcast.spans($1, h.upto) as s),'
        ' moved as (update rowcast.rollup set snapshot = (select h.upto from here as h), seq_floor = $2),'
        ' gone as (delete from rowcast.removal as g returning g.*),',
        case when v_rollup.seq_floor = v_floor
            then 'select m.channel_id, m.channel_name, m.event_name, m.created_at, 1 as n'
            ' from spans as s, lateral (select * from public.realtime_messages as l where l.type = ''message'''
            ' and l.xid between s.first and s.last and l.seq > $2 offset 0) as m'
            ' union all select g.channel_id, g.channel_name, g.event_name, g.created_at, -1 from gone as g'
            ' where g.seq <= $2 or pg_visible_in_snapshot(g.message_xid, $1)'
            else 'select m.channel_id, m.channel_name, m.event_name, m.created_at, 1 as n'
            ' from here as h, public.realtime_messages as m where m.type = ''message'''
            ' and (m.seq <= $2 or pg_visible_in_snapshot(m.xid, h.upto))'
        end
    ) using v_rollup.snapshot, v_floor, (v_step || ':' || v_step || ':')::pg_snapshot;
    with gone as (
        delete from rowcast.delivery_change as c returning c.*
    )

    insert into rowcast.delivery_rollup as r (key, bucket, delivered, failed)
    select coalesce(g.channel_id::text, ''), coalesce(g.hour, '-infinity'), sum(g.delivered), sum(g.failed)
    from (
        select c.channel_id, date_trunc('hour', c.message_at, 'UTC') as hour, c.delivered, c.failed
        from gone as c
    ) as g
    group by grouping sets ((), (g.hour), (g.channel_id), (g.channel_id, g.hour))
    having count(*) > 0
    on conflict (key, bucket) do update
    set delivered = r.delivered + excluded.delivered, failed = r.failed + excluded.failed;
    return true;
end;
$$;

comment on function rowcast.fold(integer) is
'Counts what was committed since the last fold, about p_rows messages at most, so that statistics answer at once; false when another call is at it.';

-- What a leaf takes with it when it is dropped. Share mode keeps deletions out meanwhile: one that
-- commits between counting and dropping would be taken out twice.
create or replace function rowcast.rollup_forget(p_leaf text)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set jit = off
set timezone = 'UTC'
as $$
declare
    v_rollup rowcast.rollup;
begin
    execute format('lock table rowcast.%I in share mode', p_leaf);
    select r.* into v_rollup from rowcast.rollup as r for update;
    execute rowcast.rollup_query('', format(
        'select m.channel_id, m.channel_name, m.event_name, m.created_at, -1 as n from rowcast.%I as m'
        ' where m.seq <= $2 or pg_visible_in_snapshot(m.xid, $1)', p_leaf
    )) using v_rollup.snapshot, v_rollup.seq_floor;
    delete from rowcast.message_rollup as r where r.messages = 0;
    delete from rowcast.delivery_rollup as r where r.delivered = 0 and r.failed = 0;
end;
$$;

comment on function rowcast.rollup_forget(text) is
'Takes the messages of a leaf that is to be dropped out of the rollup.';
reset role;

set local role rowcast_owner;
-- sql/65_changes.sql
-- What changes counts afterwards: deleted messages, and deliveries that are settled.

-- Only noted: whether the message was counted already, the fold knows and this transaction does
-- not, because a fold may be under way that still sees the message.
create or replace function rowcast.messages_removed()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into rowcast.removal (message_xid, seq, channel_id, channel_name, event_name, created_at)
    select g.xid, g.seq, g.channel_id, g.channel_name, g.event_name, g.created_at
    from gone as g
    where g.type = 'message';
    return null;
end;
$$;

comment on function rowcast.messages_removed() is
'Trigger of realtime_messages: notes deleted messages for the next fold.';

create or replace trigger realtime_messages_80_remove
after delete on public.realtime_messages
referencing old table as gone
for each statement execute function rowcast.messages_removed();

-- TRUNCATE shows no rows; nobody else can have written meanwhile, so counting begins anew here.
create or replace function rowcast.messages_emptied()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update rowcast.rollup set snapshot = rowcast.others_snapshot();
    delete from rowcast.message_rollup;
    delete from rowcast.removal;
    return null;
end;
$$;

comment on function rowcast.messages_emptied() is
'Trigger of realtime_messages: counts from zero after TRUNCATE.';

create or replace trigger realtime_messages_80_empty
after truncate on public.realtime_messages
for each statement execute function rowcast.messages_emptied();

-- A row for each delivery whose outcome becomes known or changes. The conditions stand at the
-- triggers: a publisher, who only adds pending ones, and a claim, call nothing.
create or replace function rowcast.delivery_counted()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_delivered constant integer := case when tg_op = 'DELETE' then 0 else (new.state = 'delivered')::integer end;
    v_failed constant integer := case when tg_op = 'DELETE' then 0 else (new.state = 'failed')::integer end;
    v_channel constant uuid := case when tg_op = 'INSERT' then new.channel_id else old.channel_id end;
    v_at constant timestamptz := case when tg_op = 'INSERT' then new.message_at else old.message_at end;
begin
    insert into rowcast.delivery_change (channel_id, message_at, delivered, failed)
    values (
        v_channel, v_at,
        v_delivered - case when tg_op = 'INSERT' then 0 else (old.state = 'delivered')::integer end,
        v_failed - case when tg_op = 'INSERT' then 0 else (old.state = 'failed')::integer end
    );
    return null;
end;
$$;

comment on function rowcast.delivery_counted() is
'Trigger of delivery: notes outcomes for the next fold.';

create or replace trigger delivery_80_settle
after update of state on rowcast.delivery
for each row
when (
    old.state is distinct from new.state
    and (old.state in ('delivered', 'failed') or new.state in ('delivered', 'failed'))
)
execute function rowcast.delivery_counted();

create or replace trigger delivery_80_add
after insert on rowcast.delivery
for each row when (new.state in ('delivered', 'failed'))
execute function rowcast.delivery_counted();

create or replace trigger delivery_80_remove
after delete on rowcast.delivery
for each row when (old.state in ('delivered', 'failed'))
execute function rowcast.delivery_counted();
reset role;

set local role rowcast_owner;
-- sql/66_statistics.sql
-- Statistics: the rollup, and what became visible since it was made.

-- The share of settled deliveries that arrived; 0 where none was settled. What lies between `since`
-- and the first whole hour is counted where it lies.
create or replace function rowcast.delivery_rate(
    p_channel_id uuid, p_since timestamptz, p_full timestamptz
)
returns numeric
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select
        coalesce(
            trim_scale(round(sum(c.delivered) / nullif(sum(c.delivered + c.failed), 0), 4)), 0
        )
    from (
        select
            r.delivered::numeric,
            r.failed
        from rowcast.delivery_rollup as r
        where r.key = coalesce(p_channel_id::text, '')
            and ((p_since is null and r.bucket = '-infinity') or r.bucket >= p_full)
        union all
        select
            d.delivered,
            d.failed
        from rowcast.delivery_change as d
        where (p_channel_id is null or d.channel_id = p_channel_id)
            and (p_since is null or d.message_at >= p_full)
        union all
        select
            (d.state = 'delivered')::integer,
            (d.state = 'failed')::integer
        from rowcast.delivery as d
        where d.message_at >= p_since and d.message_at < p_full
            and (p_channel_id is null or d.channel_id = p_channel_id)
    ) as c;
end;

comment on function rowcast.delivery_rate(uuid, timestamptz, timestamptz) is
'Share of the settled webhook deliveries that were delivered, of one channel or of all, for messages since a time.';

-- Whole hours and all time come from the rollup; the rest is counted where it lies. Rows of a
-- single name have no hours, so with a time they are counted by the index on names.
--
-- STABLE: the rollup, its snapshot and the rows after it are seen at one moment.
create or replace function rowcast.statistics(
    p_channel_id uuid, p_channel_name text, p_since timestamptz
)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_scope constant text := case
        when p_channel_name is not null then 'name' when p_channel_id is not null then 'channel' else 'all'
    end;
    v_key constant text := coalesce(p_channel_name, p_channel_id::text, '');
    v_rollup rowcast.rollup;
    v_since timestamptz := p_since;
    -- From here on whole hours are counted.
    v_full timestamptz := date_trunc('hour', p_since + interval '1 hour' - interval '1 microsecond', 'UTC');
    v_filter constant text := case v_scope
        when 'name' then ' and m.channel_name = $2' when 'channel' then ' and m.channel_id = $1' else ''
    end;
    -- Webhooks belong to channels: a name has the rate of the channel that governs it.
    v_channel constant uuid := case
        when p_channel_name is null then p_channel_id
        else coalesce(rowcast.governing(p_channel_name), '00000000-0000-0000-0000-000000000000')
    end;
    v_answer json;
begin
    select r.* into v_rollup from rowcast.rollup as r;
    if p_since is not null and v_scope = 'name' then
        v_full := 'infinity';
    elsif v_rollup.seq_floor <> coalesce((select o.seq_floor from rowcast.origin as o), 0) then
        -- Restored and not yet counted anew.
        v_since := coalesce(p_since, '-infinity');
        v_full := 'infinity';
    end if;
    execute 'with counted as ('
        ' select r.event_name, r.messages as n from rowcast.message_rollup as r where r.scope = $3 and r.key = $4'
        || case when v_since is null then ' and r.bucket = ''-infinity''' else ' and r.bucket >= $6' end
        || case when v_full = 'infinity' then '' else
            -- A transaction sees its own rows, although its xid may lie beyond its snapshot.
            ' union all select m.event_name, 1 from (select s.first, s.last from rowcast.spans($7, pg_current_snapshot()) as s'
            ' union all select o.x, o.x from pg_current_xact_id_if_assigned() as o (x)'
            ' where o.x >= pg_snapshot_xmax(pg_current_snapshot())) as s, lateral (select * from public.realtime_messages as l where l.type = ''message'''
            ' and l.xid between s.first and s.last and l.seq > $8 offset 0) as m where ($6 is null or m.created_at >= $6)' || v_filter
            || ' union all select m.event_name, -1 from rowcast.removal as m'
            ' where (m.seq <= $8 or pg_visible_in_snapshot(m.message_xid, $7)) and ($6 is null or m.created_at >= $6)' || v_filter
        end
        || case when v_since is null then '' else
            ' union all select m.event_name, 1 from public.realtime_messages as m'
            ' where m.type = ''message'' and m.created_at >= $5 and m.created_at < $6' || v_filter
        end
        || '), events as (select c.event_name, sum(c.n) as n from counted as c group by 1 having sum(c.n) > 0)'
        ' select json_build_object(''totalMessages'', coalesce(sum(e.n), 0), ''whDeliveryRate'','
        ' rowcast.delivery_rate($11, $9, $10), ''topEvents'', coalesce((select json_agg(json_build_object('
        '''eventName'', t.event_name, ''count'', t.n) order by t.n desc, t.event_name)'
        ' from (select * from events as e order by e.n desc, e.event_name limit 10) as t), ''[]''))'
        ' from events as e'
    into v_answer
    using p_channel_id, p_channel_name, v_scope, v_key, v_since, v_full, v_rollup.snapshot, v_rollup.seq_floor,
        p_since, date_trunc('hour', p_since + interval '1 hour' - interval '1 microsecond', 'UTC'), v_channel;
    return v_answer::text;
end;
$$;

comment on function rowcast.statistics(uuid, text, timestamptz) is
'Messages, delivery rate and the ten most frequent events, of everything, of one channel or of one name, since a time, as JSON text.';
reset role;

set local role rowcast_owner;
-- sql/67_history.sql
-- History: pages of durable messages, newest first, for administrators and, under the policies of
-- SELECT, for callers.

-- Finds a page with the rights of whoever runs it. A page continues after the last row of the one
-- before, by the order of an index, so what arrives meanwhile moves nothing:
--
-- * of a channel by seq, through (channel_id, seq);
-- * otherwise by xid and seq, through (channel_name, xid) or (xid). There rows up to the floor
--   come last: a restore brought them, and their xids belong to another cluster.
--
-- The text has only the conditions that were asked for, because `$1 is null or …` uses no index.
-- A leaf that was never analyzed looks as if it held a handful of messages, and would be read and
-- sorted whole; so the order has to come from an index, but where both ends of a time are given.
create or replace function rowcast.history(
    p_channel_id uuid,
    p_channel_name text,
    p_event_name text,
    p_sender_id text,
    p_since timestamptz,
    p_until timestamptz,
    p_limit integer,
    p_offset integer,
    p_xid xid8,
    p_seq bigint,
    p_floor bigint
)
returns public.realtime_messages[]
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
declare
    v_by_seq constant boolean := p_channel_id is not null and p_channel_name is null;
    v_base constant text := 'select m.* from public.realtime_messages as m where m.type = ''message'''
        || case when p_channel_id is null then '' else ' and m.channel_id = $1' end
        || case when p_channel_name is null then '' else ' and m.channel_name = $2' end
        || case when p_event_name is null then '' else ' and m.event_name = $3' end
        || case when p_sender_id is null then '' else ' and m.sender_id = $4' end
        || case when p_since is null then '' else ' and m.created_at >= $5' end
        || case when p_until is null then '' else ' and m.created_at < $6' end;
    v_after constant text := case when p_seq is null then '' else ' and (m.xid, m.seq) < ($9, $10)' end;
    v_order constant text := ' order by m.xid desc, m.seq desc limit $7 + $8';
    v_text text;
    v_page public.realtime_messages[];
begin
    if p_since is not null and p_until is not null then
        perform set_config('enable_bitmapscan', 'on', true);
        perform set_config('enable_sort', 'on', true);
    end if;
    if v_by_seq then
        v_text := v_base || case when p_seq is null then '' else ' and m.seq < $10' end
            || ' order by m.seq desc limit $7 + $8';
    elsif p_floor = 0 then
        v_text := v_base || v_after || v_order;
    elsif p_seq <= p_floor then
        v_text := v_base || ' and m.seq <= $11' || v_after || v_order;
    else
        v_text := 'select m.* from ((' || v_base || ' and m.seq > $11' || v_after || v_order
            || ') union all (' || v_base || ' and m.seq <= $11' || v_order
            || ')) as m order by m.seq > $11 desc, m.xid desc, m.seq desc limit $7 + $8';
    end if;
    execute 'select array(select m from (' || v_text || ') as m offset $8)' into v_page
    using p_channel_id, p_channel_name, p_event_name, p_sender_id, p_since, p_until, p_limit, p_offset,
        p_xid, p_seq, p_floor;
    return v_page;
end;
$$;

comment on function rowcast.history(uuid, text, text, text, timestamptz, timestamptz, integer, integer, xid8, bigint, bigint) is
'A page of durable messages that the current role may read, newest first, after (p_xid, p_seq) when given; p_floor is that of rowcast.origin.';

-- Definer, because the counts are those of the machinery, and whether a channel still exists is
-- no question to the policies: a message of a channel that was deleted has none.
--
-- Numbered, not WITH ORDINALITY: pg_dump spells that so that it cannot be restored once a team has
-- added a column to messages.
create or replace function rowcast.messages_json(p_messages public.realtime_messages[])
returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select
        coalesce(
            json_agg(
                json_build_object(
                    'id', m.id,
                    'eventName', m.event_name,
                    'channelId', c.id,
                    'channelName', m.channel_name,
                    'payload', m.payload,
                    'senderType', m.sender_type,
                    'senderId', m.sender_id,
                    'wsAudienceCount', m.ws_audience_count,
                    'whAudienceCount', m.wh_audience_count,
                    'whDeliveredCount', (
                        select count(*) from rowcast.delivery as d
                        where d.message_seq = m.seq and d.state = 'delivered'
                    ),
                    'createdAt', rowcast.iso_time(m.created_at)
                )
                order by m.ordinality
            ), '[]'
        )::text
    from (
        select
            u.*,
            row_number() over () as ordinality
        from unnest(p_messages) as u
    ) as m
    left join public.realtime_channels as c on m.channel_id = c.id;
end;

comment on function rowcast.messages_json(public.realtime_messages[]) is
'Messages as REST shows them, in the order given, as JSON text.';

-- What goes out at once is bounded in bytes, too: a thousand messages may have 256 MB of payload.
create or replace function rowcast.history_page(
    p_messages public.realtime_messages[],
    p_limit integer,
    out body text,
    out last_xid text,
    out last_seq bigint
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_fit integer;
begin
    select greatest(1, count(*) filter (where m.bytes <= (select s.replay_bytes from rowcast.settings as s)))
    into v_fit
    from (
        select sum(octet_length(u.payload::text)) over (order by u.ordinality) as bytes
        from unnest(p_messages) with ordinality as u
    ) as m;
    body := rowcast.messages_json(p_messages[1:v_fit]);
    if cardinality(p_messages) = p_limit or cardinality(p_messages) > v_fit then
        last_xid := p_messages[v_fit].xid::text;
        last_seq := p_messages[v_fit].seq;
    end if;
end;
$$;

comment on function rowcast.history_page(public.realtime_messages[], integer) is
'As many of the messages as fit into replay_bytes as JSON text, and after what the next page begins when there may be one.';
reset role;

set local role rowcast_owner;
-- sql/68_callers.sql
-- What REST reads as a caller: history and channels, under the policies, through the caller login.

-- The channel that a UUID or its first eight or more digits name, among those that the current
-- role may see. A whole UUID is taken as it is: its channel may have been deleted.
create or replace function rowcast.channel_by_id(p_id text)
returns uuid
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_digits constant text := lower(replace(p_id, '-', ''));
    v_ids uuid[];
begin
    if p_id is null or v_digits ~ '^[0-9a-f]{32}$' then
        return v_digits::uuid;
    elsif v_digits !~ '^[0-9a-f]{8,31}$' then
        raise exception '"%" is no id of a channel', left(p_id, 100)
        using errcode = 'RCC01', hint = 'Give the whole id, or at least its first 8 digits.';
    end if;
    v_ids := array(
        select c.id from public.realtime_channels as c
        where c.id between rpad(v_digits, 32, '0')::uuid and rpad(v_digits, 32, 'f')::uuid limit 2
    );
    if cardinality(v_ids) > 1 then
        raise exception 'the ids of several channels begin with "%"', p_id
        using errcode = 'RCC02', hint = 'Give more digits of the id.';
    elsif cardinality(v_ids) = 0 then
        raise exception 'there is no channel whose id begins with "%"', p_id
        using errcode = 'RCC03', hint = 'List the channels to see their ids.';
    end if;
    return v_ids[1];
end;
$$;

comment on function rowcast.channel_by_id(text) is
'The channel id that the text is or uniquely begins; raises RCC01, RCC02, RCC03.';

-- A page of history as the caller. What the policies let through is rendered with the rights of
-- the session again. may_subscribe(), which recipes ask for every row, remembers its last answer
-- here: nothing changes in a read-only transaction of one caller.
create or replace function rowcast.messages_as(
    p_role text,
    p_claims text,
    p_channel text,
    p_channel_name text,
    p_event_name text,
    p_sender_id text,
    p_since timestamptz,
    p_until timestamptz,
    p_limit integer,
    p_offset integer,
    p_xid text,
    p_seq bigint,
    p_floor bigint,
    out body text,
    out last_xid text,
    out last_seq bigint
)
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_page public.realtime_messages[];
begin
    perform set_config('transaction_read_only', 'on', true);
    perform rowcast.impersonate(p_role, p_claims, p_channel_name);
    perform set_config('rowcast.asked', 'f:', true);
    v_page := rowcast.history(
        rowcast.channel_by_id(p_channel), p_channel_name, p_event_name, p_sender_id, p_since, p_until,
        p_limit, p_offset, p_xid::xid8, p_seq, p_floor
    );
    perform set_config('role', 'none', false);
    select p.body, p.last_xid, p.last_seq into body, last_xid, last_seq
    from rowcast.history_page(v_page, p_limit) as p;
end;
$$;

comment on function rowcast.messages_as(text, text, text, text, text, text, timestamptz, timestamptz, integer, integer, text, bigint, bigint) is
'A page of history under the caller''s SELECT policies as JSON text, and after what the next page begins when there may be one.';

-- The channels that the caller can see, newest first. No name is being asked for here, so a policy
-- that depends on one shows nothing: a list says what is open, not what might be.
create or replace function rowcast.channels_as(
    p_role text, p_claims text, p_id uuid, p_limit integer, p_offset integer, p_full boolean
)
returns text
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_rows json[];
begin
    perform set_config('transaction_read_only', 'on', true);
    perform rowcast.impersonate(p_role, p_claims, null);
    v_rows := array(
        select rowcast.channel_json(
            c.id, c.pattern, c.description, null, c.enabled, c.is_public, c.owner_id, c.wildcard,
            c.created_at, c.updated_at, p_full, false
        )
        from public.realtime_channels as c
        where p_id is null or c.id = p_id
        order by c.created_at desc, c.id desc limit p_limit offset p_offset
    );
    perform set_config('role', 'none', false);
    if p_id is not null then
        return v_rows[1]::text;
    end if;
    return array_to_json(v_rows)::text;
end;
$$;

comment on function rowcast.channels_as(text, text, uuid, integer, integer, boolean) is
'The channels that the caller can see, or the one of an id (NULL when there is none), as JSON text without webhook addresses.';
reset role;

set local role rowcast_owner;
-- sql/69_admin_messages.sql
-- Messages, for administrators: all of history, statistics, publishing, deleting.

-- Newest first, whatever the policies say.
create or replace function rowcast.admin_messages(
    p_claims text,
    p_channel text,
    p_channel_name text,
    p_event_name text,
    p_sender_id text,
    p_since timestamptz,
    p_until timestamptz,
    p_limit integer,
    p_offset integer,
    p_xid text,
    p_seq bigint,
    p_floor bigint,
    out body text,
    out last_xid text,
    out last_seq bigint
)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_page public.realtime_messages[];
begin
    perform rowcast.require_admin(p_claims);
    v_page := rowcast.history(
        rowcast.channel_by_id(p_channel), p_channel_name, p_event_name, p_sender_id, p_since, p_until,
        p_limit, p_offset, p_xid::xid8, p_seq, p_floor
    );
    select p.body, p.last_xid, p.last_seq into body, last_xid, last_seq
    from rowcast.history_page(v_page, p_limit) as p;
end;
$$;

comment on function rowcast.admin_messages(text, text, text, text, text, timestamptz, timestamptz, integer, integer, text, bigint, bigint) is
'A page of all history as JSON text, and after what the next page begins when there may be one. Raises RCA01, RCC01 to RCC03.';

-- Of everything, of one channel, or of one name.
create or replace function rowcast.admin_statistics(
    p_claims text, p_channel text, p_channel_name text, p_since timestamptz
)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    return rowcast.statistics(rowcast.channel_by_id(p_channel), p_channel_name, p_since);
end;
$$;

comment on function rowcast.admin_statistics(text, text, text, timestamptz) is
'Statistics of all messages, of a channel or of a name, as JSON text. Raises RCA01, RCC01 to RCC03.';

-- The bridge asks this for a caller who may subscribe to the name, which it has asked before.
create or replace function rowcast.channel_statistics(p_channel_name text, p_since timestamptz)
returns text
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
return rowcast.statistics(null, p_channel_name, p_since);

comment on function rowcast.channel_statistics(text, timestamptz) is
'Statistics of one name as JSON text, for a bridge that knows that its caller may subscribe.';

-- All or none, stamped `system`: an administrator speaks for the application.
create or replace function rowcast.admin_publish(
    p_claims text,
    p_channels text[],
    p_types text[],
    p_events text[],
    p_payloads text[],
    p_keys uuid[]
)
returns uuid[]
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_ids uuid[] := '{}';
begin
    perform rowcast.require_admin(p_claims);
    for i in 1..cardinality(p_channels) loop
        v_ids := v_ids || rowcast.publish_as_system(
            p_channels[i], p_events[i], p_payloads[i]::jsonb, p_types[i], p_keys[i]
        );
    end loop;
    return v_ids;
end;
$$;

comment on function rowcast.admin_publish(text, text[], text[], text[], text[], uuid[]) is
'Publishes each message as the system, all or none; returns the message ids. Raises RCA01 and what publish() raises.';

-- From history, replay and screens.
create or replace function rowcast.admin_delete_message(p_claims text, p_id uuid)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    return rowcast.delete_message(p_id);
end;
$$;

comment on function rowcast.admin_delete_message(text, uuid) is
'Deletes a message and tells its subscribers; false when there is none of that id. Raises RCA01.';
reset role;

set local role rowcast_owner;
-- sql/70_leaves.sql
-- Leaves: made a week ahead, closed when nothing can be added, dropped when expired.

-- Databases whose default privileges grant everything to `anon` must not open a leaf: it would
-- be read and truncated past the parent's policies.
create or replace function rowcast.seal(p_table regclass)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_role text;
begin
    for v_role in
        select distinct case when a.grantee = 0 then 'public' else quote_ident(r.rolname) end
        from pg_catalog.pg_class as c
        cross join aclexplode(c.relacl) as a
        left join pg_catalog.pg_roles as r on r.oid = a.grantee
        where c.oid = p_table and a.grantee <> c.relowner
    loop
        execute format('revoke all on %s from %s', p_table, v_role);
    end loop;
    execute format('alter table %s enable row level security', p_table);
end;
$$;

comment on function rowcast.seal(regclass) is
'Takes every privilege on a table from everybody but its owner and enables row level security.';

-- The width follows retention so that a reader of all history meets about a dozen leaves.
create or replace function rowcast.leaf_width()
returns interval
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select
        case
            when s.retention is null then interval '30 days'
            when s.retention <= interval '1 day' then interval '6 hours'
            when s.retention <= interval '8 days' then interval '1 day'
            when s.retention <= interval '40 days' then interval '4 days'
            else interval '1 day' * ceil(extract(epoch from s.retention) / 86400 / 10)
        end
    from rowcast.settings as s;
end;

comment on function rowcast.leaf_width() is 'The width of new leaves under the present retention.';

-- Made standalone, filled with what fell into the default leaf, then attached: attaching then
-- locks only briefly, and moved rows keep their xid because no trigger is on the table yet.
-- Columns are named, because a team may have added some that Postgres computes.
create or replace function rowcast.make_leaf(p_from timestamptz, p_to timestamptz)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    v_name constant text := 'messages_' || to_char(p_from, 'YYYYMMDD_HH24MI');
    v_columns text;
begin
    execute format('create table rowcast.%I (like rowcast.messages_durable including defaults including generated including constraints)', v_name);
    perform rowcast.seal(format('rowcast.%I', v_name)::regclass);
    if p_from < clock_timestamp() + interval '2 minutes' then
        lock table rowcast.messages_default in share row exclusive mode;
        select string_agg(quote_ident(a.attname), ', ' order by a.attnum) into v_columns
        from pg_catalog.pg_attribute as a
        where a.attrelid = 'rowcast.messages_default'::regclass and a.attnum > 0 and not a.attisdropped and a.attgenerated = '';
        execute format(
            'with moved as (delete from rowcast.messages_default where created_at >= %L and created_at < %L returning *)'
            ' insert into rowcast.%I (%s) select %s from moved', p_from, p_to, v_name, v_columns, v_columns
        );
    end if;
    execute format(
        'alter table rowcast.messages_durable attach partition rowcast.%I for values from (%L) to (%L)',
        v_name, p_from, p_to
    );
    perform rowcast.watch_leaf(v_name);
    insert into rowcast.leaf (name, from_at, to_at) values (v_name, p_from, p_to);
    return v_name;
end;
$$;

comment on function rowcast.make_leaf(timestamptz, timestamptz) is
'Creates and attaches one durable leaf, moving rows of its range out of the default leaf.';

-- Leaves up to a week ahead, at least one after the present one, without gaps. What somebody
-- detached or dropped by hand is ours no longer, and what it held is lost to replay; dropped before
-- its time was over, it is made again, because the default leaf never expires. What lies ahead is
-- empty, and is made anew where a shorter retention wants it narrower.
create or replace function rowcast.make_leaves()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
as $$
declare
    v_width constant interval := rowcast.leaf_width();
    v_start constant timestamptz := date_bin(v_width, now(), timestamptz '2000-01-01');
    v_from timestamptz := (select max(l.to_at) from rowcast.leaf as l);
    v_made integer := 0;
    v_lost rowcast.leaf;
begin
    for v_lost in
        delete from rowcast.leaf as l
        where not exists (select from pg_catalog.pg_inherits as i where i.inhrelid = to_regclass(format('rowcast.%I', l.name)))
        returning l.*
    loop
        if v_lost.from_at < clock_timestamp() + interval '1 minute' then
            perform rowcast.lose_everything(false);
        end if;
        if v_lost.to_at > now() and to_regclass(format('rowcast.%I', v_lost.name)) is null then
            perform rowcast.make_leaf(v_lost.from_at, v_lost.to_at);
            v_made := v_made + 1;
        end if;
    end loop;
    for v_lost in
        delete from rowcast.leaf as l
        where l.from_at > clock_timestamp() + interval '5 minutes' and l.to_at - l.from_at > v_width
        returning l.*
    loop
        execute format('drop table rowcast.%I', v_lost.name);
        v_from := least(v_from, v_lost.from_at);
    end loop;
    -- Aligned to the width since an epoch, so that names and bounds are predictable. After a
    -- long pause one leaf takes the whole gap: in the default leaf its rows would never expire.
    if v_from is null then
        v_from := v_start;
    elsif v_from < now() - v_width then
        perform rowcast.make_leaf(v_from, v_start);
        v_from := v_start;
        v_made := 1;
    end if;
    while v_from < now() + least(interval '7 days', v_width * 4) or v_made = 0 and v_from < now() + v_width loop
        perform rowcast.make_leaf(v_from, v_from + v_width);
        v_from := v_from + v_width;
        v_made := v_made + 1;
    end loop;
    return v_made;
end;
$$;

comment on function rowcast.make_leaves() is 'Creates the leaves of the next week; returns how many.';

-- Two steps over two calls: first an xid that is newer than every writer that can still hold a
-- row for the range, then, when all older transactions have ended, the leaf is closed.
-- Pruning by time instead loses the transaction that stayed open longer than the margin. A closed
-- leaf whose range is not past was closed by a clock that has been set back.
create or replace function rowcast.close_leaves()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_closed integer;
begin
    update rowcast.leaf set closed_xid = closing_xid
    where closed_xid is null and closing_xid < pg_snapshot_xmin(pg_current_snapshot());
    get diagnostics v_closed = row_count;
    update rowcast.leaf set closing_xid = null, closed_xid = null
    where closing_xid is not null and to_at >= clock_timestamp() - interval '90 seconds';
    update rowcast.leaf set closing_xid = pg_current_xact_id()
    where closing_xid is null and to_at < clock_timestamp() - interval '90 seconds';
    return v_closed;
end;
$$;

comment on function rowcast.close_leaves() is
'Closes leaves whose range is past and whose writers have ended; returns how many closed now.';
reset role;

set local role rowcast_owner;
-- sql/71_upkeep.sql
-- Retention and upkeep, without pg_cron: a bridge calls upkeep() now and then.

-- Drops closed leaves past retention: nobody can add to them, so what each channel loses is
-- remembered without a lock, for a resume to know whether it really missed something; but not
-- what a restore brought, whose foreign xids would call every cursor too old. DROP is
-- 160 times faster than DELETE, but needs a short exclusive lock: it waits for it 50 ms at most,
-- and otherwise the next call tries again.
create or replace function rowcast.drop_leaves()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
as $$
declare
    v_leaf text;
    v_dropped integer := 0;
begin
    for v_leaf in
        select l.name from rowcast.leaf as l, rowcast.settings as s
        where l.to_at < clock_timestamp() - s.retention and l.closed_xid is not null
        order by l.from_at
    loop
        begin
            perform rowcast.keep_bodies(v_leaf);
            execute format(
                'insert into rowcast.expired (channel_name, xid)'
                ' select m.channel_name, max(m.xid::text::bigint)::text::xid8 from rowcast.%I as m'
                ' where m.seq > (select coalesce(max(o.seq_floor), 0) from rowcast.origin as o) group by 1'
                ' on conflict (channel_name) do update'
                ' set xid = greatest(expired.xid, excluded.xid), expired_at = excluded.expired_at', v_leaf
            );
            perform rowcast.rollup_forget(v_leaf);
            execute format('drop table rowcast.%I', v_leaf);
            delete from rowcast.leaf as l where l.name = v_leaf;
            v_dropped := v_dropped + 1;
        exception when lock_not_available then
            exit;
        end;
    end loop;
    return v_dropped;
end;
$$;

comment on function rowcast.drop_leaves() is
'Drops durable leaves past retention and remembers what each channel lost; returns how many.';

-- Broadcasts have no index on time, but xids grow with it: `tick` says which xid was newest when.
-- At most 50,000 in one transaction; there are more when it deleted so many.
create or replace function rowcast.expire_broadcasts()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_keep constant interval := (select s.broadcast_retention from rowcast.settings as s);
    v_before xid8;
    v_deleted integer;
begin
    insert into rowcast.tick default values on conflict do nothing;
    select t.xid into v_before from rowcast.tick as t
    where t.at < clock_timestamp() - v_keep order by t.at desc limit 1;
    delete from rowcast.tick as t where t.xid < v_before;
    with gone as (
        delete from rowcast.messages_broadcast as m
        where m.ctid = any (array(
            select d.ctid from rowcast.messages_broadcast as d where d.xid < v_before limit 50000
        ))
        returning m.channel_name, m.xid
    ),

    remembered as (
        insert into rowcast.expired_broadcast (channel_name, xid)
        select g.channel_name, max(g.xid::text::bigint)::text::xid8 from gone as g group by 1
        on conflict (channel_name) do update
        set xid = greatest(expired_broadcast.xid, excluded.xid), expired_at = excluded.expired_at
    )

    select count(*) into v_deleted from gone;
    return v_deleted;
end;
$$;

comment on function rowcast.expire_broadcasts() is
'Deletes broadcasts past their retention and remembers what each channel lost; returns how many.';

-- Everything that must happen now and then. One caller at a time; the others return at once. The
-- lock is one of a row: an advisory one any login could take, and keep, and nothing would ever
-- expire. `again` asks for the next call without delay.
create or replace function rowcast.upkeep()
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '50ms'
as $$
declare
    v_made integer;
    v_broadcasts integer;
    v_forget constant interval := (select s.cursor_retention + interval '1 day' from rowcast.settings as s);
begin
    perform from rowcast.origin for no key update skip locked;
    if not found then
        return null;
    end if;
    begin
        v_made := rowcast.make_leaves();
    exception when lock_not_available or deadlock_detected then
        v_made := 0; -- a week of leaves is ahead: the next call will do
    end;
    delete from rowcast.signal as g where g.created_at < clock_timestamp() - interval '2 minutes';
    perform rowcast.census_expire();
    delete from rowcast.presence as p where p.left_at < clock_timestamp() - interval '1 minute';
    delete from rowcast.publish_key as k
    where k.created_at < now() - (select s.publish_key_retention from rowcast.settings as s);
    delete from rowcast.expired as e where e.expired_at < now() - v_forget;
    delete from rowcast.expired_broadcast as e where e.expired_at < now() - v_forget;
    v_broadcasts := rowcast.expire_broadcasts();
    return jsonb_build_object(
        'made', v_made,
        'closed', rowcast.close_leaves(),
        'dropped', rowcast.drop_leaves(),
        'compiled', rowcast.fresh_compile(),
        'broadcasts', v_broadcasts,
        'again', v_broadcasts >= 50000,
        'deliveries', rowcast.webhook_upkeep()
    );
end;
$$;

comment on function rowcast.upkeep() is
'Makes, closes and drops leaves, expires broadcasts, keys, signals, censuses, deliveries and who left; NULL when another call is at it.';
reset role;

set local role rowcast_owner;
-- sql/72_delete.sql
-- Removing a message: from history, from replay, and from the screens of its subscribers.

-- The id carries the time to the millisecond, so the index on time finds the row.
create or replace function rowcast.message_time(p_id uuid)
returns timestamptz
language sql
immutable
parallel safe
return to_timestamp(('x' || substr(replace(p_id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0);

comment on function rowcast.message_time(uuid) is
'The time in a message id, to the millisecond.';

-- Subscribers are told by a signal, which commits together with the removal.
create or replace function rowcast.delete_message(id uuid)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_channel text;
    v_channel_id uuid;
begin
    if substr(delete_message.id::text, 15, 1) is distinct from '7' then
        return false;
    end if;
    delete from public.realtime_messages as m
    where m.id = delete_message.id
    and m.created_at >= rowcast.message_time(delete_message.id) - interval '2 milliseconds'
    and m.created_at < rowcast.message_time(delete_message.id) + interval '2 milliseconds'
    returning m.channel_name, m.channel_id into v_channel, v_channel_id;
    if v_channel is null then
        return false;
    end if;
    insert into rowcast.signal (kind, body)
    values (
        'deleted',
        jsonb_build_object('channel', v_channel, 'channel_id', v_channel_id, 'id', delete_message.id)
    );
    return true;
end;
$$;

comment on function rowcast.delete_message(uuid) is
'Removes a message from history and replay and tells its subscribers; false when there is none of that id.';
reset role;

set local role rowcast_owner;
-- sql/73_status.sql
-- What an operator asks, also with only psql at hand.

-- One object, so that a fact added later breaks nobody who reads the others.
create or replace function rowcast.status()
returns jsonb
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_boot uuid;
begin
    -- On a standby even planning a query of an unlogged table is an error.
    if not pg_is_in_recovery() then
        v_boot := (select b.id from rowcast.boot as b);
    end if;
    return jsonb_build_object(
        'version', (select max(m.version) from rowcast.migration as m),
        'boot', v_boot,
        'doorbell', case when current_setting('max_prepared_transactions') = '0' then 'notify' else 'poll' end,
        'bridges_asleep', (
            select count(*) from pg_catalog.pg_locks as l
            where l.locktype = 'advisory' and l.classid = 1919903587 and l.objid = 1 and l.objsubid = 2
            and l.mode = 'ShareLock' and l.granted
            and l.database = (select d.oid from pg_catalog.pg_database as d where d.datname = current_database())
        ),
        'channels', (select count(*) from public.realtime_channels),
        'shapes', (select cardinality(s.shapes) from rowcast.settings as s),
        'last_seq', (select case when s.is_called then s.last_value else 0 end from rowcast.message_seq as s),
        'retention', (select s.retention::text from rowcast.settings as s),
        'leaves', (select count(*) from rowcast.leaf),
        'leaves_until', (select max(l.to_at) from rowcast.leaf as l),
        'default_rows', (select count(*) from (select from rowcast.messages_default limit 10000) as d),
        'oldest_transaction_seconds', (
            select coalesce(floor(extract(epoch from max(clock_timestamp() - a.xact_start))), 0)
            from pg_catalog.pg_stat_activity as a where a.backend_type = 'client backend'
        ),
        'notify_queue', round(pg_notification_queue_usage()::numeric, 4)
    );
end;
$$;

comment on function rowcast.status() is 'State of the installation as one JSON object.';

-- Each row is a fact that must hold, and what to do when it does not.
create or replace function rowcast.doctor()
returns table (subject text, ok boolean, finding text, advice text)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_status constant jsonb := rowcast.status();
    v_count bigint;
    v_names text;
begin
    subject := 'server';
    ok := current_setting('server_version_num')::integer >= 150000 and not pg_is_in_recovery();
    finding := 'PostgreSQL ' || current_setting('server_version') || case when pg_is_in_recovery() then ', a standby' else '' end;
    advice := 'Connect to a primary of version 15 or newer.';
    return next;

    subject := 'origin';
    ok := (rowcast.identity()).adopted;
    finding := case when ok then 'the data belongs to this cluster' else 'the data was restored from another cluster' end;
    advice := 'Run `rowcast migrate` or select rowcast.adopt().';
    return next;

    subject := 'leaves';
    ok := coalesce((v_status ->> 'leaves_until')::timestamptz > now() + interval '1 day', false) or
        coalesce((v_status ->> 'leaves_until')::timestamptz > now() + rowcast.leaf_width(), false);
    finding := 'leaves exist until ' || coalesce(v_status ->> 'leaves_until', 'never');
    advice := 'Start a bridge, or call select rowcast.upkeep() from a scheduler.';
    return next;

    subject := 'default leaf';
    ok := (v_status ->> 'default_rows')::bigint = 0;
    finding := (v_status ->> 'default_rows') || ' messages in the default leaf';
    advice := 'Upkeep moves them when it makes the leaf of their time; keep a bridge running.';
    return next;

    subject := 'channels';
    ok := (v_status ->> 'channels')::bigint > 0;
    finding := (v_status ->> 'channels') || ' channels';
    advice := 'Nobody can subscribe or publish: insert a pattern into realtime_channels.';
    return next;

    subject := 'policies';
    select count(*) into v_count from pg_catalog.pg_policy as p
    where p.polrelid = 'public.realtime_channels'::regclass and p.polcmd in ('r', '*');
    ok := v_count > 0;
    finding := v_count || ' policies on realtime_channels for SELECT';
    advice := 'Without one nobody may subscribe: apply a recipe from policies/.';
    return next;

    subject := 'row level security';
    select string_agg(c.oid::regclass::text, ', ') into v_names from pg_catalog.pg_class as c
    where c.oid in ('public.realtime_channels'::regclass, 'public.realtime_messages'::regclass)
    and (not c.relrowsecurity or c.relforcerowsecurity);
    ok := v_names is null;
    finding := coalesce(v_names || ': not enabled, or forced', 'enabled, not forced');
    advice := 'alter table … enable row level security; alter table … no force row level security.';
    return next;

    subject := 'leaf privileges';
    select string_agg(c.oid::regclass::text, ', ') into v_names
    from pg_catalog.pg_inherits as i
    join pg_catalog.pg_class as c on c.oid = i.inhrelid
    where c.relnamespace = 'rowcast'::regnamespace and c.relkind in ('r', 'p')
    and exists (select from aclexplode(c.relacl) as a where a.grantee <> c.relowner);
    ok := v_names is null;
    finding := coalesce('granted to others: ' || v_names, 'nobody but the owner reaches a leaf');
    advice := 'select rowcast.seal(''<leaf>''); and remove the default privileges that granted it.';
    return next;

    subject := 'old transaction';
    ok := (v_status ->> 'oldest_transaction_seconds')::bigint < 3600;
    finding := 'the oldest transaction is ' || (v_status ->> 'oldest_transaction_seconds') || ' s old';
    advice := 'Live delivery does not wait for it, but leaves stay open and vacuum stands still: end it.';
    return next;

    subject := 'notify queue';
    ok := (v_status ->> 'notify_queue')::numeric < 0.5;
    finding := 'the NOTIFY queue is ' || (v_status ->> 'notify_queue') || ' full';
    advice := 'Find the session that listens inside an open transaction and end it.';
    return next;
    return query select d.* from rowcast.doctor_access() as d;
end;
$$;

comment on function rowcast.doctor() is
'Facts that must hold for the installation to work, each with what to do when it does not.';
reset role;

set local role rowcast_owner;
-- sql/74_losses.sql
-- Messages that went otherwise than by expiry: TRUNCATE, or a leaf that somebody dropped by hand. A
-- replay across it must not call itself complete.

-- Which channels lost something is not known any more, so all of them did: '**', which is no name.
-- What is lost was committed, so its xid is below the next one; a cursor from before has an older
-- xmin than that. The greatest, because who waited for the row may have looked before the other.
create or replace function rowcast.lose_everything(p_broadcasts boolean)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_newest constant xid8 := greatest(
        pg_current_xact_id(), ((pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1)::text)::xid8
    );
begin
    if p_broadcasts then
        insert into rowcast.expired_broadcast (channel_name, xid) values ('**', v_newest)
        on conflict (channel_name) do update
        set xid = greatest(expired_broadcast.xid, excluded.xid), expired_at = excluded.expired_at;
    else
        insert into rowcast.expired (channel_name, xid) values ('**', v_newest)
        on conflict (channel_name) do update
        set xid = greatest(expired.xid, excluded.xid), expired_at = excluded.expired_at;
    end if;
end;
$$;

comment on function rowcast.lose_everything(boolean) is
'Notes that every channel may have lost messages, or broadcasts, that are older than this moment.';

-- After the lock, so nobody has written since. A repeatable read snapshot may be from long before
-- it, and would leave cursors of the time between unwarned.
create or replace function rowcast.messages_lost()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        raise exception '% cannot be truncated at isolation level %', tg_relid::regclass, current_setting('transaction_isolation')
        using errcode = '25001', hint = 'Truncate it in a transaction of level READ COMMITTED.';
    end if;
    perform rowcast.lose_everything(tg_relid = 'rowcast.messages_broadcast'::regclass);
    return null;
end;
$$;

comment on function rowcast.messages_lost() is
'Trigger of realtime_messages and its leaves: notes at TRUNCATE that every channel lost messages.';

create or replace trigger realtime_messages_85_lost
after truncate on public.realtime_messages
for each statement execute function rowcast.messages_lost();

-- What a leaf does not have from its parent. A statement trigger there does not fire for a leaf
-- that is named itself. And where somebody publishes all tables for logical replication, a message
-- without a replica identity could not be deleted any more. New leaves get theirs from make_leaf().
create or replace function rowcast.watch_leaf(p_leaf text)
returns void
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format(
        'create or replace trigger realtime_messages_85_lost after truncate on rowcast.%I'
        ' for each statement execute function rowcast.messages_lost()', p_leaf
    );
    execute format(
        'create or replace trigger realtime_messages_90_ring after insert on rowcast.%I'
        ' for each statement execute function rowcast.ring()', p_leaf
    );
    -- Once only: it waits for all who read, and all who read wait for it.
    if exists (
        select from pg_catalog.pg_class as c
        where c.oid = to_regclass(format('rowcast.%I', p_leaf)) and c.relreplident <> 'f'
    ) then
        execute format('alter table rowcast.%I replica identity full', p_leaf);
    end if;
end;
$$;

comment on function rowcast.watch_leaf(text) is
'Gives a leaf the triggers that note its TRUNCATE and ring for what is inserted into it by name, and a replica identity.';

select rowcast.watch_leaf(c.relname)
from pg_catalog.pg_partition_tree('public.realtime_messages') as t
join pg_catalog.pg_class as c on t.relid = c.oid
where t.isleaf;
reset role;

set local role rowcast_owner;
-- sql/75_auth_schema.sql
-- auth.user_id() and its sisters, as the policies of PostgREST and Supabase users call them.
--
-- Schema auth often belongs to somebody else. Missing functions are added where the migrating
-- role may create them; what exists is never replaced unless it carries our mark. The same
-- functions always exist as rowcast.*.
reset role;

do $$
declare
    v_mark constant text := 'Made by rowcast.';
    v_pair text[];
    v_old oid;
begin
    if to_regnamespace('auth') is null then
        if not has_database_privilege(current_database(), 'create') then
            return;
        end if;
        create schema auth authorization rowcast_owner;
        grant usage on schema auth to public;
    end if;
    if not has_schema_privilege('auth', 'create') then
        return;
    end if;
    foreach v_pair slice 1 in array array[
        ['jwt', 'jsonb'], ['user_id', 'text'], ['uid', 'uuid'], ['role', 'text'], ['email', 'text']
    ] loop
        v_old := to_regprocedure(format('auth.%I()', v_pair[1]));
        if v_old is null or obj_description(v_old, 'pg_proc') like v_mark || '%' then
            execute format(
                'create or replace function auth.%1$I() returns %2$s language sql stable parallel safe return rowcast.%1$I()',
                v_pair[1], v_pair[2]
            );
            execute format('comment on function auth.%1$I() is %2$L', v_pair[1], v_mark || ' Same as rowcast.' || v_pair[1] || '().');
            execute format('grant execute on function auth.%I() to public', v_pair[1]);
        end if;
    end loop;
end;
$$;
reset role;

set local role rowcast_owner;
-- sql/76_realtime_schema.sql
-- The names that applications written for InsForge or Supabase call. Only where the schema name
-- `realtime` is free, or was made here: what belongs to somebody else is not touched.
-- Policies cannot be created on views, so policies go to the tables in schema public.
reset role;

do $$
declare
    v_mark constant text := 'Made by rowcast: names for compatibility.';
    v_schema constant oid := to_regnamespace('realtime');
    v_role text;
begin
    if v_schema is not null and obj_description(v_schema, 'pg_namespace') is distinct from v_mark then
        return;
    end if;
    if v_schema is null then
        if not has_database_privilege(current_database(), 'create') then
            return;
        end if;
        create schema realtime authorization rowcast_owner;
    end if;
    set local role rowcast_owner;
    execute format('comment on schema realtime is %L', v_mark);

    create or replace view realtime.channels with (security_invoker = true) as
    select c.id, c.pattern, c.description, c.enabled, c.created_at, c.updated_at
    from public.realtime_channels as c;

    create or replace view realtime.messages with (security_invoker = true) as
    select m.id, m.event_name, m.channel_id, m.channel_name, m.payload, m.sender_type, m.sender_id,
        m.ws_audience_count, m.wh_audience_count, m.created_at
    from public.realtime_messages as m;

    create or replace function realtime.channel_name() returns text
    language sql stable parallel safe return rowcast.channel_name();

    create or replace function realtime.topic() returns text
    language sql stable parallel safe return rowcast.channel_name();

    create or replace function realtime.publish(channel_name text, event_name text, payload jsonb)
    returns uuid
    language sql volatile security invoker set search_path = pg_catalog, pg_temp
    begin atomic
        select rowcast.publish(publish.channel_name, publish.event_name, publish.payload);
    end;

    create or replace function realtime.send(payload jsonb, event text, topic text, private boolean default true)
    returns void
    language sql volatile security invoker set search_path = pg_catalog, pg_temp
    begin atomic
        select rowcast.publish(send.topic, send.event, send.payload, 'broadcast');
    end;

    create or replace function realtime.broadcast_changes(
        topic_name text, event_name text, operation text, table_name text, table_schema text,
        new record, old record, level text default 'ROW'
    )
    returns void
    language plpgsql volatile security invoker set search_path = pg_catalog, pg_temp
    as $f$
    begin
        if broadcast_changes.level = 'STATEMENT' then
            raise exception 'broadcast_changes() needs a trigger for each row'
            using errcode = '0A000', hint = 'A statement has no NEW and no OLD: create the trigger with FOR EACH ROW.';
        end if;
        perform rowcast.publish(
            broadcast_changes.topic_name, broadcast_changes.event_name,
            jsonb_build_object(
                'id', gen_random_uuid(), 'schema', broadcast_changes.table_schema, 'table', broadcast_changes.table_name,
                'operation', broadcast_changes.operation,
                'record', to_jsonb(broadcast_changes.new), 'old_record', to_jsonb(broadcast_changes.old)
            ),
            'broadcast'
        );
    end;
    $f$;

    comment on function realtime.channel_name() is 'Same as rowcast.channel_name().';
    comment on function realtime.topic() is 'Same as rowcast.channel_name().';
    comment on function realtime.publish(text, text, jsonb) is 'Same as rowcast.publish(): durable, under the policies.';
    comment on function realtime.send(jsonb, text, text, boolean) is 'rowcast.publish() of type broadcast; every channel is private here.';
    comment on function realtime.broadcast_changes(text, text, text, text, text, record, record, text) is
    'Publishes a row change as a broadcast, for triggers written for Supabase.';

    revoke execute on all functions in schema realtime from public;
    grant usage on schema realtime to public;
    grant execute on function realtime.channel_name(), realtime.topic() to public;
    for v_role in
        select quote_ident(r.rolname)
        from pg_catalog.pg_roles as r
        where r.rolname = any (rowcast.caller_roles()) or r.rolname = 'rowcast_publisher'
    loop
        execute format('grant execute on all functions in schema realtime to %s', v_role);
        execute format('grant select on all tables in schema realtime to %s', v_role);
    end loop;
end;
$$;
reset role;

set local role rowcast_owner;
-- sql/77_doctor_access.sql
-- What grants of others, default privileges and people at a console do to an installation.

-- Part of doctor(). Each of these is made by a migrate, and nothing but a bridge that fails, or a
-- caller who can do more than he should, would tell that it is no longer so.
create or replace function rowcast.doctor_access()
returns table (subject text, ok boolean, finding text, advice text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_callers constant text[] := rowcast.caller_roles();
    v_may_set constant text := case when current_setting('server_version_num')::integer >= 160000 then 'set' else 'member' end;
    v_found text;
begin
    subject := 'caller roles';
    select string_agg(n.name || ' ' || f.fault, ', ' order by n.name) into v_found
    from unnest(v_callers) as n (name)
    left join pg_catalog.pg_roles as r on r.rolname = n.name
    cross join lateral (
        select case
            when r.oid is null then 'does not exist'
            when not pg_has_role('rowcast_caller', r.oid, v_may_set) then 'is not granted to rowcast_caller'
            when r.rolsuper or r.rolbypassrls then 'bypasses row level security'
            when pg_has_role(r.oid, 'rowcast_owner', 'member') then 'is a member of rowcast_owner'
        end as fault
    ) as f
    where f.fault is not null;
    ok := v_found is null;
    finding := coalesce(v_found, array_to_string(v_callers, ', '));
    advice := 'Create it, or revoke what it has, and run `rowcast migrate --reapply`; or change rowcast.settings.caller_roles.';
    return next;

    subject := 'caller grants';
    select string_agg(r.rolname || ' ' || m.missing, ', ' order by r.rolname) into v_found
    from pg_catalog.pg_roles as r
    cross join lateral (
        select case
            when not has_schema_privilege(r.oid, 'public', 'usage') then 'may not use schema public'
            when not has_schema_privilege(r.oid, 'rowcast', 'usage') then 'may not use schema rowcast'
            when not has_column_privilege(r.oid, 'public.realtime_channels', 'id', 'select') then 'may not select from realtime_channels'
            when not has_column_privilege(r.oid, 'public.realtime_messages', 'channel_name', 'insert') then 'may not insert into realtime_messages'
            when not has_function_privilege(r.oid, 'rowcast.may_subscribe(text)', 'execute') then 'may not execute rowcast.may_subscribe()'
        end as missing
    ) as m
    where r.rolname = any (v_callers) and m.missing is not null;
    ok := v_found is null;
    finding := coalesce(v_found, 'callers have the grants that they need');
    advice := 'Run `rowcast migrate --reapply`, and grant usage on schema public where it was taken away: without them no policy is even asked.';
    return next;

    subject := 'caller privileges';
    select string_agg(distinct r.rolname || ' may ' || m.more, ', ') into v_found
    from pg_catalog.pg_roles as r
    cross join lateral (
        select 'read webhook_urls' as more where has_column_privilege(r.oid, 'public.realtime_channels', 'webhook_urls', 'select')
        union all
        select 'truncate ' || c.oid::regclass from pg_catalog.pg_class as c
        where c.oid in ('public.realtime_channels'::regclass, 'public.realtime_messages'::regclass)
        and has_table_privilege(r.oid, c.oid, 'truncate')
        union all
        select 'change realtime_messages' where has_table_privilege(r.oid, 'public.realtime_messages', 'update, delete, trigger')
        union all
        select 'reach tables of schema rowcast' from pg_catalog.pg_class as c
        where c.relnamespace = 'rowcast'::regnamespace and c.relkind in ('r', 'p')
        and has_table_privilege(r.oid, c.oid, 'select, insert, update, delete, truncate')
    ) as m
    where r.rolname = any (v_callers) and not (r.rolsuper or pg_has_role(r.oid, 'rowcast_owner', 'member'));
    ok := v_found is null;
    finding := coalesce(v_found, 'callers can do no more than publish and read what policies show');
    advice := 'Run `rowcast migrate --reapply`, which takes it back, and change what granted it: default privileges, or GRANT … ON ALL TABLES.';
    return next;

    subject := 'triggers';
    select string_agg(p.proname, ', ' order by p.proname) into v_found
    from pg_catalog.pg_proc as p
    where p.pronamespace = 'rowcast'::regnamespace and p.prorettype = 'trigger'::regtype
    and p.proname not in ('publish_row', 'recheck_rows') -- of tables that people attach
    and (
        not exists (select from pg_catalog.pg_trigger as t where t.tgfoid = p.oid)
        or exists (select from pg_catalog.pg_trigger as t where t.tgfoid = p.oid and t.tgenabled not in ('O', 'A'))
    );
    ok := v_found is null;
    finding := coalesce('missing or disabled: ' || v_found, 'all triggers are enabled');
    advice := 'Run `rowcast migrate --reapply`, and alter table … enable trigger all: without them messages are neither checked nor told.';
    return next;
end;
$$;

comment on function rowcast.doctor_access() is
'What grants, roles and triggers have become since the last migrate; part of doctor().';
reset role;

set local role rowcast_owner;
-- sql/80_endpoints.sql
-- Endpoints: one for each address of a channel, kept in step with realtime_channels.webhook_urls.

-- What is wrong with an address. Where it leads is not asked here: a name may lead elsewhere
-- tomorrow, so the bridge looks at the address that it connects to.
create or replace function rowcast.webhook_fault(p_url text)
returns text
language sql
immutable
parallel safe
return case
    when p_url is null then 'is null'
    when octet_length(p_url) > 2048 then 'has more than 2048 bytes'
    when p_url !~* '^https?://' then 'does not begin with https:// or http://'
    when p_url ~ '[^\u0021-\u007E]|\\' then 'has characters that must be percent-encoded'
    when p_url ~ '^[^/]*//[^/?#]*@' then 'carries a user name or password'
    when p_url ~ '#' then 'has a fragment, which is never sent'
    when p_url !~ '^[^/]*//(\[[0-9a-fA-F:.]+\]|[^][/?:]+)(:[0-9]{1,5})?([/?]|$)'
        then 'has no valid host and port'
end;

comment on function rowcast.webhook_fault(text) is
'What is wrong with the form of a webhook URL; NULL when nothing is.';

-- Definer, because whoever may write a channel need not see the settings. A refused address is
-- not repeated where it may carry a password.
create or replace function rowcast.channels_webhooks()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_limit constant integer := (select s.webhook_limit from rowcast.settings as s);
    v_url text;
begin
    foreach v_url in array coalesce(new.webhook_urls, '{}') loop
        if rowcast.webhook_fault(v_url) is not null then
            raise exception 'webhook URL "%" of channel "%" %',
                left(regexp_replace(v_url, '//[^/]*@', '//…@'), 300), new.pattern, rowcast.webhook_fault(v_url)
            using errcode = 'RCW01',
            hint = 'Write it like https://example.com/webhook: http or https, no user name, at most 2048 bytes of ASCII.';
        end if;
    end loop;
    if cardinality(new.webhook_urls) > v_limit then
        raise exception 'channel "%" has % webhook URLs, and the limit is %', new.pattern, cardinality(new.webhook_urls), v_limit
        using errcode = 'RCW02', hint = 'Give fewer, or raise webhook_limit in rowcast.settings.';
    end if;
    return new;
end;
$$;

comment on function rowcast.channels_webhooks() is
'Trigger of realtime_channels: refuses webhook URLs with RCW01 and RCW02.';

create or replace trigger realtime_channels_20_webhooks
before insert or update of webhook_urls on public.realtime_channels
for each row execute function rowcast.channels_webhooks();

-- 256 random bits without any extension: a UUID has 122, and the hash of three is even.
create or replace function rowcast.new_secret()
returns text
language sql
volatile
parallel safe
return 'whsec_' || encode(
    sha256(
        uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
    ), 'base64'
);

comment on function rowcast.new_secret() is
'A new signing secret as Standard Webhooks writes it: whsec_ and 32 random bytes.';

-- After the row, because an insert that ON CONFLICT leaves out must leave no endpoint. What
-- stays in the list keeps its secret; what leaves it is retired, and what waits for it is
-- cancelled. The signal tells bridges at once that there is something else to look after.
create or replace function rowcast.channels_endpoints()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_urls constant text[] := case when tg_op <> 'DELETE' then coalesce(new.webhook_urls, '{}') end;
    v_endpoint uuid;
begin
    if tg_op = 'UPDATE' and new.id = old.id and new.webhook_urls is not distinct from old.webhook_urls
        or tg_op = 'INSERT' and v_urls = '{}'
    then
        return null;
    end if;
    if tg_op <> 'INSERT' then
        for v_endpoint in
            update rowcast.endpoint as e set state = 'retired', reason = 'removed', changed_at = now()
            where e.channel_id = old.id and e.state <> 'retired'
            and (tg_op = 'DELETE' or new.id <> old.id or e.url <> all (v_urls))
            returning e.id
        loop
            perform rowcast.cancel_deliveries(v_endpoint, 'removed');
        end loop;
    end if;
    if tg_op <> 'DELETE' then
        insert into rowcast.endpoint (channel_id, url, secret)
        select new.id, u.url, rowcast.new_secret()
        from unnest(v_urls) with ordinality as u (url, n) group by u.url order by min(u.n)
        on conflict (channel_id, url) where state <> 'retired' do nothing;
    end if;
    insert into rowcast.signal (kind, body) values ('webhooks', '{}');
    return null;
end;
$$;

comment on function rowcast.channels_endpoints() is
'Trigger of realtime_channels: makes an endpoint with a secret for each new URL, retires those of removed ones.';

create or replace trigger realtime_channels_80_endpoints
after insert or update or delete on public.realtime_channels
for each row execute function rowcast.channels_endpoints();

-- From the failure on no message was written for it, so nothing piled up; what was cancelled can
-- be redelivered.
create or replace function rowcast.enable_endpoint(p_endpoint_id uuid)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update rowcast.endpoint as e
    set state = 'active', reason = null, room = 4, failures = 0, failing_since = null,
        pause_until = '-infinity', changed_at = now()
    where e.id = p_endpoint_id and e.state = 'disabled';
    if found then
        insert into rowcast.signal (kind, body) values ('webhooks', '{}');
    end if;
    return found;
end;
$$;

comment on function rowcast.enable_endpoint(uuid) is
'Lets a disabled endpoint receive again; false when there is no such disabled endpoint.';
reset role;

set local role rowcast_owner;
-- sql/81_deliveries.sql
-- Deliveries: one row per message and endpoint, written in the publisher's transaction.

-- Asked only where a channel has addresses: the stamping trigger calls it from a CASE on
-- webhook_urls, so whoever has none pays for a null test. A count kept in the channel's row would
-- have to be written whenever an endpoint is disabled, and every such change of a channel makes
-- bridges check its subscribers again. Volatile, so that within a transaction each message counts
-- what stands at its moment; plpgsql, because an inlined query is set up by every publish.
create or replace function rowcast.webhook_count(p_channel_id uuid)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select count(*) from rowcast.endpoint as e where e.channel_id = p_channel_id and e.state = 'active'
    );
end;
$$;

comment on function rowcast.webhook_count(uuid) is
'How many endpoints of a channel are active.';

-- AFTER the row, because a BEFORE trigger's rows survive an ON CONFLICT DO NOTHING. For the row
-- and not the statement, because WHEN is judged before anything is queued: a message without
-- webhooks costs a comparison, while a transition table keeps a copy of every message. The
-- limit is what was stamped: an endpoint that came in between begins with the next message, so
-- a message never has more deliveries than its audience.
create or replace function rowcast.messages_enqueue()
returns trigger
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into rowcast.delivery (message_seq, message_id, message_at, channel_id, endpoint_id)
    select new.seq, new.id, new.created_at, new.channel_id, e.id
    from rowcast.endpoint as e
    where e.channel_id = new.channel_id and e.state = 'active'
    order by e.created_at, e.id
    limit new.wh_audience_count;
    return null;
end;
$$;

comment on function rowcast.messages_enqueue() is
'Trigger of realtime_messages: writes one delivery for each active endpoint of the channel.';

create or replace trigger realtime_messages_50_enqueue
after insert on public.realtime_messages
for each row when (new.wh_audience_count > 0)
execute function rowcast.messages_enqueue();

-- The same bytes at every attempt, made of the message each time: a copy in each delivery would
-- double what is stored. Pasted together, because jsonb would sort the keys.
create or replace function rowcast.webhook_body(
    p_bare boolean,
    p_event text,
    p_channel text,
    p_channel_id uuid,
    p_payload jsonb,
    p_sender text,
    p_at timestamptz
)
returns text
language sql
stable
parallel safe
return case
    when p_bare then p_payload::text
    else '{"event":' || to_json(p_event)::text || ',"channelName":' || to_json(p_channel)::text
        || ',"channelId":"' || p_channel_id::text || '","payload":' || p_payload::text
        || ',"senderId":' || coalesce(to_json(p_sender)::text, 'null')
        || ',"timestamp":"' || rowcast.iso_time(p_at) || '"}'
end;

comment on function rowcast.webhook_body(boolean, text, text, uuid, jsonb, text, timestamptz) is
'The body of a webhook request: the envelope, or the payload alone.';

-- Receivers made for InsForge expect the payload alone, and the rest in headers.
create or replace function rowcast.wants_bare(p_options jsonb)
returns boolean
language sql
immutable
parallel safe
return coalesce(p_options ->> 'webhookBody' = 'payload', false);

comment on function rowcast.wants_bare(jsonb) is
'Whether the options of a channel ask for webhooks with the payload alone as body.';

-- A leaf is about to go, and the schedule of an attempt may reach beyond the retention.
create or replace function rowcast.keep_bodies(p_leaf text)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    execute format(
        'update rowcast.delivery as d set event_name = m.event_name, channel_name = m.channel_name,'
        ' body = rowcast.webhook_body(rowcast.wants_bare(c.options), m.event_name, m.channel_name,'
        ' m.channel_id, m.payload, m.sender_id, m.created_at)'
        ' from rowcast.%I as m join public.realtime_channels as c on c.id = m.channel_id'
        ' where d.next_at is not null and d.body is null'
        ' and m.channel_id = d.channel_id and m.seq = d.message_seq and m.id = d.message_id', p_leaf
    );
end;
$$;

comment on function rowcast.keep_bodies(text) is
'Copies what is still to be sent from a leaf that expires into its deliveries.';
reset role;

set local role rowcast_owner;
-- sql/82_claim.sql
-- Claiming deliveries: a lease of some seconds instead of a lock held, so that whatever happens to
-- a bridge, somebody sends what it had. Only the clock of the database counts.

-- Each endpoint with something due gets an equal part of what is asked for, at most its room less
-- what this bridge has under way there: a queue of 100,000 rows starves nobody, and an endpoint
-- that hangs holds only its room. A lease that ran out is claimed like anything else; its
-- attempt counts, so a message that kills whoever sends it ends in `failed` and not in a circle.
--
-- An endpoint that fails again and again gets one probe at a time, of all bridges together: the
-- probe is out for as long as a lease.
--
-- A lease changes no indexed column, so it stays within the page; and the search starts at low_at,
-- because under an old snapshot the index keeps all that was ever sent. What it finds first is
-- where the claim starts, so that nothing of that is read twice.
--
-- A claim need not wait for the disk: if a crash of Postgres takes the lease back, the delivery is
-- claimed again, as after a crash of the bridge. What came of it is another matter, and waits.
create or replace function rowcast.claim_deliveries(
    p_worker uuid, p_limit integer, p_lease interval, p_busy uuid[], p_counts integer[]
)
returns table (
    id bigint, attempt integer, message_id uuid, endpoint_id uuid, url text, secrets text[],
    bare boolean, event_name text, channel_name text, body text
)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    v_now constant timestamptz := clock_timestamp();
    v_most constant integer := (select cardinality(s.webhook_schedule) + 1 from rowcast.settings as s);
begin
    perform set_config('synchronous_commit', 'off', true);
    return query
    with due as (
        select e.id, f.next_at, e.failures, case when e.failures >= 5 then 1 else e.room - b.n end as room
        from rowcast.endpoint as e
        cross join lateral coalesce(p_counts[array_position(p_busy, e.id)], 0) as b (n)
        cross join lateral (
            select d.next_at from rowcast.delivery as d
            where d.endpoint_id = e.id and d.next_at >= e.low_at and d.next_at <= v_now
            and (d.lease_until is null or d.lease_until <= v_now)
            order by d.next_at
            limit 1
        ) as f
        where e.state = 'active' and e.pause_until <= v_now and (e.failures >= 5 or e.room > b.n)
    ),

    probe as (
        update rowcast.endpoint as e set pause_until = v_now + p_lease
        where e.id in (
            select p.id from rowcast.endpoint as p
            where p.id in (select f.id from due as f where f.failures >= 5) and p.pause_until <= v_now
            order by p.id
            for no key update skip locked
        )
        returning e.id
    ),

    chosen as (
        select f.id, f.next_at, least(f.room, greatest(1, p_limit / count(*) over ())) as room
        from due as f
        where f.failures < 5 or exists (select from probe as p where p.id = f.id)
        order by random()
    ),

    picked as (
        select q.id, q.died, q.died and q.attempt - q.attempts_before >= v_most as dead
        from chosen as c
        cross join lateral (
            select d.id, d.attempt, d.attempts_before, d.lease_by is not null as died
            from rowcast.delivery as d
            where d.endpoint_id = c.id and d.next_at >= c.next_at and d.next_at <= v_now
            and (d.lease_until is null or d.lease_until <= v_now)
            order by d.next_at, d.id
            limit c.room
            for no key update skip locked
        ) as q
        limit p_limit
    ),

    leased as (
        update rowcast.delivery as d
        set
            attempt = d.attempt + case when p.dead then 0 else 1 end,
            lease_by = case when not p.dead then p_worker end,
            lease_until = case when not p.dead then v_now + p_lease end,
            next_at = case when not p.dead then d.next_at end,
            state = case when p.dead and d.state = 'pending' then 'failed' else d.state end,
            reason = case when p.dead then 'exhausted' else d.reason end,
            settled_at = case when p.dead then v_now else d.settled_at end
        from picked as p
        where d.id = p.id
        returning d.*, p.died, p.dead
    ),

    lost as (
        insert into rowcast.attempt (delivery_id, attempt, error)
        select l.id, l.attempt - case when l.dead then 0 else 1 end, 'lost' from leased as l where l.died
        on conflict do nothing
    )

    select
        l.id, l.attempt, l.message_id, l.endpoint_id, e.url,
        case when e.previous_until > v_now then array[e.secret, e.previous_secret] else array[e.secret] end,
        rowcast.wants_bare(c.options),
        coalesce(m.event_name, l.event_name), coalesce(m.channel_name, l.channel_name),
        case
            when m.id is not null
                then rowcast.webhook_body(rowcast.wants_bare(c.options), m.event_name, m.channel_name, m.channel_id, m.payload, m.sender_id, m.created_at)
            else l.body
        end
    from leased as l
    join rowcast.endpoint as e on e.id = l.endpoint_id
    left join public.realtime_channels as c on c.id = l.channel_id
    left join public.realtime_messages as m
        on m.type = 'message' and m.created_at = l.message_at and m.channel_id = l.channel_id
        and m.seq = l.message_seq and m.id = l.message_id
    where not l.dead;
end;
$$;

comment on function rowcast.claim_deliveries(uuid, integer, interval, uuid[], integer[]) is
'Leases up to p_limit due deliveries to a worker that has p_counts under way at the endpoints p_busy. A NULL body: the message was deleted.';

-- When to claim again if nothing happens before. What this bridge has no room for is left out: it
-- claims again anyway when something of it is done. And which channels have endpoints, so that a
-- bridge need not claim for messages of others.
create or replace function rowcast.delivery_outlook(
    p_busy uuid[], p_counts integer[], out wait double precision, out channels uuid[]
)
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
begin atomic
    select
        extract(epoch from min(d.next_at) - clock_timestamp()),
        coalesce(array_agg(distinct e.channel_id), '{}')
    from rowcast.endpoint as e
    cross join lateral coalesce(p_counts[array_position(p_busy, e.id)], 0) as b (n)
    left join lateral (
        select greatest(q.next_at, e.pause_until) as next_at from rowcast.delivery as q
        where q.endpoint_id = e.id and q.next_at >= e.low_at
            and (q.lease_until is null or q.lease_until <= clock_timestamp())
            and (e.failures >= 5 or e.room > b.n)
        order by q.next_at
        limit 1
    ) as d on true
    where e.state = 'active';
end;

comment on function rowcast.delivery_outlook(uuid[], integer[]) is
'Seconds until the next delivery is due (NULL: none waits), and the channels with active endpoints.';
reset role;

set local role rowcast_owner;
-- sql/83_marks.sql
-- The marks from which claims read, so that what was sent long ago is not in their way.

-- Raises low_at of endpoints that were busy to what is unfinished, and no further than to five
-- seconds ago, for transactions that have not committed. What was written before that and commits
-- later is found by the next call, for it always reads from the beginning and lowers the mark.
--
-- One row at a time in order of id, as in settle_deliveries(), so the two never deadlock. One call
-- at a time, and none during a fold, by a row that no caller can lock.
create or replace function rowcast.raise_marks(p_busy uuid[])
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_mark record;
begin
    perform from rowcast.rollup for no key update skip locked;
    if not found then
        return;
    end if;
    for v_mark in
        select e.id, e.low_at, least(d.next_at, clock_timestamp() - interval '5 s') as low
        from rowcast.endpoint as e
        left join lateral (
            select q.next_at from rowcast.delivery as q
            where q.endpoint_id = e.id and q.next_at > '-infinity'
            order by q.next_at
            limit 1
        ) as d on true
        where e.state = 'active' and (e.low_at > '-infinity' or e.id = any (p_busy))
        order by e.id
    loop
        if v_mark.low < v_mark.low_at or v_mark.id = any (p_busy) then
            update rowcast.endpoint as e set low_at = v_mark.low where e.id = v_mark.id;
        end if;
    end loop;
end;
$$;

comment on function rowcast.raise_marks(uuid[]) is
'Moves the marks below which endpoints have nothing unfinished: up for busy ones, down for any that needs it.';
reset role;

set local role rowcast_owner;
-- sql/84_settle.sql
-- Settling attempts: what each answer means, when to try again, and how an endpoint is doing.

-- How long to wait after the attempt that was the p_tries-th: the schedule within a fifth either
-- way, so that what failed together does not return together; no sooner than the receiver
-- asked, and a minute where it is overloaded; at most a day. NULL: there is no further attempt.
create or replace function rowcast.retry_pause(
    p_tries integer, p_status integer, p_error text, p_retry_after integer
)
returns interval
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
begin atomic
    select
        case
            when s.webhook_schedule[p_tries] is not null
                then least(
                        interval '24 hours',
                        greatest(
                            s.webhook_schedule[p_tries] * (0.8 + 0.4 * random()),
                            interval '1 s' * p_retry_after,
                            case
                                when p_status in (429, 502, 503, 504) or p_error = 'timeout'
                                    then interval '60 s'
                            end
                        )
                    )
        end
    from rowcast.settings as s;
end;

comment on function rowcast.retry_pause(integer, integer, text, integer) is
'The pause after so many attempts, by the schedule and by what the receiver answered; NULL after the last.';

-- Notes what came of attempts, each only if the worker still holds the lease of that very attempt:
-- otherwise somebody else sends it again and will say what came of it. Success is 2xx and
-- nothing else. What was delivered once stays delivered when it is sent again.
create or replace function rowcast.settle_deliveries(
    p_worker uuid, p_ids bigint[], p_attempts integer[], p_statuses integer[], p_ms integer[],
    p_errors text[], p_snippets text[], p_retry_after integer[]
)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    v_count integer := 0;
    v_heard record;
begin
    for v_heard in
        with judged as (
            select r.*, d.endpoint_id, p.pause,
                case
                    when r.status between 200 and 299 then 'delivered'
                    when r.status = 410 then 'gone'
                    when r.error = 'message_deleted' then 'message_deleted'
                    when e.state <> 'active' then coalesce(e.reason, e.state)
                    when p.pause is null then 'exhausted'
                    else 'retry'
                end as verdict
            from unnest(p_ids, p_attempts, p_statuses, p_ms, p_errors, p_snippets, p_retry_after)
                as r (id, attempt, status, ms, error, snippet, retry_after)
            join rowcast.delivery as d on d.id = r.id
            join rowcast.endpoint as e on e.id = d.endpoint_id
            cross join lateral (
                select case
                    when r.status between 200 and 299 then null
                    else rowcast.retry_pause(r.attempt - d.attempts_before, r.status, r.error, r.retry_after)
                end as pause
            ) as p
            where d.lease_by = p_worker and d.attempt = r.attempt
        ),

        settled as (
            update rowcast.delivery as d
            set
                state = case
                    when j.verdict = 'delivered' then 'delivered'
                    when j.verdict = 'retry' or d.state = 'delivered' then d.state
                    when j.verdict = 'exhausted' then 'failed'
                    else 'cancelled'
                end,
                reason = case when j.verdict not in ('delivered', 'retry') and d.state <> 'delivered' then j.verdict end,
                next_at = case when j.verdict = 'retry' then clock_timestamp() + j.pause end,
                settled_at = case when j.verdict <> 'retry' then clock_timestamp() else d.settled_at end,
                lease_by = null,
                lease_until = null
            from judged as j
            where d.id = j.id and d.lease_by = p_worker and d.attempt = j.attempt
            returning j.*
        ),

        logged as (
            insert into rowcast.attempt (delivery_id, attempt, status, ms, error, snippet)
            select s.id, s.attempt, s.status, s.ms, s.error, s.snippet from settled as s
            on conflict do nothing
        )

        select
            s.endpoint_id,
            count(*)::integer as settled,
            (count(*) filter (where s.verdict = 'delivered'))::integer as good,
            (avg(s.ms) filter (where s.verdict = 'delivered'))::integer as ms,
            (count(*) filter (where s.verdict in ('retry', 'exhausted')))::integer as bad,
            bool_or(s.verdict = 'gone') as gone,
            max(interval '1 s' * least(s.retry_after, 300))
            filter (where s.status in (429, 503) and s.retry_after is not null) as pause,
            array_agg(s.id) filter (where s.verdict = 'exhausted') as exhausted
        from settled as s
        group by s.endpoint_id
        order by s.endpoint_id
    loop
        v_count := v_count + v_heard.settled;
        perform rowcast.endpoint_heard(v_heard.endpoint_id, v_heard.good, v_heard.ms, v_heard.bad, v_heard.gone, v_heard.pause);
        if v_heard.exhausted is not null then
            perform rowcast.webhook_event('webhook.exhausted', v_heard.endpoint_id, jsonb_build_object('deliveries', to_jsonb(v_heard.exhausted)));
        end if;
    end loop;
    return v_count;
end;
$$;

comment on function rowcast.settle_deliveries(uuid, bigint[], integer[], integer[], integer[], text[], text[], integer[]) is
'Notes the outcome of attempts (status NULL: no answer, see error) and decides what follows; returns how many the worker still held.';

-- What was claimed and not begun goes back as if nobody had touched it.
create or replace function rowcast.return_deliveries(
    p_worker uuid, p_ids bigint[], p_attempts integer[]
)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_count integer;
begin
    update rowcast.delivery as d
    set attempt = d.attempt - 1, lease_by = null, lease_until = null
    from unnest(p_ids, p_attempts) as r (id, attempt)
    where d.id = r.id and d.lease_by = p_worker and d.attempt = r.attempt;
    get diagnostics v_count = row_count;
    return v_count;
end;
$$;

comment on function rowcast.return_deliveries(uuid, bigint[], integer[]) is
'Gives back deliveries that were claimed and not begun; returns how many the worker still held.';
reset role;

set local role rowcast_owner;
-- sql/85_endpoint_health.sql
-- How an endpoint is doing: room, pauses, the circuit, and when it is given up.

-- Tells operators, as a message on the channel `rowcast:webhooks`, if somebody made exactly this
-- channel: a pattern that merely covers the name must not show it to whoever hears that pattern.
-- Nothing is told about the endpoints of that channel itself, for it would tell itself.
--
-- A trigger of the team's own may refuse the message; the outcome of a delivery must not be lost
-- for that, so it becomes a warning in the log of the server.
create or replace function rowcast.webhook_event(p_event text, p_endpoint_id uuid, p_more jsonb)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into public.realtime_messages (channel_name, event_name, payload)
    select 'rowcast:webhooks', p_event, jsonb_build_object(
        'endpointId', e.id, 'channelId', e.channel_id, 'url', e.url, 'state', e.state,
        'reason', e.reason, 'failures', e.failures, 'failingSince', rowcast.iso_time(e.failing_since)
    ) || p_more
    from rowcast.endpoint as e
    join public.realtime_channels as c on c.pattern = 'rowcast:webhooks' and c.enabled and c.id <> e.channel_id
    where e.id = p_endpoint_id;
exception when others then
    raise warning 'webhook event "%" of endpoint % was not published: %', p_event, p_endpoint_id, sqlerrm;
end;
$$;

comment on function rowcast.webhook_event(text, uuid, jsonb) is
'Publishes an event about an endpoint on the channel rowcast:webhooks, if there is one.';

-- In portions, because a queue may be long and whoever calls may be a user's UPDATE; upkeep
-- takes the rest. What is being sent at this moment is left to its answer.
create or replace function rowcast.cancel_deliveries(p_endpoint_id uuid, p_reason text)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_count integer;
begin
    update rowcast.delivery as d
    set state = case when d.state = 'pending' then 'cancelled' else d.state end,
        reason = case when d.state = 'pending' then p_reason else d.reason end,
        next_at = null, lease_by = null, lease_until = null, settled_at = clock_timestamp()
    where d.id in (
        select q.id from rowcast.delivery as q
        where q.endpoint_id = p_endpoint_id and q.next_at is not null
        and (q.lease_until is null or q.lease_until <= clock_timestamp())
        order by q.next_at
        limit 5000
        for update skip locked
    );
    get diagnostics v_count = row_count;
    return v_count;
end;
$$;

comment on function rowcast.cancel_deliveries(uuid, text) is
'Cancels up to 5,000 waiting deliveries of an endpoint; returns how many.';

-- Every bridge sees it at its next claim; the signal takes the channel off their lists at once.
create or replace function rowcast.disable_endpoint(p_endpoint_id uuid, p_reason text)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    update rowcast.endpoint as e set state = 'disabled', reason = p_reason, changed_at = now()
    where e.id = p_endpoint_id and e.state = 'active';
    if not found then
        return false;
    end if;
    perform rowcast.cancel_deliveries(p_endpoint_id, p_reason);
    perform rowcast.webhook_event('webhook.disabled', p_endpoint_id, '{}');
    insert into rowcast.signal (kind, body) values ('webhooks', '{}');
    return true;
end;
$$;

comment on function rowcast.disable_endpoint(uuid, text) is
'Stops an endpoint and cancels what waits for it; false when it is not active.';

-- Room grows by one with each success, up to 32, and to 256 where answers take less than half a
-- second, which is not many at a time then; it halves with each portion that failed. From
-- five failures in a row on the circuit is open: a pause that doubles from 10 s to 5 minutes, and
-- one probe after each. An endpoint that answered 429 or 503 with Retry-After is left alone for so
-- long, at most five minutes. Where nothing changes nothing is written: endpoints that work are
-- settled many times a second.
create or replace function rowcast.endpoint_heard(
    p_endpoint_id uuid,
    p_good integer,
    p_ms integer,
    p_bad integer,
    p_gone boolean,
    p_pause interval
)
returns void
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_before rowcast.endpoint;
    v_now constant timestamptz := clock_timestamp();
    v_most constant integer := case when p_ms < 500 then 256 else 32 end;
begin
    select e.* into v_before from rowcast.endpoint as e where e.id = p_endpoint_id;
    if v_before.state <> 'active' or (
        p_bad = 0 and not p_gone and v_before.failures = 0 and (p_good = 0 or v_before.room = v_most)
    ) then
        return;
    end if;
    if p_gone then
        perform rowcast.disable_endpoint(p_endpoint_id, 'gone');
        return;
    end if;
    if p_good > 0 then
        update rowcast.endpoint as e
        set room = greatest(least(v_most, e.room + p_good), e.room / 2), failures = 0, failing_since = null,
            pause_until = case when e.failures >= 5 then v_now else greatest(e.pause_until, v_now + p_pause) end
        where e.id = p_endpoint_id;
        if v_before.failures >= 5 then
            perform rowcast.webhook_event('webhook.recovered', p_endpoint_id, '{}');
        end if;
        return;
    end if;
    if p_bad = 0 then
        return; -- all were cancelled
    end if;
    update rowcast.endpoint as e
    set room = greatest(1, e.room / 2),
        failures = e.failures + p_bad,
        failing_since = coalesce(e.failing_since, v_now),
        -- The pause that a probe began with ends with it.
        pause_until = case
            when e.failures + p_bad >= 5
                then v_now + greatest(p_pause, interval '10 s' * least(30, 2 ^ least(5, e.failures + p_bad - 5)))
            else greatest(e.pause_until, v_now + p_pause)
        end
    where e.id = p_endpoint_id;
    if v_before.failures < 5 and v_before.failures + p_bad >= 5 then
        perform rowcast.webhook_event('webhook.failing', p_endpoint_id, '{}');
    end if;
    if v_before.failing_since < v_now - (select s.webhook_disable_after from rowcast.settings as s) then
        perform rowcast.disable_endpoint(p_endpoint_id, 'failing');
    end if;
end;
$$;

comment on function rowcast.endpoint_heard(uuid, integer, integer, integer, boolean, interval) is
'Takes what came of a portion of attempts into the state of their endpoint.';
reset role;

set local role rowcast_owner;
-- sql/86_redeliver.sql
-- Sending again by hand, and forgetting what is old.

-- Refuses in words what cannot be sent; otherwise the schedule begins anew. One that was delivered
-- stays delivered whatever comes of it, so a message that is sent twice counts once.
create or replace function rowcast.redeliver(delivery bigint)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_row rowcast.delivery;
    v_endpoint rowcast.endpoint;
begin
    select d.* into v_row from rowcast.delivery as d where d.id = redeliver.delivery for update;
    if v_row.id is null then
        raise exception 'there is no delivery %', redeliver.delivery
        using errcode = 'RCW03', hint = 'List them with `rowcast webhooks deliveries`.';
    end if;
    if v_row.next_at is not null and v_row.lease_until > clock_timestamp() then
        return false;
    end if;
    select e.* into v_endpoint from rowcast.endpoint as e where e.id = v_row.endpoint_id;
    if v_endpoint.state is distinct from 'active' then
        raise exception 'the endpoint % of delivery % is %', v_endpoint.url, redeliver.delivery, coalesce(v_endpoint.state, 'gone')
        using errcode = 'RCW04', hint = 'A disabled one can receive again after select rowcast.enable_endpoint(id); a retired one must be a webhook URL of its channel again, and then gets new messages.';
    end if;
    if v_row.body is null and not exists (
        select from public.realtime_messages as m
        where m.type = 'message' and m.created_at = v_row.message_at
        and m.channel_id = v_row.channel_id and m.seq = v_row.message_seq
    ) then
        raise exception 'the message of delivery % has expired or was deleted', redeliver.delivery
        using errcode = 'RCW05', hint = 'Messages are kept for rowcast.settings.retention; publish it again.';
    end if;
    update rowcast.delivery as d
    set state = case when d.state = 'delivered' then 'delivered' else 'pending' end,
        reason = null, next_at = clock_timestamp(), attempts_before = d.attempt,
        lease_by = null, lease_until = null
    where d.id = v_row.id;
    insert into rowcast.signal (kind, body) values ('webhooks', '{}');
    return true;
end;
$$;

comment on function rowcast.redeliver(bigint) is
'Sends a delivery again, now and with a new schedule; false when it is being sent at this moment. Raises RCW03 to RCW05.';

-- After an outage at the receiver: all that failed since then, oldest first.
create or replace function rowcast.redeliver_failed(endpoint uuid, since timestamptz)
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_count integer;
begin
    update rowcast.delivery as d
    set state = 'pending', reason = null, next_at = clock_timestamp(), attempts_before = d.attempt
    from rowcast.endpoint as e
    where e.id = redeliver_failed.endpoint and e.state = 'active'
    and d.channel_id = e.channel_id and d.endpoint_id = e.id and d.state = 'failed'
    and d.settled_at >= redeliver_failed.since;
    get diagnostics v_count = row_count;
    insert into rowcast.signal (kind, body) values ('webhooks', '{}');
    return v_count;
end;
$$;

comment on function rowcast.redeliver_failed(uuid, timestamptz) is
'Sends again what failed at an active endpoint since a time; returns how many.';

-- The old secret goes on signing beside the new one for a while, so that receivers can change
-- when it suits them and no request is ever one that they cannot verify.
create or replace function rowcast.rotate_secret(endpoint uuid)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_secret text;
begin
    update rowcast.endpoint as e
    set secret = rowcast.new_secret(), previous_secret = e.secret,
        previous_until = clock_timestamp() + (select s.webhook_secret_grace from rowcast.settings as s),
        changed_at = now()
    where e.id = rotate_secret.endpoint and e.state <> 'retired'
    returning e.secret into v_secret;
    if v_secret is null then
        raise exception 'there is no endpoint %', rotate_secret.endpoint
        using errcode = 'RCW06', hint = 'List them with `rowcast webhooks list`.';
    end if;
    return v_secret;
end;
$$;

comment on function rowcast.rotate_secret(uuid) is
'Gives an endpoint a new signing secret and returns it; the old one signs too for webhook_secret_grace. Raises RCW06.';

-- Part of upkeep(). In portions, so that no call takes long. What waits for an endpoint that is no
-- longer active is cancelled here too: a publisher may have written it while that happened.
-- Deliveries live as long as messages, whose counts they are.
create or replace function rowcast.webhook_upkeep()
returns integer
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
declare
    v_settings rowcast.settings;
    v_endpoint rowcast.endpoint;
    v_deleted integer;
begin
    select s.* into v_settings from rowcast.settings as s;
    for v_endpoint in
        select e.* from rowcast.endpoint as e where e.state <> 'active' order by e.id
    loop
        perform rowcast.cancel_deliveries(v_endpoint.id, coalesce(v_endpoint.reason, v_endpoint.state));
    end loop;
    delete from rowcast.attempt as a where a.ctid = any (array(
        select o.ctid from rowcast.attempt as o
        where o.at < now() - v_settings.webhook_attempt_retention
        limit 20000
    ));
    delete from rowcast.delivery as d where d.id in (
        select o.id from rowcast.delivery as o
        where o.created_at < now() - v_settings.retention and o.next_at is null
        order by o.id
        limit 20000
    );
    get diagnostics v_deleted = row_count;
    delete from rowcast.endpoint as e
    where e.state = 'retired' and e.changed_at < now() - interval '1 day'
    and not exists (
        select from rowcast.delivery as d where d.channel_id = e.channel_id and d.endpoint_id = e.id
    );
    return v_deleted;
end;
$$;

comment on function rowcast.webhook_upkeep() is
'Cancels what waits for endpoints that are not active, and expires attempts and deliveries; returns how many deliveries expired.';
reset role;

set local role rowcast_owner;
-- sql/87_webhooks_admin.sql
-- What an administrator sees and does: JSON as text, which the bridge passes on as it is.

-- Newest first; the cursor is the id of the last one seen. States are those of the delivery.
create or replace function rowcast.admin_deliveries(
    p_claims text, p_channel_id uuid, p_state text, p_limit integer, p_after text
)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_limit constant integer := least(greatest(coalesce(p_limit, 50), 1), 1000);
    v_after bigint;
begin
    perform rowcast.require_admin(p_claims);
    if p_state is not null and p_state not in ('pending', 'delivered', 'failed', 'cancelled') then
        raise exception 'there is no delivery state "%"', left(p_state, 100)
        using errcode = 'RCW07', hint = 'Use pending, delivered, failed or cancelled.';
    end if;
    if p_after is not null and p_after !~ '^[0-9]{1,18}$' then
        raise exception 'the cursor "%" is not valid', left(p_after, 100)
        using errcode = 'RCW07', hint = 'Use the value of `next` in the answer before.';
    end if;
    v_after := p_after;
    return (
        with page as (
            select d.* from rowcast.delivery as d
            where (p_channel_id is null or d.channel_id = p_channel_id)
            and (p_state is null or d.state = p_state)
            and (v_after is null or d.id < v_after)
            order by d.id desc
            limit v_limit
        )

        select json_build_object(
            'deliveries', coalesce(json_agg(json_build_object(
                'id', p.id,
                'messageId', p.message_id,
                'channelId', p.channel_id,
                'endpointId', p.endpoint_id,
                'url', e.url,
                'state', p.state,
                'reason', p.reason,
                'attempts', p.attempt,
                'nextAttemptAt', rowcast.iso_time(p.next_at),
                'lastStatus', a.status,
                'lastError', a.error,
                'createdAt', rowcast.iso_time(p.created_at),
                'settledAt', rowcast.iso_time(p.settled_at)
            ) order by p.id desc), '[]'),
            'next', case when count(*) = v_limit then min(p.id)::text end
        )::text
        from page as p
        left join rowcast.endpoint as e on e.id = p.endpoint_id
        left join rowcast.attempt as a on a.delivery_id = p.id and a.attempt = p.attempt
    );
end;
$$;

comment on function rowcast.admin_deliveries(text, uuid, text, integer, text) is
'Deliveries, newest first, of a channel and in a state where given: {"deliveries": […], "next": cursor or null}. Raises RCA01, RCW07.';

-- Every attempt with what was answered, oldest first.
create or replace function rowcast.admin_delivery_attempts(p_claims text, p_delivery_id bigint)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    if not exists (select from rowcast.delivery as d where d.id = p_delivery_id) then
        raise exception 'there is no delivery %', p_delivery_id
        using errcode = 'RCW03', hint = 'List them with `rowcast webhooks deliveries`.';
    end if;
    return (
        select coalesce(json_agg(json_build_object(
            'attempt', a.attempt,
            'at', rowcast.iso_time(a.at),
            'status', a.status,
            'durationMs', a.ms,
            'error', a.error,
            'body', a.snippet
        ) order by a.attempt), '[]')::text
        from rowcast.attempt as a where a.delivery_id = p_delivery_id
    );
end;
$$;

comment on function rowcast.admin_delivery_attempts(text, bigint) is
'The attempts of a delivery as a JSON array, oldest first. Raises RCA01, RCW03.';

-- `queued` is false where it is being sent at this moment anyway.
create or replace function rowcast.admin_redeliver(p_claims text, p_delivery_id bigint)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    return json_build_object('id', p_delivery_id, 'queued', rowcast.redeliver(p_delivery_id))::text;
end;
$$;

comment on function rowcast.admin_redeliver(text, bigint) is
'Sends a delivery again: {"id": …, "queued": …}. Raises RCA01, RCW03 to RCW05.';

-- Everything about endpoints but their secrets; those of removed URLs are left out.
create or replace function rowcast.admin_endpoints(p_claims text, p_channel_id uuid)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform rowcast.require_admin(p_claims);
    return (
        select coalesce(json_agg(json_build_object(
            'id', e.id,
            'channelId', e.channel_id,
            'pattern', c.pattern,
            'url', e.url,
            'state', case
                when e.state <> 'active' then e.state
                when e.failures >= 5 then 'open'
                when e.pause_until > clock_timestamp() then 'throttled'
                else 'active'
            end,
            'reason', e.reason,
            'failures', e.failures,
            'failingSince', rowcast.iso_time(e.failing_since),
            'pausedUntil', case when e.pause_until > clock_timestamp() then rowcast.iso_time(e.pause_until) end,
            'pending', (
                select count(*) from rowcast.delivery as d where d.endpoint_id = e.id and d.next_at is not null
            ),
            'oldSecretUntil', case when e.previous_until > clock_timestamp() then rowcast.iso_time(e.previous_until) end,
            'createdAt', rowcast.iso_time(e.created_at)
        ) order by c.pattern, e.created_at, e.id), '[]')::text
        from rowcast.endpoint as e
        join public.realtime_channels as c on c.id = e.channel_id
        where e.state <> 'retired' and (p_channel_id is null or e.channel_id = p_channel_id)
    );
end;
$$;

comment on function rowcast.admin_endpoints(text, uuid) is
'The endpoints of a channel, or of all, as a JSON array without secrets. Raises RCA01.';

-- Besides the owner's SELECT this is the one place where a secret can be seen, and it is a new one.
create or replace function rowcast.admin_rotate_secret(p_claims text, p_endpoint_id uuid)
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_secret text;
begin
    perform rowcast.require_admin(p_claims);
    v_secret := rowcast.rotate_secret(p_endpoint_id);
    return (
        select json_build_object(
            'id', e.id, 'url', e.url, 'secret', v_secret, 'oldSecretUntil', rowcast.iso_time(e.previous_until)
        )::text
        from rowcast.endpoint as e where e.id = p_endpoint_id
    );
end;
$$;

comment on function rowcast.admin_rotate_secret(text, uuid) is
'Gives an endpoint a new secret and shows it: {"id", "url", "secret", "oldSecretUntil"}. Raises RCA01, RCW06.';
reset role;

set local role rowcast_owner;
-- sql/90_explain.sql
-- Why a caller may or may not: what governs a name, which policies count, and what each of them
-- says. Nothing is written: a policy's expression is evaluated as the caller on a row that is
-- imagined. For whoever may write policies; nobody else may execute these.

-- The governing channel is the first; the others are what it shadows. A lax pattern that people
-- expect to open a name is here, below the strict one that closes it. Who subscribes to a pattern
-- itself is judged by the row of that pattern, and by no other.
create or replace function rowcast.candidates(p_name text)
returns table (channel_id uuid, pattern text, enabled boolean, wildcard boolean, place integer)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
begin atomic
    select
        c.id,
        c.pattern,
        c.enabled,
        c.wildcard,
        row_number() over (order by t.n)::integer as place
    from unnest(
            rowcast.templates(cardinality(string_to_array(p_name, ':')))
        ) with ordinality as t (template, n)
    join public.realtime_channels as c
        on c.pattern = format(t.template, variadic string_to_array(p_name, ':'))
    where position('*' in p_name) = 0
    union all
    select
        c.id,
        c.pattern,
        c.enabled,
        c.wildcard,
        1
    from public.realtime_channels as c
    where c.pattern = p_name and position('*' in p_name) > 0
    order by place;
end;

comment on function rowcast.candidates(text) is
'The channels whose patterns match a name, most specific first; the first governs, enabled or not, and shadows the others. For a pattern its own row.';

-- What decides before any policy is asked, or instead of it.
create or replace function rowcast.barriers(p_action text, p_role text)
returns table (subject text, ok boolean, finding text)
language plpgsql
stable
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_table pg_catalog.pg_class;
    v_role pg_catalog.pg_roles;
    v_column text;
begin
    select c.* into v_table from pg_catalog.pg_class as c
    where c.oid = case p_action when 'publish' then 'public.realtime_messages'::regclass else 'public.realtime_channels'::regclass end;
    select r.* into v_role from pg_catalog.pg_roles as r where r.rolname = p_role;

    subject := 'caller role';
    ok := coalesce(p_role = any (rowcast.caller_roles()) and v_role.oid is not null, false);
    finding := format(case when ok then '%s is a caller role' else '%s is no caller role: tokens that name it are refused' end, p_role);
    return next;
    if v_role.oid is null then
        return;
    end if;

    subject := 'row level security';
    ok := v_table.relrowsecurity;
    finding := format(case when ok then 'enabled on %s' else 'OFF on %s: no policy is asked' end, v_table.relname);
    return next;

    subject := 'bypass';
    ok := not (v_role.rolsuper or v_role.rolbypassrls or pg_has_role(v_role.oid, v_table.relowner, 'usage') and not v_table.relforcerowsecurity);
    finding := format(case when ok then '%s is subject to the policies' else '%s passes every policy' end, p_role);
    return next;

    subject := 'grants';
    select string_agg(a.name, ', ') into v_column
    from unnest(
        case p_action when 'publish' then '{type,channel_name,event_name,payload,publish_key}'::text[] else '{id,enabled}' end
    ) as a (name)
    where not has_column_privilege(v_role.oid, v_table.oid, a.name, case p_action when 'publish' then 'insert' else 'select' end);
    ok := v_column is null and has_schema_privilege(v_role.oid, 'public', 'usage');
    finding := case
        when ok then format('%s may reach the columns that it needs', p_role)
        when v_column is null then format('%s lacks USAGE on schema public', p_role)
        else format('%s lacks %s on %s (%s): run `rowcast migrate --reapply`', p_role, case p_action when 'publish' then 'INSERT' else 'SELECT' end, v_table.relname, v_column)
    end;
    return next;
end;
$$;

comment on function rowcast.barriers(text, text) is
'What decides about subscribe or publish besides the policies: the role, row level security itself, and grants.';

-- What makes up a policy, in words of the server, so that two spellings of one rule are equal.
-- Names come out qualified, because the path is pinned.
create or replace function rowcast.policies_of(p_table regclass)
returns table (
    policy text, permissive boolean, command text, roles text[], using_text text, check_text text
)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select
        p.polname::text,
        p.polpermissive,
        case p.polcmd
            when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update'
            when 'd' then 'delete' else 'all'
        end,
        array(
            select case r.id when 0 then 'public' else pg_get_userbyid(r.id)::text end as role
            from unnest(p.polroles) as r (id)
            order by role
        ),
        pg_get_expr(p.polqual, p.polrelid),
        pg_get_expr(p.polwithcheck, p.polrelid)
    from pg_catalog.pg_policy as p
    where p.polrelid = p_table
    order by p.polname;
end;

comment on function rowcast.policies_of(regclass) is
'The policies of a table with roles in order and expressions as the server spells them; for comparing.';

-- In the order in which people read them: what restricts first. A policy without an expression
-- counts for nothing.
create or replace function rowcast.policies_for(p_action text, p_role text)
returns table (
    policy text, permissive boolean, command text, roles text[], applies boolean, expression text
)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select
        p.policy,
        p.permissive,
        p.command,
        p.roles,
        p.command in ('all', case p_action when 'publish' then 'insert' else 'select' end)
        and exists (
            select from unnest(p.roles) as r (name)
            where r.name = 'public' or pg_has_role(p_role::name, r.name::name, 'usage')
        ),
        case p_action when 'publish' then coalesce(p.check_text, p.using_text) else p.using_text end
    from rowcast.policies_of(
            case p_action
                when 'publish' then 'public.realtime_messages'::regclass
                else 'public.realtime_channels'::regclass
            end
        ) as p
    order by p.permissive, p.policy;
end;

comment on function rowcast.policies_for(text, text) is
'The policies that stand on the table that subscribe or publish asks: kind, command, roles, whether each applies to a caller role, and its expression.';

-- Postgres joins permissive policies by OR and restrictive ones by AND, where NULL is no. When one
-- raises an error, the order decides whether it is reached, and SQL promises none: so the answer
-- is a set, which has one element unless something raised.
create or replace function rowcast.verdict(p_permissive boolean[], p_values text[])
returns text[]
language sql
immutable
parallel safe
begin atomic
    select
        array_remove(array[
            case when f.granted and not f.restricted and not f.restriction_failed then 'allow' end,
            case when not f.granted or f.restricted or f.restriction_failed then 'deny' end,
            case when f.failed then 'error' end
        ], null)
    from (
        select
            coalesce(bool_or(v.permissive and v.said = 'true'), false) as granted,
            coalesce(
                bool_or(not v.permissive and coalesce(v.said, 'false') not in ('true', 'error')),
                false
            ) as restricted,
            coalesce(bool_or(v.said = 'error'), false) as failed,
            coalesce(bool_or(not v.permissive and v.said = 'error'), false) as restriction_failed
        from unnest(p_permissive, p_values) as v (permissive, said)
    ) as f;
end;

comment on function rowcast.verdict(boolean[], text[]) is
'Which of allow, deny and error can come of policies that apply and said true, false, NULL or error.';
reset role;

set local role rowcast_owner;
-- sql/91_imagine.sql
-- Rows that do not exist, and expressions evaluated on them as somebody else.

-- The channel row that decides, as its owner sees it.
create or replace function rowcast.imagined_channel(p_name text)
returns public.realtime_channels
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select c
    from public.realtime_channels as c
    where c.id = (
            select d.channel_id from rowcast.candidates(p_name) as d
            where d.place = 1
        );
end;

comment on function rowcast.imagined_channel(text) is
'The channel row that a subscription to this name or pattern is judged by, whatever the policies say.';

-- The message as messages_stamp makes it: it is inserted by the owner, whom no policy is asked for,
-- read back, and undone. Only the sender is another one. What cannot be published at all has the
-- columns that are known without the trigger.
create or replace function rowcast.imagined_message(
    p_role text, p_claims text, p_channel text, p_type text, p_event text, p_payload jsonb
)
returns public.realtime_messages
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_row public.realtime_messages;
begin
    begin
        insert into public.realtime_messages (type, channel_name, event_name, payload)
        values (p_type, p_channel, p_event, p_payload)
        returning * into v_row;
        raise exception 'undone' using errcode = 'RCX01', hint = 'This is never seen: it undoes the trial.';
    exception
        when sqlstate 'RCX01' then
            null;
        when others then
            v_row.type := p_type;
            v_row.channel_id := rowcast.governing(p_channel);
            v_row.channel_name := p_channel;
            v_row.event_name := p_event;
            v_row.payload := p_payload;
            v_row.created_at := clock_timestamp();
    end;
    v_row.sender_type := case when p_role = any (rowcast.caller_roles()) then 'user' else 'system' end;
    v_row.sender_id := case when v_row.sender_type = 'user' then p_claims::jsonb ->> 'sub' end;
    return v_row;
end;
$$;

comment on function rowcast.imagined_message(text, text, text, text, text, jsonb) is
'The row that a publish by this caller would make, as policies would see it; nothing stays inserted.';

-- Each expression is a subtransaction that is always rolled back: whatever a policy function does
-- is undone, its settings and its role included, and an error hides only its own answer. A cancel
-- is not caught: statement_timeout runs out once per statement, so the next expression would have
-- no limit at all. Subscribing is asked read-only, as bridges do.
--
-- The row is an argument under the name of its table, which is how the expressions call it.
create or replace function rowcast.evaluate_as(
    p_role text,
    p_claims text,
    p_channel text,
    p_row anyelement,
    p_expressions text[],
    p_read_only boolean
)
returns table (n integer, said text, state text, error text, ms double precision)
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_table constant name := (select t.typname from pg_catalog.pg_type as t where t.oid = pg_typeof(p_row));
    v_begun timestamptz;
begin
    for i in 1..cardinality(p_expressions) loop
        n := i;
        said := null;
        state := null;
        error := null;
        begin
            if p_read_only then
                perform set_config('transaction_read_only', 'on', true);
            end if;
            perform rowcast.impersonate(p_role, p_claims, p_channel);
            v_begun := clock_timestamp();
            execute format('select (%s)::text from unnest($1) as %I', p_expressions[i], v_table)
            into said using array[p_row];
            ms := extract(epoch from clock_timestamp() - v_begun) * 1000;
            raise exception 'undone' using errcode = 'RCX01', hint = 'This is never seen: it undoes the trial.';
        exception
            when sqlstate 'RCX01' then
                null;
            when others then
                get stacked diagnostics state = returned_sqlstate, error = message_text;
                said := 'error';
                ms := extract(epoch from clock_timestamp() - v_begun) * 1000;
        end;
        return next;
    end loop;
end;
$$;

comment on function rowcast.evaluate_as(text, text, text, anyelement, text[], boolean) is
'What each expression says of a row, evaluated as a caller; said is its text, or error with SQLSTATE and message. Undoes whatever it does.';

-- The same for the question that is being asked: of a channel row, or of a message.
create or replace function rowcast.evaluate_policy(
    p_action text,
    p_role text,
    p_claims text,
    p_channel text,
    p_type text,
    p_event text,
    p_payload jsonb,
    p_expressions text[]
)
returns table (n integer, said text, state text, error text, ms double precision)
language sql
volatile
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select e.*
    from rowcast.evaluate_as(
            p_role, p_claims, p_channel, rowcast.imagined_channel(p_channel), p_expressions, true
        ) as e
    where p_action = 'subscribe'
    union all
    select e.*
    from rowcast.evaluate_as(
            p_role,
            p_claims,
            p_channel,
            rowcast.imagined_message(p_role, p_claims, p_channel, p_type, p_event, p_payload),
            p_expressions,
            false
        ) as e
    where p_action = 'publish';
end;

comment on function rowcast.evaluate_policy(text, text, text, text, text, text, jsonb, text[]) is
'What each expression of a policy would say to this caller, subscribing or publishing; nothing stays written.';

-- How an expression would be executed, with sequential scans made so dear that one that is left
-- has no index to take its place, however small the table is today.
create or replace function rowcast.plan_policy(
    p_action text, p_role text, p_claims text, p_channel text, p_expression text
)
returns json
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_plan json;
begin
    begin
        perform set_config('transaction_read_only', 'on', true);
        perform set_config('enable_seqscan', 'off', true);
        perform rowcast.impersonate(p_role, p_claims, p_channel);
        if p_action = 'publish' then
            execute format(
                'explain (verbose, format json) select (%s) from unnest(null::public.realtime_messages[]) as realtime_messages',
                p_expression
            ) into v_plan;
        else
            execute format(
                'explain (verbose, format json) select (%s) from unnest(null::public.realtime_channels[]) as realtime_channels',
                p_expression
            ) into v_plan;
        end if;
        raise exception 'undone' using errcode = 'RCX01', hint = 'This is never seen: it undoes the trial.';
    exception
        when sqlstate 'RCX01' then
            return v_plan;
        when others then
            return null; -- evaluate_policy has said why
    end;
end;
$$;

comment on function rowcast.plan_policy(text, text, text, text, text) is
'The plan of a policy''s expression for a caller, where sequential scans are a last resort; NULL when it cannot be planned.';
reset role;

set local role rowcast_owner;
-- sql/92_explain_access.sql
-- The whole explanation as one table, for people with only psql.

-- Subscribing is asked for real; publishing too, in a subtransaction that is rolled back. What the
-- policies seem to say and what the database does are two rows, so that nobody has to believe the
-- first. `rowcast policy explain` has the same, and each AND and OR of a policy besides.
create or replace function rowcast.explain_access(
    action text,
    channel text,
    role text,
    claims jsonb default '{}',
    event text default 'message',
    payload jsonb default '{}',
    type text default 'message'
)
returns table (
    part text, subject text, applies boolean, said text, detail text, ms double precision
)
language plpgsql
volatile
security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
    v_claims constant text := (jsonb_build_object('role', explain_access.role) || coalesce(explain_access.claims, '{}'))::text;
    v_expressions text[] := '{}';
    v_permissive boolean[] := '{}';
    v_values text[] := '{}';
    v_enabled boolean;
    v_decided text;
    v_row record;
begin
    if explain_access.action is null or explain_access.action not in ('subscribe', 'publish') then
        raise exception 'action "%" does not exist', explain_access.action
        using errcode = '22023', hint = 'Use subscribe or publish.';
    end if;

    part := 'channel';
    for v_row in select c.* from rowcast.candidates(explain_access.channel) as c loop
        subject := v_row.pattern;
        applies := v_row.place = 1;
        said := case when v_row.enabled then 'enabled' else 'disabled' end;
        detail := case when applies then 'governs: the most specific pattern' else 'shadowed' end;
        v_enabled := coalesce(v_enabled, v_row.enabled);
        if position('*' in explain_access.channel) > 0 and not v_row.wildcard then
            v_decided := 'deny';
            detail := 'nobody may subscribe to the pattern itself: wildcard is false';
        end if;
        return next;
    end loop;

    part := 'barrier';
    for v_row in select b.* from rowcast.barriers(explain_access.action, explain_access.role) as b loop
        subject := v_row.subject;
        applies := not v_row.ok;
        said := case when v_row.ok then 'ok' else 'attention' end;
        detail := v_row.finding;
        if not v_row.ok then
            v_decided := coalesce(v_decided, case when v_row.subject in ('row level security', 'bypass') then 'allow' else 'deny' end);
        end if;
        return next;
    end loop;
    if v_enabled is not true then
        v_decided := 'deny';
    end if;

    part := 'policy';
    for v_row in select p.* from rowcast.policies_for(explain_access.action, explain_access.role) as p loop
        subject := v_row.policy;
        applies := v_row.applies;
        said := null;
        ms := null;
        detail := case when v_row.permissive then '' else 'RESTRICTIVE ' end || format('for %s to %s', v_row.command, array_to_string(v_row.roles, ', '));
        if v_row.applies and v_row.expression is null then
            detail := detail || ': without an expression it counts for nothing';
        elsif v_row.applies and v_enabled is not null then
            detail := detail || ': ' || v_row.expression;
            select e.said, e.ms, detail || coalesce(' -- ' || e.state || ' ' || e.error, '') into said, ms, detail
            from rowcast.evaluate_policy(explain_access.action, explain_access.role, v_claims, explain_access.channel,
                explain_access.type, explain_access.event, explain_access.payload, array[v_row.expression]) as e;
            v_permissive := v_permissive || v_row.permissive;
            v_values := v_values || said;
            said := coalesce(said, 'NULL: counts as false');
        end if;
        return next;
    end loop;

    part := 'verdict';
    subject := 'by the policies';
    applies := true;
    ms := null;
    said := coalesce(v_decided, array_to_string(rowcast.verdict(v_permissive, v_values), ' or '));
    detail := case
        when v_enabled is null then 'no channel matches the name'
        when not v_enabled then 'the channel that governs the name is disabled'
        when v_decided is not null then 'decided by a barrier, or by the channel'
        when not coalesce(true = any (v_permissive), false) then 'no permissive policy applies: default deny'
        else 'one permissive policy must be true, and every restrictive one'
    end;
    return next;

    subject := 'by the database';
    begin
        if explain_access.action = 'subscribe' then
            select case when c.allowed then 'allow' when c.error is not null then 'error' else 'deny' end, c.error
            into said, detail
            from rowcast.check_subscribe(explain_access.role, array[v_claims], array[explain_access.channel]) as c;
        else
            perform rowcast.publish_as(explain_access.role, array[v_claims], array[explain_access.channel], array[explain_access.type],
                array[explain_access.event], array[explain_access.payload::text], array[null]::uuid[]);
            said := 'allow';
            detail := null;
        end if;
        raise exception 'undone' using errcode = 'RCX01', hint = 'This is never seen: it undoes the trial.';
    exception
        when sqlstate 'RCX01' then
            null;
        when others then
            said := 'deny';
            detail := sqlstate || ' ' || sqlerrm;
    end;
    return next;
end;
$$;

comment on function rowcast.explain_access(text, text, text, jsonb, text, jsonb, text) is
'Why a caller of this role and with these claims may or may not subscribe or publish: channels, policies and their values, the verdict, and what the database says. Nothing stays written.';
reset role;

set local role rowcast_owner;
-- sql/93_policy_reach.sql
-- Which policies are asked when somebody subscribes, publishes or reads, and what they mention.
--
-- pg_depend does not tell whether a policy reads its own table, and knows no function that came
-- with the server. The stored tree tells both: its literals are numbers of bytes there, so nothing
-- that a user wrote can look like one of these words.

-- The tables of the sub-selects of a policy, and the functions that it calls.
create or replace function rowcast.policy_mentions(p_policy oid)
returns table (kind text, id oid)
language sql
stable
parallel safe
security invoker
rows 10
set search_path = pg_catalog, pg_temp
begin atomic
    select distinct
        m.found[1]::text,
        m.found[2]::oid
    from pg_catalog.pg_policy as p
    cross join
        lateral regexp_matches(
            concat(p.polqual::text, p.polwithcheck::text), ':(relid|funcid) ([1-9][0-9]*)', 'g'
        ) as m (found)
    where p.oid = p_policy;
end;

comment on function rowcast.policy_mentions(oid) is
'What a policy reads (relid) and calls (funcid), as its stored tree says.';

-- A policy reads tables as the caller, so their policies are asked, too, and so on. The policy
-- of rowcast_publisher is the one that `migrate` makes for trusted code.
create or replace function rowcast.policies_asked()
returns setof pg_catalog.pg_policy
language sql
stable
parallel safe
security invoker
rows 20
set search_path = pg_catalog, pg_temp
begin atomic
    with recursive asked (relid) as (
        select c.oid
        from pg_catalog.pg_class as c
        where c.oid in ('public.realtime_channels'::regclass, 'public.realtime_messages'::regclass)
        union
        select m.id
        from asked as a
        join pg_catalog.pg_policy as p on a.relid = p.polrelid
        cross join lateral rowcast.policy_mentions(p.oid) as m
        where m.kind = 'relid'
    )

    select p.*
    from asked as a
    join pg_catalog.pg_policy as p on a.relid = p.polrelid
    where p.polname <> 'rowcast_publisher';
end;

comment on function rowcast.policies_asked() is
'The policies of realtime_channels and realtime_messages, and of all tables that policies among them read.';

-- The callers for whom a policy is asked: those whom it names, and those who have such a role.
create or replace function rowcast.policy_callers(p_roles oid[])
returns setof oid
language sql
stable
parallel safe
security invoker
rows 2
set search_path = pg_catalog, pg_temp
begin atomic
    select r.oid
    from pg_catalog.pg_roles as r
    where r.rolname = any(rowcast.caller_roles()) and exists (
            select from unnest(p_roles) as n (role)
            where n.role = 0 or pg_has_role(r.oid, n.role, 'usage')
        );
end;

comment on function rowcast.policy_callers(oid[]) is
'The caller roles for which a policy with these roles (polroles) is asked.';

-- How a finding names its policy.
create or replace function rowcast.policy_label(p_name name, p_table oid)
returns text
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
return format('policy %I on %s', p_name, p_table::regclass);

comment on function rowcast.policy_label(name, oid) is
'Policy and table as a finding of policy_lint() names them.';

-- Policies as statements, for a reader of SQL; with the names of tables and functions in full.
create or replace function rowcast.policy_texts()
returns table (object text, statement text)
language sql
stable
parallel safe
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    select
        rowcast.policy_label(p.polname, p.polrelid),
        concat(
            format('create policy %I on %s', p.polname, p.polrelid::regclass),
            case when not p.polpermissive then ' as restrictive' end,
            ' for ',
            case p.polcmd
                when 'r' then 'select'
                when 'a' then 'insert'
                when 'w' then 'update'
                when 'd' then 'delete'
                else 'all'
            end,
            ' to ',
            (
                select
                    string_agg(
                        case when n.role = 0 then 'public' else n.role::regrole::text end, ', '
                    )
                from unnest(p.polroles) as n (role)
            ),
            ' using (' || pg_get_expr(p.polqual, p.polrelid) || ')',
            ' with check (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')'
        )
    from rowcast.policies_asked() as p;
end;

comment on function rowcast.policy_texts() is
'The policies that callers meet as CREATE POLICY statements, each under the name that findings give it.';
reset role;

set local role rowcast_owner;
-- sql/94_policy_lint_commands.sql
-- What policies are for: findings in their commands and roles.

-- For which command and for whom a policy is.
create or replace function rowcast.policy_lint_commands()
returns table (code text, level text, object text, message text, hint text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    with asked as (
        select
            p.*,
            p.polrelid in (
                'public.realtime_channels'::regclass, 'public.realtime_messages'::regclass
            ) as ours,
            rowcast.policy_label(p.polname, p.polrelid) as label
        from rowcast.policies_asked() as p
    )

    select
        'RCL109',
        'warning',
        p.label,
        'is for all commands, and USING is its check too',
        'Write a policy per command, or a WITH CHECK.'
    from asked as p
    where p.polcmd = '*' and p.polwithcheck is null
    union all
    select
        'RCL110',
        'warning',
        p.label,
        'is for every command of ' || p.polrelid::regclass,
        'Write FOR SELECT on realtime_channels, FOR INSERT or SELECT on realtime_messages.'
    from asked as p
    where p.polcmd = '*' and p.ours
    union all
    select
        'RCL208',
        'warning',
        p.label,
        'takes away from what no policy allows',
        'Add a permissive policy for the same command.'
    from asked as p
    where not p.polpermissive
        and 'false' not in (
            coalesce(pg_get_expr(p.polqual, p.polrelid), ''),
            coalesce(pg_get_expr(p.polwithcheck, p.polrelid), '')
        )
        and not exists (
            select from asked as o
            where o.polrelid = p.polrelid
                and o.polpermissive
                and (o.polcmd = p.polcmd or '*' in (o.polcmd, p.polcmd))
        )
    union all
    select
        'RCL211',
        'warning',
        p.label,
        'has no effect: no caller may change or delete a message',
        'Drop it; call rowcast.delete_message() in a function of your own.'
    from asked as p
    where p.polrelid = 'public.realtime_messages'::regclass and p.polcmd in ('w', 'd')
    union all
    -- A policy for a login of trusted code is what it seems.
    select
        'RCL213',
        'warning',
        p.label,
        'is never asked: no caller has a role that TO names',
        'The caller roles are ' || array_to_string(rowcast.caller_roles(), ', ') || '.'
    from asked as p
    where p.ours and not exists (select from rowcast.policy_callers(p.polroles)) and not exists (
            select from pg_catalog.pg_roles as l, unnest(p.polroles) as n (role)
            where l.rolcanlogin and not l.rolsuper and pg_has_role(l.oid, n.role, 'usage')
        );
end;

comment on function rowcast.policy_lint_commands() is
'Findings in commands and roles of policies; part of policy_lint().';
reset role;

set local role rowcast_owner;
-- sql/95_policy_lint_conditions.sql
-- What policies say: findings in their conditions. The codes are those of `rowcast policy lint`,
-- which explains each; see policies/README.md.

-- What stands in USING and WITH CHECK.
create or replace function rowcast.policy_lint_expressions()
returns table (code text, level text, object text, message text, hint text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    with recursive asked as (
        select
            p.*,
            p.polrelid in (
                'public.realtime_channels'::regclass, 'public.realtime_messages'::regclass
            ) as ours,
            p.polrelid = 'public.realtime_messages'::regclass as on_messages,
            rowcast.policy_label(p.polname, p.polrelid) as label,
            concat(p.polqual::text, p.polwithcheck::text) as tree,
            coalesce(pg_get_expr(p.polqual, p.polrelid), '') as using_text,
            coalesce(pg_get_expr(p.polwithcheck, p.polrelid), '') as check_text
        from rowcast.policies_asked() as p
    ),

    mentions as (
        select
            p.oid as policy,
            m.kind,
            m.id
        from asked as p
        cross join lateral rowcast.policy_mentions(p.oid) as m
    ),

    -- Tables whose reading asks a policy with a sub-select: the second time in one query is the
    -- recursion that Postgres refuses, also where the sub-select itself would end.
    nested as (
        select p.polrelid as relid from asked as p
        where p.polcmd in ('r', '*') and p.tree ~ '[{]SUBLINK'
    ),

    -- From each table to all those that are read in order to read it.
    reached (start, relid) as (
        select
            p.polrelid,
            m.id
        from asked as p
        join mentions as m on p.oid = m.policy and m.kind = 'relid'
        where p.polcmd in ('r', '*')
        union
        select
            t.start,
            m.id
        from reached as t
        join asked as p on t.relid = p.polrelid and p.polcmd in ('r', '*')
        join mentions as m on p.oid = m.policy and m.kind = 'relid'
    )

    select
        'RCL101',
        case when p.ours then 'error' else 'warning' end,
        p.label,
        'lets everybody through whom TO names',
        'Write the condition.'
    from asked as p
    where p.polpermissive
        and (
            'true' in (p.using_text, p.check_text)
            or (p.using_text || p.check_text) ~ '\mOR true\)|\(true OR\M'
        )
        and exists (select from rowcast.policy_callers(p.polroles))
    union all
    select
        'RCL103',
        'error',
        p.label,
        m.id::regprocedure || ' is the name of the statement, and each row has its own',
        'Use the form with channel_name, such as rowcast.segment(channel_name, 2).'
    from asked as p
    join mentions as m on p.oid = m.policy and m.kind = 'funcid'
    where p.on_messages and m.id in (
            'rowcast.channel_name()'::regprocedure, 'rowcast.segment(integer)'::regprocedure,
            'rowcast.segment_uuid(integer)'::regprocedure,
            'rowcast.segment_int(integer)'::regprocedure,
            to_regprocedure('realtime.topic()'), to_regprocedure('realtime.channel_name()')
        )
    union all
    select
        'RCL104',
        'error',
        p.label,
        'opens every room of a pattern to a member of one',
        'Use rowcast.may_subscribe(channel_name), or compare the channel_name.'
    from asked as p
    where p.on_messages and p.polcmd in ('r', '*') and (
            select bool_or(a.attname = 'channel_id') and not bool_or(a.attname = 'channel_name')
            from pg_catalog.pg_depend as d
            join
                pg_catalog.pg_attribute as a
                on d.refobjid = a.attrelid and d.refobjsubid = a.attnum
            where d.classid = 'pg_catalog.pg_policy'::regclass
                and d.objid = p.oid
                and d.refobjid = p.polrelid
        )
    union all
    select
        'RCL105',
        'error',
        p.label,
        'trusts what users write about themselves',
        'Use app_metadata, a claim of your issuer''s own, or a table.'
    from asked as p
    where (p.using_text || p.check_text) ~ '\muser_metadata\M|\mraw_user_meta_data\M'
    union all
    select
        'RCL114',
        'warning',
        p.label,
        'asks for the database role as if it were the user',
        'Use auth.user_id() for who asks, and TO for the role.'
    from asked as p
    where p.tree ~ 'SQLVALUEFUNCTION :op (9|10|11|12) '
    union all
    select distinct
        'RCL202',
        'error',
        p.label,
        'infinite recursion: it reads ' || m.id::regclass,
        'Read the table through a SECURITY DEFINER function with a pinned search_path.'
    from asked as p
    join mentions as m on p.oid = m.policy and m.kind = 'relid'
    where m.id = p.polrelid and p.polrelid in (select n.relid from nested as n) or exists (
            select from reached as t
            where t.start = m.id
                and t.relid in (m.id, p.polrelid)
                and t.relid in (select n.relid from nested as n)
        )
    union all
    select
        'RCL206',
        'warning',
        p.label,
        m.id::regprocedure || ' is volatile: it waits, writes, or answers anew each time',
        'Decide by what the row, the token and tables say.'
    from asked as p
    join mentions as m on p.oid = m.policy and m.kind = 'funcid'
    join pg_catalog.pg_proc as f on m.id = f.oid
    where f.provolatile = 'v' and f.pronamespace <> 'rowcast'::regnamespace;
end;

comment on function rowcast.policy_lint_expressions() is
'Findings in the conditions of policies; part of policy_lint().';
reset role;

set local role rowcast_owner;
-- sql/96_policy_lint_tables.sql
-- What surrounds policies: findings in tables, their grants and indexes.

-- Tables that policies read, or are for.
create or replace function rowcast.policy_lint_tables()
returns table (code text, level text, object text, message text, hint text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    with asked as (
        select
            p.*,
            rowcast.policy_label(p.polname, p.polrelid) as label
        from rowcast.policies_asked() as p
    ),

    mentioned as (
        select distinct
            p.oid as policy,
            p.label,
            p.polroles,
            c.oid as relid,
            c.relkind,
            c.relowner,
            c.relnamespace,
            c.reltuples,
            c.relname
        from asked as p
        cross join lateral rowcast.policy_mentions(p.oid) as m
        join pg_catalog.pg_class as c on m.id = c.oid and m.kind = 'relid'
    )

    select
        'RCL108',
        'error',
        c.oid::regclass::text,
        'has policies, and row level security is not enabled',
        format('alter table %s enable row level security;', c.oid::regclass)
    from pg_catalog.pg_class as c
    where not c.relrowsecurity and (
            c.oid in ('public.realtime_channels'::regclass, 'public.realtime_messages'::regclass)
            or c.oid in (select p.polrelid from asked as p)
        )
    union all
    select
        'RCL212',
        'error',
        c.oid::regclass::text,
        'is read by definer functions, which FORCE blinds',
        format('alter table %s no force row level security;', c.oid::regclass)
    from pg_catalog.pg_class as c
    where c.relforcerowsecurity and (
            c.oid in ('public.realtime_channels'::regclass, 'public.realtime_messages'::regclass)
            or exists (
                select
                from asked as p
                cross join lateral rowcast.policy_mentions(p.oid) as m
                join pg_catalog.pg_proc as f on m.id = f.oid and m.kind = 'funcid'
                where f.prosecdef and f.proowner = c.relowner
                    and concat(f.prosrc, pg_get_function_sqlbody(f.oid))
                    ~* ('\m' || c.relname || '\M')
            )
        )
    union all
    select distinct
        'RCL207',
        'error',
        m.label,
        format('reads %s, which %s may not read', m.relid::regclass, r.id::regrole),
        format('grant select on %s to %s;', m.relid::regclass, r.id::regrole)
    from mentioned as m
    cross join lateral rowcast.policy_callers(m.polroles) as r (id)
    where not (
            has_any_column_privilege(r.id, m.relid, 'select')
            and has_schema_privilege(r.id, m.relnamespace, 'usage')
        )
    union all
    select
        'RCL302',
        case
            when m.reltuples < 1000 then 'info' when m.reltuples < 1000000 then 'warning' else
                'error'
        end,
        m.label,
        format(
            'looks for %s of %s (%s rows), and no index begins with one of them',
            string_agg(a.attname, ', ' order by a.attnum),
            m.relid::regclass,
            greatest(m.reltuples, 0)::bigint
        ),
        format('create index on %s (…);', m.relid::regclass)
    from mentioned as m
    join
        pg_catalog.pg_depend as d
        on d.classid = 'pg_catalog.pg_policy'::regclass
            and m.policy = d.objid
            and m.relid = d.refobjid
    join pg_catalog.pg_attribute as a on m.relid = a.attrelid and d.refobjsubid = a.attnum
    where m.relkind in ('r', 'p', 'm') and not m.relid in (
            'public.realtime_channels'::regclass, 'public.realtime_messages'::regclass
        )
    group by m.policy, m.label, m.relid, m.reltuples
    having not exists (
            select from pg_catalog.pg_index as i
            where i.indrelid = m.relid and i.indisvalid and i.indkey[0] = any(array_agg(a.attnum))
        );
end;

comment on function rowcast.policy_lint_tables() is
'Findings in tables that policies read or are for; part of policy_lint().';
reset role;

set local role rowcast_owner;
-- sql/97_policy_lint_code.sql
-- What surrounds policies: findings in functions and views.

-- Functions that policies call, and views that go around policies.
create or replace function rowcast.policy_lint_code()
returns table (code text, level text, object text, message text, hint text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
begin atomic
    with asked as (
        select
            p.*,
            rowcast.policy_label(p.polname, p.polrelid) as label
        from rowcast.policies_asked() as p
    ),

    called as (
        select distinct
            p.label,
            p.polroles,
            f.oid,
            f.prosecdef,
            f.proconfig,
            f.pronamespace
        from asked as p
        cross join lateral rowcast.policy_mentions(p.oid) as m
        join pg_catalog.pg_proc as f on m.id = f.oid and m.kind = 'funcid'
    ),

    -- Whatever has policies, among the tables of this database that are asked about.
    governed as (
        select p.polrelid as relid from asked as p
        union
        select c.oid from pg_catalog.pg_class as c
        where c.oid in ('public.realtime_channels'::regclass, 'public.realtime_messages'::regclass)
    )

    select distinct
        'RCL106',
        'error',
        f.oid::regprocedure::text,
        'runs as its owner on the search_path of its caller',
        format('alter function %s set search_path = pg_catalog, pg_temp;', f.oid::regprocedure)
    from called as f
    where f.prosecdef and not exists (
            select from unnest(f.proconfig) as s (setting)
            where s.setting like 'search_path=%'
        )
    union all
    select distinct
        'RCL214',
        'error',
        f.label,
        format('calls %s, which %s may not execute', f.oid::regprocedure, r.id::regrole),
        format('grant execute on function %s to %s;', f.oid::regprocedure, r.id::regrole)
    from called as f
    cross join lateral rowcast.policy_callers(f.polroles) as r (id)
    where not (
            has_function_privilege(r.id, f.oid, 'execute')
            and has_schema_privilege(r.id, f.pronamespace, 'usage')
        )
    union all
    select distinct
        'RCL107',
        'warning',
        v.oid::regclass::text,
        'reads ' || g.relid::regclass || ' as its owner, and callers may read it',
        case
            when
                v.relkind = 'v'
                then format('alter view %s set (security_invoker = true);', v.oid::regclass)
            else format('revoke select on %s from anon, authenticated;', v.oid::regclass)
        end
    from governed as g
    join
        pg_catalog.pg_depend as d
        on g.relid = d.refobjid and d.classid = 'pg_catalog.pg_rewrite'::regclass
    join pg_catalog.pg_rewrite as w on d.objid = w.oid
    join pg_catalog.pg_class as v on w.ev_class = v.oid
    where v.relkind in ('v', 'm')
        and not coalesce(
            v.reloptions && '{security_invoker=true,security_invoker=on,security_invoker=1}', false
        )
        and exists (
            select
            from rowcast.policy_callers('{0}') as r (id)
            where has_any_column_privilege(r.id, v.oid, 'select')
        );
end;

comment on function rowcast.policy_lint_code() is
'Findings in functions that policies call and in views that go around them; part of policy_lint().';
reset role;

set local role rowcast_owner;
-- sql/98_policy_lint.sql
-- All findings of the catalogue about policies.

-- What is wrong with the policies of this database, for people who have only psql. With the
-- caller's rights: it reads the catalogues, which everybody may. Without JIT, which takes seconds
-- to compile what then runs for milliseconds.
create or replace function rowcast.policy_lint()
returns table (code text, level text, object text, message text, hint text)
language sql
stable
security invoker
set search_path = pg_catalog, pg_temp
set jit = off
begin atomic
    select l.*
    from (
        select * from rowcast.policy_lint_expressions()
        union all
        select * from rowcast.policy_lint_commands()
        union all
        select * from rowcast.policy_lint_tables()
        union all
        select * from rowcast.policy_lint_code()
    ) as l (code, level, object, message, hint)
    order by array_position('{error,warning,info}', l.level), l.code, l.object, l.message;
end;

comment on function rowcast.policy_lint() is
'What is wrong with the policies that callers meet: code, level (error, warning, info), object, message, hint. `rowcast policy lint --explain CODE` explains a code.';
reset role;

set local role rowcast_owner;
-- sql/99_grants.sql
-- The whole privilege surface on one screen. Nothing is executable by PUBLIC but what a policy
-- may call, whoever evaluates it; those functions tell a caller only about himself.

revoke execute on all routines in schema rowcast from public;
revoke all on all tables in schema rowcast from public;
revoke all on all sequences in schema rowcast from public;

grant execute on function
rowcast.jwt(), rowcast.user_id(), rowcast.uid(), rowcast.role(), rowcast.email(),
rowcast.channel_name(),
rowcast.segment(integer),
rowcast.segment_uuid(integer),
rowcast.segment_int(integer),
rowcast.segment(text, integer),
rowcast.segment_uuid(text, integer),
rowcast.segment_int(text, integer),
rowcast.is_name(text), rowcast.is_pattern(text)
to public;

-- The publisher: trusted code that is not an end user.
grant execute on function
rowcast.publish(text, text, jsonb, text, uuid, boolean), rowcast.publish_many(jsonb),
rowcast.publish_as_system(text, text, jsonb, text, uuid, boolean),
rowcast.attach(regclass, text, text[], text[], text, boolean), rowcast.detach(regclass, text),
rowcast.publish_row(), rowcast.resolve(text), rowcast.open_channel(text),
rowcast.audience(text), rowcast.presence_state(text),
rowcast.recheck(text, text), rowcast.kick(text, boolean), rowcast.recheck_rows(),
rowcast.recheck_on_change(regclass, text, text, text[]), rowcast.recheck_detach(regclass)
to rowcast_publisher;
grant insert (
    type, channel_name, event_name, payload, publish_key
) on public.realtime_messages to rowcast_publisher;

do $$
begin
    if not exists (
        select from pg_catalog.pg_policy as p
        where p.polrelid = 'public.realtime_messages'::regclass and p.polname = 'rowcast_publisher'
    ) then
        create policy rowcast_publisher on public.realtime_messages for insert to rowcast_publisher with check (true);
    end if;
end;
$$;

-- The bridge: carries what is committed, and asks nothing that a caller role would be asked.
grant execute on function
rowcast.identity(), rowcast.feed(text, uuid, timestamptz, integer, integer),
rowcast.replay(text[], text[], uuid[], timestamptz[], text, uuid),
rowcast.writers(), rowcast.doze(), rowcast.wake(), rowcast.probe(text),
rowcast.upkeep(), rowcast.status(), rowcast.doctor(), rowcast.boot_id(),
rowcast.login_report(), rowcast.caller_roles(), rowcast.fold(integer),
rowcast.admin_channels(text, uuid, integer, integer, boolean),
rowcast.admin_create_channel(text, jsonb, boolean),
rowcast.admin_update_channel(text, uuid, jsonb, boolean),
rowcast.admin_delete_channel(text, uuid),
rowcast.admin_permissions(text), rowcast.admin_config(text),
rowcast.admin_update_config(text, jsonb),
rowcast.admin_messages(
    text, text, text, text, text, timestamptz, timestamptz, integer, integer, text, bigint, bigint
),
rowcast.admin_statistics(text, text, text, timestamptz),
rowcast.channel_statistics(text, timestamptz),
rowcast.admin_check_subscribe(text, text),
rowcast.admin_publish(text, text[], text[], text[], text[], uuid[]),
rowcast.admin_delete_message(text, uuid),
rowcast.claim_deliveries(uuid, integer, interval, uuid[], integer[]),
rowcast.settle_deliveries(
    uuid, bigint[], integer[], integer[], integer[], text[], text[], integer[]
),
rowcast.return_deliveries(uuid, bigint[], integer[]),
rowcast.delivery_outlook(uuid[], integer[]), rowcast.raise_marks(uuid[]),
rowcast.admin_deliveries(text, uuid, text, integer, text),
rowcast.admin_delivery_attempts(text, bigint), rowcast.admin_redeliver(text, bigint),
rowcast.admin_endpoints(text, uuid), rowcast.admin_rotate_secret(text, uuid),
rowcast.node_beat(uuid, interval), rowcast.node_leave(uuid, interval),
rowcast.audience_write(uuid, text[], integer[]),
rowcast.presence_write(uuid, text[], text[], text[], integer[], boolean[], integer),
rowcast.presence_read(text[]),
rowcast.channel_audience(text), rowcast.channel_presence(text),
rowcast.admin_audience(text, text), rowcast.admin_presence(text, text),
rowcast.keep_handles(bytea[], text[]), rowcast.find_handles(bytea[]),
rowcast.census_answer(uuid, uuid, text[], text[], text[], integer[], integer)
to rowcast_bridge;

-- What is wrong with policies: read from the catalogues with the rights of whoever asks.
grant execute on function
rowcast.policy_mentions(oid), rowcast.policies_asked(), rowcast.policy_callers(oid[]),
rowcast.policy_label(name, oid), rowcast.policy_texts(), rowcast.policy_lint_expressions(),
rowcast.policy_lint_commands(), rowcast.policy_lint_tables(), rowcast.policy_lint_code(),
rowcast.policy_lint()
to rowcast_bridge;

-- The caller login: becomes a caller role inside these functions, and is nothing by itself.
grant execute on function
rowcast.impersonate(text, text, text), rowcast.check_subscribe(text, text[], text[]),
rowcast.publish_as(text, text[], text[], text[], text[], text[], uuid[]),
rowcast.history_as(text, text, text, integer, text, bigint),
rowcast.messages_as(
    text, text, text, text, text, text, timestamptz, timestamptz, integer, integer, text, bigint,
    bigint
),
rowcast.history_page(public.realtime_messages[], integer),
rowcast.channels_as(text, text, uuid, integer, integer, boolean),
rowcast.subscribable(text), rowcast.login_report(), rowcast.caller_roles()
to rowcast_caller;

-- Whoever may write policies may grant, so what was granted to everybody is taken back from them.
revoke all on public.realtime_channels, public.realtime_messages from public;

-- Caller roles. Column grants are the second lock behind the stamping trigger; channels show
-- everything but the webhook addresses. What a table-wide grant or default privileges opened
-- before is taken back, above all the key that signs cursors; a grant to insert, update or delete
-- channels is a team's own decision and stays.
do $$
declare
    v_role text;
begin
    for v_role in
        select quote_ident(r.rolname)
        from rowcast.settings as s, unnest(s.caller_roles) as n (name)
        join pg_catalog.pg_roles as r on r.rolname = n.name
    loop
        execute format('revoke all on all tables in schema rowcast from %s', v_role);
        execute format('revoke all on all sequences in schema rowcast from %s', v_role);
        execute format('revoke execute on all routines in schema rowcast from %s', v_role);
        execute format('revoke select, truncate, references, trigger on public.realtime_channels from %s', v_role);
        execute format('revoke all on public.realtime_messages from %s', v_role);
        execute format('grant select (id, pattern, description, enabled, is_public, owner_id, wildcard, options, created_at, updated_at) on public.realtime_channels to %s', v_role);
        execute format('grant select on public.realtime_messages to %s', v_role);
        execute format('grant insert (type, channel_name, event_name, payload, publish_key) on public.realtime_messages to %s', v_role);
        execute format('grant execute on function rowcast.publish(text, text, jsonb, text, uuid, boolean), rowcast.publish_many(jsonb), rowcast.may_subscribe(text), rowcast.open_channel(text) to %s', v_role);
        execute format('grant execute on function rowcast.history(uuid, text, text, text, timestamptz, timestamptz, integer, integer, xid8, bigint, bigint), rowcast.channel_by_id(text), rowcast.channel_json(uuid, text, text, text[], boolean, boolean, text, boolean, timestamptz, timestamptz, boolean, boolean), rowcast.iso_time(timestamptz) to %s', v_role);
    end loop;
end;
$$;

-- Leaves and parents may have been opened by default privileges of the database.
select rowcast.seal(i.inhrelid::regclass)
from pg_catalog.pg_inherits as i
join pg_catalog.pg_class as c on i.inhrelid = c.oid
where c.relnamespace = 'rowcast'::regnamespace and c.relkind in ('r', 'p');

select rowcast.make_leaves();

select rowcast.fresh_compile();
reset role;

delete from rowcast.code;
insert into rowcast.code (name, sha256) values
    ('10_context', 'ac55269eee9d9c57358b6611d17fb0b5d38e903c0ae299634cffbb39f2e4ef81'),
    ('11_patterns', '9b41fc094db4426702bbc89338e39e9097882355100a31942332c6377ce6697b'),
    ('12_segments', 'f3cc5da9a7f405a783120b712ec8fd9eebd49f7d258b56b33bb6892b80bbd6d3'),
    ('13_constants', '2a70300abf3444237b46153f7d32a0cea8751a4f3c833b8b816769a9823232f5'),
    ('14_times', '3b85568cea7cc0802898d396780140d6e3f62500dd830cf93c41fbcb0c7e84be'),
    ('20_channels', 'f976e25d0a3145bb8178a2fad0a907f5cff4a7ee680e243a16474642d7ecb81a'),
    ('21_wildcard', 'a02fa04d4565c506f0ee1525fd943e0898dacdd1815575a79725d3d5a352ba73'),
    ('30_stamp', '7b1bdf2aa37726ca28bd411769908a25234a9152a2d430d017c7431f10e0d525'),
    ('31_doorbell', 'cc598d0985c8a15ef77e50c513f977efa0a8d72c6b54cd51f60f3a7a96fa73c5'),
    ('32_publish', 'b9c841a6d9a047fc56b7e9d24fb5066f9320e73371674350a9acbed1aeaf334e'),
    ('33_attach', '34d8f32e07d738e33ea42e4c96b79f8aa58b049d52663aaac6a42065cd5398cb'),
    ('40_identity', '8fce6739deb689e63db468b1aee1db9743503149bd1dcd37459cd03042ae5004'),
    ('40_leaves_query', 'f0f6ef7247625e1f1f2a1d3d1e64a45962557f74d84b07cfaee30dbaa0fedee3'),
    ('41_fresh', 'e447f60ddead497aada71b7f532819f7c96e136ab3e640811655adaa28341582'),
    ('42_feed', '730a50731f8b4289880e343a80f8a18eb9c35de0aae03efd49afecad7f5d263d'),
    ('43_replay', '28000827a73383cafbefbf9b007da8c19ceb83ce058b85ed4da931d0b630dc52'),
    ('44_handles', '757b9873fcc7e5582edf4e3736ec289d90cce4aba16a3e466d55ff9c97f61ebf'),
    ('45_logins', '610f50301a37c1ab2175b8d2b0db03e6490093b63edadb06e7545f24b4b81c06'),
    ('50_access', 'a7abc031de00fffb98104eae9a7741c4f8e114188f0cc671c200c077a9bfac2a'),
    ('51_recheck', '71080ee9a8273967c38d3d035c74461d24d33722025e890db4bb67613f69c3d0'),
    ('52_recheck_on_change', 'a67e8e5217c76a893be95ddc367f6b69891a8cd4440792af1bd14df5f30d2034'),
    ('53_recheck_channels', '867d6b208bcd6824ee402286387f0f7aa89c44881b81dea3a5976acba2d8cb3a'),
    ('54_nodes', 'f121421fb33e0cac07a4f24036c55be4f12080951fea344d7f3abaa15c438c26'),
    ('55_audience', '41ac8c3c6c2af6f0d4efe22fdd4b3c27f9307b730a756228dc318eadf39ae883'),
    ('56_presence', '3059522a3d6048e0c591efeac268dc72d5567502547dedcd13e52fc7f83e4f78'),
    ('57_census', 'fcbfe8ed23fb8748289b7b22bac6a1733f02cde4ff57210ce4d3975a38728fad'),
    ('60_admin', '9470e6d9d0082524ea7d4170bb8c30e4dcbb0b665b8556f2ffd2a96bb877bc60'),
    ('61_channels_json', '8b092227df43a2c0d2df1c51b22ff3690432717df266cca21ab348131add26c9'),
    ('62_admin_channels', 'd59d4d40c9556610bac1d564ac8f672e1bce654e25f40d944fd009c3d104aa35'),
    ('63_admin_settings', 'dab8b739487b27fbbac7d95883307c12f8663f5e89e18d8fdfc741af36959562'),
    ('64_rollup', '5c89063ee56be7ab059ec316dfdbd1cfcd2e8528898e967bedbb23dae32c230e'),
    ('65_changes', 'f5d40928dd90d24642cdabb5b079b0c14745e14166f5d03bab26084e304c8c54'),
    ('66_statistics', '5d052dda65b5181c64f26e613c1153faf57cee4c82f464e1628cce493d82d0eb'),
    ('67_history', 'aa4b16d51540f96df2ac564554d83323794a9e12b9decd0438af87e01def6e4a'),
    ('68_callers', '2c434b6fc256e8683dcdb8a394f46ac63028f7104ee3201b1f70e4490e342697'),
    ('69_admin_messages', '058bdfb9b7158e000ac1a441671801a3afe4da559c7f97b99021849d499e0103'),
    ('70_leaves', 'bca058041f3d25d8a271ae54d031ccfc17414bc699ae521edd105357d59ddd83'),
    ('71_upkeep', '532d07324d7cf54c6f115436abe55b38e4f34f458e65a2c3901bc6f7339842fd'),
    ('72_delete', '493929657c93e88601a1f57331ded30f707a7bd6146c16179e751c1345c8fcd2'),
    ('73_status', '81172e5989a6d2d2e93c111041b3b52897ad0215629022c4b4633d04c1da5b4b'),
    ('74_losses', '43eef2a4e6cd0e0e5d885469935806e5181a742b2df6a6fa450323897708ccc9'),
    ('75_auth_schema', '6783b72f2da88d7239dfc9ee966d268cbb1c4e8647d15736b7482a88c5498a5e'),
    ('76_realtime_schema', 'ae1f799fd03949a35f73800e73e56c9724b05de086958ccf96717cf428a916fc'),
    ('77_doctor_access', 'a3c3af9a400c22b2f614757f71b60d84bfaf6aab0b4ffb64ca0e32d6ccc5848d'),
    ('80_endpoints', '0507da39b21ca8f3728ee65b614092b1ed198c0e6f0ef339df62240e15ad573a'),
    ('81_deliveries', 'd94d751ac1f70b4a8511df273362e7c1d500e34d2c51c811d808d5a0dd601110'),
    ('82_claim', 'd75c2fa4c845bb78725b7b73a7cd52d5fb5dd56d04f7031c596dc6bbcd35f88e'),
    ('83_marks', 'a72e0cc5923be4e79e26b54f1dfc350c4229ab43ca05774813e00f17e9655316'),
    ('84_settle', '1aac1dc186939dcde8d3d8089b3086cd4ec2af6d2d32e2216232f0c09fab4950'),
    ('85_endpoint_health', 'a87bc45eb9ec82afeaf56a08241445a0fa94663dd6a07aa20c9b75b9966e57f9'),
    ('86_redeliver', 'd3c25bd0d04c0028a3a8e9f41c5629cce24d5f8a00f336398f3b77e03be09591'),
    ('87_webhooks_admin', 'a61fdeeb085c3b53f4bcba8d8aeb2d33901e2f6dc9132c467a942ea31d56696d'),
    ('90_explain', '1e931f425bbe64fc4b1e8f941708fc1ce3962f93fe62c768a31dba586e136a8e'),
    ('91_imagine', 'f203c520b9e1ebf89b97b5e6e36b970ff7219902b4db488a8f3bf969529e554d'),
    ('92_explain_access', 'eb03668ccbfb7335e6c5427ca7bd9784d0fd27fb88696881cb777004da5f73b4'),
    ('93_policy_reach', 'f6abc1026c990dda3bfedaff6dbeeb315662393e0e17e92d27d2716108762435'),
    ('94_policy_lint_commands', '276725b5091d8985d71c6ca5c43bc16073a8b6bce3016173694f2f5e78de33c3'),
    ('95_policy_lint_conditions', '55ddba4498f8514863ecd5099b401b043fdfc0232ead898f8e30fc0fb200d2f1'),
    ('96_policy_lint_tables', '9ce1d2ba0aa538850b1a3768358b80a0d53d6a785eb86d1f7036e935b74f0791'),
    ('97_policy_lint_code', '490fc94f0ffd4ba4610a14c32a4d994f73c9863f8b7098c585f6dd846786c64c'),
    ('98_policy_lint', '88357fa5aeaf686b15db3115d509f960f5372e8033e92dac501d5c1e8dae8158'),
    ('99_grants', '941b3368d272011d1db82332adb574b45c0fa6f532e2508e2ad502fb79507e65');

set local role rowcast_owner;
select rowcast.adopt();
reset role;

commit;
