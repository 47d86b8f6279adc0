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
