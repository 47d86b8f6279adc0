"""SQL gate: every statement parses with PostgreSQL's grammar and follows the project's rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import pglast
import pytest

from style import sql_rules as rules
from style.sources import Function, Statement, functions, sql_files, statements

StatementRule = Callable[[list[Statement]], Iterator[str]]
FunctionRule = Callable[[Function], Iterator[str]]
TextRule = Callable[[str, str], Iterator[str]]

FOLDERS = ("sql", "migrations", "policies")

# Each rule, the folders it applies to, and an example that it must catch.
STATEMENT_RULES: list[tuple[StatementRule, tuple[str, ...], str]] = [
    (rules.code_can_run_again, ("sql",), "create table rowcast.t ()"),
    (rules.code_can_run_again, ("sql",), "create function f() returns int return 1"),
    (rules.code_can_run_again, ("sql",), "alter table t add column a integer"),
    (rules.code_can_run_again, ("sql",), "drop view v"),
    (rules.code_can_run_again, ("sql",), "set timezone = 'UTC'"),
    (rules.code_can_run_again, ("sql",), "select pg_sleep(1)"),
    (rules.code_can_run_again, ("sql",), "do $$ begin alter table t add a int; end $$"),
    (rules.code_can_run_again, ("sql",), "do $$ begin create role r; end $$"),
    (rules.migrations_hold_state, ("migrations",), "create view v as select 1"),
    (rules.migrations_hold_state, ("migrations",), "grant select on t to public"),
    (rules.migrations_hold_state, ("migrations",), "create policy p on t"),
    (rules.migrations_hold_state, ("migrations",), "create function f() returns int return 1"),
    (
        rules.migrations_spare_functions,
        ("migrations",),
        "create table t (a int check (rowcast.f(a)))",
    ),
    (rules.policies_can_run_again, ("policies",), "create policy p on public.t"),
    (rules.policies_can_run_again, ("policies",), "create table t ()"),
    (rules.bodies_parse, FOLDERS, "do $$ begin retrun; end $$"),
    (rules.bodies_parse, FOLDERS, "do $$ begin if false then v := selec 1; end if; end $$"),
    (rules.bodies_parse, FOLDERS, "create function f() returns int language sql as 'selec 1'"),
    (rules.functions_are_explained, FOLDERS, "-- f\ncreate function f() returns int return 1"),
    (rules.comments_match, FOLDERS, "create function f() returns int return 1"),
    (rules.comments_match, FOLDERS, "comment on function f(integer) is 'Returns one more.'"),
    (
        rules.comments_match,
        FOLDERS,
        "create function f(p_a int) returns int return 1; comment on function f(int) is 'f';",
    ),
    (
        rules.triggers_show_their_order,
        FOLDERS,
        "create trigger stamp before insert on t for each row execute function f()",
    ),
]

FUNCTION_RULES: list[tuple[FunctionRule, str]] = [
    (rules.volatility_is_written, "create function f() returns int return 1"),
    (rules.volatility_is_written, "create function f() returns int volatile strict return 1"),
    (rules.definer_is_decided, "create function f() returns int language plpgsql as 'begin end'"),
    (rules.definer_is_decided, "create function f() returns int set jit = off return 1"),
    (rules.path_is_pinned, "create function f() returns int security definer return 1"),
    (rules.path_is_pinned, "create function f() returns int language plpgsql as 'begin end'"),
    (
        rules.path_is_pinned,
        "create function f() returns int security definer set search_path = pg_temp, a return 1",
    ),
    (rules.names_have_prefixes, "create function f(a int) returns int return a"),
    (rules.names_have_prefixes, "do $$ declare a int; begin end $$"),
    (rules.dynamic_sql_quotes, "do $$ begin execute format('drop table %s', 'a'); end $$"),
    (rules.dynamic_sql_quotes, "do $$ begin execute format('drop' || 'a'); end $$"),
]

TEXT_RULES: list[tuple[TextRule, str]] = [
    (rules.file_tells_its_subject, "select 1;\n"),
    (rules.lower_case, "SELECT 1"),
    (rules.lower_case, "select 1 as Value"),
    (rules.lower_case, "do $$ BEGIN end $$"),
]


def read(folder: str) -> dict[str, list[Statement]]:
    return {path.name: statements(path.read_text(), path.name) for path in sql_files(folder)}


def once(table: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Drop the bad examples: the table has a rule once per example; real files need it once."""
    return list({row[0]: row[:-1] for row in table}.values())


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_statement_is_postgresql(folder: str) -> None:
    assert sql_files(folder)
    for path in sql_files(folder):
        try:
            assert statements(path.read_text(), path.name)
        except pglast.parser.ParseError as error:
            pytest.fail(f"{folder}/{path.name}: {error}")


