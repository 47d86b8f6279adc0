"""Claiming: one bridge at a time holds a delivery, no endpoint starves, no delivery gets stuck."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg

from support import pg
from support.deliveries import alter_settings, attempts, claim, deliveries, endpoints, settle
from support.messages import add_channel, messages, only, publish

Connection = psycopg.Connection[Any]

ONE = "https://one.example/hook"
A, B = uuid4(), uuid4()


def expire(tx: Connection) -> None:
    """The leases are over, as when the bridge was killed."""
    tx.execute(
        "update rowcast.delivery set lease_until = clock_timestamp() where lease_by is not null"
    )


def wide(tx: Connection) -> None:
    """Endpoints have proved themselves."""
    tx.execute("update rowcast.endpoint set room = 64")


def many(tx: Connection, channel: str, count: int) -> None:
    tx.execute(
        "insert into realtime_messages (channel_name, event_name)"
        " select %s, n::text from generate_series(1, %s) as n",
        [channel, count],
    )


def buffers(tx: Connection, call: str) -> int:
    """Pages that a call reads, all its functions included."""
    plan = only(tx, "explain (analyze, buffers, format json) " + call)
    return int(plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"])


CLAIM = "select rowcast.claim_deliveries(gen_random_uuid(), 100, '30 s', '{}', '{}')"


def test_a_claimed_delivery_belongs_to_one_bridge(tx: Connection) -> None:
    """No other bridge gets a claimed delivery while its lease lasts."""
    add_channel(tx, "room:*", webhook_urls=[ONE])
    publish(tx, "room:1")
    assert len(claim(tx, A)) == 1
    assert claim(tx, A) == []
    assert claim(tx, B) == []
    assert [d.state for d in deliveries(tx)] == ["pending"]


def test_concurrent_bridges_share_a_queue_without_overlap(database: pg.Database) -> None:
    with database.connect() as db:
        add_channel(db, "room:*", webhook_urls=[f"https://{n}.example/" for n in range(5)])
        many(db, "room:1", 200)
        wide(db)

    def work(_: int) -> list[int]:
        worker, found = uuid4(), []
        with database.connect() as connection:
            while claimed := claim(connection, worker, 37):
                found += [c.id for c in claimed]
                settle(connection, worker, claimed)
        return found

    with ThreadPoolExecutor(4) as pool:
        got = [id_ for found in pool.map(work, range(4)) for id_ in found]
    with database.connect() as db:
        # A claim may come back empty while another holds the rest: none is left after all ended.
        got += [c.id for c in claim(db, A, 1000)]
        assert Counter(got) == Counter(d.id for d in deliveries(db))


def test_an_expired_lease_is_claimed_again(tx: Connection) -> None:
    """A lease that ran out is claimed again, and its attempt counts."""
    add_channel(tx, "room:*", webhook_urls=[ONE])
    publish(tx, "room:1")
    (first,) = claim(tx, A)
    expire(tx)
    (second,) = claim(tx, B)
    assert (second.id, second.attempt, second.message_id) == (first.id, 2, first.message_id)
    assert second.body == first.body
    assert attempts(tx, first.id) == [(1, None, "lost", None)]


def test_only_the_holder_of_the_very_attempt_settles_it(tx: Connection) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    publish(tx, "room:1")
    first = claim(tx, A)
    expire(tx)
    second = claim(tx, B)
    assert settle(tx, A, first, 200) == 0
    assert settle(tx, A, second, 200) == 0
    assert settle(tx, B, first, 200) == 0
    assert deliveries(tx)[0].state == "pending"
    assert settle(tx, B, second, 200) == 1
    assert settle(tx, B, second, 500) == 0
    assert deliveries(tx)[0].state == "delivered"
    assert len(attempts(tx, first[0].id)) == 2


def test_a_message_that_kills_every_bridge_ends_as_a_dead_letter(tx: Connection) -> None:
    alter_settings(tx, webhook_schedule="{1 s,1 s}")
    add_channel(tx, "room:*", webhook_urls=[ONE])
    publish(tx, "room:1")
    for _ in range(3):
        assert len(claim(tx, A)) == 1
        expire(tx)
    assert claim(tx, A) == []
    (row,) = deliveries(tx)
    assert (row.state, row.reason, row.attempt, row.next_at) == ("failed", "exhausted", 3, None)
    assert [a[2] for a in attempts(tx, row.id)] == ["lost"] * 3


def test_what_was_not_begun_goes_back_as_if_untouched(tx: Connection) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    publish(tx, "room:1")
    (claimed,) = claim(tx, A)
    give = "select rowcast.return_deliveries(%s, %s::bigint[], %s::int[])"
    assert only(tx, give, [B, [claimed.id], [1]]) == 0
    assert only(tx, give, [A, [claimed.id], [1]]) == 1
    (again,) = claim(tx, B)
    assert again.attempt == 1
    assert attempts(tx, claimed.id) == []


def test_an_endpoint_gets_no_more_than_its_room(tx: Connection) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    many(tx, "room:1", 100)
    first = claim(tx, A)
    endpoint = first[0].endpoint_id
    assert len(first) == 4
    assert claim(tx, A, busy={endpoint: 4}) == []
    assert len(claim(tx, A, busy={endpoint: 3})) == 1


def test_room_grows_with_success_and_shrinks_with_failure(tx: Connection) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    many(tx, "room:1", 600)
    sizes = []
    for _ in range(8):
        claimed = claim(tx, A)
        sizes.append(len(claimed))
        settle(tx, A, claimed, 200)
    assert sizes == [4, 8, 16, 32, 64, 100, 100, 100]
    assert endpoints(tx)[0].room == 256
    settle(tx, A, claim(tx, A, 1), 500)
    assert endpoints(tx)[0].room == 128


def test_an_endpoint_that_answers_slowly_has_less_room(tx: Connection) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    many(tx, "room:1", 300)
    rooms = []
    for ms in (600, 600, 600, 600, 5, 600):
        settle(tx, A, claim(tx, A), 200, ms=ms)
        rooms.append(endpoints(tx)[0].room)
    assert rooms == [8, 16, 32, 32, 64, 32]


def test_a_long_queue_of_one_endpoint_starves_nobody(tx: Connection) -> None:
    add_channel(tx, "long:*", webhook_urls=[ONE])
    for n in range(49):
        add_channel(tx, f"short:{n}", webhook_urls=[f"https://{n}.example/"])
    many(tx, "long:1", 5000)
    for n in range(49):
        many(tx, f"short:{n}", 2)
    wide(tx)
    assert set(Counter(c.endpoint_id for c in claim(tx, A, 100)).values()) == {2}
    assert len(claim(tx, A, 50)) == 50


def test_a_claim_costs_the_same_however_long_the_queue_is(tx: Connection) -> None:
    """Measured in pages; figures in milliseconds are in tests/bench."""
    add_channel(tx, "long:*", webhook_urls=[ONE])
    for n in range(49):
        add_channel(tx, f"short:{n}", webhook_urls=[f"https://{n}.example/"])
        many(tx, f"short:{n}", 4)
    many(tx, "long:1", 100)
    wide(tx)
    tx.execute("analyze rowcast.delivery")
    with tx.transaction(force_rollback=True):
        tx.execute(CLAIM)  # type: ignore[arg-type]
        short = buffers(tx, CLAIM)
    many(tx, "long:1", 20000)
    with tx.transaction(force_rollback=True):
        tx.execute(CLAIM)  # type: ignore[arg-type]
        long = buffers(tx, CLAIM)
    assert long < short * 2, (short, long)


def test_a_claim_does_not_read_what_was_sent_before_the_mark(database: pg.Database) -> None:
    """Under an old snapshot the dead stay in the index, and only the mark keeps them away."""
    with database.connect() as db, database.connect(autocommit=False) as old:
        add_channel(db, "room:*", webhook_urls=[ONE])
        wide(db)
        old.execute("set transaction isolation level repeatable read")
        old.execute("select 1 from rowcast.settings")
        # As if they were published a minute ago: the mark stays five seconds behind.
        default = "alter table rowcast.delivery alter next_at set default "
        db.execute(default + "clock_timestamp() - interval '1 min'")
        many(db, "room:1", 3000)
        db.execute(default + "clock_timestamp()")
        while claimed := claim(db, A, 500):
            settle(db, A, claimed)
        endpoint = endpoints(db)[0].id
        publish(db, "room:1")
        call = CLAIM.replace("100", "0")
        buffers(db, call)  # the first reads the catalogue, too
        unmarked = buffers(db, call)
        db.execute("select rowcast.move_claim_marks(%s)", [[endpoint]])
        marked = buffers(db, call)
        assert marked * 5 < unmarked, (marked, unmarked)
        assert len(claim(db, A)) == 1


def test_a_long_queue_is_read_from_where_it_is_not_finished(database: pg.Database) -> None:
    """Also where all of it came in one second, as what was published by one statement did."""
    with database.connect() as db, database.connect(autocommit=False) as old:
        add_channel(db, "room:*", webhook_urls=[ONE])
        wide(db)
        old.execute("set transaction isolation level repeatable read")
        old.execute("select 1 from rowcast.settings")
        default = "alter table rowcast.delivery alter next_at set default "
        db.execute(default + "clock_timestamp() - interval '1 min'")
        many(db, "room:1", 4000)
        db.execute(default + "clock_timestamp()")
        for _ in range(3):
            settle(db, A, claim(db, A, 1000))
        call = CLAIM.replace("100", "1").replace("'30 s'", "'0 s'")
        buffers(db, call)  # the first reads the catalogue, too
        unmarked = buffers(db, call)
        db.execute("select rowcast.move_claim_marks(%s)", [[endpoints(db)[0].id]])
        marked = buffers(db, call)
        assert marked * 3 < unmarked, (marked, unmarked)
        assert len(claim(db, B)) == 100


def test_a_transaction_that_commits_behind_the_mark_is_found(database: pg.Database) -> None:
    with database.connect() as db, database.connect() as late:
        add_channel(db, "room:*", webhook_urls=[ONE])
        endpoint = endpoints(db)[0].id
        with late.transaction():
            publish(late, "room:1", "late")
            late.execute("update rowcast.delivery set next_at = next_at - interval '1 min'")
            publish(db, "room:1", "early")
            db.execute("select rowcast.move_claim_marks(%s)", [[endpoint]])
        assert [c.event_name for c in claim(db, A)] == ["early"]
        db.execute("select rowcast.move_claim_marks(%s)", [[]])
        assert [c.event_name for c in claim(db, A)] == ["late"]


def test_no_caller_can_keep_the_mark_from_going_back(database: pg.Database) -> None:
    with database.connect() as db, database.connect() as hostile:
        add_channel(db, "room:*", webhook_urls=[ONE])
        publish(db, "room:1")
        db.execute("update rowcast.endpoint set low_at = now() + interval '1 hour'")
        hostile.execute("set role anon")
        hostile.execute("select pg_advisory_lock(1919903587, 4)")
        assert claim(db, A) == []
        db.execute("select rowcast.move_claim_marks('{}')")
        assert len(claim(db, A)) == 1


def test_the_mark_does_not_pass_new_deliveries(
    tx: Connection,
) -> None:
    """The mark does not pass deliveries that come while all others wait for a retry."""
    add_channel(tx, "room:*", webhook_urls=[ONE])
    publish(tx, "room:1")
    settle(tx, A, claim(tx, A), 500)
    tx.execute("select rowcast.move_claim_marks(%s)", [[endpoints(tx)[0].id]])
    publish(tx, "room:1", "next")
    assert [c.event_name for c in claim(tx, A)] == ["next"]


def test_a_failing_endpoint_gets_one_probe(
    tx: Connection,
) -> None:
    """An endpoint that fails repeatedly gets one probe at a time from all bridges together."""
    add_channel(tx, "rowcast:webhooks")
    add_channel(tx, "room:*", webhook_urls=[ONE])
    many(tx, "room:1", 50)
    wide(tx)
    settle(tx, A, claim(tx, A, 5), 500)
    assert claim(tx, A) == []
    tx.execute("update rowcast.endpoint set pause_until = clock_timestamp()")
    (probe,) = claim(tx, A)
    assert claim(tx, A) == []
    assert claim(tx, B) == []
    settle(tx, A, [probe], 500)
    assert claim(tx, A) == []
    assert (
        10
        < only(
            tx, "select extract(epoch from pause_until - clock_timestamp()) from rowcast.endpoint"
        )
        <= 20
    )
    tx.execute("update rowcast.endpoint set pause_until = clock_timestamp()")
    settle(tx, B, claim(tx, B), 200)
    assert len(claim(tx, A)) > 1
    events = [m.event_name for m in messages(tx, "rowcast:webhooks")]
    assert events == ["webhook.failing", "webhook.recovered"]


def test_a_probe_that_nobody_settles_is_followed_by_another(tx: Connection) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    many(tx, "room:1", 10)
    tx.execute("update rowcast.endpoint set failures = 9")
    assert len(claim(tx, A, lease="0 s")) == 1
    assert len(claim(tx, B, lease="0 s")) == 1


def test_an_endpoint_that_asks_for_a_pause_gets_it(tx: Connection) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    many(tx, "room:1", 10)
    settle(tx, A, claim(tx, A, 1), 429, retry_after=30)
    assert claim(tx, A) == []
    pause = "select extract(epoch from pause_until - clock_timestamp()) from rowcast.endpoint"
    assert 25 < only(tx, pause) <= 30
    # Of its own message it gets what it asked for in full; others do not wait ten years.
    tx.execute("update rowcast.endpoint set pause_until = '-infinity'")
    settle(tx, A, claim(tx, A, 1), 503, retry_after=315360000)
    assert only(tx, pause) <= 300
    assert only(
        tx, "select max(next_at) <= clock_timestamp() + interval '24 h' from rowcast.delivery"
    )


def test_the_outlook_tells_when_to_claim_again(tx: Connection) -> None:
    """The outlook tells when to claim again, and for which channels."""
    look = "select wait from rowcast.next_delivery('{}', '{}')"
    assert only(tx, look) is None
    channel = add_channel(tx, "room:*", webhook_urls=[ONE])
    add_channel(tx, "hall:*")
    assert only(tx, "select channels from rowcast.next_delivery('{}', '{}')") == [channel]
    assert only(tx, look) is None
    publish(tx, "room:1")
    assert only(tx, look) <= 0
    claimed = claim(tx, A)
    assert only(tx, look) is None
    settle(tx, A, claimed, 500)
    assert 3 < only(tx, look) <= 6
    publish(tx, "room:1")
    full = [[claimed[0].endpoint_id], [4]]
    busy = "select wait from rowcast.next_delivery(%s::uuid[], %s::int[])"
    assert only(tx, busy, full) is None


def test_marking_and_settling_at_once_never_deadlock(database: pg.Database) -> None:
    with database.connect() as db:
        for n in range(20):
            add_channel(db, f"c:{n}", webhook_urls=[f"https://{n}.example/"])
            many(db, f"c:{n}", 40)

    def work(number: int) -> None:
        worker = uuid4()
        with database.connect() as connection:
            while claimed := claim(connection, worker, 50):
                settle(connection, worker, claimed, 200 if number else None, error="refused")
                connection.execute(
                    "select rowcast.move_claim_marks(%s)", [list({c.endpoint_id for c in claimed})]
                )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
