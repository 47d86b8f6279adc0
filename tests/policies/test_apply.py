"""`rowcast policy diff` and `apply`: the server finds differences, and few locks are taken."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support import pg
from support.messages import add_channel, only
from support.workbench import Run, picture

Connection = psycopg.Connection[Any]

RECIPES = Path(__file__).parents[2] / "policies"
MEMBERS = "create table public.members (room text, user_id text)"
LISTEN = """
create policy listen on realtime_channels for select to authenticated
using (enabled and pattern in ('a', 'b'));
"""


@pytest.fixture
def write(home: Path) -> Any:
    def write(text: str, name: str = "chat.sql") -> None:
        (home / "policies" / name).write_text(text)

    return write


def names(db: Connection) -> list[str]:
    rows = db.execute("select polname from pg_policy where polname <> 'rowcast_publisher'")
    return sorted(name for (name,) in rows)


def test_what_is_missing_is_made_and_then_all_is_the_same(
    run: Run, write: Any, db: Connection
) -> None:
    write(LISTEN)
    before = picture(db)
    code, out, err = run("diff")
    assert (code, err) == (4, "")
    assert out == (
        'create policy "listen" on "public"."realtime_channels" as permissive for select'
        ' to "authenticated"'
        " using ((enabled AND (pattern = ANY (ARRAY['a'::text, 'b'::text]))));\n"
    )
    assert picture(db) == before
    code, applied, err = run("apply")
    assert (code, applied) == (0, out)
    known = only(db, "select to_regproc('rowcast.recheck') is not null")
    assert ("bridges ask again within a minute" in err) is not known
    assert names(db) == ["listen"]
    assert run("diff")[:2] == (0, "the policies are the same\n")


SAME = [
    (
        "CREATE POLICY listen ON public.realtime_channels AS PERMISSIVE FOR SELECT TO authenticated"
        " USING (enabled AND (pattern = 'a' OR false) IS NOT NULL AND pattern IN ('a','b'))"
    ),
    (
        "create policy listen on realtime_channels for select to authenticated"
        " using ((enabled) and realtime_channels.pattern = any (array['a', 'b']))"
    ),
    (
        "create policy listen on realtime_channels for select to authenticated"
        " using (public.realtime_channels.enabled and pattern in ('a', 'b'))"
    ),
]


@pytest.mark.parametrize("text", SAME[1:])
def test_spelling_is_no_difference(run: Run, write: Any, db: Connection, text: str) -> None:
    db.execute(LISTEN.encode())
    write(text)
    assert run("diff")[0] == 0
    write(SAME[0])
    assert run("diff")[0] == 4


ALTERED = [
    ("enabled and pattern in ('a', 'c')", "authenticated", "alter policy"),
    ("enabled and pattern in ('a', 'b')", "anon, authenticated", 'to "anon", "authenticated";'),
]


@pytest.mark.parametrize(("using", "roles", "words"), ALTERED)
def test_what_differs_is_altered(
    run: Run, write: Any, db: Connection, using: str, roles: str, words: str
) -> None:
    db.execute(LISTEN.encode())
    write(f"create policy listen on realtime_channels for select to {roles} using ({using})")
    code, out, _ = run("apply")
    assert code == 0
    assert out.count(";\n") == 1
    assert out.startswith("alter policy")
    assert words in out
    assert run("diff")[0] == 0


REMADE = [
    "create policy listen on realtime_channels as restrictive for select to authenticated using (enabled)",  # noqa: E501
    "create policy listen on realtime_channels for all to authenticated using (enabled)",
    "create policy listen on realtime_channels for all with check (enabled)",
]


@pytest.mark.parametrize("text", REMADE)
def test_what_cannot_be_altered_is_dropped_and_made(
    run: Run, write: Any, db: Connection, text: str
) -> None:
    db.execute(LISTEN.encode())
    write(text)
    out = run("apply")[1]
    assert [line.partition(" policy ")[0] for line in out.splitlines()] == ["drop", "create"]
    assert run("diff")[0] == 0


def test_what_no_file_mentions_stays_unless_it_is_pruned(
    run: Run, write: Any, db: Connection
) -> None:
    db.execute("create policy old on public.realtime_channels for select using (true)")
    write(LISTEN)
    code, _, err = run("apply")
    assert code == 0
    assert 'policy "old" on public.realtime_channels is not in the files and stays' in err
    assert names(db) == ["listen", "old"]
    assert run("diff")[0] == 0
    code, out, _ = run("diff", "--prune")
    assert (code, out) == (4, 'drop policy "old" on "public"."realtime_channels";\n')
    assert run("apply", "--prune")[0] == 0
    assert names(db) == ["listen"]
    assert only(db, "select count(*) from pg_policy where polname = 'rowcast_publisher'") == 1


def test_a_drop_in_a_file_is_meant(run: Run, write: Any, db: Connection) -> None:
    db.execute("create policy old on public.realtime_channels for select using (true)")
    write("drop policy if exists old on realtime_channels;" + LISTEN, "a.sql")
    assert run("apply")[0] == 0
    assert names(db) == ["listen"]


def test_an_alter_in_a_file_changes_the_policy_that_stands(
    run: Run, write: Any, db: Connection
) -> None:
    db.execute(LISTEN.encode())
    write("alter policy listen on realtime_channels using (enabled)")
    code, out, _ = run("apply")
    assert code == 0
    assert out == 'alter policy "listen" on "public"."realtime_channels" using (enabled);\n'
    write("alter policy nobody on realtime_channels using (enabled)")
    code, _, err = run("diff")
    assert (code, "line 1: policy nobody does not exist and cannot be altered" in err) == (1, True)


def test_what_stands_beside_the_policies_is_run(run: Run, write: Any, db: Connection) -> None:
    write(
        """
