"""`rowcast policy explain` and `rowcast.explain_access` give reasons and write nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rowcast.policy import expression_tree as tree
from support.messages import add_channel, refused
from support.workbench import Run, picture

Connection = psycopg.Connection[Any]

POLICIES = """
create table public.members (room text, user_id text);
insert into public.members values ('1', 'alice');
grant select on public.members to authenticated;
create policy "members listen" on public.realtime_channels for select to authenticated
using (enabled and exists (
    select from public.members as m where m.room = rowcast.segment(2) and m.user_id = auth.user_id()
));
create policy "not banned" on public.realtime_channels as restrictive for select
using (not rowcast.jwt() ->> 'banned' = 'yes');
create policy edit on public.realtime_channels for update using (true);
create policy speak on public.realtime_messages for insert to authenticated
with check (sender_id = auth.user_id() and (event_name = 'said' or payload ->> 'k' like 'x%'));
"""
ALICE = ("--claims", '{"sub": "alice", "banned": "no"}')


@pytest.fixture(autouse=True)
def _stage(db: Connection) -> None:
    add_channel(db, "chat:*")
    add_channel(db, "chat:off", enabled=False)
    add_channel(db, "**")
    db.execute(POLICIES.encode())


def explained(run: Run, *arguments: str, code: int = 0) -> dict[str, Any]:
    ended, out, err = run("explain", *arguments, "--format", "json")
    assert ended == code, out + err
    found: dict[str, Any] = json.loads(out)
    return found


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {policy["name"]: policy for policy in found["policies"]}


def test_it_reads_as_a_story(run: Run) -> None:
    code, out, err = run("explain", "subscribe", "chat:1", "--claims", '{"sub": "alice"}')
    assert (code, err) == (0, "")
    for line in (
        "subscribe chat:1 as alice (authenticated)",
        "  > chat:*: governs: the most specific pattern",
        "    **: shadowed by it",
        "policies of realtime_channels",
        "  - not banned [RESTRICTIVE] NULL (not true: a deny)",
        "      NULL   NOT",
        "        NULL   rowcast.jwt() ->> 'banned' = 'yes'   [NULL | yes]",
        "  - edit [permissive] does not apply: for update to public",
        "  - members listen [permissive] true",
        "by the policies: deny (the restrictive policy not banned is not true)",
        "by the database: deny: denied (no policy allows this)",
    ):
        assert line in out, out


def test_every_arm_has_a_value_and_null_is_none_of_true_and_false(run: Run) -> None:
    found = explained(run, "publish", "chat:1", "other", *ALICE)
    speak = by_name(found)["speak"]
    tree = speak["tree"]
    assert (speak["value"], tree["operator"]) == (None, "AND")
    sender, choice = tree["arms"]
    assert sender["value"] == "true"
    assert (choice["operator"], choice["value"]) == ("OR", None)
    assert [arm["value"] for arm in choice["arms"]] == ["false", None]
    assert choice["arms"][0]["sides"] == ["other", "said"]
    assert choice["arms"][1]["sides"] == [None, "x%"]
    assert (found["verdict"], found["answer"]["reason"]) == (["deny"], "denied")
    assert explained(run, "publish", "chat:1", "said", *ALICE)["verdict"] == ["allow"]


def test_which_policies_apply_is_said_with_the_reason(run: Run) -> None:
    found = by_name(explained(run, "subscribe", "chat:1", "--role", "anon"))
    assert {name: policy["applies"] for name, policy in found.items()} == {
        "not banned": True, "members listen": False, "edit": False,
    }  # fmt: skip


def test_a_disabled_channel_governs_and_shadows(run: Run) -> None:
    found = explained(run, "subscribe", "chat:off", *ALICE)
    assert [(c["pattern"], c["governs"], c["enabled"]) for c in found["channels"]] == [
        ("chat:off", True, False), ("chat:*", False, True), ("**", False, True),
    ]  # fmt: skip
    assert (found["verdict"], found["answer"]["reason"]) == (["deny"], "disabled")


def test_an_error_of_one_policy_does_not_hide_the_others(run: Run, db: Connection) -> None:
    db.execute("create table public.secrets (n integer)")
    db.execute(
        "create policy a on public.realtime_channels for select"
        " using (exists (select from public.secrets))"
    )
    db.execute(
        "create policy b on public.realtime_channels for select using (rowcast.segment(2)::uuid is null)"  # noqa: E501
    )
    found = explained(run, "subscribe", "chat:1", *ALICE)
    policies = by_name(found)
    assert policies["a"]["error"] == "42501 permission denied for table secrets"
    assert policies["b"]["error"].startswith("22P02")
    assert policies["members listen"]["value"] == "true"
    assert set(found["verdict"]) == {"allow", "error"}
    assert found["answer"]["reason"] == "policy error"


def test_a_policy_that_refers_to_its_own_table_is_an_error(run: Run, db: Connection) -> None:
    db.execute(
        "create policy me on public.realtime_channels for select using"
        " (exists (select from public.realtime_channels as c where c.pattern = realtime_channels.pattern))"  # noqa: E501
    )
    found = explained(run, "subscribe", "chat:1", *ALICE)
    assert by_name(found)["me"]["error"].startswith("42P17 infinite recursion")
    assert found["answer"]["reason"] == "policy error"


def test_whole_rows_and_percent_signs_are_no_obstacle(run: Run, db: Connection) -> None:
    db.execute(
        "create function public.sees(public.realtime_channels) returns boolean"
        " language sql stable as $$ select $1.pattern like 'c%t:*' $$"
    )
    db.execute("grant execute on function public.sees to public")
    db.execute(
        "create policy odd on public.realtime_channels for select using"
        " (public.sees(realtime_channels) and pattern like '%s%%$1' is false)"
    )
    assert by_name(explained(run, "subscribe", "chat:1", *ALICE))["odd"]["value"] == "true"


def test_a_policy_that_takes_too_long_is_named(
    run: Run, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowcast.policy.database.TIMEOUT", "300")
    db.execute(
        "create policy slow on public.realtime_channels for select using (pg_sleep(20) is not null)"
    )
    policies = by_name(explained(run, "subscribe", "chat:1", "--claims", '{"sub": "bob"}'))
    assert policies["slow"]["error"].startswith("57014")
    assert policies["members listen"]["value"] == "false"


def test_what_makes_a_policy_dear_is_said(run: Run, db: Connection) -> None:
    warnings = by_name(explained(run, "subscribe", "chat:1", *ALICE))["members listen"]["warnings"]
    assert warnings[0].startswith("no index of public.members serves room, user_id")
    assert "evaluated for each row of public.members" in warnings[1]
    db.execute("insert into public.members select n::text, 'x' from generate_series(1, 500) as n")
    db.execute("analyze public.members")
    warnings = by_name(explained(run, "subscribe", "chat:1", *ALICE))["members listen"]["warnings"]
    assert "about 501 rows" in warnings[0]
    db.execute("create index on public.members (user_id, room)")
    policies = by_name(explained(run, "subscribe", "chat:1", *ALICE))
    assert policies["members listen"]["warnings"] == []


def test_a_function_that_is_called_for_each_row(run: Run, db: Connection) -> None:
    """The warning names the function of the team."""
    db.execute(
        "create function public.me() returns text language plpgsql stable as"
        " $$ begin return rowcast.user_id(); end $$"
    )
    query = "select from public.members as m where m.user_id = {}"
    for name, call in (("bare", "public.me()"), ("wrapped", "(select public.me())")):
        db.execute(
            f"create policy {name} on public.realtime_channels for select"
            f" using (exists ({query.format(call)}))".encode()
        )
    policies = by_name(explained(run, "subscribe", "chat:1", *ALICE))
    said = {name: " ".join(policies[name]["warnings"]) for name in ("bare", "wrapped")}
    assert "public.me() is evaluated for each row" in said["bare"]
    assert "evaluated for each row" not in said["wrapped"]


def test_missing_grants_are_said_before_any_policy(run: Run, db: Connection) -> None:
    db.execute("revoke insert on public.realtime_messages from authenticated")
    code, out, _ = run("explain", "publish", "chat:1", "said", *ALICE)
    assert code == 0
    assert "! authenticated lacks INSERT on realtime_messages (type, channel_name," in out
    assert "by the policies: deny (authenticated lacks INSERT" in out


def test_row_level_security_that_is_off_is_said(run: Run, db: Connection) -> None:
    db.execute("alter table public.realtime_messages disable row level security")
    found = explained(run, "publish", "chat:1", "other", *ALICE)
    assert (found["verdict"], found["answer"]["allowed"]) == (["allow"], True)
    assert [b["finding"] for b in found["barriers"] if not b["ok"]] == [
        "OFF on realtime_messages: its policies are not evaluated"
    ]


def test_a_verdict_that_is_not_what_happens_is_an_error(run: Run, db: Connection) -> None:
    """A volatile policy returns another value when the database evaluates it."""
    db.execute("create sequence public.turns")
    db.execute("grant usage on sequence public.turns to public")
    db.execute("drop policy speak on public.realtime_messages")
    db.execute(
        "create policy once on public.realtime_messages for insert"
        " with check (nextval('public.turns') = 1)"
    )
    code, out, err = run("explain", "publish", "chat:1", "said", *ALICE)
    assert code == 1
    assert "MISMATCH" in out
    assert err.startswith("rowcast: the database does not decide as the policies say")


def test_without_pglast_only_the_trees_are_missing(
    run: Run, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    for name in ("pglast", "pglast.stream"):
        monkeypatch.setitem(sys.modules, name, None)
    code, out, _ = run("explain", "subscribe", "chat:1", *ALICE)
    assert code == 0
    assert "members listen [permissive] true" in out
    assert "install 'rowcast[policy]'" in out
    (home / "policies" / "a.sql").write_text("select 1;")
    code, _, err = run("diff")
    assert (code, err) == (1, "rowcast: This command needs pglast: install 'rowcast[policy]'.\n")


def test_what_pglast_cannot_read_has_no_tree(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is newer than pglast may deparse an expression with new syntax."""
    parse = tree.parse_expression
    monkeypatch.setattr(tree, "parse_expression", lambda text: parse(f"{text} is newer"))
    code, out, _ = run("explain", "subscribe", "chat:1", *ALICE)
    assert code == 0
    assert "members listen [permissive] true" in out
    assert "pglast cannot read an expression" in out


