"""A dry run checks connected callers for a limited time, and escapes what it prints about them.

A thread answers in place of a bridge; acceptance/test_census.py has real bridges.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg

from support import pg
from support.messages import add_channel
from support.workbench import Run, picture

Connection = psycopg.Connection[Any]

SPOKEN = "select s.body ->> 'request' from rowcast.signal as s where s.kind = 'census'"
ANSWER = "select rowcast.census_answer(%s, %s, %s, %s, %s, %s, 0)"
OPEN = "create policy listen on realtime_channels for select using ({})"
ALTERED = 'alter policy "listen" on "public"."realtime_channels" using ({});'


@contextlib.contextmanager
def connected(database: pg.Database, *sessions: tuple[str, dict[str, Any], str]) -> Iterator[None]:
    """Run a bridge that has these (role, claims, channel) and answers the first request."""
    node = uuid4()
    with database.connect() as connection:
        connection.execute("select rowcast.node_beat(%s, '5 minutes')", [node])

    def answer() -> None:
        deadline = time.monotonic() + 60
        with database.connect(database.bridge_url) as bridge, database.connect() as watcher:
            while not (spoken := watcher.execute(SPOKEN).fetchall()):
                if time.monotonic() > deadline:
                    return
            roles, claims, channels = zip(*sessions, strict=True)
            texts = [json.dumps(c) for c in claims]
            values = [list(roles), texts, list(channels), [1] * len(roles)]
            bridge.execute(ANSWER, [node, spoken[0][0], *values])

    bridge = threading.Thread(target=answer)
    bridge.start()
    try:
        yield
    finally:
        bridge.join()


def prepare(db: Connection, home: Path, before: str, after: str) -> None:
    add_channel(db, "a", is_public=True)
    db.execute(OPEN.format(before).encode())
    (home / "policies" / "chat.sql").write_text(OPEN.format(after))


def alice(number: int = 0, **claims: Any) -> tuple[str, dict[str, Any], str]:
    return ("authenticated", {"sub": f"alice{number}", "role": "authenticated", **claims}, "a")


def test_a_role_that_the_login_cannot_become_does_not_hide_others(
    run: Run, db: Connection, database: pg.Database, home: Path
) -> None:
    prepare(db, home, "is_public", "false")
    with pg.cluster_lock(database.server.url()):
        if not db.execute("select from pg_roles where rolname = 'rowcast_strange'").fetchone():
            db.execute("create role rowcast_strange")
    db.execute("update rowcast.settings set caller_roles = caller_roles || '{rowcast_strange}'")
    with connected(database, alice(), ("rowcast_strange", {"role": "rowcast_strange"}, "a")):
        code, out, err = run("apply", "--dry-run")
    assert code == 0
    assert out.splitlines() == [
        ALTERED.format("false"),
        "1 of 1 bridges answered: 2 subscriptions of 2 callers",
        "alice0 (authenticated) loses a",
    ]
    assert "callers of role rowcast_strange were not checked: The login rowcast_policy_team" in err


def test_a_policy_that_hangs(run: Run, db: Connection, database: pg.Database, home: Path) -> None:
    """It locks the tables for at most two seconds."""
    prepare(db, home, "is_public", "pg_sleep(60) is not null")
    began = time.monotonic()
    with connected(database, *(alice(n) for n in range(5))):
        before = picture(db)
        code, out, err = run("apply", "--dry-run")
    assert code == 0
    assert time.monotonic() - began < 20
    lost = [line for line in out.splitlines() if line.endswith(" loses a")]
    assert 1 <= len(lost) < 5
    assert f"{5 - len(lost)} session" in err
    assert " not checked: the tables would have been locked for more than 2 seconds" in err
    kept = [row for row in before if row[0] not in ("rowcast.signal", "rowcast.node")]
    assert [row for row in picture(db) if row[0] not in ("rowcast.signal", "rowcast.node")] == kept


def test_one_whose_policy_hangs_does_not_decide_for_the_others(
    run: Run, db: Connection, database: pg.Database, home: Path
) -> None:
    after = "case when rowcast.jwt() ? 'slow' then pg_sleep(60) is not null else true end"
    prepare(db, home, "is_public", after)
    with connected(database, alice(1, slow=1), alice(2)):
        code, out, err = run("apply", "--dry-run")
    assert code == 0
    assert out.splitlines()[-1] == "alice1 (authenticated) loses a"
    assert "alice2" not in out
    assert "not checked" not in err


def test_a_name_from_a_token_writes_no_escapes_to_the_terminal(
    run: Run, db: Connection, database: pg.Database, home: Path
) -> None:
    prepare(db, home, "is_public", "false")
    evil = ("authenticated", {"sub": "\x1b]0;gone\x07\nroot", "role": "authenticated"}, "a")
    with connected(database, evil):
        out = run("apply", "--dry-run")[1]
    assert out.splitlines()[-1] == r"\x1b]0;gone\x07\nroot (authenticated) loses a"


def test_the_options_belong_to_a_dry_run(run: Run, home: Path) -> None:
    (home / "policies" / "chat.sql").write_text(OPEN.format("true"))
    code, _, err = run("apply", "--no-census")
    assert (code, "only work with --dry-run" in err) == (2, True)
