"""The installed database matches the SQL files, and grants only what is listed here."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import psycopg
import pytest

from style.sources import Function, functions, sql_files, statements
from style.sql_rules import QUALIFIED
from support import pg

# Functions that every role may call: policies of every role use them, and each tells callers only
# about themselves.
PUBLIC = {
    "auth": "email() jwt() role() uid() user_id()",
    "realtime": "channel_name() topic()",
    "rowcast": (
        "channel_name() email() is_name(text) is_pattern(text) jwt() role()"
        " segment(integer) segment(text,integer)"
        " segment_int(integer) segment_int(text,integer)"
        " segment_uuid(integer) segment_uuid(text,integer) uid() user_id()"
    ),
}

# Functions in auth belong to the migrating role, because the schema often belongs to the team.
OURS = """pg_catalog.pg_proc as p
    where p.proowner = 'rowcast_owner'::regrole or p.pronamespace = 'auth'::regnamespace"""
VOLATILITY = {"i": "immutable", "s": "stable", "v": "volatile"}


def installed(tx: psycopg.Connection[Any], facts: str) -> dict[str, tuple[Any, ...]]:
    """Return signature → facts of every function of ours, in any schema."""
    rows = tx.execute(f"select p.oid::regprocedure::text, {facts} from {OURS}")
    return {row[0].replace(" ", ""): row[1:] for row in rows}


def offenders(tx: psycopg.Connection[Any], query: str) -> list[str]:
    return sorted(str(row[0]) for row in tx.execute(query))


def written() -> dict[str, list[Function]]:
    """Return name → functions of the files, by name because the server spells signatures anew."""
    found = defaultdict(list)
    for path in sql_files("sql"):
        for function in functions(statements(path.read_text(), path.name)):
            found[function.name].append(function)
    return found


def test_functions_of_the_schema_are_those_of_the_files(tx: psycopg.Connection[Any]) -> None:
    """A release must drop the functions it no longer has, or they could still be called."""
    counted: dict[str, int] = defaultdict(int)
    for row in tx.execute(
        "select 'rowcast.' || p.proname from pg_catalog.pg_proc as p"
        " where p.pronamespace = 'rowcast'::regnamespace"
    ):
        counted[row[0]] += 1
    assert counted == {name: len(overloads) for name, overloads in written().items()}


def test_volatility_and_rights_are_those_of_the_files(tx: psycopg.Connection[Any]) -> None:
    """An ALTER FUNCTION from elsewhere would otherwise stay unnoticed."""
    rows = tx.execute(
        "select 'rowcast.' || p.proname, p.provolatile::text, p.prosecdef"
        " from pg_catalog.pg_proc as p where p.pronamespace = 'rowcast'::regnamespace"
    )
    real = sorted((name, VOLATILITY[volatile], definer) for name, volatile, definer in rows)
    said = [
        (name, f.volatility, bool(f.definer))
        for name, overloads in written().items()
        for f in overloads
    ]
    assert real == sorted(said)


def test_everything_in_our_schema_belongs_to_the_owner_role(tx: psycopg.Connection[Any]) -> None:
    assert not offenders(
        tx,
        """
        select p.oid::regprocedure from pg_catalog.pg_proc as p
        where p.pronamespace = 'rowcast'::regnamespace and p.proowner <> 'rowcast_owner'::regrole
        """,
    )
    assert not offenders(
        tx,
        """
        select c.oid::regclass from pg_catalog.pg_class as c
        where (
            c.relnamespace = 'rowcast'::regnamespace
            or c.relname in ('realtime_channels', 'realtime_messages')
        ) and c.relowner <> 'rowcast_owner'::regrole
        """,
    )


def test_the_owner_role_has_no_powers_and_cannot_log_in(tx: psycopg.Connection[Any]) -> None:
    """Definer functions run as it, so a mistake in one must not run as a superuser."""
    assert (
        tx.execute(
            "select rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication, rolcanlogin"
            " from pg_catalog.pg_roles where rolname = 'rowcast_owner'"
        ).fetchone()
        == (False,) * 6
    )


def test_functions_that_need_a_path_pin_one(tx: psycopg.Connection[Any]) -> None:
    facts = """
        p.prosecdef or p.prosqlbody is null or p.prolang = (
            select l.oid from pg_catalog.pg_language as l where l.lanname = 'plpgsql'
        ), p.proconfig
    """
    for signature, (needed, config) in installed(tx, facts).items():
        paths = [c for c in config or () if c.startswith("search_path=")]
        expected = [["search_path=pg_catalog, pg_temp"], ['search_path=""']]
        if signature.split("(")[0] not in QUALIFIED:
            assert not needed or paths in expected, signature


def test_public_may_execute_only_the_listed_functions(tx: psycopg.Connection[Any]) -> None:
    open_to_all = [
        signature
        for signature, (opened,) in installed(
            tx, "has_function_privilege('public', p.oid, 'execute')"
        ).items()
        if opened
    ]
    listed = [f"{schema}.{name}" for schema, names in PUBLIC.items() for name in names.split()]
    assert sorted(open_to_all) == sorted(listed)


def test_every_function_has_its_contract_in_the_catalogue(tx: psycopg.Connection[Any]) -> None:
    described = installed(tx, "obj_description(p.oid, 'pg_proc')")
    assert [name for name, (text,) in described.items() if not (text or "").endswith(".")] == []


def test_no_table_or_sequence_is_granted_to_public(tx: psycopg.Connection[Any]) -> None:
    assert not offenders(
        tx,
        """
        select c.oid::regclass from pg_catalog.pg_class as c, aclexplode(c.relacl) as a
        where c.relowner = 'rowcast_owner'::regrole and a.grantee = 0
        """,
    )


def test_only_the_owner_has_privileges_on_internal_tables(tx: psycopg.Connection[Any]) -> None:
    """Other roles reach them through functions."""
    assert not offenders(
        tx,
        """
        select c.oid::regclass || ' to ' || a.grantee::regrole
        from pg_catalog.pg_class as c, aclexplode(c.relacl) as a
        where c.relnamespace = 'rowcast'::regnamespace and a.grantee <> c.relowner
        """,
    )


@pytest.mark.parametrize("table", ["public.realtime_channels", "public.realtime_messages"])
def test_row_level_security_is_enabled_and_not_forced(
    tx: psycopg.Connection[Any], table: str
) -> None:
    """Forced, it would also apply to the definer functions, which belong to the owner."""
    assert tx.execute(
        "select relrowsecurity, relforcerowsecurity from pg_catalog.pg_class"
        " where oid = %s::regclass",
        [table],
    ).fetchone() == (True, False)


def test_every_leaf_has_row_level_security_and_no_policy(tx: psycopg.Connection[Any]) -> None:
    leaves = tx.execute(
        """
        select c.relname, c.relrowsecurity, c.relforcerowsecurity,
            exists (select from pg_catalog.pg_policy as p where p.polrelid = c.oid)
        from pg_catalog.pg_partition_tree('public.realtime_messages') as t
        join pg_catalog.pg_class as c on c.oid = t.relid
        where t.level > 0
        """
    ).fetchall()
    assert len(leaves) > 4
    assert {tuple(leaf[1:]) for leaf in leaves} == {(True, False, False)}


def test_views_apply_the_policies_of_their_reader(tx: psycopg.Connection[Any]) -> None:
    """By default a view runs with its owner's rights."""
    assert not offenders(
        tx,
        """
        select c.oid::regclass from pg_catalog.pg_class as c
        where c.relkind = 'v' and c.relowner = 'rowcast_owner'::regrole
            and not coalesce('security_invoker=true' = any (c.reloptions), false)
        """,
    )


def test_the_logins_own_nothing_and_have_no_powers(database: pg.Database) -> None:
    with database.connect() as connection:
        rows = connection.execute(
            "select rolname, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication"
            " from pg_catalog.pg_roles where rolname in ('rowcast_bridge', 'rowcast_caller')"
        ).fetchall()
        assert sorted(rows) == [
            (name, False, False, False, False, False)
            for name in ("rowcast_bridge", "rowcast_caller")
        ]
        assert not offenders(
            connection,
            """
            select d.objid from pg_catalog.pg_shdepend as d
            where d.deptype = 'o'
                and d.refobjid in ('rowcast_bridge'::regrole, 'rowcast_caller'::regrole)
                and d.dbid = (select b.oid from pg_catalog.pg_database as b
                    where b.datname = current_database())
            """,
        )
