-- Public channels: anybody, also without a token, may listen to channels marked is_public. A team
-- marks them: `update realtime_channels set is_public = true where pattern = 'news:*'`.
-- Lets through: listening to every name that such a row governs. Publishing stays with SQL.
-- Cost: nothing to look up, both columns are in the row that is asked for.

drop policy if exists "Users can subscribe to public channels" on public.realtime_channels;
create policy "Users can subscribe to public channels"
on public.realtime_channels for select
using (enabled = true and is_public = true);
