-- What live revocation and subscriptions of whole patterns need.

-- It answers more than it did, and the result of a function cannot be replaced.
drop function if exists rowcast.check_subscribe(text, text[], text[]);

-- A resumed pattern asks for losses of all its names, which only the newest of them can answer.
create index expired_xid on rowcast.expired (xid);
create index expired_broadcast_xid on rowcast.expired_broadcast (xid);