@pytest.mark.parametrize(("rule", "folders"), once(STATEMENT_RULES))
def test_statements_keep_the_rule(rule: StatementRule, folders: tuple[str, ...]) -> None:
    found = chain.from_iterable(rule(file) for folder in folders for file in read(folder).values())
    assert not (findings := list(found)), "\n".join(findings)


@pytest.mark.parametrize("rule", [row[0] for row in once(FUNCTION_RULES)])
def test_functions_keep_the_rule(rule: FunctionRule) -> None:
    found = [
        finding
        for folder in FOLDERS
        for file in read(folder).values()
        for function in functions(file, blocks=True)
        for finding in rule(function)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("rule", [row[0] for row in once(TEXT_RULES)])
def test_files_keep_the_rule(rule: TextRule) -> None:
    found = [
        finding
        for folder in FOLDERS
        for path in sql_files(folder)
        for finding in rule(path.read_text(), path.name)
    ]
    assert not found, "\n".join(found)


def test_exceptions_to_quoting_are_still_needed() -> None:
    """A listed place without ``%s`` would also cover one that is added later."""
    needed = {
        function.place
        for file in read("sql").values()
        for function in functions(file, blocks=True)
        if list(rules.unquoted_formats(function))
    }
    assert needed == rules.QUOTED_BEFORE.keys()


def test_exceptions_for_code_in_migrations_are_still_needed() -> None:
    written = {f"{s.file}: {s.kind}" for file in read("migrations").values() for s in file}
    assert rules.CODE_IN_MIGRATIONS.keys() <= written


def test_migrations_are_numbered_without_gaps() -> None:
    numbers = [re.fullmatch(r"(\d{4})_[a-z_]+\.sql", path.name) for path in sql_files("migrations")]
    assert [int(n[1]) for n in numbers if n] == list(range(1, len(numbers) + 1))


def test_no_function_is_defined_twice() -> None:
    """The later definition would win, and readers would still find the earlier one."""
    signatures = [f.signature for file in read("sql").values() for f in functions(file)]
    assert len(signatures) == len(set(signatures))


@pytest.mark.parametrize(
    ("rule", "bad"),
    [(row[0], row[-1]) for row in [*STATEMENT_RULES, *FUNCTION_RULES, *TEXT_RULES]],
)
def test_the_rule_catches_what_it_is_for(rule: Callable[..., Iterator[str]], bad: str) -> None:
    if rule in {row[0] for row in TEXT_RULES}:
        assert list(rule(bad, "snippet.sql"))
    elif rule in {row[0] for row in FUNCTION_RULES}:
        assert list(rule(functions(statements(bad), blocks=True)[0]))
    else:
        assert list(rule(statements(bad)))


def test_a_file_in_order_passes_every_rule() -> None:
    text = """-- Counting, one step at a time.

-- The next number after a given one.
create or replace function rowcast.next(p_n integer)
returns integer
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_row rowcast.settings;
begin
    return p_n + 1;
end;
$$;

comment on function rowcast.next(integer) is 'One more than the number given.';

do $$ begin if true then alter table t add a int; end if; end; $$;
"""
    found = statements(text)
    every_function = functions(found)
    assert not list(chain.from_iterable(r(text, "a.sql") for r in (row[0] for row in TEXT_RULES)))
    for rule in (row[0] for row in FUNCTION_RULES):
        assert not list(chain.from_iterable(rule(f) for f in every_function))
    for rule in (rules.code_can_run_again, rules.bodies_parse, rules.comments_match):
        assert not list(rule(found))
