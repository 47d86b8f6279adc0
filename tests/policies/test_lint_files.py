"""`rowcast policy lint` on files: what every rule finds, where, and what it accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from rowcast.files import policy_files
from rowcast.policy.lint.findings import Finding, Level
from rowcast.policy.lint.linting import lint_files, lint_sources
from rowcast.policy.lint.rules import RULES
from rowcast.policy.source import find_sql_files, parse_source
from support.recipes import PAGE_POLICIES

Connection = psycopg.Connection[Any]

IN_FILES = sorted(code for code, rule in RULES.items() if rule.check is not None)


def lint(*texts: str) -> list[Finding]:
    return lint_sources(parse_source(f"{n}.sql", text) for n, text in enumerate(texts))


def codes(*texts: str) -> set[str]:
    return {f.code for f in lint(*texts) if f.disabled is None}


def serious(text: str) -> set[str]:
    return {f.code for f in lint(text) if f.disabled is None and f.level > Level.INFO}


def channels(condition: str) -> str:
    return f"create policy p on public.realtime_channels for select to anon using ({condition})"


def messages(condition: str, command: str = "insert with check") -> str:
    word, _, clause = command.partition(" ")
    return (
        f"create policy p on public.realtime_messages for {word} to authenticated"
        f" {clause or 'using'} ({condition})"
    )


@pytest.mark.parametrize("code", sorted(RULES))
def test_a_rule_explains_itself(code: str) -> None:
    rule = RULES[code]
    assert rule.why.endswith(".")
    assert rule.bad
    assert rule.good
    assert len(rule.title) < 80


@pytest.mark.parametrize("code", IN_FILES)
def test_the_rule_finds_its_bad_snippet(code: str) -> None:
    found = [f for f in lint(RULES[code].bad) if f.code == code and f.disabled is None]
    assert len(found) == 1
    assert found[0].level == RULES[code].level
    assert found[0].message


@pytest.mark.parametrize("code", IN_FILES)
def test_the_rule_does_not_find_its_good_snippet(code: str) -> None:
    assert code not in codes(RULES[code].good)


@pytest.mark.parametrize("code", IN_FILES)
def test_a_good_snippet_is_good(code: str) -> None:
    """A reader who copies it must not trade one mistake for another."""
    assert serious(RULES[code].good) == set()


def test_the_policies_of_the_page_are_correct() -> None:
    """The linter only asks for explicit roles and schemas."""
    assert codes(PAGE_POLICIES) == {"RCL111", "RCL215"}
    assert serious(PAGE_POLICIES) == set()


@pytest.mark.parametrize("recipe", policy_files(), ids=lambda path: path.stem)
def test_a_recipe_has_nothing_above_an_info(recipe: Path) -> None:
    found = lint_files([recipe])
    assert [f for f in found if f.disabled is None and f.level > Level.INFO] == []


@pytest.mark.parametrize(
    ("code", "text"),
    [
        # always true
        ("RCL101", channels("true")),
        ("RCL101", channels("1 = 1")),
        ("RCL101", channels("(is_public or true) and true")),
        ("RCL101", messages("true")),
        # an unqualified name means the inner table
        ("RCL102", messages("exists (select from m where channel_id = channel_id)")),
        ("RCL102", messages("exists (select from t as m where channel_id = m.channel_id)")),
        ("RCL102", messages("exists (select from m join n using (id) where m.a = a)")),
        ("RCL102", messages("realtime_messages.channel_id = channel_id")),
        # the name of the statement
        ("RCL103", messages("(select rowcast.channel_name()) = channel_name")),
        ("RCL103", messages("exists (select from m where m.room = rowcast.segment_uuid(-1))")),
        ("RCL103", messages("realtime.topic() = 'a'", "select using")),
        ("RCL103", messages("current_setting('rowcast.channel_name', true) = 'a'")),
        (
            "RCL103",
            "create function mine() returns boolean language sql stable as"
            " 'select rowcast.segment(2) = auth.user_id()';" + messages("mine()"),
        ),
        (
            "RCL103",
            "create function mine() returns boolean language plpgsql stable as"
            " $$ begin return rowcast.segment(2) = auth.user_id(); end $$;" + messages("mine()"),
        ),
        # history
        ("RCL104", messages("channel_id in (select c.id from c)", "select using")),
        ("RCL104", messages("channel_id is not null", "all using")),
        # written by users
        ("RCL105", channels("auth.jwt() #>> '{user_metadata,role}' = 'admin'")),
        ("RCL105", channels("exists (select from u where raw_user_meta_data ->> 'a' = 'b')")),
        # NULL
        ("RCL112", channels("owner_id <> auth.user_id()")),
        ("RCL112", channels("owner_id is distinct from (select auth.user_id())")),
        ("RCL112", channels("auth.uid() is null or is_public")),
        ("RCL112", channels("(owner_id = auth.user_id()) is not true")),
        ("RCL112", channels("coalesce(owner_id = auth.user_id(), true)")),
        ("RCL112", channels("owner_id not in (select b.user_id from blocked as b)")),
        ("RCL112", channels("auth.user_id() not in ('a', 'b')")),
        ("RCL113", channels("rowcast.channel_name() ilike 'a%'")),
        ("RCL113", channels("pattern like 'a%'")),
        ("RCL113", messages("realtime_messages.channel_name ~~ 'a:%'::text")),
        ("RCL113", messages("event_name like sender_id || '%'")),
        ("RCL114", channels("owner_id = session_user::text")),
        # casts
        ("RCL201", channels("rowcast.segment(2)::int > 0")),
        ("RCL201", channels("cast(rowcast.segment(2) as uuid) = id")),
        ("RCL201", channels("nullif(split_part(realtime.topic(), ':', 2), '')::bigint > 0")),
        ("RCL201", messages("(string_to_array(channel_name, ':'))[2]::uuid = channel_id")),
        ("RCL201", channels("auth.user_id()::uuid = id")),
        # uuid and text
        ("RCL203", messages("channel_id = rowcast.segment(channel_name, 2)")),
        ("RCL203", messages("sender_id = (select auth.uid())")),
        ("RCL203", channels("id in (owner_id, (select auth.user_id()))")),
        (
            "RCL203",
            "create table m (room uuid);"
            + messages("exists (select from m where room = rowcast.segment(channel_name, 2))"),
        ),
        ("RCL204", channels("owner_id <> null")),
        ("RCL205", channels("nullif(current_setting('a.b'), '') = 'x'")),
        ("RCL205", channels("(current_setting('request.jwt.claims', true)::jsonb ->> 'a') = 'x'")),
        ("RCL206", channels("pg_sleep(1) is null")),
        ("RCL206", channels("pg_catalog.random() > 0.5")),
        (
            "RCL206",
            "create function f() returns boolean language sql return true;" + channels("f()"),
        ),
        (
            "RCL107",
            "create materialized view m as select a from t; grant select on m to anon",
        ),
        ("RCL208", channels("enabled").replace(" for", " as restrictive for")),
        ("RCL210", "create policy p on rowcast.settings for select to anon using (one)"),
        ("RCL301", "create policy p on t for delete to anon using (a = (auth.jwt() ->> 'b'))"),
    ],
)
def test_what_is_wrong_is_found(code: str, text: str) -> None:
    assert code in codes(text)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("RCL101", channels("is_public = true")),
        ("RCL101", "create policy p on realtime_messages for insert to backend with check (true)"),
        ("RCL101", channels("true").replace(" for", " as restrictive for")),
        (
            "RCL102",
            messages("exists (select from m where channel_id = realtime_messages.channel_id)"),
        ),
        ("RCL102", messages("exists (select from m where m.id = n.id)")),
        ("RCL103", messages("rowcast.segment(channel_name, 2) = auth.user_id()")),
        ("RCL103", channels("rowcast.segment(2) = auth.user_id()")),
        ("RCL104", messages("channel_id is not null")),
        (
            "RCL104",
            messages(
                "rowcast.may_subscribe(channel_name) and channel_id is not null", "select using"
            ),
        ),
        (
            "RCL104",
            "create table m (channel_id uuid, room text);"
            + messages(
                "exists (select from m where channel_id is null and room = channel_name)",
                "select using",
            ),
        ),
        ("RCL105", channels("auth.jwt() -> 'app_metadata' ->> 'role' = 'admin'")),
        ("RCL112", channels("auth.user_id() is not null")),
        ("RCL112", channels("not exists (select from b where b.user_id = auth.user_id())")),
        ("RCL112", channels("not is_public")),
        ("RCL112", channels("owner_id is null")),
        ("RCL113", messages("event_name like 'message.%'")),
        ("RCL113", messages("(realtime_messages.event_name ~~ 'message.%'::text)")),
        ("RCL201", channels("rowcast.segment_uuid(2) = id")),
        ("RCL201", channels("rowcast.segment(2)::text = 'a'")),
        ("RCL201", channels("id::text = rowcast.segment(2)")),
        ("RCL201", channels("exists (select from r where r.id::text = rowcast.segment(2))")),
        ("RCL203", channels("owner_id = auth.uid()::text")),
        ("RCL203", channels("id = rowcast.segment_uuid(2)")),
        ("RCL203", channels("exists (select from other where other.id = rowcast.segment(2))")),
        ("RCL203", channels("pattern = 'a:*'")),
        ("RCL205", channels("nullif(current_setting('a.b', true), '')::jsonb ->> 'c' = 'x'")),
        ("RCL206", channels("created_at < now()")),
        (
            "RCL206",
            "create function f() returns boolean language sql stable return true;"
            + channels("f()"),
        ),
        ("RCL107", "create materialized view m as select a from t"),
        ("RCL301", channels("owner_id = auth.user_id()")),
        ("RCL301", messages("sender_id = auth.user_id()")),
        ("RCL301", "create policy p on t for select to anon using (rowcast.may_subscribe(name))"),
        ("RCL107", "create view v with (security_invoker) as select 1 from t"),
        ("RCL107", "create view v with (security_invoker = on) as select 1 from t"),
    ],
)
def test_what_is_right_is_left_alone(code: str, text: str) -> None:
    assert code not in codes(text)


def test_files_are_read_together() -> None:
    """One file creates a table, another its policies."""
    table = "create table m (room text); grant select on m to anon;"
    policy = channels("exists (select from m)")
    assert "RCL108" not in codes(table, policy)
    governed = "create policy p on m for select to anon using (room = 'a')"
    assert "RCL108" in codes(table, governed)
    assert "RCL108" not in codes(table, governed, "alter table m enable row level security")


def test_a_block_is_read_too() -> None:
    text = "do $$\nbegin\n  if true then\n    create table m (a int);\n  end if;\nend $$;\n"
    found = [f for f in lint(text + channels("exists (select from m)")) if f.code == "RCL207"]
    assert [(f.line, f.column) for f in found] == [(7, 91)]
    open_table = lint(text, "create policy p on m to anon using (a = 1)")
    assert ("RCL108", 4) in {(f.code, f.line) for f in open_table}


def test_every_statement_that_is_not_sql_is_reported_at_its_place() -> None:
    text = "selec 1;\n\nselect (1;\n  select é from where;;\nslect 2"
    found = [(f.line, f.column) for f in lint(text) if f.code == "RCL001"]
    assert found == [(1, 1), (3, 9), (4, 17), (5, 1)]
    assert {f.code for f in lint("select 'never closed")} == {"RCL001"}


def test_a_block_that_does_not_compile_is_reported() -> None:
    assert "RCL001" in codes("do $$ begin retrun; end $$")


def test_a_place_is_counted_in_characters() -> None:
    text = "-- äöü 😀\n" + channels("'ä😀' = null")
    assert [(f.line, f.column) for f in lint(text) if f.code == "RCL204"] == [(2, 1)]
    text = "select 1; -- ä\n" + channels("é = null")
    column = text.splitlines()[1].index("é") + 1
    assert [(f.line, f.column) for f in lint(text) if f.code == "RCL204"] == [(2, column)]


@pytest.mark.parametrize(
    "text",
    [
        f"-- rowcast:disable=RCL101 all users may\n{channels('true')};",
        f"{channels('true')}; -- rowcast:disable=RCL101 all users may",
        f"{channels('true')[:-1]}\n-- rowcast:disable=RCL101 all users may\n);",
        f"select;\n-- rowcast:disable=RCL204,RCL101 both are meant\n{channels('a = null or true')}",
    ],
)
def test_a_comment_disables_a_rule_for_its_statement(text: str) -> None:
    found = lint(text)
    assert {f.code for f in found if f.disabled} >= {"RCL101"}
    assert not {f.code for f in found if f.disabled is None}
    assert next(f.disabled for f in found if f.code == "RCL101")


def test_a_comment_disables_nothing_elsewhere() -> None:
    text = f"-- rowcast:disable=RCL101 all users may\n{channels('true')};\n{channels('true')};"
    assert [f.disabled for f in lint(text) if f.code == "RCL101"] == ["all users may", None]
    assert "RCL101" in codes(f"{channels('true')};\n-- rowcast:disable=RCL101 too late by a line")


def test_a_name_that_a_query_makes_is_no_table() -> None:
    text = "create table w (a int);" + channels("exists (with w as (select 1) select from w)")
    assert not codes(text) & {"RCL207", "RCL215"}


@pytest.mark.parametrize(
    "grant", ["select on m", "all on table m", "select on all tables in schema public"]
)
def test_a_grant_is_understood(grant: str) -> None:
    table, policy = "create table m (a int);", channels("exists (select from m)")
    assert "RCL207" not in codes(table, f"grant {grant} to anon", policy)
    assert "RCL207" in codes(table, f"revoke {grant} from anon", policy)


def test_a_role_of_the_moment_is_not_everybody() -> None:
    assert "RCL111" not in codes(channels("enabled").replace("to anon", "to current_user"))


@pytest.mark.parametrize("folder", ["sql", "migrations"])
def test_whatever_is_sql_can_be_read(folder: str) -> None:
    files = find_sql_files([policy_files()[0].parents[1] / folder])
    assert {f.code for f in lint_files(files)} & {"RCL001"} == set()


def test_words_in_a_string_disable_nothing() -> None:
    text = channels("pattern = '-- rowcast:disable=RCL101 no' or true")
    assert "RCL101" in codes(text)


def test_findings_are_in_the_order_of_the_text(tmp_path: Path) -> None:
    for name in ("b", "a"):
        text = f"{channels('true')};\n{channels('a = null')};"
        (tmp_path / f"{name}.sql").write_text(text)
    found = lint_files(find_sql_files([tmp_path]))
    assert [(Path(f.file or "").name, f.line) for f in found] == [
        ("a.sql", 1),
        ("a.sql", 2),
        ("b.sql", 1),
        ("b.sql", 2),
    ]


@pytest.mark.parametrize(
    ("code", "sqlstate"),
    [("RCL001", "42601"), ("RCL203", "42883"), ("RCL209", "42601"), ("RCL210", "42809")],
)
def test_what_is_said_to_be_refused_is_refused_by_postgres(
    tx: Connection, code: str, sqlstate: str
) -> None:
    with pytest.raises(psycopg.Error) as refusal, tx.transaction():
        tx.execute(RULES[code].bad.encode())
    assert refusal.value.sqlstate == sqlstate
    with tx.transaction(force_rollback=True):
        tx.execute(RULES[code].good.encode())
