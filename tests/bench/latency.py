"""Latency from commit to socket, next to the naive stack: trigger, NOTIFY, listener, send_str.

Publisher and subscribers are separate processes on one clock; the two stacks alternate with every
message.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import statistics
import sys
import time
from multiprocessing.connection import Connection

import epoll_clients
import harness
import naive
import psycopg

RATES = {"idle, 4/s with jitter": (4.0, 1.0), "20/s": (20.0, 0.5), "200/s": (200.0, 0.2)}
NUMBER = re.compile(rb'"n": ?(\d+)')
INSERTS = {
    "rowcast": "insert into realtime_messages (channel_name, event_name, payload)"
    " values ('room:1', 'bench', %s::jsonb)",
    "naive": "insert into naive (channel_name, event_name, payload)"
    " values ('room:1', 'bench', %s::jsonb)",
}


def receive(port: int, pipe: Connection) -> None:
    """Subscribe and record when each number arrives; send the records on command."""
    clients = [epoll_clients.Client(harness.token("alice"), "room:1")]
    crowd = epoll_clients.EpollClients(port, clients)
    crowd.connect(clients)
    connected = clients[0].socket
    assert connected is not None
    connected.settimeout(0.2)
    heard: dict[int, int] = {}
    pipe.send("ready")
    while not pipe.poll():
        try:
            data = connected.recv(65536)
        except TimeoutError:
            continue
        now = time.monotonic_ns()
        if epoll_clients.PING in data:
            connected.send(epoll_clients.PONG)
        for number in NUMBER.findall(data):
            heard[int(number)] = now
    pipe.send(heard)


def publish(
    urls: dict[str, str], seconds: dict[str, float]
) -> dict[tuple[str, str], list[tuple[int, int, int]]]:
    """Insert in turns; return (number, before, after the commit) by rate and stack."""
    connections = {name: psycopg.connect(url, autocommit=True) for name, url in urls.items()}
    sent: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
    number = 0
    for label, (rate, jitter) in RATES.items():
        gap = 1 / rate / len(urls)
        due = time.monotonic() + 1
        for _ in range(int(seconds[label] * rate)):
            for name, connection in connections.items():
                due += gap * random.uniform(1 - jitter / 2, 1 + jitter / 2)
                time.sleep(max(0.0, due - time.monotonic()))
                number += 1
                body = json.dumps({"n": number, "text": "x" * 100})
                before = time.monotonic_ns()
                connection.execute(INSERTS[name], [body], prepare=True)
                after = time.monotonic_ns()
                sent.setdefault((label, name), []).append((number, before, after))
    return sent


def main() -> None:
    options = harness.arguments(__doc__, seconds=60.0)
    context = multiprocessing.get_context("spawn")
    seconds = dict(
        zip(RATES, (options.seconds, options.seconds / 3, options.seconds / 6), strict=True)
    )
    # two databases, so that one stack's notifications do not wake the other's listener
    with harness.database() as database, harness.pg.create_database(database.server) as other:
        with other.connect() as connection:
            connection.execute(naive.SETUP)
        with (
            harness.bridge(database) as ours,
            harness.process([sys.executable, naive.__file__, other.url], {}) as theirs,
        ):
            pipes: dict[str, Connection] = {}
            for name, server in (("rowcast", ours), ("naive", theirs)):
                pipes[name], far = context.Pipe()
                context.Process(target=receive, args=(server.port, far), daemon=True).start()
                far.close()  # so that the death of a child is noticed
                assert pipes[name].recv() == "ready"
            sent = publish({"rowcast": database.url, "naive": other.url}, seconds)
            time.sleep(1)
            heard = {}
            for name, pipe in pipes.items():
                pipe.send("stop")
                heard[name] = pipe.recv()
            report(sent, heard)


def report(
    sent: dict[tuple[str, str], list[tuple[int, int, int]]], heard: dict[str, dict[int, int]]
) -> None:
    rows: list[list[object]] = []
    for label in RATES:
        figures: dict[str, tuple[float, ...]] = {}
        for name in INSERTS:
            notes = [n for n in sent[label, name] if n[0] in heard[name]]
            lost = len(sent[label, name]) - len(notes)
            commit = [(heard[name][n] - after) / 1e6 for n, _, after in notes]
            whole = [(heard[name][n] - before) / 1e6 for n, before, _ in notes]
            insert = [(after - before) / 1e6 for _, before, after in notes]
            figures[name] = (
                statistics.median(commit),
                harness.percentile(commit, 0.99),
                statistics.median(insert),
                statistics.median(whole),
                harness.percentile(whole, 0.99),
            )
            rows.append([label, name, len(notes), lost, *figures[name]])
        a, b = figures["rowcast"], figures["naive"]
        rows.append([label, "**ratio**", "", "", *(x / y for x, y in zip(a, b, strict=True))])
    harness.table(
        ["rate", "stack", "n", "lost", "commit→socket p50 ms", "p99", "INSERT p50",
         "INSERT→socket p50", "p99"],
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
