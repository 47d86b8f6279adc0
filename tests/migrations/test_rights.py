"""The rights that migrating needs, and the objects of others that stay unchanged.

Roles belong to the cluster, so each test has one. `ROWCAST_TEST_PG` chooses its version.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql

from rowcast.errors import MigrationError
from rowcast.install.migrate import migrate, roles_script
from support import pg
from support.pgbouncer import needs_pgbouncer, start_pgbouncer
from support.waiting import eventually

ROLES = {
    "anon": (False, True),
    "authenticated": (False, True),
    "rowcast_admin": (False, True),
    "rowcast_bridge": (True, True),
    "rowcast_caller": (True, False),
    "rowcast_owner": (False, True),
    "rowcast_publisher": (False, True),
}


def admin(own: pg.OwnServer, database: str = "postgres") -> pg.Connection:
    return psycopg.connect(own.url(database), autocommit=True)


def make(own: pg.OwnServer, role: str, attributes: str = "login createrole") -> str:
    """Create a role and a database of the same name that it owns; return the URL."""
    with admin(own) as conn:
        name = sql.Identifier(role)
        conn.execute(f"create role {role} {attributes}".encode())
        conn.execute(sql.SQL("create database {0} owner {0}").format(name))
    return own.url(role, role)


def advice(url: str) -> str:
    """Try to migrate; return the statements that an administrator must run."""
    with pytest.raises(MigrationError) as refused:
        migrate(url)
    found = re.search(r"Let an administrator run: (.*;)", str(refused.value))
    assert found is not None, refused.value
    return found[1]


def test_roles_and_memberships(
    own_server: pg.OwnServer,
) -> None:
    """The roles have only the rights that they need, and the daemon's logins inherit none."""
    migrate(make(own_server, "team"))
    with admin(own_server) as conn:
        found = conn.execute(
            "select rolname, rolcanlogin, rolinherit, rolsuper or rolbypassrls or rolcreaterole "
            "from pg_roles where rolname = any(%s)",
            [list(ROLES)],
        ).fetchall()
        members = conn.execute(
            "select roleid::regrole::text from pg_auth_members "
            "where member = 'rowcast_caller'::regrole order by 1"
        ).fetchall()
    assert {name: (login, inherit) for name, login, inherit, _ in found} == ROLES
    assert not any(mighty for *_, mighty in found)
    assert members == [("anon",), ("authenticated",)]
    with psycopg.connect(own_server.url("team", "rowcast_caller")) as caller:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            caller.execute("select from public.realtime_channels")
        caller.rollback()
        caller.execute("set role anon")
        caller.execute("select id from public.realtime_channels")


def test_a_role_with_createrole_migrates_and_writes_policies(
    own_server: pg.OwnServer,
) -> None:
    url = make(own_server, "team")
    assert migrate(url).migrations
    with psycopg.connect(url) as conn:
        conn.execute("create policy ours on realtime_channels for select to anon using (enabled)")
        conn.execute("insert into realtime_channels (pattern) values ('chat:*')")


def test_an_idle_run_leaves_roles_and_catalogue_as_they_are(own_server: pg.OwnServer) -> None:
    url = make(own_server, "team")
    migrate(url)
    touched = (
        "select max(m) from (select max(xmin::text::bigint) from pg_authid union all "
        "select max(xmin::text::bigint) from pg_auth_members union all "
        "select max(xmin::text::bigint) from pg_class union all "
        "select max(xmin::text::bigint) from pg_namespace union all "
        "select max(xmin::text::bigint) from pg_proc) as t (m)"
    )
    with admin(own_server, "team") as conn:
        before = conn.execute(touched).fetchone()
        migrate(url)
        assert conn.execute(touched).fetchone() == before


