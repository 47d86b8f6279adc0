"""Checks and fixes the style of policy files with sqlfluff and the shipped configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from rowcast.files import style_config
from rowcast.policy.optional import need

from .findings import Finding, Level

__all__ = ["style_findings", "tidy"]

# Rules of layout and spelling. Other rules rewrite the SQL: for example USING becomes ON.
FORM = "layout,capitalisation,convention.casting_style"


def style_findings(paths: Iterable[Path]) -> Iterator[Finding]:
    """Yield the findings of sqlfluff under its own codes, as info.

    Raises:
        MissingExtraError: sqlfluff is not installed.
    """
    linter = _linter()
    for path in paths:
        linted = linter.lint_string(path.read_text(encoding="utf-8"), fname=str(path))
        for violation in linted.get_violations():
            yield Finding(
                code=violation.rule_code(),
                level=Level.INFO,
                message=violation.desc(),
                file=str(path),
                line=violation.line_no,
                column=violation.line_pos,
            )


def tidy(text: str) -> str:
    """Return SQL in the style of the configuration.

    Raises:
        MissingExtraError: sqlfluff is not installed.
    """
    linted = _linter(FORM).lint_string(text, fname="policy.sql", fix=True)
    fixed, _ = linted.fix_string()
    return str(fixed)


@cache
def _linter(rules: str = "") -> Any:
    config = need("sqlfluff.core").FluffConfig.from_path(
        ".",
        extra_config_path=str(style_config()),
        ignore_local_config=True,
        overrides={"rules": rules} if rules else None,
    )
    return need("sqlfluff.core").Linter(config=config)
