-- Owned channels: who owns a channel row may listen to every name that it governs. The owner is
-- the subject of the token under which the row was inserted, or whom a team writes into owner_id.
-- Lets through: one user per row; without a subject nobody. Publishing stays with SQL.
-- Cost: one comparison with the row that is asked for.

drop policy if exists "Users can subscribe to their own channels" on public.realtime_channels;
create policy "Users can subscribe to their own channels"
on public.realtime_channels for select
using (owner_id = auth.user_id());
