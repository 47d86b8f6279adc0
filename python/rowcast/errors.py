"""The exceptions of the package, and the catalogue of refusals and close codes.

- `RowcastError`
    - `ConfigError`: a setting is missing or wrong
    - `UsageError`: a command was called with wrong arguments or files
    - `MigrationError`: the database cannot be brought to this version
    - `EmbeddedError`: `rowcast dev` cannot run its PostgreSQL server
    - `AuthError`: a token or key was refused
    - `Refusal`: a client's request was refused with a code of the `CATALOGUE`
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CATALOGUE",
    "CLOSE",
    "FINAL",
    "AuthError",
    "ConfigError",
    "EmbeddedError",
    "Entry",
    "MigrationError",
    "Refusal",
    "RowcastError",
    "UsageError",
]


class RowcastError(Exception):
    """Base of all errors that rowcast raises on purpose; the command prints only the message."""

    exit_code = 1


class ConfigError(RowcastError):
    """A setting is missing or wrong; the message names its environment variable."""


class UsageError(RowcastError):
    """A command was called with wrong arguments or files."""

    exit_code = 2


class MigrationError(RowcastError):
    """The database cannot be migrated; the failed step was rolled back."""


class EmbeddedError(RowcastError):
    """`rowcast dev` cannot run its PostgreSQL server on this machine."""


class AuthError(RowcastError):
    """A token or key was refused.

    Args:
        message: one sentence for the client.
        code: `invalid_token` or `token_expired`, or `unavailable` when it could not be checked.
    """

    def __init__(self, message: str, code: str = "invalid_token") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the catalogue: HTTP status, whether a retry may succeed, the default text."""

    status: int
    retry: bool
    text: str


# The codes are the same at every door. "forbidden" also means that the channel does not exist or
# is disabled. It never means that the database is down: that is "unavailable".
CATALOGUE: dict[str, Entry] = {
    "invalid_frame": Entry(
        400, False, "The frame is not a JSON object in the format of this protocol."
    ),
    "unknown_op": Entry(400, False, "The op does not exist."),
    "unauthorized": Entry(401, False, "Send a token first, with op auth or as ?token=."),
    "invalid_token": Entry(401, False, "The token is not valid."),
    "token_expired": Entry(401, False, "The token has expired: send a new one."),
    "invalid_request": Entry(400, False, "The request is not valid for this endpoint."),
    "not_found": Entry(404, False, "The address does not exist."),
    "method_not_allowed": Entry(405, False, "The method is not allowed at this address."),
    "conflict": Entry(409, False, "It already exists."),
    "forbidden": Entry(
        403, False, "The policies do not allow this, or the channel does not exist."
    ),
    "invalid_channel": Entry(400, False, "The channel name is not valid."),
    "invalid_message": Entry(400, False, "The message is not valid."),
    "payload_too_large": Entry(413, False, "The payload exceeds the size limit."),
    "frame_too_large": Entry(413, False, "The frame exceeds the size limit."),
    "too_many_channels": Entry(
        429, False, "The session has reached its channel limit: unsubscribe first."
    ),
    "too_many_members": Entry(429, False, "The channel has reached its member limit."),
    "rate_limited": Entry(429, True, "Too many requests: slow down."),
    "not_subscribed": Entry(409, False, "The session is not subscribed to the channel."),
    "unsupported": Entry(501, False, "The server does not support this."),
    "unavailable": Entry(503, True, "The database is not available: try again."),
    "internal": Entry(500, True, "An internal error occurred; the server logged it."),
}

# WebSocket close codes: clients reconnect after 3000 to 3499, and do not after 3500 to 3999.
FINAL = 3500
CLOSE: dict[str, tuple[int, str]] = {
    "draining": (3000, "the server is shutting down: connect again"),
    "slow": (3001, "the client reads too slowly: connect again and resume"),
    "full": (3002, "the server has reached its client limit: connect again later"),
    "internal": (3003, "an internal error occurred: connect again"),
    "recalled": (3004, "the token was recalled: connect again with a new one"),
    "invalid_token": (3500, "the token is not valid"),
    "token_expired": (3501, "the token has expired"),
    "unauthorized": (3502, "no token arrived in time"),
    "abuse": (3503, "too many invalid frames"),
    "kicked": (3504, "the session was ended"),
}


class Refusal(RowcastError):  # noqa: N818 (a reply to the client as much as an error)
    """A client's request was refused.

    Args:
        code: a key of `CATALOGUE`.
        message: one sentence for the client; the text of the catalogue by default.
        retry_after: seconds to wait before a retry, if known.
        hint: what the client can do about it, if known.
    """

    def __init__(
        self,
        code: str,
        message: str | None = None,
        retry_after: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message or CATALOGUE[code].text)
        self.code = code
        self.retry_after = retry_after
        self.hint = hint
