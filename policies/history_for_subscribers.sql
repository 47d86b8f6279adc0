-- History for subscribers: callers that may listen to a name now may also read its past messages.
-- The policy checks the name of each message. Checking channel_id instead would show every room of
-- `chat:*` to members of one room, because all rooms share one row.
-- Allows: reading messages. Combine with a recipe for listening.
-- Cost: one lookup and one evaluation of the channel's policies per message read, or, over REST,
-- per run of messages of one name; so request one channel at a time.

drop policy if exists history_for_subscribers on public.realtime_messages;
create policy history_for_subscribers on public.realtime_messages
for select to anon, authenticated
using (rowcast.may_subscribe(channel_name));
