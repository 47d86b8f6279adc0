"""The feed: every committed row once, nothing else, whatever writers do and however they end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import pg
from support.feed_reader import Cursor, ask, drain, insert_raw, reboot, replay
from support.messages import add_channel, only, publish
from support.waiting import eventually

Connection = psycopg.Connection[Any]

WRITERS = 14
SECONDS = float(os.environ.get("ROWCAST_STRESS_SECONDS", "5"))


@pytest.fixture
def bridge(database: pg.Database, db: Connection) -> Iterator[Connection]:
    """The bridge's own login: it may read the feed and nothing of the tables."""
    add_channel(db, "room:*")
    only(db, "select rowcast.boot_id()::text")
    with database.connect(database.bridge_url) as connection:
        yield connection


@st.composite
def snapshots(draw: st.DrawFn) -> tuple[int, frozenset[int]]:
    """The xmax and the transactions in progress of any snapshot."""
    xmax = draw(st.integers(4, 40))
    return xmax, draw(st.frozensets(st.integers(3, xmax - 1), max_size=12))


def written(snapshot: tuple[int, frozenset[int]]) -> str:
    xmax, running = snapshot
    return f"{min(running, default=xmax)}:{xmax}:{','.join(map(str, sorted(running)))}"


def ended(snapshot: tuple[int, frozenset[int]]) -> set[int]:
    xmax, running = snapshot
    return set(range(3, xmax)) - running


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(then=snapshots(), now=snapshots())
def test_the_spans_are_exactly_what_ended_in_between(
    tx: Connection, then: tuple[int, frozenset[int]], now: tuple[int, frozenset[int]]
) -> None:
    spans = tx.execute(
        "select first::text::int, last::text::int"
        " from rowcast.xid_ranges(%s::pg_snapshot, %s::pg_snapshot)",
        [written(then), written(now)],
    ).fetchall()
    covered = [xid for first, last in spans for xid in range(first, last + 1)]
    assert len(covered) == len(set(covered)), "no xid is read twice"
    assert set(covered) == ended(now) - ended(then)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(then=snapshots(), now=snapshots(), quiet=st.booleans())
def test_the_single_span_of_a_drain_is_the_one_of_spans(
    tx: Connection,
    then: tuple[int, frozenset[int]],
    now: tuple[int, frozenset[int]],
    quiet: bool,
) -> None:
    """feed() has a short cut where nothing ran and nothing runs; its condition and its span."""
    if quiet:
        then, now = (then[0], frozenset()), (now[0], frozenset())
    source: str = only(tx, "select prosrc from pg_proc where proname = 'feed'")
    condition = re.search(r"if (v_xmin = .+) then\n", source)
    span = re.findall(r"v_(?:first|last) := array\[(.+)\];", source)
    assert condition is not None
    assert len(span) == 2
    row = tx.execute(
        f"select {condition[1]}, v_xmin < v_xmax, array[{span[0]}, {span[1]}]::text[], s.all"
        " from (select %s::pg_snapshot as v_then, %s::pg_snapshot as v_now) as given,"
        " lateral (select pg_snapshot_xmin(v_then) as v_xmin, pg_snapshot_xmax(v_now) as v_xmax)"
        " as x, lateral (select array_agg(array[s.first::text, s.last::text]) as all"
        " from rowcast.xid_ranges(v_then, v_now) as s) as s".encode(),
        [written(then), written(now)],
    ).fetchone()
    assert row is not None
    short, some, found, spans = row
    assert short or not quiet
    if short:
        assert spans == ([found] if some else None)


def write(database: pg.Database, writer: int, until: float, committed: set[str]) -> None:
    """Transactions of any length that end in any way; what is committed is noted afterwards."""
    dice = random.Random(writer)
    made = 0

    def said(connection: Connection) -> list[str]:
        nonlocal made
        names = [f"{writer}-{made + n}" for n in range(dice.choice([1, 1, 1, 5]))]
        made += len(names)
        connection.execute(
            "insert into public.realtime_messages (type, channel_name, event_name)"
            " select %s, %s, n from unnest(%s::text[]) as n",
            [dice.choice(["message", "broadcast"]), f"room:{dice.randrange(3)}", names],
        )
        return names

    with database.connect() as connection:
        while time.monotonic() < until:
            names: list[str] = []
            try:
                with connection.transaction():
                    for _ in range(dice.choice([1, 1, 2, 4])):
                        names += said(connection)
                        connection.execute("select pg_sleep(%s)", [dice.choice([0, 0, 0.01, 0.1])])
                    with connection.transaction() as savepoint:
                        kept = said(connection)
                        if dice.random() < 0.5:
                            kept = []
                            raise psycopg.Rollback(savepoint)
                    names += kept
                    if dice.random() < 0.2:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                continue
            committed.update(names)


