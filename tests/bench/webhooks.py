"""Webhooks: the speed of a drain, the cost of a claim, and the effect of a hanging endpoint.

The drain is compared with a plain aiohttp loop that posts the same bodies to the same receiver, as
many at a time as a bridge does, without reading, signing or recording.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import harness

RECEIVER = """
import asyncio, sys
OK = b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok"
class Receiver(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.pending = transport, b""
    def data_received(self, data):
        self.pending += data
        while (end := self.pending.find(b"\\r\\n\\r\\n")) >= 0:
            head = self.pending[:end].lower()
            at = head.index(b"content-length:") + 15
            stop = head.find(b"\\r\\n", at)
            length = int(head[at:stop if stop >= 0 else None])
            if len(self.pending) < end + 4 + length:
                return
            self.pending = self.pending[end + 4 + length:]
            if not head.startswith(b"post /hang"):
                self.transport.write(OK)
async def main():
    server = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
LOOP = """
import asyncio, sys, time
import aiohttp
url, count, body, parallel = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode(), int(sys.argv[4])
HEAD = {"Content-Type": "application/json"}
async def main():
    left = iter(range(count))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        async def work():
            for _ in left:
                async with session.post(url, data=body, headers=HEAD) as answer:
                    await answer.read()
        began = time.monotonic()
        await asyncio.gather(*(work() for _ in range(parallel)))
        print(f"http://rate/{count / (time.monotonic() - began):.0f}", flush=True)
asyncio.run(main())
"""
PAYLOAD = '{"text": "' + "x" * 180 + '"}'
WAITING = "select count(*) from rowcast.delivery where next_at is not null"
ALLOW = {"webhook_allow_cidrs": "127.0.0.0/8"}


def processor(connection: Any) -> float:
    """Return the processor time of the backend so far, in milliseconds."""
    return int(Path(f"/proc/{connection.info.backend_pid}/schedstat").read_text().split()[0]) / 1e6


def value(connection: Any, query: str, *parameters: Any) -> Any:
    return connection.execute(query, parameters).fetchone()[0]


def prepare(connection: Any, urls: list[str], each: int) -> None:
    """Make a new queue of `each` messages for each URL."""
    connection.execute("truncate realtime_messages, rowcast.delivery, rowcast.attempt")
    connection.execute("delete from realtime_channels")
    connection.execute("delete from rowcast.endpoint")
    for number, url in enumerate(urls):
        connection.execute(
            "insert into realtime_channels (pattern, webhook_urls) values (%s, %s)",
            (f"c{number}:*", [url]),
        )
        connection.execute(
            "insert into realtime_messages (channel_name, event_name, payload)"
            " select %s, 'bench', %s::jsonb from generate_series(1, %s)",
            (f"c{number}:1", PAYLOAD, each),
        )
    connection.execute("analyze rowcast.delivery")
    connection.execute("checkpoint")


def drained(database: harness.pg.Database, connection: Any, bridges: int, count: int) -> float:
    """Return the deliveries per second between one and nine tenths of the queue."""
    marks: list[tuple[float, int]] = []
    with contextlib.ExitStack() as stack:
        for _ in range(bridges):
            stack.enter_context(harness.bridge(database, **ALLOW))
        while (left := value(connection, WAITING)) > 0:
            marks.append((time.monotonic(), left))
            time.sleep(0.2)
    inner = [mark for mark in marks if count * 0.1 <= mark[1] <= count * 0.9]
    if len(inner) < 2:
        raise SystemExit(f"{count} are too few: they were gone between two looks; use --count")
    (t0, n0), (t1, n1) = inner[0], inner[-1]
    return (n0 - n1) / (t1 - t0)


def plain(url: str, count: int, body: str, parallel: int) -> float:
    command = [sys.executable, "-c", LOOP, url, str(count), body, str(parallel)]
    with harness.process(command, {}) as done:
        return float(done.url.rsplit("/", 1)[1])


def drain_rate(database: harness.pg.Database, count: int, rounds: int, receiver: str) -> None:
    rates: dict[str, list[float]] = {"plain loop": [], "1 bridge": [], "2 bridges": []}
    with database.connect() as connection:
        for endpoints in (1, 10):
            for measured in rates.values():
                measured.clear()
            urls = [f"{receiver}/{number}" for number in range(endpoints)]
            for _ in range(rounds):
                prepare(connection, urls, count // endpoints)
                body = value(
                    connection,
                    "select body from rowcast.claim_deliveries(gen_random_uuid(), 1, '0 s',"
                    " '{}', '{}')",
                )
                rates["plain loop"].append(
                    plain(urls[0], count, body, 64 if endpoints == 1 else 200)
                )
                rates["1 bridge"].append(drained(database, connection, 1, count))
                prepare(connection, urls, count // endpoints)
                rates["2 bridges"].append(drained(database, connection, 2, count))
            harness.table(
                ["endpoints", "sender", "requests/s", "to plain loop"],
                [
                    [endpoints, name, int(statistics.median(found)),
                     harness.ratio(found, rates["plain loop"])]
                    for name, found in rates.items()
                ],
            )  # fmt: skip


def claim_cost(database: harness.pg.Database, receiver: str) -> None:
    rows: list[list[object]] = []
    with database.connect() as connection:
        for queued, old in ((100, False), (100_000, False), (100_000, True)):
            prepare(connection, [f"{receiver}/{number}" for number in range(50)], 100)
            connection.execute(
                "insert into realtime_messages (channel_name, event_name, payload)"
                " select 'c0:1', 'bench', %s::jsonb from generate_series(1, %s)",
                (PAYLOAD, queued),
            )
            connection.execute("update rowcast.endpoint set room = 256")
            connection.execute("vacuum analyze rowcast.delivery")
            with database.connect(autocommit=False) as other:
                if old:
                    other.execute("set transaction isolation level repeatable read")
                    other.execute("select 1 from rowcast.delivery limit 1")
                times, spent = [], []
                for round_ in range(40):
                    if round_ == 10:
                        connection.execute(
                            "select rowcast.move_claim_marks("
                            "array(select id from rowcast.endpoint))"
                        )
                    began, cpu = time.perf_counter(), processor(connection)
                    claimed = connection.execute(
                        "select id, attempt from rowcast.claim_deliveries("
                        " 'ffffffff-ffff-4fff-8fff-ffffffffffff', 100, '60 s', '{}', '{}')"
                    ).fetchall()
                    times.append((time.perf_counter() - began) * 1000)
                    spent.append(processor(connection) - cpu)
                    ids, attempts = [c[0] for c in claimed], [c[1] for c in claimed]
                    n = len(ids)
                    connection.execute(
                        "select rowcast.settle_deliveries('ffffffff-ffff-4fff-8fff-ffffffffffff',"
                        " %s::bigint[], %s::int[], %s::int[], %s::int[], %s::text[], %s::text[],"
                        " %s::int[])",
                        (ids, attempts, [200] * n, [1] * n, [None] * n, [None] * n, [None] * n),
                    )
            later = times[10:]
            rows.append(
                [queued, "yes" if old else "no", statistics.median(later),
                 harness.percentile(later, 0.95), statistics.median(spent[10:])]
            )  # fmt: skip
    harness.table(
        ["queued for one of 50", "old snapshot", "claim of 100, ms p50", "p95", "CPU ms"], rows
    )


async def hanging(database: harness.pg.Database, receiver: str) -> None:
    """Measure insert to recorded outcome at 49 endpoints, with and without a hanging 50th."""
    rows: list[list[object]] = []
    with database.connect() as connection:
        for ill in (False, True, False, True):
            urls = [f"{receiver}/{number}" for number in range(49)]
            urls.append(f"{receiver}/{'hang' if ill else 'well'}")
            prepare(connection, urls, 0)
            with harness.bridge(database, **ALLOW):
                for _ in range(100):
                    connection.execute(
                        "insert into realtime_messages (channel_name, event_name, payload)"
                        " select 'c' || n || ':1', 'bench', %s::jsonb"
                        " from generate_series(0, 49) as n",
                        (PAYLOAD,),
                    )
                    await asyncio.sleep(0.05)
                query = (
                    "select extract(epoch from a.at - m.created_at)::float8 * 1000"
                    " from rowcast.attempt a join rowcast.delivery d on d.id = a.delivery_id"
                    " join realtime_messages m on m.seq = d.message_seq"
                    " where m.channel_name <> 'c49:1' and a.status = 200"
                )
                deadline = time.monotonic() + 30
                found: list[float] = []
                while len(found) < 4900 and time.monotonic() < deadline:
                    await asyncio.sleep(0.2)
                    found = [row[0] for row in connection.execute(query).fetchall()]
            rows.append(
                ["hangs" if ill else "well", len(found), harness.percentile(found, 0.5),
                 harness.percentile(found, 0.95), harness.percentile(found, 0.99)]
            )  # fmt: skip
    harness.table(["the 50th", "deliveries", "ms p50", "p95", "p99"], rows)


def main() -> None:
    options = harness.arguments(__doc__ or "", count=10_000, rounds=3)
    with (
        harness.database() as database,
        harness.process([sys.executable, "-c", RECEIVER], {}) as receiver,
    ):
        claim_cost(database, receiver.url)
        asyncio.run(hanging(database, receiver.url))
        drain_rate(database, options.count, options.rounds, receiver.url)


if __name__ == "__main__":
    main()
