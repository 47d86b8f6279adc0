"""One typed method per SQL function that a bridge calls; each statement is one call.

There are two logins. The bridge login reads the feed and is not a caller; the caller login becomes
a caller role inside the functions and has no privileges by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg

from rowcast.config import Settings
from rowcast.errors import ConfigError
from rowcast.files import migration_files

from .cursor import CursorKey, Position
from .facts import DatabaseFacts, Facts
from .model import Delivery, Response

__all__ = ["UNAVAILABLE", "Connection", "Database", "UnfitError"]

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

# Errors that mean the database cannot be asked now; they say nothing about permissions.
UNAVAILABLE = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InsufficientResourcesError,
    asyncpg.QueryCanceledError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    ConnectionError,
    TimeoutError,
    OSError,
)

IDENTITY = "select * from rowcast.identity()"
LOGIN = "select * from rowcast.login_report()"
FEED = "select * from rowcast.feed($1, $2, $3, $4, $5)"
REPLAY = "select * from rowcast.replay($1, $2, $3, $4, $5, $6)"
CHECK = "select * from rowcast.check_subscribe($1, $2, $3)"
ADMIN_CHECK = "select * from rowcast.admin_check_subscribe($1, $2)"
ADMIN_PUBLISH = "select rowcast.admin_publish($1, $2, $3, $4, $5, $6)"
PUBLISH = "select rowcast.publish_as($1, $2, $3, $4, $5, $6, $7)"
HISTORY = "select * from rowcast.history_as($1, $2, $3, $4, $5, $6)"
LIMIT_TIME = "select set_config('statement_timeout', $1, true)"
UPKEEP = "select rowcast.upkeep()"
UPDATE_STATISTICS = "select rowcast.statistics_update()"
BEAT = "select rowcast.node_beat($1, $2)"
LEAVE = "select rowcast.node_leave($1, $2)"
WRITE_AUDIENCE = "select rowcast.audience_write($1, $2, $3)"
WRITE_PRESENCE = "select rowcast.presence_write($1, $2, $3, $4, $5, $6, $7)"
READ_PRESENCE = "select * from rowcast.presence_read($1)"
SLEEP_BEGIN = "select rowcast.sleep_begin()"
SLEEP_END = "select rowcast.sleep_end()"
OPEN_WRITERS = "select rowcast.open_writers()"
PROBE = "select rowcast.probe($1)"
CLAIM = "select * from rowcast.claim_deliveries($1, $2, $3, $4, $5)"
SETTLE = "select rowcast.settle_deliveries($1, $2, $3, $4, $5, $6, $7, $8)"
RETURN = "select rowcast.return_deliveries($1, $2, $3)"
NEXT_DELIVERY = "select * from rowcast.next_delivery($1, $2)"
MOVE_CLAIM_MARKS = "select rowcast.move_claim_marks($1)"
KEEP_HANDLES = "select rowcast.keep_handles($1, $2)"
FIND_HANDLES = "select rowcast.find_handles($1)"
ANSWER_CENSUS = "select rowcast.census_answer($1, $2, $3, $4, $5, $6, $7)"

# Milliseconds for a question that is repeated alone because its batch took too long.
BRIEF = "1000"
# Milliseconds for work that no client waits for.
PATIENT = "60000"

# Seconds: the feed waits for these calls, so a dead connection must not hold it up.
DOORBELL_TIMEOUT = 2.0

# Settings that a login or a database may have changed, and keepalives that detect a dead peer.
SESSION = {
    "default_transaction_isolation": "read committed",
    "row_security": "on",
    "idle_in_transaction_session_timeout": "60000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}

# Rows in one portion of a large drain.
PAGE_ROWS = 1000
# A drain beyond these is read by portal instead of at once.
DRAIN_ROWS = 2000
DRAIN_BYTES = 4_194_304


class UnfitError(ConfigError):
    """The database or a login is not fit to run a bridge; the message says what to do."""


class Database:
    """Connections and one typed method per function. Made inside a running event loop.

    Args:
        settings: URLs, pool size, timeouts.
    """

    def __init__(self, settings: Settings) -> None:
        self.facts = Facts()
        self._settings = settings
        self._pooled = bool(settings.listen_url) or settings.doorbell == "poll"
        self._bridge = self._pool(settings.database_url)
        self._caller = self._pool(settings.caller_url)
        # Half of the connections of each login: a slow read of history must not keep others from
        # subscribing and publishing.
        half = max(1, settings.pool_size // 2)
        self._half = {pool: asyncio.Semaphore(half) for pool in (self._bridge, self._caller)}

    async def open(self) -> None:
        """Open the pools; they connect when they are first used."""
        await self._bridge
        await self._caller

    async def close(self) -> None:
        """Close the pools; what still runs is cancelled after a moment."""
        for pool in (self._bridge, self._caller):
            try:
                await asyncio.wait_for(pool.close(), 2)
            except TimeoutError:
                pool.terminate()

    def _pool(self, url: str) -> Pool:
        options = self._options(pooled=self._pooled, statement_timeout=self._settings.query_timeout)
        return asyncpg.create_pool(url, min_size=0, max_size=self._settings.pool_size, **options)

    def _options(self, *, pooled: bool, statement_timeout: float) -> dict[str, Any]:
        return {
            "timeout": 5,
            # The server gives up first, so that the answer says why.
            "command_timeout": statement_timeout + 5,
            # Behind a pooler a prepared statement may be on another connection, and settings
            # affect other clients, too: many poolers refuse a connection that sends any.
            "statement_cache_size": 0 if pooled else 100,
            "server_settings": {
                "application_name": "rowcast",
                **({} if pooled else {"statement_timeout": f"{statement_timeout}s", **SESSION}),
            },
        }

    async def connect(self, *, listening: bool = False) -> Connection:
        """Open a connection of its own, for the feed or for LISTEN.

        Raises:
            UnfitError: this is a standby, or read-only, or a pooler that must be named as one.
        """
        direct = self._settings.listen_url if listening else ""
        # A large catch-up may take long, and no client waits for an answer to it.
        options = self._options(pooled=self._pooled and not direct, statement_timeout=60)
        try:
            return await asyncpg.connect(
                direct or self._settings.database_url, target_session_attrs="read-write", **options
            )
        except asyncpg.TargetServerAttributeNotMatched:
            raise UnfitError(
                "This server takes no writes: give the URL of the primary, or reset"
                " default_transaction_read_only."
            ) from None
        except asyncpg.ProtocolViolationError as error:
            variable = "ROWCAST_LISTEN_URL" if direct else "ROWCAST_DATABASE_URL"
            raise _is_pooler(variable, error) from None

    async def identity(self, connection: Connection) -> DatabaseFacts:
        """Read what a bridge must know of the database before it reads the feed.

        Raises:
            UnfitError: not migrated, a standby, or restored from another cluster.
        """
        try:
            row = await connection.fetchrow(IDENTITY)
        except (asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError):
            raise UnfitError(
                "rowcast is not installed in this database: run `rowcast migrate`."
            ) from None
        except asyncpg.InsufficientPrivilegeError as error:
            raise UnfitError(
                f"ROWCAST_DATABASE_URL must be the login rowcast_bridge: {error}."
            ) from None
        assert row is not None
        needed = int(migration_files()[-1].stem.split("_")[0])
        if (row["version"] or 0) < needed:
            raise UnfitError(
                f"The database is at version {row['version']}, and this bridge needs {needed}:"
                " run `rowcast migrate`."
            )
        if row["recovering"]:
            raise UnfitError("This is a standby: give the URL of the primary.")
        if not row["adopted"]:
            raise UnfitError("This data was restored from another cluster: run `rowcast migrate`.")
        return DatabaseFacts(
            cursor_key=CursorKey(row["cursor_key"].encode()),
            caller_roles=tuple(row["caller_roles"]),
            admin_roles=tuple(row["admin_roles"]),
            payload_limit=row["payload_limit"],
            clock_skew=row["clock_skew"],
            seq_floor=row["seq_floor"],
            doorbell=row["doorbell"],
        )

    async def refresh_facts(self, connection: Connection) -> None:
        """Read `identity` and keep it as `facts`.

        Raises:
            UnfitError: see `identity`.
        """
        self.facts.current = await self.identity(connection)

    async def refuse_powerful_logins(self) -> None:
        """Refuse to start with logins that could do more than they should.

        Raises:
            UnfitError: a login is superuser, owner, bypasses row security, or is a member of a
                role that it must not be.
        """
        for pool, name in (
            (self._bridge, "ROWCAST_DATABASE_URL"),
            (self._caller, "ROWCAST_CALLER_URL"),
        ):
            try:
                row = await pool.fetchrow(LOGIN)
            except asyncpg.ProtocolViolationError as error:
                raise _is_pooler(name, error) from None
            assert row is not None
            faults = row["faults"] + (
                row["caller_faults"] if pool is self._caller else row["bridge_faults"]
            )
            if faults:
                raise UnfitError(
                    f"{name}: the login {row['login']} {' and '.join(faults)};"
                    " use the one that `rowcast migrate` made."
                )

    async def drain(
        self, connection: Connection, position: Position | None
    ) -> AsyncGenerator[list[asyncpg.Record], None]:
        """Read what became visible since the position, the snapshot row first.

        Yields:
            Lists of rows of `rowcast.feed`, all of one snapshot.
        """
        since = (position.snapshot, position.boot, position.issued_at) if position else (None,) * 3
        try:
            rows = await connection.fetch(FEED, *since, DRAIN_ROWS, DRAIN_BYTES)
        except asyncpg.UndefinedTableError:
            # A leaf expired between the registry and the query; the next snapshot knows.
            rows = await connection.fetch(FEED, *since, DRAIN_ROWS, DRAIN_BYTES)
        if rows[-1]["kind"] != "more":
            yield rows
            return
        async with connection.transaction(readonly=True):
            cursor = await connection.cursor(FEED, *since, None, None)
            while rows := await cursor.fetch(PAGE_ROWS):
                yield rows

    async def replay(
        self, wanted: Sequence[tuple[str, Position]], until: Position
    ) -> list[asyncpg.Record]:
        """Read what each channel got between a position and `until`; see `rowcast.replay`."""
        rows: list[asyncpg.Record] = await self._bridge.fetch(
            REPLAY,
            [channel for channel, _ in wanted],
            [position.snapshot for _, position in wanted],
            [position.boot for _, position in wanted],
            [position.issued_at for _, position in wanted],
            until.snapshot,
            until.boot,
        )
        return rows

    async def check_subscribe(
        self, role: str, claims: Sequence[str], channels: Sequence[str], *, brief: bool = False
    ) -> list[asyncpg.Record]:
        """Ask the policies whether each caller may subscribe to each channel or pattern.

        Args:
            role: of all of them.
            claims: JSON text of each.
            channels: name of each.
            brief: give up after a short time; for the one question that held up a batch.
        """
        async with self._as_caller(brief=brief) as connection:
            rows: list[asyncpg.Record] = await connection.fetch(CHECK, role, claims, channels)
        return rows

    async def publish(
        self,
        role: str,
        messages: Sequence[tuple[str, str, str, str, str, UUID | None]],
        *,
        brief: bool = False,
    ) -> list[UUID]:
        """Publish (claims, channel, type, event, payload, key) each, all or none."""
        columns = [list(column) for column in zip(*messages, strict=True)]
        async with self._as_caller(brief=brief) as connection:
            ids: list[UUID] = await connection.fetchval(PUBLISH, role, *columns)
        return ids

    @asynccontextmanager
    async def _as_caller(self, *, brief: bool) -> AsyncIterator[Connection]:
        async with self._caller.acquire() as connection:
            if not brief:
                yield connection
                return
            async with connection.transaction():
                await connection.execute(LIMIT_TIME, BRIEF)
                yield connection

    async def history(
        self, role: str, claims: str, channel: str, limit: int, until: Position
    ) -> list[asyncpg.Record]:
        """Read the newest messages that the caller may read."""
        rows: list[asyncpg.Record] = await self._caller.fetch(
            HISTORY, role, claims, channel, limit, until.snapshot, self.facts.current.seq_floor
        )
        return rows

    async def upkeep(self) -> str | None:
        """Make, close and drop leaves, then count messages.

        Returns:
            What was done, as JSON; None when another bridge is doing it.
        """
        async with self._bridge.acquire() as connection:
            # Each in its own transaction, so that a failure of one does not undo the other.
            async with connection.transaction():
                await connection.execute(LIMIT_TIME, PATIENT)
                done: str | None = await connection.fetchval(UPKEEP, timeout=65)
            async with connection.transaction():
                await connection.execute(LIMIT_TIME, PATIENT)
                await connection.fetchval(UPDATE_STATISTICS, timeout=65)
        return done

    async def row(self, query: str, *values: Any, as_caller: bool = False) -> asyncpg.Record:
        """Return the one row that a function answers; for modules with SQL of their own.

        Args:
            query: a call.
            values: its arguments.
            as_caller: ask with the caller login instead of the bridge's.
        """
        pool = self._caller if as_caller else self._bridge
        row: asyncpg.Record | None = await pool.fetchrow(query, *values)
        assert row is not None
        return row

    async def patient_row(
        self, query: str, *values: Any, as_caller: bool = False
    ) -> asyncpg.Record:
        """Return what `row` does, on at most half of the connections of that login.

        Raises:
            TimeoutError: none of them became free in time.
        """
        half = self._half[self._caller if as_caller else self._bridge]
        await asyncio.wait_for(half.acquire(), self._settings.query_timeout)
        try:
            return await self.row(query, *values, as_caller=as_caller)
        finally:
            half.release()

    async def check_subscribe_as_administrator(self, claims: str, channel: str) -> asyncpg.Record:
        """Answer as `check_subscribe` does, for an administrator: policies are not asked."""
        return await self.patient_row(ADMIN_CHECK, claims, channel)

    async def publish_as_administrator(
        self, claims: str, messages: Sequence[tuple[str, str, str, str, UUID | None]]
    ) -> list[UUID]:
        """Publish (channel, type, event, payload, key) each as the system, all or none."""
        columns = [list(column) for column in zip(*messages, strict=True)]
        ids: list[UUID] = (await self.patient_row(ADMIN_PUBLISH, claims, *columns))[0]
        return ids

    async def claim_deliveries(
        self, worker: UUID, limit: int, lease: float, busy: Mapping[UUID, int]
    ) -> list[Delivery]:
        """Lease webhook deliveries that are due; see `rowcast.claim_deliveries`.

        Args:
            worker: id of the bridge's outbox.
            limit: how many deliveries at most.
            lease: seconds for which they are leased.
            busy: endpoint → number of its deliveries that the worker has under way.
        """
        rows = await self._bridge.fetch(
            CLAIM, worker, limit, timedelta(seconds=lease), list(busy), list(busy.values())
        )
        return [
            Delivery(
                id=row["id"],
                attempt=row["attempt"],
                message_id=row["message_id"],
                endpoint_id=row["endpoint_id"],
                url=row["url"],
                secrets=tuple(row["secrets"]),
                bare=row["bare"],
                event=row["event_name"],
                channel=row["channel_name"],
                body=None if row["body"] is None else row["body"].encode(),
            )
            for row in rows
        ]

    async def settle_deliveries(
        self, worker: UUID, outcomes: Sequence[tuple[Delivery, Response]]
    ) -> int:
        """Record the outcomes of attempts; returns how many of them the worker still held."""
        count: int = await self._bridge.fetchval(
            SETTLE,
            worker,
            [delivery.id for delivery, _ in outcomes],
            [delivery.attempt for delivery, _ in outcomes],
            [answer.status for _, answer in outcomes],
            [answer.ms for _, answer in outcomes],
            [answer.error for _, answer in outcomes],
            [answer.snippet for _, answer in outcomes],
            [answer.retry_after for _, answer in outcomes],
        )
        return count

    async def return_deliveries(self, worker: UUID, deliveries: Sequence[Delivery]) -> None:
        """Give back deliveries, as if they had not been claimed."""
        await self.row(RETURN, worker, [d.id for d in deliveries], [d.attempt for d in deliveries])

    async def next_delivery(self, busy: Mapping[UUID, int]) -> tuple[float | None, frozenset[str]]:
        """Return seconds until a delivery is due, or None, and ids of channels with endpoints."""
        row = await self.row(NEXT_DELIVERY, list(busy), list(busy.values()))
        return row["wait"], frozenset(map(str, row["channels"]))

    async def move_claim_marks(self, busy: Sequence[UUID]) -> None:
        """Move the marks from which claims read."""
        async with self._bridge.acquire() as connection, connection.transaction():
            await connection.execute(LIMIT_TIME, PATIENT)
            await connection.fetchval(MOVE_CLAIM_MARKS, busy, timeout=65)

    async def beat(self, node: UUID, lease: timedelta) -> bool:
        """Renew a lease; False when the node was not known."""
        return bool((await self.row(BEAT, node, lease))[0])

    async def leave(self, node: UUID, grace: timedelta) -> None:
        """End a lease; members stay for the grace time."""
        await self.row(LEAVE, node, grace)

    async def write_audience(
        self, node: UUID, channels: Sequence[str], counts: Sequence[int]
    ) -> bool:
        """Write a node's audience counts; False when the node is not known."""
        return bool((await self.row(WRITE_AUDIENCE, node, channels, counts))[0])

    async def write_presence(
        self, node: UUID, members: Sequence[tuple[str, str, str | None, int, bool]], limit: int
    ) -> list[int] | None:
        """Write (channel, key, state, sessions, anonymous) each; see `rowcast.presence_write`."""
        columns = [list(column) for column in zip(*members, strict=True)]
        refused: list[int] | None = await self._bridge.fetchval(
            WRITE_PRESENCE, node, *columns, limit
        )
        return refused

    async def read_presence(self, channels: Sequence[str]) -> list[asyncpg.Record]:
        """Read the members of some channels; see `rowcast.presence_read`."""
        rows: list[asyncpg.Record] = await self._bridge.fetch(READ_PRESENCE, channels)
        return rows

    async def keep_handles(self, handles: Sequence[tuple[bytes, str]]) -> None:
        """Keep the cursor of each handle, given by its digest."""
        await self.row(KEEP_HANDLES, *zip(*handles, strict=True))

    async def find_handles(self, keys: Sequence[bytes]) -> list[str | None]:
        """Return the cursor of each handle, or None."""
        return list((await self.row(FIND_HANDLES, keys))[0])

    async def answer_census(
        self, node: UUID, request: UUID, told: Sequence[tuple[str, str, str, int]], out: int | None
    ) -> bool:
        """Report (role, claims, channel, sessions) each; see `rowcast.census_answer`."""
        columns = [[row[n] for row in told] for n in range(4)]
        return bool((await self.row(ANSWER_CENSUS, node, request, *columns, out))[0])

    async def alive(self) -> None:
        """Raise when the database does not answer."""
        await self._bridge.fetchval("select 1", timeout=2)

    async def sleep_begin(self, connection: Connection) -> bool:
        """Take the doorbell lock, without waiting."""
        return bool(await connection.fetchval(SLEEP_BEGIN, timeout=DOORBELL_TIMEOUT))

    async def sleep_end(self, connection: Connection) -> None:
        """Release the doorbell lock."""
        await connection.fetchval(SLEEP_END, timeout=DOORBELL_TIMEOUT)

    async def open_writers(self, connection: Connection) -> set[str]:
        """Return the transactions that may have written without ringing."""
        return set(await connection.fetchval(OPEN_WRITERS, timeout=DOORBELL_TIMEOUT))

    async def probe(self, connection: Connection, nonce: str) -> bool:
        """Notify this connection itself; returns whether it holds the doorbell lock."""
        return bool(await connection.fetchval(PROBE, nonce))

    @asynccontextmanager
    async def dedicated(self, *, listening: bool = False) -> AsyncIterator[Connection]:
        """Open a connection of its own, and terminate it afterwards, whatever happened."""
        connection = await self.connect(listening=listening)
        try:
            yield connection
        finally:
            connection.terminate()


def _is_pooler(variable: str, error: Exception) -> UnfitError:
    return UnfitError(
        f"{variable} leads to a pooler ({error}): set ROWCAST_LISTEN_URL to the server itself, or"
        " ROWCAST_DOORBELL=poll."
    )
