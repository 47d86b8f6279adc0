-- Authenticated only: callers whose token has a subject may listen and publish on every enabled
-- channel; the anonymous key may do neither. For teams in which every user may see everything.
-- Allows: all channels, including future ones. Restrict exceptions with another recipe.
-- Cost: no lookup.

drop policy if exists authenticated_only_subscribe on public.realtime_channels;
create policy authenticated_only_subscribe on public.realtime_channels
for select to authenticated
using (enabled and auth.user_id() is not null);

drop policy if exists authenticated_only_publish on public.realtime_messages;
create policy authenticated_only_publish on public.realtime_messages
for insert to authenticated
with check (sender_id is not null);
