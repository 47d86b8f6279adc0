-- User topics: `user:alice`, `user:alice:inbox` and all names below them belong to alice. Only she
-- may listen to them and publish to them, from any device; others go through SQL, such as a trigger
-- that notifies her. Create the channels once, for all users:
-- insert into realtime_channels (pattern) values ('user:*'), ('user:*:**');
-- Allows: one subject per name; callers without a subject are refused.
-- Cost: no lookup; the name and the token decide.

drop policy if exists user_topics_subscribe on public.realtime_channels;
create policy user_topics_subscribe on public.realtime_channels
for select to authenticated
using (
    enabled
    and rowcast.segment(1) = 'user'
    and rowcast.segment(2) = rowcast.user_id()
);

drop policy if exists user_topics_publish on public.realtime_messages;
create policy user_topics_publish on public.realtime_messages
for insert to authenticated
with check (
    rowcast.segment(channel_name, 1) = 'user'
    and rowcast.segment(channel_name, 2) = rowcast.user_id()
);
