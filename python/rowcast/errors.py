"""What can go wrong, once: the exceptions of the package and the catalogue of refusals.

- `RowcastError`
    - `ConfigError`: a setting is missing or wrong
    - `UsageError`: a command was called with what it cannot work with
    - `MigrationError`: the database cannot be brought to this version
    - `EmbeddedError`: the server of `rowcast dev` cannot be run
    - `AuthError`: a token or key was refused
    - `Refusal`: a client's request was refused, with a code of the `CATALOGUE`
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
    """Root of all errors that rowcast raises on purpose; the command prints only the message."""

    exit_code = 1


class ConfigError(RowcastError):
    """A setting is missing or wrong; the message names its environment variable."""


class UsageError(RowcastError):
    """A command was called with arguments or files that it cannot work with."""

    exit_code = 2


class MigrationError(RowcastError):
    """The database cannot be brought to the version of this package; nothing is half done."""


class EmbeddedError(RowcastError):
    """The PostgreSQL server that `rowcast dev` brings along cannot be run here."""


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
    """One row of the catalogue: HTTP status, whether repeating can help, the standing text."""

    status: int
    retry: bool
    text: str


# The same codes at every door. "forbidden" also stands for "no such channel" and "disabled",
# and never for "the database is down": that is "unavailable".
CATALOGUE: dict[str, Entry] = {
    "invalid_frame": Entry(400, False, "The frame is not a JSON object as the wire describes it."),
    "unknown_op": Entry(400, False, "There is no such op."),
    "unauthorized": Entry(401, False, "Send a token first: with op auth or as ?token=."),
    "invalid_token": Entry(401, False, "The token is not valid."),
    "token_expired": Entry(401, False, "The token has expired: send a new one."),
    "invalid_request": Entry(400, False, "The request is not one that this address takes."),
    "not_found": Entry(404, False, "There is nothing at this address."),
    "method_not_allowed": Entry(405, False, "This address does not take this method."),
    "conflict": Entry(409, False, "There is one already."),
    "forbidden": Entry(403, False, "The policies do not allow this, or there is no such channel."),
    "invalid_channel": Entry(400, False, "This is not a channel name."),
    "invalid_message": Entry(400, False, "The message cannot be published as it is."),
    "payload_too_large": Entry(413, False, "The payload is over the limit."),
    "frame_too_large": Entry(413, False, "The frame is over the limit."),
    "too_many_channels": Entry(429, False, "Unsubscribe from a channel first."),
    "too_many_members": Entry(429, False, "As many are present in this channel as may be."),
    "rate_limited": Entry(429, True, "Too many requests: slow down."),
    "not_subscribed": Entry(409, False, "This session is not subscribed to the channel."),
    "unsupported": Entry(501, False, "This server does not offer this."),
    "unavailable": Entry(503, True, "The database cannot answer at the moment: try again."),
    "internal": Entry(500, True, "Something went wrong here; it was logged."),
}

# Close codes of WebSockets. 3000 to 3499 mean "connect again", from here to 3999 "do not".
FINAL = 3500
CLOSE: dict[str, tuple[int, str]] = {
    "draining": (3000, "the server is going away: connect again"),
    "slow": (3001, "too slow: connect again and resume"),
    "full": (3002, "too many clients here: connect again later"),
    "internal": (3003, "something went wrong here: connect again"),
    "recalled": (3004, "the token is to be replaced: connect again with a new one"),
    "invalid_token": (3500, "the token is not valid"),
    "token_expired": (3501, "the token has expired"),
    "unauthorized": (3502, "no token came in time"),
    "abuse": (3503, "too many invalid frames"),
    "kicked": (3504, "the session was ended"),
}


class Refusal(RowcastError):  # noqa: N818 (an answer, as much as an error)
    """A request was refused.

    Args:
        code: a key of `CATALOGUE`.
        message: one sentence for the client; the standing text by default.
        retry_after: seconds to wait before repeating, if that can be said.
        hint: what to do about it, if that can be said.
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
