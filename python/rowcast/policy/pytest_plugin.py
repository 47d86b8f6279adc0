"""A pytest plugin that tests policies in a team's own suite, with its own fixtures.

pytest loads it by the entry point `rowcast_policies`. It works with connections of
pytest-postgresql, or with any other psycopg connection, and commits nothing.
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
    """Install rowcast; pass this as `load` to the factories of pytest-postgresql."""
    from psycopg.conninfo import make_conninfo

    from rowcast.install.migrate import migrate

    secret = {"password": password} if password else {}
    migrate(make_conninfo(host=host, port=port, user=user, dbname=dbname, **secret), env={})


class Policies:
    """The policies of one database, checked in the transaction of a test.

    Args:
        connection: a connection of a superuser or of the migrating role. Checks see what the test
            has inserted on it.
    """

    def __init__(self, connection: Connection) -> None:
        from .database import Workbench

        self._workbench: Workbench = Workbench(connection)

    def apply(self, path: Path | str) -> None:
        """Run a policy file; its effect ends with the transaction of the test.

        Raises:
            DatabaseError: a statement failed; the message names file and line.
        """
        self._workbench.run_sql_in_savepoint(Path(path).read_text(), str(path))

    def persona(self, role: str | None = None, **claims: Any) -> Persona:
        """Return a caller with these claims.

        Without a role it is `authenticated` if there is a `sub`, and otherwise `anon`.
        """
        from .personas import from_claims

        return from_claims(claims, role)

    def can(
        self,
        persona: Persona,
        action: str,
        channel: str,
        event: str = "message",
        payload: Mapping[str, Any] | None = None,
        type: str = "message",  # noqa: A002 (the name of the column)
    ) -> Decision:
        """Check as a bridge would; the result is true if allowed, and otherwise has a reason.

        Raises:
            DatabaseError: the database cannot be asked, or the role cannot be used.
        """
        from .check import check

        request = self._request(persona, action, channel, event, payload, type)
        with self._workbench.trial():
            self._workbench.ensure_role(persona.role)
            return check(self._workbench, request)

    def explain(
        self,
        persona: Persona,
        action: str,
        channel: str,
        event: str = "message",
        payload: Mapping[str, Any] | None = None,
        type: str = "message",  # noqa: A002
    ) -> str:
        """Return the text that `rowcast policy explain` prints.

        Raises:
            DatabaseError: the database cannot be asked, or the role cannot be used.
        """
        from .explain import explain_access
        from .render import explanation_text

        request = self._request(persona, action, channel, event, payload, type)
        with self._workbench.trial():
            self._workbench.ensure_role(persona.role)
            return explanation_text(explain_access(self._workbench, request), str(persona))

    def run(self, path: Path | str) -> None:
        """Run a `*.test.toml` file as `rowcast policy test` does.

        Raises:
            AssertionError: cases failed; the message explains each.
            DatabaseError: policies or fixtures cannot be applied.
        """
        from .cases import read_case_file, run_cases

        failed = [r for r in run_cases(self._workbench, read_case_file(Path(path))) if not r.passed]
        assert not failed, "\n\n".join(f"{r.case}: {r.failure}\n{r.explained}" for r in failed)

    @staticmethod
    def _request(
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
    """Return a function that makes `Policies`: ``policies = rowcast_policies(postgresql)``."""
    return Policies
