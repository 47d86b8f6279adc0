"""The promise under fire: every committed message reaches every client once, no other ever does.

Writers, clients whose sockets are cut, and a hand that breaks bridges and Postgres all work at
once from one seed. A client does only what the wire asks of it: keep the newest cursor, resume
from it on whichever bridge, and drop messages whose ids it has kept.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import asyncpg
import pytest

from support import pg
from support.bridge_process import Daemon, open_channels, token
from support.wire_client import ClosedError, Wire, connect

pytestmark = [pytest.mark.stress, pytest.mark.acceptance]

SECONDS = float(os.environ.get("ROWCAST_STRESS_SECONDS", "20"))
SEED = int(os.environ.get("ROWCAST_STRESS_SEED", "20260729"))
BULK_ROWS = 50_000 if SECONDS >= 60 else 5_000
WRITERS = 24
CLIENTS = 20
CHANNELS = [f"stress:{n}" for n in range(6)]
BULK = "stress:bulk"
LOST = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)

Key = tuple[str, int]  # (writer, number)


@dataclass
class Truth:
    """Which messages the writers know to be committed, rolled back, or undecided."""

    rolled_back: set[Key] = field(default_factory=set)
    committed: int = 0
    unknown: int = 0


class Writer:
    """Publishes in transactions of all shapes; its numbers only grow."""

    def __init__(self, name: str, url: str, truth: Truth, seed: str) -> None:
        self.name = name
        self.url = url
        self.truth = truth
        self.random = random.Random(seed)
        self.number = 0

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                connection = await asyncpg.connect(self.url, timeout=5)
            except LOST:
                await asyncio.sleep(0.2)
                continue
            try:
                while not stop.is_set():
                    await self.transaction(connection)
                    await asyncio.sleep(self.random.random() * 0.3)
            except LOST:
                pass  # Postgres is down: connect again
            finally:
                connection.terminate()

    async def insert(self, connection: asyncpg.Connection, kind: str) -> Key:
        self.number += 1
        await connection.execute(
            "select rowcast.publish($1, 'e', jsonb_build_object('w', $2::text, 'n', $3::int), $4)",
            self.random.choice(CHANNELS),
            self.name,
            self.number,
            kind,
        )
        return self.name, self.number

    async def transaction(self, connection: asyncpg.Connection) -> None:
        keep: set[Key] = set()
        drop: set[Key] = set()
        fate = self.random.random()
        transaction = connection.transaction()
        await transaction.start()
        try:
            for _ in range(self.random.randint(1, 5)):
                kind = "broadcast" if self.random.random() < 0.3 else "message"
                if self.random.random() < 0.2:
                    savepoint = connection.transaction()
                    await savepoint.start()
                    drop.add(await self.insert(connection, kind))
                    await savepoint.rollback()
                else:
                    keep.add(await self.insert(connection, kind))
                await asyncio.sleep(self.random.random() * 0.01)
        except LOST:
            self.truth.rolled_back |= keep | drop
            raise
        self.truth.rolled_back |= drop
        if fate < 0.2:
            self.truth.rolled_back |= keep
            await transaction.rollback()
            return
        try:
            await transaction.commit()
        except LOST:
            self.truth.unknown += len(keep)  # the log of Postgres has the cause
            raise
        self.truth.committed += len(keep)


class Client:
    """Follows the rules of the wire and records every message it accepts."""

    def __init__(self, name: str, database: pg.Database, channels: list[str]) -> None:
        self.name = name
        self.database = database
        self.channels = channels
        self.random = random.Random(f"{SEED} {name}")
        self.cursor: str | None = None
        self.kept: dict[str, float] = {}
        self.accepted: dict[str, set[Key]] = defaultdict(set)
        self.faults: list[str] = []
        self.last: dict[tuple[str, str], int] = {}
        self.subscribed = asyncio.Event()
        self.resumed = 0
        self.reloaded = 0
        self.overlap = 10.0

    async def run(self, bridges: list[Daemon], calm: asyncio.Event) -> None:
        """Reconnect to any bridge again and again; cut the connection until `calm` is set."""
        bearer = token(self.name)
        while True:
            try:
                async with connect(self.random.choice(bridges).url, bearer) as wire:
                    self.overlap = wire.welcome["replayOverlap"]
                    await self.follow(wire, calm)
            except (ClosedError, aiohttp.ClientError, OSError, TimeoutError, AssertionError):
                await asyncio.sleep(self.random.random() * 0.2)

    async def follow(self, wire: Wire, calm: asyncio.Event) -> None:
        pending = set(self.channels)
        after = {} if self.cursor is None else {"after": self.cursor}
        await wire.send(op="subscribe", channels=self.channels, **after)
        loop = asyncio.get_running_loop()
        cutting = None
        try:
            while True:
                frame = await wire.read(60)
                match frame["op"]:
                    case "messages":
                        for message in frame["messages"]:
                            self.accept(message)
                    case "ok" if "channel" in frame:
                        pending.discard(frame["channel"])
                        if frame.get("recovered") is False:
                            await self.reload(frame)
                        if not pending:
                            self.take(frame.get("cursor"))
                            self.subscribed.set()
                            self.resumed += 1
                            if cutting is None and not calm.is_set():
                                delay = 0.2 + self.random.expovariate(0.7)
                                cutting = loop.call_later(delay, wire.cut)
                    case "cursor" if not pending:
                        self.take(frame["cursor"])
                    case "cursor":
                        self.faults.append("a cursor while channels were being resumed")
                    case "error" if frame["code"] == "unavailable":
                        return  # as the wire demands: subscribe again from the old cursor
                    case "error":
                        self.faults.append(f"refused: {frame}")
        finally:
            if cutting is not None:
                cutting.cancel()

    def take(self, cursor: str | None) -> None:
        if cursor is None:
            return
        self.cursor = cursor
        old = time.monotonic() - self.overlap - 20  # a busy machine is late
        for mid in [mid for mid, at in self.kept.items() if at < old]:
            del self.kept[mid]

    def accept(self, message: dict[str, Any]) -> None:
        if message["id"] in self.kept:
            return
        self.kept[message["id"]] = time.monotonic()
        payload, channel = message["payload"], message["channel"]
        key = payload["w"], payload["n"]
        if key in self.accepted[channel]:
            self.faults.append(f"twice: {key} in {channel}")
        self.accepted[channel].add(key)
        lane = channel, payload["w"]
        if key[1] <= self.last.get(lane, 0):
            self.faults.append(f"out of order: {key} in {channel} after {self.last[lane]}")
        self.last[lane] = key[1]

    async def reload(self, frame: dict[str, Any]) -> None:
        """Read the table, as applications must when too much was missed for a replay."""
        if frame["reason"] != "too_far":
            self.faults.append(f"not recovered: {frame}")
        self.reloaded += 1
        connection = await asyncpg.connect(self.database.url)
        try:
            rows = await connection.fetch(
                "select id, payload->>'w' as w, (payload->>'n')::int as n from realtime_messages"
                " where type = 'message' and channel_name = $1 order by seq",
                frame["channel"],
            )
        finally:
            await connection.close()
        for row in rows:
            self.kept[str(row["id"])] = time.monotonic()
            self.accepted[frame["channel"]].add((row["w"], row["n"]))
            lane = frame["channel"], row["w"]
            self.last[lane] = max(self.last.get(lane, 0), row["n"])


class Idler:
    """Write one message and keep the transaction open; a crash may roll it back."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection: asyncpg.Connection | None = None

    async def begin(self, number: int) -> None:
        self.connection = await asyncpg.connect(self.url)
        await self.connection.execute("begin")
        await self.connection.execute(
            "select rowcast.publish($1, 'e', jsonb_build_object('w', 'idle', 'n', $2::int))",
            CHANNELS[0],
            number,
        )

    async def commit(self) -> None:
        assert self.connection is not None
        await self.connection.execute("commit")
        await self.connection.close()


