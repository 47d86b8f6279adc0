"""A pytest plugin: a team tests its policies in its own suite, on its own fixtures.

It is loaded by the entry point `rowcast_policies`, works with the connections of pytest-postgresql
or with any other of psycopg, and commits nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .check import Decision
    from .database import AccessRequest, Connection, Workbench
    from .personas import Persona

__all__ = ["Policies", "load_rowcast", "rowcast_policies"]


def load_rowcast(
    *, host: str, port: int, user: str, dbname: str, password: str | None, **_: Any
) -> None:
    """Install rowcast: for the argument `load` of the factories of pytest-postgresql."""
    from psycopg.conninfo import make_conninfo

    from rowcast.install.migrate import migrate

    secret = {"password": password} if password else {}
    migrate(make_conninfo(host=host, port=port, user=user, dbname=dbname, **secret), env={})


class Policies:
    """The policies of one database, asked in the transaction of a test.

    Args:
        connection: of a superuser or of the migrating role; it sees what the test has inserted.
    """

    def __init__(self, connection: Connection) -> None:
        from .database import Workbench

        self._workbench: Workbench = Workbench(connection)

    def apply(self, path: Path | str) -> None:
        """Run a file of policies; it lives as long as the transaction of the test.

        Raises:
            DatabaseError: a statement failed; the message says where.
        """
        self._workbench.run_sql_in_savepoint(Path(path).read_text(), str(path))

    def persona(self, role: str | None = None, **claims: Any) -> Persona:
        """Return somebody with these claims; `authenticated` when there is a `sub`, or `anon`."""
        from .personas import from_claims

        return from_claims(claims, role)

    def can(
        self,
        persona: Persona,
        action: str,
        channel: str,
        event: str = "message",
        payload: Mapping[str, Any] | None = None,
        type: str = "message",  # noqa: A002 (as the column is called)
    ) -> Decision:
        """Ask as a bridge would; the answer is true when it is allowed, and says why not.

        Raises:
            DatabaseError: it cannot be asked.
        """
        from .check import check

        question = self._question(persona, action, channel, event, payload, type)
        with self._workbench.trial():
            self._workbench.ensure_role(persona.role)
            return check(self._workbench, question)

    def explain(
        self,
        persona: Persona,
        action: str,
        channel: str,
        event: str = "message",
        payload: Mapping[str, Any] | None = None,
        type: str = "message",  # noqa: A002
    ) -> str:
        """Return what `rowcast policy explain` would print.

        Raises:
            DatabaseError: it cannot be asked.
        """
        from .explain import explain_access
        from .render import explanation_text

        question = self._question(persona, action, channel, event, payload, type)
        with self._workbench.trial():
            self._workbench.ensure_role(persona.role)
            return explanation_text(explain_access(self._workbench, question), str(persona))

    def run(self, path: Path | str) -> None:
        """Run a file of cases as `rowcast policy test` does.

        Raises:
            AssertionError: cases failed; the message has their explanations.
            DatabaseError: policies or fixtures cannot be applied.
        """
        from .cases import read_case_file, run_cases

        failed = [r for r in run_cases(self._workbench, read_case_file(Path(path))) if not r.passed]
        assert not failed, "\n\n".join(f"{r.case}: {r.failure}\n{r.explained}" for r in failed)

    @staticmethod
    def _question(
        persona: Persona,
        action: str,
        channel: str,
        event: str,
        payload: Mapping[str, Any] | None,
        kind: str,
    ) -> AccessRequest:
        from .database import AccessRequest

        if action not in ("subscribe", "publish"):
            raise ValueError(f"{action!r} is neither subscribe nor publish")
        return AccessRequest(
            action, persona.role, persona.text, channel, event, json.dumps(payload or {}), kind
        )


@pytest.fixture
def rowcast_policies() -> Callable[[Connection], Policies]:
    """Makes a `Policies` of a connection: ``policies = rowcast_policies(postgresql)``."""
    return Policies
