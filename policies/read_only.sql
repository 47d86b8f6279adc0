-- Read only: every valid token, and the anonymous key, may listen on every enabled channel, and
-- only SQL can publish: triggers made by rowcast.attach(), rowcast.publish_as_system(), and the
-- owner of the tables. For dashboards, prices, scores.
-- Allows: listening on all channels. The restrictive policy keeps publishing closed even if another
-- recipe would open it.
-- Cost: no lookup.

drop policy if exists read_only_subscribe on public.realtime_channels;
create policy read_only_subscribe on public.realtime_channels
for select to anon, authenticated
using (enabled);

drop policy if exists read_only_publish on public.realtime_messages;
create policy read_only_publish on public.realtime_messages
as restrictive for insert to anon, authenticated
with check (false);
