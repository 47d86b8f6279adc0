"""`rowcast policy test`: cases pass for the right reason, or fail with an explanation."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psycopg
import pytest

from support import pg
from support.messages import add_channel
from support.workbench import Run, picture

Connection = psycopg.Connection[Any]

POLICY = """
create policy listen on realtime_channels for select to authenticated
using (exists (select from members as m where m.room = rowcast.segment(2) and m.user_id = auth.user_id()));
create policy speak on realtime_messages for insert to authenticated
with check ((payload ->> 'n')::integer > 0);
create policy "no broadcasts" on realtime_messages as restrictive for insert
with check (type = 'message');
"""  # noqa: E501
HEAD = """
channels = ["chat:*", { pattern = "chat:off", enabled = false }]
setup = "create table members (room text, user_id text); grant select on members to authenticated"
fixtures = "insert into members values ('1', 'alice')"

[personas.alice]
claims = { sub = "alice", since = 2026-01-01 }
"""
CASES = """
[[case]]
as = "alice"
can = "subscribe"
to = "chat:1"

[[case]]
as = "alice"
cannot = "subscribe"
to = "chat:2"

[[case]]
as = "anon"
cannot = "publish"
to = "chat:1"
payload = { n = 1 }

[[case]]
as = "alice"
can = "publish"
to = "chat:1"
event = "said"
payload = { n = 1 }

[[case]]
as = "alice"
cannot = "publish"
to = "chat:1"
payload = '{"n": 1}'
type = "broadcast"
because = "no broadcasts"

