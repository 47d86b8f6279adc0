"""What the database's errors mean to somebody who asks over REST."""

from __future__ import annotations

import asyncpg

from rowcast.bridge.access import MISTAKES, unavailable
from rowcast.bridge.database import UNAVAILABLE
from rowcast.errors import Refusal
from rowcast.observe import observe

__all__ = ["explained"]

# Ours carry a sentence and a hint that are meant for whoever asked.
OURS = {
    "RCA01": "forbidden",
    "RCC03": "not_found",
    "RCC04": "conflict",
    "RCN01": "not_found",
    "RCW03": "not_found",
    "RCW04": "conflict",
    "RCW05": "conflict",
    "RCW06": "not_found",
    "RCN03": "invalid_channel",
}
# Values that the request had and a column does not take.
UNFIT = {"22003", "22007", "22008", "22023", "22P02", "22P05", "23502", "23514"}
# What could not even be sent, or is no text: no policy has seen it.
UNSENT = {"22000", "22021"}


def explained(error: Exception, *, admin: bool) -> Refusal:
    """Return the refusal for an error of the database.

    Args:
        error: of asyncpg or the connection.
        admin: whether it was an administrator who asked: nobody else learns what was wrong
            inside a policy.

    Raises:
        Exception: the error itself, when it can only be a mistake of ours.
    """
    if isinstance(error, UNAVAILABLE):
        if isinstance(error, asyncpg.QueryCanceledError):
            return Refusal("unavailable", "It took too long: ask for less, or try again.")
        return unavailable(error)
    if not isinstance(error, asyncpg.PostgresError):
        raise error
    state, hint = error.sqlstate or "", getattr(error, "hint", None)
    if state.startswith("RC"):
        code = OURS.get(state) or MISTAKES.get(state, "invalid_request")
        return Refusal(code, _sentence(error), hint=hint)
    if state in UNSENT:
        return Refusal("invalid_request", _sentence(error))
    if not admin:
        observe("policy_error", error=error, sqlstate=state)
        return Refusal("forbidden")
    if state in UNFIT:
        return Refusal("invalid_request", _sentence(error), hint=hint)
    raise error


def _sentence(error: asyncpg.PostgresError) -> str:
    text = error.args[0] if error.args else str(error)
    return f"{text[:1].upper()}{text[1:]}."
