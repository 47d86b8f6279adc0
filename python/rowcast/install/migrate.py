"""Installs or upgrades rowcast in a database.

The order is: roles, each new migration in its own transaction, then all code in one. One runner at
a time works on a database; the others wait and then have nothing to do. Roles belong to the
cluster, so a run in another database may change them at the same time: such a conflict is retried,
as is a lock that the application holds. Every refusal happens before anything is changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from psycopg import errors, sql

from rowcast import __version__
from rowcast.errors import MigrationError

from .release import Release, SqlFile
from .runner import Connection, Tell, alone, attempt, connect_primary, run_file, value
from .script import BACK, LEDGER, OWNER, install_script, roles_script

__all__ = [
    "Applied",
    "Pending",
    "apply_policy_file",
    "install_script",
    "migrate",
    "pending",
    "roles_script",
]

RECORD = "insert into rowcast.migration (version, name, sha256, ms) values (%s, %s, %s, %s)"
RECORD_CODE = "insert into rowcast.code (name, sha256) values (%s, %s)"

PASSWORDS = {
    "ROWCAST_BRIDGE_PASSWORD": "rowcast_bridge",
    "ROWCAST_CALLER_PASSWORD": "rowcast_caller",
}


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of a run: names of migrations, whether code was applied, the new version."""

    migrations: tuple[str, ...]
    code: bool
    version: int


@dataclass(frozen=True, slots=True)
class Pending:
    """What a run would do; ``version`` is that of the database, 0 without rowcast."""

    migrations: tuple[str, ...]
    code: bool
    version: int


def migrate(
    url: str,
    *,
    on_event: Tell | None = None,
    reapply: bool = False,
    release: Release | None = None,
    env: Mapping[str, str] = os.environ,
) -> Applied:
    """Upgrade the database at `url` to the version of this package.

    Args:
        url: a direct connection, or one through a pooler in session mode, of a role with
            CREATEROLE and CREATE on the database and on schema public, or of a superuser.
        on_event: called with a line of text for each step.
        reapply: apply the code again although it is unchanged.
        release: the files; by default the shipped ones.
        env: may contain passwords for the two logins of the daemon.

    Raises:
        MigrationError: the database is newer, a released file was edited, rights are missing, a
            lock could not be taken, or the server is not suitable. The failed step is rolled back.
    """
    tell = on_event or _silent
    release = release or Release.shipped()
    with connect_primary(url) as conn, alone(conn, tell):
        prepare = partial(_prepare, conn, release, env)
        todo = attempt(conn, "roles and schema", prepare, tell)
        new = release.migrations[len(release.migrations) - len(todo.migrations) :]
        for file in new:
            ms = attempt(conn, file.label, partial(_apply, conn, file), tell)
            tell(f"{file.name} applied in {ms} ms")
        code = bool(new) or todo.code or reapply
        if code:
            attempt(conn, "sql/", partial(_apply_code, conn, release), tell)
            tell(f"code applied: {len(release.code)} files")
        if attempt(conn, "rowcast.adopt()", partial(_adopt, conn), tell) and todo.version:
            tell("restored from another cluster: old cursors are no longer valid, history is kept")
    return Applied(todo.migrations, code, release.version)


def pending(url: str, *, release: Release | None = None) -> Pending:
    """Return what `migrate` would do, without changing anything.

    Raises:
        MigrationError: `migrate` would refuse; the message says why.
    """
    compare = partial(_compare, release=release or Release.shipped())
    with connect_primary(url) as conn:
        return attempt(conn, "rowcast.migration", partial(compare, conn), _silent)


