"""Nodes, audience and presence as bridges write them and as all roles read them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest

from support import pg
from support.feed_reader import ask, drain
from support.messages import add_channel, only, publish, refused
from support.waiting import eventually

Connection = psycopg.Connection[Any]

ONE, TWO = UUID(int=1), UUID(int=2)
ADMIN = json.dumps({"role": "rowcast_admin"})


@pytest.fixture
def node(tx: Connection) -> Connection:
    """A transaction with a channel and two nodes that live."""
    add_channel(tx, "room:*")
    for each in (ONE, TWO):
        beat(tx, each)
    return tx


def beat(connection: Connection, node: UUID, lease: str = "1 minute") -> bool:
    return bool(only(connection, "select rowcast.node_beat(%s, %s::interval)", [node, lease]))


def count(connection: Connection, node: UUID, **counts: int) -> bool:
    """Write counts of channels `room:<name>`."""
    names = [f"room:{name}" for name in counts]
    query = "select rowcast.audience_write(%s, %s, %s)"
    return bool(only(connection, query, [node, names, list(counts.values())]))


def show(
    connection: Connection, node: UUID, *members: tuple[str, Any], limit: int = 4096
) -> list[int] | None:
    """Write members of `room:1`, with a state or None."""
    keys = [key for key, _ in members]
    states = [None if state is None else json.dumps(state) for _, state in members]
    n = len(members)
    query = "select rowcast.presence_write(%s, %s, %s, %s::text[], %s::int[], %s::bool[], %s)"
    values = [node, ["room:1"] * n, keys, states, [1] * n, [False] * n, limit]
    found: list[int] | None = only(connection, query, values)
    return found


def present(connection: Connection) -> dict[str, Any]:
    rows = connection.execute("select key, state from rowcast.presence_state('room:1')")
    return dict(rows.fetchall())


def stamped(connection: Connection, channel: str = "room:1") -> int:
    query = (
        "insert into realtime_messages (channel_name, event_name) values (%s, 'e')"
        " returning ws_audience_count"
    )
    return int(only(connection, query, [channel]))


def test_a_message_notes_the_sum_of_all_nodes(node: Connection) -> None:
    assert stamped(node) == 0
    assert count(node, ONE, **{"1": 3, "2": 1})
    assert count(node, TWO, **{"1": 4})
    assert (stamped(node), stamped(node, "room:2"), stamped(node, "room:3")) == (7, 1, 0)
    assert only(node, "select rowcast.audience('room:1')") == 7


def test_counts_are_absolute_and_may_be_written_again(node: Connection) -> None:
    for _ in range(3):
        count(node, ONE, **{"1": 3})
    assert stamped(node) == 3
    count(node, ONE, **{"1": 0})
    count(node, ONE, **{"1": 0})
    assert stamped(node) == 0
    assert only(node, "select count(*) from rowcast.audience_total") == 0


def test_sums_agree_with_counts_after_any_writes(node: Connection) -> None:
    node.execute(
        """
        select rowcast.audience_write(
            ('{00000000-0000-0000-0000-000000000001,00000000-0000-0000-0000-000000000002}'::uuid[])
                [1 + i %% 2],
            array['room:' || i %% 3, 'room:' || i %% 5 + 3], array[i * 7 %% 4, i * 11 %% 3]
        ) from generate_series(1, 300) as i
        """.replace("%%", "%")
    )
    query = """
        select count(*)
        from (select channel_name, sum(sessions) from rowcast.audience group by 1) as a
        full join rowcast.audience_total as t using (channel_name)
        where a.sum is distinct from t.sessions
    """
    assert only(node, query) == 0


def test_the_pattern_counts_only_where_the_channel_says_wildcard(node: Connection) -> None:
    count(node, ONE, **{"*": 10, "1": 1})
    assert stamped(node) == 1
    node.execute("update realtime_channels set wildcard = true")
    assert (stamped(node), stamped(node, "room:2")) == (11, 10)
    assert only(node, "select rowcast.audience('room:2')") == 10


def test_an_expired_node_is_reaped(node: Connection) -> None:
    """A node whose lease has run out is reaped by the next heartbeat."""
    count(node, ONE, **{"1": 1})
    count(node, TWO, **{"1": 2})
    show(node, ONE, ("ann", {}))
    show(node, TWO, ("ann", {}), ("bob", {}))
    beat(node, TWO, "-1 second")  # reaps itself
    assert stamped(node) == 1
    assert present(node).keys() == {"ann"}
    assert not count(node, TWO, **{"1": 2})
    assert show(node, TWO, ("bob", {})) is None
    assert present(node).keys() == {"ann"}
    assert not beat(node, TWO)
    assert beat(node, TWO)
    assert count(node, TWO, **{"1": 2})
    assert stamped(node) == 3


def test_dead_bridges_count_no_clients(node: Connection) -> None:
    """Where every bridge is dead, no client is counted or present."""
    count(node, ONE, **{"1": 1})
    show(node, ONE, ("ann", {}))
    node.execute("update rowcast.node set expires_at = clock_timestamp() - interval '1 second'")
    node.execute("select setval('rowcast.alive_until', 1)")
    assert stamped(node) == 0
    assert only(node, "select rowcast.audience('room:1')") == 0
    assert present(node) == {}


def test_an_ended_node_leaves_its_members_for_a_while(
    node: Connection,
) -> None:
    """A node that ends in order takes its counts away and leaves its members for a while."""
    count(node, ONE, **{"1": 1})
    show(node, ONE, ("ann", {}))
    node.execute("select rowcast.node_leave(%s, '1 minute')", [ONE])
    node.execute("select rowcast.node_leave(%s, '1 minute')", [TWO])
    assert stamped(node) == 0
    assert present(node).keys() == {"ann"}
    assert only(node, "select count(*) from rowcast.node") == 1


def test_the_newest_row_of_a_member_speaks_and_the_others_remain(node: Connection) -> None:
    show(node, ONE, ("ann", {"n": 1}), ("bob", {"n": 1}))
    show(node, TWO, ("ann", {"n": 2}))
    assert present(node) == {"ann": {"n": 2}, "bob": {"n": 1}}
    query = "select sessions from rowcast.presence_state('room:1') where key = 'ann'"
    assert only(node, query) == 2
    show(node, TWO, ("ann", None))
    assert present(node) == {"ann": {"n": 1}, "bob": {"n": 1}}
    show(node, ONE, ("ann", None), ("bob", None))
    assert present(node) == {}


def test_a_state_over_the_limit_is_reported(node: Connection) -> None:
    """A state over the limit is reported, and the others are written."""
    show(node, ONE, ("ann", {"n": 1}))
    long = ("ann", {"x": "y" * 100})
    assert show(node, ONE, ("bob", {}), long, ("eve", {}), limit=50) == [2]
    assert present(node) == {"ann": {"n": 1}, "bob": {}, "eve": {}}


def test_the_feed_tells_of_states_and_of_those_who_left(database: pg.Database) -> None:
    with database.connect(database.bridge_url) as bridge, database.connect() as db:
        bridge.execute("select rowcast.boot_id()")
        beat(bridge, ONE)
        at = ask(bridge)
        show(bridge, ONE, ("ann", {"n": 1}), ("bob", {"n": 1}))
        for n in range(2, 50):
            show(bridge, ONE, ("ann", {"n": n}))
        found = drain(bridge, at)
        told = {row.sender_id: json.loads(row.payload) for row in found.rows}
        assert told == {"ann": {"n": 49}, "bob": {"n": 1}}
        assert len(found.rows) == 2, "states, not events"
        assert {row.channel_name for row in found.rows} == {"room:1"}
        show(bridge, ONE, ("bob", None))
        (row,) = drain(bridge, found.cursor).rows
        assert (row.kind, row.sender_id, row.payload) == ("presence", "bob", "null")
        assert drain(bridge, drain(bridge, at).cursor).rows == []
        assert only(db, "select count(*) from rowcast.presence") == 2
        db.execute("update rowcast.presence set left_at = left_at - interval '59 seconds'")
        db.execute("select rowcast.upkeep()")
        assert only(db, "select count(*) from rowcast.presence where left_at is not null") == 1
        db.execute("update rowcast.presence set left_at = left_at - interval '2 seconds'")
        db.execute("select rowcast.upkeep()")
        assert only(db, "select array_agg(key) from rowcast.presence") == ["ann"]


def test_nothing_of_a_node_outlives_its_reaping(database: pg.Database) -> None:
    """A write that is under way holds the node's row; the reaper passes it by."""
    with (
        database.connect(autocommit=False) as writing,
        database.connect() as reaping,
        ThreadPoolExecutor() as pool,
    ):
        add_channel(reaping, "room:*")
        beat(reaping, TWO)
        reaping.execute(
            "insert into rowcast.node (id, expires_at)"
            " values (%s, clock_timestamp() - interval '1 second')",
            [ONE],
        )
        assert count(writing, ONE, **{"1": 5})
        assert show(writing, ONE, ("ann", {})) == []
        pool.submit(beat, reaping, TWO).result(10)
        assert only(reaping, "select count(*) from rowcast.node") == 2
        writing.commit()
        assert only(reaping, "select count(*) from rowcast.audience") == 1
        beat(reaping, TWO)
        assert only(reaping, "select count(*) from rowcast.node") == 1
        assert only(reaping, "select count(*) from rowcast.audience") == 0
        assert only(reaping, "select count(*) from rowcast.audience_total") == 0
        assert present(reaping) == {}