def test_nothing_is_left_in_the_database(run: Run, db: Connection) -> None:
    before = picture(db)
    for arguments in (
        ("can", "subscribe", "chat:1"),
        ("can", "publish", "chat:1", "said", "--repeat", "5"),
        ("explain", "subscribe", "chat:1"),
        ("explain", "publish", "chat:1", "said"),
        ("explain", "publish", "chat:off", "said"),
    ):
        run(*arguments, *ALICE)
    assert picture(db) == before


# In SQL


def access(db: Connection, *arguments: Any) -> list[tuple[Any, ...]]:
    marks = ", ".join(["%s"] * len(arguments))
    query = f"select part, subject, applies, said, detail from rowcast.explain_access({marks})"
    return db.execute(query.encode(), arguments).fetchall()


def test_psql_shows_channels_policies_and_both_verdicts(db: Connection) -> None:
    rows = access(db, "subscribe", "chat:1", "authenticated", '{"sub": "alice"}')
    assert [row[:4] for row in rows if row[0] != "barrier"] == [
        ("channel", "chat:*", True, "enabled"),
        ("channel", "**", False, "enabled"),
        ("policy", "not banned", True, "NULL: counts as false"),
        ("policy", "edit", False, None),
        ("policy", "members listen", True, "true"),
        ("verdict", "by the policies", True, "deny"),
        ("verdict", "by the database", True, "deny"),
    ]
    assert {row[3] for row in rows if row[0] == "barrier"} == {"ok"}


