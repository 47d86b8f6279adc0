-- Where somebody publishes all tables for logical replication, nothing can be deleted from one that
-- has neither a primary key nor this, and the fold does delete from these. Leaves get theirs from
-- watch_leaf(). Costs nothing where nothing is replicated.
alter table rowcast.removal replica identity full;
alter table rowcast.delivery_change replica identity full;
