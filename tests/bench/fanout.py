"""1,000 subscribers of one channel at rising message rates, next to `send_str` per client."""

from __future__ import annotations

import multiprocessing
import sys
import time
from multiprocessing.connection import Connection

import epoll_clients
import harness
import naive
import psycopg

RATES = (20, 50, 200, 500, 1000, 2000)
TICK = 0.005
INSERT = (
    "insert into {table} (channel_name, event_name, payload)"
    " select 'room:1', 'bench', %s::jsonb from generate_series(1, %s)"
)
PAYLOAD = '{"text": "<#>' + "x" * 184 + '"}'


def listen(port: int, count: int, pipe: Connection) -> None:
    """Subscribe `count` clients; count messages between two commands of the parent."""
    clients = [epoll_clients.Client(harness.token(f"user{i}"), "room:1") for i in range(count)]
    crowd = epoll_clients.EpollClients(port, clients)
    crowd.connect(clients)
    pipe.send("ready")
    while True:
        crowd.run(pipe.poll)
        order, expected, deadline = pipe.recv()
        if order == "stop":
            return
        crowd.marks = 0
        crowd.last = time.monotonic()
        pipe.send("counting")
        while crowd.marks < expected and time.monotonic() < deadline:
            crowd.turn(0.05)
        pipe.send((crowd.marks, crowd.last))


def publish(connection: psycopg.Connection, table: str, rate: int, seconds: float) -> int:
    """Insert at a steady rate, one statement per tick; return how many."""
    total = int(rate * seconds)
    sent = 0
    started = time.monotonic()
    while sent < total:
        due = min(total, int((time.monotonic() - started) * rate) + 1)
        if due > sent:
            connection.execute(INSERT.format(table=table), [PAYLOAD, due - sent], prepare=True)
            sent = due
        time.sleep(TICK)
    return sent


def main() -> None:
    options = harness.arguments(__doc__, seconds=4.0, clients=1000)
    harness.raise_file_limit(options.clients * 3)
    context = multiprocessing.get_context("spawn")
    rows: list[list[object]] = []
    with harness.database() as database, harness.pg.create_database(database.server) as other:
        with other.connect() as connection:
            connection.execute(naive.SETUP)
        with (
            harness.bridge(database) as ours,
            harness.process([sys.executable, naive.__file__, other.url], {}) as theirs,
            database.connect() as to_ours,
            other.connect() as to_theirs,
        ):
            stacks = {
                "rowcast": (ours, to_ours, "realtime_messages"),
                "naive": (theirs, to_theirs, "naive"),
            }
            pipes: dict[str, Connection] = {}
            for name, (server, _, _) in stacks.items():
                pipes[name], far = context.Pipe()
                context.Process(
                    target=listen, args=(server.port, options.clients, far), daemon=True
                ).start()
                far.close()  # so that the death of a child is noticed
                pipes[name].recv()
            for rate in RATES:
                costs: dict[str, float] = {}
                for name, (server, connection, table) in list(stacks.items()):
                    expected = int(rate * options.seconds) * options.clients
                    began, cpu = time.monotonic(), server.cpu()
                    pipes[name].send(("count", expected, began + options.seconds * 3 + 2))
                    pipes[name].recv()
                    publish(connection, table, rate, options.seconds)
                    published = time.monotonic()
                    marks, last = pipes[name].recv()
                    costs[name] = (server.cpu() - cpu) / max(marks, 1) * 1e6
                    rows.append(
                        [rate, name, int(marks / (last - began)), costs[name],
                         max(0.0, last - published), expected - marks]
                    )  # fmt: skip
                    if marks < expected:
                        # it would work on its backlog while the other stack is measured
                        del stacks[name]
                        server.kill()
                if len(costs) == 2:
                    rows.append([rate, "**ratio**", "", costs["rowcast"] / costs["naive"], "", ""])
    harness.table(
        ["messages/s", "stack", "deliveries/s", "CPU us per delivery", "behind s", "undelivered"],
        rows,
    )


if __name__ == "__main__":
    main()
