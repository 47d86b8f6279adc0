-- Room members: users in room_members may listen and publish to `chat:{room}` of their rooms. A new
-- member may do so at once; a removed member loses the room at the next check, within a minute. One
-- channel row serves any number of rooms:
-- insert into realtime_channels (pattern) values ('chat:*');
-- Allows: members, in their rooms. Add history_for_subscribers to let them read past messages.
-- Cost: one primary key lookup per check and per message.

do $$
begin
    if to_regclass('public.room_members') is null then
        create table public.room_members (
            user_id text,
            room text,
            primary key (user_id, room)
        );
        alter table public.room_members enable row level security;
    end if;
end;
$$;

-- The policies below read the table with the rights of the caller, and callers see only their rows.
grant select on public.room_members to authenticated;

drop policy if exists room_members_own on public.room_members;
create policy room_members_own on public.room_members
for select to authenticated
using (user_id = (select rowcast.user_id()));

drop policy if exists room_members_subscribe on public.realtime_channels;
create policy room_members_subscribe on public.realtime_channels
for select to authenticated
using (
    enabled
    and rowcast.segment(1) = 'chat'
    and exists (
        select from public.room_members as m
        where m.user_id = (select rowcast.user_id()) and m.room = rowcast.segment(2)
    )
);

drop policy if exists room_members_publish on public.realtime_messages;
create policy room_members_publish on public.realtime_messages
for insert to authenticated
with check (
    rowcast.segment(channel_name, 1) = 'chat'
    and exists (
        select from public.room_members as m
        where
            m.user_id = (select rowcast.user_id())
            and m.room = rowcast.segment(realtime_messages.channel_name, 2)
    )
);
