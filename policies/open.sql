-- Open: whoever has a valid token, or the anonymous key, may listen and publish on every enabled
-- channel. For development and demos.
-- Lets through: all that a token or key can ask for. Messages can still not be forged: sender, time
-- and channel are stamped.
-- Cost: nothing to look up.

drop policy if exists open_subscribe on public.realtime_channels;
create policy open_subscribe on public.realtime_channels
for select to anon, authenticated
using (enabled);

drop policy if exists open_publish on public.realtime_messages;
-- rowcast:disable=RCL101 open means that everybody may publish
create policy open_publish on public.realtime_messages
for insert to anon, authenticated
with check (true);

drop policy if exists open_history on public.realtime_messages;
-- rowcast:disable=RCL101 open means that everybody may read
create policy open_history on public.realtime_messages
for select to anon, authenticated
using (true);
