"""The rules for the SQL of this project, one function each.

A rule takes statements, a function or a text and yields a sentence for each violation. The test
beside this file applies each rule to the real files and to a bad example that it must catch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import pglast
from pglast import ast, enums

from style.sources import (
    Function,
    Statement,
    embedded_queries,
    functions,
    nodes,
    plpgsql_nodes,
    tokens,
    type_name,
)

__all__ = [
    "bodies_parse",
    "code_can_run_again",
    "comments_match",
    "definer_is_decided",
    "dynamic_sql_quotes",
    "file_tells_its_subject",
    "functions_are_explained",
    "lower_case",
    "migrations_hold_state",
    "migrations_spare_functions",
    "names_have_prefixes",
    "path_is_pinned",
    "policies_can_run_again",
    "triggers_show_their_order",
    "unquoted_formats",
    "volatility_is_written",
]

# Public functions: callers name their parameters, publish(channel => …), so these have no prefix.
NAMED_BY_CALLERS = {
    "rowcast.attach",
    "rowcast.audience",
    "rowcast.delete_message",
    "rowcast.detach",
    "rowcast.kick",
    "rowcast.presence_state",
    "rowcast.explain_access",
    "rowcast.publish",
    "rowcast.publish_as_system",
    "rowcast.publish_many",
    "rowcast.recheck",
    "rowcast.recheck_detach",
    "rowcast.recheck_on_change",
    "rowcast.redeliver",
    "rowcast.redeliver_failed",
    "rowcast.rotate_secret",
}

# Places where the argument of `%s` in format() is already quoted, and why it is.
QUOTED_BEFORE = {
    "00_roles.sql do": "quote_ident() in the declarations, regrole, and fixed words",
    "76_compat_auth.sql do": "types, from a literal array",
    "77_compat_realtime.sql do": "quote_ident() in the query of the loop",
    "99_grants.sql do": "quote_ident() in the query of the loop",
    "rowcast.make_leaf": "quote_ident() of the columns",
    "rowcast.attach": "regclass, which prints itself quoted, and event words that are checked",
    "rowcast.detach": "regclass, which prints itself quoted",
    "rowcast.evaluate_as": "it exists to run an expression, only for its owner",
    "rowcast.plan_policy": "the same, explained",
    "rowcast.recheck_detach": "regclass, which prints itself quoted",
    "rowcast.recheck_on_change": "regclass, which prints itself quoted, and fixed words",
    "rowcast.lock_down_table": "regclass, and quote_ident() in the query of the loop",
}

# Code that a migration needs before sql/ is applied, as "file: kind of statement".
CODE_IN_MIGRATIONS: dict[str, str] = {}

RUNS_AGAIN = (
    ast.AlterDefaultPrivilegesStmt,
    ast.CommentStmt,
    ast.DoStmt,
    ast.GrantRoleStmt,
    ast.GrantStmt,
)
STATE = (
    ast.AlterObjectSchemaStmt,
    ast.AlterOwnerStmt,
    ast.AlterSeqStmt,
    ast.AlterTableStmt,
    ast.CommentStmt,
    ast.CompositeTypeStmt,
    ast.CreateDomainStmt,
    ast.CreateEnumStmt,
    ast.CreateSeqStmt,
    ast.CreateStmt,
    ast.DeleteStmt,
    ast.DropStmt,
    ast.IndexStmt,
    ast.InsertStmt,
    ast.RenameStmt,
    ast.UpdateStmt,
)

# Inside a block: statements that fail on a second run, or take a lock again.
ONCE = re.compile(
    r"create (?!or replace)|alter (?!default privileges)|drop (?!.*\bif exists\b)", re.S
)

Findings = Iterator[str]


def _sets_role(node: Any) -> bool:
    return isinstance(node, ast.VariableSetStmt) and node.name == "role"


def _calls_own_functions(node: Any) -> bool:
    """``select rowcast.f(…)``: the way to run a procedure of ours."""
    return isinstance(node, ast.SelectStmt) and all(
        isinstance(target.val, ast.FuncCall) and target.val.funcname[0].sval == "rowcast"
        for target in node.targetList or ()
    )


def code_can_run_again(found: list[Statement]) -> Findings:
    """All of sql/ is applied again at every change, so each statement must be repeatable."""
    for s in found:
        replaces = isinstance(s.node, ast.CreateFunctionStmt | ast.CreateTrigStmt | ast.ViewStmt)
        again = (
            isinstance(s.node, RUNS_AGAIN)
            or (replaces and s.node.replace)
            or (isinstance(s.node, ast.DropStmt) and s.node.missing_ok)
            or _sets_role(s.node)
            or _calls_own_functions(s.node)
        )
        if not again:
            yield f"{s.where}: {s.kind} cannot run twice; state belongs to migrations/"
        if isinstance(s.node, ast.DoStmt):
            yield from _guarded(Function(s))


def _guarded(block: Function) -> Findings:
    """In a ``do`` block, statements that create or alter must be inside a condition."""
    conditional = _behind_condition(block.compiled)
    for kind, fields in plpgsql_nodes(block.compiled):
        if kind == "PLpgSQL_stmt_execsql" and fields not in conditional:
            query = fields["sqlstmt"]["PLpgSQL_expr"]["query"]
            if ONCE.match(query):
                line = block.statement.line + fields["lineno"] - 1
                yield f"{block.statement.file}:{line}: put a condition around {query[:40]!r}"


def _behind_condition(tree: Any, inside: bool = False) -> list[Any]:
    found: list[Any] = []
    if isinstance(tree, dict):
        for kind, fields in tree.items():
            if inside and kind == "PLpgSQL_stmt_execsql":
                found.append(fields)
            conditional = kind in ("then_body", "else_body", "elsif_list", "case_when_list")
            found += _behind_condition(fields, inside or conditional)
    elif isinstance(tree, list):
        for element in tree:
            found += _behind_condition(element, inside)
    return found


def migrations_hold_state(found: list[Statement]) -> Findings:
    """Migrations run once; code in them could not be read in its present form in one place."""
    for s in found:
        listed = f"{s.file}: {s.kind}" in CODE_IN_MIGRATIONS
        if not (isinstance(s.node, STATE) or _sets_role(s.node) or listed):
            yield f"{s.where}: {s.kind} is code: move it to sql/"


def migrations_spare_functions(found: list[Statement]) -> Findings:
    """A default or check that calls our function would need sql/ to run before migrations/."""
    for s in found:
        for node in nodes(s.node):
            if isinstance(node, ast.FuncCall) and node.funcname[0].sval == "rowcast":
                yield f"{s.where}: calls {node.funcname[-1].sval}(), which does not exist yet"


def policies_can_run_again(found: list[Statement]) -> Findings:
    """Postgres has no ``create or replace policy``, so each is dropped first if it exists."""
    dropped: set[tuple[str, ...]] = set()
    for s in found:
        if isinstance(s.node, ast.DropStmt) and s.node.removeType == enums.ObjectType.OBJECT_POLICY:
            dropped |= {tuple(part.sval for part in names) for names in s.node.objects}
        if isinstance(s.node, ast.CreatePolicyStmt):
            table = s.node.table
            if (table.schemaname, table.relname, s.node.policy_name) not in dropped:
                yield f"{s.where}: drop policy if exists {s.node.policy_name} on … first"
        else:
            yield from code_can_run_again([s])


def file_tells_its_subject(text: str, file: str) -> Findings:
    """A file begins with a comment about its subject."""
    first = re.match(r"((?:--[^\n]*\n)+)", text)
    if first is None or not _is_prose(first[1].replace("--", "")):
        yield f"{file}:1: begin with a comment that says what the file is about"


def lower_case(text: str, file: str) -> Findings:
    """Keywords and names, also inside dollar-quoted bodies."""
    for kind, token, line in tokens(text):
        if kind == "SCONST" and token.startswith("$"):
            tag = token[: token.index("$", 1) + 1]
            for inner in lower_case(token[len(tag) : -len(tag)], file):
                where, _, rest = inner.removeprefix(f"{file}:").partition(": ")
                yield f"{file}:{line + int(where) - 1}: {rest}"
        elif kind in ("SCONST", "XCONST", "BCONST", "SQL_COMMENT", "C_COMMENT"):
            continue
        elif token != token.lower() and token[0] != '"':
            yield f"{file}:{line}: write {token.lower()}, not {token}"


def bodies_parse(found: list[Statement]) -> Findings:
    """Find syntax errors in branches that no test reaches."""
    for f in functions(found, blocks=True):
        try:
            if f.language == "plpgsql":
                for _ in embedded_queries(f):
                    pass
            elif f.body:
                pglast.parse_sql(f.body)
        except pglast.parser.ParseError as error:
            yield f"{f.statement.where}: body of {f.name}: {error}"


def volatility_is_written(f: Function) -> Findings:
    """The default is volatile; write it, so that readers need not know that."""
    if f.name == "do":
        return
    if f.volatility is None:
        yield f"{f.statement.where}: {f.name}: write immutable, stable or volatile"
    if f.option("strict") is not None and f.volatility == "volatile":
        yield f"{f.statement.where}: {f.name}: strict would turn a NULL into a silent no-op"


def definer_is_decided(f: Function) -> Findings:
    """Only an inlined function may leave it out, because it runs with the caller's rights."""
    inlined = f.language == "sql" and not f.body and not f.settings
    if f.definer is None and not inlined and f.name != "do":
        yield f"{f.statement.where}: {f.name}: write security invoker or security definer"


