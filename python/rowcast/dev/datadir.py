"""The directory of an embedded server: creation, locking, ownership and state.

::

    DIR/pgdata         the PostgreSQL data directory, owned by the uid that the server runs as
    DIR/password       the superuser's password, mode 0600, owned by the user of rowcast
    DIR/postgres.log   log of the server since its last start; postgres.log.old before that
    DIR/lock           locked while a server runs; the kernel frees it when the holder dies
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rowcast.errors import EmbeddedError

from .binaries import Identity, reaches

if sys.platform != "win32":
    import fcntl

__all__ = [
    "SUPERUSER",
    "DataDirectory",
    "Postmaster",
    "alive",
    "default_data_dir",
    "server_environment",
]

SUPERUSER = "postgres"
# Seconds for which a start waits for a server that is stopping, and for one that is not: the
# watchdog of a killed rowcast needs a moment before its server begins to stop.
STOPPING_PATIENCE = 30.0
RUNNING_PATIENCE = 1.0
KEPT_FROM_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ", "TMPDIR")


class Postmaster(NamedTuple):
    """The content of ``postmaster.pid`` of a running server."""

    pid: int
    status: str  # starting, ready, stopping, or empty in an early stage of the start


def default_data_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Return the default data directory of an embedded server.

    For root it is below ``/var/lib``: the home of root is closed to the uid that the server runs
    as, and in ``/var/tmp`` any user could have created the directory first.

    Raises:
        EmbeddedError: this user has no home directory.
    """
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/rowcast/dev")
    try:
        if sys.platform == "win32":
            base = Path(env.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Application Support"
        else:
            base = Path(env.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    except RuntimeError as problem:
        raise EmbeddedError(
            "This user does not have a home directory; give a directory with --data."
        ) from problem
    return base / "rowcast" / "dev"


def server_environment() -> dict[str, str]:
    """Return the environment for server programs, without ``PG*`` variables and secrets."""
    kept = {name: os.environ[name] for name in KEPT_FROM_ENVIRONMENT if name in os.environ}
    return {**kept, "LC_ALL": "C"}


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The files of one embedded server, and the checks that a start needs."""

    root: Path

    @property
    def pgdata(self) -> Path:
        return self.root / "pgdata"

    @property
    def password_file(self) -> Path:
        return self.root / "password"

    @property
    def log(self) -> Path:
        return self.root / "postgres.log"

    def prepare(self, identity: Identity) -> None:
        """Create the directory unless it exists.

        Raises:
            EmbeddedError: `identity` cannot reach it, or rowcast did not create it.
        """
        if (self.root / "PG_VERSION").exists():
            raise EmbeddedError(
                f"{self.root} is the data directory of a PostgreSQL that rowcast did not create; "
                "choose another --data, or use that server with --database-url."
            )
        missing = [p for p in (self.root, *self.root.parents) if not p.exists()]
        nearest = missing[-1].parent if missing else self.root
        if identity and not reaches(nearest, identity):
            raise EmbeddedError(
                f"{nearest} is closed to uid {identity['user']}, as which the server runs because "
                f"rowcast is root; choose another --data, for example {default_data_dir()}."
            )
        try:
            for directory in reversed(missing):
                directory.mkdir(exist_ok=True)
                directory.chmod(0o755 if identity else 0o700)
        except OSError as problem:
            raise EmbeddedError(
                f"{self.root} cannot be created ({problem.strerror}); choose another --data."
            ) from problem
        if not os.access(self.root, os.R_OK | os.W_OK | os.X_OK):
            raise EmbeddedError(
                f"{self.root} is not a directory that this user can write; choose another --data."
            )

    def claim(self) -> int:
        """Take the lock; return its descriptor, for the watchdog and to be closed by the caller.

        Waits for a server that is stopping. Removes a ``postmaster.pid`` that a crash left behind
        if another program has its pid now; PostgreSQL itself ignores only those of dead processes.

        Raises:
            EmbeddedError: a server, or the start of one, holds the directory.
        """
        lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        begun = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except BlockingIOError:
                locked = False
            running = self.postmaster()
            if locked and running is None:
                break
            stopping = running is not None and running.status == "stopping"
            patience = STOPPING_PATIENCE if stopping else RUNNING_PATIENCE
            if time.monotonic() - begun > patience:
                os.close(lock)
                raise EmbeddedError(_taken(self.root, running))
            time.sleep(0.02)
        if self._pid_reused():
            (self.pgdata / "postmaster.pid").unlink()
        return lock

    def check(self, major: int, identity: Identity) -> None:
        """Raise EmbeddedError unless a server of this `major` and `identity` can use pgdata."""
        try:
            found = (self.pgdata / "PG_VERSION").read_text().strip()
        except FileNotFoundError as problem:
            raise EmbeddedError(
                f"{self.pgdata} does not contain a PostgreSQL: remove it, or choose another --data."
            ) from problem
        if found != str(major):
            raise EmbeddedError(
                f"{self.pgdata} was created by PostgreSQL {found}, but the programs found are "
                f"PostgreSQL {major}; set ROWCAST_PG_BIN to the programs of {found}, "
                "or choose another --data."
            )
        owner, wanted = self.pgdata.stat().st_uid, identity.get("user", os.geteuid())
        if owner != wanted:
            raise EmbeddedError(
                f"{self.pgdata} belongs to uid {owner}, but the server would run as uid {wanted}; "
                "run rowcast as the user that created it, or choose another --data."
            )
        if not self.password_file.exists():
            raise EmbeddedError(
                f"{self.password_file} is missing, so rowcast cannot log in to {self.pgdata}; "
                "restore it, or choose another --data."
            )

    def initialise(self, binaries: Path, identity: Identity) -> None:
        """Run ``initdb`` beside pgdata and rename: a killed start does not leave half of one.

        Raises:
            EmbeddedError: initdb failed; the message has its reason.
        """
        for leftover in self.root.glob("initdb-*"):
            shutil.rmtree(leftover)
        if not self.password_file.exists():
            self._write_password(secrets.token_urlsafe(24))
        draft = Path(tempfile.mkdtemp(prefix="initdb-", dir=self.root))
        try:
            # The uid of the server cannot read the password file, so initdb gets a copy.
            lent = draft / "password"
            lent.touch(mode=0o600)
            lent.write_text(self.password())
            if identity:
                os.chown(lent, identity["user"], identity["group"])
                os.chown(draft, identity["user"], identity["group"])
            command = [str(binaries / "initdb"), "-D", str(draft / "pgdata"), "-U", SUPERUSER]
            command += ["-E", "UTF8", "--no-locale", "-N", "-A", "scram-sha-256"]
            done = subprocess.run(
                [*command, f"--pwfile={lent}"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                cwd="/",
                env=server_environment(),
                check=False,
                **identity,
            )
            if done.returncode != 0:
                reasons = re.findall(r"(?:error|fatal|detail): *(.+)", done.stderr, re.IGNORECASE)
                reason = "; ".join(reasons) or done.stderr.strip() or "it gave no reason"
                raise EmbeddedError(f"initdb failed in {self.root}: {reason}.")
            (draft / "pgdata").rename(self.pgdata)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def password(self) -> str:
        """Return the superuser's password."""
        return self.password_file.read_text().strip()

    def postmaster(self) -> Postmaster | None:
        """Return the server that runs on this pgdata, or None."""
        recorded = self._recorded()
        if recorded is None or not _serves(recorded.pid, self.pgdata):
            return None
        return recorded

    def _recorded(self) -> Postmaster | None:
        try:
            lines = (self.pgdata / "postmaster.pid").read_text().splitlines()
            # The first line is the pid, and the eighth, which comes later, the status.
            return Postmaster(int(lines[0]), lines[7].strip() if len(lines) > 7 else "")
        except (FileNotFoundError, IndexError, ValueError):
            return None

    def _pid_reused(self) -> bool:
        recorded = self._recorded()
        return recorded is not None and alive(recorded.pid)

    def _write_password(self, password: str) -> None:
        draft = self.password_file.with_suffix(".new")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(password + "\n")
        draft.rename(self.password_file)


def _taken(root: Path, running: Postmaster | None) -> str:
    if running is None:
        return f"Another rowcast is starting a server in {root}; choose another --data."
    return (
        f"A PostgreSQL server already runs in {root} (pid {running.pid}), perhaps that of another "
        "`rowcast dev`; stop it, or choose another --data."
    )


def alive(pid: int) -> bool:
    """Say whether a process with this pid exists, of any user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _serves(pid: int, pgdata: Path) -> bool:
    """Say whether `pid` is a server of `pgdata`; pids are reused, so being alive is not enough."""
    if not alive(pid):
        return False
    if Path("/proc/self/cwd").exists():
        try:
            return os.path.samefile(
                f"/proc/{pid}/cwd", pgdata
            )  # a server's working directory is its pgdata
        except OSError:  # it has ended, or belongs to another user, who cannot open pgdata
            return False
    asked = ["ps", "-o", "args=", "-p", str(pid)]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return "postgres" in said and str(pgdata) in said
