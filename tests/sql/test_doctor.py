"""The doctor reports nothing for a healthy installation and names each fault with its remedy."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from rowcast.install.migrate import migrate
from support import pg

Connection = psycopg.Connection[Any]

CALLER = ("caller roles", "caller grants", "caller privileges", "triggers")
OPEN = "create policy p on public.realtime_channels for select to anon using (true)"

# A change by an owner → (what is found wrong, words of the finding).
BROKEN: dict[str, tuple[str, list[str]]] = {
    "update rowcast.settings set caller_roles = '{anon,authenticated,guests}'": (
        "caller roles",
        ["guests does not exist"],
    ),
    "revoke select on public.realtime_channels from authenticated": (
        "caller grants",
        ["authenticated may not select from realtime_channels"],
    ),
    "revoke insert on public.realtime_messages from anon": (
        "caller grants",
        ["anon may not insert into realtime_messages"],
    ),
    "revoke usage on schema rowcast from public": (
        "caller grants",
        ["anon may not use schema rowcast", "authenticated may not use"],
    ),
    "revoke execute on function rowcast.may_subscribe(text) from anon": (
        "caller grants",
        ["anon may not execute rowcast.may_subscribe()"],
    ),
    "grant all on all tables in schema public to anon": (
        "caller privileges",
        ["anon may read webhook_urls", "anon may truncate realtime_messages", "anon may change"],
    ),
    "grant select on rowcast.settings to public": (
        "caller privileges",
        ["anon may reach tables of schema rowcast", "authenticated may reach"],
    ),
    "alter table public.realtime_messages disable trigger realtime_messages_20_stamp": (
        "triggers",
        ["messages_stamp"],
    ),
    "drop trigger realtime_messages_10_caller on public.realtime_messages": (
        "triggers",
        ["messages_caller"],
    ),
}


def findings(connection: Connection) -> dict[str, tuple[str, str]]:
    """What is wrong: subject → finding and advice."""
    rows = connection.execute("select subject, finding, advice from rowcast.doctor() where not ok")
    return {subject: (finding, advice) for subject, finding, advice in rows if subject in CALLER}


def test_nothing_is_wrong_with_what_a_migrate_made(tx: Connection) -> None:
    assert findings(tx) == {}
    tx.execute(OPEN)
    tx.execute("grant insert, update, delete on public.realtime_channels to authenticated")
    assert findings(tx) == {}, "who may write channels is a team's own decision"


@pytest.mark.parametrize("done", BROKEN)
def test_what_somebody_broke_is_found_and_the_advice_mends_it(
    done: str, db: Connection, database: pg.Database, server: pg.Server
) -> None:
    subject, words = BROKEN[done]
    db.execute(done.encode())
    found = findings(db)
    assert found.keys() == {subject}, found
    finding, advice = found[subject]
    assert [word for word in words if word not in finding.replace("public.", "")] == [], finding
    assert "rowcast migrate --reapply" in advice
    if "guests" in done:
        db.execute("update rowcast.settings set caller_roles = default")
    if "enable trigger all" in advice:
        db.execute("alter table public.realtime_messages enable trigger all")
    with pg.cluster_lock(server.url()):
        migrate(database.url, reapply=True)
    assert findings(db) == {}


def test_roles_that_are_more_than_callers_are_found(tx: Connection) -> None:
    for more, words in {
        "grant rowcast_owner to anon": "anon is a member of rowcast_owner",
        "revoke authenticated from rowcast_caller": "authenticated is not granted",
        "alter role anon bypassrls": "anon bypasses row level security",
    }.items():
        with tx.transaction(force_rollback=True):
            tx.execute(more.encode())
            assert words in findings(tx)["caller roles"][0]
    assert findings(tx) == {}
