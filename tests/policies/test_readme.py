"""Runs the session of policies/README.md, command by command, and its pytest example."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support import pg
from support.messages import add_channel
from support.workbench import Run

Connection = psycopg.Connection[Any]

ROOT = Path(__file__).parents[2]
CHAPTER = (ROOT / "policies" / "README.md").read_text().partition("## Knowing before you change")[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", CHAPTER, re.M | re.S)
FILE = re.compile(r"(?:--|#) ([\w/.]+\.(?:sql|toml|py))\n")


def files() -> dict[str, str]:
    """Return the files of the chapter by the name in their first line."""
    return {match[1]: text for _, text in BLOCKS if (match := FILE.match(text))}


def session() -> list[tuple[str, str]]:
    """Yield commands with their expected output."""
    text = "".join(text for kind, text in BLOCKS if kind == "console")
    return [
        (command, output)
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.M)
    ]


def lay_out(folder: Path) -> None:
    for name, text in files().items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def same(text: str) -> str:
    """Replace times, which differ from run to run."""
    return re.sub(r"\d+\.\d\d ms", "… ms", text)


def test_the_session_runs_as_it_is_written(
    run: Run,
    db: Connection,
    team_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROWCAST_PG_BIN", str(pg.choose_binaries()))
    lay_out(tmp_path)
    migration, *_ = (text for kind, text in BLOCKS if kind == "sql" and not FILE.match(text))
    with psycopg.connect(team_url, autocommit=True) as team:
        team.execute(migration.encode())
    add_channel(db, "chat:*")
    assert run("lint", "policies/chat.sql")[0] == 0
    commands = session()
    assert len(commands) == 7
    for command, output in commands:
        if " can " in command:
            assert run("apply", "policies/chat.sql")[0] == 0
        _, out, err = run(*shlex.split(command)[2:])
        assert same(out) == same(output), f"{command}: {err}"
    assert run("matrix", "--event", "message.new", "--snapshot", "policies/matrix.json")[0] == 0
    (asked,) = (text for _, text in BLOCKS if text.startswith("select * from rowcast.explain"))
    rows = db.execute(asked.encode()).fetchall()
    assert [row[3] for row in rows if row[0] == "verdict"] == ["deny", "deny"]


def test_the_table_lists_all_commands(run: Run) -> None:
    told = set(re.findall(r"^\| `rowcast policy (\w+)`", CHAPTER, re.M))
    assert told == {"can", "explain", "test", "matrix", "diff", "apply"}
    for command in told:
        code, out, _ = run(command, "--help")
        assert code == 0
        assert f"rowcast policy {command} " in out.partition("example:")[2]


def pytest_in(folder: Path, server: pg.Server, *options: str) -> subprocess.CompletedProcess[str]:
    """Run pytest as a team would, without the configuration of this project."""
    known = any(found.name == "rowcast_policies" for found in entry_points(group="pytest11"))
    plugin = [] if known else ["-p", "rowcast.policy.pytest_plugin"]
    return subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", *plugin, *options,
            f"--postgresql-host={server.host}", f"--postgresql-port={server.port}",
            f"--postgresql-user={server.user}", f"--postgresql-password={server.password or ''}",
            f"--postgresql-dbname=policy_{os.getpid()}",
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip


def test_the_example_for_pytest_runs(
    server: pg.Server, rowcast_template: Any, tmp_path: Path
) -> None:
    lay_out(tmp_path)
    done = pytest_in(tmp_path, server)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_a_failing_case_explains_itself_in_pytest(
    server: pg.Server, rowcast_template: Any, tmp_path: Path
) -> None:
    lay_out(tmp_path)
    cases = tmp_path / "policies" / "chat.test.toml"
    cases.write_text(cases.read_text().replace('can = "subscribe"', 'cannot = "subscribe"', 1))
    done = pytest_in(tmp_path, server, "-k", "cases")
    assert done.returncode == 1
    assert "expected deny, got allow" in done.stdout
    assert "members listen [permissive] true" in done.stdout


def test_the_plugin_imports_nothing_of_rowcast_before_it_is_used() -> None:
    program = (
        "import sys, rowcast.policy.pytest_plugin;"
        "late = ('psycopg', 'pglast', 'rowcast.install.migrate');"
        "print(*sorted(m for m in sys.modules if m in late))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""
