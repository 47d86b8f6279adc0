"""Publishing from SQL: one, many, as the system, once, from triggers, and taking back."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from support import pg
from support.messages import add_channel, messages, only, publish, refused
from support.pg import as_role
from support.waiting import eventually

Connection = psycopg.Connection[Any]

ALICE = {"sub": "alice", "role": "authenticated"}
BOB = {"sub": "bob", "role": "authenticated"}
MILLISECONDS = "select ('x' || replace(left(%s, 13), '-', ''))::bit(48)::bigint"


@pytest.fixture
def room(tx: Connection) -> UUID:
    return add_channel(tx, "room:*")


@pytest.fixture
def open_room(tx: Connection, room: UUID) -> UUID:
    """A room in which every caller may publish."""
    tx.execute(
        "create policy may on public.realtime_messages for insert to anon, authenticated"
        " with check (true)"
    )
    return room


def publish_many(connection: Connection, batch: Any) -> Any:
    return only(connection, "select rowcast.publish_many(%s)", [json.dumps(batch)])


def test_publish_returns_the_id_of_the_row(tx: Connection, room: UUID) -> None:
    found = publish(tx, "room:1", "said", payload='{"text": "hello"}', type="broadcast")
    (message,) = messages(tx, "room:1")
    assert message.id == found
    assert (message.type, message.event_name) == ("broadcast", "said")
    assert message.payload == {"text": "hello"}


def test_ids_are_uuids_of_version_7_in_the_order_of_time(tx: Connection, room: UUID) -> None:
    ids = [publish(tx, "room:1") for _ in range(50)]
    assert {(i.version, i.variant) for i in ids} == {(7, "specified in RFC 4122")}
    assert ids == sorted(ids)
    for message in messages(tx, "room:1"):
        milliseconds = int(message.created_at.timestamp() * 1_000_000) // 1000
        assert abs((message.id.int >> 80) - milliseconds) <= 1


def test_a_rolled_back_publish_leaves_nothing(tx: Connection, room: UUID) -> None:
    with tx.transaction(force_rollback=True):
        publish(tx, "room:1", id=uuid4())
    assert messages(tx, "room:1") == []
    assert only(tx, "select count(*) from rowcast.publish_key") == 0


def test_a_caller_needs_a_policy(tx: Connection, room: UUID) -> None:
    with refused(tx, "42501", "row-level security"), as_role(tx, "authenticated", ALICE):
        publish(tx, "room:1")


def test_a_caller_gets_the_id_without_the_right_to_read(tx: Connection, open_room: UUID) -> None:
    with as_role(tx, "authenticated", ALICE):
        found = publish(tx, "room:1")
        assert messages(tx, "room:1") == []
    assert [m.id for m in messages(tx, "room:1")] == [found]


def test_a_missing_channel_is_an_error_unless_it_may_be_missing(
    tx: Connection, open_room: UUID
) -> None:
    add_channel(tx, "off", enabled=False)
    for name in ("hall", "off"):
        with refused(tx, "RCN01", f'"{name}"'):
            publish(tx, name)
        with as_role(tx, "authenticated", ALICE):
            assert publish(tx, name, missing_ok=True) is None
        assert publish(tx, name, missing_ok=True) is None
    assert publish(tx, "room:1", missing_ok=True) is not None


@pytest.mark.parametrize("function", ["publish", "publish_as_system"])
def test_a_channel_may_be_missing_but_not_misspelt(
    tx: Connection, room: UUID, function: str
) -> None:
    call = f"select rowcast.{function}(%s, 'said', missing_ok => true)"
    for name in ("room:a b", "hall:", None):
        with refused(tx, "RCN02", f'"{name or "<NULL>"}"'):
            tx.execute(call, [name])


def test_many_are_published_in_their_order(tx: Connection, room: UUID) -> None:
    batch = [
        {"channel": "room:1", "event": f"e{n}", "payload": {"n": n}, "type": t}
        for n, t in enumerate(["message", "broadcast"] * 20)
    ]
    assert publish_many(tx, batch) == 40
    found = messages(tx, "room:1")
    assert [m.event_name for m in found] == [f"e{n}" for n in range(40)]
    assert [m.payload for m in found] == [{"n": n} for n in range(40)]


def test_many_have_the_same_defaults_as_one(tx: Connection, room: UUID) -> None:
    assert publish_many(tx, [{"channel": "room:1", "event": "said"}]) == 1
    (message,) = messages(tx, "room:1")
    assert (message.type, message.payload) == ("message", {})


def test_many_count_only_what_was_new(tx: Connection, room: UUID) -> None:
    one = {"channel": "room:1", "event": "said", "id": str(uuid4())}
    two = {**one, "id": str(uuid4())}
    assert publish_many(tx, [one]) == 1
    assert publish_many(tx, [one, two, two]) == 1
    assert publish_many(tx, []) == 0


def test_many_are_published_all_or_none(tx: Connection, room: UUID) -> None:
    good = {"channel": "room:1", "event": "said"}
    with refused(tx, "RCN01", "hall"):
        publish_many(tx, [good, {"channel": "hall", "event": "said"}])
    assert messages(tx, "room:1") == []


@pytest.mark.parametrize("batch", [{}, 1, None, "text"])
def test_many_that_are_no_array_are_refused(tx: Connection, batch: Any) -> None:
    with refused(tx, "22023", "JSON array"):
        publish_many(tx, batch)


def test_the_system_publishes_for_those_whom_it_trusts(tx: Connection, room: UUID) -> None:
    call = "select rowcast.publish_as_system('room:1', 'said', missing_ok => true)"
    for role in ("anon", "authenticated", "rowcast_caller", "rowcast_bridge"):
        with refused(tx, "42501", "publish_as_system"), as_role(tx, role, ALICE):
            tx.execute(call)
    with as_role(tx, "rowcast_publisher", ALICE):
        found = only(tx, call)
        assert only(tx, "select rowcast.publish_as_system('hall', 'x', missing_ok => true)") is None
    (message,) = messages(tx, "room:1")
    assert (message.id, message.sender_type, message.sender_id) == (found, "system", None)
    with refused(tx, "RCN01", "hall"):
        tx.execute("select rowcast.publish_as_system('hall', 'x')")


def test_a_repeat_with_the_same_id_answers_the_first(tx: Connection, open_room: UUID) -> None:
    key = uuid4()
    with as_role(tx, "authenticated", ALICE):
        first = publish(tx, "room:1", id=key, payload="1")
        other = publish(tx, "room:1", payload="2")
        again = publish(tx, "room:1", id=key, payload="3")
    assert first == again != other
    assert [m.payload for m in messages(tx, "room:1")] == [1, 2]


def test_the_same_id_of_another_sender_is_another_message(tx: Connection, open_room: UUID) -> None:
    key = uuid4()
    found = set()
    for claims in (ALICE, BOB):
        with as_role(tx, "authenticated", claims):
            found.add(publish(tx, "room:1", id=key))
    found.add(publish(tx, "room:1", id=key))
    assert len(found) == len(messages(tx, "room:1")) == 3


@pytest.mark.parametrize("commits", [True, False])
def test_a_concurrent_repeat_waits_for_the_first(database: pg.Database, commits: bool) -> None:
    """A concurrent repeat waits and answers what became of the first."""
    key = uuid4()
    with (
        database.connect() as watcher,
        database.connect(autocommit=False) as first,
        database.connect() as second,
        ThreadPoolExecutor(1) as thread,
    ):
        add_channel(watcher, "room:*")
        one = publish(first, "room:1", id=key)
        repeat = thread.submit(publish, second, "room:1", id=key)
        eventually(
            lambda: only(
                watcher,
                "select count(*) from pg_stat_activity where pid = %s and wait_event_type = 'Lock'",
                [second.info.backend_pid],
            ),
            what="the repeat waits",
        )
        (first.commit if commits else first.rollback)()
        assert (repeat.result(timeout=15) == one) is commits
        assert [m.id for m in messages(watcher, "room:1")] == [repeat.result()]


def test_publish_returns_its_own_id(db: Connection) -> None:
    """Publish returns its own id, although a trigger publishes more."""
    add_channel(db, "room:*")
    add_channel(db, "audit")
    db.execute(
        "create function public.copied() returns trigger language plpgsql as $$ begin"
        " if new.channel_name <> 'audit' then perform rowcast.publish('audit', 'copy');"
        " perform rowcast.publish_as_system('audit', 'copy'); end if;"
        " return new; end $$"
    )
    for when in ("before", "after"):
        db.execute(
            f"create trigger a_{when} {when} insert on public.realtime_messages"  # type: ignore[arg-type]
            " for each row execute function public.copied()"
        )
    as_system = "select rowcast.publish_as_system('room:1', 'said')"
    answered = [publish(db, "room:1"), only(db, as_system)]
    assert answered == [message.id for message in messages(db, "room:1")]
    assert len(messages(db, "audit")) == 8


def test_a_policy_that_refuses_inside_a_trigger_names_both_ways(tx: Connection, room: UUID) -> None:
    tx.execute("create table public.orders (id integer)")
    tx.execute("grant insert on public.orders to authenticated")
    tx.execute(
        "create function public.tell() returns trigger language plpgsql as"
        " $$ begin perform rowcast.publish('room:1', 'changed'); return null; end $$"
    )
    tx.execute(
        "create trigger tell after insert on public.orders"
        " for each row execute function public.tell()"
    )
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege) as refusal,
        as_role(tx, "authenticated", ALICE),
    ):
        tx.execute("insert into public.orders values (1)")
    assert "row-level security" in str(refusal.value.diag.message_primary)
    hint = str(refusal.value.diag.message_hint)
    assert "rowcast.publish_as_system()" in hint
    assert "rowcast.attach()" in hint


@pytest.fixture
def orders(tx: Connection) -> None:
    """A table that end users may change, and a channel for each of its rows."""
    add_channel(tx, "order:*")
    tx.execute("create table public.orders (id text, status text, secret text)")
    tx.execute("grant all on public.orders to authenticated")


def attach(tx: Connection, template: str = "order:{id}", **arguments: Any) -> str:
    given = "".join(f", {name} => %s" for name in arguments)
    query = f"select rowcast.attach('public.orders', %s{given})"
    name: str = only(tx, query, [template, *arguments.values()])
    return name


@pytest.mark.usefixtures("orders")
def test_an_attached_table_publishes_its_changes_as_the_system(tx: Connection) -> None:
    """The end user needs no policy on messages: it is the table that publishes."""
    attach(tx, columns=["id", "status"])
    with as_role(tx, "authenticated", ALICE):
        tx.execute("insert into public.orders values ('1', 'new', 's')")
        tx.execute("update public.orders set status = 'paid'")
        tx.execute("delete from public.orders")
    found = messages(tx, "order:1")
    assert [m.event_name for m in found] == ["INSERT", "UPDATE", "DELETE"]
    assert {(m.type, m.sender_type, m.sender_id) for m in found} == {("message", "system", None)}
    new, paid = {"id": "1", "status": "new"}, {"id": "1", "status": "paid"}
    assert [(m.payload["record"], m.payload["old_record"]) for m in found] == [
        (new, None),
        (paid, new),
        (None, paid),
    ]
    assert {(m.payload["schema"], m.payload["table"]) for m in found} == {("public", "orders")}


@pytest.mark.usefixtures("orders")
def test_without_a_list_all_columns_are_published(tx: Connection) -> None:
    attach(tx, type="broadcast")
    tx.execute("insert into public.orders values ('1', null, 's')")
    (message,) = messages(tx, "order:1")
    assert message.type == "broadcast"
    assert message.payload["record"] == {"id": "1", "status": None, "secret": "s"}


@pytest.mark.usefixtures("orders")
def test_only_the_named_events_are_published(tx: Connection) -> None:
    attach(tx, events=["Update"])
    tx.execute("insert into public.orders values ('1', 'new', 's')")
    tx.execute("update public.orders set status = 'paid'")
    tx.execute("delete from public.orders")
    assert [m.event_name for m in messages(tx, "order:1")] == ["UPDATE"]


@pytest.mark.usefixtures("orders")
def test_a_template_may_name_several_columns(tx: Connection) -> None:
    add_channel(tx, "shop:*:*")
    attach(tx, "shop:{status}:{id}")
    tx.execute("insert into public.orders values ('1', 'new', 's')")
    assert len(messages(tx, "shop:new:1")) == 1


@pytest.mark.usefixtures("orders")
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("1:secret", 'contains ":"'),
        (None, "is null"),
        ("a b", "channel name"),
        ("", "channel name"),
    ],
)
def test_a_value_can_not_reach_another_channel_than_its_own(
    tx: Connection, value: str | None, words: str
) -> None:
    add_channel(tx, "order:**")
    attach(tx)
    with refused(tx, "RCN02", words):
        tx.execute("insert into public.orders values (%s)", [value])


@pytest.mark.usefixtures("orders")
def test_a_value_that_looks_like_a_column_is_only_a_value(tx: Connection) -> None:
    add_channel(tx, "shop:*:*")
    attach(tx, "shop:{id}:{status}")
    tx.execute("insert into public.orders values ('{status}', '{id}', 's')")
    assert [m.channel_name for m in tx_messages(tx)] == ["shop:{status}:{id}"]


def tx_messages(tx: Connection) -> list[Any]:
    """Messages of every channel that this transaction has made."""
    names = tx.execute("select distinct channel_name from public.realtime_messages").fetchall()
    return [message for (name,) in names for message in messages(tx, name)]


@pytest.mark.usefixtures("orders")
def test_a_row_without_a_channel_fails_its_change(
    tx: Connection,
) -> None:
    """A row without a channel fails its change, unless the channel may be missing."""
    attach(tx)
    tx.execute("update public.realtime_channels set enabled = false")
    with refused(tx, "RCN01", "order:1"):
        tx.execute("insert into public.orders values ('1')")
    attach(tx, missing_ok=True)
    tx.execute("insert into public.orders values ('1')")
    assert tx_messages(tx) == []


@pytest.mark.usefixtures("orders")
@pytest.mark.parametrize(
    ("sqlstate", "word", "arguments"),
    [
        ("42703", "nothing", {"template": "order:{nothing}"}),
        ("42703", "nothing", {"columns": ["id", "nothing"]}),
        ("RCN01", "hall:{id}", {"template": "hall:{id}"}),
        ("RCN02", "order: {id}", {"template": "order: {id}"}),
        ("RCM02", "row", {"type": "row"}),
        ("22023", "truncate", {"events": ["insert", "truncate"]}),
        ("22023", "events", {"events": []}),
    ],
)
def test_what_could_never_publish_cannot_be_attached(
    tx: Connection, sqlstate: str, word: str, arguments: dict[str, Any]
) -> None:
    with refused(tx, sqlstate, word):
        attach(tx, **arguments)


@pytest.mark.usefixtures("orders")
def test_detach_ends_what_attach_began(tx: Connection) -> None:
    detach = "select rowcast.detach('public.orders', 'order:{id}')"
    assert only(tx, detach) is False
    assert attach(tx) == attach(tx)  # again does not make a second trigger
    tx.execute("insert into public.orders values ('1')")
    assert only(tx, detach) is True
    assert only(tx, detach) is False
    tx.execute("insert into public.orders values ('1')")
    assert len(messages(tx, "order:1")) == 1


@pytest.mark.usefixtures("orders")
def test_only_who_owns_the_table_and_is_trusted_may_attach_it(tx: Connection) -> None:
    call = "select rowcast.attach('public.orders', 'order:{id}')"
    with refused(tx, "42501", "attach"), as_role(tx, "authenticated", ALICE):
        tx.execute(call)
    with refused(tx, "42501", "orders"), as_role(tx, "rowcast_publisher"):
        tx.execute(call)


def test_a_deleted_message_is_gone_and_its_subscribers_are_told(tx: Connection, room: UUID) -> None:
    kept, gone = publish(tx, "room:1"), publish(tx, "room:1", type="broadcast")
    assert only(tx, "select rowcast.delete_message(%s)", [gone]) is True
    assert [m.id for m in messages(tx, "room:1")] == [kept]
    assert only(tx, "select body from rowcast.signal where kind = 'deleted'") == {
        "channel": "room:1",
        "channel_id": str(room),
        "id": str(gone),
    }
    assert only(tx, "select rowcast.delete_message(%s)", [gone]) is False


@pytest.mark.parametrize("unknown", [None, UUID(int=0), uuid4(), UUID(int=(1 << 128) - 1)])
def test_deleting_what_is_none_of_ours_is_false(tx: Connection, unknown: UUID | None) -> None:
    assert only(tx, "select rowcast.delete_message(%s)", [unknown]) is False
    assert only(tx, "select count(*) from rowcast.signal where kind = 'deleted'") == 0


def test_nobody_but_the_owner_may_delete_messages(tx: Connection, open_room: UUID) -> None:
    found = publish(tx, "room:1")
    for role in ("anon", "authenticated", "rowcast_publisher", "rowcast_bridge", "rowcast_caller"):
        with refused(tx, "42501"), as_role(tx, role, ALICE):
            tx.execute("select rowcast.delete_message(%s)", [found])
