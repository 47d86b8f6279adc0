"""Crashes, restarts, restores and standbys: what a cursor survives, and how it is told."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import namedtuple_row

from rowcast.dev.binaries import dropped, runnable
from rowcast.dev.datadir import server_environment
from support import pg
from support.database_shape import program
from support.feed_reader import Cursor, ask, drain, replay
from support.messages import add_channel, only, publish
from support.waiting import eventually

Connection = psycopg.Connection[Any]

pytestmark = pytest.mark.slow


def identity(connection: Connection) -> Any:
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute("select * from rowcast.identity()").fetchone()


def unwell(connection: Connection) -> set[str]:
    """What the doctor finds wrong."""
    return {
        name for (name,) in connection.execute("select subject from rowcast.doctor() where not ok")
    }


def fill(db: Connection) -> Cursor:
    """Broadcasts whose xids no flushed record mentions, and the cursor after them.

    A nextval that runs out of its 32 logged numbers is flushed with its commit, and all before
    it; so the last fill of the log stands before the last broadcasts.
    """
    left = "select log_cnt from rowcast.message_seq"
    publish(db, "room:1", "load", type="broadcast")
    while only(db, left) < 30:
        publish(db, "room:1", "load", type="broadcast")
    for _ in range(25):
        publish(db, "room:1", "load", type="broadcast")
    return ask(db)


def test_after_a_crash_reused_xids_lose_nothing(own_server: pg.OwnServer) -> None:
    with own_server.database() as database:
        with database.connect() as db:
            # the writer process would flush what shall be lost
            db.execute("alter system set wal_writer_delay = '10s'")
            db.execute("select pg_reload_conf()")
        with database.connect() as db:
            add_channel(db, "room:*")
            before = identity(db).boot
            db.execute("update rowcast.settings set clock_skew = '0'")
            cursor = fill(db)
            own_server.crash()
        with database.connect() as db:
            assert identity(db).boot not in (None, before)
            for n in range(5):
                publish(db, "room:1", f"durable {n}")
            expected = [f"durable {n}" for n in range(5)]
            found = drain(db, cursor)
            assert found.events == expected
            assert drain(db, found.cursor).events == []
            (answer,) = replay(db, [("room:1", cursor)], found.cursor)
            assert (answer.state, answer.events) == ("durable", expected)
            assert only(db, "select count(*) from rowcast.messages_broadcast") == 0
            reused = only(
                db,
                "select count(*) from public.realtime_messages where xid < %s::text::xid8",
                [cursor.xmax],
            )
            if not reused:
                pytest.skip("the crash handed out no xid again: the other half has no subject")
            trusting = replace(cursor, boot=found.cursor.boot)
            assert len(drain(db, trusting).events) == 5 - reused, "xids alone lose these"


def test_only_a_clean_restart_keeps_the_boot_id_and_the_cursor(own_server: pg.OwnServer) -> None:
    with own_server.database() as database:
        with database.connect() as db:
            add_channel(db, "room:*")
            first = identity(db).boot
            cursor = ask(db)
            publish(db, "room:1", "message")
            publish(db, "room:1", "broadcast", type="broadcast")
        own_server.restart()
        with database.connect() as db:
            assert identity(db).boot == first
            assert drain(db, cursor).events == ["message", "broadcast"]
        own_server.restart("immediate")
        with database.connect() as db:
            asked = drain(db, cursor)
            assert (asked.cursor.boot, asked.rows) == (None, []), "until a reader made the row"
            assert identity(db).boot not in (None, first)
            assert drain(db, cursor).events == ["message"]


def test_prepared_transactions_turn_the_doorbell_off(own_server: pg.OwnServer) -> None:
    with own_server.database() as database:
        with database.connect() as db:
            assert identity(db).doorbell is True
            add_channel(db, "room:*")
            db.execute("alter system set max_prepared_transactions = 5")
        own_server.restart()
        with database.connect() as db, database.connect(database.bridge_url) as bridge:
            assert identity(db).doorbell is False
            only(bridge, "select rowcast.sleep_begin()")
            cursor = ask(bridge)
            db.execute("begin")
            publish(db, "room:1", "prepared")
            db.execute("prepare transaction 'first'")
            publish(db, "room:1", "meanwhile")
            meanwhile = drain(bridge, cursor)
            assert meanwhile.events == ["meanwhile"]
            db.execute("commit prepared 'first'")
            assert drain(bridge, meanwhile.cursor).events == ["prepared"]


def test_a_restored_database_is_history_until_it_is_adopted(
    database: pg.Database, db: Connection, own_server: pg.OwnServer, scratch: Path
) -> None:
    add_channel(db, "room:*")
    assert identity(db).adopted is True
    publish(db, "room:1", "before")
    cursor = ask(db)
    for _ in range(3):
        publish(db, "room:1", "between")
        publish(db, "room:1", "between", type="broadcast")
    dump = scratch / "dump.sql"
    subprocess.run([program("pg_dump"), "-f", dump, database.url], check=True)

    # the first database only brings the roles into the new cluster
    with own_server.database(), own_server.database(migrated=False) as copy:
        subprocess.run(
            [program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", dump, copy.url],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with copy.connect() as there:
            was = identity(there)
            assert was.adopted is False
            assert "origin" in unwell(there)
            assert only(there, "select rowcast.adopt()") is True
            assert only(there, "select rowcast.adopt()") is False
            now = identity(there)
            assert now.adopted is True
            assert now.boot not in (None, cursor.boot)
            assert now.cursor_key == was.cursor_key
            assert now.seq_floor >= only(
                there, "select max(m.seq) from public.realtime_messages as m"
            )
            history = "select count(*) from public.realtime_messages where type = 'message'"
            assert only(there, history) == 4

            found = drain(there, cursor)
            assert found.events == [], "no ghosts"
            (answer,) = replay(there, [("room:1", cursor)], found.cursor)
            assert (answer.state, answer.events) == ("durable", [])
            publish(there, "room:1", "new")
            assert drain(there, found.cursor).events == ["new"]
            (answer,) = replay(there, [("room:1", cursor)], ask(there))
            assert answer.events == ["new"]


@contextlib.contextmanager
def standby(primary: pg.OwnServer) -> Iterator[int]:
    """A standby of the server; yields its port."""
    binaries, who = runnable(pg.choose_binaries(), dropped()), dropped()
    if not (binaries / "pg_basebackup").exists():
        pytest.skip("this PostgreSQL comes without pg_basebackup")
    trust = primary.home / "hba.conf"
    trust.write_text(trust.read_text() + "host replication all 127.0.0.1/32 trust\n")
    with psycopg.connect(primary.url(), autocommit=True) as admin:
        admin.execute("select pg_reload_conf()")
    home = primary.home / "standby"
    home.mkdir()
    if who:
        os.chown(home, who["user"], who["group"])
    data = home / "pgdata"

    def run(name: str, *arguments: str) -> bool:
        done = subprocess.run(
            [str(binaries / name), "-D", str(data), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=server_environment(),
            check=False,
            **who,
        )
        return done.returncode == 0

    eventually(
        lambda: run("pg_basebackup", "-R", "-c", "fast", "-d", primary.url()),
        timeout=60,
        what="the backup is taken",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= "
    options += f"-c max_connections=200 -c hba_file={trust}"
    try:
        assert run("pg_ctl", "-w", "-l", str(home / "log"), "-o", options, "start")
        yield port
    finally:
        run("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(home)


def test_a_standby_says_so_and_a_promotion_is_another_life(own_server: pg.OwnServer) -> None:
    with own_server.database() as database:
        with database.connect() as db:
            add_channel(db, "room:*")
            first = identity(db).boot
            cursor = ask(db)
        with (
            standby(own_server) as port,
            database.connect() as db,
            psycopg.connect(database.url, port=port, autocommit=True) as copy,
        ):
            here = identity(copy)
            assert (here.recovering, here.boot, here.adopted) == (True, None, True)
            assert identity(db).recovering is False
            assert "server" in unwell(copy)
            publish(db, "room:1", "on the primary")
            eventually(lambda: only(copy, "select count(*) from rowcast.messages_durable"))
            assert only(copy, "select pg_promote()") is True
            here = identity(copy)
            assert here.recovering is False
            assert here.boot not in (None, first)
            publish(copy, "room:1", "on the new primary")
            assert drain(copy, cursor).events == ["on the primary", "on the new primary"]