@pytest.mark.stress
def test_many_writers_are_read_once_and_in_order(
    database: pg.Database, db: Connection, bridge: Connection
) -> None:
    """Everything that many writers commit comes once and in order."""
    cursor = ask(bridge)
    committed: set[str] = set()
    idler = database.connect(autocommit=False)
    publish(idler, "room:1", "idle")
    idle_from = ask(bridge)
    until = time.monotonic() + SECONDS
    writers = [
        threading.Thread(target=write, args=(database, n, until, committed)) for n in range(WRITERS)
    ]
    for thread in writers:
        thread.start()
    seen: list[str] = []
    drains = 0
    over = False
    while not over:
        over = not any(thread.is_alive() for thread in writers)
        if over:
            assert "idle" not in seen
            idler.commit()
            committed.add("idle")
        found = drain(bridge, cursor)
        cursor = found.cursor
        numbers = [row.seq for row in found.rows]
        assert numbers == sorted(numbers)
        seen += found.events
        drains += 1
    idler.close()
    assert drains > 10
    assert len(committed) > WRITERS
    assert len(seen) == len(set(seen)), "nothing comes twice"
    assert set(seen) - committed == set(), "nothing that was rolled back comes"
    assert committed - set(seen) == set(), "nothing is lost"
    # the same from one old cursor in one drain
    assert sorted(drain(bridge, idle_from).events) == sorted(seen)


