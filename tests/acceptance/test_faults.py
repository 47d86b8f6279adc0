"""Faults around a bridge: its clients miss nothing, or are told the truth."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from rowcast.errors import CLOSE
from support import pg
from support.bridge_process import Daemon, daemon, open_bridge, open_channels, token
from support.waiting import eventually
from support.wire_client import ClosedError, Wire, connect

pytestmark = pytest.mark.acceptance

LISTENS = "query ~ '(probe|sleep_begin|sleep_end|open_writers)\\('"
FEEDS = "query ~ 'rowcast.feed\\('"


@pytest.fixture
def opened(database: pg.Database) -> pg.Database:
    """A database with open channels `room:*`."""
    open_channels(database, "room:*")
    return database


@pytest.fixture
def bridge(opened: pg.Database) -> Iterator[Daemon]:
    with daemon(opened) as running:
        yield running


def backends(database: pg.Database, which: str) -> list[int]:
    """Return the pids of the bridge's sessions whose last query matches `which`."""
    with database.connect() as connection:
        return [
            pid
            for (pid,) in connection.execute(
                f"""select pid from pg_stat_activity where usename = 'rowcast_bridge'
                    and datname = current_database() and {which}"""
            )
        ]


def end(database: pg.Database, which: str) -> None:
    """Terminate these sessions; there must be at least one."""
    pids = eventually(lambda: backends(database, which))
    with database.connect() as connection:
        connection.execute("select pg_terminate_backend(p) from unnest(%s::int[]) p", [pids])


def say(database: pg.Database, payload: str, channel: str = "room:1") -> None:
    with database.connect() as connection:
        connection.execute(
            "select rowcast.publish(%s, 'e', to_jsonb(%s::text))", [channel, payload]
        )


async def hears(wire: Wire, payload: str) -> None:
    [message] = await wire.messages(1)
    assert message["payload"] == payload


async def test_a_lost_listen_connection_is_restored(bridge: Daemon, opened: pg.Database) -> None:
    """Messages committed meanwhile are delivered."""
    async with connect(bridge.url) as wire:
        await wire.subscribe("room:1")
        end(opened, LISTENS)
        say(opened, "while deaf")
        await hears(wire, "while deaf")
        eventually(lambda: bridge.metric("rowcast_listen_up") == 1, what="LISTEN again")
        eventually(lambda: backends(opened, LISTENS))
        say(opened, "after")
        await hears(wire, "after")


async def test_a_lost_feed_connection_loses_no_message_and_no_socket(
    bridge: Daemon, opened: pg.Database
) -> None:
    async with connect(bridge.url) as wire:
        await wire.subscribe("room:1")
        for number in range(3):
            end(opened, FEEDS)
            say(opened, f"message {number}")
            await hears(wire, f"message {number}")
        states = [f["status"] for f in await wire.quiet() if f["op"] == "status"]
        assert states == ["degraded", "ok"] * 3


async def test_a_table_rewrite_during_a_drain_loses_no_message(
    bridge: Daemon, opened: pg.Database
) -> None:
    """The bridge waits for the lock of the rewrite."""
    async with connect(bridge.url) as wire:
        await wire.subscribe("room:1")
        with opened.connect(autocommit=False) as team:
            bridge.signal(signal.SIGSTOP)
            say(opened, "before")
            team.execute(
                "alter table public.realtime_messages"
                " add column note uuid default gen_random_uuid()"
            )
            bridge.signal(signal.SIGCONT)
            eventually(lambda: backends(opened, f"{FEEDS} and wait_event_type = 'Lock'"))
            team.commit()
        await hears(wire, "before")
        say(opened, "after")
        await hears(wire, "after")


