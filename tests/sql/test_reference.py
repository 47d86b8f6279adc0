"""The function reference in sql/README.md is the catalogue's own: signatures and comments.

When they differ the failure prints the table as it has to be, ready to be pasted.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

from style.sources import ROOT

Connection = psycopg.Connection[Any]

HEADING = "## Functions"
HEAD = "| Function | Contract |\n|---|---|\n"
FUNCTIONS = """
select n.nspname || '.' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
    obj_description(p.oid, 'pg_proc')
from pg_proc as p
join pg_namespace as n on n.oid = p.pronamespace
where n.nspname in ('rowcast', 'realtime', 'auth')
order by n.nspname <> 'rowcast', 1
"""


def wanted(tx: Connection) -> str:
    """The table that the catalogue asks for."""
    rows = tx.execute(FUNCTIONS).fetchall()
    assert len(rows) > 40
    assert [name for name, comment in rows if not comment] == [], "without a comment"
    return HEAD + "".join(
        f"| `{_input_only(name)}` | {' '.join(comment.split()).replace('|', chr(92) + '|')} |\n"
        for name, comment in rows
    )


def _input_only(signature: str) -> str:
    """Leave out the columns of the answer: a caller writes only what goes in."""
    name, _, arguments = signature.partition("(")
    into = [a for a in arguments[:-1].split(", ") if not re.match(r"(OUT|TABLE) ", a)]
    return f"{name}({', '.join(into)})"


def test_the_reference_is_that_of_the_catalogue(tx: Connection) -> None:
    text = (ROOT / "sql" / "README.md").read_text()
    section = text.partition(f"{HEADING}\n")[2].partition("\n## ")[0]
    found = "".join(f"{line}\n" for line in section.splitlines() if line.startswith("|"))
    if found != (table := wanted(tx)):
        ours, theirs = set(found.splitlines()), set(table.splitlines())
        pytest.fail(
            f"sql/README.md, {HEADING}: {len(theirs - ours)} rows are missing or differ, and"
            f" {len(ours - theirs)} are not the catalogue's. It has to be:\n\n{table}"
        )
