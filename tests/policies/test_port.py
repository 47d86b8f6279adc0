"""`rowcast policy port`: ported policies decide as the published ones did, on real databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rowcast.errors import UsageError
from rowcast.policy.database import Workbench
from rowcast.policy.lint.findings import Level
from rowcast.policy.lint.linting import lint_database, lint_sources
from rowcast.policy.porting.writing import Ported, port_policies
from rowcast.policy.source import parse_source
from support import pg
from support.messages import add_channel, only
from support.pg import as_role

Connection = psycopg.Connection[Any]

PUBLISHED = Path(__file__).parent / "published"
ALICE = "00000000-0000-4000-8000-00000000000a"
BOB = "00000000-0000-4000-8000-00000000000b"
PERSONAS = {"alice": ALICE, "bob": BOB, "anon": None}

# The other systems, reduced to what their policies use.
AUTH = """
create schema auth;
create schema realtime;
create function auth.uid() returns uuid language sql stable as
$$ select (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid $$;
grant usage on schema auth, realtime to anon, authenticated;
"""
SUPABASE = """
create table realtime.messages (
    id uuid default gen_random_uuid(), topic text not null, extension text not null, payload jsonb,
    event text, private boolean default true, inserted_at timestamp default now(),
    updated_at timestamp default now()
);
alter table realtime.messages enable row level security;
grant select, insert on realtime.messages to anon, authenticated;
create function realtime.topic() returns text language sql stable as
$$ select nullif(current_setting('rowcast.channel_name', true), '') $$;
"""
INSFORGE = """
create table realtime.channels (
    id uuid primary key default gen_random_uuid(), pattern text unique, description text,
    webhook_urls text[], enabled boolean default true, created_at timestamptz default now(),
    updated_at timestamptz default now()
);
create table realtime.messages (
    id uuid default gen_random_uuid(), event_name text, channel_id uuid, channel_name text,
    payload jsonb, sender_type text, sender_id uuid
);
grant select, insert on realtime.channels, realtime.messages to anon, authenticated;
create function realtime.channel_name() returns text language sql stable as
$$ select nullif(current_setting('rowcast.channel_name', true), '') $$;
"""
TABLES = f"""
create table rooms_users (user_id uuid, room_topic text);
create table if not exists documents (id bigint primary key, published boolean);
create table orders (id uuid, user_id uuid);
create table chat_members (user_id uuid, room_id uuid);
create table friends (user_id uuid);
grant select on rooms_users, documents, orders, chat_members, friends to anon, authenticated;
insert into rooms_users values ('{ALICE}', 'room:1'), ('{BOB}', 'room:2');
insert into documents values (1, true), (2, false);
insert into orders values ('{ALICE}', '{ALICE}'), ('{BOB}', '{BOB}');
insert into chat_members values ('{ALICE}', '{ALICE}'), ('{BOB}', '{BOB}'), ('{BOB}', '{ALICE}');
"""
NAMES = [
    "lobby",
    "room:1",
    "room:2",
    "doc:1",
    "doc:2",
    "doc:x",
    "other",
    f"user:{ALICE}",
    f"user:{BOB}",
    "user:x",
    f"order:{ALICE}",
    f"order:{BOB}",
    f"chat:{ALICE}",
    f"chat:{BOB}",
]
PATTERNS = ["lobby", "room:*", "doc:*", "other", "user:*", "order:*", "chat:*"]


def ported(system: str) -> Ported:
    return port_policies("published.sql", (PUBLISHED / f"{system}.sql").read_text(), system)


@pytest.fixture
def theirs(module_database: pg.Database, empty_database: pg.Database) -> Iterator[Connection]:
    """Create a database of the other system; `module_database` creates the roles."""
    with empty_database.connect(autocommit=False) as connection:
        connection.execute(AUTH)
        yield connection
        connection.rollback()


def ask(db: Connection, sub: str | None, name: str, query: str, *values: Any) -> bool | None:
    """Check as a caller; return None if a policy raised an error."""
    claims = {"sub": sub, "role": "authenticated"} if sub else None
    try:
        with as_role(db, "authenticated" if sub else "anon", claims, name):
            cursor = db.execute(query.encode(), values)
            row = cursor.fetchone() if cursor.description else (True,)
            return row is not None and bool(row[0])
    except psycopg.errors.InsufficientPrivilege as refusal:
        if "row-level security" in str(refusal):
            return False
        raise
    except psycopg.errors.DataError:
        return None


def supabase(db: Connection, sub: str | None, name: str) -> tuple[bool | None, bool | None]:
    """Select a made-up row, and insert one."""
    with db.transaction(force_rollback=True):
        insert = "insert into realtime.messages (topic, extension) values (%s, 'broadcast')"
        db.execute(insert, [name])
        listen = ask(db, sub, name, "select exists (select from realtime.messages)")
        return listen, ask(db, sub, name, insert, name)


def insforge(db: Connection, sub: str | None, name: str) -> tuple[bool | None, bool | None]:
    listen = ask(
        db,
        sub,
        name,
        "select exists (select from realtime.channels as c"
        " where c.enabled and (c.pattern = %s or %s like c.pattern))",
        name,
        name,
    )
    with db.transaction(force_rollback=True):
        insert = (
            "insert into realtime.messages (event_name, channel_name, sender_type, sender_id)"
            " values ('hello', %s, 'user', %s)"
        )
        return listen, ask(db, sub, name, insert, name, sub)


def ours(db: Connection, sub: str | None, name: str) -> tuple[bool | None, bool | None]:
    listen = ask(db, sub, name, "select rowcast.may_subscribe(%s)", name)
    with db.transaction(force_rollback=True):
        publish = "select rowcast.publish(%s, 'hello', '{}') is not null"
        return listen, ask(db, sub, name, publish, name)


@pytest.mark.parametrize(
    ("system", "installed", "asked", "refused"),
    [("supabase", SUPABASE, supabase, 2), ("insforge", INSFORGE, insforge, 2)],
)
def test_ported_policies_decide_as_before(
    tx: Connection, theirs: Connection, system: str, installed: str, asked: Any, refused: int
) -> None:
    new = ported(system)
    assert len(new.refused) == refused
    theirs.execute(installed.encode())
    theirs.execute(TABLES.encode())
    # Policies that cannot be ported are left out on the other side, too.
    published = (PUBLISHED / f"{system}.sql").read_text()
    theirs.execute(published.encode())
    for sentence in new.refused:
        name = sentence.split("'")[1]
        theirs.execute(f'drop policy "{name}" on realtime.messages'.encode())
    if system == "insforge":
        for pattern in PATTERNS:
            theirs.execute(
                "insert into realtime.channels (pattern) values (%s)", [pattern.replace("*", "%")]
            )
    tx.execute(TABLES.encode())
    tx.execute(new.text.encode())
    for pattern in PATTERNS:
        add_channel(tx, pattern)

    answers = set()
    for persona, sub in PERSONAS.items():
        for name in NAMES:
            before, after = asked(theirs, sub, name), ours(tx, sub, name)
            for was, now in zip(before, after, strict=True):
                # A cast that fails there, for all policies, gives an answer here.
                assert now is not None, (persona, name)
                assert was is None or now is was, (persona, name, before, after)
            answers.add(before)
    assert {(True, True), (False, False)} <= answers
    assert any(None in answer for answer in answers)


@pytest.mark.parametrize("system", ["supabase", "insforge"])
def test_what_was_ported_has_no_error(tx: Connection, system: str) -> None:
    new = ported(system).text
    found = lint_sources([parse_source("ported.sql", new)])
    assert [f for f in found if f.level is Level.ERROR and f.disabled is None] == []
    tx.execute(TABLES.encode())
    tx.execute(new.encode())
    errors = [f for f in lint_database(Workbench(tx)) if f.level is Level.ERROR]
    assert errors == []


@pytest.mark.parametrize("system", ["supabase", "insforge"])
def test_what_was_ported_runs_again(tx: Connection, system: str) -> None:
    new = ported(system).text
    tx.execute(TABLES.encode())
    tx.execute(new.encode())
    count = "select count(*) from pg_catalog.pg_policies"
    once = only(tx, count)
    tx.execute(new.encode())
    assert only(tx, count) == once


def of(system: str, text: str) -> Ported:
    return port_policies("old.sql", text, system)


LISTEN = "create policy p on realtime.messages for select to authenticated using ({});"


@pytest.mark.parametrize(
    ("system", "text", "why"),
    [
        ("supabase", LISTEN.format("extension = 'postgres_changes'"), "rowcast.attach()"),
        ("supabase", LISTEN.format("extension = 'presence'"), "presence alone"),
        ("supabase", LISTEN.format("payload ->> 'a' = 'b'"), "payload is not known"),
        (
            "supabase",
            LISTEN.format("substring(realtime.topic() from 'room:(.*)')::uuid = auth.uid()"),
            "RCL201",
        ),
        (
            "supabase",
            "create policy p on realtime.messages for delete using (true);",
            "never change or delete",
        ),
        (
            "supabase",
            "create policy p on realtime.subscription using (true);",
            "does not have a counterpart",
        ),
        ("supabase", "alter policy p on realtime.messages using (true);", "write CREATE POLICY"),
        ("supabase", "grant select on realtime.messages to anon;", "grants what callers need"),
        ("supabase", "create index on realtime.messages (topic);", "tables of the other system"),
        ("insforge", "create policy p on realtime.messages using (true);", "are separate here"),
        (
            "insforge",
            LISTEN.format("sender_id in (select user_id from friends)"),
            "sender_id is text here",
        ),
        ("insforge", LISTEN.format("channel_id is not null"), "RCL104"),
    ],
)
def test_what_cannot_be_ported_is_said_and_kept_as_a_comment(
    system: str, text: str, why: str
) -> None:
    new = of(system, text)
    assert len(new.refused) == 1
    assert why in new.refused[0]
    assert all(line.startswith("--") for line in new.text.splitlines())
    assert text in "\n".join(line[3:] for line in new.text.splitlines())


@pytest.mark.parametrize(
    ("system", "condition", "table", "wanted"),
    [
        ("supabase", "extension = 'broadcast'", "channels", "using (enabled)"),
        ("supabase", "'broadcast' = extension or private = false", "channels", "using (enabled)"),
        ("supabase", "not extension = 'presence' and topic = 'a'", "channels", "name() = 'a'"),
        (
            "supabase",
            "extension = any (array['broadcast', 'presence']) and (select topic()) = 'a'",
            "channels",
            "using ((select rowcast.channel_name()) = 'a')",
        ),
        (
            "supabase",
            "(extension = 'broadcast' and topic = 'a') or (extension = 'presence' and topic = 'b')",
            "channels",
            "using (rowcast.channel_name() = 'a')",
        ),
        (
            "supabase",
            "exists (select 1 from t where messages.extension = 'broadcast')",
            "channels",
            "exists (select 1 from t)",
        ),
        ("supabase", "split_part(topic, ':', 2)::int = 1", "channels", "segment_int(2) = 1"),
        ("supabase", "split_part(topic, '-', 2) = 'a'", "channels", "name(), '-', 2) = 'a'"),
        ("supabase", "split_part(topic, ':', 2)::text = 'a'", "channels", "segment(2) = 'a'"),
        # An alias that equals the name of the other table means the aliased table.
        (
            "supabase",
            "exists (select 1 from t as messages where messages.extension = 'presence')",
            "channels",
            "messages.extension = 'presence'",
        ),
        ("insforge", "channels.pattern = 'user:%:in'", "channels", "pattern = 'user:*:in'"),
        # The column pattern of another table is not ours.
        (
            "insforge",
            "exists (select 1 from t where t.pattern = 'a%')",
            "channels",
            "t.pattern = 'a%'",
        ),
    ],
)
def test_a_condition_becomes(system: str, condition: str, table: str, wanted: str) -> None:
    source = "messages" if system == "supabase" else table
    new = of(system, LISTEN.format(condition).replace("messages for", f"{source} for"))
    assert new.refused == ()
    assert f"on public.realtime_{table}" in new.text
    assert wanted in " ".join(new.text.split())


def test_a_bare_name_that_may_be_the_inner_tables_stays() -> None:
    """Taking it as the outer column could allow what the inner one refused."""
    text = LISTEN.format("exists (select 1 from t where extension = 'presence')")
    new = of("supabase", text)
    assert "where extension = 'presence'" in new.text
    assert any("extension inside a sub-select" in remark for remark in new.remarks)
    assert of("supabase", "create table t (a int);" + text).refused


def test_what_is_not_about_realtime_stays_as_it_is() -> None:
    text = (
        "-- Rooms.\nCREATE TABLE Rooms (Id int); -- one\n\n"
        "CREATE POLICY own ON rooms USING (TRUE);\n-- The end.\n"
    )
    new = of("supabase", text)
    assert new.text.replace("\n\n", "\n") == text.replace("\n\n", "\n")
    assert new == of("insforge", text)


def test_drops_and_enabling_are_done_by_the_new_file() -> None:
    new = of(
        "supabase",
        "alter table realtime.messages enable row level security;"
        "drop policy if exists p on realtime.messages;" + LISTEN.format("topic = 'a'"),
    )
    assert new.text.startswith("drop policy if exists p on public.realtime_channels;\ncreate")


def test_names_keep_their_quotes() -> None:
    text = LISTEN.format("topic = 'a'").replace("policy p", 'policy "a ""b"" É"')
    assert 'create policy "a ""b"" É"' in of("supabase", text).text
    assert 'create policy "select"' in of("supabase", text.replace('"a ""b"" É"', '"select"')).text


def test_a_policy_for_everything_says_that_it_was_so_before() -> None:
    text = "create policy p on realtime.messages for insert to anon with check (true);"
    new = of("supabase", text)
    assert "-- rowcast:disable=RCL101 as before" in new.text
    assert "with check (true)" in new.text


def test_a_payload_is_known_here_and_was_not_there() -> None:
    condition = "pg_column_size(payload) < 1000"
    text = f"create policy p on realtime.messages for insert to anon with check ({condition});"
    new = of("supabase", text)
    assert "pg_column_size(realtime_messages.payload) < 1000" in new.text
    assert any("payload is that of the message" in remark for remark in new.remarks)


def test_a_file_that_is_not_sql_is_refused_with_its_place() -> None:
    with pytest.raises(UsageError, match=r"old\.sql:2:8: syntax error"):
        of("supabase", "select 1;\ncreate plicy p")


def test_json_in_a_condition_survives() -> None:
    condition = "(auth.jwt() -> 'app_metadata' ->> 'it''s') = any (array['a', 'b']) and topic = 'x'"
    new = of("supabase", LISTEN.format(condition))
    assert "'it''s'" in new.text
    assert json.dumps(new.text)