async def test_a_large_drain_cut_midway_repeats_and_loses_nothing(
    bridge: Daemon, opened: pg.Database
) -> None:
    """Subscribers hear each message once, as do clients that join or resume meanwhile."""
    rows = 30_000
    async with connect(bridge.url) as wire, connect(bridge.url, token("late")) as late:
        cursor = (await late.subscribe("room:1"))["cursor"]
        await late.ask(op="unsubscribe", channel="room:1")
        await wire.subscribe("room:1")
        writer = await asyncpg.connect(opened.url)
        await writer.execute(
            """insert into realtime_messages (channel_name, event_name, payload)
               select 'room:1', 'e', to_jsonb(n) from generate_series(0, $1 - 1) n""",
            rows,
            timeout=60,
        )
        # The late client reads all the while: one that does not is reset after a grace time and
        # never sees the close code.
        reading = asyncio.create_task(late.until(lambda f: f.get("ref") == "late 1", 60))
        got: list[int] = []
        cuts = 0
        while len(got) < rows:
            frame = await wire.until(lambda f: f["op"] == "messages", 30)
            got += [m["payload"] for m in frame["messages"]]
            if cuts < 3 and len(got) > (cuts + 1) * 4000:
                cuts += 1
                await asyncio.to_thread(end, opened, FEEDS)
                with contextlib.suppress(ConnectionError):  # closed as slow meanwhile, see below
                    await late.send(
                        op="subscribe", channel="room:1", after=cursor, ref=f"late {cuts}"
                    )
        assert got == list(range(rows))
        assert not [f for f in await wire.quiet() if f["op"] == "messages"]
        # The late client got everything, or was told that it was too much to replay, or, for
        # messages held back meanwhile, that it must reconnect.
        try:
            answer = await reading
        except ClosedError as end_of_late:
            closed = end_of_late.code
        else:
            closed = CLOSE["slow"][0]
            if answer["op"] == "ok" and answer["recovered"]:
                heard = [m["payload"] for m in await late.messages(rows, 30)]
                assert heard == list(range(rows))
        assert closed == CLOSE["slow"][0]
        await writer.close()


async def test_a_hanging_listen_backend_delays_no_message(
    bridge: Daemon, opened: pg.Database
) -> None:
    """The socket stays open, but the backend sends neither rings nor answers."""
    async with connect(bridge.url) as wire:
        await wire.subscribe("room:1")
        [stuck] = eventually(lambda: backends(opened, LISTENS))
        os.kill(stuck, signal.SIGSTOP)
        try:
            for number in range(8):
                begun = time.monotonic()
                say(opened, f"message {number}")
                await hears(wire, f"message {number}")
                assert (
                    time.monotonic() - begun < 7
                )  # longer would be a safety poll or a wait for the doorbell
            eventually(lambda: "listen_lost" in bridge.log, timeout=20, what="it is noticed")
            eventually(lambda: set(backends(opened, LISTENS)) - {stuck}, what="LISTEN again")
        finally:
            os.kill(stuck, signal.SIGCONT)


async def test_sockets_survive_while_postgres_is_away(
    own_server: pg.OwnServer,
) -> None:
    """Requests are refused with a retry time."""
    with own_server.database() as database, open_bridge(database) as bridge:
        async with connect(bridge.url) as wire:
            await wire.subscribe("room:1")
            await asyncio.to_thread(own_server.stop, "fast")
            assert (await wire.until(lambda f: f["op"] == "status"))["status"] == "degraded"
            assert bridge.get("/readyz")[0] == 503
            assert bridge.get("/livez")[0] == 200
            refused = await wire.ask(op="subscribe", channel="room:2", within=30)
            assert refused["code"] == "unavailable"
            assert refused["retryAfter"] > 0
            refused = await wire.ask(
                op="publish", channel="room:1", event="e", payload=1, within=30
            )
            assert refused["code"] == "unavailable"
            await asyncio.to_thread(own_server.start)
            say(database, "written before the bridge was back")
            status = await wire.until(lambda f: f["op"] == "status", 30)
            assert status["status"] == "ok"
            await hears(wire, "written before the bridge was back")
            await wire.subscribe("room:2")
            assert bridge.get("/readyz")[0] == 200


async def test_messages_committed_before_a_crash_arrive_once_after_it(
    own_server: pg.OwnServer,
) -> None:
    with own_server.database() as database, open_bridge(database) as bridge:
        async with connect(bridge.url) as wire:
            await wire.subscribe("room:1")
            sent = []
            for round_ in range(3):
                for number in range(20):
                    say(database, f"{round_}.{number}")
                    sent.append(f"{round_}.{number}")
                await asyncio.to_thread(own_server.crash)
                say(database, f"{round_}.after")
                sent.append(f"{round_}.after")
            got = await wire.messages(len(sent), 60)
            assert [message["payload"] for message in got] == sent
            assert not [f for f in await wire.quiet() if f["op"] == "messages"]


