-- Read only: whoever has a valid token, or the anonymous key, may listen on every enabled channel,
-- and nobody may publish but SQL: triggers made by rowcast.attach(), rowcast.publish_as_system(),
-- and the owner of the tables. For dashboards, prices, scores.
-- Lets through: listening, on all channels. The restrictive policy keeps publishing closed even
-- where another recipe would open it.
-- Cost: nothing to look up.

drop policy if exists read_only_subscribe on public.realtime_channels;
create policy read_only_subscribe on public.realtime_channels
for select to anon, authenticated
using (enabled);

drop policy if exists read_only_publish on public.realtime_messages;
create policy read_only_publish on public.realtime_messages
as restrictive for insert to anon, authenticated
with check (false);
