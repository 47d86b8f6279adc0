-- Open: every valid token, and the anonymous key, may listen and publish on every enabled channel.
-- For development and demos.
-- Allows: everything that a token or key can request. Messages still cannot be forged: the server
-- stamps sender, time and channel.
-- Cost: no lookup.

drop policy if exists open_subscribe on public.realtime_channels;
create policy open_subscribe on public.realtime_channels
for select to anon, authenticated
using (enabled);

drop policy if exists open_publish on public.realtime_messages;
-- rowcast:disable=RCL101 every caller may publish
create policy open_publish on public.realtime_messages
for insert to anon, authenticated
with check (true);

drop policy if exists open_history on public.realtime_messages;
-- rowcast:disable=RCL101 every caller may read
create policy open_history on public.realtime_messages
for select to anon, authenticated
using (true);
