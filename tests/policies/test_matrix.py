"""`rowcast policy matrix`: answers for all personas, and the differences from a snapshot."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.messages import add_channel
from support.workbench import Run, picture

Connection = psycopg.Connection[Any]

PERSONAS = """
channels = ["chat:1", "news", "nowhere"]
[personas.alice]
claims = { sub = "alice" }
[personas.bob]
claims = { sub = "bob" }
"""


@pytest.fixture(autouse=True)
def _stage(db: Connection, home: Path) -> None:
    add_channel(db, "chat:*", owner_id="alice")
    add_channel(db, "news", is_public=True)
    db.execute(
        "create policy l on public.realtime_channels for select"
        " using (is_public or owner_id = rowcast.user_id())"
    )
    db.execute(
        "create policy p on public.realtime_messages for insert to authenticated"
        " with check (case when sender_id = 'alice' then true else (payload ->> 'x')::int = 1 end)"
    )
    (home / "policies" / "personas.toml").write_text(PERSONAS)


def test_the_table_has_a_row_for_each_channel(run: Run, db: Connection) -> None:
    before = picture(db)
    code, out, err = run("matrix", "--payload", '{"x": "y"}')
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "channel  anon  alice    bob",
        "chat:1   -     sub pub  !",
        "news     sub   sub pub  sub !",
        "nowhere  -     -        -",
    ]
    assert picture(db) == before


def test_markdown_csv_and_json_say_the_same(run: Run) -> None:
    code, out, _ = run("matrix", "chat:1", "--format", "markdown")
    assert code == 0
    assert out.splitlines() == [
        "| channel | anon | alice | bob |",
        "| --- | --- | --- | --- |",
        "| chat:1 | - | sub pub | - |",
    ]
    rows = list(csv.DictReader(run("matrix", "chat:1", "--format", "csv")[1].splitlines()))
    assert rows[1] == {
        "persona": "alice", "channel": "chat:1", "subscribe": "allow", "publish": "allow",
    }  # fmt: skip
    found = json.loads(run("matrix", "--format", "json")[1])
    assert found["anon"]["chat:1"] == {"subscribe": "denied", "publish": "denied"}
    assert found["bob"]["nowhere"]["subscribe"] == "no channel"


def test_without_channels_those_of_the_database_are_asked(run: Run, home: Path) -> None:
    (home / "policies" / "personas.toml").write_text("[personas.alice]\n")
    assert run("matrix")[1].splitlines()[1:] == ["news     sub   sub"]


def test_a_snapshot_is_written_compared_and_written_again(
    run: Run, db: Connection, home: Path
) -> None:
    asked = ("matrix", "--snapshot", "policies/matrix.json")
    assert run(*asked)[:2] == (0, "policies/matrix.json written\n")
    assert run(*asked)[:2] == (0, "the same\n")
    before = (home / "policies" / "matrix.json").read_text()
    db.execute("update public.realtime_channels set is_public = true")
    changed = "anon subscribe chat:1: denied -> allow\nbob subscribe chat:1: denied -> allow\n"
    assert run(*asked)[:2] == (4, changed + "2 answers changed\n")
    assert (home / "policies" / "matrix.json").read_text() == before
    assert run(*asked, "--update")[:2] == (0, changed + "policies/matrix.json written\n")
    assert run(*asked)[0] == 0


def test_a_snapshot_that_is_none_is_wrong_usage(run: Run, home: Path) -> None:
    for text in ("{", "[1]"):
        (home / "matrix.json").write_text(text)
        code, _, err = run("matrix", "--snapshot", "matrix.json")
        assert (code, "is not a snapshot" in err) == (2, True)
    code, _, err = run("matrix", "--snapshot", "nowhere/matrix.json")
    assert (code, err) == (
        2,
        "rowcast: nowhere/matrix.json cannot be read or written: No such file or directory.\n",
    )
