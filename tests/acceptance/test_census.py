"""`rowcast policy apply --dry-run` names the connected clients that would lose a channel."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support import pg
from support.bridge_process import Daemon, daemon, token
from support.command import environment, rowcast
from support.wire_client import Frame, Wire, connect
from support.workbench import picture

pytestmark = pytest.mark.acceptance

SETUP = """
insert into public.realtime_channels (pattern, is_public, owner_id, wildcard) values
    ('news', true, null, false), ('room:*', false, 'alice', true), ('mine', false, 'bob', false);
create policy public_ones on public.realtime_channels for select using (is_public);
create policy owners on public.realtime_channels for select to authenticated
using (owner_id = (select rowcast.user_id()));
create policy staff on public.realtime_channels for select to authenticated
using ((select rowcast.jwt() ->> 'staff') = 'yes');
"""
FILES = """
create policy public_ones on realtime_channels for select using (is_public);
create policy staff on realtime_channels for select to authenticated
using ((select rowcast.jwt() ->> 'staff') = 'yes');
"""
DROP = 'drop policy "owners" on "public"."realtime_channels";'


@pytest.fixture
def prepared(database: pg.Database) -> pg.Database:
    with database.connect(database.owner_url) as connection:
        connection.execute(SETUP)
    return database


@pytest.fixture
def sql(prepared: pg.Database) -> Iterator[psycopg.Connection[Any]]:
    with prepared.connect() as connection:
        yield connection


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "chat.sql").write_text(FILES)
    return tmp_path


@pytest.fixture
def bridges(prepared: pg.Database) -> Iterator[tuple[Daemon, Daemon]]:
    with daemon(prepared) as first, daemon(prepared) as second:
        yield first, second


@contextlib.asynccontextmanager
async def on(bridge: Daemon, bearer: str, *channels: str) -> AsyncIterator[Wire]:
    async with connect(bridge.url, bearer) as wire:
        for channel in channels:
            await wire.subscribe(channel)
        yield wire


async def policy(
    home: Path, database: pg.Database, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run `rowcast policy apply` on the file while the test's clients stay connected."""
    env = environment(home, migrate_url=database.url)
    command = ("policy", "apply", str(home / "chat.sql"), *arguments)
    return await asyncio.to_thread(rowcast, *command, env=env)


def no_trace(sql: psycopg.Connection[Any]) -> None:
    """Check that the answers about users have left the database."""
    for table in ("census", "census_request", "census_answer"):
        assert sql.execute(f"select * from rowcast.{table}".encode()).fetchall() == []


def is_closed(frame: Frame) -> bool:
    return bool(frame["op"] == "closed")


async def test_the_named_clients_are_those_that_then_lose_the_channel(
    home: Path,
    prepared: pg.Database,
    sql: psycopg.Connection[Any],
    bridges: tuple[Daemon, Daemon],
) -> None:
    one, two = bridges
    async with (
        on(one, token("alice"), "room:1", "news") as alice,
        on(two, token("alice"), "room:1", "room:*") as tab,
        on(two, token("bob"), "mine", "news") as bob,
        on(one, token("carol", staff="yes"), "room:1", "mine") as carol,
        on(two, token(None, role="anon"), "news") as anybody,
    ):
        policies = "select polname, pg_get_expr(polqual, polrelid) from pg_policy order by 1"
        before = sql.execute(policies).fetchall()
        done = await policy(home, prepared, "--prune", "--dry-run")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            DROP,
            "2 of 2 bridges answered: 9 subscriptions of 4 callers",
            "alice (authenticated) loses room:1 (2 sessions)",
            "alice (authenticated) loses room:*",
            "bob (authenticated) loses mine",
        ]
        assert sql.execute(policies).fetchall() == before
        no_trace(sql)
        for wire in (alice, tab, bob, carol, anybody):
            assert not await wire.quiet()

        for bridge in bridges:
            assert "alice" not in bridge.log
            assert "census" not in bridge.log

        done = await policy(home, prepared, "--prune")
        assert (done.returncode, done.stdout) == (0, f"{DROP}\n")
        lost = [(alice, "room:1"), (tab, "room:1"), (tab, "room:*"), (bob, "mine")]
        told = {(wire, (await wire.until(is_closed))["channel"]) for wire, _ in lost}
        assert told == set(lost)
        sql.execute(
            "select rowcast.publish(c, 'e', '1') from unnest('{news,room:1,mine}'::text[]) c"
        )
        for wire, channels in ((alice, {"news"}), (bob, {"news"}), (carol, {"room:1", "mine"})):
            heard = await wire.messages(len(channels))
            assert {message["channel"] for message in heard} == channels
            assert not [frame for frame in await wire.quiet() if is_closed(frame)]
        assert not await tab.quiet()


