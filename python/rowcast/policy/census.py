"""Asks bridges, through the database, which callers are subscribed to which channels.

The claims of tokens are personal data. They are held for the length of a command; only `sub` and
channel of callers whose access changes are printed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from .database import Workbench, database_errors
from .personas import Persona, from_claims

__all__ = ["CensusReport", "Listener", "listener_for", "take_census"]

# Seconds. A bridge answers at its next read of the feed, unless it has lost the database.
PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Listener:
    """Sessions that are subscribed to one channel with the same claims.

    Args:
        who: the readable name of the caller.
        role: a caller role.
        claims: the claims of the verified token, JSON text.
        channel: a name or a pattern.
        sessions: the number of sessions.
    """

    who: str
    role: str
    claims: str
    channel: str
    sessions: int = 1


@dataclass(frozen=True, slots=True)
class CensusReport:
    """The answers of the bridges.

    Args:
        listeners: the subscriptions of bridges that answered.
        bridges: the number of bridges that were asked.
        answered: the number of bridges that answered completely.
        left_out: the number of subscriptions over the limit of an answer.
    """

    listeners: list[Listener]
    bridges: int = 0
    answered: int = 0
    left_out: int = 0


def listener_for(persona: Persona, channel: str) -> Listener:
    """Return the listener of a persona on a channel."""
    return Listener(str(persona), persona.role, persona.text, channel)


def take_census(workbench: Workbench) -> CensusReport:
    """Ask all bridges for their subscriptions, and wait a few seconds for the answers.

    Raises:
        DatabaseError: this login may not ask.
    """
    with database_errors(workbench.connection):
        request = workbench.census_ask()
        if request is None:
            return CensusReport([])
        state, rows = workbench.census_read(request, PATIENCE)
    found = [
        Listener(
            _plain(str(from_claims(json.loads(row["claims"]), row["role"]))),
            row["role"],
            row["claims"],
            row["channel"],
            row["sessions"],
        )
        for row in rows
    ]
    return CensusReport(sorted(found, key=lambda one: (one.who, one.channel)), **state)


def _plain(text: str) -> str:
    """Escape control characters, so that a `sub` cannot send them to the terminal."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