def test_psql_leaves_nothing_either(db: Connection) -> None:
    before = picture(db)
    rows = access(db, "publish", "chat:1", "authenticated", '{"sub": "alice"}', "said")
    assert [row[3] for row in rows if row[0] == "verdict"] == ["allow", "allow"]
    assert picture(db) == before
    assert db.execute("select current_user = session_user, current_setting('role')").fetchone() == (
        True,
        "none",
    )


def test_an_action_that_does_not_exist_is_refused(db: Connection) -> None:
    with refused(db, "22023", "dance"):
        access(db, "dance", "chat:1", "authenticated")


@pytest.mark.parametrize("role", ["anon", "authenticated", "rowcast_caller", "rowcast_bridge"])
def test_only_who_may_write_policies_may_explain(db: Connection, role: str) -> None:
    db.execute(f"set role {role}".encode())
    with refused(db, "42501", "permission denied for function"):
        access(db, "subscribe", "chat:1", "authenticated")
    with refused(db, "42501", "permission denied for function"):
        db.execute(
            "select rowcast.evaluate_policy('subscribe', 'anon', '{}', 'a', '', '', '{}', '{true}')"
        )


TABLE = [
    # permissive, values → possible outcomes
    ([], [], ["deny"]),
    ([True], ["true"], ["allow"]),
    ([True], [None], ["deny"]),
    ([True, True], ["false", "true"], ["allow"]),
    ([False], ["true"], ["deny"]),
    ([True, False], ["true", "true"], ["allow"]),
    ([True, False], ["true", None], ["deny"]),
    ([True, False], ["true", "false"], ["deny"]),
    ([True], ["error"], ["deny", "error"]),
    ([True, True], ["true", "error"], ["allow", "error"]),
    ([True, False], ["true", "error"], ["deny", "error"]),
    ([True, False, True], ["true", "false", "error"], ["deny", "error"]),
]


@pytest.mark.parametrize(("permissive", "said", "outcomes"), TABLE)
def test_verdicts_follow_the_rules_of_postgres(
    db: Connection, permissive: list[bool], said: list[str | None], outcomes: list[str]
) -> None:
    row = db.execute(
        "select rowcast.verdict(%s::boolean[], %s::text[])", [permissive, said]
    ).fetchone()
    assert row == (outcomes,)


def test_a_subscription_to_a_pattern_is_judged_by_its_own_row(run: Run, db: Connection) -> None:
    db.execute('drop policy "not banned" on public.realtime_channels')
    db.execute(
        "create policy lax on public.realtime_channels for select using (pattern = 'chat:*')"
    )
    found = explained(run, "subscribe", "chat:*", *ALICE)
    assert [c["pattern"] for c in found["channels"]] == ["chat:*"]
    assert (found["verdict"], found["answer"]["allowed"]) == (["deny"], False)
    db.execute("update public.realtime_channels set wildcard = true")
    found = explained(run, "subscribe", "chat:*", *ALICE)
    offered = db.execute("select to_regproc('rowcast.subscribable') is not null").fetchone()
    assert offered is not None
    assert found["verdict"] == ["allow" if offered[0] else "deny"]
    assert explained(run, "publish", "chat:*", "said", *ALICE)["verdict"] == ["deny"]
