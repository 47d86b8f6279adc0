"""What no writer may choose, whichever role writes and however, and what is refused in words."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from support import pg
from support.messages import add_channel, messages, only, publish, refused
from support.pg import as_role

Connection = psycopg.Connection[Any]

ALICE = {"sub": "alice", "role": "authenticated"}
# What a writer might wish for; each value is one that the server would not have given.
WISHES: dict[str, Any] = {
    "seq": -7,
    "id": UUID(int=7),
    "xid": "7",
    "channel_id": UUID(int=7),
    "sender_type": "user",
    "sender_id": "mallory",
    "ws_audience_count": 7,
    "wh_audience_count": 7,
}
# The server's own, and the time, which is tested and not stamped.
UNGRANTED = [*WISHES, "created_at"]


def insert(connection: Connection, channel: str, **columns: Any) -> None:
    columns = {"channel_name": channel, "event_name": "said", **columns}
    connection.execute(
        sql.SQL("insert into public.realtime_messages ({}) values ({})").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.SQL(", ").join(sql.Placeholder() * len(columns)),
        ),
        list(columns.values()),
    )


def let(tx: Connection, rule: str, role: str = "authenticated") -> None:
    """A policy under which `role` may insert rows for which the rule holds."""
    tx.execute(
        sql.SQL(
            "create policy let on public.realtime_messages for insert to {} with check ({})"
        ).format(sql.Identifier(role), sql.SQL(rule))  # type: ignore[arg-type]
    )


@pytest.fixture
def room(tx: Connection) -> UUID:
    return add_channel(tx, "room:*")


def granted(tx: Connection, room: UUID) -> None:
    """The last message is stamped as the system's, whatever was wished."""
    message = messages(tx, "room:1")[-1]
    wished = {c: str(getattr(message, c)) for c, v in WISHES.items() if c != "channel_id"}
    assert not {c for c, v in wished.items() if v == str(WISHES[c])}, wished
    assert message.channel_id == room
    assert (message.sender_type, message.sender_id) == ("system", None)
    assert (message.ws_audience_count, message.wh_audience_count) == (0, 0)
    assert message.xid == only(tx, "select pg_current_xact_id()::text")
    assert message.seq == only(tx, "select last_value from rowcast.message_seq")


@pytest.mark.parametrize("type_", ["message", "broadcast"])
def test_a_superuser_may_choose_nothing_that_the_server_stamps(
    tx: Connection, room: UUID, type_: str
) -> None:
    insert(tx, "room:1", type=type_, **WISHES)
    granted(tx, room)


def test_the_owner_of_the_tables_may_choose_nothing_either(tx: Connection, room: UUID) -> None:
    with as_role(tx, "rowcast_owner"):
        insert(tx, "room:1", **WISHES)
    granted(tx, room)


@pytest.mark.parametrize("role", ["anon", "authenticated", "rowcast_publisher"])
@pytest.mark.parametrize("column", UNGRANTED)
def test_other_roles_may_not_even_name_the_column(
    tx: Connection, room: UUID, role: str, column: str
) -> None:
    wish = {**WISHES, "created_at": "now"}[column]
    with refused(tx, "42501", "realtime_messages"), as_role(tx, role, ALICE):
        insert(tx, "room:1", **{column: wish})


def test_an_end_user_is_stamped_as_the_subject_of_the_token(tx: Connection, room: UUID) -> None:
    let(tx, "true")
    with as_role(tx, "authenticated", ALICE):
        insert(tx, "room:1")
    message = messages(tx, "room:1")[-1]
    assert (message.sender_type, message.sender_id) == ("user", "alice")


def test_an_anonymous_user_is_a_user_without_a_subject(tx: Connection, room: UUID) -> None:
    let(tx, "true", "anon")
    with as_role(tx, "anon"):
        insert(tx, "room:1")
    message = messages(tx, "room:1")[-1]
    assert (message.sender_type, message.sender_id) == ("user", None)


def test_the_publisher_role_is_the_system(tx: Connection, room: UUID) -> None:
    """The publisher role is the system, whatever the claims say."""
    with as_role(tx, "rowcast_publisher", ALICE):
        insert(tx, "room:1")
    granted(tx, room)