async def test_sigterm_closes_all_clients_and_exits_with_zero(opened: pg.Database) -> None:
    with daemon(opened) as bridge:
        async with contextlib.AsyncExitStack() as stack:
            # closes are spread over time, so there is time for a request
            wires = [await stack.enter_async_context(connect(bridge.url)) for _ in range(300)]
            first = wires.pop()
            await first.subscribe("room:1")
            leaving = asyncio.gather(*(wire.closed(30) for wire in wires))
            bridge.signal(signal.SIGTERM)
            told = await first.until(lambda f: f["op"] == "status")
            assert told["status"] == "draining"
            assert 0 < told["retryAfter"] < 1
            status, body = await asyncio.to_thread(bridge.get, "/readyz")
            assert status == 503
            assert "going away" in body
            assert set(await leaving) == {CLOSE["draining"][0]} == {3000}
            assert await asyncio.to_thread(bridge.wait) == 0
        assert "Traceback" not in bridge.log


async def test_sigterm_exits_with_zero_without_clients_or_postgres(
    own_server: pg.OwnServer,
) -> None:
    with own_server.database() as database:
        with daemon(database) as bridge:
            assert bridge.terminate() == 0
        with daemon(database) as bridge:
            await asyncio.to_thread(own_server.stop, "immediate")
            eventually(lambda: bridge.get("/readyz")[0] == 503)
            assert bridge.terminate() == 0
            own_server.start()


async def test_a_bridge_started_before_postgres_waits_for_it(
    own_server: pg.OwnServer,
) -> None:
    with own_server.database() as database:
        own_server.stop()
        bridge = Daemon(database)
        try:
            bridge.launch()
            eventually(lambda: "feed_lost" in bridge.log)
            await asyncio.to_thread(own_server.start)
            assert await asyncio.to_thread(bridge.wait_ready)
        finally:
            bridge.remove()


async def test_a_client_that_does_not_read_is_closed_and_resumes(
    opened: pg.Database,
) -> None:
    """It loses nothing, other clients notice nothing, and the bridge does not keep its backlog."""
    size, count = 20_000, 1500
    with daemon(opened, buffer_bytes=200_000, slow_grace=1) as bridge:
        async with connect(bridge.url, token("brisk")) as brisk:
            await brisk.subscribe("room:1")
            # a small buffer in its kernel, too, so that it becomes slow soon
            slow = await stubborn(bridge)
            before = bridge.memory()
            writer = await asyncpg.connect(opened.url)
            for at in range(0, count, 50):
                await writer.execute(
                    """insert into realtime_messages (channel_name, event_name, payload)
                       select 'room:1', 'e', jsonb_build_object('n', n, 'x', repeat('x', $3))
                       from generate_series($1::int, $2::int) n""",
                    at,
                    at + 49,
                    size,
                )
                got = await brisk.messages(50)
                assert [m["payload"]["n"] for m in got] == list(range(at, at + 50))
            await writer.close()
            assert bridge.memory() - before < 60_000_000
            cursor = await slow.last_cursor()
        async with connect(bridge.url, token("slow")) as again:
            answer = await again.ask(op="subscribe", channel="room:1", after=cursor)
            assert answer["op"] == "ok"
            # 30 MB are too much for a replay, and the client is told so
            assert answer["recovered"] is False
            assert answer["reason"] == "too_far"


async def test_a_slow_client_that_reads_again_gets_a_close_code(
    opened: pg.Database,
) -> None:
    """And it resumes."""
    with daemon(opened, buffer_bytes=100_000, slow_grace=20) as bridge:
        slow = await stubborn(bridge)
        writer = await asyncpg.connect(opened.url)
        count = 0
        while "slow_client" not in bridge.log and count < 1000:
            await writer.execute(
                """select rowcast.publish(
                       'room:1', 'e', jsonb_build_object('n', $1::int, 'x', $2::text))""",
                count,
                "x" * 20_000,
            )
            count += 1
        cursor = await slow.last_cursor()
        heard = slow.numbers
        assert slow.code == CLOSE["slow"][0] == 3001
        assert heard == list(range(len(heard)))
        async with connect(bridge.url, token("slow")) as again:
            answer = await again.subscribe("room:1", after=cursor)
            assert answer["recovered"] is True
            replayed = [
                m["payload"]["n"]
                for f in await again.quiet()
                if f["op"] == "messages"
                for m in f["messages"]
            ]
            assert set(heard) | set(replayed) == set(range(count))
        await writer.close()