def test_two_nodes_that_write_the_same_channels_never_deadlock(database: pg.Database) -> None:
    names = [f"room:{n}" for n in range(40)]

    def work(node: UUID, order: list[str]) -> None:
        with database.connect() as connection:
            for turn in range(60):
                only(
                    connection,
                    "select rowcast.audience_write(%s, %s, %s)",
                    [node, order, [turn % 3] * len(order)],
                )

    with database.connect() as db, ThreadPoolExecutor() as pool:
        for each in (ONE, TWO):
            beat(db, each)
        for done in [pool.submit(work, ONE, names), pool.submit(work, TWO, names[::-1])]:
            done.result(60)
        assert only(db, "select sum(sessions) from rowcast.audience_total") == 2 * 2 * len(names)


def test_a_sleeping_bridge_is_woken_by_presence(database: pg.Database) -> None:
    with database.connect(database.bridge_url) as asleep, database.connect() as db:
        asleep.execute("listen rowcast")
        assert only(asleep, "select rowcast.sleep_begin()")
        beat(db, ONE)
        show(db, ONE, ("ann", {}))
        assert [n.payload for n in asleep.notifies(timeout=5, stop_after=1)] == [""]
        with database.connect(autocommit=False) as writing:
            show(writing, ONE, ("ann", {"n": 1}))
            assert len(only(asleep, "select rowcast.open_writers()")) == 1


