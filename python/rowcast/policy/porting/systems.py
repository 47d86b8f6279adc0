"""Maps tables and columns of two other systems to those of rowcast.

A rewriter changes the expression of one policy for one of our tables. If it cannot express a
condition it refuses with a sentence, and the policy is not ported: leaving the condition out would
allow what it refused.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from rowcast.errors import RowcastError
from rowcast.policy.lint.expressions import called, in_subselect, scopes
from rowcast.policy.lint.files import CHANNELS, MESSAGES, Files
from rowcast.policy.optional import need

from .trees import (
    call,
    column,
    fold,
    literal,
    name_of,
    parts,
    segments,
    text_of,
    transform,
)

__all__ = ["SYSTEMS", "InsForge", "NotPortableError", "Supabase", "System"]

IDENTITY = {"auth.uid", "rowcast.uid"}


class NotPortableError(RowcastError):
    """A condition cannot be expressed in rowcast; the message says which."""


@dataclass(slots=True)
class System:
    """Rewrites expressions written for another system.

    Attributes:
        files: the file, for the columns of tables that it creates.
        remarks: sentences about parts that look the same but differ.
    """

    files: Files
    remarks: list[str] = field(default_factory=list)

    def targets(self, table: str, command: str) -> dict[str, str]:
        """Return the tables of rowcast that a policy becomes, each with its command.

        Raises:
            NotPortableError: the policy does not have a counterpart.
        """
        raise NotImplementedError

    def rewrite(self, expression: Any, table: str) -> Any:
        """Return an expression for a policy on one of our tables.

        Raises:
            NotPortableError: it cannot be expressed here.
        """
        raise NotImplementedError

    def remark(self, sentence: str) -> None:
        """Add a remark, but only once."""
        if sentence not in self.remarks:
            self.remarks.append(sentence)

    def own(self, node: Any, above: tuple[Any, ...], relation: str) -> str:
        """Return the name of a column if it belongs to the table of the policy, or nothing.

        An unqualified name in a sub-select belongs to the inner table if that has such a column. If
        its columns are unknown the name stays: if it meant the outer table, PostgreSQL reports it.
        """
        names = parts(node)
        inner = list(scopes(above))
        if len(names) == 3 and names[:2] == ("realtime", relation):
            return names[2]
        if len(names) == 2 and names[0] == relation and not any(names[0] in s for s in inner):
            return names[1]
        if len(names) != 1:
            return ""
        columns = [self.files.columns(t) if t else None for scope in inner for t in scope.values()]
        foreign = all(known is not None and names[0] not in known for known in columns)
        return names[0] if foreign else ""


class Supabase(System):
    """Supabase Realtime: one table, `realtime.messages`, for receiving and sending.

    Supabase evaluates a policy on a made-up row, whose `extension` says whether it is about
    broadcasts or presence. In rowcast presence follows subscribing, so the expression is taken as
    it is for broadcasts.
    """

    def targets(self, table: str, command: str) -> dict[str, str]:
        if table != "realtime.messages":
            raise NotPortableError(f"{table} does not have a counterpart here.")
        found = {
            "select": {CHANNELS: "select"},
            "insert": {MESSAGES: "insert"},
            "all": {CHANNELS: "select", MESSAGES: "insert"},
        }
        if command not in found:
            raise NotPortableError("callers never change or delete messages here.")
        return found[command]

    def rewrite(self, expression: Any, table: str) -> Any:
        printer = need("pglast.stream").RawStream
        answers = {
            extension: transform(deepcopy(expression), self._change(table, extension))
            for extension in ("broadcast", "presence", "postgres_changes")
        }
        answers = {name: transform(tree, fold) for name, tree in answers.items()}
        shown = {name: printer()(tree) for name, tree in answers.items()}
        if shown["broadcast"].lower() == "false":
            if shown["presence"].lower() != "false":
                raise NotPortableError(
                    "it is about presence alone, which does not have its own policy here: callers "
                    "that may listen to a channel see and track presence there."
                )
            if shown["postgres_changes"].lower() != "false":
                raise NotPortableError(
                    "it is about postgres_changes, which rowcast does not have: rowcast.attach() "
                    "makes a table publish its changes to callers that may listen to the channel."
                )
            raise NotPortableError("it never allows a broadcast.")
        if shown["presence"] != shown["broadcast"]:
            self.remark(
                "Presence had its own condition; here callers that may listen see and track it."
            )
        return answers["broadcast"]

    def _change(self, table: str, extension: str) -> Any:
        def change(node: Any, above: tuple[Any, ...]) -> Any:
            if called(node) in ("realtime.topic", "topic"):
                return name_of(table)
            replaced = node
            name = self.own(node, above, "messages")
            if name:
                replaced = self._column(node, name, table, extension)
            elif parts(node) in (("topic",), ("extension",)):
                self.remark(
                    f"{parts(node)[0]} inside a sub-select is taken as a column of the inner "
                    "table; if it was that of realtime.messages, qualify it with its table."
                )
            return segments(replaced, table)

        return change

    def _column(self, node: Any, name: str, table: str, extension: str) -> Any:
        if name == "topic":
            return name_of(table)
        if name == "extension":
            return literal(extension)
        if name == "private":
            return literal(True)  # every channel is
        here = {"payload": "payload", "event": "event_name", "inserted_at": "created_at"}
        if name in here and table == MESSAGES:
            self.remark(f"{name} is that of the message here; there it was not known yet.")
            return column("realtime_messages", here[name])
        if name in (*here, "id", "updated_at"):
            raise NotPortableError(f"{name} is not known when a caller subscribes.")
        return node


class InsForge(System):
    """InsForge Realtime: `realtime.channels` for listening, `realtime.messages` for the rest."""

    def targets(self, table: str, command: str) -> dict[str, str]:
        if table == "realtime.channels":
            if command == "all":
                self.remark(
                    "Only listening was ported; your grants and further policies on "
                    "realtime_channels decide about creating channels."
                )
            elif command != "select":
                self.remark(f"Callers may not {command} channels here until you grant it.")
            return {CHANNELS: "select" if command == "all" else command}
        if table == "realtime.messages" and command in ("select", "insert"):
            return {MESSAGES: command}
        if table == "realtime.messages" and command == "all":
            raise NotPortableError(
                "it is for every command: publishing and history are separate here, so write one "
                "policy for INSERT and one for SELECT."
            )
        if table == "realtime.messages":
            raise NotPortableError("callers never change or delete messages here.")
        raise NotPortableError(f"{table} does not have a counterpart here.")

    def rewrite(self, expression: Any, table: str) -> Any:
        relation = "channels" if table == CHANNELS else "messages"

        def change(node: Any, above: tuple[Any, ...]) -> Any:
            if called(node) in ("realtime.channel_name", "channel_name"):
                return name_of(table)
            name = self.own(node, above, relation)
            if name == "sender_id" and not any(map(_as_text, above[-1:])):
                raise NotPortableError(
                    "sender_id is text here, because a subject need not be a UUID: compare it with "
                    "text."
                )
            if name and len(parts(node)) > 1:
                node = column(table.partition(".")[2], name)
            if relation == "channels":
                self._patterns(node, above)
            return segments(node, table)

        return transform(transform(deepcopy(expression), change), fold)

    def _patterns(self, node: Any, above: tuple[Any, ...]) -> None:
        """Rewrite ``%`` to ``*`` in a text that is compared with a pattern."""
        ast = need("pglast.ast")
        if not isinstance(node, ast.A_Expr) or node.name[-1].sval not in ("=", "<>"):
            return
        values = node.rexpr if isinstance(node.rexpr, tuple) else (node.rexpr,)
        sides = [node.lexpr, *values]
        ours = {("pattern",), ("realtime_channels", "pattern")}
        if in_subselect(above):
            ours.remove(("pattern",))
        if not any(parts(side) in ours for side in sides):
            return
        for side in sides:
            text = text_of(side)
            if text is not None and "%" in text:
                side.val.sval = text.replace("%", "*")
                self.remark(
                    "A pattern's % is * here, and * is one segment: write ** at the end of the "
                    "channel's pattern, and in the policy, where names may be longer."
                )


def _as_text(node: Any) -> bool:
    """Rewrite ``sender_id = auth.uid()`` to text, because sender_id is text here."""
    ast = need("pglast.ast")
    if not isinstance(node, ast.A_Expr) or node.name[-1].sval != "=":
        return False
    for name in ("lexpr", "rexpr"):
        side = getattr(node, name)
        if isinstance(side, ast.SubLink) and len(side.subselect.targetList or ()) == 1:
            side = side.subselect.targetList[0].val
        if called(side) in IDENTITY:
            setattr(node, name, call("rowcast.user_id"))
            return True
    return False


SYSTEMS: dict[str, type[System]] = {"insforge": InsForge, "supabase": Supabase}