def end_listeners(database: pg.Database) -> int:
    """Terminate the sessions that LISTEN; return how many there were."""
    with database.connect() as connection:
        rows = connection.execute(
            """select pg_terminate_backend(pid) from pg_stat_activity
               where usename = 'rowcast_bridge' and datname = current_database()
                 and query ~ '(probe|sleep_begin|sleep_end|open_writers)\\('"""
        ).fetchall()
    return len(rows)


async def bulk(database: pg.Database) -> None:
    connection = await asyncpg.connect(database.url)
    await connection.execute(
        "insert into realtime_messages (channel_name, event_name, payload)"
        " select $1, 'e', jsonb_build_object('w', 'bulk', 'n', n) from generate_series(1, $2) n",
        BULK,
        BULK_ROWS,
        timeout=120,
    )
    await connection.close()


async def havoc(server: pg.OwnServer, database: pg.Database, bridges: list[Daemon]) -> None:
    """Break one part after the other, evenly over the duration of the test."""
    idler = Idler(database.url)
    end_of_listen = 0

    async def terminate() -> None:
        nonlocal end_of_listen
        end_of_listen += await asyncio.to_thread(end_listeners, database)

    steps: list[Any] = [
        lambda: idler.begin(1),
        terminate,
        lambda: asyncio.to_thread(bridges[1].kill),
        lambda: bulk(database),
        lambda: asyncio.to_thread(bridges[1].start),
        idler.commit,
        lambda: asyncio.to_thread(server.crash),
        lambda: idler.begin(2),
        lambda: asyncio.to_thread(bridges[0].restart),
        idler.commit,
        terminate,
        lambda: asyncio.to_thread(server.restart, "fast"),
        terminate,
        lambda: asyncio.to_thread(server.restart, "immediate"),
    ]
    pause = SECONDS / (len(steps) + 1)
    for step in steps:
        await asyncio.sleep(pause)
        await step()
    await asyncio.sleep(pause)
    assert end_of_listen > 0


