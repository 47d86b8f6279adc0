"""Who may call what, and that neither grants of the database nor planted names open anything."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from support.messages import add_channel, only, publish, refused
from support.pg import as_role

Connection = psycopg.Connection[Any]

SQL = Path(__file__).parents[2] / "sql"

PUBLISHING = "publish(text,text,jsonb,text,uuid,boolean) publish_many(jsonb)"
READING = (
    "may_subscribe(text) open_channel(text) channel_by_id(text) iso_time(timestamptz)"
    " history(uuid,text,text,text,timestamptz,timestamptz,integer,integer,xid8,bigint,bigint)"
    " channel_json(uuid,text,text,text[],boolean,boolean,text,boolean,timestamptz,timestamptz,"
    "boolean,boolean)"
)
# Role → functions of schema rowcast that are granted to it, never through another role.
LINTING = (
    "policy_mentions(oid) policies_asked() policy_callers(oid[]) policy_label(name,oid)"
    " policy_texts() policy_context_texts() policy_lint()"
)
MAY_EXECUTE = {
    "public": "channel_name() email() is_name(text) is_pattern(text) jwt() role()"
    " segment(integer) segment(text,integer) segment_int(integer) segment_int(text,integer)"
    " segment_uuid(integer) segment_uuid(text,integer) uid() user_id()",
    "anon": f"{PUBLISHING} {READING}",
    "authenticated": f"{PUBLISHING} {READING}",
    "rowcast_publisher": f"{PUBLISHING} publish_as_system(text,text,jsonb,text,uuid,boolean)"
    " attach(regclass,text,text[],text[],text,boolean) detach(regclass,text) publish_row()"
    " resolve(text) open_channel(text) audience(text) presence_state(text) recheck(text,text)"
    " kick(text,boolean)"
    " recheck_rows() recheck_on_change(regclass,text,text,text[]) recheck_detach(regclass)",
    "rowcast_bridge": f"{LINTING} identity() feed(text,uuid,timestamptz,integer,integer)"
    " replay(text[],text[],uuid[],timestamptz[],text,uuid) open_writers() sleep_begin()"
    " sleep_end() probe(text)"
    " upkeep() status() doctor() boot_id() login_report() caller_roles() statistics_update(integer)"
    " admin_channels(text,uuid,integer,integer,boolean) admin_create_channel(text,jsonb,boolean)"
    " admin_update_channel(text,uuid,jsonb,boolean) admin_delete_channel(text,uuid)"
    " admin_permissions(text) admin_config(text) admin_update_config(text,jsonb)"
    " admin_messages(text,text,text,text,text,timestamptz,timestamptz,integer,integer,text,bigint,"
    "bigint) admin_statistics(text,text,text,timestamptz) channel_statistics(text,timestamptz)"
    " admin_check_subscribe(text,text)"
    " admin_publish(text,text[],text[],text[],text[],uuid[]) admin_delete_message(text,uuid)"
    " claim_deliveries(uuid,integer,interval,uuid[],integer[])"
    " settle_deliveries(uuid,bigint[],integer[],integer[],integer[],text[],text[],integer[])"
    " return_deliveries(uuid,bigint[],integer[]) next_delivery(uuid[],integer[])"
    " move_claim_marks(uuid[]) admin_deliveries(text,uuid,text,integer,text)"
    " admin_delivery_attempts(text,bigint) admin_redeliver(text,bigint)"
    " admin_endpoints(text,uuid) admin_rotate_secret(text,uuid)"
    " node_beat(uuid,interval) node_leave(uuid,interval) audience_write(uuid,text[],integer[])"
    " presence_write(uuid,text[],text[],text[],integer[],boolean[],integer) presence_read(text[])"
    " channel_audience(text) channel_presence(text)"
    " admin_audience(text,text) admin_presence(text,text)"
    " keep_handles(bytea[],text[]) find_handles(bytea[])"
    " census_answer(uuid,uuid,text[],text[],text[],integer[],integer)",
    "rowcast_caller": "impersonate(text,text,text) check_subscribe(text,text[],text[])"
    " publish_as(text,text[],text[],text[],text[],text[],uuid[])"
    " history_as(text,text,text,integer,text,bigint) subscribable(text) login_report()"
    " caller_roles()"
    " messages_as(text,text,text,text,text,text,timestamptz,timestamptz,integer,integer,text,"
    "bigint,bigint) history_page(realtime_messages[],integer)"
    " channels_as(text,text,uuid,integer,integer,boolean)",
}
GRANTED = """
select coalesce(r.rolname, 'public'), p.oid::regprocedure::text
from pg_catalog.pg_proc as p
cross join aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a
left join pg_catalog.pg_roles as r on r.oid = a.grantee
where p.pronamespace = 'rowcast'::regnamespace and a.grantee <> p.proowner
"""
TABLES = """
select c.oid::regclass::text from pg_catalog.pg_class as c
where c.relkind in ('r', 'p') and c.relnamespace = 'rowcast'::regnamespace
"""


def test_each_role_may_execute_what_the_table_says(tx: Connection) -> None:
    real: dict[str, set[str]] = {}
    for role, signature in tx.execute(GRANTED):
        short = signature.replace("timestamp with time zone", "timestamptz")
        real.setdefault(role, set()).add(short.removeprefix("rowcast."))
    assert real == {role: set(said.split()) for role, said in MAY_EXECUTE.items()}


def assert_closed(tx: Connection, role: str) -> None:
    """No table of the machinery, and no leaf, can be reached by the role."""
    for (table,) in tx.execute(TABLES).fetchall():
        for command in (
            f"select from {table}",
            f"delete from {table}",
            f"truncate {table}",
            f"insert into {table} default values",
        ):
            with refused(tx, "42501", "permission denied"), as_role(tx, role):
                tx.execute(command.encode())


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_callers_reach_no_table_of_the_machinery(tx: Connection, role: str) -> None:
    assert_closed(tx, role)


def test_default_privileges_of_the_database_open_no_new_leaf(tx: Connection) -> None:
    """Hosted databases grant everything that is created to `anon`; roles may have odd names."""
    odd = f'Web "{uuid4().hex}"'
    quoted = only(tx, "select quote_ident(%s)", [odd])
    tx.execute(f"create role {quoted}".encode())
    tx.execute(f"grant usage on schema rowcast to anon, {quoted}".encode())
    tx.execute(
        "alter default privileges for role rowcast_owner"
        f" grant all on tables to anon, {quoted}, public".encode()
    )
    leaves = only(tx, "select count(*) from rowcast.leaf")
    tx.execute("select rowcast.make_leaf(max(to_at), max(to_at) + '1 day') from rowcast.leaf")
    assert only(tx, "select count(*) from rowcast.leaf") == leaves + 1
    assert_closed(tx, "anon")
    assert_closed(tx, odd)


@pytest.mark.parametrize("grantee", ["anon", "public"])
def test_running_the_grants_again_takes_back_what_was_opened(tx: Connection, grantee: str) -> None:
    add_channel(tx, "room:*", webhook_urls=["https://example.com/secret"])
    tx.execute(f"grant all on all tables in schema public to {grantee}".encode())
    tx.execute(f"grant all on all tables in schema rowcast to {grantee}".encode())
    with as_role(tx, "rowcast_owner"):
        tx.execute((SQL / "99_grants.sql").read_bytes())
    for command in (
        "select webhook_urls from public.realtime_channels",
        "truncate public.realtime_channels",
        "select * from public.realtime_channels",
        "truncate public.realtime_messages",
        "update public.realtime_messages set payload = '1'",
        "delete from public.realtime_messages",
        "insert into public.realtime_messages (sender_id) values ('mallory')",
    ):
        with refused(tx, "42501", "permission denied"), as_role(tx, "anon"):
            tx.execute(command.encode())
    leaves = "select relid from pg_partition_tree('public.realtime_messages') where level > 0"
    assert (
        tx.execute(
            f"select relid::regclass from ({leaves}) as l"
            " where has_table_privilege('anon', relid, 'select, insert, truncate, delete')".encode()
        ).fetchall()
        == []
    )
    with as_role(tx, "anon"):
        assert tx.execute("select id, pattern from public.realtime_channels").fetchall() == []


@pytest.mark.parametrize("grantee", ["anon", "public"])
def test_running_the_grants_closes_the_machinery_too(tx: Connection, grantee: str) -> None:
    """Default privileges open what a migration creates, also the key that signs cursors."""
    for kind in ("tables", "sequences", "routines"):
        tx.execute(f"grant all on all {kind} in schema rowcast to {grantee}".encode())
    assert only(tx, "select has_table_privilege('anon', 'rowcast.cursor_key', 'select')")
    with as_role(tx, "rowcast_owner"):
        tx.execute((SQL / "99_grants.sql").read_bytes())
    assert_closed(tx, "anon")
    with refused(tx, "42501", "permission denied"), as_role(tx, "anon"):
        tx.execute("select nextval('rowcast.message_seq')")
    test_each_role_may_execute_what_the_table_says(tx)


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_addresses_of_webhooks_are_not_for_callers(tx: Connection, role: str) -> None:
    tx.execute("create policy lax on public.realtime_channels for select using (true)")
    add_channel(tx, "room:*", webhook_urls=["https://example.com/secret"])
    for columns in ("webhook_urls", "*", "c", "to_jsonb(c)"):
        with refused(tx, "42501", "realtime_channels"), as_role(tx, role):
            tx.execute(f"select {columns} from public.realtime_channels as c".encode())
    with as_role(tx, role):
        rows = tx.execute("select pattern, enabled from public.realtime_channels").fetchall()
    assert rows == [("room:*", True)]


# Objects that a role with CREATE on schema public could plant for others to stumble over.
TRAPS = """
create table public.canary (word text);
create function public.trap(anyelement, anyelement) returns boolean
language plpgsql volatile security definer as
$$ begin insert into public.canary values ('operator'); return true; end $$;
create function public.joined(text, text) returns text
language plpgsql volatile security definer as
$$ begin insert into public.canary values ('joined'); return 'evil'; end $$;
create function public.arrow(jsonb, text) returns text
language plpgsql volatile security definer as
$$ begin insert into public.canary values ('arrow'); return 'evil'; end $$;
create function public.same(text, text) returns boolean
language plpgsql volatile security definer as
$$ begin insert into public.canary values ('same'); return true; end $$;
create function public.same_id(uuid, uuid) returns boolean
language plpgsql volatile security definer as
$$ begin insert into public.canary values ('same'); return true; end $$;
create operator public.|| (leftarg = text, rightarg = text, function = public.joined);
create operator public.->> (leftarg = jsonb, rightarg = text, function = public.arrow);
create operator public.= (leftarg = text, rightarg = text, function = public.same);
create operator public.<> (leftarg = text, rightarg = text, function = public.same);
create operator public.~ (leftarg = text, rightarg = text, function = public.same);
create operator public.= (leftarg = uuid, rightarg = uuid, function = public.same_id);
create operator public.= (leftarg = anyelement, rightarg = anyelement, function = public.trap);
create function public.nullif(text, text) returns text language plpgsql security definer as
$$ begin insert into public.canary values ('nullif'); return 'evil'; end $$;
create function public.current_setting(text, boolean) returns text
language plpgsql security definer as
$$ begin insert into public.canary values ('current_setting'); return 'evil'; end $$;
create function public.split_part(text, text, integer) returns text
language plpgsql security definer as
$$ begin insert into public.canary values ('split_part'); return 'evil'; end $$;
create function public.length(text) returns integer language plpgsql security definer as
$$ begin insert into public.canary values ('length'); return 1; end $$;
create function public.gen_random_uuid() returns uuid language plpgsql security definer as
$$ begin insert into public.canary values ('uuid'); return null; end $$;
create type public.evil as (word text);
create function public.evil(text) returns public.evil language plpgsql security definer as
$$ begin insert into public.canary values ('cast'); return row($1)::public.evil; end $$;
create cast (text as public.evil) with function public.evil(text) as implicit;
grant usage on schema public to public;
create temp table settings (shapes text[], caller_roles text[], payload_limit integer);
create temp table realtime_channels (id uuid, pattern text, enabled boolean);
create temp table realtime_messages (channel_name text, event_name text);
create temp table pg_class (oid oid);
create temp table leaf (name text);
grant all on settings, realtime_channels, realtime_messages, pg_class, leaf to public;
"""


@contextlib.contextmanager
def trapped(tx: Connection, role: str, claims: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Be this caller, with a path on which the planted names come first."""
    with as_role(tx, role, claims):
        tx.execute("set local search_path to public, pg_temp, pg_catalog")
        yield
        tx.execute("set local search_path to default")


