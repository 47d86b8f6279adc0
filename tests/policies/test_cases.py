"""The cases of each recipe hold, also for a copy under another name."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rowcast.errors import UsageError
from rowcast.files import policy_files
from rowcast.policy.recipes import recipes, write
from support import pg
from support.messages import add_channel, only
from support.pg import as_role

Connection = psycopg.Connection[Any]

RECIPES = [path.stem for path in policy_files()]


@pytest.fixture(autouse=True)
def begun(tx: Connection) -> None:
    """Begin a transaction first: a block at the start would be its own transaction and commit."""
    tx.execute("select")


def prepare(tx: Connection, file: Path) -> dict[str, Any]:
    """Apply policies, channels and fixtures of a case file; return its content."""
    said = tomllib.loads(file.read_text())
    for policies in said["policies"]:
        with as_role(tx, pg.TEAM):
            tx.execute((file.parent / policies).read_bytes())
    for channel in said["channels"]:
        add_channel(tx, **(channel if isinstance(channel, dict) else {"pattern": channel}))
    if said.get("fixtures"):
        tx.execute(said["fixtures"].encode())
    return said


def may(tx: Connection, persona: dict[str, Any], case: dict[str, Any]) -> bool:
    """Check as a bridge would."""
    channel, role, claims = case["to"], persona["role"], persona["claims"]
    try:
        with as_role(tx, role, claims or None, channel):
            if case.get("can", case.get("cannot")) == "subscribe":
                return only(tx, "select rowcast.may_subscribe(%s)", [channel]) is True
            event, payload = case.get("event", "message"), json.dumps(case.get("payload", {}))
            return only(tx, "select rowcast.publish(%s, %s, %s)", [channel, event, payload])
    except psycopg.errors.InsufficientPrivilege as refusal:
        if "row-level security" in str(refusal):
            return False
        raise


def check(tx: Connection, file: Path) -> int:
    said = prepare(tx, file)
    for case in said["case"]:
        expected = "can" in case
        assert bool(may(tx, said["personas"][case["as"]], case)) is expected, case
    return len(said["case"])


@pytest.mark.parametrize("recipe", policy_files(), ids=lambda path: path.stem)
def test_the_cases_of_a_recipe_hold(tx: Connection, recipe: Path) -> None:
    assert check(tx, recipe.with_suffix(".test.toml")) > 1


@pytest.mark.parametrize("recipe", policy_files(), ids=lambda path: path.stem)
def test_a_recipe_tells_its_story_and_its_cost(recipe: Path) -> None:
    head = recipe.read_text().partition("\n\n")[0]
    assert "-- Allows: " in head
    assert "Cost: " in head


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_copy_does_the_same_under_its_own_name(
    tx: Connection, recipe: str, tmp_path: Path
) -> None:
    sql, cases = write("desk", recipe, tmp_path / "policies")
    before = set(policies(tx))
    check(tx, cases)
    made = set(policies(tx)) - before
    assert made
    assert {name for _, name in made if not name.startswith("desk_")} == set()
    assert sql.read_text().count("create policy") == len(made)


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_copies_and_the_recipe_live_together(
    tx: Connection, recipe: str, tmp_path: Path
) -> None:
    before = len(policies(tx))
    files = [write(name, recipe, tmp_path)[0] for name in ("desk", "a" * 40)]
    for file in (*files, next(p for p in policy_files() if p.stem == recipe), *files):
        with as_role(tx, pg.TEAM):
            tx.execute(file.read_bytes())
    made = len(policies(tx)) - before
    assert made == 3 * files[0].read_text().count("create policy")


def policies(tx: Connection) -> list[tuple[str, str]]:
    return tx.execute("select tablename, policyname from pg_catalog.pg_policies").fetchall()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write("desk", "open", tmp_path)
    kept = {path: path.read_text() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=r"desk\.sql exists already"):
        write("desk", "read_only", tmp_path)
    (tmp_path / "desk.sql").unlink()
    with pytest.raises(UsageError, match=r"desk\.test\.toml exists already"):
        write("desk", "read_only", tmp_path)
    assert not (tmp_path / "desk.sql").exists()
    assert (tmp_path / "desk.test.toml").read_text() == kept[tmp_path / "desk.test.toml"]


@pytest.mark.parametrize("name", ["", "../desk", "Desk", "1desk", "a b", "a" * 41, "desk.sql"])
def test_a_name_is_a_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot name a policy file"):
        write(name, "open", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_recipe_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="room_members"):
        write("desk", "nothing", tmp_path)


def test_every_recipe_has_a_first_sentence() -> None:
    for recipe in recipes().values():
        assert recipe.story.endswith("."), recipe.story
        assert ": " in recipe.story
