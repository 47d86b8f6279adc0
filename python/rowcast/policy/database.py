"""The SQL of the workbench: each statement one call, and all of it undone, whatever it did.

What is asked runs as a caller role inside the functions that bridges call. A policy that writes,
a fixture, a policy file under trial: all of it is in a transaction that is rolled back.
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

from rowcast.postgres.connect import CONNECT_TIMEOUT, DatabaseError
from rowcast.postgres.diagnose import explain

__all__ = [
    "BRIEF",
    "AccessRequest",
    "Connection",
    "Workbench",
    "connect_workbench",
    "database_errors",
    "error_sentence",
]

Connection = psycopg.Connection[Any]

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

# Milliseconds: as long as a bridge lets a question take, and how long it waits for a lock.
TIMEOUT = "5000"
# While tables are locked, for everybody to be asked.
BRIEF = "500"
# Fixtures may be many rows.
LONG_TIMEOUT = "60000"
LOCK_TIMEOUT = "2000"


@dataclass(frozen=True, slots=True)
class AccessRequest:
    """May somebody with this role and these claims (JSON text) do this?

    Args:
        action: "subscribe" or "publish".
        role: a caller role.
        claims: JSON text of the verified token.
        channel: a name.
        event: of a publish.
        payload: of a publish, JSON text.
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
    """A connection that asks, and leaves nothing behind.

    Args:
        connection: of the migrating role or of the caller login; it may be in a transaction, whose
            changes are then seen and kept.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Undo in the end whatever is done in the block, settings and roles included.

        Raises:
            DatabaseError: the database refused what was asked in the block.
        """
        with database_errors(self.connection), self.connection.transaction(force_rollback=True):
            self.set_timeouts()
            yield

    def set_timeouts(self, timeout: str = TIMEOUT) -> None:
        """Let no statement of this transaction run or wait for long."""
        self.connection.execute(LIMIT_TIME, [timeout, LOCK_TIMEOUT])

    def ensure_role(self, role: str) -> None:
        """See to it that this login can become `role` until the trial ends.

        Raises:
            DatabaseError: no token may name the role, or this login has no right to become it.
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
            raise DatabaseError(f"There is no role {role} in this cluster.") from unknown
        # Who made the role, or may make roles at all on 15, may lend it to himself.
        names = (sql.Identifier(role), sql.Identifier(login))
        try:
            with self.connection.transaction():
                self.connection.execute(sql.SQL("grant {} to {}").format(*names))
        except errors.InsufficientPrivilege as refused:
            raise DatabaseError(
                f"The login {login} may not become {role}: let an administrator run: "
                f'grant "{role}" to "{login}";'
            ) from refused

    def _refuse_others(self, role: str) -> None:
        try:
            roles: list[str] = self._value(CALLER_ROLES)
        except errors.InsufficientPrivilege as refused:
            raise self._unfit() from refused
        if role not in roles:
            raise DatabaseError(
                f"No token may name the role {role}: the caller roles are {', '.join(roles)} "
                "(rowcast.settings.caller_roles)."
            )

    def _unfit(self) -> DatabaseError:
        return DatabaseError(
            f"The login {self.connection.info.user} may not ask the policies: name the migrating "
            "role, or rowcast_caller, with --database-url."
        )

    def is_name(self, channel: str) -> bool:
        """Say whether this is a channel name at all."""
        return bool(self._value(IS_NAME, channel))

    def enabled(self, question: AccessRequest) -> bool | None:
        """Say whether the channel that governs the name is enabled; None when there is none."""
        with self.connection.transaction(force_rollback=True):
            row = self.check_subscribe(question.role, [question.claims], [question.channel])[0]
        enabled: bool | None = row["enabled"]
        return enabled

    def check_subscribe(
        self, role: str, claims: Sequence[str], channels: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Ask `rowcast.check_subscribe`, as a bridge does."""
        return self._rows(CHECK, role, list(claims), list(channels))

    def publish_as(self, question: AccessRequest) -> None:
        """Insert the message by `rowcast.publish_as`, as a bridge does.

        Raises:
            psycopg.Error: it was refused.
        """
        q = question
        values = [[q.claims], [q.channel], [q.type], [q.event], [q.payload], [None]]
        self.connection.execute(PUBLISH, [q.role, *values])

    def matching_channels(self, channel: str) -> list[dict[str, Any]]:
        """Return the channels whose patterns match, the governing one first."""
        return self._rows(MATCHING_CHANNELS, channel)

    def barriers(self, action: str, role: str) -> list[dict[str, Any]]:
        """Return what decides besides the policies."""
        return self._rows(BARRIERS, action, role)

    def policies(self, action: str, role: str) -> list[dict[str, Any]]:
        """Return the policies of the table that is asked."""
        return self._rows(POLICIES, action, role)

    def evaluate(self, question: AccessRequest, expressions: Sequence[str]) -> list[dict[str, Any]]:
        """Evaluate expressions as the caller; one that takes too long ends all of them.

        Raises:
            psycopg.errors.QueryCanceled: it took too long.
        """
        q = question
        with self.connection.transaction(force_rollback=True):
            return self._rows(
                EVALUATE, q.action, q.role, q.claims, q.channel, q.type, q.event, q.payload,
                list(expressions),
            )  # fmt: skip

    def verdict(self, permissive: Sequence[bool], said: Sequence[str | None]) -> list[str]:
        """Return which of allow, deny and error can come of it."""
        outcomes: list[str] = self._value(VERDICT, list(permissive), list(said))
        return outcomes

    def plan(self, question: AccessRequest, expression: str) -> Any:
        """Return how an expression would be executed without sequential scans, or None."""
        q = question
        with self.connection.transaction(force_rollback=True):
            return self._value(PLAN, q.action, q.role, q.claims, q.channel, expression)

    def rows_of(self, table: str) -> int:
        """Return the estimated size of a table; -1 when it was never analysed."""
        rows: int = self._value(ROWS, table)
        return rows

    def run_sql(self, text: str, what: str) -> None:
        """Run SQL of a team, of any number of statements, in the present transaction.

        Raises:
            DatabaseError: it failed, or tried to end the transaction; the message says where.
        """
        if not text.strip():
            return
        # EXECUTE refuses COMMIT, which would make all that was tried before it real.
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
            raise DatabaseError(f"{what}: {error_sentence(problem)}") from problem

    def run_sql_in_savepoint(self, text: str, what: str) -> None:
        """The same in a transaction that whoever gave the connection ends as he likes."""
        with self.connection.transaction():
            self.run_sql(text, what)

    def add_channel(self, columns: Mapping[str, Any]) -> None:
        """Make a channel; one of this pattern that exists is changed."""
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        values = sql.SQL(", ").join(map(sql.Placeholder, columns))
        changes = sql.SQL(", ").join(
            sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in columns
        )
        statement = "insert into public.realtime_channels ({}) values ({}) on conflict (pattern) do update set {}"  # noqa: E501
        self.connection.execute(sql.SQL(statement).format(names, values, changes), columns)

    def drop_policies(self) -> None:
        """Drop every policy of the two tables but our own."""
        for row in self._rows(POLICY_NAMES):
            policy, table = (
                sql.Identifier(row["policyname"]),
                sql.Identifier(row["schemaname"], row["tablename"]),
            )
            self.connection.execute(sql.SQL("drop policy {} on {}").format(policy, table))

    def recheck(self) -> bool:
        """Have bridges ask again for the clients they have; false where that is not known."""
        if not self._value(HAS_RECHECK):
            return False
        self._rows(RECHECK)
        return True

    def census_ask(self) -> UUID | None:
        """Ask bridges who is connected; None when no bridge is running."""
        request: UUID | None = self._value(CENSUS_ASK)
        return request

    def census_read(
        self, request: UUID, patience: float
    ) -> tuple[dict[str, int], list[dict[str, Any]]]:
        """Wait for the answers at most so many seconds, and take them.

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
        """Return the channels that are names themselves."""
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
        DatabaseError: no connection.
    """
    try:
        connection = psycopg.connect(
            url,
            autocommit=True,
            prepare_threshold=None,  # through a pooler a prepared statement may land elsewhere
            connect_timeout=CONNECT_TIMEOUT,
            application_name="rowcast policy",
        )
    except psycopg.Error as problem:
        raise DatabaseError(explain(problem, url).sentence) from problem
    with connection:
        yield Workbench(connection)


@contextmanager
def database_errors(connection: Connection) -> Iterator[None]:
    """Turn what the database refuses into sentences.

    Raises:
        DatabaseError: something was refused in the block.
    """
    try:
        yield
    except (errors.UndefinedFunction, errors.InvalidSchemaName) as gone:
        if "rowcast." not in str(gone):
            raise DatabaseError(error_sentence(gone)) from gone
        raise DatabaseError(
            f"The database {connection.info.dbname} has no rowcast, or an older one: "
            "run `rowcast migrate` first."
        ) from gone
    except psycopg.Error as problem:
        raise DatabaseError(error_sentence(problem)) from problem


def error_sentence(problem: psycopg.Error) -> str:
    """Say in one line what the server said."""
    message = " ".join(str(problem.diag.message_primary or problem).split()).rstrip(".")
    hint = problem.diag.message_hint
    return f"{message[:1].upper()}{message[1:]}." + (f" {hint}" if hint else "")