def test_a_definer_functions_owner_is_the_sender(tx: Connection, room: UUID) -> None:
    """The setting `role` is still the end user's in there; current_user is not."""
    tx.execute(
        "create function public.announce() returns void language sql security definer"
        " set search_path = pg_catalog, pg_temp begin atomic"
        " insert into public.realtime_messages (channel_name, event_name, sender_type, sender_id)"
        " values ('room:1', 'said', 'user', 'mallory'); end"
    )
    with as_role(tx, "authenticated", ALICE):
        tx.execute("select public.announce()")
        assert only(tx, "select current_user") == "authenticated"
    granted(tx, room)


def test_policies_judge_the_stamped_values(tx: Connection, room: UUID) -> None:
    let(
        tx,
        f"sender_type = 'user' and sender_id = rowcast.user_id() and channel_id = '{room}'"
        " and seq > 0 and xid = pg_current_xact_id() and substr(id::text, 15, 1) = '7'",
    )
    with as_role(tx, "authenticated", ALICE):
        insert(tx, "room:1")
    with refused(tx, "42501", "row-level security"), as_role(tx, "authenticated"):
        insert(tx, "room:1")  # no subject


TWO_ROWS = (
    "insert into public.realtime_messages (channel_name, event_name)"
    " values ('room:alice', 'said'), ('room:bob', 'said')"
)


def test_a_row_for_another_channel_is_refused(tx: Connection, room: UUID) -> None:
    """This policy asks once per statement; without the refusal it would let bob's row in."""
    let(tx, "(select rowcast.segment(2)) = rowcast.user_id()")
    with (
        refused(tx, "RCM05", 'channel "room:bob"', '"room:alice"'),
        as_role(tx, "authenticated", ALICE, "room:alice"),
    ):
        tx.execute(TWO_ROWS)
    with as_role(tx, "authenticated", ALICE, "room:alice"):
        insert(tx, "room:alice")
    assert len(messages(tx, "room:alice")) == 1


@pytest.mark.parametrize("channel", ["room:alice", None])
def test_a_policy_with_the_name_of_the_row_denies_the_second_row(
    tx: Connection, room: UUID, channel: str | None
) -> None:
    let(tx, "rowcast.segment(channel_name, 2) = rowcast.user_id()")
    state = "42501" if channel is None else "RCM05"
    with refused(tx, state), as_role(tx, "authenticated", ALICE, channel):
        tx.execute(TWO_ROWS)
    assert messages(tx, "room:bob") == []
    with as_role(tx, "authenticated", ALICE):
        insert(tx, "room:alice")


@pytest.mark.parametrize(
    ("sqlstate", "words", "columns"),
    [
        ("RCN01", ['"hall:1"', "no enabled channel"], {"channel_name": "hall:1"}),
        ("RCN01", ['"off:1"', "no enabled channel"], {"channel_name": "off:1"}),
        ("RCN02", ['"room: 1"'], {"channel_name": "room: 1"}),
        ("RCN02", ["<NULL>"], {"channel_name": None}),
        ("RCM01", ['"room:1"', "262146 bytes", "262144 bytes"], {"payload": f'"{"x" * 262144}"'}),
        ("RCM01", ['"room:1"', "NULL"], {"payload": None}),
        ("RCM02", ['"event"'], {"type": "event"}),
        ("RCM02", ["<NULL>"], {"type": None}),
        ("RCM03", ['""'], {"event_name": ""}),
        ("RCM03", ["<NULL>"], {"event_name": None}),
        ("RCM03", ["a\x07b"], {"event_name": "a\x07b"}),
        ("RCM03", ["x" * 256], {"event_name": "x" * 256}),
        ("RCM04", ["2020-01-01"], {"created_at": "2020-01-01 00:00Z"}),
        ("RCM04", ["infinity"], {"created_at": "infinity"}),
    ],
)
def test_undeliverable_messages_are_refused(
    tx: Connection, room: UUID, sqlstate: str, words: list[str], columns: dict[str, Any]
) -> None:
    """A message that cannot be delivered is refused with the object and a hint."""
    add_channel(tx, "off:*", enabled=False)
    with refused(tx, sqlstate, *words):
        insert(tx, **{"channel": columns.pop("channel_name", "room:1"), **columns})


