"""What the tests of upgrades share: releases cut short, and the shape of a database as text."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace

import psycopg

from rowcast.install.release import Release, SqlFile
from support import pg

__all__ = ["CATALOGUE", "adopt_only", "program", "shape", "until"]

# What pg_dump does not show in a comparable way, or not at all.
CATALOGUE = """
select 'function', p.oid::regprocedure::text, p.proowner::regrole::text, p.provolatile,
    p.prosecdef, p.proconfig::text, p.prosrc, coalesce(pg_get_function_sqlbody(p.oid), ''),
    (
        select array_agg(a::text order by a::text)
        from unnest(coalesce(p.proacl, acldefault('f', p.proowner))) as a
    )::text
from pg_proc as p where p.pronamespace = 'rowcast'::regnamespace or p.prosrc like '%rowcast%'
union all
select 'policy', p.polrelid::regclass::text || ' ' || p.polname, p.polroles::regrole[]::text,
    p.polcmd, p.polpermissive, pg_get_expr(p.polqual, p.polrelid),
    pg_get_expr(p.polwithcheck, p.polrelid), '', ''
from pg_policy as p
union all
select 'table', c.oid::regclass::text, c.relowner::regrole::text, c.relpersistence,
    c.relrowsecurity, c.relforcerowsecurity::text, c.reloptions::text, c.relkind::text,
    (
        select array_agg(a::text order by a::text)
        from unnest(coalesce(
            c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner)
        )) as a
    )::text
from pg_class as c
where c.relkind not in ('i', 'I', 't') and (
    c.relnamespace = 'rowcast'::regnamespace or c.oid in (
        'public.realtime_channels'::regclass, 'public.realtime_messages'::regclass
    )
)
union all
select 'trigger', t.tgrelid::regclass::text || ' ' || t.tgname, t.tgfoid::regproc::text,
    t.tgenabled, t.tgisinternal, pg_get_triggerdef(t.oid), '', '', ''
from pg_trigger as t where not t.tgisinternal
order by 1, 2
"""


def program(name: str) -> str:
    """Return a client program of the version of the tests' server."""
    return str(pg.choose_binaries() / name)


def shape(url: str) -> list[str]:
    """Return schema and catalogue of a database as lines, to be compared with another's."""
    command = [program("pg_dump"), "-s", "-n", "rowcast", "-n", "public", url]
    dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # \restrict carries a random word; comments carry names of programs and versions
    lines = [line for line in dump.splitlines() if not re.match(r"--|\\|\s*$", line)]
    with psycopg.connect(url) as conn:
        lines += [repr(row) for row in conn.execute(CATALOGUE.encode())]
    return lines


def until(release: Release, version: int) -> Release:
    """Return the release as it was when its newest migration was `version`, without its code."""
    state = tuple(file for file in release.migrations if file.version <= version)
    return replace(release, migrations=state, code=(adopt_only(),))


def adopt_only() -> SqlFile:
    """Return the least code that a release can have."""
    text = "create or replace function rowcast.adopt() returns boolean language sql return false;"
    return SqlFile("sql", "10_old", text, "old")
