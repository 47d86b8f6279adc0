"""`rowcast policy lint --database-url`: each rule finds its bad snippet in a real database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from rowcast.files import policy_files
from rowcast.policy.database import Workbench
from rowcast.policy.lint.files import CHANNELS, MESSAGES, Files
from rowcast.policy.lint.linting import lint_database, lint_sources
from rowcast.policy.lint.rules import RULES
from rowcast.policy.source import parse_source
from support.pg import as_role

Connection = psycopg.Connection[Any]

IN_DATABASE = sorted(code for code, rule in RULES.items() if rule.database)
IN_CATALOGUE = sorted(code for code, rule in RULES.items() if rule.catalogue)

# Tables that snippets use without creating them, because each snippet is applied alone.
AROUND = {
    "channel_members": "create table channel_members (channel_id uuid, user_id text);"
    "grant select on channel_members to authenticated;",
    "from rooms": "create table rooms (id uuid);grant select on rooms to authenticated;",
    "room_members": "create table room_members (room text, user_id text);"
    "alter table room_members enable row level security;"
    "grant select on room_members to authenticated;",
}
# A policy on a table that no policy on the two tables reads is out of scope.
READS_MEMBERS = (
    "create policy readers on realtime_channels for select to authenticated using"
    " (exists (select from room_members as m where m.user_id = auth.user_id()))"
)


def lint(tx: Connection) -> list[tuple[str, str]]:
    """Return code and level of what the command finds in a database."""
    return [(found.code, str(found.level)) for found in lint_database(Workbench(tx))]


def catalogue(tx: Connection) -> list[tuple[str, str]]:
    """Return code and level of what users of psql find."""
    return tx.execute("select code, level from rowcast.policy_lint()").fetchall()


def apply(tx: Connection, snippet: str) -> None:
    for name, around in AROUND.items():
        if name in snippet and f"create table {name}" not in snippet.replace("public.", ""):
            tx.execute(around.encode())
    tx.execute(snippet.encode())
    if "on room_members" in snippet and "on realtime_" not in snippet:
        tx.execute(READS_MEMBERS)


@pytest.mark.parametrize("code", IN_DATABASE)
def test_the_rule_finds_its_bad_snippet(tx: Connection, code: str) -> None:
    rule = RULES[code]
    apply(tx, rule.bad)
    assert (code, str(rule.level)) in lint(tx)
    assert (code in dict(catalogue(tx))) is rule.catalogue


@pytest.mark.parametrize("code", IN_DATABASE)
def test_the_rule_does_not_find_its_good_snippet(tx: Connection, code: str) -> None:
    apply(tx, RULES[code].good)
    assert code not in dict(lint(tx))


def test_rules_are_written_once() -> None:
    """The four on both sides have their reasons at the head of sql/95_policy_lint.sql."""
    twice = [code for code in IN_CATALOGUE if RULES[code].check is not None]
    assert twice == ["RCL101", "RCL108", "RCL207", "RCL212"]
    head = (policy_files()[0].parents[1] / "sql/95_policy_lint.sql").read_text().split("\n\n")[0]
    assert all(code in head for code in twice)


def test_a_mistake_that_both_sides_find_is_reported_once(tx: Connection) -> None:
    apply(tx, RULES["RCL101"].bad)
    assert [found for found in lint(tx) if found[0] == "RCL101"] == [("RCL101", "error")]


@pytest.mark.parametrize(
    ("function", "code"),
    [
        ("volatile security definer set search_path = pg_catalog", "RCL206"),
        ("stable security definer", "RCL106"),
    ],
)
def test_a_function_that_a_policy_calls_is_read(tx: Connection, function: str, code: str) -> None:
    """An overload that no policy calls is not reported."""
    tx.execute(
        f"create function f(integer) returns boolean language sql {function} as 'select true';"
        "create function f(text) returns boolean language sql stable as 'select true';"
        "create policy p on realtime_channels for select to authenticated using (f(1))".encode()
    )
    found = [found for found in lint_database(Workbench(tx)) if found.code == code]
    assert len(found) == 1
    assert found[0].object == ("public.f(integer)" if code == "RCL106" else policy_p("channels"))
    tx.execute("drop policy p on realtime_channels")
    assert lint(tx) == []


def policy_p(table: str) -> str:
    return f"policy p on public.realtime_{table}"


def test_the_body_of_a_function_is_read(tx: Connection) -> None:
    tx.execute(
        "create function mine() returns boolean language plpgsql stable as"
        " $$ begin return rowcast.segment(2) = auth.user_id(); end $$;"
        "create policy p on realtime_messages for insert to authenticated with check (mine())"
    )
    assert ("RCL103", "error") in lint(tx)


def test_views_that_callers_may_read_are_found(tx: Connection) -> None:
    tx.execute("create view v as select id from realtime_channels")
    tx.execute("create materialized view m as select id from realtime_channels")
    tx.execute("create view i with (security_invoker) as select id from realtime_channels")
    tx.execute("grant select on i to anon")
    assert lint(tx) == []
    tx.execute("grant select on v, m to anon")
    found = [(found.code, found.object) for found in lint_database(Workbench(tx))]
    assert sorted(found) == [("RCL107", "public.m"), ("RCL107", "public.v")]


def test_a_new_database_has_nothing_to_find(tx: Connection) -> None:
    assert lint(tx) == []


@pytest.mark.parametrize("recipe", policy_files(), ids=lambda path: path.stem)
def test_a_recipe_has_nothing_but_what_it_gives_reasons_for(tx: Connection, recipe: Path) -> None:
    """The catalogue does not keep the comments that disable rules."""
    text = recipe.read_text()
    excused = {code for d in parse_source(recipe.name, text).disables for code in d.codes}
    tx.execute(text.encode())
    assert {code for code, level in lint(tx) if level != "info"} == excused
    assert set(dict(catalogue(tx))) <= excused | {"RCL302"}


@pytest.mark.parametrize("login", ["rowcast_bridge", "rowcast_owner"])
def test_it_needs_no_superuser(tx: Connection, login: str) -> None:
    tx.execute(RULES["RCL104"].bad.encode())
    tx.execute(f"set local role {login}")
    assert ("RCL104", "error") in lint(tx)


@pytest.mark.parametrize("table", [CHANNELS, MESSAGES])
def test_the_linter_knows_the_columns_of_the_two_tables(tx: Connection, table: str) -> None:
    columns = tx.execute(
        "select attname::text, replace(typname, '_text', 'text[]')"
        " from pg_catalog.pg_attribute as a join pg_catalog.pg_type as t on t.oid = a.atttypid"
        " where attrelid = %s::regclass and attnum > 0 and not attisdropped",
        [table],
    ).fetchall()
    assert Files(()).columns(table) == dict(columns)


def test_it_answers_at_once(tx: Connection) -> None:
    """JIT compilation of the query would take seven seconds."""
    for recipe in policy_files():
        tx.execute(recipe.read_bytes())
    tx.execute("set local statement_timeout = '2s'")
    assert lint(tx)


def test_it_changes_nothing(tx: Connection) -> None:
    tx.execute("set transaction read only")
    assert lint(tx) == []


@pytest.mark.parametrize(
    ("rows", "level"), [(-1, "info"), (999, "info"), (1000, "warning"), (10**6, "error")]
)
def test_a_missing_index_is_as_bad_as_the_table_is_large(
    tx: Connection, rows: int, level: str
) -> None:
    tx.execute(AROUND["room_members"].encode())
    tx.execute(READS_MEMBERS)
    tx.execute("create index on room_members (room, user_id)")
    tx.execute(
        "update pg_catalog.pg_class set reltuples = %s where oid = 'room_members'::regclass", [rows]
    )
    assert catalogue(tx) == [("RCL302", level)]
    assert ("RCL302", level) in lint(tx)
    tx.execute("create index on room_members (user_id)")
    assert catalogue(tx) == []


# Policies on public.a and public.b, and whether a caller's query of public.a recurses.
READ = "create policy r on {} for select to authenticated using ({});"
WRITE = "create policy w on {} for insert to authenticated with check ({});"
LOOPS = [
    (READ.format("a", "exists (select from a as o where o.n > a.n)"), "select", True),
    (READ.format("a", "n in (select b.n from b)") + READ.format("b", "true"), "select", False),
    (
        READ.format("a", "n in (select b.n from b)") + READ.format("b", "n in (select n from a)"),
        "select",
        True,
    ),
    (READ.format("a", "true") + WRITE.format("a", "exists (select from a as o)"), "insert", False),
    (
        READ.format("a", "n = (select 1)") + WRITE.format("a", "exists (select from a as o)"),
        "insert",
        True,
    ),
    (
        READ.format("b", "n in (select n from a)")
        + READ.format("a", "n = 1")
        + WRITE.format("a", "exists (select from b)"),
        "insert",
        False,
    ),
    (
        READ.format("b", "n in (select n from a)")
        + READ.format("a", "n = (select 1)")
        + WRITE.format("a", "exists (select from b)"),
        "insert",
        True,
    ),
]


def sqlstate(tx: Connection, query: bytes) -> str | None:
    """Return the SQLSTATE with which a caller's query is refused, or None."""
    try:
        with as_role(tx, "authenticated"):
            tx.execute(query)
    except psycopg.Error as refusal:
        return refusal.sqlstate
    return None


@pytest.mark.parametrize(("policies", "command", "endless"), LOOPS)
def test_recursion_is_found_where_postgres_finds_it(
    tx: Connection, policies: str, command: str, endless: bool
) -> None:
    for table in ("a", "b"):
        tx.execute(f"create table {table} (n integer)".encode())
        tx.execute(f"alter table {table} enable row level security".encode())
        tx.execute(f"grant select, insert on {table} to authenticated".encode())
    tx.execute(policies.encode())
    tx.execute(
        "create policy asks on realtime_channels for select to authenticated"
        " using (exists (select from a))"
    )
    query = b"select from a" if command == "select" else b"insert into a values (1)"
    assert (sqlstate(tx, query) == "42P17") is endless
    in_files = [f.code for f in lint_sources([parse_source("a.sql", policies)])]
    assert ("RCL202" in in_files) is endless
    assert ("RCL202" in {code for code, _ in lint(tx)}) is endless
