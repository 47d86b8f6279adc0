"""`rowcast policy lint`, `new` and `port`: output, exit codes, one sentence per error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rowcast.cli.main import main
from rowcast.files import policy_files, style_config
from rowcast.policy.lint.rules import RULES
from support import pg

GOOD = (
    "create policy own on public.realtime_channels for select to authenticated"
    " using (owner_id = auth.user_id());\n"
)
WARNS = GOOD.replace("owner_id =", "owner_id <>")
FAILS = GOOD.replace("owner_id =", "true or owner_id =")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory, without a database in the environment."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "fail_on", "code"),
    [
        (GOOD, "info", 0),
        (WARNS, "error", 0),
        (WARNS, "warning", 1),
        (FAILS, "error", 1),
        ("create plicy", "error", 2),
    ],
)
def test_the_exit_code_is_that_of_the_worst_finding(
    here: Path, capsys: pytest.CaptureFixture[str], text: str, fail_on: str, code: int
) -> None:
    (here / "p.sql").write_text(text)
    assert main(["policy", "lint", "p.sql", "--fail-on", fail_on]) == code
    assert capsys.readouterr().err == ""


def test_policies_are_looked_for_in_their_folder(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "policies" / "deep").mkdir(parents=True)
    (here / "policies" / "deep" / "p.sql").write_text(FAILS)
    assert main(["policy", "lint"]) == 1
    assert f"{Path('policies', 'deep', 'p.sql')}:1:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lint"], "policies does not exist"),
        (["lint", "no.sql"], "no.sql does not exist"),
        (["lint", "."], ". does not contain a .sql file"),
        (["lint", "--explain", "RCL998"], "Rule RCL998 does not exist; use one of RCL001"),
        (["new"], "Give a name and a recipe"),
        (["new", "chat", "--template", "none"], "Recipe none does not exist; use one of"),
        (["port", "no.sql", "--from", "supabase"], "no.sql cannot be read"),
    ],
)
def test_wrong_usage_is_answered_with_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["policy", *arguments]) == 2
    answer = capsys.readouterr()
    assert answer.out == ""
    assert answer.err.startswith("rowcast: ")
    assert says in answer.err
    assert answer.err.count("\n") == 1


def test_a_file_that_is_no_text_is_said_to_be_none(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "p.sql").write_bytes(b"\xff\xfe")
    assert main(["policy", "lint", "p.sql"]) == 2
    assert "p.sql cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["json", "sarif"])
def test_programs_get_json(here: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    (here / "p.sql").write_text(FAILS)
    assert main(["policy", "lint", "p.sql", "--format", form]) == 1
    assert "RCL101" in json.dumps(json.loads(capsys.readouterr().out))


def test_a_database_is_asked_by_the_login_of_the_bridge(
    database: pg.Database, db: psycopg.Connection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    db.execute(FAILS)
    for url in (database.bridge_url, database.owner_url):
        assert main(["policy", "lint", "--database-url", url]) == 1
        out = capsys.readouterr().out
        assert "policy own on public.realtime_channels: error RCL101" in out
    db.execute("drop policy own on realtime_channels")
    assert main(["policy", "lint", "--database-url", database.bridge_url]) == 0
    assert capsys.readouterr().out == "nothing found\n"


@pytest.mark.parametrize("code", ["RCL102", "RCL112", "RCL113", "RCL201", "RCL204", "RCL205"])
def test_policies_of_a_database_are_read_like_a_file(
    database: pg.Database,
    db: psycopg.Connection[Any],
    capsys: pytest.CaptureFixture[str],
    code: str,
) -> None:
    """For example, the catalogue has resolved unqualified table names."""
    db.execute("create table channel_members (channel_id uuid, user_id text)")
    db.execute("create table rooms (id uuid)")
    db.execute(RULES[code].bad.encode())
    main(["policy", "lint", "--database-url", database.bridge_url, "--format", "json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert code in {f["code"] for f in findings}
    assert len({(f["object"], f["code"]) for f in findings}) == len(findings)


def test_the_policies_of_the_page_live_in_peace(
    database: pg.Database, db: psycopg.Connection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for recipe in ("public_channels", "owner_channels", "channel_members"):
        db.execute((policy_files()[0].parent / f"{recipe}.sql").read_bytes())
    assert main(["policy", "lint", "--database-url", database.bridge_url]) == 0
    assert {line.split(": ")[1][:11] for line in capsys.readouterr().out.splitlines()[:-1:2]} == {
        "info RCL111"
    }


def test_files_and_a_database_are_asked_together(
    here: Path,
    database: pg.Database,
    db: psycopg.Connection[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (here / "p.sql").write_text(WARNS)
    db.execute(FAILS)
    assert main(["policy", "lint", "p.sql", "--database-url", database.bridge_url]) == 1
    out = capsys.readouterr().out
    assert "RCL112" in out
    assert "RCL101" in out


def test_a_database_without_rowcast_is_said_to_be_one(
    empty_database: pg.Database, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["policy", "lint", "--database-url", empty_database.url]) == 1
    assert "run `rowcast migrate` first" in capsys.readouterr().err


def test_the_form_is_checked_when_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "p.sql").write_text(GOOD.replace("create policy", "CREATE   policy"))
    assert main(["policy", "lint", "p.sql", "--fail-on", "info"]) == 0
    assert main(["policy", "lint", "p.sql", "--fail-on", "info", "--style"]) == 1
    out = capsys.readouterr().out
    assert "info CP01" in out
    assert "info LT01" in out


def test_the_recipes_have_the_form_that_is_shipped() -> None:
    paths = [str(path) for path in policy_files()]
    assert main(["policy", "lint", "--style", "--fail-on", "warning", *paths]) == 0


def test_the_configuration_of_the_form_can_be_had(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With this configuration beside the files, sqlfluff itself does what --style does."""
    assert main(["policy", "lint", "--style-config"]) == 0
    text = capsys.readouterr().out
    assert text == style_config().read_text()
    (here / ".sqlfluff").write_text(text)
    (here / "good.sql").write_text(policy_files()[0].read_text())
    (here / "bad.sql").write_text("SELECT 1;\n")
    lint = [sys.executable, "-m", "sqlfluff", "lint", "--processes", "1"]
    assert subprocess.run([*lint, "good.sql"], capture_output=True).returncode == 0
    assert subprocess.run([*lint, "bad.sql"], capture_output=True).returncode == 1


