"""The cost for a publisher of stamping the audience on messages.

Measures the processor time of the publishing backend per INSERT of one row, as the kernel counts
it, so waiting for a busy disk or processor is not included. Alternating rounds, medians of ratios
to a channel without audience.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import harness
import psycopg

INSERT = (
    "insert into realtime_messages (channel_name, event_name, payload)"
    " values ('room:1', 'bench', '{\"text\": \"hello\"}')"
)
WRITE = "select rowcast.audience_write(%s, %s, %s)"
CHURNED = 50


def processor(connection: psycopg.Connection[Any]) -> float:
    """Return the processor time of the backend in seconds."""
    return int(Path(f"/proc/{connection.info.backend_pid}/schedstat").read_text().split()[0]) / 1e9


def cost(connection: psycopg.Connection[Any], inserts: int) -> float:
    """Return the processor time in microseconds per INSERT, each in its own transaction."""
    connection.execute("truncate realtime_messages")
    for _ in range(50):
        connection.execute(INSERT)
    began = processor(connection)
    for _ in range(inserts):
        connection.execute(INSERT)
    return (processor(connection) - began) / inserts * 1e6


@contextlib.contextmanager
def audience(database: harness.pg.Database, node: Any, **counts: int) -> Iterator[None]:
    """Have this many subscriptions of `room:1`, and one each of this many other channels."""
    names = ["room:1"] + [f"room:{n}" for n in range(1000, 1000 + counts.get("others", 0))]
    values = [counts.get("here", 0)] + [1] * (len(names) - 1)
    with database.connect(database.bridge_url) as bridge:
        bridge.execute(WRITE, [node, names, values])
        yield
        bridge.execute(WRITE, [node, names, [0] * len(names)])
    with database.connect() as connection:
        connection.execute("vacuum rowcast.audience, rowcast.audience_total")


@contextlib.contextmanager
def churn(database: harness.pg.Database, node: Any, *, here: bool) -> Iterator[None]:
    """Write 1,000 joins and leaves a second as a bridge does: 50 channels, 20 times a second."""
    over = threading.Event()

    def work() -> None:
        turn = 0
        names = [f"room:{n if here else 100 + n}" for n in range(1, 1 + CHURNED)]
        with database.connect(database.bridge_url) as bridge:
            while not over.wait(0.05):
                turn += 1
                bridge.execute(WRITE, [node, names, [100 + turn % 7] * CHURNED])
            bridge.execute(WRITE, [node, names, [0] * CHURNED])

    working = threading.Thread(target=work)
    working.start()
    try:
        yield
    finally:
        over.set()
        working.join()


def main() -> None:
    options = harness.arguments(__doc__, rounds=6, inserts=1000)
    node = uuid4()
    with harness.database() as database, database.connect() as connection:
        connection.execute("select rowcast.node_beat(%s, '1 day')", [node])
        connection.execute("set synchronous_commit = off")
        variants = {
            "no subscription": contextlib.nullcontext,
            "100 subscriptions": lambda: audience(database, node, here=100),
            "1,000,000 subscriptions": lambda: audience(database, node, here=1_000_000),
            "and 100,000 other channels": lambda: audience(
                database, node, here=1_000_000, others=100_000
            ),
            "churn of 1,000/s elsewhere": lambda: churn(database, node, here=False),
            "churn of 1,000/s here, too": lambda: churn(database, node, here=True),
        }
        spent: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(options.rounds):
            for name, variant in variants.items():
                with variant():
                    spent[name].append(cost(connection, options.inserts))
        harness.table(
            ["audience", "us of processor", "to no subscription"],
            [
                [name, statistics.median(values), harness.ratio(values, spent["no subscription"])]
                for name, values in spent.items()
            ],
        )


if __name__ == "__main__":
    main()
