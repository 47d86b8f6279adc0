"""Collects what policy files define together: policies, tables, functions, views, grants.

Rules use this instead of single statements, because one file may create a table and another its
policies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rowcast.policy.optional import need
from rowcast.policy.source import Source, Statement, walk

__all__ = [
    "CHANNELS",
    "MESSAGES",
    "Files",
    "Function",
    "Policy",
    "Table",
    "View",
    "columns_of",
    "qualified",
    "table_name",
]

CHANNELS = "public.realtime_channels"
MESSAGES = "public.realtime_messages"

# The columns of the two tables that policies are written for, with their types.
KNOWN = {
    CHANNELS: {
        "id": "uuid",
        "pattern": "text",
        "description": "text",
        "webhook_urls": "text[]",
        "enabled": "bool",
        "is_public": "bool",
        "owner_id": "text",
        "wildcard": "bool",
        "options": "jsonb",
        "created_at": "timestamptz",
        "updated_at": "timestamptz",
    },
    MESSAGES: {
        "seq": "int8",
        "id": "uuid",
        "xid": "xid8",
        "type": "text",
        "channel_id": "uuid",
        "channel_name": "text",
        "event_name": "text",
        "payload": "jsonb",
        "sender_type": "text",
        "sender_id": "text",
        "ws_audience_count": "int4",
        "wh_audience_count": "int4",
        "publish_key": "uuid",
        "created_at": "timestamptz",
    },
}


@dataclass(frozen=True, slots=True)
class Policy:
    """A ``create policy`` or an ``alter policy``.

    Attributes:
        command: ``select``, ``insert``, ``update``, ``delete`` or ``all``; empty if an altered
            policy is not created in these files.
        roles: the roles as written; ``public`` without TO.
        every_role: whether it is for every role: without TO, or to PUBLIC.
    """

    statement: Statement
    name: str
    table: str
    command: str
    permissive: bool
    roles: tuple[str, ...]
    every_role: bool
    using: Any
    check: Any
    altered: bool = False

    @property
    def expressions(self) -> tuple[Any, ...]:
        """USING and WITH CHECK, if they are written."""
        return tuple(e for e in (self.using, self.check) if e is not None)

    def walk(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """Yield every node of the expressions with its ancestors."""
        for expression in self.expressions:
            yield from walk(expression)

    @property
    def reads(self) -> list[tuple[str, Any]]:
        """The tables of its sub-selects, each with the node that names it."""
        ast = need("pglast.ast")
        made = {n.ctename for n, _ in self.walk() if isinstance(n, ast.CommonTableExpr)}
        return [
            (table_name(n), n)
            for n, _ in self.walk()
            if isinstance(n, ast.RangeVar) and (n.schemaname or n.relname not in made)
        ]

    @property
    def selects(self) -> bool:
        """Whether it applies to reading."""
        return self.command in ("select", "all")


@dataclass(slots=True)
class Table:
    """A table that these files create."""

    statement: Statement
    columns: dict[str, str]
    secured: bool = False


@dataclass(frozen=True, slots=True)
class Function:
    """A function that these files create.

    Attributes:
        definer: whether it is SECURITY DEFINER.
        volatile: whether it is neither STABLE nor IMMUTABLE.
        settings: names of the settings that it pins with SET.
        body: the trees of its statements, as far as they can be parsed.
    """

    statement: Statement
    name: str
    definer: bool
    volatile: bool
    settings: frozenset[str]
    body: tuple[Any, ...]

    @property
    def tables(self) -> set[str]:
        """The tables that it reads or writes."""
        range_var = need("pglast.ast").RangeVar
        return {table_name(n) for tree in self.body for n, _ in walk(tree) if type(n) is range_var}


@dataclass(frozen=True, slots=True)
class View:
    """A view that these files create.

    Attributes:
        invoker: whether it checks the policies of its reader.
        materialized: whether it is a materialized view, which cannot do that.
    """

    statement: Statement
    name: str
    invoker: bool
    tables: frozenset[str]
    materialized: bool = False


@dataclass(slots=True)
class Files:
    """Everything that the files define."""

    sources: tuple[Source, ...]
    policies: list[Policy] = field(default_factory=list)
    tables: dict[str, Table] = field(default_factory=dict)
    functions: list[Function] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    readable: set[str] = field(default_factory=set)
    forced: list[tuple[str, Statement]] = field(default_factory=list)
    opened: list[tuple[str, Statement]] = field(default_factory=list)

    @classmethod
    def of(cls, sources: Iterable[Source]) -> Files:
        """Collect the definitions of parsed files."""
        files = cls(tuple(sources))
        for source in files.sources:
            for statement in source.statements:
                files._take(statement)
        return files

    @property
    def statements(self) -> Iterator[Statement]:
        """Every statement of every file."""
        for source in self.sources:
            yield from source.statements

    def columns(self, table: str) -> dict[str, str] | None:
        """Return the columns of a table with their types; None if the files do not show them."""
        if table in KNOWN:
            return KNOWN[table]
        return self.tables[table].columns if table in self.tables else None

    def policies_for_reading(self, table: str) -> list[Policy]:
        """Return the policies that decide which rows of a table are visible."""
        return [p for p in self.policies if p.table == table and p.selects]

    def functions_named(self, name: str) -> list[Function]:
        """Return the functions, overloads included, that a call by this name may mean."""
        names = {name} if "." in name else {f"public.{name}", f"pg_catalog.{name}"}
        return [function for function in self.functions if function.name in names]

    def _take(self, statement: Statement) -> None:
        node, ast = statement.node, need("pglast.ast")
        if isinstance(node, ast.CreatePolicyStmt | ast.AlterPolicyStmt):
            self._take_policy(statement)
        elif isinstance(node, ast.CreateStmt):
            name = table_name(node.relation)
            self.tables.setdefault(name, Table(statement, columns_of(node)))
        elif isinstance(node, ast.AlterTableStmt):
            self._take_change(statement)
        elif isinstance(node, ast.CreateFunctionStmt):
            self.functions.append(_function(statement))
        elif isinstance(node, ast.ViewStmt):
            reads = {table_name(n) for n, _ in walk(node.query) if isinstance(n, ast.RangeVar)}
            invoker = any(
                option.defname == "security_invoker" and _true(option.arg)
                for option in node.options or ()
            )
            self.views.append(View(statement, table_name(node.view), invoker, frozenset(reads)))
        elif isinstance(node, ast.CreateTableAsStmt):
            self._take_materialized_view(statement)
        elif isinstance(node, ast.GrantStmt) and node.is_grant:
            self._take_grant(node)

    def _take_policy(self, statement: Statement) -> None:
        node, ast = statement.node, need("pglast.ast")
        table, altered = table_name(node.table), isinstance(node, ast.AlterPolicyStmt)
        command = "" if altered else str(node.cmd_name)
        permissive = altered or bool(node.permissive)
        if altered:
            for known in self.policies:
                if (known.name, known.table) == (node.policy_name, table):
                    command, permissive = known.command, known.permissive
        roles = tuple(map(_role, node.roles or ()))
        self.policies.append(
            Policy(
                statement=statement,
                name=node.policy_name,
                table=table,
                command=command,
                permissive=permissive,
                roles=roles or ("public",),
                every_role="public" in roles or not (roles or altered),
                using=node.qual,
                check=node.with_check,
                altered=altered,
            )
        )

    def _take_change(self, statement: Statement) -> None:
        kinds = need("pglast.enums").AlterTableType
        table = table_name(statement.node.relation)
        for change in statement.node.cmds or ():
            if change.subtype == kinds.AT_EnableRowSecurity and table in self.tables:
                self.tables[table].secured = True
            elif change.subtype == kinds.AT_ForceRowSecurity:
                self.forced.append((table, statement))
            elif change.subtype == kinds.AT_DisableRowSecurity:
                self.opened.append((table, statement))

    def _take_materialized_view(self, statement: Statement) -> None:
        node, ast = statement.node, need("pglast.ast")
        if node.objtype == need("pglast.enums").ObjectType.OBJECT_MATVIEW:
            reads = {table_name(n) for n, _ in walk(node.query) if isinstance(n, ast.RangeVar)}
            name = table_name(node.into.rel)
            self.views.append(View(statement, name, False, frozenset(reads), materialized=True))

    def _take_grant(self, node: Any) -> None:
        ast, everywhere = need("pglast.ast"), need("pglast.enums").GrantTargetType
        privileges = {p.priv_name for p in node.privileges or ()} or {"select"}
        if "select" in privileges:
            tables = (t for t in node.objects or () if isinstance(t, ast.RangeVar))
            self.readable |= {table_name(table) for table in tables}
            if node.targtype == everywhere.ACL_TARGET_ALL_IN_SCHEMA:
                schemas = {schema.sval for schema in node.objects}
                self.readable |= {t for t in self.tables if t.partition(".")[0] in schemas}


def table_name(node: Any) -> str:
    """Return ``schema.table``; a name without a schema is assumed to be in public."""
    return f"{node.schemaname or 'public'}.{node.relname}"


def _role(node: Any) -> str:
    kinds = need("pglast.enums").RoleSpecType
    if node.roletype == kinds.ROLESPEC_PUBLIC:
        return "public"
    return str(node.rolename or "current_user")


def qualified(names: Any) -> str:
    """Return the dotted name of a function, a type or a column."""
    return ".".join(getattr(part, "sval", "*") for part in names)


def columns_of(node: Any) -> dict[str, str]:
    """Return the columns of a ``create table`` with their types."""
    column = need("pglast.ast").ColumnDef
    return {
        element.colname: element.typeName.names[-1].sval
        + "[]" * len(element.typeName.arrayBounds or ())
        for element in node.tableElts or ()
        if isinstance(element, column)
    }


def _function(statement: Statement) -> Function:
    node = statement.node
    options = {option.defname: option.arg for option in node.options or ()}
    language = getattr(options.get("language"), "sval", "sql")
    text = options.get("as")
    written = text[0].sval if isinstance(text, tuple) else getattr(text, "sval", "")
    body: tuple[Any, ...] = (node.sql_body,) if node.sql_body is not None else ()
    if written:
        body = tuple(_body(statement, language, written))
    return Function(
        statement=statement,
        name=_function_name(node.funcname),
        definer=bool(getattr(options.get("security"), "boolval", False)),
        volatile=getattr(options.get("volatility"), "sval", "volatile") == "volatile",
        settings=frozenset(o.arg.name for o in node.options or () if o.defname == "set"),
        body=body,
    )


def _function_name(names: Any) -> str:
    name = qualified(names)
    return name if "." in name else f"public.{name}"


def _body(statement: Statement, language: str, text: str) -> Iterator[Any]:
    """Yield the trees of a body that is a string; nothing if it cannot be parsed."""
    pglast = need("pglast")
    try:
        if language == "sql":
            yield from (raw.stmt for raw in pglast.parse_sql(text))
        elif language == "plpgsql":
            source = statement.source
            piece = source.slices[statement.index]
            for query in _plpgsql(pglast.parse_plpgsql(source.text[piece] + ";")):
                yield from (raw.stmt for raw in pglast.parse_sql(query))
    except pglast.parser.ParseError:
        return


def _plpgsql(tree: Any) -> Iterator[str]:
    if isinstance(tree, list):
        for element in tree:
            yield from _plpgsql(element)
    elif isinstance(tree, dict):
        if "query" in tree and tree.get("parseMode") in (0, 2):
            query = tree["query"]
            yield query if tree["parseMode"] == 0 else "select " + query
        for value in tree.values():
            yield from _plpgsql(value)


def _true(node: Any) -> bool:
    if node is None:
        return True
    value = getattr(node, "sval", None)
    return bool(getattr(node, "boolval", False)) if value is None else value in ("true", "on", "1")
