-- Owned channels: the owner of a channel row may listen to every name that it governs. The owner is
-- the subject of the token that inserted the row, or the user that a team writes into owner_id.
-- Allows: one user per row; callers without a subject are refused. Only SQL can publish.
-- Cost: one comparison with the channel row.

drop policy if exists "Users can subscribe to their own channels" on public.realtime_channels;
create policy "Users can subscribe to their own channels"
on public.realtime_channels for select
using (owner_id = auth.user_id());