# Inlined, or run at every publish: with the caller's rights, and every name in them is qualified.
QUALIFIED = {
    "rowcast.read_new_range",
    "rowcast.read_new_ranges",
    "rowcast.messages_caller",
    "rowcast.notify_sleeping_bridges",
}


def path_is_pinned(f: Function) -> Findings:
    """pg_temp is searched first unless it is named, and every role may create tables in it."""
    needed = (
        f.name != "do"
        and (f.definer or f.language == "plpgsql" or bool(f.body))
        and (f.definer or f.name not in QUALIFIED)
    )
    path = f.settings.get("search_path")
    if needed and path not in ("pg_catalog, pg_temp", ""):
        yield f"{f.statement.where}: {f.name}: set search_path = pg_catalog, pg_temp"


def functions_are_explained(found: list[Statement]) -> Findings:
    """A comment above says why; overloads may share the comment of the one before."""
    last = ""
    for f in functions(found):
        if not _is_prose(f.statement.comment) and last != f.name:
            yield f"{f.statement.where}: {f.name}: add a comment above that says why it exists"
        last = f.name


def _is_prose(comment: str) -> bool:
    comment = comment.strip()
    return len(comment.split()) > 2 and comment.endswith((".", "?", "!", ":"))


def comments_match(found: list[Statement]) -> Findings:
    """Each function has a ``comment on function`` with its present signature."""
    written = {}
    for s in found:
        function = enums.ObjectType.OBJECT_FUNCTION
        if isinstance(s.node, ast.CommentStmt) and s.node.objtype == function:
            name = ".".join(part.sval for part in s.node.object.objname)
            arguments = (type_name(t) for t in s.node.object.objargs or ())
            written[f"{name}({', '.join(arguments)})"] = s
    for f in functions(found):
        comment = written.pop(f.signature, None)
        if comment is None:
            yield f"{f.statement.where}: comment on function {f.signature} is missing"
        elif not _is_prose(comment.node.comment or ""):
            yield f"{comment.where}: the comment of {f.name} is not a sentence"
    for signature, s in written.items():
        yield f"{s.where}: comments {signature}, which is not in this file"