async def durable(database: pg.Database) -> dict[str, set[Key]]:
    connection = await asyncpg.connect(database.url)
    rows = await connection.fetch(
        "select channel_name, payload->>'w' as w, (payload->>'n')::int as n"
        " from realtime_messages where type = 'message'"
    )
    await connection.close()
    found: dict[str, set[Key]] = defaultdict(set)
    for row in rows:
        found[row["channel_name"]].add((row["w"], row["n"]))
    return found


async def test_committed_messages_reach_every_client_once(
    own_server: pg.OwnServer,
) -> None:
    with own_server.database() as database:
        open_channels(database, "stress:*")
        bridges = [Daemon(database), Daemon(database)]
        try:
            await storm(own_server, database, bridges)
        except BaseException:
            for bridge in bridges:
                print(bridge.log[-6000:])
            raise
        finally:
            for bridge in bridges:
                bridge.remove()


async def storm(server: pg.OwnServer, database: pg.Database, bridges: list[Daemon]) -> None:
    for bridge in bridges:
        await asyncio.to_thread(bridge.start)
    truth = Truth()
    stop, calm = asyncio.Event(), asyncio.Event()
    chosen = random.Random(SEED)
    clients = [
        Client(f"c{n}", database, chosen.sample(CHANNELS, 3) + ([BULK] if n % 4 == 0 else []))
        for n in range(CLIENTS)
    ]
    writers = [Writer(f"w{n}", database.url, truth, f"{SEED} w{n}") for n in range(WRITERS)]
    listening = [asyncio.create_task(client.run(bridges, calm)) for client in clients]
    try:
        async with asyncio.timeout(60):
            for client in clients:
                await client.subscribed.wait()
        writing = [asyncio.create_task(writer.run(stop)) for writer in writers]
        await havoc(server, database, bridges)
        stop.set()
        await asyncio.gather(*writing)
        calm.set()
        expected = await durable(database)

        def missing(client: Client) -> set[Key]:
            return {
                key for name in client.channels for key in expected[name] - client.accepted[name]
            }

        deadline = time.monotonic() + 60
        while any(missing(client) for client in clients) and time.monotonic() < deadline:
            for task in listening:
                if task.done():
                    task.result()
            await asyncio.sleep(0.1)
    finally:
        # Repeated until all have ended: before Python 3.12 `asyncio.wait_for` swallows a
        # cancellation that comes at the same moment as its result.
        while running := [task for task in listening if not task.done()]:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=1)

    total = sum(map(len, expected.values()))
    print(
        f"seed {SEED}: {total} durable, {truth.committed} committed, {truth.unknown} unknown,"
        f" {len(truth.rolled_back)} rolled back; resumed {sum(c.resumed for c in clients)},"
        f" reloaded {sum(c.reloaded for c in clients)}"
    )
    everything = {key for keys in expected.values() for key in keys}
    for client in clients:
        assert not missing(client), (client.name, sorted(missing(client))[:10])
        assert not client.faults, (client.name, client.faults[:10])
        heard = {key for keys in client.accepted.values() for key in keys}
        assert not heard & truth.rolled_back, (client.name, heard & truth.rolled_back)
    assert not everything & truth.rolled_back
    assert len(expected[BULK]) == BULK_ROWS
    assert total > BULK_ROWS + 500
    assert sum(client.resumed for client in clients) > CLIENTS * 2
