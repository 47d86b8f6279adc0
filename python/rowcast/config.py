"""Every setting of the daemon: one frozen dataclass, read from the environment.

The name of a field in capitals, after ``ROWCAST_``, is its variable. What every writer must
obey, also the one who uses psql, is not here but in the table ``rowcast.settings``.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import ConfigError

__all__ = ["Settings", "setting", "unknown"]

MINIMUM_SECRET = 32
PREFIX = "ROWCAST_"
# Variables that are no settings of a bridge: of `migrate`, of `dev`, of `listen` and `publish`.
OTHERS = (
    "ROWCAST_BRIDGE_PASSWORD",
    "ROWCAST_CALLER_PASSWORD",
    "ROWCAST_PG_BIN",
    "ROWCAST_TOKEN",
    "ROWCAST_URL",
)
# What Kubernetes and Docker put into every container beside a service of the name rowcast, and what
# the tests of rowcast read.
FOREIGN = ("ROWCAST_SERVICE_", "ROWCAST_PORT_", "ROWCAST_TEST_")


def setting(
    default: Any,
    about: str,
    *,
    secret: bool = False,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """Describe a field: default, one sentence for the documentation, masking, bounds."""
    return dataclasses.field(
        default=default,
        repr=not secret,
        metadata={"about": about, "secret": secret, "least": least, "most": most},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The effective settings; see `from_env`."""

    database_url: str = setting("", "Login rowcast_bridge: feed, replay, upkeep.", secret=True)
    caller_url: str = setting("", "Login rowcast_caller: asks policies as the caller.", secret=True)
    listen_url: str = setting(
        "", "Direct connection for LISTEN when database_url is a pooler.", secret=True
    )
    migrate_url: str = setting("", "Login that `rowcast migrate` uses.", secret=True)

    jwt_secret: str = setting("", "Secret of HS256 tokens, at least 32 bytes.", secret=True)
    jwks_url: str = setting("", "Where the public keys of RS256, ES256 and EdDSA tokens are.")
    jwt_audience: str = setting("", "Audience that tokens must name; empty: not checked.")
    jwt_issuer: str = setting("", "Issuer that tokens must name; empty: not checked.")
    jwt_leeway: float = setting(30.0, "Seconds that clocks may differ.", least=0)

    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(8080, "Port to listen on; 0 chooses a free one.", least=0, most=65535)
    reuse_port: Literal["no", "yes"] = setting(
        "no", "Whether other bridges may listen on the same port, too."
    )
    workers: int = setting(1, "Processes that `rowcast serve` runs on the port.", least=1, most=256)
    allowed_origins: tuple[str, ...] = setting(
        ("*",), "Origins, comma separated, whose pages may connect and use REST; * allows all."
    )

    doorbell: Literal["notify", "poll"] = setting(
        "notify", "How to learn of new messages when idle; poll where LISTEN cannot be had."
    )
    poll_min: float = setting(0.002, "Seconds between polls while messages flow.", least=0.0005)
    poll_max: float = setting(0.02, "Seconds between polls when none came.", least=0.001)
    idle_after: float = setting(
        0.1, "Seconds over which messages are counted before falling asleep.", least=0
    )
    ring_rate: float = setting(
        50, "Rings a second from which on publishers are spared and the bridge polls.", least=0
    )
    safety_poll: float = setting(5.0, "Seconds between polls while asleep; 0: none.", least=0)
    probe_interval: float = setting(5.0, "Seconds between checks that LISTEN hears.", least=0.05)
    upkeep_interval: float = setting(20.0, "Seconds between upkeep calls.", least=0.05)
    lease: float = setting(
        15.0, "Seconds after which a bridge that is not heard of counts no more.", least=0.2
    )
    presence_grace: float = setting(
        5.0, "Seconds a member whose connection was lost has to come back.", least=0
    )
    pool_size: int = setting(4, "Connections of each login beside LISTEN and feed.", least=1)
    query_timeout: float = setting(5.0, "Seconds that one question may take.", least=0.1)
    recheck_interval: float = setting(
        60.0, "Seconds after which policies are asked again at the latest.", least=0.1
    )

    heartbeat: float = setting(25.0, "Seconds between pings to a client.", least=1)
    auth_timeout: float = setting(10.0, "Seconds a client has to present a token.", least=0.1)
    max_sessions: int = setting(20000, "Clients at a time.", least=1)
    max_channels: int = setting(100, "Channels per client.", least=1)
    max_frame: int = setting(
        1_048_576, "Bytes of one frame from a client, or of a body.", least=1024
    )
    max_pending: int = setting(100, "Unanswered requests per client.", least=1)
    frame_rate: float = setting(
        100.0, "Frames or requests per second and client, on average.", least=1
    )
    frame_burst: int = setting(500, "Frames or requests a client may send at once.", least=1)
    max_state: int = setting(4096, "Bytes of the presence state of a client.", least=2)
    max_members: int = setting(1000, "Members that may be present in a channel.", least=1)
    max_history: int = setting(1000, "Messages that `history` of a subscribe may ask.", least=0)
    buffer_bytes: int = setting(1_048_576, "Bytes waiting for a slow client.", least=4096)
    slow_grace: float = setting(10.0, "Seconds until a stuck connection is reset.", least=0)
    drain_timeout: float = setting(10.0, "Seconds to close all clients at SIGTERM.", least=0)

    webhook_concurrency: int = setting(
        1000, "Webhook requests at a time; 0: this bridge sends none.", least=0
    )
    webhook_timeout: float = setting(15.0, "Seconds for one webhook request.", least=0.1, most=300)
    webhook_allow_cidrs: tuple[str, ...] = setting(
        (), "Networks, comma separated, that webhooks may reach although they are not public."
    )

    log_format: Literal["text", "json"] = setting("text", "Form of the log lines.")

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read ``ROWCAST_*``; unset or empty variables keep their defaults.

        Raises:
            ConfigError: a value does not fit.
        """
        hints = get_type_hints(cls)
        given: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            text = env.get(variable(field.name), "")
            if text:
                given[field.name] = _parse(field, hints[field.name], text)
        return cls(**given)

    def for_serve(self) -> Settings:
        """Return the settings, complete for `rowcast serve`.

        Raises:
            ConfigError: what a bridge cannot do without is missing.
        """
        for name in ("database_url", "caller_url"):
            if not getattr(self, name):
                raise ConfigError(
                    f"{variable(name)} is not set: give the connection URL of the login"
                    f" {'rowcast_bridge' if name == 'database_url' else 'rowcast_caller'}."
                )
            # Only the scheme: what takes a URL apart quotes a password that it cannot read.
            if getattr(self, name).partition("://")[0] not in ("postgres", "postgresql"):
                raise ConfigError(f"{variable(name)} must look like postgresql://user@host/db.")
        if not self.jwt_secret and not self.jwks_url:
            raise ConfigError(
                "Neither ROWCAST_JWT_SECRET nor ROWCAST_JWKS_URL is set: without one of them"
                " no token can be verified."
            )
        if self.jwt_secret and len(self.jwt_secret.encode()) < MINIMUM_SECRET:
            raise ConfigError(
                f"ROWCAST_JWT_SECRET has fewer than {MINIMUM_SECRET} bytes: it can be guessed."
            )
        return self

    def limits(self) -> dict[str, float]:
        """What clients are told of the limits."""
        return {
            "frame": self.max_frame,
            "channels": self.max_channels,
            "state": self.max_state,
            "history": self.max_history,
            "rate": self.frame_rate,
            "burst": self.frame_burst,
            "pending": self.max_pending,
        }

    def shown(self) -> dict[str, str]:
        """Return variable → effective value, secrets masked, for `rowcast config`."""
        return {
            variable(field.name): "***"
            if field.metadata["secret"] and getattr(self, field.name)
            else _text(getattr(self, field.name))
            for field in dataclasses.fields(self)
        }


def variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"


def unknown(env: Mapping[str, str]) -> dict[str, str | None]:
    """Return the variables ``ROWCAST_*`` that nothing reads, each with the one that is most like
    it, if there is any: a typo would otherwise leave a default in force and say nothing."""
    known = [*(variable(field.name) for field in dataclasses.fields(Settings)), *OTHERS]
    # Without what all of them have: it would make any two of them alike.
    bare = {name.removeprefix(PREFIX): name for name in known}
    return {
        name: next(
            (bare[near] for near in difflib.get_close_matches(name[len(PREFIX) :], bare, 1, 0.75)),
            None,
        )
        for name in env
        if name.startswith(PREFIX) and name not in known and not name.startswith(FOREIGN)
    }


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _parse(field: dataclasses.Field[Any], kind: Any, text: str) -> Any:
    name = variable(field.name)
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ConfigError(f"{name}={text!r}: use {' or '.join(get_args(kind))}.")
        return text
    if get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is str:
        return text
    try:
        value = kind(text)
    except ValueError:
        linked = text.startswith("tcp://")  # no mistake of whoever reads this
        raise ConfigError(
            f"{name}={text!r} is not {'a whole number' if kind is int else 'a number'}"
            + (": Kubernetes sets it, unless enableServiceLinks is false." if linked else ".")
        ) from None
    least = field.metadata["least"]
    if least is not None and not value >= least:
        raise ConfigError(f"{name}={text}: use at least {least:g}.")
    most = field.metadata["most"]
    if most is not None and value > most:
        raise ConfigError(f"{name}={text}: use at most {most:g}.")
    return value
