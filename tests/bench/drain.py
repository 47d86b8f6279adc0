"""The queries that a bridge repeats: empty drains, pattern lookups, batches of subscribe checks."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import asyncpg
import harness

from rowcast.bridge.database import CHECK, FEED

LEAVES = (8, 400)
PATTERNS = (100, 100_000)
BATCHES = (1, 10, 100)


async def timed(call: Callable[[], Awaitable[object]], times: int) -> list[float]:
    """Return the milliseconds of each call, after a few calls to warm up."""
    for _ in range(10):
        await call()
    spent: list[float] = []
    for _ in range(times):
        started = time.perf_counter()
        await call()
        spent.append((time.perf_counter() - started) * 1e3)
    return spent


async def drains(database: harness.pg.Database, times: int) -> None:
    rows: list[list[object]] = []
    admin = await asyncpg.connect(database.url)
    for leaves in LEAVES:
        have = await admin.fetchval("select count(*) from rowcast.leaf")
        first = await admin.fetchval("select min(from_at) from rowcast.leaf")
        for number in range(leaves - have):
            # in the past and closed at once, like old leaves
            await admin.execute(
                "select rowcast.make_leaf($1::timestamptz - $2 * interval '1 hour',"
                " $1::timestamptz - ($2 - 1) * interval '1 hour')",
                first, number + 1,
            )  # fmt: skip
        await admin.execute(
            "update rowcast.leaf set closing_xid = '3', closed_xid = '3' where to_at < now()"
        )
        feed = await asyncpg.connect(database.bridge_url)
        now = (await feed.fetch(FEED, None, None, None, None, None))[0]
        same = (now["payload"], now["id"], now["created_at"])
        state = {"at": same}

        async def follow(feed: asyncpg.Connection = feed, state: dict[str, tuple] = state) -> None:
            head = (await feed.fetch(FEED, *state["at"], 2000, 4_194_304))[0]
            state["at"] = (head["payload"], head["id"], head["created_at"])

        select = await timed(lambda feed=feed: feed.fetchval("select 1"), times)
        still = await timed(follow, times)
        spans: list[float] = []
        for _ in range(times):
            # another transaction has committed, so there is a span to read
            await admin.fetchval("select pg_current_xact_id()")
            started = time.perf_counter()
            await follow()
            spans.append((time.perf_counter() - started) * 1e3)
        for name, spent in (("select 1", select), ("nothing moved", still), ("xid moved", spans)):
            rows.append([leaves, name, statistics.median(spent), harness.percentile(spent, 0.99),
                         statistics.median(spent) / statistics.median(select)])  # fmt: skip
        await feed.close()
    await admin.close()
    harness.table(["leaves", "empty drain", "p50 ms", "p99 ms", "to select 1"], rows)


async def lookups(database: harness.pg.Database) -> None:
    rows: list[list[object]] = []
    admin = await asyncpg.connect(database.url)
    for patterns in PATTERNS:
        await admin.execute(
            "insert into realtime_channels (pattern)"
            " select case i % 3 when 0 then 'team:' || i || ':*' when 1 then 'doc:' || i || ':**'"
            " else 'lobby:' || i end from generate_series(1, $1) as i on conflict do nothing",
            patterns,
        )
        await admin.execute("analyze realtime_channels")
        last = patterns - patterns % 3  # the last row, in case the table is read from its start
        for name in (f"lobby:{last - 1}", f"team:{last}:x", f"doc:{last - 2}:a:b", "nowhere:1:2"):
            spent: list[float] = []
            began = time.perf_counter()
            # a lookup that reads all patterns is slow, so few calls are enough
            calls = 5
            while len(spent) < 5 and time.perf_counter() - began < 5:
                started = time.perf_counter()
                await admin.fetchval(
                    "select count(rowcast.resolve($1 || left(i::text, 0)))"
                    " from generate_series(1, $2) as i",
                    name, calls,
                )  # fmt: skip
                spent.append((time.perf_counter() - started) * 1e6 / calls)
                if spent[-1] < 1000 and calls < 1000:
                    spent, calls = [], 1000
            rows.append([patterns, name, statistics.median(spent)])
    await admin.close()
    harness.table(["patterns", "resolve of", "us each"], rows)


async def checks(database: harness.pg.Database, times: int) -> None:
    rows: list[list[object]] = []
    caller = await asyncpg.connect(database.caller_url)
    alone = 0.0
    for size in BATCHES:
        claims = [f'{{"role": "authenticated", "sub": "user{i}"}}' for i in range(size)]
        channels = [f"room:{i}" for i in range(size)]
        spent = await timed(
            lambda claims=claims, channels=channels: caller.fetch(
                CHECK, "authenticated", claims, channels
            ),
            max(20, times // size),
        )
        rate = size / statistics.median(spent) * 1e3
        alone = alone or rate
        rows.append([size, int(rate), rate / alone])
    await caller.close()
    harness.table(["pairs in a call", "checks/s", "to one by one"], rows)


async def run(database: harness.pg.Database, times: int) -> None:
    await checks(database, times)
    await lookups(database)
    await drains(database, times)


def main() -> None:
    options = harness.arguments(__doc__, times=500)
    with harness.database() as database:
        asyncio.run(run(database, options.times))


if __name__ == "__main__":
    main()
