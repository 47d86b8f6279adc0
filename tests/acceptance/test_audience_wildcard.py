"""Subscribers of a pattern count in each message that they receive, on all bridges."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from acceptance.test_audience import STAMPED
from support import pg
from support.bridge_process import Daemon, daemon, open_channels, token
from support.waiting import eventually
from support.wire_client import connect

pytestmark = pytest.mark.acceptance

LEASE = 2


@pytest.fixture
def bridges(database: pg.Database) -> Iterator[tuple[Daemon, Daemon]]:
    open_channels(database, "order:*", "order:secret")
    with database.connect() as connection:
        connection.execute("update realtime_channels set wildcard = true where pattern = 'order:*'")
    with daemon(database, lease=LEASE) as one, daemon(database, lease=LEASE) as two:
        yield one, two


def counted(db: psycopg.Connection[Any], channel: str) -> tuple[int, int]:
    """Return the audience stamped on a message and that of `rowcast.audience`."""
    stamp = db.execute(STAMPED, [channel]).fetchone()
    asked = db.execute("select rowcast.audience(%s)", [channel]).fetchone()
    assert stamp is not None
    assert asked is not None
    return stamp[0], asked[0]


def becomes(db: psycopg.Connection[Any], channel: str, count: int) -> None:
    eventually(lambda: counted(db, channel) == (count, count), what=f"{channel} has {count}")


async def test_a_pattern_subscription_counts_from_answer_to_end(
    bridges: tuple[Daemon, Daemon], db: psycopg.Connection[Any]
) -> None:
    """However it ends."""
    one, two = bridges
    db.execute(
        "create policy staff on realtime_channels as restrictive for select to authenticated"
        " using (position('*' in rowcast.channel_name()) = 0"
        " or coalesce(rowcast.jwt() ->> 'level', '') <> 'low')"
    )
    async with contextlib.AsyncExitStack() as stack:
        here, there, leaving, named = [
            await stack.enter_async_context(connect(bridge.url, token(name)))
            for bridge, name in ((one, "ann"), (two, "bob"), (one, "eve"), (two, "dan"))
        ]
        for number, wire in enumerate((here, there, leaving), 1):
            await wire.subscribe("order:*")
            assert counted(db, "order:7") == (number, number)
        await named.subscribe("order:7")
        assert counted(db, "order:7") == (4, 4)
        assert counted(db, "order:8") == (3, 3)
        assert counted(db, "order:secret") == (0, 0)
        await here.subscribe("order:7")  # a second subscription of the same session
        assert counted(db, "order:7") == (5, 5)
        await here.ask(op="unsubscribe", channel="order:7")
        await leaving.ask(op="unsubscribe", channel="order:*")
        becomes(db, "order:7", 3)
        await leaving.subscribe("order:*")
        assert counted(db, "order:7") == (4, 4)
        await leaving.ask(op="auth", token=token("eve", level="low"))
        assert (await leaving.until(lambda f: f["op"] == "closed"))["code"] == "revoked"
        becomes(db, "order:7", 3)
        two.kill()
        killed = time.monotonic()
        becomes(db, "order:7", 1)
        assert time.monotonic() - killed < LEASE + 1
        # the flag takes effect at once, before any bridge has read it
        db.execute("update realtime_channels set wildcard = false where pattern = 'order:*'")
        assert counted(db, "order:7")[0] == 0
        assert (await here.until(lambda f: f["op"] == "closed"))["channel"] == "order:*"
        becomes(db, "order:7", 0)
