"""Poolers, standbys and settings of the database, between a bridge and its database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.test_faults import hears, refuses, say
from support import pg
from support.bridge_process import Daemon, daemon, open_channels
from support.pgbouncer import needs_pgbouncer, start_pgbouncer
from support.waiting import eventually
from support.wire_client import connect

pytestmark = pytest.mark.acceptance


@pytest.fixture
def opened(own_server: pg.OwnServer) -> Iterator[pg.Database]:
    with own_server.database() as database:
        open_channels(database, "room:*")
        yield database


def through(pooler: str, database: pg.Database, login: str) -> str:
    return pooler.replace("postgres@", f"{login}@").replace("/postgres", f"/{database.name}")


async def works(bridge: Daemon, database: pg.Database) -> None:
    async with connect(bridge.url) as wire, connect(bridge.url) as other:
        cursor = (await wire.subscribe("room:1"))["cursor"]
        # Simultaneous queries are spread over the connections; each must have its settings.
        await asyncio.gather(
            *(other.send(op="publish", channel="room:1", event="e", payload=n) for n in range(30))
        )
        got = await wire.messages(30)
        assert sorted(message["payload"] for message in got) == list(range(30))
        say(database, "from sql")
        await hears(wire, "from sql")
        answer = await other.ask(op="subscribe", channel="room:1", after=cursor)
        assert answer["recovered"] is True


@needs_pgbouncer
@pytest.mark.parametrize("way", ["LISTEN goes around it", "the bridge polls"])
async def test_everything_works_through_a_transaction_pooler(
    own_server: pg.OwnServer, opened: pg.Database, scratch: Path, way: str
) -> None:
    polls = way == "the bridge polls"
    settings = {"doorbell": "poll"} if polls else {"listen_url": opened.bridge_url}
    with (
        start_pgbouncer(own_server, scratch, "transaction") as pooler,
        daemon(
            opened,
            database_url=through(pooler, opened, "rowcast_bridge"),
            caller_url=through(pooler, opened, "rowcast_caller"),
            **settings,
        ) as bridge,
    ):
        await works(bridge, opened)
        if not polls:
            eventually(lambda: bridge.metric("rowcast_sleeps_total") > 0, what="it sleeps")
        assert "_lost" not in bridge.log


@needs_pgbouncer
@pytest.mark.parametrize("door", ["database", "caller"])
def test_an_unexpected_pooler_is_refused_with_advice(
    own_server: pg.OwnServer, opened: pg.Database, scratch: Path, door: str
) -> None:
    login = "rowcast_bridge" if door == "database" else "rowcast_caller"
    with start_pgbouncer(own_server, scratch, "transaction") as pooler:
        said = refuses(opened, **{f"{door}_url": through(pooler, opened, login)})
    assert f"ROWCAST_{door.upper()}_URL leads to a pooler" in said
    assert "ROWCAST_LISTEN_URL" in said


@pytest.mark.parametrize("what", ["standby", "setting"])
def test_a_server_that_takes_no_writes_is_refused(
    own_server: pg.OwnServer, opened: pg.Database, what: str
) -> None:
    if what == "setting":
        with opened.connect() as admin:
            admin.execute(
                f"alter database {opened.name} set default_transaction_read_only = on"  # type: ignore[arg-type]
            )
        assert "takes no writes" in refuses(opened)
        return
    own_server.stop()
    signal = own_server.home / "data" / "pgdata" / "standby.signal"
    signal.touch()
    own_server.start()
    try:
        assert "primary" in refuses(opened)
    finally:
        own_server.stop()
        signal.unlink()
        own_server.start()


async def test_settings_of_the_database_change_nothing(opened: pg.Database) -> None:
    with opened.connect() as admin:
        for setting in (
            "default_transaction_isolation = 'serializable'",
            "row_security = off",
            "search_path = ''",
            "standard_conforming_strings = off",
            "datestyle = 'SQL, DMY'",
            "timezone = 'Pacific/Apia'",
            "intervalstyle = 'sql_standard'",
            "bytea_output = 'escape'",
            "array_nulls = off",
            "transform_null_equals = on",
            "enable_indexscan = off",
            "statement_timeout = 1",
        ):
            admin.execute(f"alter database {opened.name} set {setting}")  # type: ignore[arg-type]
    with daemon(opened) as bridge:
        async with connect(bridge.url) as wire:
            await wire.subscribe("room:1")
            await wire.publish("room:1", "as a client")
            await hears(wire, "as a client")
