"""The names of schema `realtime`, called as applications and triggers for Supabase call them."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from support import pg
from support.messages import add_channel, messages, only, refused
from support.pg import as_role

Connection = psycopg.Connection[Any]

ALICE = {"sub": "alice", "role": "authenticated"}

# As the documentation of Supabase has it.
TRIGGER = """
create table public.posts (id bigint primary key, title text);
grant insert, update, delete on public.posts to authenticated;
create or replace function public.posts_changes()
returns trigger
security definer
language plpgsql
as $$
begin
    perform realtime.broadcast_changes(
        'topic:' || coalesce(NEW.id, OLD.id)::text,
        TG_OP,
        TG_OP,
        TG_TABLE_NAME,
        TG_TABLE_SCHEMA,
        NEW,
        OLD
    );
    return null;
end;
$$;
create trigger handle_posts_changes
after insert or update or delete on public.posts
for each row execute function public.posts_changes();
"""


@pytest.fixture
def topics(tx: Connection) -> Connection:
    add_channel(tx, "topic:*")
    return tx


@pytest.mark.parametrize(
    "call",
    [
        "realtime.send(jsonb_build_object('hello', 'world'), 'event', 'topic:1', false)",
        "realtime.send(jsonb_build_object('hello', 'world'), 'event', 'topic:1')",
        """realtime.send(payload := '{"hello": "world"}', event := 'event', topic := 'topic:1',
        private := true)""",
        "realtime.send(topic => 'topic:1', event => 'event', payload => '{\"hello\": \"world\"}')",
    ],
)
def test_send_is_a_broadcast_however_it_is_called(topics: Connection, call: str) -> None:
    topics.execute(f"select {call}")
    (message,) = messages(topics, "topic:1")
    assert (message.type, message.event_name) == ("broadcast", "event")
    assert message.payload == {"hello": "world"}


def test_a_message_that_cannot_be_sent_is_an_error(topics: Connection) -> None:
    """A message that cannot be sent raises an error and never only a warning."""
    with refused(topics, "RCN01"):
        topics.execute("select realtime.send('{}', 'event', 'not:made:this')")


def test_send_obeys_the_policies(topics: Connection) -> None:
    with refused(topics, "42501"), as_role(topics, "authenticated", ALICE):
        topics.execute("select realtime.send('{}', 'event', 'topic:1', false)")


def test_the_documented_trigger_publishes_what_a_user_changes(topics: Connection) -> None:
    topics.execute(TRIGGER)
    topics.execute("create policy all_posts on public.posts to authenticated using (true)")
    with as_role(topics, "authenticated", ALICE):
        topics.execute("insert into public.posts values (7, 'one')")
        topics.execute("update public.posts set title = 'two'")
        topics.execute("delete from public.posts")
    found = messages(topics, "topic:7")
    assert [m.event_name for m in found] == ["INSERT", "UPDATE", "DELETE"]
    assert {m.sender_type for m in found} == {"system"}
    one, two = {"id": 7, "title": "one"}, {"id": 7, "title": "two"}
    for message, record, old in zip(found, (one, two, None), (None, one, two), strict=True):
        payload = dict(message.payload)
        assert len(payload.pop("id")) == 36
        assert payload == {
            "schema": "public",
            "table": "posts",
            "operation": message.event_name,
            "record": record,
            "old_record": old,
        }


def test_broadcast_changes_takes_its_arguments_by_name(topics: Connection) -> None:
    topics.execute("create table public.posts (id bigint)")
    topics.execute(
        "create function public.changed() returns trigger language plpgsql as $$ begin"
        " perform realtime.broadcast_changes(topic_name => 'topic:1', event_name => 'changed',"
        "  operation => tg_op, table_name => tg_table_name, table_schema => tg_table_schema,"
        '  "new" => new, "old" => old, level => tg_level);'
        " return null; end $$"
    )
    topics.execute(
        "create trigger changed after insert on public.posts for each row"
        " execute function public.changed()"
    )
    topics.execute("insert into public.posts values (1)")
    (message,) = messages(topics, "topic:1")
    assert message.payload["record"] == {"id": 1}
    topics.execute(
        "create or replace trigger changed after insert on public.posts for each statement"
        " execute function public.changed()"
    )
    with refused(topics, "0A000"):
        topics.execute("insert into public.posts values (2)")


def test_topic_is_the_channel_that_is_asked_for(tx: Connection) -> None:
    with as_role(tx, "authenticated", ALICE, "topic:9"):
        assert only(tx, "select realtime.topic()") == "topic:9"
        assert only(tx, "select realtime.channel_name()") == "topic:9"
        assert only(tx, "select starts_with((select realtime.topic()), 'topic:')") is True


def test_publish_is_that_of_insforge(topics: Connection) -> None:
    found = only(topics, "select realtime.publish('topic:1', 'said', %s)", [json.dumps({"a": 1})])
    (message,) = messages(topics, "topic:1")
    assert (message.id, message.type) == (found, "message")


def test_a_schema_of_somebody_else_is_left_alone(empty_database: pg.Database) -> None:
    with empty_database.connect() as connection:
        connection.execute("create schema realtime")
        connection.execute("create table realtime.messages (mine text)")
    pg.load_rowcast(empty_database.url, empty_database.server)
    with empty_database.connect() as connection:
        assert only(connection, "select count(*) from pg_proc where pronamespace ="
                    " 'realtime'::regnamespace") == 0  # fmt: skip
        connection.execute("insert into realtime.messages values ('still')")
