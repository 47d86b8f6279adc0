"""The questions that a bridge asks for its clients, through the login that may become them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import namedtuple_row

from support import pg
from support.messages import add_channel, messages, only, publish, refused
from support.pg import as_role

Connection = psycopg.Connection[Any]

ALICE = json.dumps({"sub": "alice", "role": "authenticated"})
BOB = json.dumps({"sub": "bob", "role": "authenticated"})
OWN = "rowcast.segment(2) = rowcast.user_id()"


@pytest.fixture
def caller(database: pg.Database) -> Iterator[Connection]:
    with database.connect(database.caller_url) as connection:
        yield connection


def policy(db: Connection, rule: str, command: str = "select") -> None:
    """Let `authenticated` do this to channels, or to messages when it is an insert."""
    table = "messages" if command == "insert" else "channels"
    word = "with check" if command == "insert" else "using"
    db.execute(
        f"create policy p_{command} on public.realtime_{table} for {command}"
        f" to authenticated {word} ({rule})".encode()
    )


def function(db: Connection, body: str) -> None:
    """A function for policies that misbehaves when alice asks for `chat:bad`, and says true."""
    db.execute(
        "create function public.f() returns boolean language plpgsql as $$ begin"
        f" if rowcast.channel_name() = 'chat:bad' then {body} end if; return true; end $$".encode()
    )


def check(
    caller: Connection, *pairs: tuple[str | None, str | None], role: str | None = "authenticated"
) -> list[Any]:
    with caller.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(
            "select * from rowcast.check_subscribe(%s, %s::text[], %s::text[])",
            [role, [claims for claims, _ in pairs], [channel for _, channel in pairs]],
        ).fetchall()


def publish_as(caller: Connection, *pairs: tuple[str | None, str], role: str | None) -> Any:
    many = len(pairs)
    return only(
        caller,
        "select rowcast.publish_as(%s, %s::text[], %s::text[], %s, %s, %s, %s::uuid[])",
        [
            role,
            [claims for claims, _ in pairs],
            [channel for _, channel in pairs],
            ["message"] * many,
            ["said"] * many,
            ["{}"] * many,
            [None] * many,
        ],
    )


def history_as(caller: Connection, claims: str | None, channel: str, role: str) -> list[Any]:
    return caller.execute(
        "select * from rowcast.history_as(%s, %s, %s, 10, pg_current_snapshot()::text, 0)",
        [role, claims, channel],
    ).fetchall()


def test_each_pair_is_answered_under_its_own_claims(db: Connection, caller: Connection) -> None:
    chat = add_channel(db, "chat:*")
    policy(db, OWN)
    pairs = [(c, f"chat:{name}") for c in (ALICE, BOB, None) for name in ("alice", "bob")]
    found = check(caller, *pairs)
    assert [row.pair for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row.allowed for row in found] == [True, False, False, True, False, False]
    assert {(row.channel_id, row.error) for row in found} == {(chat, None)}


def test_denied_unknown_and_disabled_are_answered_alike(db: Connection, caller: Connection) -> None:
    add_channel(db, "denied:*")
    add_channel(db, "off:*", enabled=False)
    policy(db, "pattern <> 'denied:*'")
    names = ("denied:1", "unknown:1", "off:1", "off:*", None)
    found = check(caller, *((ALICE, name) for name in names))
    assert {(row.allowed, row.error) for row in found} == {(False, None)}


@pytest.mark.parametrize("name", ["room:", "room:a b", "room:\u202e", "room:\u0001", "room::x"])
def test_invalid_names_have_no_channel(db: Connection, caller: Connection, name: str) -> None:
    """Text that is not a name has no channel, even where a pattern would match it."""
    add_channel(db, "room:*")
    add_channel(db, "room:**")
    policy(db, "true")
    fine, wrong = check(caller, (ALICE, "room:1"), (ALICE, name))
    assert (fine.allowed, wrong.allowed, wrong.channel_id) == (True, False, None)


def test_a_disabled_channel_shadows_the_lax_one(db: Connection, caller: Connection) -> None:
    add_channel(db, "chat:*")
    add_channel(db, "chat:secret", enabled=False)
    policy(db, "true")
    assert [r.allowed for r in check(caller, (ALICE, "chat:secret"), (ALICE, "chat:1"))] == [
        False,
        True,
    ]


def test_a_policy_that_raises_denies_its_own_pair_and_says_why(
    db: Connection, caller: Connection
) -> None:
    add_channel(db, "chat:*")
    function(db, "raise exception 'the moon is full';")
    policy(db, "public.f()")
    good, bad, after = check(caller, (ALICE, "chat:1"), (ALICE, "chat:bad"), (ALICE, "chat:2"))
    assert (good.allowed, after.allowed) == (True, True)
    assert (bad.allowed, bad.error) == (False, "P0001 the moon is full")


@pytest.mark.parametrize(
    "body",
    [
        "perform set_config('role', 'anon', true);",
        "perform set_config('role', 'none', true);",
        "set local role anon;",
        "set role none;",
        "reset role;",
        """perform set_config('request.jwt.claims', '{"sub": "mallory"}', true);""",
        """perform set_config('request.jwt.claims', '{"sub": "mallory"}', false);""",
        "perform set_config('request.jwt.claim.sub', 'mallory', false);",
        "perform set_config('rowcast.channel_name', 'chat:mallory', false);",
        "perform set_config('search_path', 'public', false);",
    ],
)
def test_what_a_policy_sets_is_gone_for_the_next_pair(
    db: Connection, caller: Connection, body: str
) -> None:
    add_channel(db, "chat:*")
    function(db, body)
    policy(
        db,
        "public.f() and (rowcast.channel_name() = 'chat:bad' or current_user = 'authenticated'"
        f" and {OWN})",
    )
    before, _, own, other = check(
        caller,
        (BOB, "chat:bob"),
        (ALICE, "chat:bad"),
        (BOB, "chat:bob"),
        (BOB, "chat:mallory"),
    )
    assert (before.allowed, own.allowed, other.allowed) == (True, True, False)
    assert (before.error, own.error, other.error) == (None, None, None)
    assert only(caller, "select current_user") == "rowcast_caller"


@pytest.mark.parametrize(
    "body",
    [
        "set local role postgres;",
        "set local role rowcast_owner;",
        "set local role rowcast_bridge;",
        "perform set_config('transaction_read_only', 'off', true);",
        "set session authorization postgres;",
        "update public.realtime_channels set is_public = true;",
    ],
)
def test_a_policy_gets_no_further_than_the_login(
    db: Connection, caller: Connection, body: str
) -> None:
    """Also where the function catches nothing: its own pair is denied, the others are not."""
    add_channel(db, "chat:*")
    db.execute("grant update on public.realtime_channels to authenticated")
    function(db, body)
    policy(db, "public.f()")
    bad, after = check(caller, (ALICE, "chat:bad"), (ALICE, "chat:1"))
    assert bad.allowed is False
    assert bad.error
    assert after.allowed is True
    assert only(db, "select is_public from public.realtime_channels") is False


@pytest.mark.parametrize("body", ["set role anon;", "perform set_config('role', 'anon', false);"])
def test_a_role_set_by_a_policy_is_reset(db: Connection, caller: Connection, body: str) -> None:
    """A pool hands the connection on, and RESET ALL leaves the role as it is."""
    add_channel(db, "chat:*")
    function(db, body)
    policy(db, "public.f()")
    policy(db, "true or public.f()", "insert")
    check(caller, (ALICE, "chat:1"), (ALICE, "chat:bad"))
    assert only(caller, "select current_user") == "rowcast_caller"
    publish_as(caller, (ALICE, "chat:bad"), role="authenticated")
    assert only(caller, "select current_user") == "rowcast_caller"
    assert [row.allowed for row in check(caller, (ALICE, "chat:1"))] == [True]


def test_claims_that_postgres_cannot_take_deny_their_own_pair(
    db: Connection, caller: Connection
) -> None:
    """A NUL in the name in one token does not stop the answers to the other callers."""
    add_channel(db, "chat:*")
    policy(db, "true")
    bad = json.dumps({"sub": "x", "name": "\0", "role": "authenticated"})
    pairs = [(claims, "chat:1") for claims in (ALICE, bad, "no json", BOB)]
    found = check(caller, *pairs)
    assert [row.allowed for row in found] == [True, False, False, True]
    assert [(row.error or "")[:5] for row in found] == ["", "22P05", "22P02", ""]


REFUSED_ROLES = ["none", "rowcast_caller", "postgres", "rowcast_owner", "rowcast_bridge", "nobody"]


@pytest.mark.parametrize("role", [*REFUSED_ROLES, None, ""])
def test_a_role_that_is_no_caller_role_gets_nothing(
    db: Connection, caller: Connection, role: str | None
) -> None:
    add_channel(db, "chat:*")
    db.execute("create policy lax on public.realtime_channels for select using (true)")
    db.execute("create policy lax on public.realtime_messages using (true) with check (true)")
    publish(db, "chat:1")
    with contextlib.suppress(
        psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue
    ):
        assert [row.allowed for row in check(caller, (ALICE, "chat:1"), role=role)] == [False]
    with pytest.raises(psycopg.Error) as refusal:
        publish_as(caller, (ALICE, "chat:1"), role=role)
    assert refusal.value.diag.sqlstate in ("42501", "22023")
    with pytest.raises(psycopg.Error) as refusal:
        history_as(caller, ALICE, "chat:1", role or "")
    assert refusal.value.diag.sqlstate in ("42501", "22023")
    assert len(messages(db, "chat:1")) == 1


def test_without_claims_the_caller_is_anonymous(db: Connection, caller: Connection) -> None:
    add_channel(db, "chat:*")
    db.execute(
        "create policy nobody on public.realtime_channels for select to anon"
        " using (rowcast.jwt() is null and rowcast.user_id() is null and rowcast.role() is null)"
    )
    assert check(caller, (None, "chat:1"), role="anon")[0].allowed is True
    assert check(caller, (ALICE, "chat:1"), role="anon")[0].allowed is False


def test_messages_are_published_each_as_its_sender(db: Connection, caller: Connection) -> None:
    add_channel(db, "chat:*")
    policy(db, "rowcast.segment(channel_name, 2) = rowcast.user_id()", "insert")
    ids = publish_as(caller, (ALICE, "chat:alice"), (BOB, "chat:bob"), role="authenticated")
    found = [*messages(db, "chat:alice"), *messages(db, "chat:bob")]
    assert [m.id for m in found] == ids
    assert [(m.sender_type, m.sender_id) for m in found] == [("user", "alice"), ("user", "bob")]


def test_of_a_batch_with_one_refusal_nothing_is_published(
    db: Connection, caller: Connection
) -> None:
    add_channel(db, "chat:*")
    policy(db, "rowcast.segment(channel_name, 2) = rowcast.user_id()", "insert")
    with refused(caller, "42501", "row-level security"):
        publish_as(caller, (ALICE, "chat:alice"), (ALICE, "chat:bob"), role="authenticated")
    assert messages(db, "chat:alice") == []
    assert only(caller, "select current_user") == "rowcast_caller"


def test_history_is_what_the_select_policies_show(db: Connection, caller: Connection) -> None:
    add_channel(db, "chat:*")
    policy(db, OWN)
    db.execute(
        "create policy history on public.realtime_messages for select to authenticated"
        " using (rowcast.may_subscribe(channel_name))"
    )
    ids = [publish(db, "chat:alice") for _ in range(3)]
    publish(db, "chat:alice", type="broadcast")
    assert [row[1] for row in history_as(caller, ALICE, "chat:alice", "authenticated")] == ids
    assert history_as(caller, BOB, "chat:alice", "authenticated") == []
    assert history_as(caller, None, "chat:alice", "anon") == []


def test_may_subscribe_puts_the_name_back(tx: Connection) -> None:
    add_channel(tx, "chat:*")
    with as_role(tx, "authenticated", {"sub": "alice"}, "chat:before"):
        for name in ("chat:1", "unknown", None):
            assert only(tx, "select rowcast.may_subscribe(%s)", [name]) is False
            assert only(tx, "select rowcast.channel_name()") == "chat:before"
    with as_role(tx, "authenticated", {"sub": "alice"}):
        assert only(tx, "select rowcast.may_subscribe('chat:1')") is False
        assert only(tx, "select rowcast.channel_name()") is None


def test_the_login_alone_sees_and_does_nothing(db: Connection, caller: Connection) -> None:
    add_channel(db, "chat:*")
    for query in (
        "select * from public.realtime_channels",
        "select * from public.realtime_messages",
        "insert into public.realtime_messages (channel_name, event_name) values ('chat:1', 'x')",
        "select rowcast.publish('chat:1', 'x')",
        "select * from rowcast.settings",
        "set role rowcast_owner",
    ):
        with refused(caller, "42501"):
            caller.execute(query)


def test_callers_learn_only_what_a_publish_tells(db: Connection) -> None:
    """A publish tells whether an enabled channel takes the message. It does not tell that a
    disabled channel exists, nor that a pattern of this spelling exists."""
    for pattern, columns in (
        ("secret:*", {"wildcard": True}),
        ("shut:*", {"enabled": False}),
        ("other:*", {}),
    ):
        add_channel(db, pattern, **columns)
    names, patterns = ["shut:1", "none:1"], ["secret:*", "none:*"]
    told: list[list[Any]] = []
    with db.transaction(force_rollback=True), as_role(db, "anon"):
        for question, asked in (
            ("select rowcast.may_subscribe(%s)", names + patterns),
            ("select rowcast.open_channel(%s) is null", names + patterns),
            ("select rowcast.publish(%s, 'x', missing_ok => true)", names),
        ):
            told.append([only(db, question, [name]) for name in asked])
        for question in ("rowcast.resolve('shut:1')", "rowcast.subscribable('secret:*')"):
            with refused(db, "42501", "permission denied"), db.transaction():
                db.execute(f"select {question}".encode())
    assert told == [[False] * 4, [True] * 4, [None] * 2]
    with as_role(db, "anon"):
        for name, state in (("secret:1", "42501"), ("shut:1", "RCN01"), ("none:1", "RCN01")):
            with refused(db, state), db.transaction():
                publish(db, name)


def test_what_is_no_name_is_told_from_what_is_denied(db: Connection, caller: Connection) -> None:
    add_channel(db, "chat:*")
    names = ["chat:*x", "a b", "chat:", "", "x" * 256, "chat:1", "none", "none:*", "chat:*"]
    found = [row.error for row in check(caller, *[(ALICE, name) for name in names])]
    assert found == ["RCN02"] * 5 + [None] * 4
    root = json.dumps({"role": "rowcast_admin"})
    ask = "select error from rowcast.admin_check_subscribe(%s, %s)"
    assert [only(db, ask, [root, name]) for name in names] == found


# Administrators


def test_only_administrators_hear_all_enabled_channels(db: Connection) -> None:
    """Administrators hear every enabled channel, and no other role is one."""
    room, shut, orders = "room:*", "shut:*", "order:*"
    for pattern, columns in ((room, {}), (shut, {"enabled": False}), (orders, {"wildcard": True})):
        add_channel(db, pattern, **columns)
    ask = "select allowed, enabled from rowcast.admin_check_subscribe(%s, %s)"
    root = json.dumps({"role": "rowcast_admin"})
    for channel, answer in {
        "room:1": (True, True),
        "shut:1": (False, False),
        "none:1": (False, None),
        orders: (True, True),
        room: (False, True),
    }.items():
        assert db.execute(ask, [root, channel]).fetchone() == answer
    for claims in (ALICE, "{}"):
        with refused(db, "RCA01"):
            db.execute(ask, [claims, "room:1"])