async def test_unchanged_clients_are_counted(
    home: Path, prepared: pg.Database, bridges: tuple[Daemon, Daemon]
) -> None:
    async with on(bridges[0], token(), "news"), on(bridges[1], token("bob"), "news"):
        done = await policy(home, prepared, "--prune", "--dry-run")
        assert done.stdout.splitlines() == [
            DROP,
            "2 of 2 bridges answered: 2 subscriptions of 2 callers",
            "none of 2 sessions loses or gains a channel",
        ]
        done = await policy(home, prepared, "--prune", "--dry-run", "--no-census")
        assert done.stdout == f"{DROP}\n"


async def test_refused_and_ended_subscriptions_do_not_count(
    home: Path, prepared: pg.Database, bridges: tuple[Daemon, Daemon]
) -> None:
    async with on(bridges[0], token(), "room:1") as alice:
        assert (await alice.ask(op="unsubscribe", channel="room:1"))["op"] == "ok"
        assert (await alice.ask(op="subscribe", channel="mine"))["code"] == "forbidden"
        done = await policy(home, prepared, "--dry-run")
    assert "2 of 2 bridges answered: 0 subscriptions of 0 callers" in done.stdout


async def test_without_a_bridge_the_report_is_empty(
    home: Path, prepared: pg.Database, sql: psycopg.Connection[Any]
) -> None:
    before = picture(sql, "postgres")
    done = await policy(home, prepared, "--prune", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        DROP,
        "no bridge is running, so callers cannot be connected",
    ]
    assert picture(sql, "postgres") == before


async def test_a_hanging_bridge_is_named_after_the_timeout(
    home: Path,
    prepared: pg.Database,
    sql: psycopg.Connection[Any],
    bridges: tuple[Daemon, Daemon],
) -> None:
    one, two = bridges
    async with on(one, token(), "room:1"), on(two, token("bob"), "mine"):
        two.signal(signal.SIGSTOP)
        try:
            done = await policy(home, prepared, "--prune", "--dry-run")
        finally:
            two.signal(signal.SIGCONT)
        assert done.returncode == 0
        assert done.stdout.splitlines()[1:] == [
            "1 of 2 bridges answered: 1 subscription of 1 caller",
            "alice (authenticated) loses room:1",
        ]
        assert done.stderr == "some bridges did not answer: their callers may lose a channel, too\n"
        # its answer comes too late and is discarded
        assert (await policy(home, prepared, "--dry-run")).stdout.count("2 of 2") == 1
        no_trace(sql)


async def test_many_clients_are_summarised(
    home: Path, prepared: pg.Database, bridges: tuple[Daemon, Daemon]
) -> None:
    """More than fit a portion of an answer, a batch of questions, and the lines of a report."""
    names = [f"room:{n}" for n in range(90)]
    async with contextlib.AsyncExitStack() as stack:
        for n in range(8):
            wire = await stack.enter_async_context(on(bridges[n % 2], token(exp=9999999000 + n)))
            await wire.send(op="subscribe", channels=names)
            for _ in names:
                assert (await wire.until(lambda f: "channel" in f))["op"] == "ok"
        done = await policy(home, prepared, "--prune", "--dry-run")
    lines = done.stdout.splitlines()
    assert lines[1] == "2 of 2 bridges answered: 720 subscriptions of 1 caller"
    assert lines[2].endswith("(8 sessions)")
    assert len(lines[2:-1]) == 50
    assert lines[-1] == "and 40 more"
    assert done.stderr == ""
