"""Memory per idle session, and the time until all sessions are back after a restart."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import epoll_clients
import harness

ROOMS = 1000
# Members of a room may subscribe to it: one index probe per check.
POLICY = """
create table room_members (user_id text, channel_name text, primary key (user_id, channel_name));
insert into room_members
select 'user' || i, 'room:' || i % {rooms} from generate_series(0, {count}) as i;
grant select on room_members to authenticated;
create policy members_subscribe on realtime_channels for select to authenticated
using (exists (
    select from room_members as m
    where m.user_id = (select rowcast.user_id()) and m.channel_name = rowcast.channel_name()
));
"""


def load(port: int, first: int, count: int, pipe: Connection) -> None:
    """Execute the commands of the pipe, and answer pings in between."""
    crowd = epoll_clients.EpollClients(
        port,
        [
            epoll_clients.Client(harness.token(f"user{i}"), f"room:{i % ROOMS}")
            for i in range(first, first + count)
        ],
    )
    done = 0
    pipe.send("ready")
    while True:
        crowd.run(pipe.poll)
        order, given = pipe.recv()
        answer: Any = None
        if order == "more":
            answer = crowd.connect(crowd.clients[done : done + given])
            done += given
        elif order == "drop":
            crowd.close()
        elif order == "resume":
            answer = (
                crowd.connect(crowd.clients),
                sum(b'"recovered":true' in client.answer for client in crowd.clients),
            )
        elif order == "stop":
            return
        pipe.send((answer, crowd.failed[:3]))


class Load:
    """All load processes, controlled as one."""

    def __init__(self, port: int, sessions: int, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        share = sessions // processes
        for number in range(processes):
            near, far = context.Pipe()
            context.Process(
                target=load, args=(port, number * share, share, far), daemon=True
            ).start()
            far.close()  # so that the death of a child is noticed
            self.pipes.append(near)
        for pipe in self.pipes:
            pipe.recv()

    def do(self, order: str, given: object = None) -> list[Any]:
        """Send a command to all processes and wait for all answers."""
        for pipe in self.pipes:
            pipe.send((order, given))
        answers = [pipe.recv() for pipe in self.pipes]
        for _, failed in answers:
            if failed:
                raise RuntimeError(f"refused: {failed}")
        return [answer for answer, _ in answers]


def main() -> None:
    options = harness.arguments(__doc__, sessions=10000, processes=2, memory_to=5000)
    allowed = harness.raise_file_limit(options.sessions * 2 + 1000)
    sessions = min(options.sessions, allowed - 500)
    if sessions < options.sessions:
        print(f"only {sessions} sessions: this process may have {allowed} files")
    with harness.database(policies="") as database:
        with database.connect() as connection:
            connection.execute(POLICY.format(rooms=ROOMS, count=sessions))
            connection.execute("analyze room_members")
        with harness.bridge(database) as first:
            crowd = Load(first.port, sessions, options.processes)
            memory(first, crowd, sessions, options)
            port = first.port
            crowd_cursors = time.monotonic()
            first.kill()
            crowd.do("drop")
        with database.connect() as connection:
            # missed messages: one in every tenth room
            connection.execute(
                "insert into realtime_messages (channel_name, event_name)"
                " select 'room:' || i * 10, 'bench' from generate_series(0, 99) as i"
            )
        started = time.monotonic()
        with harness.bridge(database, port=port) as second:
            ready = time.monotonic()
            before = second.cpu()
            answers = crowd.do("resume")
            end = time.monotonic()
            seconds = max(seconds for seconds, _ in answers)
            recovered = sum(count for _, count in answers)
            print(
                f"\nRestart: ready after {ready - started:.2f} s; {sessions} sessions connected and"
                f" resumed (policy asked, `after`) in {seconds:.2f} s ="
                f" {sessions / seconds:.0f}/s; bridge CPU {second.cpu() - before:.2f} s ="
                f" {(second.cpu() - before) / sessions * 1e6:.0f} us each; recovered {recovered};"
                f" from kill to all back {end - crowd_cursors:.2f} s"
            )
            crowd.do("drop")


def memory(bridge: harness.Process, crowd: Load, sessions: int, options: Any) -> None:
    """Connect in steps and measure the cost of each."""
    step = min(1000, sessions // 5)  # a slope needs more than one point
    step -= step % options.processes
    rows: list[list[object]] = []
    points: list[tuple[int, int]] = []
    for total in range(step, sessions + 1, step):
        cpu = bridge.cpu()
        seconds = max(crowd.do("more", step // options.processes))
        time.sleep(1.2)  # wait for the garbage collector and the cursors of the last step
        if total <= options.memory_to:
            points.append((total, bridge.rss()))
        rows.append(
            [total, bridge.rss() / 2**20, step / seconds, (bridge.cpu() - cpu) / step * 1e6]
        )
    harness.table(["sessions", "RSS MiB", "connect+subscribe/s", "CPU us each"], rows)
    slope, _ = statistics.linear_regression(
        [float(n) for n, _ in points], [float(size) for _, size in points]
    )
    print(f"\nMemory: {slope / 1024:.1f} KiB per idle session with one subscription")


if __name__ == "__main__":
    main()
