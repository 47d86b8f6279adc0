"""The cost of history and statistics over many messages, next to a plain count."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import harness
import psycopg

ADMIN = json.dumps({"role": "rowcast_admin"})
# as if stamped over the last weeks, a thousand per transaction
FILL = """
do $$
declare
    v_from constant timestamptz := (select min(from_at) from rowcast.leaf);
    v_width constant interval := (now() - v_from) / {messages};
begin
    perform set_config('session_replication_role', 'replica', false);
    perform set_config('synchronous_commit', 'off', false);
    for i in 1..{messages} / 1000 loop
        insert into public.realtime_messages
            (seq, id, channel_id, channel_name, event_name, payload, created_at)
        select nextval('rowcast.message_seq'), gen_random_uuid(), c.id,
            split_part(c.pattern, ':', 1) || ':' || n % 5000,
            (array['message.new', 'message.edit', 'message.read', 'typing', 'left'])[1 + n % 5],
            '{{"text": "Hello!", "userId": "123"}}', v_from + v_width * (i * 1000 - 1000 + n)
        from generate_series(1, 1000) as n
        join lateral (
            select c.id, c.pattern from public.realtime_channels as c
            where c.pattern = case when n % 10 = 0 then 'rare:*' else 'room:*' end
        ) as c on true;
        commit;
    end loop;
    perform set_config('session_replication_role', 'origin', false);
    perform set_config('synchronous_commit', 'on', false);
end $$
"""


def timed(ask: Callable[[], object], times: int) -> list[float]:
    """Return the milliseconds of each call, after a few calls to warm up."""
    for _ in range(3):
        ask()
    spent: list[float] = []
    for _ in range(times):
        started = time.perf_counter()
        ask()
        spent.append((time.perf_counter() - started) * 1e3)
    return spent


def fill(connection: psycopg.Connection[Any], messages: int) -> None:
    connection.execute("insert into realtime_channels (pattern) values ('rare:*')")
    for _ in range(7):
        connection.execute(
            "select rowcast.make_leaf(min(from_at) - interval '4 days', min(from_at))"
            " from rowcast.leaf"
        )
    connection.execute(FILL.format(messages=messages).encode())
    connection.execute("update rowcast.leaf set closing_xid = '3', closed_xid = '3'"
                       " where to_at < now()")  # fmt: skip
    connection.execute("vacuum analyze")


def counts(connection: psycopg.Connection[Any], times: int) -> None:
    """Compare statistics with the count that they equal."""
    channel = connection.execute(
        "select id from realtime_channels where pattern = 'room:*'"
    ).fetchone()
    assert channel is not None
    scopes = {
        "everything": ("null", "null", "true"),
        "one channel": (f"'{channel[0]}'", "null", f"channel_id = '{channel[0]}'"),
        "one name": ("null", "'room:7'", "channel_name = 'room:7'"),
    }
    rows: list[list[object]] = []
    for name, (by_id, by_name, condition) in scopes.items():
        for since in ("null", "now() - interval '1 hour'", "now() - interval '10 days'"):
            when = f" and created_at >= {since}" if since != "null" else ""
            ask = f"select rowcast.statistics({by_id}, {by_name}, {since})".encode()
            plain = (
                "select event_name, count(*) from realtime_messages"
                f" where type = 'message' and {condition}{when} group by 1"
            ).encode()
            ours = timed(lambda ask=ask: connection.execute(ask).fetchone(), times)
            theirs = timed(lambda plain=plain: connection.execute(plain).fetchall(), 3)
            rows.append(
                [name, since.removeprefix("now() - "), statistics.median(ours),
                 harness.percentile(ours, 0.99), statistics.median(theirs)]
            )  # fmt: skip
    harness.table(["statistics of", "since", "p50 ms", "p99 ms", "plain count ms"], rows)


def tails(connection: psycopg.Connection[Any], times: int) -> None:
    """Messages since the last fold are counted by the statistics query itself."""
    rows: list[list[object]] = []
    for tail in (0, 2000, 20_000):
        connection.execute(
            "insert into realtime_messages (channel_name, event_name)"
            " select 'room:' || n %% 1000, 'message.new' from generate_series(1, %s) as n",
            [tail],
        )
        asked = timed(
            lambda: connection.execute("select rowcast.statistics(null, null, null)").fetchone(),
            times,
        )
        started = time.perf_counter()
        connection.execute("select rowcast.statistics_update()")
        folded = (time.perf_counter() - started) * 1e3
        rows.append([tail, statistics.median(asked), folded])
    harness.table(["messages since the last fold", "statistics p50 ms", "fold ms"], rows)


def pages(connection: psycopg.Connection[Any], times: int) -> None:
    channel = connection.execute(
        "select id::text from realtime_channels where pattern = 'room:*'"
    ).fetchone()
    middle = connection.execute(
        "select xid::text, seq from realtime_messages where type = 'message'"
        " and created_at < now() - interval '12 days' order by created_at desc limit 1"
    ).fetchone()
    assert channel is not None
    assert middle is not None
    filters: dict[str, dict[str, Any]] = {
        "nothing": {},
        "channelId": {"channel": channel[0]},
        "channelName": {"name": "room:7"},
        "eventName": {"event": "typing"},
        "channelName, eventName": {"name": "room:7", "event": "message.read"},
    }
    rows: list[list[object]] = []
    for title, wanted in filters.items():
        for place, after in (("first", (None, None)), ("12 days back", middle)):
            values = [ADMIN, wanted.get("channel"), wanted.get("name"), wanted.get("event"), *after]
            spent = timed(
                lambda values=values: connection.execute(
                    "select * from rowcast.admin_messages(%s, %s, %s, %s, null, null, null, 50, 0,"
                    " %s, %s, 0)",
                    values,
                ).fetchone(),
                times,
            )
            rows.append([title, place, statistics.median(spent), harness.percentile(spent, 0.99)])
    harness.table(["page of 50 by", "page", "p50 ms", "p99 ms"], rows)


def plan(connection: psycopg.Connection[Any]) -> None:
    """Print the plan of the statistics of all channels."""
    said: list[str] = []
    connection.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    connection.execute("load 'auto_explain'")
    for name, value in (
        ("log_min_duration", "0"), ("log_analyze", "on"), ("log_nested_statements", "on"),
        ("log_timing", "off"),
    ):  # fmt: skip
        connection.execute(f"set auto_explain.{name} = {value}".encode())
    connection.execute("set client_min_messages = log")
    connection.execute("select rowcast.statistics(null, null, null)")
    connection.execute("reset client_min_messages")
    connection.execute("set auto_explain.log_min_duration = -1")
    found = next(text for text in said if "message_rollup" in text)
    print("\n```")
    print(re.sub(r"(?s)Query Text.*?\n(?=\w)", "", found))
    print("```\n", flush=True)


def main() -> None:
    options = harness.arguments(__doc__, messages=5_000_000, times=50)
    with harness.database() as database, database.connect() as connection:
        started = time.perf_counter()
        fill(connection, options.messages)
        filled = time.perf_counter()
        connection.execute("select rowcast.statistics_update()")
        folded = time.perf_counter()
        connection.execute("vacuum analyze")
        print(f"{options.messages} messages in {filled - started:.0f} s, "
              f"first fold of all {folded - filled:.1f} s\n")  # fmt: skip
        counts(connection, options.times)
        plan(connection)
        tails(connection, options.times)
        pages(connection, options.times)


if __name__ == "__main__":
    main()
