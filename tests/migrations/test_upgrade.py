"""An upgraded database is the same as a new one, and keeps the objects of its users.

`snapshots/` holds one file per release: what `rowcast sql` of that release printed.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rowcast.files import policy_files
from rowcast.install.migrate import Applied, apply_policy_file, migrate, roles_script
from rowcast.install.release import Release
from support import database_shape as shapes
from support import pg

SHIPPED = Release.shipped()
SNAPSHOTS = sorted((Path(__file__).parent / "snapshots").glob("*.sql"))

# Additions of a team to our tables, which must survive every upgrade and restore.
ON_CHANNELS = """
insert into public.realtime_channels (id, pattern, description)
values ('00000000-0000-4000-8000-000000000001', 'chat:*', 'kept');
create policy "members listen" on public.realtime_channels
for select to authenticated using (enabled and pattern like 'chat:%');
create table public.audit (what text);
create function public.audit_channel() returns trigger language plpgsql as
$$ begin insert into public.audit values (new.pattern); return new; end $$;
create trigger zz_audit after insert on public.realtime_channels
for each row execute function public.audit_channel();
"""
ON_MESSAGES = """
create policy "members publish" on public.realtime_messages
for insert to authenticated with check (event_name <> 'secret');
create trigger zz_audit_message after insert on public.realtime_messages
for each row when (false) execute function public.audit_channel();
"""


def old_code_drops_out(url: str) -> None:
    """Put the code of an older version in place: one function differs, one trigger is missing."""
    with pg.psycopg.connect(url, autocommit=True) as conn:
        conn.execute("drop trigger realtime_messages_90_ring on public.realtime_messages")
        conn.execute("alter function rowcast.status() security invoker")
        conn.execute("delete from rowcast.code where name = '74_doctor'")


@pytest.mark.parametrize("version", range(1, SHIPPED.version + 1))
def test_every_migration_upgrades_to_the_shape_of_a_new_one(
    empty_database: pg.Database, database: pg.Database, version: int
) -> None:
    migrate(empty_database.url, release=shapes.until(SHIPPED, version))
    with empty_database.connect() as old, database.connect() as new:
        wanted = (ON_CHANNELS if version >= 2 else "") + (ON_MESSAGES if version >= 3 else "")
        old.execute(wanted.encode())
        done = migrate(empty_database.url)
        assert done.code
        assert len(done.migrations) == SHIPPED.version - version
        new.execute(wanted.encode())
        # A database without code does not have the guard of channels yet.
        old.execute("update public.realtime_channels set pattern = pattern")
    assert shapes.shape(empty_database.url) == shapes.shape(database.url)


def test_older_code_is_replaced(database: pg.Database, module_database: pg.Database) -> None:
    """The result has the shape of a new database."""
    old_code_drops_out(database.url)
    assert migrate(database.url) == Applied((), True, SHIPPED.version)
    assert shapes.shape(database.url) == shapes.shape(module_database.url)


@pytest.mark.parametrize("snapshot", SNAPSHOTS, ids=lambda path: path.stem)
def test_released_versions_upgrade_and_keep_user_objects(
    empty_database: pg.Database, database: pg.Database, snapshot: Path
) -> None:
    users = ON_CHANNELS + ON_MESSAGES
    with empty_database.connect() as old, database.connect() as new:
        old.execute(snapshot.read_text().encode())
        old.execute(users.encode())
        kept = publish(old)
        migrate(empty_database.url)
        assert history(old) == kept
        new.execute(users.encode())
    assert shapes.shape(empty_database.url) == shapes.shape(database.url)


def test_an_upgrade_during_writes_loses_nothing(database: pg.Database) -> None:
    with database.connect() as conn:
        conn.execute(ON_CHANNELS.encode())
        before = publish(conn)
        migrate(database.url, reapply=True)
        after = publish(conn)
        assert history(conn) == after
    assert after[: len(before)] == before


def test_an_older_bridge_reads_until_the_code_is_applied(
    empty_database: pg.Database,
) -> None:
    """The code may have to wait a minute for a lock, after the migrations are committed."""
    migrate(empty_database.url, release=shapes.until(SHIPPED, 9))
    called = [
        "rowcast.fresh(xid8[], xid8[], bigint)",
        "rowcast.fresh_leaves()",
        "rowcast.leaves_query(text[], boolean)",
    ]
    with empty_database.connect() as conn:
        for function in called:
            conn.execute(f"create function {function} returns int return 1".encode())

        def there() -> list[bool]:
            query = "select to_regprocedure(f) is not null from unnest(%s::text[]) as f"
            return [row[0] for row in conn.execute(query, [called])]

        told: list[tuple[str, list[bool]]] = []
        migrate(empty_database.url, on_event=lambda line: told.append((line, there())))
        between = [found for line, found in told if "_leaves applied" in line]
        assert between == [[True] * 3]
        assert there() == [False] * 3


def publish(conn: pg.Connection) -> list[tuple[object, ...]]:
    """Publish one durable message and one broadcast; return all rows."""
    for kind in ("message", "broadcast"):
        conn.execute(
            "insert into public.realtime_messages (type, channel_name, event_name, payload) "
            "values (%s, 'chat:1', 'said', '{\"text\": \"ü\"}')",
            [kind],
        )
    return history(conn)


def history(conn: pg.Connection) -> list[tuple[object, ...]]:
    return conn.execute(
        "select seq, id, xid::text, type, payload, created_at from public.realtime_messages "
        "order by seq"
    ).fetchall()


def filled(url: str) -> list[tuple[object, ...]]:
    """Add policies, triggers, a recipe and messages to a database; return its messages."""
    with pg.psycopg.connect(url, autocommit=True) as conn:
        conn.execute((ON_CHANNELS + ON_MESSAGES).encode())
        apply_policy_file(url, next(path for path in policy_files() if path.stem == "open"))
        return publish(conn)


@contextmanager
def dumped(url: str, *options: str) -> Iterator[str]:
    command = [shapes.program("pg_dump"), *options, url]
    yield subprocess.run(command, capture_output=True, text=True, check=True).stdout


def restore(url: str, dump: str) -> None:
    command = [shapes.program("psql"), "-Xq", "-v", "ON_ERROR_STOP=1", url]
    done = subprocess.run(command, input=dump, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def assert_same(url: str, other_url: str, rows: list[tuple[object, ...]]) -> None:
    # An expression that was read back may have fewer parentheses, and a constant without a name is
    # then named after its type; only these differences are ignored.
    ours, theirs = (
        re.sub(r"[()]|(?<='::text) AS text", "", "\n".join(shapes.shape(each)))
        for each in (url, other_url)
    )
    assert ours == theirs
    with pg.psycopg.connect(other_url) as conn:
        assert history(conn) == rows
        assert conn.execute("select what from public.audit").fetchall() == []
        assert conn.execute("select description from realtime_channels").fetchone() == ("kept",)


def test_a_dump_restores_into_another_database_of_the_cluster(
    database: pg.Database,
    empty_database: pg.Database,
) -> None:
    rows = filled(database.url)
    with dumped(database.url) as dump:
        restore(empty_database.url, dump)
    assert_same(database.url, empty_database.url, rows)
    assert migrate(empty_database.url) == Applied((), False, SHIPPED.version)


def test_a_dump_restores_with_columns_added_by_a_team(
    database: pg.Database, empty_database: pg.Database
) -> None:
    filled(database.url)
    shown = "select rowcast.messages_json(array_agg(m order by m.seq)) from realtime_messages as m"
    with database.connect() as conn, empty_database.connect() as copy:
        conn.execute("alter table realtime_channels add column team text default 'ours'")
        conn.execute(
            "alter table realtime_messages"
            " add column kind text generated always as (payload ->> 'text') stored"
        )
        with dumped(database.url) as dump:
            restore(empty_database.url, dump)
        assert copy.execute("select distinct m.kind from realtime_messages as m").fetchone() == (
            "ü",
        )
        assert conn.execute(shown).fetchone() == copy.execute(shown).fetchone()


def test_a_dump_restores_into_another_cluster(
    database: pg.Database, own_server: pg.OwnServer
) -> None:
    """`migrate` then adopts the new cluster."""
    rows = filled(database.url)
    said = list[str]()
    with own_server.database(migrated=False) as copy, dumped(database.url) as dump:
        restore(copy.server.url(), roles_script())
        restore(copy.url, dump)
        assert_same(database.url, copy.url, rows)
        with copy.connect() as conn:
            assert conn.execute("select adopted from rowcast.identity()").fetchone() == (False,)
            assert migrate(copy.url, on_event=said.append) == Applied((), False, SHIPPED.version)
            assert conn.execute("select adopted from rowcast.identity()").fetchone() == (True,)
            # Broadcasts are not kept in a dump; messages are.
            assert history(conn) == [row for row in rows if row[3] == "message"]
    assert any("restored from another cluster" in event for event in said)


def test_a_dump_restores_without_superuser(
    own_server: pg.OwnServer,
) -> None:
    """The owner needs CREATE on schema public for the time of the restore."""
    with (
        own_server.database(migrated=False) as source,
        own_server.database(migrated=False) as copy,
    ):
        migrate(source.owner_url)
        rows = filled(source.owner_url)
        # A role can own a table in public only if it may create there.
        restore(copy.owner_url, "grant create on schema public to rowcast_owner")
        with dumped(source.owner_url) as dump:
            restore(copy.owner_url, dump)
        restore(copy.owner_url, "revoke create on schema public from rowcast_owner")
        assert_same(source.url, copy.url, rows)
        assert migrate(copy.owner_url) == Applied((), False, SHIPPED.version)
