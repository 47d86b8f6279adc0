-- Public channels: all callers, also without a token, may listen to channels marked is_public. A
-- team marks them: `update realtime_channels set is_public = true where pattern = 'news:*'`.
-- Allows: listening to every name that such a row governs. Only SQL can publish.
-- Cost: no lookup; both columns are in the channel row.

drop policy if exists "Users can subscribe to public channels" on public.realtime_channels;
create policy "Users can subscribe to public channels"
on public.realtime_channels for select
using (enabled = true and is_public = true);
