"""Small releases for tests of the runner: the real roles, and the files that a test writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rowcast.files import sql_files
from rowcast.install.release import Release

MakeRelease = Callable[..., Release]

ADOPT = """
create or replace function rowcast.adopt() returns boolean language sql volatile return false;
"""


@pytest.fixture
def make_release(tmp_path: Path) -> MakeRelease:
    """``make_release("sql of 0001", "sql of 0002", code="…")`` returns a release of these files."""

    def make(*migrations: str, code: str = "") -> Release:
        for folder in ("sql", "migrations"):
            (tmp_path / folder).mkdir(exist_ok=True)
        state = tmp_path / "migrations"
        for old in state.iterdir():
            old.unlink()
        for number, text in enumerate(migrations, start=1):
            (state / f"{number:04}_step_{number}.sql").write_text(text)
        (tmp_path / "sql" / "50_code.sql").write_text(ADOPT + code)
        return Release.of([*sql_files()[:2], *(tmp_path / "sql").iterdir()], state.iterdir())

    return make