def test_a_rule_can_be_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "lint", "--explain", "rcl104"]) == 0
    assert capsys.readouterr().out.startswith("RCL104 (error): History is opened by channel_id.")
    assert main(["policy", "lint", "--explain", "all"]) == 0
    assert capsys.readouterr().out.count("\nGood:\n") > 30


def test_a_recipe_becomes_a_policy_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "new", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [path.stem for path in policy_files()]
    assert main(["policy", "new", "chat", "--template", "room_members"]) == 0
    out = capsys.readouterr().out
    assert "rowcast policy lint policies/chat.sql" in out
    assert (here / "policies" / "chat.sql").exists()
    assert (here / "policies" / "chat.test.toml").exists()
    assert main(["policy", "lint"]) == 0
    assert main(["policy", "new", "chat", "--template", "open"]) == 2


def test_port_prints_policies_and_remarks_apart(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Policies go to standard output, remarks and refusals to standard error."""
    text = "create policy p on realtime.messages for select to anon using ({});\n"
    (here / "p.sql").write_text(text.format("topic = 'a'"))
    assert main(["policy", "port", "p.sql", "--from", "supabase"]) == 0
    answer = capsys.readouterr()
    assert "on public.realtime_channels" in answer.out
    assert answer.err.startswith("note: ")
    (here / "p.sql").write_text(text.format("extension = 'presence'"))
    assert main(["policy", "port", "p.sql", "--from", "supabase"]) == 1
    assert capsys.readouterr().err.startswith("not ported: policy 'p': it is about presence")


def test_policies_can_be_ported_through_a_pipe() -> None:
    text = "create policy p on realtime.channels for select to anon using (enabled);"
    done = subprocess.run(
        [sys.executable, "-m", "rowcast", "policy", "port", "-", "--from", "insforge"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "on public.realtime_channels" in done.stdout


@pytest.mark.parametrize(
    ("library", "arguments"),
    [
        ("pglast", ["lint", "p.sql"]),
        ("pglast", ["port", "p.sql", "--from", "supabase"]),
        ("sqlfluff", ["lint", "p.sql", "--style"]),
    ],
)
def test_a_missing_library_is_named_with_what_installs_it(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    library: str,
    arguments: list[str],
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    (here / "p.sql").write_text(GOOD)
    from rowcast.policy.lint import style

    style._linter.cache_clear()  # noqa: SLF001
    assert main(["policy", *arguments]) == 1
    err = capsys.readouterr().err
    assert err == f"rowcast: This command needs {library}: install 'rowcast[policy]'.\n"
