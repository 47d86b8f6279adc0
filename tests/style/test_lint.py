"""The linters and type checker pass with the rules that pyproject.toml selects."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from style.sources import ROOT

COMMANDS = {
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "--diff", "."],
    "mypy": ["mypy"],
    "sqlfluff": ["sqlfluff", "lint", "--processes", "1", "sql", "migrations", "policies"],
}


def run(*command: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, input=text, capture_output=True, text=True
    )


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_tree_passes(command: list[str]) -> None:
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr


def lint_imports(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", program, "--no-cache", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_folders_import_only_from_folders_below_them() -> None:
    done = lint_imports()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_an_import_that_runs_upwards_is_found(tmp_path: Path) -> None:
    contract = tmp_path / "upwards.toml"
    contract.write_text(
        '[tool.importlinter]\nroot_package = "rowcast"\n'
        '[[tool.importlinter.contracts]]\nname = "upside down"\ntype = "layers"\n'
        'layers = ["rowcast.errors", "rowcast.bridge"]\n'
    )
    assert lint_imports("--config", str(contract)).returncode == 1


def test_sqlfluff_reads_files_of_any_size() -> None:
    """By default it skips files over 20,000 bytes and succeeds."""
    bad = "select 1;\n" * 2500 + "SELECT 1;\n"
    done = run("sqlfluff", "lint", "--disable-progress-bar", "-", text=bad)
    assert done.returncode == 1
    assert "CP01" in done.stdout


def test_mypy_is_strict(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f(a): return a\n")
    done = run("mypy", "--no-incremental", str(bad))
    assert done.returncode == 1
    assert "no-untyped-def" in done.stdout