def test_planted_names_change_nothing(tx: Connection) -> None:
    add_channel(tx, "room:*")
    tx.execute(
        "create policy mine on public.realtime_channels for select to authenticated"
        " using (rowcast.segment(2) = rowcast.user_id())"
    )
    tx.execute(
        "create policy mine on public.realtime_messages for insert to authenticated"
        " with check (rowcast.segment(channel_name, 2) = rowcast.user_id())"
    )
    snapshot = only(tx, "select pg_current_snapshot()::text")
    boot = only(tx, "select rowcast.boot_id()")
    tx.execute(TRAPS)
    with trapped(tx, "anon"):
        assert only(tx, "select 'a'::text || 'b'::text") == "evil"  # the trap works
    assert tx.execute("delete from public.canary").rowcount == 1

    alice = {"sub": "alice", "role": "authenticated"}
    with trapped(tx, "authenticated", alice):
        assert publish(tx, "room:alice", id=uuid4()) is not None
        assert only(tx, "select rowcast.may_subscribe('room:alice')") is True
        assert (
            only(
                tx,
                "select rowcast.publish_many(%s)",
                [json.dumps([{"channel": "room:alice", "event": "said"}])],
            )
            == 1
        )
    with refused(tx, "42501", "row-level security"), trapped(tx, "authenticated", alice):
        publish(tx, "room:bob")
    with trapped(tx, "rowcast_publisher"):
        assert only(tx, "select channel_enabled from rowcast.resolve('room:alice')") is True
        assert only(tx, "select rowcast.publish_as_system('room:alice', 'said')") is not None
    with trapped(tx, "rowcast_bridge"):
        assert only(tx, "select rowcast.upkeep() is not null") is True
        found = tx.execute(
            "select kind from rowcast.feed(%s, %s, clock_timestamp(), null, null)",
            [snapshot, boot],
        ).fetchall()
        assert found[0] == ("snapshot",)
        assert only(tx, "select rowcast.status() is not null") is True
    assert tx.execute("select word from public.canary").fetchall() == []


def test_planted_names_change_no_answer_of_the_caller_login(tx: Connection) -> None:
    """These run read-only, where a trap could not even be counted: it would be an error."""
    add_channel(tx, "room:*")
    tx.execute(
        "create policy mine on public.realtime_channels for select to authenticated"
        " using (rowcast.segment(2) = rowcast.user_id())"
    )
    tx.execute(TRAPS)
    tx.execute("set local search_path to public, pg_temp, pg_catalog")
    tx.execute("set local session authorization rowcast_caller")
    claims = json.dumps({"sub": "alice", "role": "authenticated"})
    rows = tx.execute(
        "select allowed, error from rowcast.check_subscribe('authenticated', %s, %s)",
        [[claims, claims], ["room:alice", "room:bob"]],
    ).fetchall()
    assert rows == [(True, None), (False, None)]