-- helpers
create table if not exists members (room text, user_id text);
create or replace function is_member(room text) returns boolean language sql stable
as $$ select exists (select from public.members as m where m.user_id = rowcast.user_id()) $$;
grant select on members to authenticated;
alter table members enable row level security;
create policy mine on members for select using (user_id = auth.user_id());
create policy listen on realtime_channels for select using (is_member(rowcast.segment(2)));
"""
    )
    before = picture(db)
    code, out, _ = run("diff")
    assert code == 4
    assert 'alter table "public"."members" enable row level security;' in out
    assert picture(db) == before
    assert run("apply")[0] == 0
    assert names(db) == ["listen", "mine"]
    assert run("diff")[0] == 0


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.sql")))
def test_every_recipe_can_be_applied_and_is_then_the_same(run: Run, recipe: str) -> None:
    path = str(RECIPES / f"{recipe}.sql")
    assert run("diff", path)[0] == 4
    assert run("apply", path)[0] == 0
    assert run("diff", path)[:2] == (0, "the policies are the same\n")


def test_policies_that_read_their_own_table(run: Run, write: Any, db: Connection) -> None:
    """They are not read back as policies of the scratch table."""
    text = (
        "create policy q on realtime_messages for insert with check (exists ("
        "select from realtime_messages as m, realtime_channels as c"
        " where c.id = realtime_messages.channel_id and m.seq = 1))"
    )
    db.execute(text.encode())
    write(text)
    assert run("diff")[:2] == (0, "the policies are the same\n")


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("create policy p on realtime_channels using (nonsense)", 1, "line 1: Column"),
        ("\n\ncreate policy p on nowhere using (true)", 1, "line 3: table nowhere does not exist"),
        ("select 1;\ninsert into x values (1);", 2, "line 1: this statement is not repeatable"),
        ("create table members (a text)", 2, "IF NOT EXISTS"),
        ("-- é\nbegin; commit;", 2, "line 2: this statement is not repeatable"),
        ("create policy p on", 2, "syntax error"),
        ("do $$ begin raise exception 'no'; end $$", 1, "line 1: No."),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    run: Run, write: Any, text: str, code: int, words: str
) -> None:
    write(text)
    ended, out, err = run("diff")
    assert (ended, out) == (code, "")
    assert "policies/chat.sql" in err
    assert words in err


def test_a_database_without_rowcast_is_told_what_it_lacks(
    run: Run, write: Any, server: pg.Server
) -> None:
    write("create policy p on realtime_channels for select using (enabled)")
    code, _, err = run("apply", "--database-url", server.url("postgres"))
    assert (code, "realtime_channels does not exist. Run `rowcast migrate` first." in err) == (
        1,
        True,
    )


def test_an_apply_that_fails_changes_nothing(run: Run, write: Any, db: Connection) -> None:
    write(LISTEN + "create policy p on realtime_messages for insert with check (nonsense);")
    before = picture(db)
    code, _, err = run("apply")
    assert (code, "line 4" in err) == (1, True)
    assert picture(db) == before


def test_an_apply_that_changes_nothing_locks_nothing(
    run: Run, write: Any, db: Connection, database: pg.Database
) -> None:
    """A waiting ACCESS EXCLUSIVE lock would queue every publisher behind a reader."""
    db.execute(LISTEN.encode())
    write(LISTEN)
    with database.connect(autocommit=False) as reader:
        reader.execute("select count(*) from public.realtime_channels, public.realtime_messages")
        assert run("diff")[0] == 0
        assert run("apply")[0] == 0
        reader.rollback()


def test_a_lock_that_others_hold_is_waited_for_briefly_and_again(
    run: Run,
    write: Any,
    db: Connection,
    database: pg.Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rowcast.policy.database.LOCK_TIMEOUT", "100")
    write(LISTEN)
    reader = database.connect(autocommit=False)
    reader.execute("select count(*) from public.realtime_channels")
    tried = threading.Event()
    monkeypatch.setattr("rowcast.install.runner.time.sleep", lambda _: tried.set())

    def give_way() -> None:
        assert tried.wait(30)
        reader.rollback()

    helper = threading.Thread(target=give_way)
    helper.start()
    code, _, err = run("apply")
    helper.join()
    reader.close()
    assert code == 0
    assert "policies tries again: canceling statement due to lock timeout" in err
    assert names(db) == ["listen"]


SESSIONS = """
[personas.alice]
claims = { sub = "alice" }
[[session]]
as = "alice"
channels = ["room:1", "news"]
[[session]]
claims = { sub = "bob" }
channels = ["room:1"]
"""


def test_a_dry_run_says_who_loses_and_gains(
    run: Run, write: Any, db: Connection, home: Path
) -> None:
    add_channel(db, "room:*", owner_id="alice")
    add_channel(db, "news", is_public=True)
    db.execute(
        "create policy listen on public.realtime_channels for select"
        " using (owner_id = rowcast.user_id())"
    )
    write("create policy listen on realtime_channels for select using (is_public)")
    (home / "sessions.toml").write_text(SESSIONS)
    before = picture(db)
    code, out, _ = run("apply", "--dry-run", "--sessions", "sessions.toml")
    assert code == 0
    assert out.splitlines() == [
        'alter policy "listen" on "public"."realtime_channels" using (is_public);',
        "alice (authenticated) loses room:1",
        "alice (authenticated) gains news",
    ]
    assert picture(db) == before
    write("create policy listen on realtime_channels for select using (owner_id = auth.user_id())")
    out = run("apply", "--dry-run", "--sessions", "sessions.toml")[1]
    assert out.endswith("none of 3 sessions loses or gains a channel\n")
    assert run("apply", "--sessions", "sessions.toml")[0] == 2


def test_bridges_are_told_where_they_can_be(run: Run, write: Any, db: Connection) -> None:
    """Bridges recheck even if only a function beside the policies has changed."""
    if only(db, "select to_regproc('rowcast.recheck') is null"):
        db.execute(
            "create function rowcast.recheck(user_id text default null, channel text default null)"
            " returns void language sql volatile security definer as"
            " $$ insert into rowcast.signal (kind, body) values ('recheck', '{}') $$;"
            "grant execute on function rowcast.recheck(text, text) to rowcast_owner"
        )
    told = "select count(*) from rowcast.signal where kind = 'recheck'"
    write(LISTEN)
    before = only(db, told)
    code, _, err = run("apply")
    assert (code, err) == (0, "")
    assert only(db, told) > before
    before = only(db, told)
    write(LISTEN + "create or replace function public.f() returns int language sql return 1;")
    code, _, err = run("apply")
    assert (code, err) == (0, "the other statements of the files were run\n")
    assert only(db, told) > before
