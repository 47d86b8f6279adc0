"""Clients that lose access are told at once and hear nothing published afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from support import pg
from support.bridge_process import Daemon, daemon, token
from support.wire_client import Frame, Wire, connect

pytestmark = pytest.mark.acceptance

SETUP = """
create table public.room_members (room text, user_id text, seen timestamptz,
    primary key (room, user_id));
create index on public.room_members (user_id);
grant select on public.room_members to authenticated, anon;
insert into public.realtime_channels (pattern) values ('room:*'), ('broken:*'), ('slow:*');
create table public.troubles (kind text primary key);
grant select on public.troubles to authenticated;
create function public.trouble(p_kind text) returns boolean language plpgsql as $$
begin
    if exists (select from public.troubles as t where t.kind = p_kind) then
        if p_kind = 'slow' then
            perform pg_sleep(60);
        end if;
        raise exception 'in trouble';
    end if;
    return true;
end $$;
create policy members_listen on public.realtime_channels for select to authenticated, anon
using (case
    when pattern = 'broken:*' then public.trouble('broken')
    when pattern = 'slow:*' then public.trouble('slow')
    else exists (
        select from public.room_members as m
        where m.room = rowcast.segment(2) and m.user_id = (select rowcast.user_id())
    )
end);
create policy members_publish on public.realtime_messages for insert to authenticated
with check (exists (
    select from public.room_members as m
    where m.room = rowcast.segment(channel_name, 2) and m.user_id = (select rowcast.user_id())
));
select rowcast.recheck_on_change(
    'public.room_members', user_column => 'user_id', channel => 'room:{room}',
    columns => '{user_id,room}'
);
"""


@pytest.fixture
def prepared(database: pg.Database) -> pg.Database:
    with database.connect(database.owner_url) as connection:
        connection.execute(SETUP)
    return database


@pytest.fixture
def bridge(prepared: pg.Database) -> Iterator[Daemon]:
    with daemon(prepared, query_timeout=1) as running:
        yield running


@pytest.fixture
def sql(prepared: pg.Database) -> Iterator[psycopg.Connection[Any]]:
    with prepared.connect() as connection:
        yield connection


@contextlib.asynccontextmanager
async def member(
    bridge: Daemon, sql: psycopg.Connection[Any], name: str, *rooms: str
) -> AsyncIterator[Wire]:
    """Connect a member that is subscribed to these rooms."""
    for room in rooms:
        sql.execute("insert into room_members values (%s, %s) on conflict do nothing", [room, name])
    async with connect(bridge.url, token(name)) as wire:
        for room in rooms:
            await wire.subscribe(f"room:{room}")
        yield wire


def remove(sql: psycopg.Connection[Any], name: str, room: str) -> None:
    sql.execute("delete from room_members where user_id = %s and room = %s", [name, room])


def say(sql: psycopg.Connection[Any], room: str, payload: Any) -> None:
    sql.execute(
        "select rowcast.publish(%s, 'e', %s)", [f"room:{room}", psycopg.types.json.Jsonb(payload)]
    )


def is_closed(frame: Frame) -> bool:
    return bool(frame["op"] == "closed")


def heard(frames: list[Frame]) -> list[Any]:
    return [m["payload"] for f in frames if f["op"] == "messages" for m in f["messages"]]


async def test_a_removed_member_is_told_and_hears_no_later_message(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    """The publisher publishes right after the revoking commit, many times over."""
    async with (
        member(bridge, sql, "bob", "1") as bob,
        member(bridge, sql, "alice", "1", "2") as alice,
    ):
        for number in range(60):
            say(sql, "1", f"before {number}")
            remove(sql, "alice", "1")
            say(sql, "1", f"after {number}")
            told = await alice.until(is_closed)
            assert told == {"op": "closed", "channel": "room:1", "code": "revoked"}
            say(sql, "1", f"later {number}")
            say(sql, "2", f"still {number}")
            await alice.until(lambda f: f["op"] == "messages" and f["channel"] == "room:2")
            assert {p.split()[0] for p in heard(alice.passed)} <= {"before"}
            alice.passed.clear()
            assert [m["payload"].split()[0] for m in await bob.messages(3)] == [
                "before",
                "after",
                "later",
            ]
            assert (await alice.ask(op="subscribe", channel="room:1"))["code"] == "forbidden"
            sql.execute("insert into room_members values ('1', 'alice')")
            await alice.subscribe("room:1")


async def test_a_publisher_that_does_not_wait_is_not_overheard(
    bridge: Daemon, prepared: pg.Database, sql: psycopg.Connection[Any]
) -> None:
    """Under load, one drain reads the signal and the later messages, in any order of seq."""
    sql.execute("create table public.revocations as select 0 as n")
    async with member(bridge, sql, "bob", "1") as bob, member(bridge, sql, "alice", "1") as alice:
        stop = asyncio.Event()

        async def flood() -> None:
            """Publish, again and again, how many revocations the publisher has seen."""
            writer = await psycopg.AsyncConnection.connect(prepared.url, autocommit=True)
            async with writer:
                while not stop.is_set():
                    await writer.execute(
                        "select rowcast.publish('room:1', 'e', to_jsonb(r.n))"
                        " from revocations as r, generate_series(1, 20)"
                    )

        writers = [asyncio.create_task(flood()) for _ in range(3)]
        for revocation in range(1, 16):
            await alice.messages_some(100)
            with sql.transaction():
                remove(sql, "alice", "1")
                sql.execute("update revocations set n = n + 1")
            await alice.until(is_closed)
            passed, alice.passed = alice.passed, []
            assert max(heard(passed), default=0) < revocation
            assert not heard(await alice.quiet())
            sql.execute("insert into room_members values ('1', 'alice')")
            await alice.subscribe("room:1")
            alice.passed.clear()
        stop.set()
        await asyncio.gather(*writers)
        assert max(heard(await bob.quiet())) == 15


async def test_revocation_takes_at_most_100_ms_in_the_median(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    took = []
    async with member(bridge, sql, "alice", "1") as alice:
        for _ in range(15):
            began = time.monotonic()
            remove(sql, "alice", "1")
            await alice.until(is_closed)
            took.append(time.monotonic() - began)
            sql.execute("insert into room_members values ('1', 'alice')")
            await alice.subscribe("room:1")
    assert sorted(took)[7] < 0.1


async def test_only_affected_subscriptions_are_rechecked(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    async with (
        member(bridge, sql, "alice", "1", "2", "3") as alice,
        member(bridge, sql, "bob", "1", "2"),
    ):
        await alice.quiet()
        before = bridge.metric("rowcast_rechecks_total")
        sql.execute("update room_members set seen = now()")
        remove(sql, "nobody", "1")
        remove(sql, "alice", "1")
        await alice.until(is_closed)
        assert bridge.metric("rowcast_rechecks_total") - before == 1


async def test_a_rolled_back_change_revokes_nothing(
    bridge: Daemon, prepared: pg.Database, sql: psycopg.Connection[Any]
) -> None:
    async with member(bridge, sql, "alice", "1") as alice:
        with prepared.connect(autocommit=False) as connection:
            connection.execute("delete from room_members")
            connection.rollback()
        say(sql, "1", "still here")
        [message] = await alice.messages(1)
        assert message["payload"] == "still here"
        assert not [f for f in await alice.quiet() if is_closed(f)]


async def test_a_truncate_and_a_bulk_statement_revoke_all(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    async with member(bridge, sql, "alice", "1") as alice, member(bridge, sql, "bob", "2") as bob:
        sql.execute(
            "insert into room_members select 'x' || n, 'u' || n from generate_series(1, 500) n"
        )
        sql.execute("delete from room_members where user_id <> 'bob'")
        assert (await alice.until(is_closed))["code"] == "revoked"
        assert not [f for f in await bob.quiet() if is_closed(f)]
        sql.execute("truncate room_members")
        assert (await bob.until(is_closed))["code"] == "revoked"


async def test_disabling_or_deleting_a_channel_closes_subscribers(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    async with member(bridge, sql, "alice", "1", "2") as alice:
        sql.execute("update realtime_channels set enabled = false where pattern = 'room:*'")
        closed = [await alice.until(is_closed) for _ in range(2)]
        assert {(f["channel"], f["code"]) for f in closed} == {
            ("room:1", "disabled"),
            ("room:2", "disabled"),
        }
        sql.execute("update realtime_channels set enabled = true where pattern = 'room:*'")
        await alice.subscribe("room:1")
        sql.execute("delete from realtime_channels where pattern = 'room:*'")
        assert (await alice.until(is_closed))["code"] == "deleted"


async def test_a_more_specific_channel_applies_from_its_insert_on(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    async with member(bridge, sql, "alice", "1", "2") as alice:
        sql.execute("insert into realtime_channels (pattern, enabled) values ('room:1', false)")
        assert (await alice.until(is_closed))["channel"] == "room:1"
        say(sql, "2", "here")
        await alice.messages(1)
        sql.execute("delete from realtime_channels where pattern = 'room:1'")
        await alice.subscribe("room:1")
        # after the deletion, the other row that governs the name applies
        sql.execute("insert into realtime_channels (pattern) values ('room:1')")
        sql.execute("delete from realtime_channels where pattern = 'room:1'")
        say(sql, "1", "stayed")
        assert [m["payload"] for m in await alice.messages(1)] == ["stayed"]


@pytest.mark.parametrize(
    "scope", ["null, null", "'alice', null", "null, 'room:1'", "'alice', 'room:*'"]
)
async def test_recheck_covers_changes_that_triggers_cannot_see(
    bridge: Daemon, sql: psycopg.Connection[Any], scope: str
) -> None:
    async with member(bridge, sql, "alice", "1") as alice:
        sql.execute("drop policy members_listen on realtime_channels")
        sql.execute("create policy none on realtime_channels for select using (false)")
        say(sql, "1", "a changed policy does not send a signal yet")
        await alice.messages(1)
        sql.execute(f"select rowcast.recheck({scope})".encode())
        say(sql, "1", "and now it is")
        assert (await alice.until(is_closed))["code"] == "revoked"
        assert not heard(await alice.quiet())


async def test_all_subscriptions_are_rechecked_periodically(
    prepared: pg.Database, sql: psycopg.Connection[Any]
) -> None:
    with daemon(prepared, recheck_interval=0.5) as bridge:
        async with member(bridge, sql, "alice", "1") as alice:
            sql.execute("select rowcast.recheck_detach('public.room_members')")
            remove(sql, "alice", "1")
            assert (await alice.until(is_closed))["code"] == "revoked"


async def test_a_token_that_allows_less_ends_subscriptions(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    sql.execute(
        "create policy with_claim on realtime_channels as restrictive for select to authenticated"
        " using ((rowcast.jwt() ->> 'level') = 'high')"
    )
    sql.execute("insert into room_members values ('1', 'alice')")
    async with connect(bridge.url, token("alice", level="high")) as alice:
        await alice.subscribe("room:1")
        await alice.ask(op="auth", token=token("alice", level="high", jti="another"))
        say(sql, "1", "still")
        await alice.messages(1)
        await alice.ask(op="auth", token=token("alice", level="low"))
        assert (await alice.until(is_closed))["code"] == "revoked"


async def test_a_kick_ends_all_sessions_of_one_user(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    async with (
        member(bridge, sql, "alice", "1") as one,
        member(bridge, sql, "alice", "1") as two,
        member(bridge, sql, "bob", "1") as bob,
    ):
        with sql.transaction():
            sql.execute("select rowcast.kick('alice')")
            say(sql, "1", "after")
        for wire in (one, two):
            assert await wire.closed() == 3504
            assert not heard(wire.passed)
        assert [m["payload"] for m in await bob.messages(1)] == ["after"]
        sql.execute("select rowcast.kick('bob', reconnect => true)")
        assert await bob.closed() == 3004


async def test_a_failing_policy_closes_its_own_as_unavailable(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    async with member(bridge, sql, "alice", "1") as alice:
        await alice.subscribe("broken:1")
        sql.execute("insert into troubles values ('broken')")
        sql.execute("select rowcast.recheck()")
        told = await alice.until(is_closed)
        assert (told["channel"], told["code"]) == ("broken:1", "unavailable")
        say(sql, "1", "here")
        await alice.messages(1)


async def test_a_hanging_policy_closes_its_own_as_unavailable(
    bridge: Daemon, sql: psycopg.Connection[Any]
) -> None:
    """Its subscribers hear nothing meanwhile, and are closed in time."""
    async with member(bridge, sql, "bob", "1") as bob, member(bridge, sql, "alice", "1") as alice:
        await alice.subscribe("slow:1")
        sql.execute("insert into troubles values ('slow')")
        with sql.transaction():
            sql.execute("select rowcast.recheck()")
            sql.execute("select rowcast.publish('slow:1', 'e', '1')")
            say(sql, "1", "for all others")
        # the others wait for one query that is cancelled, not for the policy
        assert [m["payload"] for m in await bob.messages(1, 4)] == ["for all others"]
        told = await alice.until(is_closed, 6)
        assert (told["channel"], told["code"]) == ("slow:1", "unavailable")
        assert heard(await alice.quiet()) == ["for all others"]


async def test_a_revocation_survives_a_crash_of_postgres(
    own_server: pg.OwnServer,
) -> None:
    """Signals are unlogged: a crash loses those not yet read."""
    with own_server.database() as database:
        with database.connect(database.owner_url) as connection:
            connection.execute(SETUP)
        with daemon(database, query_timeout=2) as bridge:
            with database.connect() as sql:
                sql.execute("insert into room_members values ('1', 'alice'), ('1', 'bob')")
            async with (
                connect(bridge.url, token("alice")) as alice,
                connect(bridge.url, token("bob")) as bob,
            ):
                await alice.subscribe("room:1")
                await bob.subscribe("room:1")
                own_server.stop("immediate")
                # first on another port, so that the bridge finds the server only after all this
                port = own_server.running.port
                own_server.running = pg.launch(own_server.home, durable=True)
                with database.server.__class__.at(own_server.running.url(), trusts=True) and (
                    psycopg.connect(own_server.running.url(database.name), autocommit=True)
                ) as other:
                    remove(other, "alice", "1")
                own_server.stop("immediate")
                own_server.running = pg.launch(own_server.home, durable=True)
                with psycopg.connect(
                    own_server.running.url(database.name), autocommit=True
                ) as other:
                    assert other.execute("select count(*) from rowcast.signal").fetchone() == (0,)
                    say(other, "1", "after the crash")
                own_server.stop()
                own_server.running = pg.launch(own_server.home, durable=True, port=port)
                assert (await alice.until(is_closed, 30))["code"] == "revoked"
                assert [m["payload"] for m in await bob.messages(1, 30)] == ["after the crash"]
                assert not heard(await alice.quiet())


async def test_subscriptions_survive_while_the_database_is_away(
    own_server: pg.OwnServer,
) -> None:
    with own_server.database() as database:
        with database.connect(database.owner_url) as connection:
            connection.execute(SETUP)
        with daemon(database, query_timeout=1, recheck_interval=0.3) as bridge:
            with database.connect() as sql:
                sql.execute("insert into room_members values ('1', 'alice')")
            async with connect(bridge.url, token("alice")) as alice:
                await alice.subscribe("room:1")
                own_server.stop()
                await alice.until(lambda f: f.get("status") == "degraded")
                with contextlib.suppress(AssertionError):
                    await alice.until(is_closed, 3)
                    pytest.fail("closed although nothing is known")
                own_server.start()
                await alice.until(lambda f: f.get("status") == "ok", 30)
                with database.connect() as sql:
                    say(sql, "1", "back")
                assert [m["payload"] for m in await alice.messages(1)] == ["back"]