def test_the_name_is_stamped_for_callers(database: pg.Database) -> None:
    """A name is stamped as well when the publisher is a caller."""
    with database.connect() as db:
        add_channel(db, "room:*")
        beat(db, ONE)
        count(db, ONE, **{"1": 3})
        with database.connect(database.owner_url) as team:
            team.execute(
                "create policy all_in on realtime_messages for insert to authenticated"
                " with check (ws_audience_count = 3)"
            )
        with database.connect(database.caller_url) as caller:
            query = "select rowcast.publish_as('authenticated', %s, %s, %s, %s, %s, %s::uuid[])"
            claims = json.dumps({"role": "authenticated", "sub": "ann"})
            only(caller, query, [[claims], ["room:1"], ["message"], ["e"], ["{}"], [None]])


def test_administrators_and_callers_are_answered_in_json(node: Connection) -> None:
    count(node, ONE, **{"1": 3})
    show(node, ONE, ("ann", {"status": "online"}))
    found = json.loads(only(node, "select rowcast.admin_presence(%s, 'room:1')", [ADMIN]))
    assert found["channel"] == "room:1"
    (member,) = found["presence"]
    assert (member["key"], member["presence"]) == ("ann", {"status": "online"})
    assert (member["sessions"], member["anonymous"]) == (1, False)
    assert member["joinedAt"].endswith("Z")
    audience = json.loads(only(node, "select rowcast.admin_audience(%s, 'room:1')", [ADMIN]))
    assert audience == {"channel": "room:1", "wsAudienceCount": 3}
    empty = json.loads(only(node, "select rowcast.channel_presence('room:2')"))
    assert empty == {"channel": "room:2", "presence": []}
    for function in ("admin_presence", "admin_audience"):
        with refused(node, "RCA01", "authenticated"):
            node.execute(
                f"select rowcast.{function}(%s, 'room:1')",  # type: ignore[arg-type]
                [json.dumps({"role": "authenticated"})],
            )


def test_presence_joins_with_tables_of_the_application(node: Connection) -> None:
    node.execute("create temp table users (id text, name text)")
    node.execute("insert into users values ('ann', 'Ann'), ('bob', 'Bob')")
    show(node, ONE, ("ann", {}))
    query = (
        "select array_agg(u.name) from rowcast.presence_state('room:1') as p"
        " join users as u on u.id = p.key"
    )
    assert only(node, query) == ["Ann"]


def test_a_restored_database_forgets_who_was_there(node: Connection) -> None:
    count(node, ONE, **{"1": 3})
    show(node, ONE, ("ann", {}))
    node.execute("update rowcast.origin set system_identifier = 1")
    assert only(node, "select rowcast.adopt()")
    for table in ("node", "audience", "audience_total", "presence"):
        assert only(node, f"select count(*) from rowcast.{table}") == 0


def test_publishing_is_not_held_up_by_bridges_that_write(database: pg.Database) -> None:
    """A publisher only reads: an open write of the same channel does not make it wait."""
    with database.connect(autocommit=False) as writing, database.connect() as db:
        add_channel(db, "room:*")
        beat(db, ONE)
        count(db, ONE, **{"1": 1})
        count(writing, ONE, **{"1": 2})
        db.execute("set statement_timeout = '2s'")
        publish(db, "room:1")
        assert stamped(db) == 1
        writing.commit()
        eventually(lambda: stamped(db) == 2)
