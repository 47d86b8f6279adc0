"""The settings of the daemon: one frozen dataclass, read from the environment.

The variable of a field is its name in capitals after ``ROWCAST_``. Limits for all writers, those
with psql included, are in the table ``rowcast.settings`` instead.
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
# variables of `migrate`, `dev`, `listen` and `publish`, which are not settings of a bridge
OTHERS = (
    "ROWCAST_BRIDGE_PASSWORD",
    "ROWCAST_CALLER_PASSWORD",
    "ROWCAST_PG_BIN",
    "ROWCAST_TOKEN",
    "ROWCAST_URL",
)
# Prefixes of variables that Kubernetes and Docker set for a service named rowcast, and of those
# that the tests of rowcast read.
FOREIGN = ("ROWCAST_SERVICE_", "ROWCAST_PORT_", "ROWCAST_TEST_")


def setting(
    default: Any,
    about: str,
    *,
    secret: bool = False,
    least: float | None = None,
    most: float | None = None,
    public: bool = True,
) -> Any:
    """Return a dataclass field with the metadata of a setting.

    Args:
        default: its value when the variable is unset.
        about: one sentence for the documentation, with the unit.
        secret: whether `rowcast config` masks the value.
        least: the smallest allowed value.
        most: the largest allowed value.
        public: False for a setting that only tests change; the documentation leaves it out.
    """
    return dataclasses.field(
        default=default,
        repr=not secret,
        metadata={
            "about": about,
            "secret": secret,
            "least": least,
            "most": most,
            "public": public,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The effective settings; see `from_env`."""

    database_url: str = setting(
        "",
        "Connection URL of the login rowcast_bridge, which reads the feed and does upkeep.",
        secret=True,
    )
    caller_url: str = setting(
        "", "Connection URL of the login rowcast_caller, which asks the policies.", secret=True
    )
    listen_url: str = setting(
        "",
        "Direct connection URL for LISTEN, when database_url is a pooler.",
        secret=True,
    )
    migrate_url: str = setting(
        "", "Connection URL of the role that runs `rowcast migrate`.", secret=True
    )

    jwt_secret: str = setting("", "Secret of HS256 tokens, at least 32 bytes.", secret=True)
    jwks_url: str = setting(
        "", "URL of the JWKS with the public keys of RS256, ES256 and EdDSA tokens."
    )
    jwt_audience: str = setting("", "Required audience of tokens; empty: not checked.")
    jwt_issuer: str = setting("", "Required issuer of tokens; empty: not checked.")
    jwt_leeway: float = setting(
        30.0, "Seconds by which clocks may differ when tokens are checked.", least=0
    )

    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(8080, "Port to listen on; 0 chooses a free one.", least=0, most=65535)
    reuse_port: Literal["no", "yes"] = setting(
        "no", "Whether other bridges may listen on the same port."
    )
    workers: int = setting(
        1, "Number of processes that `rowcast serve` runs on the port.", least=1, most=256
    )
    allowed_origins: tuple[str, ...] = setting(
        ("*",), "Origins, comma separated, whose pages may connect and use REST; * allows all."
    )

    doorbell: Literal["notify", "poll"] = setting(
        "notify", "How an idle bridge learns of new messages; poll where LISTEN is not possible."
    )
    poll_min: float = setting(
        0.002, "Seconds between polls while messages arrive.", least=0.0005, public=False
    )
    poll_max: float = setting(
        0.02, "Seconds between polls while no messages arrive.", least=0.001, public=False
    )
    idle_after: float = setting(
        0.1,
        "Seconds over which messages are counted before the bridge goes to sleep.",
        least=0,
        public=False,
    )
    ring_rate: float = setting(
        50,
        "Notifications per second above which the bridge polls, to relieve publishers.",
        least=0,
        public=False,
    )
    safety_poll: float = setting(
        5.0, "Seconds between polls while the bridge sleeps; 0: none.", least=0, public=False
    )
    probe_interval: float = setting(
        5.0, "Seconds between checks that LISTEN receives notifications.", least=0.05, public=False
    )
    upkeep_interval: float = setting(
        20.0, "Seconds between upkeep calls.", least=0.05, public=False
    )
    lease: float = setting(
        15.0, "Seconds without a heartbeat before a bridge is considered dead.", least=0.2
    )
    presence_grace: float = setting(
        5.0, "Seconds for which a disconnected member stays present and may reconnect.", least=0
    )
    pool_size: int = setting(
        4, "Connections per login, in addition to those for LISTEN and the feed.", least=1
    )
    query_timeout: float = setting(5.0, "Seconds that one query may take.", least=0.1)
    recheck_interval: float = setting(
        60.0,
        "Longest time in seconds between two checks of a subscription against the policies.",
        least=0.1,
    )

    heartbeat: float = setting(25.0, "Seconds between pings to a client.", least=1)
    auth_timeout: float = setting(
        10.0, "Seconds within which a client must send a token.", least=0.1, public=False
    )
    max_sessions: int = setting(20000, "Maximum number of connected clients.", least=1)
    max_channels: int = setting(100, "Maximum number of channels per client.", least=1)
    max_frame: int = setting(
        1_048_576,
        "Maximum size in bytes of a frame from a client, or of a request body.",
        least=1024,
    )
    max_pending: int = setting(
        100, "Maximum number of unanswered requests per client.", least=1, public=False
    )
    frame_rate: float = setting(
        100.0, "Frames or requests per second and client, on average.", least=1
    )
    frame_burst: int = setting(500, "Frames or requests that a client may send at once.", least=1)
    max_state: int = setting(
        4096, "Maximum size in bytes of the presence state of a client.", least=2
    )
    max_members: int = setting(1000, "Maximum number of members present in a channel.", least=1)
    max_history: int = setting(
        1000, "Maximum number of messages for `history` of a subscribe.", least=0
    )
    buffer_bytes: int = setting(
        1_048_576, "Bytes buffered for a slow client before it is disconnected.", least=4096
    )
    slow_grace: float = setting(
        10.0, "Seconds until a stuck connection is reset.", least=0, public=False
    )
    drain_timeout: float = setting(
        10.0, "Seconds within which all clients are closed after SIGTERM.", least=0
    )

    webhook_concurrency: int = setting(
        1000, "Maximum number of simultaneous webhook requests; 0: this bridge sends none.", least=0
    )
    webhook_timeout: float = setting(
        15.0, "Seconds that one webhook request may take.", least=0.1, most=300
    )
    webhook_allow_cidrs: tuple[str, ...] = setting(
        (), "Networks, comma separated, that are not public but that webhooks may reach."
    )

    log_format: Literal["text", "json"] = setting("text", "Format of the log lines.")

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read ``ROWCAST_*``; unset or empty variables keep their defaults.

        Raises:
            ConfigError: a value has the wrong form or is out of bounds.
        """
        hints = get_type_hints(cls)
        given: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            text = env.get(variable(field.name), "")
            if text:
                given[field.name] = _parse(field, hints[field.name], text)
        return cls(**given)

    def for_serve(self) -> Settings:
        """Check that `rowcast serve` has what it needs, and return the settings.

        Raises:
            ConfigError: a required setting is missing or unusable.
        """
        for name in ("database_url", "caller_url"):
            if not getattr(self, name):
                raise ConfigError(
                    f"{variable(name)} is not set: give the connection URL of the login"
                    f" {'rowcast_bridge' if name == 'database_url' else 'rowcast_caller'}."
                )
            # Only the scheme is checked: URL parsers quote a password that they cannot read.
            if getattr(self, name).partition("://")[0] not in ("postgres", "postgresql"):
                raise ConfigError(f"{variable(name)} must look like postgresql://user@host/db.")
        if not self.jwt_secret and not self.jwks_url:
            raise ConfigError(
                "Neither ROWCAST_JWT_SECRET nor ROWCAST_JWKS_URL is set: set one of them,"
                " so that tokens can be verified."
            )
        if self.jwt_secret and len(self.jwt_secret.encode()) < MINIMUM_SECRET:
            raise ConfigError(
                f"ROWCAST_JWT_SECRET has fewer than {MINIMUM_SECRET} bytes and can be guessed:"
                " use a longer one."
            )
        return self

    def limits(self) -> dict[str, float]:
        """Return the limits that `welcome` announces to clients."""
        return {
            "frame": self.max_frame,
            "channels": self.max_channels,
            "state": self.max_state,
            "history": self.max_history,
            "rate": self.frame_rate,
            "burst": self.frame_burst,
            "pending": self.max_pending,
        }

    def shown(self, *, internal: bool = False) -> dict[str, str]:
        """Return variable → effective value, secrets masked, for `rowcast config`.

        Args:
            internal: include the settings that the documentation leaves out.
        """
        return {
            variable(field.name): "***"
            if field.metadata["secret"] and getattr(self, field.name)
            else _text(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if internal or field.metadata["public"]
        }


def variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"


def unknown(env: Mapping[str, str]) -> dict[str, str | None]:
    """Return each variable ``ROWCAST_*`` that rowcast does not read → the most similar known one.

    Without a warning, a typo would silently leave the default in force.
    """
    known = [*(variable(field.name) for field in dataclasses.fields(Settings)), *OTHERS]
    # Compared without the common prefix, which would make any two names similar.
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
        linked = text.startswith("tcp://")  # set by Kubernetes, not by the operator
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