def apply_policy_file(url: str, path: Path | str, *, on_event: Tell | None = None) -> None:
    """Run a file of policies as the role of `url`, in one transaction.

    CREATE POLICY locks its table exclusively, and writers queue behind a waiting lock. So the wait
    is short and repeated: a late policy is better than blocked writers.

    Raises:
        MigrationError: the file is wrong, or the role does not own the tables.
    """
    try:
        file = replace(SqlFile.read(Path(path)), folder=str(Path(path).parent))
    except OSError as problem:
        raise MigrationError(f"{path} cannot be read: {problem.strerror}.") from problem
    with connect_primary(url) as conn:
        if value(conn, "select to_regclass('public.realtime_messages')") is None:
            raise MigrationError(
                "This database does not have rowcast yet: run `rowcast migrate` first."
            )
        if not value(conn, "select pg_has_role('rowcast_owner', 'usage')"):
            raise MigrationError(
                f"{conn.info.user} may not write policies for rowcast: let an administrator "
                f'run: grant rowcast_owner to "{conn.info.user}";'
            )
        conn.execute("reset search_path")  # policy files may use unqualified names
        attempt(conn, file.label, partial(run_file, conn, file), on_event or _silent)


def _silent(_: str) -> None:
    """Discard an event."""


def _prepare(conn: Connection, release: Release, env: Mapping[str, str]) -> Pending:
    for file in release.first:
        run_file(conn, file)
    if value(conn, "select to_regclass('rowcast.migration')") is None:
        conn.execute(f"{OWNER} {LEDGER} {BACK}".encode())
    _set_passwords(conn, env)
    return _compare(conn, release)


def _apply(conn: Connection, file: SqlFile) -> int:
    started = time.monotonic()
    conn.execute(OWNER)
    run_file(conn, file)
    conn.execute(BACK)
    ms = round((time.monotonic() - started) * 1000)
    conn.execute(RECORD, [file.version, file.name, file.sha256, ms])
    return ms


def _apply_code(conn: Connection, release: Release) -> None:
    for file in release.code:
        conn.execute(OWNER)
        run_file(conn, file)
        conn.execute(BACK)
    conn.execute("delete from rowcast.code")
    with conn.cursor() as cursor:
        cursor.executemany(RECORD_CODE, list(release.checksums.items()))


def _adopt(conn: Connection) -> bool:
    conn.execute(OWNER)
    return bool(value(conn, "select rowcast.adopt()"))


def _compare(conn: Connection, release: Release) -> Pending:
    if value(conn, "select to_regclass('rowcast.migration')") is None:
        return Pending(tuple(file.name for file in release.migrations), True, 0)
    known = {file.version: file for file in release.migrations}
    rows = conn.execute(
        "select version, name, sha256 from rowcast.migration order by version"
    ).fetchall()
    at = rows[-1][0] if rows else 0
    if at > release.version:
        raise MigrationError(
            f"The database is at migration {at} ({rows[-1][1]}), but rowcast {__version__} ends "
            f"at {release.version}: install the newer rowcast that migrated it."
        )
    for version, name, sha256 in rows:
        file = known.pop(version, None)
        if file is None or file.name != name or file.sha256 != sha256:
            raise MigrationError(
                f"migrations/{name}.sql differs from what was applied to this database: "
                "restore the released file, and write the change as a new migration."
            )
    if any(version < at for version in known):
        missed = known[min(known)].label
        raise MigrationError(f"{missed} comes before migration {at}, which is applied: renumber.")
    code = dict(conn.execute("select name, sha256 from rowcast.code").fetchall())
    return Pending(tuple(f.name for f in known.values()), code != release.checksums, at)


def _set_passwords(conn: Connection, env: Mapping[str, str]) -> None:
    for variable, role in PASSWORDS.items():
        if not env.get(variable):
            continue
        # A verifier instead of the password, because the server may log the statement.
        verifier = conn.pgconn.encrypt_password(
            env[variable].encode(), role.encode(), b"scram-sha-256"
        )
        statement = sql.SQL("alter role {} password {}").format(
            sql.Identifier(role), sql.Literal(verifier.decode())
        )
        try:
            conn.execute(statement)
        except errors.InsufficientPrivilege as problem:
            raise MigrationError(
                f"{variable} is set, but this role may not set the password of {role}: "
                f"unset it, and let the creator of {role} run: \\password {role}"
            ) from problem
