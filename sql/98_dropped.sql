-- Functions that older versions had under these names, and nothing calls any more.
--
-- Here and not in a migration, which is committed earlier: if the code then has to wait for a lock,
-- what still runs would call a function that is gone.
--
-- One statement, because some of them depend on others.

drop function if exists
rowcast.candidates(text),
rowcast.delivery_outlook(uuid[], integer[]),
rowcast.doze(),
rowcast.endpoint_heard(uuid, integer, integer, integer, boolean, interval),
rowcast.fold(integer),
rowcast.fresh(xid8[], xid8[], bigint),
rowcast.fresh_compile(),
rowcast.fresh_leaves(),
rowcast.fresh_span(xid8[], xid8[], bigint, bigint, xid8, timestamptz),
rowcast.fresh_spans(xid8[], xid8[], bigint, bigint, xid8, timestamptz),
rowcast.governing(text),
rowcast.imagined_channel(text),
rowcast.imagined_message(text, text, text, text, text, jsonb),
rowcast.keep_bodies(text),
rowcast.leaves_query(text[], boolean),
rowcast.lost(text, xid8, boolean),
rowcast.others_snapshot(),
rowcast.policy_lint_code(),
rowcast.policy_lint_commands(),
rowcast.policy_lint_expressions(),
rowcast.policy_lint_tables(),
rowcast.raise_marks(uuid[]),
rowcast.rewritten(text[]),
rowcast.ring(),
rowcast.seal(regclass),
rowcast.spans(pg_snapshot, pg_snapshot),
rowcast.wake(),
rowcast.wants_bare(jsonb),
rowcast.watch_leaf(text),
rowcast.writers();
