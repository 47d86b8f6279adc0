"""The delay of a revocation, and the cost for deliveries of rechecking all sessions."""

from __future__ import annotations

import re
import statistics
import threading
import time
import urllib.request
from typing import Any

import epoll_clients
import harness
import psycopg
import sessions

ATTACH = "select rowcast.recheck_on_change('public.room_members', user_column => 'user_id')"
PROBE = """
insert into realtime_channels (pattern) values ('probe:*');
create policy probes on realtime_channels for select to authenticated using (pattern = 'probe:*');
"""
NUMBER = re.compile(rb'"n": ?(\d+)')


class Probe:
    """One subscriber, in its own thread, that records when each number arrives."""

    def __init__(self, port: int) -> None:
        client = epoll_clients.Client(harness.token("probe"), "probe:1")
        crowd = epoll_clients.EpollClients(port, [client])
        crowd.connect([client])
        assert client.socket is not None
        self.heard: dict[int, float] = {}
        self._socket = client.socket
        self._socket.settimeout(0.2)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._stop.is_set():
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            if epoll_clients.PING in data:
                self._socket.send(epoll_clients.PONG)
            now = time.monotonic()
            for number in NUMBER.findall(data):
                self.heard[int(number)] = now

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def told(bridge: harness.Process, database: Any, rounds: int) -> list[float]:
    """Return the milliseconds from a DELETE to its `closed` frame, and from its commit."""
    client = epoll_clients.Client(harness.token("victim"), "room:0")
    epoll_clients.EpollClients(bridge.port, [client]).connect([client])
    assert client.socket is not None
    client.socket.setblocking(True)
    whole: list[float] = []
    with database.connect() as connection:
        for _ in range(rounds):
            began = time.monotonic()
            connection.execute("delete from room_members where user_id = 'victim'")
            _await(client.socket, b'"op":"closed"')
            whole.append((time.monotonic() - began) * 1e3)
            connection.execute("insert into room_members values ('victim', 'room:0')")
            client.socket.send(
                epoll_clients.frame({"op": "subscribe", "ref": "9", "channel": "room:0"})
            )
            _await(client.socket, b'"ref":"9"')
    client.socket.close()
    return whole


def _await(connected: Any, mark: bytes) -> None:
    data = b""
    while mark not in data:
        data += connected.recv(65536)
        if epoll_clients.PING in data:
            connected.send(epoll_clients.PONG)
            data = data.replace(epoll_clients.PING, b"")


def rechecks(bridge: harness.Process) -> float:
    with urllib.request.urlopen(f"{bridge.url}/metrics", timeout=30) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("rowcast_rechecks_total "):
                return float(line.split()[1])
    return 0.0


def delivered(
    bridge: harness.Process, url: str, probe: Probe, first: int, scope: str, asked: int
) -> list[object]:
    """Publish to the probe while all sessions are rechecked; return how long both took."""
    sent: dict[int, float] = {}
    with psycopg.connect(url, autocommit=True) as connection:
        before, cpu = rechecks(bridge), bridge.cpu()
        began = time.monotonic()
        if scope:
            connection.execute(f"select rowcast.recheck({scope})".encode())
        took = 0.0
        number = first
        while time.monotonic() - began < 3 or (asked and not took):
            number += 1
            sent[number] = time.monotonic()
            connection.execute(
                "insert into realtime_messages (channel_name, event_name, payload)"
                " values ('probe:1', 'bench', jsonb_build_object('n', %s::int))",
                [number],
            )
            time.sleep(0.005)
            if asked and not took and number % 10 == 0 and rechecks(bridge) - before >= asked:
                took = time.monotonic() - began
            if time.monotonic() - began > 60:
                raise TimeoutError("not all were asked within a minute")
        spent = bridge.cpu() - cpu
    time.sleep(0.5)
    late = [(probe.heard[n] - at) * 1e3 for n, at in sent.items() if n in probe.heard]
    return [
        scope or "no session",
        took,
        spent,
        len(sent) - len(late),
        statistics.median(late),
        harness.percentile(late, 0.99),
        max(late),
    ]


def main() -> None:
    options = harness.arguments(__doc__, sessions=10000, processes=2, rounds=100)
    harness.raise_file_limit(options.sessions * 2 + 1000)
    with harness.database(policies="") as database:
        with database.connect() as connection:
            connection.execute(sessions.POLICY.format(rooms=sessions.ROOMS, count=options.sessions))
            connection.execute("analyze room_members")
            connection.execute(ATTACH)
            connection.execute(PROBE)
            connection.execute("insert into room_members values ('victim', 'room:0')")
        with harness.bridge(database) as bridge:
            alone = told(bridge, database, options.rounds)
            crowd = sessions.Load(bridge.port, options.sessions, options.processes)
            for _ in range(10):
                crowd.do("more", options.sessions // options.processes // 10)
            crowded = told(bridge, database, options.rounds)
            harness.table(
                ["DELETE → closed, ms", "p50", "p99", "max"],
                [
                    [name, statistics.median(took), harness.percentile(took, 0.99), max(took)]
                    for name, took in (("alone", alone), (f"{options.sessions} sessions", crowded))
                ],
            )
            probe = Probe(bridge.port)
            rows = []
            for at, (scope, asked) in enumerate(
                [
                    ("", 0),
                    ("channel => 'room:*'", options.sessions),
                    ("", 0),
                    ("", 0),
                    ("null, null", options.sessions + 1),
                ]
            ):
                rows.append(delivered(bridge, database.url, probe, at * 100_000, scope, asked))
            probe.stop()
            harness.table(
                ["asked again", "seconds", "bridge CPU s", "lost", "probe p50 ms", "p99", "max"],
                rows,
            )
            crowd.do("drop")


if __name__ == "__main__":
    main()
