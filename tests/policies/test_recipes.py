"""Each recipe runs twice without a superuser, and allows exactly what its header says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support import pg
from support.messages import add_channel, messages, only, publish, refused
from support.pg import as_role
from support.recipes import PAGE_POLICIES

Connection = psycopg.Connection[Any]

POLICIES = Path(__file__).parents[2] / "policies"
RECIPES = sorted(path.stem for path in POLICIES.glob("*.sql"))
ALICE = {"sub": "alice", "role": "authenticated"}
BOB = {"sub": "bob", "role": "authenticated"}

RULES = """
select polrelid::regclass::text, polname, polcmd, polroles::text, polpermissive,
    pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)
from pg_catalog.pg_policy where polname like 'Users can %' order by 2
"""


@pytest.fixture
def team(database: pg.Database) -> Iterator[Connection]:
    """Return the login that owns the database; like a team's, it is not a superuser."""
    with database.connect(database.owner_url) as connection:
        yield connection


def apply(team: Connection, *recipes: str) -> None:
    for recipe in recipes:
        for _ in range(2):
            team.execute((POLICIES / f"{recipe}.sql").read_bytes())


def may_listen(db: Connection, claims: dict[str, Any] | None, channel: str) -> Any:
    with as_role(db, "authenticated" if claims else "anon", claims):
        return only(db, "select rowcast.may_subscribe(%s)", [channel])


def may_publish(db: Connection, claims: dict[str, Any] | None, channel: str) -> bool:
    try:
        with as_role(db, "authenticated" if claims else "anon", claims, channel):
            return publish(db, channel) is not None
    except psycopg.errors.InsufficientPrivilege as error:
        if "row-level security" in str(error):
            return False
        raise


def history(db: Connection, claims: dict[str, Any] | None, channel: str) -> int:
    with as_role(db, "authenticated" if claims else "anon", claims):
        return len(messages(db, channel))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_again_and_changes_nothing_by_it(team: Connection, recipe: str) -> None:
    def policies() -> list[Any]:
        query = "select * from pg_catalog.pg_policies order by tablename, policyname"
        return team.execute(query).fetchall()

    before = policies()
    apply(team, recipe)
    once = policies()
    apply(team, recipe)
    assert policies() == once != before


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_stands_in_the_readme(recipe: str) -> None:
    assert f"`{recipe}.sql`" in (POLICIES / "README.md").read_text()


def test_without_a_recipe_nobody_may_do_anything(db: Connection) -> None:
    add_channel(db, "room:*", is_public=True, owner_id="alice")
    publish(db, "room:1")
    for claims in (ALICE, None):
        assert may_listen(db, claims, "room:1") is False
        assert may_publish(db, claims, "room:1") is False
        assert history(db, claims, "room:1") == 0


def test_open_lets_everybody_do_everything_on_enabled_channels(
    db: Connection, team: Connection
) -> None:
    apply(team, "open")
    add_channel(db, "room:*")
    add_channel(db, "room:off", enabled=False)
    for claims in (ALICE, None):
        assert may_listen(db, claims, "room:1") is True
        assert may_listen(db, claims, "room:off") is False
        assert may_publish(db, claims, "room:1") is True
        assert history(db, claims, "room:1") > 0


def test_public_channels_are_for_everybody_and_others_for_nobody(
    db: Connection, team: Connection
) -> None:
    apply(team, "public_channels")
    add_channel(db, "news:*", is_public=True)
    add_channel(db, "news:draft")
    add_channel(db, "news:old", is_public=True, enabled=False)
    for claims in (ALICE, None):
        assert may_listen(db, claims, "news:1") is True
        assert may_listen(db, claims, "news:draft") is False
        assert may_listen(db, claims, "news:old") is False
        assert may_publish(db, claims, "news:1") is False


def test_an_owned_channel_is_for_its_owner(db: Connection, team: Connection) -> None:
    apply(team, "owner_channels")
    add_channel(db, "desk:alice:**", owner_id="alice")
    add_channel(db, "desk:nobody", owner_id=None)
    assert may_listen(db, ALICE, "desk:alice:1:2") is True
    for claims in (BOB, None, {"role": "authenticated"}):
        assert may_listen(db, claims, "desk:alice:1:2") is False
        assert may_listen(db, claims, "desk:nobody") is False
    assert may_publish(db, ALICE, "desk:alice:1") is False


def test_members_publish_and_others_do_not(db: Connection, team: Connection) -> None:
    apply(team, "channel_members")
    room = add_channel(db, "room:1")
    add_channel(db, "room:2")
    team.execute("insert into channel_members values (%s, 'alice')", [room])
    assert may_publish(db, ALICE, "room:1") is True
    assert may_publish(db, ALICE, "room:2") is False
    assert may_publish(db, BOB, "room:1") is False
    assert may_publish(db, None, "room:1") is False
    assert may_listen(db, ALICE, "room:1") is False


def test_members_see_their_own_memberships_only(db: Connection, team: Connection) -> None:
    apply(team, "channel_members")
    room = add_channel(db, "room:1")
    team.execute("insert into channel_members select %s, unnest(array['alice', 'bob'])", [room])
    with as_role(db, "authenticated", ALICE):
        assert db.execute("select user_id from channel_members").fetchall() == [("alice",)]
    for role in ("anon", "authenticated"):
        with refused(db, "42501", "channel_members"), as_role(db, role, BOB):
            db.execute("insert into public.channel_members values (%s, 'mallory')", [room])


def test_a_membership_ends_with_its_channel(db: Connection, team: Connection) -> None:
    apply(team, "channel_members")
    room = add_channel(db, "room:1")
    team.execute("insert into channel_members values (%s, 'alice')", [room])
    db.execute("delete from public.realtime_channels")
    assert only(db, "select count(*) from public.channel_members") == 0