def test_security_definers_do_not_belong_to_a_superuser(own_server: pg.OwnServer) -> None:
    migrate(own_server.url())
    with admin(own_server) as conn:
        assert (
            conn.execute(
                "select oid::regprocedure from pg_proc "
                "where prosecdef and proowner <> 'rowcast_owner'::regrole"
            ).fetchall()
            == []
        )
        assert (
            conn.execute(
                "select oid::regclass from pg_class where (relnamespace = 'rowcast'::regnamespace "
                "or relname like 'realtime%') and relowner <> 'rowcast_owner'::regrole"
            ).fetchall()
            == []
        )


def test_without_createrole_the_statement_is_named(
    own_server: pg.OwnServer,
) -> None:
    """The error names the statement that an administrator must run."""
    url = make(own_server, "team", "login")
    asked = advice(url)
    assert asked == "alter role team createrole;"
    with admin(own_server) as conn:
        conn.execute(asked.encode())
    migrate(url)


def test_an_administrator_may_install_the_roles_instead(own_server: pg.OwnServer) -> None:
    url = make(own_server, "team", "login")
    with admin(own_server, "team") as conn:
        conn.execute(roles_script().encode())
        asked = advice(url)
        assert "grant rowcast_owner to team" in asked
        conn.execute(asked.encode())
    migrate(url)


def test_missing_rights_on_a_foreign_database_are_named(
    own_server: pg.OwnServer,
) -> None:
    """All of them in one error."""
    make(own_server, "landlord", "nologin")
    make(own_server, "team")
    url = own_server.url("landlord", "team")
    asked = advice(url)
    assert "grant create on database landlord to team;" in asked
    assert "grant create on schema public to team;" in asked
    with admin(own_server, "landlord") as conn:
        conn.execute(asked.encode())
        assert conn.execute("select to_regrole('rowcast_owner')").fetchone() == (None,)
    migrate(url)


def test_existing_caller_roles_are_adopted(
    own_server: pg.OwnServer,
) -> None:
    """Or the error names the grant that is missing."""
    url = make(own_server, "team")
    with admin(own_server) as conn:
        conn.execute("create role anon nologin")
        conn.execute("create role authenticated nologin")
        if conn.info.server_version >= 160000:
            asked = advice(url)
            assert "grant anon to rowcast_caller with inherit false, set true;" in asked
            assert "grant authenticated to rowcast_caller" in asked
            conn.execute("grant anon, authenticated to team with admin option")
    migrate(url)


def test_a_second_team_of_the_cluster_is_told_what_it_lacks(own_server: pg.OwnServer) -> None:
    migrate(make(own_server, "first"))
    url = make(own_server, "second")
    if own_server.server.version >= 16:
        asked = advice(url)
        assert asked == "grant rowcast_owner to second with inherit true, set true;"
        with admin(own_server) as conn:
            conn.execute(asked.encode())
    migrate(url)


def test_a_role_without_inherit_is_refused_where_it_matters(
    own_server: pg.OwnServer,
) -> None:
    url = make(own_server, "team", "login createrole noinherit")
    if own_server.server.version >= 16:
        migrate(url)
    else:
        assert advice(url) == "alter role team inherit;"


def test_a_hardened_database_is_opened_for_our_roles_only(own_server: pg.OwnServer) -> None:
    url = make(own_server, "team")
    with admin(own_server, "team") as conn:
        conn.execute("revoke all on database team from public")
        conn.execute("revoke all on schema public from public")
    migrate(url)
    with admin(own_server, "team") as conn:
        assert conn.execute(
            "select has_database_privilege('rowcast_bridge', 'team', 'connect'), "
            "has_schema_privilege('rowcast_owner', 'public', 'create'), "
            "has_schema_privilege('anon', 'public', 'usage')"
        ).fetchone() == (True, False, False)


