"""What the two systems call their tables and columns, and what those are here.

A rewriter changes the expression of one policy for one of our tables. What it cannot say here it
refuses with a sentence, and the policy is not ported: a condition that is left out would open
what it closed.
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
    """A condition means something that there is no word for here; the message says what."""


@dataclass(slots=True)
class System:
    """Rewrites expressions written for another system.

    Attributes:
        files: the file, for the columns of tables that it makes.
        remarks: sentences about what reads the same and is not.
    """

    files: Files
    remarks: list[str] = field(default_factory=list)

    def targets(self, table: str, command: str) -> dict[str, str]:
        """Return for which of our tables a policy is, and for which command there.

        Raises:
            NotPortableError: for none.
        """
        raise NotImplementedError

    def rewrite(self, expression: Any, table: str) -> Any:
        """Return an expression for a policy on one of our tables.

        Raises:
            NotPortableError: it means what there is no word for.
        """
        raise NotImplementedError

    def remark(self, sentence: str) -> None:
        """Say something once."""
        if sentence not in self.remarks:
            self.remarks.append(sentence)

    def own(self, node: Any, above: tuple[Any, ...], relation: str) -> str:
        """Return the column's name if it is one of the table of the policy; or nothing.

        A bare name in a sub-select is the inner table's if that has such a column. Where nobody
        knows that, it stays: if it meant the outer table, PostgreSQL will not find it.
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

    A policy there is asked with a row that nobody sent: its `extension` says whether about
    broadcasts or about presence. Here presence follows listening, so an expression is taken as it
    is for broadcasts.
    """

    def targets(self, table: str, command: str) -> dict[str, str]:
        if table != "realtime.messages":
            raise NotPortableError(f"{table} has no counterpart here.")
        found = {
            "select": {CHANNELS: "select"},
            "insert": {MESSAGES: "insert"},
            "all": {CHANNELS: "select", MESSAGES: "insert"},
        }
        if command not in found:
            raise NotPortableError("messages are never changed or deleted by callers here.")
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
                    "it is about presence alone, which has no policy of its own here: whoever may "
                    "listen to a channel sees and tracks presence there."
                )
            if shown["postgres_changes"].lower() != "false":
                raise NotPortableError(
                    "it is about postgres_changes, which there are none of here: a table publishes "
                    "its changes with rowcast.attach() to those who may listen to the channel."
                )
            raise NotPortableError("it never lets a broadcast through.")
        if shown["presence"] != shown["broadcast"]:
            self.remark(
                "Presence was decided apart; here whoever may listen sees and tracks presence."
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
                    f"{parts(node)[0]} inside a sub-select is taken for a column of the inner "
                    "table; where it was that of realtime.messages, write its table before it."
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
            self.remark(f"{name} is that of each message here; there it was not known yet.")
            return column("realtime_messages", here[name])
        if name in (*here, "id", "updated_at"):
            raise NotPortableError(f"{name} is not known when somebody asks to listen.")
        return node


class InsForge(System):
    """InsForge Realtime: `realtime.channels` for listening, `realtime.messages` for the rest."""

    def targets(self, table: str, command: str) -> dict[str, str]:
        if table == "realtime.channels":
            if command == "all":
                self.remark(
                    "Only listening was ported; who may make channels is decided by your grants "
                    "and further policies on realtime_channels."
                )
            elif command != "select":
                self.remark(f"Callers have no grant to {command} channels here until you give it.")
            return {CHANNELS: "select" if command == "all" else command}
        if table == "realtime.messages" and command in ("select", "insert"):
            return {MESSAGES: command}
        if table == "realtime.messages" and command == "all":
            raise NotPortableError(
                "it is for every command: publishing and history are different questions here, "
                "write one policy for INSERT and one for SELECT."
            )
        if table == "realtime.messages":
            raise NotPortableError("messages are never changed or deleted by callers here.")
        raise NotPortableError(f"{table} has no counterpart here.")

    def rewrite(self, expression: Any, table: str) -> Any:
        relation = "channels" if table == CHANNELS else "messages"

        def change(node: Any, above: tuple[Any, ...]) -> Any:
            if called(node) in ("realtime.channel_name", "channel_name"):
                return name_of(table)
            name = self.own(node, above, relation)
            if name == "sender_id" and not any(map(_as_text, above[-1:])):
                raise NotPortableError(
                    "sender_id is text here, because not every subject is a UUID: compare it with "
                    "text."
                )
            if name and len(parts(node)) > 1:
                node = column(table.partition(".")[2], name)
            if relation == "channels":
                self._patterns(node, above)
            return segments(node, table)

        return transform(transform(deepcopy(expression), change), fold)

    def _patterns(self, node: Any, above: tuple[Any, ...]) -> None:
        """A pattern in a comparison is one of ours: ``*`` for ``%``."""
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
    """``sender_id = auth.uid()``: the uuid becomes the text that sender_id is here."""
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
