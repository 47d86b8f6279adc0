-- Members: users in channel_members may publish to the channel. A membership belongs to a channel
-- row, so it covers every name that the row governs: give each room its own row, or compare
-- rowcast.segment(channel_name, 2) with a table of rooms instead.
-- Allows: publishing by members. Add another recipe for listening.
-- Cost: one primary key lookup per message.

do $$
begin
    if to_regclass('public.channel_members') is null then
        create table public.channel_members (
            channel_id uuid references public.realtime_channels (id) on delete cascade,
            user_id text,
            primary key (channel_id, user_id)
        );
        alter table public.channel_members enable row level security;
    end if;
end;
$$;

-- The policy below reads the table with the rights of the caller, and callers see only their rows.
grant select on public.channel_members to anon, authenticated;

drop policy if exists "Users can see their own memberships" on public.channel_members;
create policy "Users can see their own memberships"
on public.channel_members for select to anon, authenticated
using (user_id = (select auth.user_id()));

drop policy if exists "Users can publish to their channels" on public.realtime_messages;
create policy "Users can publish to their channels"
on public.realtime_messages for insert
with check (
    exists (
        select 1 from public.channel_members
        where channel_id = realtime_messages.channel_id
            and user_id = auth.user_id()
    )
);