class Stubborn:
    """A client that subscribes and does not read until the test asks what it got."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cursor: str
    ) -> None:
        self.reader, self.writer, self.cursor = reader, writer, cursor
        self.numbers: list[int] = []
        self.code = 1006

    async def last_cursor(self) -> str:
        """Read all that was written to it."""
        cursor = self.cursor
        self.writer.transport.resume_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            async with asyncio.timeout(30):
                while True:
                    head, data = await read_frame(self.reader)
                    if head & 0x0F == 8:
                        self.code = int.from_bytes(data[:2], "big")
                        self.writer.write(b"\x88\x82\0\0\0\0" + data[:2])
                        break
                    if head & 0x0F != 1:
                        continue
                    frame = json.loads(data)
                    cursor = frame.get("cursor", cursor)
                    if frame["op"] == "messages":
                        self.numbers += [m["payload"]["n"] for m in frame["messages"]]
        self.writer.close()
        return cursor


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head, size = await reader.readexactly(2)
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2), "big")
    elif size == 127:
        size = int.from_bytes(await reader.readexactly(8), "big")
    return head, await reader.readexactly(size)


async def stubborn(bridge: Daemon) -> Stubborn:
    host, port = bridge.url.removeprefix("http://").split(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((host, int(port)))
    reader, writer = await asyncio.open_connection(sock=raw, limit=4096)
    writer.write(
        f"GET /realtime?token={token('slow')} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    text = b'{"op":"subscribe","ref":"1","channel":"room:1"}'
    writer.write(bytes((0x81, 0x80 | len(text))) + b"\0\0\0\0" + text)
    frame: dict[str, Any] = {}
    while frame.get("op") != "ok":
        frame = json.loads((await read_frame(reader))[1])
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    return Stubborn(reader, writer, frame["cursor"])


async def test_the_bridge_polls_where_it_may_not_listen(opened: pg.Database) -> None:
    with daemon(opened, doorbell="poll", idle_after=0) as bridge:
        async with connect(bridge.url) as wire:
            await wire.subscribe("room:1")
            for number in range(5):
                say(opened, str(number))
                await hears(wire, str(number))
        assert bridge.metric("rowcast_sleeps_total") == 0


async def test_two_bridges_deliver_to_each_client_once(opened: pg.Database) -> None:
    with daemon(opened) as one, daemon(opened) as two:
        async with connect(one.url, token("alice")) as alice, connect(two.url, token("bob")) as bob:
            await alice.subscribe("room:1")
            await bob.subscribe("room:1")
            for number in range(20):
                sender = alice if number % 2 else bob
                await sender.publish("room:1", number)
            for wire in (alice, bob):
                got = await wire.messages(20)
                assert [m["payload"] for m in got] == list(range(20))
                assert not [f for f in await wire.quiet() if f["op"] == "messages"]


async def test_a_session_resumes_at_another_bridge(opened: pg.Database) -> None:
    with daemon(opened) as one, daemon(opened) as two:
        async with connect(one.url) as wire:
            cursor = (await wire.subscribe("room:1"))["cursor"]
        one.kill()
        say(opened, "in between")
        async with connect(two.url) as wire:
            answer = await wire.ask(op="subscribe", channel="room:1", after=cursor)
            assert answer["recovered"] is True
            await hears(wire, "in between")


def refuses(database: pg.Database, **settings: object) -> str:
    """Start a bridge that must refuse to run, and return its error message."""
    bridge = Daemon(database, **settings)
    try:
        bridge.launch()
        assert bridge.wait() == 1, bridge.log
        lines = bridge.log.strip().splitlines()
        assert "Traceback" not in bridge.log, bridge.log
        [said] = [line for line in lines if line.startswith("rowcast: ")]
        return said
    finally:
        bridge.remove()


def test_a_database_that_is_not_migrated_is_refused(empty_database: pg.Database) -> None:
    assert "rowcast migrate" in refuses(empty_database)


def test_a_superuser_is_refused_as_either_login(opened: pg.Database) -> None:
    assert "DATABASE_URL" in refuses(opened, database_url=opened.url)
    assert "CALLER_URL" in refuses(opened, caller_url=opened.url)


def test_the_two_logins_must_not_be_exchanged(opened: pg.Database) -> None:
    said = refuses(opened, database_url=opened.caller_url, caller_url=opened.bridge_url)
    assert "ROWCAST_" in said


def test_the_owner_is_refused_as_caller(opened: pg.Database) -> None:
    assert "CALLER_URL" in refuses(opened, caller_url=opened.owner_url)


def test_a_database_that_does_not_exist_is_refused(opened: pg.Database) -> None:
    wrong = opened.server.url("no_such_database", "rowcast_bridge", opened.server.login_password)
    assert "no_such_database" in refuses(opened, database_url=wrong)


def test_a_port_that_is_taken_is_named(opened: pg.Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in refuses(opened, port=port)


def test_a_secret_that_can_be_guessed_is_refused(opened: pg.Database) -> None:
    assert "ROWCAST_JWT_SECRET" in refuses(opened, jwt_secret="short")


async def test_an_expired_token_closes_a_session_not_refreshed(
    opened: pg.Database,
) -> None:
    with daemon(opened, jwt_leeway=0) as bridge:
        ends = int(time.time()) + 3
        async with (
            connect(bridge.url, token(exp=ends)) as lets_it_end,
            connect(bridge.url, token(exp=ends)) as refreshes,
        ):
            await refreshes.subscribe("room:1")
            warned = await lets_it_end.until(lambda f: f["op"] == "status")
            assert warned["status"] == "token_expiring"
            answer = await refreshes.ask(op="auth", token=token())
            assert answer["op"] == "ok"
            refused = await lets_it_end.until(lambda f: f["op"] == "error")
            assert refused["code"] == "token_expired"
            assert await lets_it_end.closed() == CLOSE["token_expired"][0] == 3501
            say(opened, "still there")
            await hears(refreshes, "still there")


async def test_a_token_that_allows_less_closes_subscriptions(
    opened: pg.Database,
) -> None:
    """Only those that it does not allow."""
    with opened.connect(opened.owner_url) as owner:
        owner.execute(
            """insert into realtime_channels (pattern) values ('staff:*');
               create policy staff_only on public.realtime_channels as restrictive
               for select to authenticated
               using (pattern <> 'staff:*' or (rowcast.jwt() ->> 'staff')::boolean)"""
        )
    with daemon(opened) as bridge:
        async with connect(bridge.url, token(staff=True)) as wire:
            await wire.subscribe("staff:1")
            await wire.subscribe("room:1")
            await wire.ask(op="auth", token=token(staff=False))
            closed = await wire.until(lambda f: f["op"] == "closed")
            assert closed["channel"] == "staff:1"
            assert closed["code"] == "revoked"
            say(opened, "secret", "staff:1")
            say(opened, "open")
            await hears(wire, "open")
            # a token of another user is refused and changes nothing
            assert (await wire.ask(op="auth", token=token("mallory")))["code"] == "invalid_token"
            await wire.publish("room:1", "as before")


async def test_a_statement_timeout_of_the_role_fails_one_request(
    opened: pg.Database, bridge: Daemon
) -> None:
    with opened.connect(opened.owner_url) as owner:
        owner.execute(
            """insert into realtime_channels (pattern) values ('sleepy:*');
               create policy sleepy on public.realtime_channels as restrictive
               for select to authenticated
               using (pattern <> 'sleepy:*' or pg_sleep(60) is null)"""
        )
    async with connect(bridge.url) as wire:
        slow = await wire.send(op="subscribe", channel="sleepy:1")
        fast = await wire.send(op="subscribe", channel="room:1")
        answer = await wire.until(lambda f: f.get("ref") == fast, 30)
        assert answer["op"] == "ok"
        answer = await wire.until(lambda f: f.get("ref") == slow, 30)
        assert answer["code"] == "unavailable"


async def test_broadcasts_expire_as_fast_as_they_come(opened: pg.Database) -> None:
    """However many there are: the next call follows at once if one leaves some."""
    with opened.connect() as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute(
            """insert into public.realtime_messages (seq, id, type, channel_name, event_name)
               select n, gen_random_uuid(), 'broadcast', 'room:1', 'e'
               from generate_series(1, 120000) n"""
        )
        connection.execute("insert into rowcast.tick (at) values (now() - interval '6 minutes')")
        with daemon(opened, upkeep_interval=3600):
            left = "select count(*) from rowcast.messages_broadcast"
            eventually(lambda: connection.execute(left).fetchone() == (0,), timeout=60)
