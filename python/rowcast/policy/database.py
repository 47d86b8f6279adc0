"""The queries of the workbench, in transactions that are rolled back.

Checks run as a caller role inside the functions that bridges call. Whatever a policy, a fixture or
a policy file writes is undone with the transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg
from psycopg import errors, sql
from psycopg.rows import dict_row

from rowcast.postgres.connect import Connection, DatabaseError, open_connection
from rowcast.postgres.diagnose import server_sentence

__all__ = [
    "BRIEF",
    "AccessRequest",
    "Connection",
    "Workbench",
    "connect_workbench",
    "database_errors",
]

LIMIT_TIME = (
    "select set_config('statement_timeout', %s, true), set_config('lock_timeout', %s, true)"
)
IMPERSONATE = "select rowcast.impersonate(%s, %s, %s)"
IS_NAME = "select rowcast.is_name(%s)"
CALLER_ROLES = "select rowcast.caller_roles()"
CHECK = "select * from rowcast.check_subscribe(%s, %s::text[], %s::text[])"
PUBLISH = "select rowcast.publish_as(%s, %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::uuid[])"  # noqa: E501
MATCHING_CHANNELS = "select * from rowcast.matching_channels(%s)"
BARRIERS = "select * from rowcast.barriers(%s, %s)"
POLICIES = "select * from rowcast.policies_for(%s, %s)"
EVALUATE = "select * from rowcast.evaluate_policy(%s, %s, %s, %s, %s, %s, %s::jsonb, %s::text[])"
VERDICT = "select rowcast.verdict(%s::boolean[], %s::text[])"
PLAN = "select rowcast.plan_policy(%s, %s, %s, %s, %s)"
ROWS = "select c.reltuples::bigint from pg_catalog.pg_class as c where c.oid = to_regclass(%s)"
POLICY_NAMES = "select p.schemaname, p.tablename, p.policyname from pg_catalog.pg_policies as p where p.schemaname = 'public' and p.tablename in ('realtime_channels', 'realtime_messages') and p.policyname <> 'rowcast_publisher'"  # noqa: E501
HAS_RECHECK = "select to_regproc('rowcast.recheck') is not null"
RECHECK = "select rowcast.recheck()"
CENSUS_ASK = "select rowcast.census_ask()"
CENSUS_WAIT = "select * from rowcast.census_wait(%s, make_interval(secs => %s))"
CENSUS_READ = "select * from rowcast.census_read(%s)"
POLICY_LINT = "select * from rowcast.policy_lint()"
POLICY_TEXTS = "select object, statement from rowcast.policy_texts()"
POLICY_CONTEXT_TEXTS = "select object, statement from rowcast.policy_context_texts()"
LITERAL_CHANNELS = "select c.pattern from public.realtime_channels as c where rowcast.is_name(c.pattern) order by 1"  # noqa: E501

# Milliseconds: the query timeout of a bridge, which a check has too.
TIMEOUT = "5000"
# For checks of a dry run, during which tables are locked.
BRIEF = "500"
# For fixtures, which may have many rows.
LONG_TIMEOUT = "60000"
LOCK_TIMEOUT = "2000"


@dataclass(frozen=True, slots=True)
class AccessRequest:
    """A request of a caller to subscribe or publish.

    Args:
        action: "subscribe" or "publish".
        role: a caller role.
        claims: the claims of the verified token, JSON text.
        channel: a channel name.
        event: the event of a publish.
        payload: the payload of a publish, JSON text.
        type: "message" or "broadcast".
    """

    action: str
    role: str
    claims: str
    channel: str
    event: str = "message"
    payload: str = "{}"
    type: str = "message"


class Workbench:
    """A connection for checks that leave nothing behind.

    Args:
        connection: a connection of the migrating role or of the caller login. It may be in a
            transaction; its changes are then visible and stay.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Roll back everything done in the block, including settings and roles.

        Raises:
            DatabaseError: the database refused a statement in the block.
        """
        with database_errors(self.connection), self.connection.transaction(force_rollback=True):
            self.set_timeouts()
            yield

    def set_timeouts(self, timeout: str = TIMEOUT) -> None:
        """Set statement_timeout (milliseconds) and lock_timeout for this transaction."""
        self.connection.execute(LIMIT_TIME, [timeout, LOCK_TIMEOUT])

    def ensure_role(self, role: str) -> None:
        """Make sure that this login can become `role` until the trial ends.

        Raises:
            DatabaseError: tokens may not name the role, or this login may not become it.
        """
        login = self.connection.info.user
        self._refuse_others(role)
        try:
            with self.connection.transaction(force_rollback=True):
                self.connection.execute(IMPERSONATE, [role, None, None])
            return
        except errors.InsufficientPrivilege as refused:
            if str(refused.diag.source_function).startswith("aclcheck"):
                raise self._unfit() from refused
        except errors.InvalidParameterValue as unknown:
            raise DatabaseError(f"Role {role} does not exist in this cluster.") from unknown
        # The creator of a role, and on 15 any role with CREATEROLE, may grant it to itself.
        names = (sql.Identifier(role), sql.Identifier(login))
        try:
            with self.connection.transaction():
                self.connection.execute(sql.SQL("grant {} to {}").format(*names))
        except errors.InsufficientPrivilege as refused:
            raise DatabaseError(
                f"The login {login} may not become {role}. Ask an administrator to run: "
                f'grant "{role}" to "{login}";'
            ) from refused

    def _refuse_others(self, role: str) -> None:
        try:
            roles: list[str] = self._value(CALLER_ROLES)
        except errors.InsufficientPrivilege as refused:
            raise self._unfit() from refused
        if role not in roles:
            raise DatabaseError(
                f"Tokens may not name the role {role}. The caller roles are {', '.join(roles)} "
                "(rowcast.settings.caller_roles)."
            )

    def _unfit(self) -> DatabaseError:
        return DatabaseError(
            f"The login {self.connection.info.user} may not check policies. Give the URL of the "
            "migrating role or of rowcast_caller with --database-url."
        )

    def is_name(self, channel: str) -> bool:
        """Say whether this is a valid channel name."""
        return bool(self._value(IS_NAME, channel))

    def enabled(self, request: AccessRequest) -> bool | None:
        """Say whether the governing channel is enabled; None if no channel matches."""
        with self.connection.transaction(force_rollback=True):
            row = self.check_subscribe(request.role, [request.claims], [request.channel])[0]
        enabled: bool | None = row["enabled"]
        return enabled

    def check_subscribe(
        self, role: str, claims: Sequence[str], channels: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Return the rows of `rowcast.check_subscribe`, called as bridges do."""
        return self._rows(CHECK, role, list(claims), list(channels))

    def publish_as(self, request: AccessRequest) -> None:
        """Insert the message with `rowcast.publish_as`, as bridges do.

        Raises:
            psycopg.Error: the database refused it.
        """
        r = request
        values = [[r.claims], [r.channel], [r.type], [r.event], [r.payload], [None]]
        self.connection.execute(PUBLISH, [r.role, *values])

    def matching_channels(self, channel: str) -> list[dict[str, Any]]:
        """Return the channels whose patterns match; the first one governs the name."""
        return self._rows(MATCHING_CHANNELS, channel)

    def barriers(self, action: str, role: str) -> list[dict[str, Any]]:
        """Return what decides besides the policies: role, row level security, grants."""
        return self._rows(BARRIERS, action, role)

    def policies(self, action: str, role: str) -> list[dict[str, Any]]:
        """Return the policies of the table that the action checks."""
        return self._rows(POLICIES, action, role)

    def evaluate(self, request: AccessRequest, expressions: Sequence[str]) -> list[dict[str, Any]]:
        """Evaluate expressions as the caller.

        Raises:
            psycopg.errors.QueryCanceled: one of them took too long, which ends all of them.
        """
        r = request
        with self.connection.transaction(force_rollback=True):
            return self._rows(
                EVALUATE, r.action, r.role, r.claims, r.channel, r.type, r.event, r.payload,
                list(expressions),
            )  # fmt: skip

    def verdict(self, permissive: Sequence[bool], said: Sequence[str | None]) -> list[str]:
        """Return the outcomes (allow, deny, error) that these values make possible."""
        outcomes: list[str] = self._value(VERDICT, list(permissive), list(said))
        return outcomes

    def plan(self, request: AccessRequest, expression: str) -> Any:
        """Return the plan of an expression with sequential scans disabled, or None."""
        r = request
        with self.connection.transaction(force_rollback=True):
            return self._value(PLAN, r.action, r.role, r.claims, r.channel, expression)

    def rows_of(self, table: str) -> int:
        """Return the estimated number of rows of a table; -1 if it was never analysed."""
        rows: int = self._value(ROWS, table)
        return rows

    def run_sql(self, text: str, what: str) -> None:
        """Run any number of statements of a team in the current transaction.

        Args:
            text: the statements.
            what: where they come from, for error messages.

        Raises:
            DatabaseError: a statement failed or tried to end the transaction.
        """
        if not text.strip():
            return
        # EXECUTE refuses COMMIT, which would otherwise keep everything before it.
        body = sql.SQL("begin execute {}; end").format(sql.Literal(text))
        script = sql.SQL("do {}").format(sql.Literal(body.as_string(self.connection)))
        try:
            self.connection.execute(LIMIT_TIME, [LONG_TIMEOUT, LOCK_TIMEOUT])
            self.connection.execute(script)
            self.set_timeouts()
        except psycopg.Error as problem:
            at = problem.diag.internal_position
            if at and problem.diag.internal_query == text:
                what += f", line {text.count(chr(10), 0, int(at) - 1) + 1}"
            raise DatabaseError(f"{what}: {server_sentence(problem)}") from problem

    def run_sql_in_savepoint(self, text: str, what: str) -> None:
        """Like `run_sql`, in a savepoint: the owner of the connection ends the transaction."""
        with self.connection.transaction():
            self.run_sql(text, what)

    def add_channel(self, columns: Mapping[str, Any]) -> None:
        """Create a channel, or change the one that has this pattern."""
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        values = sql.SQL(", ").join(map(sql.Placeholder, columns))
        changes = sql.SQL(", ").join(
            sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in columns
        )
        statement = "insert into public.realtime_channels ({}) values ({}) on conflict (pattern) do update set {}"  # noqa: E501
        self.connection.execute(sql.SQL(statement).format(names, values, changes), columns)

    def drop_policies(self) -> None:
        """Drop all policies of the two tables except that of rowcast."""
        for row in self._rows(POLICY_NAMES):
            policy, table = (
                sql.Identifier(row["policyname"]),
                sql.Identifier(row["schemaname"], row["tablename"]),
            )
            self.connection.execute(sql.SQL("drop policy {} on {}").format(policy, table))

    def recheck(self) -> bool:
        """Make bridges recheck their clients; return False if this version cannot."""
        if not self._value(HAS_RECHECK):
            return False
        self._rows(RECHECK)
        return True

    def census_ask(self) -> UUID | None:
        """Ask bridges for their subscriptions; return None if no bridge is running."""
        request: UUID | None = self._value(CENSUS_ASK)
        return request

    def census_read(
        self, request: UUID, patience: float
    ) -> tuple[dict[str, int], list[dict[str, Any]]]:
        """Wait up to `patience` seconds for the answers, and read them.

        Returns:
            The columns of `rowcast.census_wait`, and the rows of `rowcast.census_read`.
        """
        with self.connection.transaction():
            self.set_timeouts(LONG_TIMEOUT)
            (state,) = self._rows(CENSUS_WAIT, request, patience)
            return state, self._rows(CENSUS_READ, request)

    def policy_lint(self) -> list[dict[str, Any]]:
        """Return the rows of `rowcast.policy_lint()`."""
        return self._rows(POLICY_LINT)

    def policy_texts(self) -> list[tuple[str, str]]:
        """Return name and CREATE POLICY statement of each policy that callers meet."""
        return self.connection.execute(POLICY_TEXTS).fetchall()

    def policy_context_texts(self) -> list[tuple[str, str]]:
        """Return name and CREATE statement of the functions and views around these policies."""
        return self.connection.execute(POLICY_CONTEXT_TEXTS).fetchall()

    def literal_channels(self) -> list[str]:
        """Return the channels whose pattern is a plain name."""
        return [row["pattern"] for row in self._rows(LITERAL_CHANNELS)]

    def _rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        with self.connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query.encode(), parameters).fetchall()

    def _value(self, query: str, *parameters: Any) -> Any:
        (row,) = self._rows(query, *parameters)
        (value,) = row.values()
        return value


@contextmanager
def connect_workbench(url: str) -> Iterator[Workbench]:
    """Connect for the length of a block.

    Raises:
        DatabaseError: the database cannot be reached.
    """
    with open_connection(url, "rowcast policy") as connection:
        yield Workbench(connection)


@contextmanager
def database_errors(connection: Connection) -> Iterator[None]:
    """Translate errors of the database into one sentence each.

    Raises:
        DatabaseError: the database refused a statement in the block.
    """
    try:
        yield
    except (errors.UndefinedFunction, errors.InvalidSchemaName) as gone:
        if "rowcast." not in str(gone):
            raise DatabaseError(server_sentence(gone)) from gone
        raise DatabaseError(
            f"The database {connection.info.dbname} does not have this version of rowcast: "
            "run `rowcast migrate` first."
        ) from gone
    except psycopg.Error as problem:
        raise DatabaseError(server_sentence(problem)) from problem
