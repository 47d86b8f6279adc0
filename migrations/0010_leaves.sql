-- Which state of the registry of leaves this is: one more after every change of it.
--
-- A drain reads this row anyway, in its own snapshot. So it knows that the compiled query still
-- names every leaf it needs without looking at all of them, which took a third of a drain.
alter table rowcast.origin add column leaves bigint not null default 0;

-- What this replaces takes other arguments now.
drop function if exists rowcast.fresh(xid8[], xid8[], bigint);
drop function if exists rowcast.fresh_leaves();
drop function if exists rowcast.leaves_query(text[], boolean);