def test_a_table_of_members_that_exists_already_is_kept(db: Connection, team: Connection) -> None:
    team.execute("create table channel_members (channel_id uuid, user_id text, since date)")
    apply(team, "channel_members")
    room = add_channel(db, "room:1")
    team.execute("insert into channel_members values (%s, 'alice')", [room])
    assert may_publish(db, ALICE, "room:1") is True
    assert may_publish(db, BOB, "room:1") is False


def test_who_has_a_subject_may_listen_and_publish(db: Connection, team: Connection) -> None:
    apply(team, "authenticated_only")
    add_channel(db, "room:*")
    add_channel(db, "room:off", enabled=False)
    assert may_listen(db, ALICE, "room:1") is True
    assert may_publish(db, ALICE, "room:1") is True
    assert may_listen(db, ALICE, "room:off") is False
    for claims in (None, {"role": "authenticated"}):
        assert may_listen(db, claims, "room:1") is False
        assert may_publish(db, claims, "room:1") is False


OWN_ROOMS = (
    "create policy own on public.realtime_channels for select to authenticated"
    " using (rowcast.segment(2) = rowcast.user_id())"
)


def test_history_is_for_those_who_may_listen_to_the_name(db: Connection, team: Connection) -> None:
    apply(team, "history_for_subscribers")
    team.execute(OWN_ROOMS)
    add_channel(db, "chat:*")
    for name in ("chat:alice", "chat:bob"):
        publish(db, name)
    assert history(db, ALICE, "chat:alice") == 1
    assert history(db, ALICE, "chat:bob") == 0
    assert history(db, None, "chat:alice") == 0


def test_why_history_checks_the_name(db: Connection, team: Connection) -> None:
    """A check by channel_id would show the rooms of other users."""
    team.execute(OWN_ROOMS)
    team.execute(
        "create policy leak on public.realtime_messages for select to authenticated using"
        " (exists (select from public.realtime_channels as c where c.id = channel_id))"
    )
    add_channel(db, "chat:*")
    publish(db, "chat:bob")
    with as_role(db, "authenticated", ALICE, "chat:alice"):
        assert len(messages(db, "chat:bob")) == 1
    team.execute("drop policy leak on public.realtime_messages")
    apply(team, "history_for_subscribers")
    with as_role(db, "authenticated", ALICE, "chat:alice"):
        assert messages(db, "chat:bob") == []


def test_the_recipes_are_the_policies_of_the_page(db: Connection, team: Connection) -> None:
    apply(team, "public_channels", "owner_channels", "channel_members")
    team.execute('drop policy "Users can see their own memberships" on channel_members')
    ours = team.execute(RULES).fetchall()
    for table, name, *_ in ours:
        team.execute(f'drop policy "{name}" on {table}'.encode())
    team.execute(PAGE_POLICIES.encode())
    assert len(ours) == 3
    assert team.execute(RULES).fetchall() == ours


def test_recipes_add_up(db: Connection, team: Connection) -> None:
    apply(team, "public_channels", "owner_channels", "channel_members", "history_for_subscribers")
    room = add_channel(db, "room:1", owner_id="alice")
    add_channel(db, "news:*", is_public=True)
    team.execute("insert into channel_members values (%s, 'alice')", [room])
    assert may_publish(db, ALICE, "room:1")
    assert history(db, ALICE, "room:1") == 1
    assert history(db, BOB, "room:1") == 0
    assert may_listen(db, BOB, "news:1")


def test_nothing_opens_publishing_where_read_only_is(db: Connection, team: Connection) -> None:
    apply(team, "open", "read_only")
    add_channel(db, "prices:*")
    for claims in (ALICE, None):
        assert may_listen(db, claims, "prices:gold") is True
        assert may_publish(db, claims, "prices:gold") is False
    with as_role(db, "rowcast_publisher"):
        assert only(db, "select rowcast.publish_as_system('prices:gold', 'tick')") is not None


def test_a_row_for_another_room_is_refused_with_the_whole_insert(
    db: Connection, team: Connection
) -> None:
    """Each row is checked by its own name, also within one statement."""
    apply(team, "room_members")
    add_channel(db, "chat:*")
    team.execute("insert into room_members (user_id, room) values ('alice', '1')")
    insert = (
        "insert into realtime_messages (channel_name, event_name)"
        " select n, 'said' from unnest(%s::text[]) as n"
    )
    with as_role(db, "authenticated", ALICE):
        db.execute(insert, [["chat:1", "chat:1"]])
    with refused(db, "42501", "row-level security"), as_role(db, "authenticated", ALICE):
        db.execute(insert, [["chat:1", "chat:2"]])


def test_members_see_no_other_members(db: Connection, team: Connection) -> None:
    apply(team, "room_members")
    team.execute("insert into room_members (user_id, room) values ('alice', '1'), ('bob', '1')")
    with as_role(db, "authenticated", ALICE):
        assert db.execute("select user_id from room_members").fetchall() == [("alice",)]
    with refused(db, "42501", "room_members"), as_role(db, "authenticated", BOB):
        db.execute("insert into public.room_members values ('bob', '2')")


def test_history_follows_the_membership_of_a_room(db: Connection, team: Connection) -> None:
    apply(team, "room_members", "history_for_subscribers")
    add_channel(db, "chat:*")
    team.execute("insert into room_members (user_id, room) values ('alice', '1')")
    for name in ("chat:1", "chat:2"):
        publish(db, name)
    assert history(db, ALICE, "chat:1") == 1
    assert history(db, ALICE, "chat:2") == 0
