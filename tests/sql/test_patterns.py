"""Which channel governs a name: compared with a reference over all of a tiny alphabet."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import psycopg
import pytest

from support import pg
from support.messages import add_channel, only, publish, refused
from support.waiting import eventually

Connection = psycopg.Connection[Any]

PATTERNS = [
    ":".join((*start, last))
    for depth in range(3)
    for start in itertools.product("ab*", repeat=depth)
    for last in ("a", "b", "*", "**")
]
# `c` stands in no pattern, and four segments are more than any pattern has.
NAMES = [":".join(n) for depth in range(1, 5) for n in itertools.product("abc", repeat=depth)]


def reference(patterns: Iterable[str], name: str) -> str | None:
    """The most specific pattern that matches: literal before ``*`` before ``**``."""
    parts = name.split(":")

    def matches(pattern: str) -> bool:
        wanted = pattern.split(":")
        if wanted[-1] == "**":
            wanted[-1:] = ["*"] * max(1, len(parts) - len(wanted) + 1)
        return len(wanted) == len(parts) and all(
            w in ("*", p) for w, p in zip(wanted, parts, strict=True)
        )

    def vagueness(pattern: str) -> list[int]:
        return [("*", "**").index(s) + 1 if "*" in s else 0 for s in pattern.split(":")]

    return min(filter(matches, patterns), key=vagueness, default=None)


def differences(tx: Connection, patterns: Iterable[str]) -> list[tuple[Any, ...]]:
    """Names that rowcast.resolve gives to another pattern than the reference."""
    patterns = list(patterns)
    with tx.transaction(force_rollback=True):
        tx.execute(
            "insert into public.realtime_channels (pattern) select unnest(%s::text[])", [patterns]
        )
        rows = tx.execute(
            "select n.name, c.pattern from unnest(%s::text[]) as n (name)"
            " cross join rowcast.resolve(n.name) as r"
            " left join public.realtime_channels as c on c.id = r.channel_id",
            [NAMES],
        ).fetchall()
    assert len(rows) == len(NAMES)
    return [(patterns, *row) for row in rows if row[1] != reference(patterns, row[0])]


def resolve(connection: Connection, name: str | None) -> tuple[Any, ...]:
    row = connection.execute("select * from rowcast.resolve(%s)", [name]).fetchone()
    assert row is not None
    return row


def scans(connection: Connection) -> tuple[Any, ...]:
    """How often this session has read the whole table, and how often an index of it."""
    row = connection.execute(
        "select seq_scan, idx_scan from pg_stat_xact_user_tables"
        " where relid = 'public.realtime_channels'::regclass"
    ).fetchone()
    assert row is not None
    return row


def test_the_alphabet_is_complete() -> None:
    assert len(PATTERNS) == len(set(PATTERNS)) == 4 + 3 * 4 + 9 * 4
    assert len(NAMES) == 3 + 9 + 27 + 81


def test_each_pattern_alone_governs_the_names_of_the_reference(tx: Connection) -> None:
    assert [d for pattern in PATTERNS for d in differences(tx, [pattern])] == []


def test_without_any_pattern_no_name_is_governed(tx: Connection) -> None:
    assert differences(tx, []) == []


def test_each_name_goes_to_the_most_specific_pattern(tx: Connection) -> None:
    """All patterns together give each name to the most specific one."""
    assert differences(tx, PATTERNS) == []


def test_removing_any_one_pattern_gives_its_names_to_the_next(tx: Connection) -> None:
    assert [
        d
        for absent in PATTERNS
        for d in differences(tx, (pattern for pattern in PATTERNS if pattern != absent))
    ] == []


@pytest.mark.parametrize("size", [2, 3, 6, 12, 26])
def test_subsets_of_patterns_agree_with_the_reference(tx: Connection, size: int) -> None:
    chance = random.Random(size)
    assert [d for _ in range(25) for d in differences(tx, chance.sample(PATTERNS, size))] == []


def test_the_order_of_insertion_does_not_matter(tx: Connection) -> None:
    assert differences(tx, reversed(PATTERNS)) == []
    assert differences(tx, random.Random(1).sample(PATTERNS, len(PATTERNS))) == []


def test_a_disabled_pattern_still_governs(tx: Connection) -> None:
    """A lax `shadow:*` must not open what `shadow:secret` has closed."""
    add_channel(tx, "shadow:*")
    secret = add_channel(tx, "shadow:secret", enabled=False)
    assert resolve(tx, "shadow:secret") == (secret, False)
    with refused(tx, "RCN01", "shadow:secret"):
        publish(tx, "shadow:secret")
    assert publish(tx, "shadow:open") is not None


def test_changing_a_pattern_changes_what_it_governs(tx: Connection) -> None:
    moved = add_channel(tx, "before:*")
    tx.execute(
        "update public.realtime_channels set pattern = 'after:*:x:**' where id = %s", [moved]
    )
    assert resolve(tx, "before:1") == (None, None)
    assert resolve(tx, "after:1:x:2:3") == (moved, True)


@pytest.mark.parametrize(
    "name",
    [
        "%",
        "_",
        "a%",
        "x_y",
        "\\",
        "a\\:b",
        "a\\b",
        "a'b",
        'a"b',
        "a;b",
        "{a}",
        "$1",
        "[a-z]",
        "(a)",
    ],
)
def test_signs_of_other_languages_stand_for_themselves(tx: Connection, name: str) -> None:
    """What LIKE, a regular expression or SQL would read as an instruction is a letter here."""
    like_that = add_channel(tx, name)
    assert resolve(tx, name) == (like_that, True)
    assert publish(tx, name) is not None
    for other in ("zz", "a", "axx", "xzy", "ab"):
        assert resolve(tx, other) == (None, None)


@pytest.mark.parametrize(
    "name", ["größe:straße", "чат:комната", "聊天:房间", "غرفة:اثنان", "🦊:🚀"]
)
def test_letters_of_all_scripts_are_allowed(tx: Connection, name: str) -> None:
    governed = add_channel(tx, name)
    assert resolve(tx, name) == (governed, True)
    assert publish(tx, name) is not None


@pytest.mark.parametrize(
    "name",
    [
        *("", ":", "a:", ":a", "a::b", "*", "**", "a:*", "a:**", "a*"),
        *(" ", "a b", "a\tb", "a\nb", "a\r", "\x01", "\x1b[2J", "\x7f", "\x85", "\xa0", "\xad"),
        *("\u1680", "\u200b", "\u200f", "\u202e", "\u2028", "\u2066", "\u3000", "\ufeff", "\u061c"),
        *("a" * 256, "ä" * 128, "x" * 10_000, ":".join("a" * 17)),
    ],
    ids=ascii,
)
def test_names_that_cannot_be_shown_plainly_are_refused(tx: Connection, name: str) -> None:
    add_channel(tx, "**")
    assert only(tx, "select rowcast.is_name(%s)", [name]) is False
    with refused(tx, "RCN02", "channel name"):
        publish(tx, name)


def test_a_name_may_have_255_bytes_and_16_segments(tx: Connection) -> None:
    add_channel(tx, "**")
    assert publish(tx, "a" * 255) is not None
    assert publish(tx, ":".join("a" * 16)) is not None


def test_a_refused_name_is_not_repeated_at_full_length(tx: Connection) -> None:
    with pytest.raises(psycopg.Error) as refusal, tx.transaction():
        publish(tx, "x" * 10_000)
    assert len(str(refusal.value.diag.message_primary)) < 400


@pytest.mark.parametrize(
    "pattern",
    [
        *("", ":", "a:", ":a", "a::b", "**:a", "a:**:b", "a*", "*a", "a:b*", "***", "**:*"),
        *("a b", "\u202ea", "a" * 256, ":".join("*" * 17)),
    ],
    ids=ascii,
)
def test_patterns_that_mean_nothing_are_refused_with_the_rule(tx: Connection, pattern: str) -> None:
    with refused(tx, "RCN03", "channel pattern"):
        add_channel(tx, pattern)


def test_a_name_spelt_like_a_pattern_is_governed_by_nothing(tx: Connection) -> None:
    """Who may join `order:*` is asked of that row itself, never by matching."""
    add_channel(tx, "order:*")
    assert resolve(tx, "order:*") == (None, None)
    assert resolve(tx, None) == (None, None)


def test_a_lookup_does_not_depend_on_the_number_of_patterns(db: Connection) -> None:
    """Read through the plan that a session keeps: it may not be made for a small table."""
    costs = {}
    for total in (100, 20_000):
        db.execute(
            "insert into public.realtime_channels (pattern)"
            " select format('room%%s:%%s', n, case when n %% 2 = 0 then '*' else 'x' end)"
            " from generate_series(1, %s) as n on conflict do nothing",
            [total],
        )
        for _ in range(10):  # from the sixth run on a plan may be kept
            resolve(db, "room77:x")
        with db.transaction():
            before = scans(db)
            plan = only(
                db,
                "explain (analyze, buffers, format json) select * from rowcast.resolve('room78:y')",
            )
            after = scans(db)
        costs[total] = plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]
        # One probe for each of the two shapes, one for the row, and no look at the table besides.
        assert (after[0] - before[0], after[1] - before[1]) == (0, 3), total
    # Each probe descends a tree that became one or two levels higher.
    assert costs[20_000] <= costs[100] + 3 * 2


def test_the_stamping_trigger_looks_up_through_the_index_too(db: Connection) -> None:
    db.execute(
        "insert into public.realtime_channels (pattern)"
        " select 'room' || n || ':*' from generate_series(1, 100) as n"
    )
    with db.transaction():
        before = scans(db)
        publish(db, "room7:x")
        after = scans(db)
    assert (after[0] - before[0], after[1] - before[1]) == (0, 1)


def test_the_probe_uses_the_unique_index(db: Connection) -> None:
    db.execute(
        "insert into public.realtime_channels (pattern)"
        " select 'room' || n || ':*' from generate_series(1, 20000) as n"
    )
    db.execute("analyze public.realtime_channels")
    plan = db.execute(
        "explain (costs off) select c.id, c.enabled from public.realtime_channels as c"
        " where c.pattern = array_to_string(array['room77', '*'], ':')"
    ).fetchall()
    assert "using realtime_channels_pattern_key" in plan[0][0]


def test_two_transactions_that_add_shapes_at_once_lose_none(database: pg.Database) -> None:
    with (
        database.connect(autocommit=False) as first,
        database.connect(autocommit=False) as second,
        database.connect() as watcher,
    ):
        one = add_channel(first, "one:*:x")
        # The second waits for the row of settings that the first has changed.
        second.pgconn.send_query(
            b"insert into public.realtime_channels (pattern) values ('two:**')"
        )
        second.pgconn.flush()
        eventually(
            lambda: only(
                watcher,
                "select count(*) from pg_stat_activity where pid = %s and wait_event_type = 'Lock'",
                [second.info.backend_pid],
            ),
            what="the second waits",
        )
        first.commit()
        while (result := second.pgconn.get_result()) is not None:
            assert result.error_message == b""
        second.commit()
        assert resolve(watcher, "one:1:x") == (one, True)
        assert resolve(watcher, "two:1:2")[1] is True
        assert only(watcher, "select shapes = array['aba', 'ac'] from rowcast.settings")
