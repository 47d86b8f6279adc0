"""Pages of history: in order, without gap or repeat, and never dearer than the page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from support import pg
from support.feed_reader import insert_raw
from support.messages import add_channel, only, publish, refused
from support.recipes import recipe

Connection = psycopg.Connection[Any]

ADMIN = json.dumps({"role": "rowcast_admin"})
ALICE = json.dumps({"role": "authenticated", "sub": "alice"})
FILTERS = ("channel", "channel_name", "event_name", "sender_id", "since", "until")


@pytest.fixture(autouse=True)
def room(db: Connection) -> UUID:
    only(db, "select rowcast.boot_id()::text")
    return add_channel(db, "room:*")


@pytest.fixture
def caller(database: pg.Database) -> Iterator[Connection]:
    with database.connect(database.caller_url) as connection:
        yield connection


def page(
    db: Connection,
    limit: int = 100,
    after: tuple[str, int] | None = None,
    *,
    offset: int = 0,
    role: str | None = None,
    claims: str = ADMIN,
    **filters: Any,
) -> tuple[list[Any], tuple[str, int] | None]:
    """Messages, and after what the next page begins."""
    values = [
        claims,
        *(filters.get(name) for name in FILTERS),
        limit,
        offset,
        *(after or (None,) * 2),
    ]
    call = "rowcast.admin_messages(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
    if role is not None:
        call = call.replace("admin_messages(", "messages_as(%s, ")
        values.insert(0, role)
    floor = 0 if role is not None else only(db, "select seq_floor from rowcast.origin")
    row = db.execute(f"select * from {call}".encode(), [*values, floor]).fetchone()
    assert row is not None
    return json.loads(row[0]), None if row[2] is None else (row[1], row[2])


def events(found: list[Any]) -> list[str]:
    return [message["eventName"] for message in found]


def walk(db: Connection, limit: int, between: Any = None, **wanted: Any) -> list[str]:
    """All event names, page by page; `between` is called after each page."""
    seen: list[str] = []
    after = None
    while True:
        found, after = page(db, limit, after, **wanted)
        seen += events(found)
        if after is None:
            return seen
        if between is not None:
            between()


def by(filtered: str, room: UUID) -> dict[str, Any]:
    return {
        "channel": {"channel": str(room)},
        "name": {"channel_name": "room:1"},
        "sender": {"sender_id": "alice"},
        "nothing": {},
    }[filtered]


@pytest.mark.parametrize("filtered", ["channel", "name", "nothing"])
def test_pages_neither_repeat_nor_skip_while_messages_arrive(
    db: Connection, room: UUID, filtered: str
) -> None:
    for number in range(25):
        publish(db, "room:1", f"e{number:02}")
    with db.transaction():
        for number in range(25, 40):
            publish(db, "room:1", f"e{number:02}")
    seen = walk(db, 7, lambda: publish(db, "room:1", "late"), **by(filtered, room))
    assert seen == [f"e{number:02}" for number in reversed(range(40))]


@pytest.mark.parametrize("filtered", ["channel", "name", "nothing"])
def test_a_deleted_row_does_not_lose_the_place_of_a_cursor(
    db: Connection, room: UUID, filtered: str
) -> None:
    ids = [publish(db, "room:1", f"e{number}") for number in range(6)]
    found, after = page(db, 2, **by(filtered, room))
    assert events(found) == ["e5", "e4"]
    only(db, "select rowcast.delete_message(%s)", [ids[4]])
    assert events(page(db, 2, after, **by(filtered, room))[0]) == ["e3", "e2"]


@pytest.mark.parametrize("filtered", ["channel", "name", "nothing"])
def test_pages_cross_leaves_and_restored_rows(db: Connection, room: UUID, filtered: str) -> None:
    """Pages cross leaves, the default leaf, and rows that a restore brought."""
    low = datetime(2001, 1, 1, tzinfo=UTC)
    only(db, "select rowcast.make_leaf(%s, %s)", [low, low + timedelta(days=1)])
    insert_raw(db, "room:1", "e0", created_at=low, channel_id=room)
    insert_raw(db, "room:1", "e1", created_at=low + timedelta(days=9), channel_id=room)
    assert only(db, "select count(*) from rowcast.messages_default") == 1
    for number in (2, 3):
        insert_raw(db, "room:1", f"e{number}", channel_id=room, xid=str(2**40 + number))
    db.execute("update rowcast.origin set system_identifier = 1")
    assert only(db, "select rowcast.adopt()") is True
    for number in (4, 5, 6):
        publish(db, "room:1", f"e{number}")
    expected = [f"e{number}" for number in (6, 5, 4, 3, 2, 1, 0)]
    for limit in (1, 2, 3, 100):
        assert walk(db, limit, **by(filtered, room)) == expected


def test_filters_add_up(db: Connection, room: UUID) -> None:
    hall = add_channel(db, "hall:*")
    for number in range(12):
        publish(db, f"{'hall' if number % 2 else 'room'}:{number % 3}", f"e{number % 4}")
    assert len(page(db, channel=str(hall))[0]) == 6
    assert events(page(db, channel=str(hall), event_name="e1")[0]) == ["e1"] * 3
    assert events(page(db, channel_name="room:0", event_name="e0")[0]) == ["e0"]
    assert page(db, channel=str(hall), channel_name="room:0") == ([], None)
    assert page(db, sender_id="alice") == ([], None)
    assert page(db, channel=str(room), event_name="e1")[0] == []


def test_since_is_inclusive_and_until_is_not(db: Connection) -> None:
    for number in range(3):
        publish(db, "room:1", f"e{number}")
    times = [
        row[0] for row in db.execute("select created_at from public.realtime_messages order by seq")
    ]
    assert events(page(db, since=times[1])[0]) == ["e2", "e1"]
    assert events(page(db, until=times[1])[0]) == ["e0"]
    assert events(page(db, since=times[1], until=times[2])[0]) == ["e1"]
    assert events(page(db, channel_name="room:1", since=times[1], until=times[2])[0]) == ["e1"]


def test_offset_skips(db: Connection, room: UUID) -> None:
    for number in range(5):
        publish(db, "room:1", f"e{number}")
    for wanted in ({}, {"channel": str(room)}, {"channel_name": "room:1"}):
        assert events(page(db, 2, offset=1, **wanted)[0]) == ["e3", "e2"]
        assert page(db, 2, offset=9, **wanted) == ([], None)


def test_a_message_has_the_fields_of_the_page_in_its_order(db: Connection, room: UUID) -> None:
    publish(db, "room:1", "said", payload='{"big": 12345678901234567890.123, "deep": [[[]]]}')
    (message,), _ = page(db)
    assert list(message) == [
        "id", "eventName", "channelId", "channelName", "payload", "senderType", "senderId",
        "wsAudienceCount", "whAudienceCount", "whDeliveredCount", "createdAt",
    ]  # fmt: skip
    assert message["channelId"] == str(room)
    assert message["senderId"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", message["createdAt"])
    text = db.execute(
        "select (rowcast.admin_messages(%s, null, null, null, null, null, null, 9, 0, null, null,"
        " 0)).body",
        [ADMIN],
    ).fetchone()
    assert text is not None
    assert "12345678901234567890.123" in text[0]


@pytest.mark.parametrize("filtered", ["channel", "name", "nothing"])
def test_a_page_is_cut_where_its_payloads_are_too_many_bytes(
    db: Connection, room: UUID, filtered: str
) -> None:
    db.execute("update rowcast.settings set replay_bytes = 1000")
    for number, size in enumerate((10, 400, 400, 400, 5000, 5000, 10)):
        publish(db, "room:1", f"e{number}", payload=json.dumps("x" * size))
    wanted = by(filtered, room)
    assert events(page(db, **wanted)[0]) == ["e6"]
    assert walk(db, 100, **wanted) == [f"e{number}" for number in reversed(range(7))]


def test_a_message_of_a_deleted_channel_has_none(db: Connection, room: UUID) -> None:
    publish(db, "room:1", "said")
    db.execute("delete from public.realtime_channels")
    assert page(db, channel_name="room:1")[0][0]["channelId"] is None
    assert page(db, channel=str(room))[0][0]["channelId"] is None


def test_deliveries_are_counted_with_the_message(db: Connection) -> None:
    add_channel(db, "hook:*", webhook_urls=["https://a.example/", "https://b.example/"])
    publish(db, "hook:1", "said")
    db.execute(
        "update rowcast.delivery set state = 'delivered', next_at = null"
        " where id = (select min(id) from rowcast.delivery)"
    )
    (message,), _ = page(db)
    assert (message["whAudienceCount"], message["whDeliveredCount"]) == (2, 1)


def test_a_channel_is_named_by_the_beginning_of_its_id(db: Connection) -> None:
    first = add_channel(db, "a:*", id="550e8400-e29b-41d4-a716-446655440000")
    publish(db, "a:1", "said")
    for text in ("550e8400", "550E8400-E29B", str(first), str(first).replace("-", "")):
        assert events(page(db, channel=text)[0]) == ["said"]
    with refused(db, "RCC03", "550e8401"):
        page(db, channel="550e8401")
    with refused(db, "RCC01", "550e840"):
        page(db, channel="550e840")
    add_channel(db, "b:*", id="550e8400-e29b-41d4-a716-446655440001")
    with refused(db, "RCC02", "550e8400"):
        page(db, channel="550e8400")
    assert page(db, channel="550e8400e29b41d4a716446655440001")[0] == []


def test_only_administrators_read_everything(db: Connection) -> None:
    for claims in (ALICE, "{}", json.dumps({"role": "anon"})):
        with refused(db, "RCA01"):
            page(db, claims=claims)


# As callers


def test_without_a_policy_a_caller_reads_nothing(db: Connection, caller: Connection) -> None:
    publish(db, "room:1", "said")
    assert page(caller, role="authenticated", claims=ALICE) == ([], None)


def test_subscribers_read_the_history_of_their_channels(
    db: Connection, caller: Connection, room: UUID
) -> None:
    db.execute(recipe("history_for_subscribers"))
    db.execute(
        "create policy own on public.realtime_channels for select to authenticated"
        " using (rowcast.segment(2) = rowcast.user_id())"
    )
    for number in range(6):
        publish(db, f"room:{'alice' if number % 2 else 'bob'}", f"e{number}")
    reads = {"role": "authenticated", "claims": ALICE}
    mine = ["e5", "e3", "e1"]
    assert events(page(caller, **reads)[0]) == mine
    assert events(page(caller, channel=str(room), **reads)[0]) == mine
    assert walk(caller, 1, channel_name="room:alice", **reads) == mine
    assert page(caller, channel_name="room:bob", **reads) == ([], None)
    assert page(caller, role="anon", claims='{"role": "anon"}') == ([], None)
    with refused(caller, "RCC03"):  # a list does not show what depends on a name
        page(caller, channel=str(room)[:8], **reads)


def test_a_policy_is_asked_once_per_run_of_a_name(db: Connection, caller: Connection) -> None:
    """A policy is asked once for a run of messages of one name."""
    db.execute(recipe("history_for_subscribers"))
    db.execute(
        "create function public.counted() returns boolean language plpgsql as"
        " $$ begin raise notice 'asked'; return true; end $$"
    )
    db.execute(
        "create policy counted on public.realtime_channels for select to authenticated"
        " using (public.counted())"
    )
    for _ in range(200):
        publish(db, "room:1", "said")
    notices: list[str] = []
    caller.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    assert len(page(caller, role="authenticated", claims=ALICE, channel_name="room:1")[0]) == 100
    assert 1 <= notices.count("asked") <= 2


def test_callers_cannot_set_remembered_answers(db: Connection) -> None:
    """Only the bridge's own login is believed; any other session could set it itself."""
    with db.transaction():
        db.execute("set local role authenticated")
        db.execute("select set_config('rowcast.asked', 't:room:1', true)")
        assert only(db, "select rowcast.may_subscribe('room:1')") is False