def test_a_bad_pattern_is_refused_with_the_pattern_and_a_hint(tx: Connection) -> None:
    with refused(tx, "RCN03", '"a:**:b"'):
        add_channel(tx, "a:**:b")


def test_a_number_is_measured_as_it_is_written(tx: Connection, room: UUID) -> None:
    """Eight characters of 1e131000 are stored in few bytes and written with 131,001 digits."""
    insert(tx, "room:1", payload="[1e131000]")
    with refused(tx, "RCM01", "over the limit"):
        insert(tx, "room:1", payload="[1e131000, 1e130999, 1e999]")


def test_the_limit_of_the_payload_is_a_setting(tx: Connection, room: UUID) -> None:
    tx.execute("update rowcast.settings set payload_limit = 10")
    insert(tx, "room:1", payload='"12345678"')
    with refused(tx, "RCM01", "11 bytes", "10 bytes"):
        insert(tx, "room:1", payload='"123456789"')


@pytest.mark.parametrize("offset", ["59 seconds", "-59 seconds"])
def test_a_clock_that_is_a_little_off_is_accepted(tx: Connection, room: UUID, offset: str) -> None:
    at = only(tx, "select clock_timestamp() + %s::interval", [offset])
    insert(tx, "room:1", created_at=at)
    assert messages(tx, "room:1")[-1].created_at == at


@pytest.mark.parametrize("offset", ["61 seconds", "-62 seconds"])
def test_a_clock_that_is_a_minute_off_is_refused(tx: Connection, room: UUID, offset: str) -> None:
    at = only(tx, "select clock_timestamp() + %s::interval", [offset])
    with refused(tx, "RCM04", "more than a minute"):
        insert(tx, "room:1", created_at=at)


def test_created_at_is_the_time_of_the_insert(tx: Connection, room: UUID) -> None:
    """The time is that of the insert and not of the transaction."""
    assert only(tx, "select now() is not null")
    insert(tx, "room:1")
    insert(tx, "room:1")
    first, second = messages(tx, "room:1")
    assert only(tx, "select now()") < first.created_at < second.created_at


def test_on_conflict_do_nothing_stamps_and_inserts(tx: Connection, room: UUID) -> None:
    tx.execute(
        "insert into public.realtime_messages (channel_name, event_name, sender_id)"
        " values ('room:1', 'said', 'mallory') on conflict do nothing"
    )
    granted(tx, room)


def test_on_conflict_do_nothing_does_not_swallow_a_refusal(tx: Connection, room: UUID) -> None:
    with refused(tx, "RCN01", "hall:1"):
        tx.execute(
            "insert into public.realtime_messages (channel_name, event_name)"
            " values ('hall:1', 'said') on conflict do nothing"
        )


def test_copy_is_stamped_like_an_insert(tx: Connection, room: UUID) -> None:
    with (
        tx.cursor() as cursor,
        cursor.copy(
            "copy public.realtime_messages (seq, id, sender_type, sender_id, channel_name,"
            " event_name) from stdin"
        ) as copy,
    ):
        for _ in range(3):
            copy.write_row((7, str(uuid4()), "user", "mallory", "room:1", "said"))
    granted(tx, room)
    found = messages(tx, "room:1")
    assert len({m.seq for m in found}) == len({m.id for m in found}) == 3


def test_copy_of_one_refused_row_writes_none(tx: Connection, room: UUID) -> None:
    with refused(tx, "RCN01", "hall:1"), tx.cursor() as cursor:
        columns = "(channel_name, event_name)"
        with cursor.copy(f"copy public.realtime_messages {columns} from stdin") as copy:
            copy.write_row(("room:1", "said"))
            copy.write_row(("hall:1", "said"))
    assert messages(tx, "room:1") == []


