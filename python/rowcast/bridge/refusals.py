"""Turns errors of the database into refusals: one table from SQLSTATE to what a client is told.

"forbidden" is never said when the database is down, and a policy that fails is reported to the
operator and not to the client.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import asyncpg

from rowcast.errors import Refusal
from rowcast.observe import observe

from .database import UNAVAILABLE

__all__ = ["INVALID_CHANNEL", "Reader", "refusal_for", "rolled_back"]

# SQLSTATE for a text that is neither a channel name nor a pattern.
INVALID_CHANNEL = "RCN02"

# Errors after which it is not known what the server has done.
CONNECTION_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
)


class Reader(Enum):
    """The client that reads a refusal: what it may learn depends on what it asked for."""

    SUBSCRIBER = "subscriber"
    PUBLISHER = "publisher"
    CALLER = "caller"  # a request to the REST API
    ADMINISTRATOR = "administrator"  # the same, and policies are not asked


@dataclass(frozen=True, slots=True)
class _Codes:
    """A row of the table: the code for each reader.

    Without one, a policy has failed: an administrator learns of an internal error, other readers
    are told "forbidden", and the operator finds `policy_error` in the log.
    """

    publisher: str | None = None
    caller: str | None = None
    administrator: str | None = None


def _rest(code: str) -> _Codes:
    return _Codes(caller=code, administrator=code)


def _everywhere(code: str) -> _Codes:
    return _Codes(code, code, code)


# A value of a request that a column does not take. In front of a caller it may as well be a value
# inside a policy, so only administrators are told.
_VALUE = _Codes(administrator="invalid_request")
# The same, and a publisher is told that the message is wrong: its payload is such a value.
_PAYLOAD = _Codes("invalid_message", None, "invalid_request")
# "No such channel" and "denied" answer a publisher alike.
_DENIED = "forbidden"

CODES: dict[str, _Codes] = {
    # ours; they carry a sentence and a hint that are meant for the client
    "RCA01": _rest("forbidden"),
    "RCC03": _rest("not_found"),
    "RCC04": _rest("conflict"),
    "RCM01": _everywhere("payload_too_large"),
    "RCM02": _everywhere("invalid_message"),
    "RCM03": _everywhere("invalid_message"),
    "RCM05": _Codes(_DENIED, "invalid_request", "invalid_request"),
    "RCN01": _Codes(_DENIED, "not_found", "not_found"),
    "RCN02": _everywhere("invalid_channel"),
    "RCN03": _rest("invalid_channel"),
    "RCW03": _rest("not_found"),
    "RCW04": _rest("conflict"),
    "RCW05": _rest("conflict"),
    "RCW06": _rest("not_found"),
    # of Postgres: JSON, text and numbers
    "22003": _PAYLOAD,
    "22P02": _PAYLOAD,
    "22P05": _PAYLOAD,
    "22007": _VALUE,
    "22008": _VALUE,
    "22023": _VALUE,
    "23502": _VALUE,
    "23514": _VALUE,
    # a value that could not even be sent, or is not text: no policy has seen it
    "22000": _rest("invalid_request"),
    "22021": _Codes("invalid_message", "invalid_request", "invalid_request"),
    # too complex for the server
    "54000": _Codes(publisher="invalid_message"),
    "54001": _Codes(publisher="invalid_message"),
}


def refusal_for(error: Exception, reader: Reader, channel: str | None = None) -> Refusal:
    """Return the refusal for an error of the database.

    Args:
        error: raised by asyncpg or by the connection.
        reader: the client that will read it.
        channel: the channel it asked for, for the log.

    Raises:
        Exception: the error itself, when it can only be a mistake of ours.
    """
    if isinstance(error, UNAVAILABLE):
        return Refusal("unavailable", _timeout(error, reader))
    if not isinstance(error, asyncpg.PostgresError):
        raise error
    code = _code(error, reader)
    if code is None:
        if reader is Reader.ADMINISTRATOR:
            raise error
        fields: dict[str, Any] = {} if channel is None else {"channel": channel}
        observe("policy_error", **fields, error=error, sqlstate=error.sqlstate)
        return Refusal("forbidden")
    said = (str(error.args[0]) if error.args else str(error)).rstrip(".")
    sentence = f"{said[:1].upper()}{said[1:]}."
    hint = getattr(error, "hint", None)
    if reader is not Reader.PUBLISHER:
        return Refusal(code, sentence, hint=hint)
    if code == _DENIED:
        return Refusal(code)
    return Refusal(code, f"{sentence} {hint}" if hint else sentence)


def _code(error: asyncpg.PostgresError, reader: Reader) -> str | None:
    state = error.sqlstate or ""
    codes = CODES.get(state, _Codes())
    if reader is Reader.SUBSCRIBER:
        return None
    if reader is Reader.PUBLISHER:
        by_policy = getattr(error, "server_source_function", None) == "ExecWithCheckOptions"
        return codes.publisher or (_DENIED if by_policy else None)
    known = codes.caller if reader is Reader.CALLER else codes.administrator
    return known or ("invalid_request" if state.startswith("RC") else None)


def _timeout(error: Exception, reader: Reader) -> str | None:
    if not isinstance(error, asyncpg.QueryCanceledError):
        return None
    if reader in (Reader.SUBSCRIBER, Reader.PUBLISHER):
        return "A policy took too long: try again."
    return "It took too long: ask for less, or try again."


def rolled_back(error: Exception) -> bool:
    """Whether the server said that it did nothing. After a lost connection that is not known:
    the commit may have been on its way, and a repeat would publish twice."""
    if isinstance(error, asyncpg.InterfaceError):
        return isinstance(error, ValueError)  # an argument that could not even be sent
    return isinstance(error, asyncpg.PostgresError) and not isinstance(error, CONNECTION_LOST)
