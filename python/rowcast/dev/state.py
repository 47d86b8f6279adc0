"""The files of `rowcast dev`: its keys for the next start, and its address for other commands.

::

    DATA/keys.json           the secret, and whether the first start was completed
    CACHE/rowcast/dev/PID    a running `rowcast dev`, for the other commands of this user

The files have mode 0600, because their secrets give full access.
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

__all__ = ["DevState", "Keys", "Running", "announced", "current", "login_password"]

TEN_YEARS = 10 * 31_536_000


@dataclass(frozen=True, slots=True)
class Keys:
    """The secret of the tokens, and two tokens: of anonymous clients and of an administrator."""

    jwt_secret: str = field(repr=False)
    anon_key: str = field(repr=False)
    admin_key: str = field(repr=False)


@dataclass(slots=True)
class DevState:
    """The content of `keys.json` in one data directory; call `save` after a change."""

    path: Path
    jwt_secret: str
    issued_at: int
    prepared: bool = False  # demo channels and policies were created
    port: int | None = None  # port of PostgreSQL, used again if it is free

    @classmethod
    def load(cls, home: Path) -> DevState:
        """Read the state in `home`, or create a new one.

        Raises:
            RowcastError: the file exists but cannot be read.
        """
        path = home / "keys.json"
        try:
            found = json.loads(path.read_text())
            return cls(path, **found)
        except (FileNotFoundError, NotADirectoryError):
            return cls(path, secrets.token_urlsafe(36), int(time.time()))
        except PermissionError as problem:
            raise RowcastError(
                f"{path} belongs to another user: run rowcast as that user, or choose another "
                "--data."
            ) from problem
        except (OSError, ValueError, TypeError) as problem:
            raise RowcastError(
                f"{path} cannot be read ({problem}): remove it, and rowcast creates new keys."
            ) from problem

    def save(self) -> None:
        """Write the file.

        Raises:
            RowcastError: it cannot be written.
        """
        content = dataclasses.asdict(self)
        del content["path"]
        try:
            _write(self.path, content)
        except OSError as problem:
            raise RowcastError(
                f"{self.path} cannot be written ({problem.strerror}): choose another --data."
            ) from problem

    def keys(self, settings: Settings) -> Keys:
        """Return the keys, which are the same at every start unless the settings give a secret."""
        secret = settings.jwt_secret or self.jwt_secret
        common: dict[str, Any] = {"iat": self.issued_at, "exp": self.issued_at + TEN_YEARS}
        if settings.jwt_audience:
            common["aud"] = settings.jwt_audience
        if settings.jwt_issuer:
            common["iss"] = settings.jwt_issuer
        anon, admin = (
            tokens.sign(secret, {"role": role, **common}) for role in ("anon", "rowcast_admin")
        )
        return Keys(secret, anon, admin)


@dataclass(frozen=True, slots=True)
class Running:
    """The addresses and keys of a running `rowcast dev`, for the other commands."""

    url: str
    database_url: str = field(repr=False)
    anon_key: str = field(repr=False)
    admin_key: str = field(repr=False)
    jwt_secret: str = field(repr=False)
    pid: int
    bridge_url: str = field(repr=False)
    caller_url: str = field(repr=False)

    def line(self) -> str:
        """Return the line that `rowcast dev --json` prints."""
        shown = dataclasses.asdict(self)
        del shown["bridge_url"], shown["caller_url"]
        return json.dumps(shown)


@contextmanager
def announced(running: Running, env: Mapping[str, str] = os.environ) -> Iterator[str | None]:
    """Let other commands of this user find `running` for the length of a block.

    Yields:
        None, or the reason why the file for the other commands cannot be written.
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
    """Return the newest running `rowcast dev` of this user, or None."""
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
            entry.unlink(missing_ok=True)  # its process was killed
            continue
        try:
            return Running(**json.loads(entry.read_text()))
        except (OSError, ValueError, TypeError):
            continue  # it has just ended, or another version wrote it
    return None


def login_password(login: str, home: Path) -> str:
    """Return the password that `rowcast dev` sets for a login on a server that it did not start.

    It is the same for every `rowcast dev` of this user. Logins belong to the server, so two of
    them, for two of its databases, would otherwise overwrite each other's passwords.

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
            pass  # created by an earlier start
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
