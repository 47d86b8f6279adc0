"""Makes the installation one SQL script, for databases reached only with psql or a web console.

The script is one transaction of plain SQL without psql commands. It leaves the same records as
`migrate`, so that a later `rowcast migrate` has nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterator

from rowcast import __version__

from .release import Release, SqlFile
from .runner import LOCK, SETTINGS

__all__ = ["BACK", "LEDGER", "OWNER", "install_script", "roles_script"]

OWNER, BACK = "set local role rowcast_owner;", "reset role;"

# Applied files: migrations by number, code by checksum.
LEDGER = """\
create table if not exists rowcast.migration (
    version integer primary key,
    name text not null,
    sha256 text not null,
    applied_at timestamptz not null default now(),
    ms integer,
    applied_by name not null default current_user
);
create table if not exists rowcast.code (
    name text primary key,
    sha256 text not null,
    applied_at timestamptz not null default now()
);
revoke all on rowcast.migration, rowcast.code from public;"""

GUARD = """\
do $$
declare
    v_at integer := 0;
begin
    if to_regclass('rowcast.migration') is not null then
        execute 'select coalesce(max(m.version), 0) from rowcast.migration as m' into v_at;
    end if;
    if v_at <> {since} then
        raise exception 'the database is at migration %, but this script starts after {since}', v_at
        using hint = 'Run `rowcast migrate`, or what `rowcast sql --since ' || v_at || '` prints.';
    end if;
end;
$$;"""


def roles_script(release: Release | None = None) -> str:
    """Return the script of the roles, which needs CREATEROLE; run it before restoring a dump."""
    release = release or Release.shipped()
    return _script("roles", map(_file, release.first[:1]))


def install_script(release: Release | None = None, *, since: int = 0) -> str:
    """Return the script that upgrades a database from migration `since` to this version.

    Args:
        release: the files; by default the shipped ones.
        since: the newest migration in the database; 0 for one without rowcast.
    """
    release = release or Release.shipped()
    return _script("installation", _steps(release, since))


def _steps(release: Release, since: int) -> Iterator[str]:
    yield f"select pg_advisory_xact_lock({LOCK});"
    yield GUARD.format(since=since)
    yield from map(_file, release.first)
    yield f"{OWNER}\n{LEDGER}\n{BACK}"
    for file in release.migrations:
        if file.version > since:
            yield f"{OWNER}\n{_file(file)}\n{BACK}"
            yield (
                "insert into rowcast.migration (version, name, sha256) values "
                f"({file.version}, '{file.name}', '{file.sha256}');"
            )
    for file in release.code:
        yield f"{OWNER}\n{_file(file)}\n{BACK}"
    rows = ",\n".join(f"    ('{name}', '{sha}')" for name, sha in release.checksums.items())
    yield f"delete from rowcast.code;\ninsert into rowcast.code (name, sha256) values\n{rows};"
    yield f"{OWNER}\nselect rowcast.adopt();\n{BACK}"


def _script(what: str, steps: Iterator[str]) -> str:
    settings = "\n".join(f"set local {name} = {setting};" for name, setting in _local().items())
    head = f"-- rowcast {__version__}: the {what} as one transaction; an error undoes all of it."
    begin = f"{head}\nbegin isolation level read committed read write;\n{settings}"
    return "\n\n".join([begin, *steps, "commit;\n"])


def _local() -> dict[str, str]:
    # search_path is a list and not quoted; BEGIN sets the defaults of the transaction.
    return {
        name: setting if name == "search_path" else f"'{setting}'"
        for name, setting in SETTINGS.items()
        if not name.startswith("default_transaction_")
    }


def _file(file: SqlFile) -> str:
    return f"-- {file.label}\n{file.text.rstrip()}"