def names_have_prefixes(f: Function) -> Findings:
    """Without a prefix, a parameter named like a column silently means the column."""
    for p in f.parameters:
        if f.name not in NAMED_BY_CALLERS and not (p.name or "").startswith("p_"):
            yield f"{f.statement.where}: {f.name}: parameter {p.name or '(unnamed)'}: use p_"
    if f.language != "plpgsql":
        return
    given = {p.name for p in getattr(f.statement.node, "parameters", None) or ()}
    given |= {"sqlstate", "sqlerrm"}  # every exception block has them
    for kind, fields in plpgsql_nodes(f.compiled):
        if kind in ("PLpgSQL_var", "PLpgSQL_rec") and "lineno" in fields:
            name = fields["refname"]
            if not re.match(r"v_|[ijn]\Z", name) and name not in given:
                yield f"{f.statement.where}: {f.name}: variable {name}: use v_"


def triggers_show_their_order(found: list[Statement]) -> Findings:
    """Triggers fire in the order of their names, so each name contains a number."""
    for s in found:
        if isinstance(s.node, ast.CreateTrigStmt):
            table, name = s.node.relation.relname, s.node.trigname
            if not re.fullmatch(rf"{table}_\d\d_[a-z_]+", name):
                yield f"{s.where}: trigger {name}: name it {table}_<nn>_<verb>"


def dynamic_sql_quotes(f: Function) -> Findings:
    """In executed text ``%s`` allows injection unless its argument is already quoted."""
    if f.place not in QUOTED_BEFORE:
        yield from unquoted_formats(f)


def unquoted_formats(f: Function) -> Findings:
    """As `dynamic_sql_quotes`, but also for the listed places."""
    if f.language != "plpgsql":
        return
    compiled = f.compiled
    kinds = {kind for kind, _ in plpgsql_nodes(compiled)}
    if not kinds & {"PLpgSQL_stmt_dynexecute", "PLpgSQL_stmt_dynfors"}:
        return
    for call in _format_calls(embedded_queries(f)):
        template = call.args[0]
        text = template.val.sval if isinstance(template, ast.A_Const) else None
        if text is None:
            yield f"{f.statement.where}: {f.name}: the first argument of format() must be a literal"
        elif re.search(r"%(\d+\$)?s", text):
            yield f"{f.statement.where}: {f.name}: %s in {text[:60]!r}: use %I or %L"


def _format_calls(trees: Iterable[Any]) -> Iterator[ast.FuncCall]:
    for tree in trees:
        for node in nodes(tree):
            if isinstance(node, ast.FuncCall) and node.funcname[-1].sval == "format":
                yield node
