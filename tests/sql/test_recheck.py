"""What is signalled when access may have changed: one line a statement, about the right people."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from support import pg
from support.messages import add_channel, only, publish, refused
from support.pg import as_role

Connection = psycopg.Connection[Any]

ALICE = {"sub": "alice", "role": "authenticated"}


@pytest.fixture
def members(tx: Connection) -> Connection:
    """A table of members that is attached, and no signal yet."""
    tx.execute("create table public.members (room text, user_id text, seen int)")
    tx.execute(
        "select rowcast.recheck_on_change('public.members', user_column => 'user_id',"
        " channel => 'chat:{room}', columns => '{user_id}')"
    )
    return tx


def signals(tx: Connection, kind: str = "recheck") -> list[Any]:
    """Take the signals that were written."""
    rows = tx.execute(
        "delete from rowcast.signal where kind = %s returning body, seq", [kind]
    ).fetchall()
    bodies = [body for body, _ in sorted(rows, key=lambda row: int(row[1]))]
    return [sorted(b["of"], key=str) if kind == "recheck" else b for b in bodies]


def pair(user: str | None, channel: str | None) -> dict[str, str | None]:
    return {"user": user, "channel": channel}


def test_each_statement_is_one_signal_about_those_of_its_rows(members: Connection) -> None:
    members.execute("insert into members values ('1', 'a', 0), ('1', 'a', 1), ('2', 'b', 0)")
    assert signals(members) == [[pair("a", "chat:1"), pair("b", "chat:2")]]
    members.execute("delete from members where room = '2'")
    assert signals(members) == [[pair("b", "chat:2")]]
    members.execute("delete from members where room = 'nothing'")
    assert signals(members) == []
    members.execute("truncate members")
    assert signals(members) == [[pair(None, None)]]


def test_an_update_concerns_who_had_it_and_who_has_it(members: Connection) -> None:
    members.execute("insert into members values ('1', 'a', 0)")
    signals(members)
    members.execute("update members set user_id = 'b'")
    assert signals(members) == [[pair("a", "chat:1"), pair("b", "chat:1")]]
    members.execute("update members set room = '2'")
    assert signals(members) == [[pair("b", "chat:1"), pair("b", "chat:2")]]


def test_an_update_of_columns_that_do_not_matter_is_no_signal(members: Connection) -> None:
    members.execute("insert into members values ('1', 'a', 0)")
    signals(members)
    members.execute("update members set seen = 5, user_id = user_id")
    assert signals(members) == []


def test_what_is_not_known_means_everybody(members: Connection) -> None:
    members.execute("insert into members values ('a:b', 'x', 0), ('*', 'y', 0), (null, null, 0)")
    assert signals(members) == [[pair("x", None), pair("y", None), pair(None, None)]]


def test_a_renamed_column_rechecks_every_user(
    members: Connection,
) -> None:
    """A column that was renamed since means every user, and the statement does not fail."""
    members.execute("alter table members rename user_id to member")
    members.execute("insert into members values ('1', 'a', 0)")
    assert signals(members) == [[pair(None, "chat:1")]]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("'1', 'u' || n", [{"channel": "chat:1"}]),
        ("n, 'u'", [{"user": "u"}]),
        ("n, 'u' || n", [{}]),
    ],
)
def test_very_many_are_said_coarsely(
    members: Connection, rows: str, said: list[dict[str, str]]
) -> None:
    members.execute(f"insert into members select {rows}, 0 from generate_series(1, 101) n".encode())
    assert signals(members) == [said]


def test_attaching_again_replaces_and_detaching_ends_it(members: Connection) -> None:
    members.execute("select rowcast.recheck_on_change('public.members')")
    members.execute("insert into members values ('1', 'a', 0)")
    assert signals(members) == [[pair(None, None)]]
    assert only(members, "select rowcast.recheck_detach('public.members')") is True
    assert only(members, "select rowcast.recheck_detach('public.members')") is False
    members.execute("delete from members")
    assert signals(members) == []


def test_whoever_writes_the_table_needs_no_right_to_signal(members: Connection) -> None:
    members.execute("grant insert on members to authenticated")
    with as_role(members, "authenticated", ALICE):
        members.execute("insert into members values ('1', 'a', 0)")
    assert signals(members) == [[pair("a", "chat:1")]]


def test_a_partitioned_table_can_be_attached(tx: Connection) -> None:
    tx.execute("create table public.parted (user_id text) partition by list (user_id)")
    tx.execute("create table public.part partition of public.parted default")
    tx.execute("select rowcast.recheck_on_change('public.parted', user_column => 'user_id')")
    tx.execute("insert into parted values ('a')")
    assert signals(tx) == [[pair("a", None)]]


def test_what_cannot_be_attached_is_refused_in_words(members: Connection) -> None:
    for arguments, state, words in (
        ("user_column => 'missing'", "42703", "missing"),
        ("channel => 'chat:{hall}'", "42703", "hall"),
        ("columns => '{none}'", "42703", "none"),
        ("channel => 'chat::{room}'", "RCN02", "chat::{room}"),
    ):
        with refused(members, state, words):
            members.execute(
                f"select rowcast.recheck_on_change('public.members', {arguments})".encode()
            )


def test_recheck_and_kick_say_what_they_were_told(tx: Connection) -> None:
    tx.execute("select rowcast.recheck()")
    tx.execute("select rowcast.recheck('alice')")
    tx.execute("select rowcast.recheck(channel => 'chat:*')")
    assert signals(tx) == [[pair(None, None)], [pair("alice", None)], [pair(None, "chat:*")]]
    tx.execute("select rowcast.kick('alice')")
    assert signals(tx, "kick") == [{"user": "alice", "reconnect": False}]
    with refused(tx, "RCN03", "a::b"):
        tx.execute("select rowcast.recheck(channel => 'a::b')")
    with refused(tx, "22004"):
        tx.execute("select rowcast.kick(null)")


def test_only_trusted_code_may_raise_doubts(tx: Connection) -> None:
    for call in ("recheck()", "kick('bob')", "recheck_on_change('public.realtime_channels')"):
        for role in ("anon", "authenticated", "rowcast_bridge", "rowcast_caller"):
            with refused(tx, "42501"), as_role(tx, role, ALICE):
                tx.execute(f"select rowcast.{call}".encode())
    with as_role(tx, "rowcast_publisher"):
        tx.execute("select rowcast.recheck()")


def test_a_channel_row_signals_the_patterns_it_had_and_has(tx: Connection) -> None:
    tx.execute("delete from rowcast.signal")
    add_channel(tx, "room:*")
    tx.execute("update realtime_channels set pattern = 'hall:*', enabled = false")
    tx.execute("delete from realtime_channels")
    tx.execute("delete from realtime_channels")
    found = [sorted(body["patterns"]) for body in signals(tx, "channel")]
    assert found == [["room:*"], ["hall:*", "room:*"], ["hall:*"]]
    tx.execute(
        "insert into realtime_channels (pattern) select 'a:' || n from generate_series(1, 101) n"
    )
    assert signals(tx, "channel") == [{"patterns": ["**"]}]
    tx.execute("truncate realtime_channels")
    assert signals(tx, "channel") == [{"patterns": ["**"]}]


@pytest.mark.parametrize(
    ("pattern", "name", "answer"),
    [
        ("a:*", "a:b", True),
        ("a:*", "a:b:c", False),
        ("a:**", "a:b:c", True),
        ("a:**", "a", False),
        ("**", "a:b", True),
        ("*:b", "a:b", True),
        ("a:b", "a:b", True),
        ("a:b", "a:c", False),
        ("a:*", "a:*", True),
        ("a:%", "a:b", False),
    ],
)
def test_sql_and_bridge_match_the_same_names(
    tx: Connection, pattern: str, name: str, answer: bool
) -> None:
    """A pattern matches the same names in SQL and in the bridge."""
    from rowcast.bridge.names import matches

    assert only(tx, "select rowcast.pattern_matches(%s, %s)", [pattern, name]) is answer
    assert matches(pattern, name) is answer


def test_signals_come_before_the_messages_of_their_drain(
    database: pg.Database, db: Connection
) -> None:
    """Whatever their numbers: a message that is numbered first may be committed last."""
    from support.feed_reader import ask, drain

    add_channel(db, "room:*")
    only(db, "select rowcast.boot_id()::text")
    with database.connect(database.bridge_url) as bridge:
        cursor = ask(bridge)
        with database.connect(autocommit=False) as late:
            publish(late, "room:1", "numbered first")
            db.execute("select rowcast.recheck()")
            late.commit()
        publish(db, "room:1", "last")
        found = drain(bridge, cursor)
        assert [row.kind for row in found.rows] == ["recheck", "message", "message"]
        assert found.events == ["numbered first", "last"]
        assert [row.kind for row in drain(bridge, cursor, rows=1).rows] == ["recheck"]
