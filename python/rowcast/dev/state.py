"""What `rowcast dev` leaves for later: keys for its next start, and itself for other commands.

::

    DATA/keys.json           the secret, and whether the first start came to its end
    CACHE/rowcast/dev/PID    a running `rowcast dev`: how other commands of this user find it

All of it is mode 0600: whoever reads it may do everything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rowcast import tokens
from rowcast.config import Settings
from rowcast.errors import RowcastError

from .datadir import alive

__all__ = ["Keys", "Notes", "Running", "announced", "current", "login_password"]

TEN_YEARS = 10 * 31_536_000


@dataclass(frozen=True, slots=True)
class Keys:
    """The secret of the tokens, and two tokens: of everybody, and of who administers."""

    jwt_secret: str = field(repr=False)
    anon_key: str = field(repr=False)
    admin_key: str = field(repr=False)


@dataclass(slots=True)
class Notes:
    """The notes in one data directory; `save` after a change."""

    path: Path
    jwt_secret: str
    issued_at: int
    prepared: bool = False  # demo channels and policies are in
    port: int | None = None  # of PostgreSQL, to be the same next time if it is free

    @classmethod
    def load(cls, home: Path) -> Notes:
        """Read the notes in `home`, or make up new ones.

        Raises:
            RowcastError: there are some and they cannot be read.
        """
        path = home / "keys.json"
        try:
            found = json.loads(path.read_text())
            return cls(path, **found)
        except (FileNotFoundError, NotADirectoryError):
            return cls(path, secrets.token_urlsafe(36), int(time.time()))
        except PermissionError as problem:
            raise RowcastError(
                f"{path} belongs to another user: run rowcast as that one, or choose another "
                "--data."
            ) from problem
        except (OSError, ValueError, TypeError) as problem:
            raise RowcastError(
                f"{path} cannot be read ({problem}): remove it, and new keys will be made."
            ) from problem

    def save(self) -> None:
        """Write the notes.

        Raises:
            RowcastError: they cannot be written.
        """
        noted = dataclasses.asdict(self)
        del noted["path"]
        try:
            _write(self.path, noted)
        except OSError as problem:
            raise RowcastError(
                f"{self.path} cannot be written ({problem.strerror}): choose another --data."
            ) from problem

    def keys(self, settings: Settings) -> Keys:
        """Return the keys: the same ones at every start, unless the settings name a secret."""
        secret = settings.jwt_secret or self.jwt_secret
        standing: dict[str, Any] = {"iat": self.issued_at, "exp": self.issued_at + TEN_YEARS}
        if settings.jwt_audience:
            standing["aud"] = settings.jwt_audience
        if settings.jwt_issuer:
            standing["iss"] = settings.jwt_issuer
        anon, admin = (
            tokens.sign(secret, {"role": role, **standing}) for role in ("anon", "rowcast_admin")
        )
        return Keys(secret, anon, admin)


@dataclass(frozen=True, slots=True)
class Running:
    """A running `rowcast dev`, as the other commands need it."""

    url: str
    database_url: str = field(repr=False)
    anon_key: str = field(repr=False)
    admin_key: str = field(repr=False)
    jwt_secret: str = field(repr=False)
    pid: int
    bridge_url: str = field(repr=False)
    caller_url: str = field(repr=False)

    def line(self) -> str:
        """The one line that `rowcast dev --json` prints."""
        shown = dataclasses.asdict(self)
        del shown["bridge_url"], shown["caller_url"]
        return json.dumps(shown)


@contextmanager
def announced(running: Running, env: Mapping[str, str] = os.environ) -> Iterator[str | None]:
    """Let other commands of this user find `running` for the length of a block.

    Yields:
        Why they cannot, when this user has no place for such things; None when they can.
    """
    try:
        entry = _entries(env) / str(running.pid)
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(entry, dataclasses.asdict(running))
    except (OSError, RuntimeError) as problem:
        yield str(problem)
        return
    try:
        yield None
    finally:
        entry.unlink(missing_ok=True)


def current(env: Mapping[str, str] = os.environ) -> Running | None:
    """Return the newest `rowcast dev` of this user that runs, or None."""
    try:
        entries = sorted(
            (path for path in _entries(env).iterdir() if path.name.isdigit()),
            key=lambda path: path.stat().st_mtime,
            reverse=True,
        )
    except (OSError, RuntimeError):
        return None
    for entry in entries:
        if not alive(int(entry.name)):
            entry.unlink(missing_ok=True)  # of one that was killed
            continue
        try:
            return Running(**json.loads(entry.read_text()))
        except (OSError, ValueError, TypeError):
            continue  # just ended, or of another version
    return None


def login_password(login: str, home: Path) -> str:
    """Return the password that `rowcast dev` gives a login on a server that is not its own.

    The same for all of this user: logins belong to the server, so two of them, for two of its
    databases, would take them away from each other.

    Raises:
        RowcastError: the key of these passwords can be neither read nor written.
    """
    path = home / "logins.key"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
        except FileExistsError:
            pass  # of an earlier start
        key = path.read_bytes()
    except OSError as problem:
        raise RowcastError(
            f"{path} cannot be used ({problem.strerror}): set ROWCAST_BRIDGE_PASSWORD and "
            "ROWCAST_CALLER_PASSWORD instead."
        ) from problem
    return hmac.new(key, login.encode(), hashlib.sha256).hexdigest()


def _entries(env: Mapping[str, str]) -> Path:
    if env.get("XDG_CACHE_HOME"):
        return Path(env["XDG_CACHE_HOME"]) / "rowcast" / "dev"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "rowcast" / "dev"
    return Path.home() / ".cache" / "rowcast" / "dev"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
    draft.replace(path)