def test_merge_is_stamped_and_judged_like_an_insert(tx: Connection, room: UUID) -> None:
    let(tx, "channel_name = 'room:1'")
    tx.execute("create policy see on realtime_messages for select to authenticated using (true)")
    merge = (
        "merge into public.realtime_messages as m using (values (%s)) as v (name) on false"
        " when not matched then insert (channel_name, event_name) values (v.name, 'said')"
    )
    with as_role(tx, "authenticated", ALICE):
        tx.execute(merge, ["room:1"])
    with refused(tx, "42501"), as_role(tx, "authenticated", ALICE):
        tx.execute(merge, ["room:2"])
    (row,) = messages(tx, "room:1")
    assert (row.channel_id, row.sender_type, row.sender_id) == (room, "user", "alice")


def test_a_leaf_refuses_to_be_written_past_its_triggers(tx: Connection, room: UUID) -> None:
    """Inserting into a leaf fires the same triggers, because they are those of the parent."""
    tx.execute(
        "insert into rowcast.messages_broadcast (type, channel_name, event_name, sender_id)"
        " values ('broadcast', 'room:1', 'said', 'mallory')"
    )
    assert messages(tx, "room:1")[-1].sender_id is None


def test_publishing_without_a_payload_sends_an_empty_object(tx: Connection, room: UUID) -> None:
    publish(tx, "room:1")
    assert messages(tx, "room:1")[-1].payload == {}


def test_a_changed_setting_applies_at_once(database: pg.Database, db: Connection) -> None:
    """Settings are compiled into constants, and constants into plans."""
    add_channel(db, "room:*")
    with database.connect() as writer:
        for _ in range(10):  # from the sixth run on a plan may be kept
            publish(writer, "room:1", payload=Jsonb("x" * 500))
        with pytest.raises(psycopg.Error, match="no enabled channel"):
            publish(writer, "hall:1:2")
        db.execute("update rowcast.settings set payload_limit = 100")
        with pytest.raises(psycopg.Error, match="over the limit of 100 bytes"):
            publish(writer, "room:1", payload=Jsonb("x" * 500))
        add_channel(db, "hall:**")
        assert publish(writer, "hall:1:2") is not None


def test_a_setting_that_was_rolled_back_never_counts(db: Connection) -> None:
    add_channel(db, "room:*")
    with db.transaction(force_rollback=True):
        db.execute("update rowcast.settings set payload_limit = 100")
        add_channel(db, "hall:**")
        assert publish(db, "hall:1:2") is not None
    assert publish(db, "room:1", payload=Jsonb("x" * 500)) is not None
    with pytest.raises(psycopg.Error, match="no enabled channel"):
        publish(db, "hall:1:2")


def test_a_name_is_looked_up_through_all_shapes(
    db: Connection,
) -> None:
    """A probe that finds nothing must leave no trace in the row."""
    add_channel(db, "a:b:c")
    add_channel(db, "a:*:c")
    channel = add_channel(db, "a:**")
    db.execute("grant insert on public.realtime_messages to authenticated")
    db.execute(
        "create policy p on public.realtime_messages for insert to authenticated with check (true)"
    )
    with as_role(db, "authenticated", {"sub": "alice"}):
        publish(db, "a:x:y")
    (row,) = messages(db, "a:x:y")
    assert (str(row.channel_id), row.sender_type, row.sender_id) == (str(channel), "user", "alice")


@pytest.mark.parametrize("name", ["a", "z"])
def test_publish_returns_no_id_for_a_dropped_row(db: Connection, name: str) -> None:
    """Whether it runs before the row is stamped or after it."""
    add_channel(db, "room:*")
    assert publish(db, "room:1") is not None
    db.execute(
        "create function public.dropped() returns trigger language plpgsql"
        " as $$ begin return null; end $$"
    )
    db.execute(
        sql.SQL(
            "create trigger {} before insert on public.realtime_messages"
            " for each row execute function public.dropped()"
        ).format(sql.Identifier(name))
    )
    assert publish(db, "room:1") is None
    assert only(db, "select rowcast.publish_as_system('room:1', 'said')") is None
    add_policy = "create policy p on public.realtime_messages for insert to anon with check (true)"
    db.execute(add_policy)
    as_anon = (
        "select rowcast.publish_as('anon', '{null}', '{room:1}', '{message}', '{said}', '{1}', %s)"
    )
    assert only(db, as_anon, [[None]]) == [None]
