"""Who is connected now: bridges are asked through the database, and what they say is forgotten.

It is personal data, the claims of tokens: it is held for the length of a command, and printed are
only the `sub` and the channel of those about whom there is something to say.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from .database import Workbench, database_errors
from .personas import Persona, from_claims

__all__ = ["CensusReport", "Listener", "listener_for", "take_census"]

# Seconds. A bridge answers within its next read of the feed, unless the database is away from it.
PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Listener:
    """Sessions that are subscribed to a channel with the same claims.

    Args:
        who: as people know them.
        role: a caller role.
        claims: JSON text of the verified token.
        channel: a name, or a pattern.
        sessions: how many.
    """

    who: str
    role: str
    claims: str
    channel: str
    sessions: int = 1


@dataclass(frozen=True, slots=True)
class CensusReport:
    """What the bridges have said.

    Args:
        listeners: of those that answered.
        bridges: how many were asked.
        answered: how many have said all.
        left_out: subscriptions that were too many to be told.
    """

    listeners: list[Listener]
    bridges: int = 0
    answered: int = 0
    left_out: int = 0


def listener_for(persona: Persona, channel: str) -> Listener:
    """Make a listener of a persona."""
    return Listener(str(persona), persona.role, persona.text, channel)


def take_census(workbench: Workbench) -> CensusReport:
    """Ask all bridges who is subscribed to what, and wait for their answers for a few seconds.

    Raises:
        DatabaseError: the login may not ask.
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
    """Whoever chose his `sub` himself does not write to somebody's terminal with it."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
