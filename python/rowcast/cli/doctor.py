"""The checks of `rowcast doctor` that the database cannot do itself: logins, LISTEN, tokens.

Basic checks come first. A check is reported as skipped if an earlier one failed or its setting is
missing.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from rowcast import __version__
from rowcast.config import MINIMUM_SECRET, Settings
from rowcast.dev.state import current
from rowcast.errors import ConfigError
from rowcast.install.release import Release
from rowcast.postgres.connect import DatabaseError, connect, hears

from .queries import Queries, open_database

__all__ = ["Finding", "examine"]

CLOCKS_MAY_DIFFER = 5.0
OWN_MACHINE = ("localhost", "127.0.0.1", "::1")
GRANTED = "Give the URL of the login that `rowcast migrate` created."


@dataclass(frozen=True, slots=True)
class Finding:
    """One result: whether it is right (None: not checked), and advice if it is wrong."""

    subject: str
    ok: bool | None
    finding: str
    advice: str = ""

    def __str__(self) -> str:
        mark = {True: "ok  ", False: "fail", None: "skip"}[self.ok]
        advice = f"\n       {self.advice}" if self.ok is False and self.advice else ""
        return f"{mark}   {self.subject}: {self.finding}{advice}"

    def shown(self) -> dict[str, object]:
        """Return the finding as a JSON object."""
        advice = self.advice if self.ok is False else None
        return {"subject": self.subject, "ok": self.ok, "finding": self.finding, "advice": advice}


def examine(env: Mapping[str, str], database_url: str | None = None) -> Iterator[Finding]:
    """Run all checks.

    Args:
        env: the settings; without a database URL, a running `rowcast dev` is checked.
        database_url: the login for the checks in the database; the bridge's by default.

    Raises:
        ConfigError: no database is given, or a setting cannot be parsed.
    """
    settings = Settings.from_env(env)
    running = None if database_url or settings.database_url else current(env)
    bridge = running.bridge_url if running else settings.database_url
    caller = running.caller_url if running else settings.caller_url
    secret = running.jwt_secret if running else settings.jwt_secret
    asked = database_url or bridge
    if not asked:
        raise ConfigError(
            "No database is given: set ROWCAST_DATABASE_URL, use --database-url, or start "
            "`rowcast dev`."
        )
    yield from _login("bridge login", "ROWCAST_DATABASE_URL", bridge)
    yield from _login("caller login", "ROWCAST_CALLER_URL", caller)
    yield from _tokens(settings, secret)
    try:
        with open_database(asked) as database:
            yield from _inside(database, settings, bridge)
    except DatabaseError as problem:
        yield Finding("database", False, str(problem), "All further checks need this database.")


def _login(subject: str, variable: str, url: str) -> Iterator[Finding]:
    if not url:
        yield Finding(subject, None, f"{variable} is not set")
        return
    try:
        with open_database(url) as database:
            login = database.login()
    except DatabaseError as problem:
        yield Finding(subject, False, str(problem), f"This is {variable}.")
        return
    own = login.bridge_faults if variable == "ROWCAST_DATABASE_URL" else login.caller_faults
    faults = (*login.faults, *own)
    if faults:
        yield Finding(subject, False, f"{login.name} {' and '.join(faults)}", GRANTED)
    else:
        yield Finding(
            subject, True, f"{login.name} connects, and has only the rights that it needs"
        )


def _tokens(settings: Settings, secret: str) -> Iterator[Finding]:
    if secret:
        yield Finding(
            "jwt secret",
            len(secret.encode()) >= MINIMUM_SECRET,
            f"{len(secret.encode())} bytes",
            f"Set ROWCAST_JWT_SECRET to at least {MINIMUM_SECRET} random bytes.",
        )
    if settings.jwks_url:
        yield _jwks(settings.jwks_url)
    if not secret and not settings.jwks_url:
        yield Finding("tokens", None, "neither ROWCAST_JWT_SECRET nor ROWCAST_JWKS_URL is set")


def _jwks(url: str) -> Finding:
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in OWN_MACHINE:
        return Finding(
            "jwks",
            False,
            f"{url} is not https",
            "Use https: an attacker who replaces the keys can sign tokens.",
        )
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            keys = json.loads(answer.read(262_144))["keys"]
        return Finding("jwks", bool(keys), f"{len(keys)} keys at {url}", "Publish a key there.")
    except (OSError, ValueError, KeyError, TypeError) as problem:
        return Finding("jwks", False, f"{url}: {problem}", "Check ROWCAST_JWKS_URL.")


def _inside(database: Queries, settings: Settings, bridge: str) -> Iterator[Finding]:
    ahead = database.clock_lead()
    yield Finding(
        "clocks",
        abs(ahead) <= CLOCKS_MAY_DIFFER,
        f"the database's clock differs by {abs(ahead):.1f} s",
        "Synchronize both with NTP: tokens and cursors contain times.",
    )
    status = database.status()
    yield _versions(status["version"])
    yield from _listen(settings, bridge, str(status["doorbell"]))
    for row in database.doctor():
        yield Finding(row["subject"], row["ok"], row["finding"], row["advice"])


def _versions(found: int | None) -> Finding:
    ours = Release.shipped().version
    if found is not None and found > ours:
        advice = "Install the newer rowcast that migrated this database."
    else:
        advice = "Run `rowcast migrate`."
    return Finding(
        "versions",
        found == ours,
        f"the database is at migration {found}, rowcast {__version__} is at {ours}",
        advice,
    )


def _listen(settings: Settings, bridge: str, doorbell: str) -> Iterator[Finding]:
    url = settings.listen_url or bridge
    if settings.doorbell == "poll" or doorbell == "poll":
        yield Finding("listen", True, "not needed: the bridge polls")
        return
    if not url:
        yield Finding("listen", None, "ROWCAST_DATABASE_URL is not set")
        return
    variable = "ROWCAST_LISTEN_URL" if settings.listen_url else "ROWCAST_DATABASE_URL"
    try:
        with connect(url) as connection:
            pooled = connection.pooled()
        heard = hears(url)
    except DatabaseError as problem:
        yield Finding("listen", False, str(problem), f"Check {variable}.")
        return
    finding = "LISTEN receives NOTIFY" if heard else "LISTEN does not receive NOTIFY"
    yield Finding(
        "listen",
        heard,
        f"{finding} through {variable}" + (", which is a pooler" if pooled else ""),
        "Set ROWCAST_LISTEN_URL to a direct connection, or ROWCAST_DOORBELL=poll.",
    )
