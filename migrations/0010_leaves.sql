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
