-- The row that the feed answers, named once: the compiled query, the feed and its readers agree on
-- it. A column that is added later stands at the end, and `select *` of an older bridge ignores it.
create type rowcast.feed_row as (
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
);

comment on type rowcast.feed_row is
'One row of rowcast.feed(): a message, a signal, a change of presence, or one of the rows `snapshot` and `more`.';
