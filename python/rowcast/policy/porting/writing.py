"""Writes the ported file: new policies, with comments and all other statements unchanged.

A statement that cannot be ported stays in the file as a comment with the reason, so that readers
see what is missing.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Any

from rowcast.errors import UsageError
from rowcast.policy.lint.files import CHANNELS, Files, Policy
from rowcast.policy.lint.findings import Level
from rowcast.policy.lint.linting import lint_sources
from rowcast.policy.lint.style import tidy
from rowcast.policy.optional import need
from rowcast.policy.source import Source, Statement, parse_source

from .systems import SYSTEMS, NotPortableError
from .trees import boolean

__all__ = ["Ported", "port_policies"]

PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
WIDTH = 98


@dataclass(frozen=True, slots=True)
class Ported:
    """The new file and remarks about it.

    Attributes:
        text: the new file.
        refused: one sentence per policy or statement that was not ported, with its name.
        remarks: sentences about what differs in ported policies.
    """

    text: str
    refused: tuple[str, ...]
    remarks: tuple[str, ...]


def port_policies(name: str, text: str, system: str) -> Ported:
    """Port the policies of a file.

    Args:
        name: the name of the file in errors.
        text: the content of the file.
        system: one of `SYSTEMS`.

    Raises:
        UsageError: a statement is not SQL.
        MissingExtraError: pglast or sqlfluff is not installed.
    """
    source = parse_source(name, text)
    if source.faults:
        fault = source.faults[0]
        line, column = source.place(fault.offset)
        raise UsageError(f"{name}:{line}:{column}: {fault.message}.")
    return _Writer(source, system).write()


class _Writer:
    def __init__(self, source: Source, system: str) -> None:
        self._source = source
        self._files = Files.of([source])
        self._system = SYSTEMS[system](self._files)
        self._refused: list[str] = []
        self._listening = False

    def write(self) -> Ported:
        """Port all statements, with the comments between them."""
        text, end = self._source.text, 0
        blocks: list[str] = []
        for statement in self._source.statements:
            if statement.inside:
                continue
            piece = self._source.slices[statement.index]
            above = _comments(text[end : piece.start], blocks)
            end = self._source.ends[statement.index]
            new = self._statement(statement, text[piece])
            blocks.append("\n".join(part for part in (above, new) if part))
        blocks.append(_comments(text[end:], blocks))
        written = "\n\n".join(block for block in blocks if block)
        return Ported(f"{written}\n", tuple(self._refused), self._all_remarks())

    def _statement(self, statement: Statement, text: str) -> str:
        ast, node = need("pglast.ast"), statement.node
        if isinstance(node, ast.CreatePolicyStmt) and node.table.schemaname == "realtime":
            policy = next(p for p in self._files.policies if p.statement is statement)
            try:
                return self._policy(policy)
            except NotPortableError as problem:
                return self._refuse(f"policy {policy.name!r}", str(problem), text)
        if isinstance(node, ast.AlterPolicyStmt) and node.table.schemaname == "realtime":
            return self._refuse(
                f"policy {node.policy_name!r}",
                "ALTER POLICY needs the policy that it alters: write CREATE POLICY.",
                text,
            )
        if self._is_dropped(node):
            return ""
        if re.search(r"\brealtime\s*\.", text, re.IGNORECASE):
            return self._other(node, text)
        return f"{text};"

    def _policy(self, policy: Policy) -> str:
        written = []
        for table, command in self._system.targets(policy.table, policy.command).items():
            given = policy.check if command == "insert" else policy.using
            if policy.command == "all" and given is None:
                given = policy.using
            if given is None:
                raise NotPortableError("it does not have a condition.")
            condition = self._system.rewrite(given, table)
            check = policy.check if command not in ("insert", "select") else None
            checked = self._system.rewrite(check, table) if check is not None else None
            written.append(self._printed(policy, table, command, condition, checked))
            self._listening |= table == CHANNELS and command == "select"
        return "\n\n".join(written)

    def _printed(
        self, policy: Policy, table: str, command: str, condition: Any, checked: Any
    ) -> str:
        text, comment = _text(condition), ""
        if boolean(condition) is True and table == CHANNELS:
            text = "enabled"  # disabled channels cannot be subscribed to anyway
        elif boolean(condition) is True:
            comment = "-- rowcast:disable=RCL101 as before: every caller that TO names\n"
        name = _quoted(policy.name)
        kind = "" if policy.permissive else "as restrictive "
        roles = ", ".join(map(_quoted, policy.roles))
        clause = "with check" if command == "insert" else "using"
        also = f"\nwith check ({_text(checked)})" if checked is not None else ""
        made = (
            f"create policy {name}\non {table}\n{kind}for {command} to {roles}\n"
            f"{clause} ({text}){also};\n"
        )
        for finding in lint_sources([parse_source("ported.sql", comment + made)]):
            if finding.level is Level.ERROR and finding.disabled is None:
                raise NotPortableError(f"{finding.message} ({finding.code}). {finding.hint}")
        return f"drop policy if exists {name} on {table};\n{comment}{tidy(made).strip()}"

    def _is_dropped(self, node: Any) -> bool:
        """Say whether a statement is not needed: the new file or `migrate` does it."""
        ast, enums = need("pglast.ast"), need("pglast.enums")
        if isinstance(node, ast.DropStmt) and node.removeType == enums.ObjectType.OBJECT_POLICY:
            return all(names[0].sval == "realtime" for names in node.objects)
        if isinstance(node, ast.AlterTableStmt) and node.relation.schemaname == "realtime":
            return all(
                change.subtype == enums.AlterTableType.AT_EnableRowSecurity for change in node.cmds
            )
        return False

    def _other(self, node: Any, text: str) -> str:
        ast = need("pglast.ast")
        kind = type(node).__name__.removesuffix("Stmt")
        if isinstance(node, ast.GrantStmt):
            return self._refuse("a grant", "`rowcast migrate` grants what callers need.", text)
        if isinstance(node, ast.CreateFunctionStmt | ast.CreatePolicyStmt | ast.DoStmt):
            self._system.remark(
                f"A {kind} that names schema realtime was left unchanged: make sure that what it "
                "calls exists here, and pass channel_name to functions for messages."
            )
            return f"{text};"
        return self._refuse(
            f"a statement ({kind})", "it is about tables of the other system.", text
        )

    def _refuse(self, what: str, why: str, text: str) -> str:
        self._refused.append(f"{what}: {why}")
        comment = textwrap.fill(
            f"Not ported: {why}", WIDTH, initial_indent="-- ", subsequent_indent="-- "
        )
        return "\n".join([comment, *(f"-- {line}".rstrip() for line in f"{text};".splitlines())])

    def _all_remarks(self) -> tuple[str, ...]:
        if self._listening:
            self._system.remark(
                "Every name needs a channel that governs it: insert patterns into "
                "realtime_channels."
            )
            self._system.remark(
                "History needs its own policies: see recipe history_for_subscribers."
            )
        return tuple(self._system.remarks)


def _comments(between: str, blocks: list[str]) -> str:
    """Return the comments above a statement; one after the previous statement stays there."""
    behind, _, above = between.partition("\n")
    if not blocks:
        return between.strip("\n")
    if behind.strip():
        blocks[-1] += behind.rstrip()
    return above.strip("\n")


def _text(condition: Any) -> str:
    """Return an expression as SQL, each arm of its top AND or OR on its own line."""
    printer, ast = need("pglast.stream").RawStream, need("pglast.ast")
    kinds = need("pglast.enums").BoolExprType
    if not isinstance(condition, ast.BoolExpr) or condition.boolop == kinds.NOT_EXPR:
        return str(printer()(condition))
    arms = [
        f"({printer()(arm)})" if isinstance(arm, ast.BoolExpr) else printer()(arm)
        for arm in condition.args
    ]
    word = "and" if condition.boolop == kinds.AND_EXPR else "or"
    return "\n" + f"\n{word} ".join(arms) + "\n"


def _quoted(name: str) -> str:
    if PLAIN.fullmatch(name):
        kind = need("pglast").scan(name)[0].kind
        if kind in ("NO_KEYWORD", "UNRESERVED_KEYWORD"):
            return name
    escaped = name.replace('"', '""')
    return f'"{escaped}"'
