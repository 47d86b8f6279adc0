-- Where clients that keep no cursor left off. Unlogged: after a crash they start live, and are
-- told so. The key is a digest of subject, handle and channel: rows are small, whatever those are.
create unlogged table rowcast.handle (
    key bytea primary key check (octet_length(key) = 32),
    cursor text not null check (octet_length(cursor) <= 65536),
    kept_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);
create index handle_kept_at on rowcast.handle (kept_at);
