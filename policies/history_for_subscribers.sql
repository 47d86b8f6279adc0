-- History for subscribers: who may listen to a name now may also read what was said there before.
-- The question is asked for the name of each message. Asking by channel_id instead would show
-- every room of `chat:*` to whoever may join one of them, because they share one row.
-- Lets through: reading messages. Combine with a recipe for who may listen.
-- Cost: one lookup and one round of the channel's policies per message read, or, over REST, per run
-- of messages of one name; so ask for one channel at a time.

drop policy if exists history_for_subscribers on public.realtime_messages;
create policy history_for_subscribers on public.realtime_messages
for select to anon, authenticated
using (rowcast.may_subscribe(channel_name));