def hits(connection: Connection, cursor: Cursor) -> int:
    """How many buffers one drain reads."""
    plan = only(
        connection,
        "explain (analyze, buffers, format json)"
        " select * from rowcast.feed(%s, %s, %s, null, null)",
        [cursor.snapshot, cursor.boot, cursor.issued_at],
    )
    plan = json.loads(plan) if isinstance(plan, str) else plan
    return int(plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"])


def fill(connection: Connection, rows: int) -> None:
    """Insert many messages of one transaction past the triggers."""
    with connection.transaction():
        connection.execute("set local session_replication_role = replica")
        connection.execute(
            "insert into public.realtime_messages (seq, id, channel_name, event_name, payload)"
            " select n, gen_random_uuid(), 'room:1', 'large', to_jsonb(repeat('x', 300))"
            " from generate_series(1, %s) as n",
            [rows],
        )


def test_a_large_unfinished_transaction_is_not_visited(
    database: pg.Database, db: Connection, bridge: Connection
) -> None:
    cursor = ask(bridge)
    with database.connect(autocommit=False) as large:
        large.execute("select 1")  # so that what follows is only a savepoint
        fill(large, 20_000)
        xid = int(only(large, "select pg_current_xact_id()::text"))
        publish(db, "room:1", "small")
        now = drain(bridge, cursor)
        spans = db.execute(
            "select first::text::bigint, last::text::bigint"
            " from rowcast.xid_ranges(%s::pg_snapshot, %s::pg_snapshot)",
            [cursor.snapshot, now.cursor.snapshot],
        ).fetchall()
        assert not [span for span in spans if span[0] <= xid <= span[1]]
        assert now.events == ["small"]
        # The first one of a session also reads the catalogue, and so does one that comes after
        # an invalidation from elsewhere.
        spared = min(hits(db, cursor) for _ in range(5))
        large.commit()
    assert hits(db, cursor) > 500 + spared, "so much each poll would have cost"
    assert len(drain(bridge, now.cursor).events) == 20000


def test_a_drain_reads_only_what_is_new(
    own_server: pg.OwnServer,
) -> None:
    """Each of them splits the range of new xids; a join of many ranges looks to the planner as
    if it were cheaper to read everything."""
    with contextlib.ExitStack() as running:
        # A server of its own: what runs long here would hold back the cursors of others.
        database = running.enter_context(own_server.database())
        db = running.enter_context(database.connect())
        bridge = running.enter_context(database.connect(database.bridge_url))
        only(db, "select rowcast.boot_id()::text")
        add_channel(db, "room:*")
        fill(db, 20_000)
        cursor = ask(bridge)
        for number in range(12):
            writer = running.enter_context(database.connect(autocommit=False))
            writer.execute("select pg_current_xact_id()")
            publish(db, "room:1", f"small {number}")
        assert drain(bridge, cursor).events == [f"small {number}" for number in range(12)]
        spans = only(
            db,
            "select count(*) from rowcast.xid_ranges(%s::pg_snapshot, pg_current_snapshot())",
            [cursor.snapshot],
        )
        assert spans >= 12
        # Reading everything takes 1,000 blocks; one probe of a leaf, three.
        assert min(hits(db, cursor) for _ in range(5)) < 700


def scans(plan: list[Any]) -> list[str]:
    """The names of the indexes in a plan."""
    return re.findall(r"(?:using|Bitmap Index Scan on) (\w+)", "\n".join(line for (line,) in plan))


@pytest.mark.parametrize("compiled", ["read_new_range", "read_new_ranges"])
def test_a_plan_made_on_empty_leaves_reads_by_xid(db: Connection, compiled: str) -> None:
    """Bridges keep it: a leaf vacuumed the evening before is full at noon."""
    add_channel(db, "room:*")
    db.execute("vacuum (analyze) realtime_messages, rowcast.signal, rowcast.presence")
    db.execute("set enable_seqscan = off")
    db.execute("set plan_cache_mode = force_generic_plan")
    db.execute(
        f"prepare drain(xid8[], xid8[]) as select f.*"  # type: ignore[arg-type]
        f" from rowcast.{compiled}($1, $2, 0, 0, '3', now()) as f"
    )
    plan = db.execute("explain execute drain(array['9'::xid8], array['9'::xid8])").fetchall()
    conditions = [line for (line,) in plan if "Index Cond" in line]
    assert len(conditions) == len(only(db, "select rowcast.leaves_for('3', null)")) + 2
    assert [
        line for line in conditions if not line.strip().startswith("Index Cond: ((xid >=")
    ] == []
    assert [name for name in scans(plan) if "channel" in name or "xid" not in name] == []


def test_the_snapshot_comes_first_also_when_nothing_is_new(bridge: Connection) -> None:
    cursor = ask(bridge)
    found = drain(bridge, cursor)
    assert (found.rows, found.more) == ([], False)
    assert found.cursor.boot == cursor.boot
    assert found.cursor.issued_at > cursor.issued_at
    assert found.cursor.xmax >= cursor.xmax


def test_without_a_cursor_it_only_asks(db: Connection, bridge: Connection) -> None:
    publish(db, "room:1")
    assert drain(bridge, None).rows == []


def test_a_message_comes_with_all_that_its_envelope_needs(
    db: Connection, bridge: Connection
) -> None:
    cursor = ask(bridge)
    message = publish(db, "room:1", "said", payload='{"text": "hé"}', type="broadcast")
    (row,) = drain(bridge, cursor).rows
    assert (row.kind, row.id, row.type) == ("message", message, "broadcast")
    assert (row.channel_name, row.event_name) == ("room:1", "said")
    assert row.payload == '{"text": "hé"}'
    assert (row.sender_type, row.sender_id) == ("system", None)
    assert row.channel_id == only(db, "select id from public.realtime_channels")
    assert row.created_at > cursor.issued_at


@pytest.mark.parametrize(
    ("limits", "count", "more"),
    [
        ({"rows": 3}, 3, True),
        ({"rows": 5}, 5, False),
        ({"rows": 0}, 0, True),
        ({"size": 25}, 2, True),
        ({"size": 50}, 5, False),
        ({"rows": 4, "size": 1000}, 4, True),
        ({}, 5, False),
    ],
)
def test_a_drain_over_a_limit_ends_with_more(
    db: Connection, bridge: Connection, limits: dict[str, int], count: int, more: bool
) -> None:
    cursor = ask(bridge)
    for n in range(5):
        publish(db, "room:1", str(n), payload='{"n": 123}')  # ten bytes
    found = drain(bridge, cursor, **limits)
    assert found.events == [str(n) for n in range(count)]
    assert found.more is more


def test_a_deleted_message_is_a_signal_and_no_message(db: Connection, bridge: Connection) -> None:
    message = publish(db, "room:1", "gone")
    publish(db, "room:1", "kept")
    cursor = ask(bridge)
    assert only(db, "select rowcast.delete_message(%s)", [message]) is True
    found = drain(bridge, cursor)
    assert [row.kind for row in found.rows] == ["deleted"]
    assert json.loads(found.rows[0].payload) == {
        "channel": "room:1",
        "channel_id": str(only(db, "select id from realtime_channels")),
        "id": str(message),
    }
    assert drain(bridge, found.cursor).rows == []
    assert only(db, "select rowcast.delete_message(%s)", [message]) is False
    assert only(db, "select rowcast.delete_message(%s)", [uuid4()]) is False
    assert drain(bridge, found.cursor).rows == [], "nothing was deleted, no client is told"


def test_a_message_deleted_before_the_drain_does_not_come(
    db: Connection, bridge: Connection
) -> None:
    cursor = ask(bridge)
    message = publish(db, "room:1", "gone")
    only(db, "select rowcast.delete_message(%s)", [message])
    assert [row.kind for row in drain(bridge, cursor).rows] == ["deleted"]


def test_after_a_crash_rows_are_found_by_their_time(db: Connection, bridge: Connection) -> None:
    """Xids are handed out again: a row that is newer may have one that the cursor has seen."""
    db.execute("update rowcast.settings set clock_skew = '0'")
    publish(db, "room:1", "before")
    cursor = ask(bridge)
    boot = reboot(db)
    insert_raw(db, "room:1", "reused", xid="10")
    publish(db, "room:1", "fresh")
    found = drain(bridge, cursor)
    assert found.events == ["reused", "fresh"]
    assert found.cursor.boot == boot != cursor.boot
    assert drain(bridge, replace(cursor, boot=boot)).events == ["fresh"], "xids alone miss it"
    assert drain(bridge, found.cursor).events == [], "the new cursor trusts its xids again"


def test_after_a_crash_the_span_of_the_clock_skew_comes_again(
    db: Connection, bridge: Connection
) -> None:
    publish(db, "room:1", "before")
    cursor = ask(bridge)
    reboot(db)
    publish(db, "room:1", "after")
    assert drain(bridge, cursor).events == ["before", "after"], "clients drop repeats by id"


def test_a_lost_boot_row_is_told_and_nothing_is_read_without_it(
    db: Connection, bridge: Connection
) -> None:
    cursor = ask(bridge)
    publish(db, "room:1")
    db.execute("delete from rowcast.boot")
    found = drain(bridge, cursor)
    assert (found.cursor.boot, found.rows) == (None, [])


def test_what_is_at_or_below_the_floor_is_never_news(db: Connection, bridge: Connection) -> None:
    cursor = ask(bridge)
    for event in "abc":
        publish(db, "room:1", event)
    db.execute(
        "update rowcast.origin set seq_floor ="
        " (select m.seq from public.realtime_messages as m where m.event_name = 'b')"
    )
    assert drain(bridge, cursor).events == ["c"]
    reboot(db)
    assert drain(bridge, cursor).events == ["c"], "nor is it by its time"


def test_rows_that_came_without_their_sequence_are_history_too(
    db: Connection, bridge: Connection
) -> None:
    """So it is after logical replication, which carries no sequences."""
    for _ in range(3):
        publish(db, "room:1")
    newest = only(db, "select max(seq) from public.realtime_messages")
    db.execute("select setval('rowcast.message_seq', 1, false)")
    db.execute("update rowcast.origin set system_identifier = 7")
    assert only(db, "select rowcast.adopt()") is True
    assert only(db, "select seq_floor from rowcast.origin") == newest
    only(db, "select rowcast.boot_id()::text")
    since = ask(bridge)
    publish(db, "room:1", "new")
    assert drain(bridge, since).events == ["new"]


@pytest.mark.parametrize("asked", ["drain", "replay"])
def test_a_rewrite_during_a_drain_loses_nothing(
    database: pg.Database, db: Connection, bridge: Connection, asked: str
) -> None:
    """All rows then belong to the statement that rewrote them, which no earlier snapshot sees."""
    since = ask(bridge)
    publish(db, "room:1", "before")
    until = ask(bridge)

    def read() -> list[str]:
        if asked == "drain":
            return drain(bridge, since).events
        (answer,) = replay(bridge, [("room:1", since)], until)
        return answer.events

    with database.connect(autocommit=False) as team, ThreadPoolExecutor(1) as pool:
        team.execute(
            "alter table public.realtime_messages add column note uuid default gen_random_uuid()"
        )
        waiting = pool.submit(read)
        eventually(lambda: only(db, "select exists (select from pg_locks where not granted)"))
        team.commit()
        with pytest.raises(psycopg.errors.SerializationFailure):
            waiting.result()
    assert read() == ["before"]