def test_existing_schemas_auth_and_realtime_stay_unchanged(
    own_server: pg.OwnServer,
) -> None:
    url = make(own_server, "team")
    shape = (
        "select p.oid, p.oid::regprocedure::text, prosrc, proowner, proacl::text from pg_proc p "
        "where pronamespace in ('auth'::regnamespace, 'realtime'::regnamespace) order by 1"
    )
    with admin(own_server, "team") as conn:
        for schema in ("auth", "realtime"):
            conn.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
        conn.execute("create function auth.uid() returns uuid language sql return null::uuid")
        conn.execute("create function realtime.send(text) returns text language sql return $1")
        conn.execute("create table realtime.messages (id integer)")
        before = conn.execute(shape).fetchall()
        migrate(url)
        assert conn.execute(shape).fetchall() == before
        # A role that may create in schema auth adds the missing functions and keeps the others.
        conn.execute("grant usage, create on schema auth to team")
        migrate(url, reapply=True)
        after = conn.execute(shape).fetchall()
    assert set(before) < set(after)
    assert "auth.user_id()" in {row[1] for row in after}


def test_a_taken_name_is_refused_before_any_change(
    own_server: pg.OwnServer,
) -> None:
    for number, theirs in enumerate(("create schema rowcast", "create table realtime_channels ()")):
        url = make(own_server, f"team{number}")
        with admin(own_server, f"team{number}") as conn:
            conn.execute(theirs.encode())
            with pytest.raises(MigrationError, match=r"belongs to postgres, .* Rename it"):
                migrate(url)
            assert conn.execute("select to_regclass('rowcast.migration')").fetchone() == (None,)


def test_passwords_are_set_as_verifiers(own_server: pg.OwnServer) -> None:
    url = make(own_server, "team")
    with admin(own_server) as conn:
        conn.execute("alter system set log_statement = 'all'")
        conn.execute("select pg_reload_conf()")
    migrate(url, env={"ROWCAST_BRIDGE_PASSWORD": "o'pen", "ROWCAST_CALLER_PASSWORD": "sesame"})
    with admin(own_server) as conn:
        stored = conn.execute(
            "select rolpassword from pg_authid where rolname like 'rowcast%' and rolcanlogin"
        ).fetchall()
    assert len(stored) == 2
    assert all(secret.startswith("SCRAM-SHA-256$") for (secret,) in stored)
    assert "alter role" in own_server.log
    assert "pen" not in re.findall(r"alter role.*", own_server.log, re.IGNORECASE)[-1]
    assert "sesame" not in own_server.log


def test_runs_in_two_databases_of_a_cluster_do_not_conflict(
    own_server: pg.OwnServer,
) -> None:
    with admin(own_server) as conn:
        for number in range(3):
            conn.execute(f"create database race{number}".encode())
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(migrate, own_server.url(f"race{number}")) for number in range(3)]
        assert all(run.result(timeout=120).migrations for run in runs)


def test_a_concurrent_change_of_a_role_is_retried(
    own_server: pg.OwnServer,
) -> None:
    migrate(own_server.url())
    said = list[str]()
    with admin(own_server) as watch, psycopg.connect(own_server.url()) as other:
        other.execute("alter role rowcast_bridge connection limit 7")
        with ThreadPoolExecutor(1) as pool:
            env = {"ROWCAST_BRIDGE_PASSWORD": "x"}
            run = pool.submit(migrate, own_server.url(), on_event=said.append, env=env)
            blocked = "select 1 from pg_stat_activity where %s = any(pg_blocking_pids(pid))"
            eventually(lambda: watch.execute(blocked, [other.info.backend_pid]).fetchone())
            other.commit()
            run.result(timeout=60)
    assert any("tries again: tuple concurrently updated" in event for event in said)


def test_a_standby_is_refused(own_server: pg.OwnServer) -> None:
    own_server.stop()
    (own_server.home / "data" / "pgdata" / "standby.signal").touch()
    own_server.start()
    with pytest.raises(MigrationError, match="standby: connect to the primary"):
        migrate(own_server.url())


@needs_pgbouncer
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_pooler_is_refused_when_it_takes_the_session_away(
    own_server: pg.OwnServer, mode: str
) -> None:
    with pg.scratch_directory() as home, start_pgbouncer(own_server, home, mode) as url:
        if mode == "session":
            migrate(url)
        else:
            with pytest.raises(MigrationError, match="pooler in transaction mode"):
                migrate(url)
