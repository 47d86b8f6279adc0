-- Policies for realtime.messages in the manner of Supabase's documentation.

alter table realtime.messages enable row level security;

create policy "authenticated can receive broadcasts"
on "realtime"."messages"
for select
to authenticated
using ( realtime.messages.extension = 'broadcast' and realtime.topic() = 'lobby' );

create policy "authenticated can send broadcasts"
on "realtime"."messages"
for insert
to authenticated
with check ( realtime.messages.extension = 'broadcast' and (select realtime.topic()) = 'lobby' );

-- Members of a room may listen, and see who is there.
create policy "room members can read"
on realtime.messages
for select
to authenticated
using (
  exists (
    select user_id
    from rooms_users
    where user_id = (select auth.uid())
      and room_topic = (select realtime.topic())
      and realtime.messages.extension in ('broadcast', 'presence')
  )
);

create policy "room members can write"
on realtime.messages
for insert
to authenticated
with check (
  exists (
    select user_id
    from rooms_users
    where user_id = (select auth.uid())
      and room_topic = (select realtime.topic())
      and realtime.messages.extension in ('broadcast', 'presence')
  )
);

create policy "own topic"
on realtime.messages
for all
to authenticated
using ( split_part((select realtime.topic()), ':', 1) = 'user'
        and nullif(split_part(realtime.topic(), ':', 2), '')::uuid = (select auth.uid()) );

create table if not exists documents (id bigint primary key, published boolean);
grant select on documents to anon, authenticated;

create policy "topic of a document"
on realtime.messages for select to anon, authenticated
using (
  private
  and (extension = 'presence' or exists (
    select 1 from documents d
    where d.id = nullif(split_part(topic, ':', 2), '')::bigint and d.published
  ) and topic like 'doc:%')
);

create policy "who is here" on realtime.messages for select to anon
using ( extension = 'presence' );

create policy "rows" on realtime.messages for select to authenticated
using ( extension = 'postgres_changes' );