[[case]]
as = "alice"
cannot = "subscribe"
to = "chat:off"
because = "disabled"
"""


@pytest.fixture
def folder(home: Path) -> Path:
    (home / "policies" / "chat.sql").write_text(POLICY)
    return home / "policies"


def case(**lines: str) -> str:
    written = "".join(
        f"{'as' if key == 'who' else key} = {value if value[:2] == '{ ' else repr(value)}\n"
        for key, value in lines.items()
    )
    return f"[[case]]\n{written}"


def test_cases_pass_and_are_listed(run: Run, folder: Path, team_url: str, db: Connection) -> None:
    (folder / "chat.test.toml").write_text(HEAD + CASES)
    (folder / "personas.toml").write_text("")
    before = picture(db)
    code, out, err = run("test", "--database-url", team_url)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "policies/chat.test.toml",
        "  ok    alice can subscribe chat:1",
        "  ok    alice cannot subscribe chat:2",
        "  ok    anon cannot publish chat:1 message",
        "  ok    alice can publish chat:1 said",
        "  ok    alice cannot publish chat:1 message (broadcast)",
        "  ok    alice cannot subscribe chat:off",
        "6 passed",
    ]
    assert picture(db) == before


FAILING = [
    (case(who="alice", can="subscribe", to="chat:2"), "expected allow, got deny: denied"),
    (case(who="alice", cannot="subscribe", to="chat:1"), "expected deny, got allow"),
    (case(who="alice", cannot="subscribe", to="caht:2"), "passes either way"),
    (case(who="alice", cannot="publish", to="chat:1", payload='{ n = "x" }'), "passes either way"),
    (case(who="alice", cannot="publish", to="chat:1", because="banned"), "not because banned"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), FAILING)
def test_a_failure_comes_with_its_explanation(
    run: Run, folder: Path, team_url: str, text: str, words: str
) -> None:
    (folder / "chat.test.toml").write_text(HEAD + text)
    code, out, _ = run("test", "policies/chat.test.toml", "--database-url", team_url)
    assert code == 1
    assert f"        {words}" in out or words in out
    assert "by the database:" in out
    assert "| policies of realtime_" in out
    assert out.endswith("0 passed, 1 failed\n")


def test_what_no_policy_lets_through_is_reported(run: Run, folder: Path, team_url: str) -> None:
    """The control: without row level security a case does not test policies."""
    (folder / "chat.sql").write_text(
        "create policy p on realtime_channels for select using (true);"
        "alter table realtime_channels disable row level security;"
    )
    (folder / "chat.test.toml").write_text(HEAD + case(who="alice", can="subscribe", to="chat:9"))
    code, out, _ = run("test", "--database-url", team_url)
    assert code == 1
    assert "passes either way: it is still allowed with all policies dropped" in out
    assert "OFF on realtime_channels" in out


def test_policies_of_the_files_replace_those_of_the_database(
    run: Run, folder: Path, team_url: str, db: Connection
) -> None:
    db.execute("create policy lax on public.realtime_channels for select using (true)")
    cases = case(who="alice", cannot="subscribe", to="chat:2")
    (folder / "chat.test.toml").write_text(HEAD + cases)
    assert run("test", "--database-url", team_url)[0] == 0


def test_an_empty_list_tests_what_the_database_has(
    run: Run, home: Path, team_url: str, db: Connection
) -> None:
    add_channel(db, "live:*")
    db.execute("create policy live on public.realtime_channels for select using (is_public)")
    live = "policies = []\n[personas.alice]\n"
    (home / "live.toml").write_text(live + case(who="alice", can="subscribe", to="live:1"))
    assert run("test", "live.toml", "--database-url", team_url)[0] == 1
    db.execute("update public.realtime_channels set is_public = true")
    assert run("test", "live.toml", "--database-url", team_url)[0] == 0


def test_junit_counts_what_the_output_says(
    run: Run, folder: Path, home: Path, team_url: str
) -> None:
    (folder / "chat.test.toml").write_text(HEAD + CASES + FAILING[0][0])
    code, out, _ = run("test", "-q", "--junit", "out.xml", "--database-url", team_url)
    assert code == 1
    assert "  ok " not in out
    (suite,) = ElementTree.parse(home / "out.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("7", "1")
    (failure,) = suite.iter("failure")
    assert "by the database: deny" in (failure.text or "")


def test_files_may_hold_setup_and_fixtures(run: Run, folder: Path, team_url: str) -> None:
    (folder / "tables.sql.txt").write_text("create table members (room text, user_id text);")
    (folder / "rows.sql.txt").write_text(
        "grant select on members to authenticated; insert into members values ('2', 'bob')"
    )
    (folder / "chat.test.toml").write_text(
        'channels = ["chat:*"]\nsetup_file = "tables.sql.txt"\nfixtures_file = "rows.sql.txt"\n'
        '[personas.bob]\nclaims = { sub = "bob" }\n' + case(who="bob", can="subscribe", to="chat:2")
    )
    assert run("test", "--database-url", team_url)[0] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "unknown key x"),
        ("", "at least one [[case]]"),
        ("x = ", "is not TOML"),
        (HEAD + case(who="bob", can="subscribe", to="a"), "'bob' does not exist; use anon, alice"),
        (HEAD + case(who="alice", can="dance", to="a"), "'dance' is neither"),
        (HEAD + case(who="alice", to="a"), "either can"),
        (HEAD + case(who="alice", can="subscribe", to="a", event="x"), "cannot have an event"),
        (HEAD + case(who="alice", can="subscribe", to="a", because="x"), "reason of a refusal"),
        (HEAD + case(who="alice", can="subscribe"), "name a channel"),
        ("channels = [1]\n" + CASES, "a channel must be a pattern"),
        ('channels = "chat:*"\n' + CASES, "channels is a list"),
        (
            HEAD + case(who="alice", can="publish", to="a", payload="{"),
            "a payload string must be JSON",
        ),
        ('policies = ["nowhere.sql"]\n' + CASES, "does not exist"),
        ("[personas.alice]\nsub = 1\n" + CASES, "may only have a role and claims"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_a_sentence(
    run: Run, folder: Path, text: str, words: str
) -> None:
    (folder / "chat.test.toml").write_text(text)
    code, out, err = run("test", "--database-url", "postgresql://nobody@127.0.0.1:1/x")
    assert (code, out) == (2, "")
    assert words in err


def test_a_directory_without_cases_is_wrong_usage(run: Run) -> None:
    code, _, err = run("test")
    assert (code, "policies has no case files" in err) == (2, True)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("create policy p on nowhere for select using (true)", "Relation"),
        ("select 1;\n\nselect nonsense;", "line 3"),
        ("select 1;\ncommit", "transaction commands"),
        ("do $$ begin commit; end $$", "Invalid transaction termination"),
    ],
)
def test_a_policy_file_that_fails_is_named(
    run: Run, folder: Path, team_url: str, db: Connection, policy: str, words: str
) -> None:
    db.execute("create policy kept on public.realtime_channels for select using (false)")
    (folder / "chat.sql").write_text(policy)
    (folder / "chat.test.toml").write_text(HEAD + CASES)
    before = picture(db)
    code, _, err = run("test", "--database-url", team_url)
    assert code == 1
    assert "policies/chat.sql" in err
    assert words in err
    assert picture(db) == before


def test_without_a_database_one_is_made_and_thrown_away(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWCAST_PG_BIN", str(pg.choose_binaries()))
    (folder / "chat.test.toml").write_text(HEAD + CASES)
    code, out, err = run("test")
    assert (code, err) == (0, "")
    assert out.endswith("6 passed\n")
