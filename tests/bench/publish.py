"""The number of commits per second that publishers reach.

Ratios to an INSERT into the same table without triggers, to one into a table that is not
partitioned either, and to INSERT with pg_notify. Uses pgbench of the measured server with prepared
statements, alternating rounds, medians of ratios.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path

import harness
import naive

CLIENTS = (1, 8, 32)
PAYLOAD = '{"text": "' + "x" * 180 + '"}'
ONE = (
    "\\set room random(1, 1000)\n"
    "insert into {table} (channel_name, event_name, payload)"
    f" values ('room:' || :room, 'bench', '{PAYLOAD}');\n"
)
MANY = (
    "\\set room random(1, 1000)\n"
    "insert into {table} (channel_name, event_name, payload)"
    f" select 'room:' || :room, 'bench', '{PAYLOAD}' from generate_series(1, 100);\n"
)
ELEMENT = '{"channel": "room:1", "event": "bench", "payload": ' + PAYLOAD + "}"
# realtime_messages without triggers: the same leaves, indexes and row level security, and
# defaults in place of the stamping trigger.
BARE = """
create sequence bare_seq;
create table bare (like realtime_messages including defaults) partition by list (type);
alter table bare
    alter seq set default nextval('bare_seq'),
    alter id set default gen_random_uuid(),
    alter channel_id set default gen_random_uuid();
alter table bare enable row level security;
create table bare_durable partition of bare for values in ('message')
partition by range (created_at);
create table bare_default partition of bare_durable default;
create unlogged table bare_broadcast partition of bare for values in ('broadcast');
create table bare_untyped partition of bare default;
create index on bare_durable (xid);
create index on bare_durable (channel_name, xid);
create index on bare_durable (channel_id, seq);
create index on bare_durable using brin (created_at);
do $$
declare
    leaf rowcast.leaf;
begin
    for leaf in select * from rowcast.leaf loop
        execute format(
            'create table bare_%s partition of bare_durable for values from (%L) to (%L)',
            leaf.name, leaf.from_at, leaf.to_at
        );
    end loop;
end;
$$;
"""
MANY_JSON = f"select rowcast.publish_many('[{', '.join([ELEMENT] * 100)}]');\n"


@contextlib.contextmanager
def asleep(database: harness.pg.Database) -> Iterator[None]:
    """Simulate the worst case: a bridge that never wakes, so that every commit rings."""
    with database.connect(database.bridge_url) as connection:
        connection.execute("listen rowcast")
        row = connection.execute("select rowcast.sleep_begin()").fetchone()
        assert row == (True,)
        yield


@contextlib.contextmanager
def awake(database: harness.pg.Database) -> Iterator[None]:
    """Run a real bridge with default settings; under load it polls."""
    with harness.bridge(database):
        yield


VARIANTS = {
    "same table": ("bare", contextlib.nullcontext),
    "plain": ("plain", contextlib.nullcontext),
    "notify": ("naive", contextlib.nullcontext),
    "no bridge": ("realtime_messages", contextlib.nullcontext),
    "awake": ("realtime_messages", awake),
    "asleep": ("realtime_messages", asleep),
}


def pgbench(
    binaries: Path, database: harness.pg.Database, script: str, clients: int, seconds: float
) -> float:
    """Return the transactions per second."""
    done = subprocess.run(
        [
            str(binaries / "pgbench"), "-n", "-M", "prepared", "-f", "/dev/stdin",
            "-c", str(clients), "-j", str(min(clients, 2)), "-T", str(max(1, int(seconds))),
            database.url,
        ],
        input=script, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = re.search(r"tps = ([\d.]+) \(without", done.stdout)
    if found is None:
        raise RuntimeError(done.stdout + done.stderr)
    return float(found[1])


def empty(database: harness.pg.Database) -> None:
    """Start every round with small indexes and without a due checkpoint."""
    with database.connect() as connection:
        connection.execute("truncate bare, plain, naive, realtime_messages")
        connection.execute("checkpoint")


def singles(binaries: Path, database: harness.pg.Database, rounds: int, seconds: float) -> None:
    rows: list[list[object]] = []
    for clients in CLIENTS:
        rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
        for _ in range(rounds):
            for name, (target, attached) in VARIANTS.items():
                empty(database)
                script = ONE.replace("{table}", target)
                with attached(database):
                    rates[name].append(pgbench(binaries, database, script, clients, seconds))
        for name, measured in rates.items():
            rows.append(
                [clients, name, harness.ratio(measured, rates["same table"]),
                 harness.ratio(measured, rates["plain"]), harness.ratio(measured, rates["notify"]),
                 int(statistics.median(measured))]
            )  # fmt: skip
    harness.table(
        ["clients", "variant", "to same table", "to plain", "to notify", "commits/s"], rows
    )


def batches(binaries: Path, database: harness.pg.Database, rounds: int, seconds: float) -> None:
    scripts = {
        "same table, 100 rows": MANY.replace("{table}", "bare"),
        "plain, 100 rows": MANY.replace("{table}", "plain"),
        "notify, 100 rows": MANY.replace("{table}", "naive"),
        "INSERT of 100 rows": MANY.replace("{table}", "realtime_messages"),
        "publish_many of 100": MANY_JSON,
    }
    rows: list[list[object]] = []
    for clients in (1, 8):
        rates: dict[str, list[float]] = {name: [] for name in scripts}
        for _ in range(rounds):
            for name, script in scripts.items():
                empty(database)
                rates[name].append(pgbench(binaries, database, script, clients, seconds))
        for name, measured in rates.items():
            rows.append(
                [clients, name, harness.ratio(measured, rates["same table, 100 rows"]),
                 harness.ratio(measured, rates["plain, 100 rows"]),
                 int(statistics.median(measured) * 100)]
            )  # fmt: skip
    harness.table(["clients", "variant", "to same table", "to plain", "rows/s"], rows)


def main() -> None:
    options = harness.arguments(__doc__, seconds=3.0, rounds=3)
    with harness.database() as database:
        with database.connect() as connection:
            connection.execute(naive.SETUP)
            connection.execute(BARE)
        singles(options.binaries, database, options.rounds, options.seconds)
        batches(options.binaries, database, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
