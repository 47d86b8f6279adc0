"""The statements of the commands, each as one typed call."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg import errors

from rowcast.postgres.connect import DatabaseError, ShortConnection, connect

__all__ = ["Login", "Queries", "open_database"]

STATUS = "select rowcast.status()"
DOCTOR = "select * from rowcast.doctor()"
LOGIN = "select * from rowcast.login_report()"
PUBLISH = "select rowcast.publish(%s, %s, %s::jsonb, %s, %s)"
PUBLISH_MANY = "select rowcast.publish_many(%s::jsonb)"
CLOCK = "select extract(epoch from clock_timestamp())::float8"
ENDPOINTS = "select rowcast.admin_endpoints(%s, null)"
DELIVERIES = "select rowcast.admin_deliveries(%s, %s::uuid, %s, %s, %s)"
ATTEMPTS = "select rowcast.admin_delivery_attempts(%s, %s)"
REDELIVER = "select rowcast.admin_redeliver(%s, %s)"
ROTATE = "select rowcast.admin_rotate_secret(%s, %s)"
# A login that may call these functions at all is treated as an administrator.
ADMIN = '{"role": "rowcast_admin"}'

# messages per statement of publish_many
BATCH = 500


@dataclass(frozen=True, slots=True)
class Login:
    """The faults of a login: in general, as that of the bridge, and as that of the callers."""

    name: str
    faults: tuple[str, ...]
    bridge_faults: tuple[str, ...]
    caller_faults: tuple[str, ...]


class Queries:
    """The calls; each raises `DatabaseError` when the database refuses it.

    Args:
        connection: an open one.
    """

    def __init__(self, connection: ShortConnection) -> None:
        self.connection = connection

    def status(self) -> dict[str, Any]:
        """Return `rowcast.status()`."""
        found: dict[str, Any] = self.connection.value(STATUS)
        return found

    def doctor(self) -> list[dict[str, Any]]:
        """Return the rows of `rowcast.doctor()`."""
        return self.connection.rows(DOCTOR)

    def login(self) -> Login:
        """Return the rights of this login that a login of the daemon should not have."""
        (row,) = self.connection.rows(LOGIN)
        name, *faults = row.values()
        return Login(name, *(tuple(found) for found in faults))

    def publish(self, channel: str, event: str, payload: str, kind: str, key: UUID | None) -> UUID:
        """Publish one message with the rights of this login; return its id."""
        with self._publish_errors():
            message_id: UUID = self.connection.value(PUBLISH, channel, event, payload, kind, key)
        return message_id

    def publish_many(self, channel: str, event: str, payload: str, kind: str, count: int) -> int:
        """Publish the same message `count` times; return how many were published."""
        names = {"channel": channel, "event": event, "type": kind}
        # The payload is inserted as text, so that numbers of any size keep their digits.
        message = f'{json.dumps(names)[:-1]}, "payload": {payload}}}'
        published = 0
        while published < count:
            batch = ", ".join([message] * min(BATCH, count - published))
            with self._publish_errors():
                published += self.connection.value(PUBLISH_MANY, f"[{batch}]")
        return published

    def clock_lead(self) -> float:
        """Return by how many seconds the database's clock is ahead of this machine's."""
        before = time.time()
        theirs: float = self.connection.value(CLOCK)
        return theirs - (before + time.time()) / 2

    def endpoints(self) -> list[dict[str, Any]]:
        """Return the webhook endpoints of all channels."""
        found: list[dict[str, Any]] = self._json(ENDPOINTS)
        return found

    def deliveries(
        self, channel: UUID | None, state: str | None, limit: int, after: str | None
    ) -> dict[str, Any]:
        """Return one page of webhook deliveries, newest first."""
        page: dict[str, Any] = self._json(DELIVERIES, channel, state, limit, after)
        return page

    def delivery_attempts(self, delivery: int) -> list[dict[str, Any]]:
        """Return the attempts of one delivery."""
        found: list[dict[str, Any]] = self._json(ATTEMPTS, delivery)
        return found

    def redeliver(self, delivery: int) -> dict[str, Any]:
        """Send a delivery again; `queued` of the result is false while it is being sent."""
        done: dict[str, Any] = self._json(REDELIVER, delivery)
        return done

    def rotate_secret(self, endpoint: UUID) -> dict[str, Any]:
        """Give an endpoint a new secret and return it."""
        done: dict[str, Any] = self._json(ROTATE, endpoint)
        return done

    def _json(self, query: Any, *parameters: Any) -> Any:
        return json.loads(self.connection.value(query, ADMIN, *parameters))

    @contextmanager
    def _publish_errors(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            if isinstance(error.__cause__, errors.InsufficientPrivilege):
                reason = error.__cause__.diag.message_primary
                raise DatabaseError(
                    f"The login {self.connection.user} may not publish ({reason}): give "
                    "--database-url of the owner, or of a role granted rowcast_publisher."
                ) from error
            raise


@contextmanager
def open_database(url: str) -> Iterator[Queries]:
    """Connect to `url` for the length of a block.

    Raises:
        DatabaseError: the connection failed, or the database refused a call of the block.
    """
    with connect(url) as connection:
        yield Queries(connection)