def test_nothing_of_a_read_outlives_it(db: Connection, caller: Connection) -> None:
    db.execute(
        "create function public.stays() returns boolean language plpgsql as $$ begin"
        " perform set_config('role', 'anon', false); return true; end $$"
    )
    db.execute(
        "create policy lax on public.realtime_messages for select to authenticated"
        " using (public.stays())"
    )
    publish(db, "room:1", "said")
    page(caller, role="authenticated", claims=ALICE)
    assert only(caller, "select current_user::text") == "rowcast_caller"
    assert only(caller, "select rowcast.user_id()") is None


# Plans


def plans(db: Connection, **wanted: Any) -> str:
    """The plans of a page, as they were run."""
    said: list[str] = []
    with db.cursor() as cursor:
        cursor.execute("load 'auto_explain'")
        cursor.execute("set auto_explain.log_min_duration = 0")
        cursor.execute("set auto_explain.log_nested_statements = on")
        cursor.execute("set auto_explain.log_analyze = on")
    db.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
    db.execute("set client_min_messages = log")
    page(db, 50, **wanted)
    db.execute("set client_min_messages = notice")
    return "\n".join(text for text in said if "realtime_messages" in text)


@pytest.mark.parametrize("analyzed", [False, True])
@pytest.mark.parametrize("filtered", ["channel", "name", "nothing"])
def test_a_page_reads_an_index_in_order_and_stops(
    db: Connection, room: UUID, filtered: str, analyzed: bool
) -> None:
    for _ in range(100):
        db.execute(
            "insert into public.realtime_messages (channel_name, event_name)"
            " select 'room:' || i % 2, 'said' from generate_series(1, 100) as i"
        )
    if analyzed:
        db.execute("analyze public.realtime_messages")
    last = page(db, 50, **by(filtered, room))[1]
    for after in (None, last):
        plan = plans(db, after=after, **by(filtered, room))
        assert "Index Scan Backward" in plan
        assert "Seq Scan on messages" not in plan
        assert "Bitmap" not in plan
        read = [int(n) for n in re.findall(r"Scan Backward .*?rows=\d+ .*?rows=(\d+)", plan)]
        assert 50 <= sum(read) <= 400, plan
