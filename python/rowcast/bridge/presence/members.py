"""What clients of this bridge tracked, kept in the database.

A member is a user, not a connection: its tabs share one row, in which the one that tracked last
speaks. Only what is newest is written, many members in one statement, so the number of writes
depends on time and not on how often clients track.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from rowcast.bridge.database import UNAVAILABLE, Database
from rowcast.bridge.node import INTERVAL, PAUSE, Node
from rowcast.bridge.session import Session
from rowcast.config import Settings
from rowcast.errors import Refusal
from rowcast.observe import observe

__all__ = ["Tracking", "key_of"]

# Members in one statement.
PORTION = 500
# OpenID Connect Core 1.0, section 2: a sub must not exceed 255 ASCII characters.
KEY_BYTES = 255


def key_of(session: Session) -> tuple[str, bool]:
    """The key of a session's member, and whether it is anonymous: nobody chooses his own.

    Raises:
        Refusal: it has no token, or one whose sub is too long.
    """
    subject = session.authenticated().subject
    if subject is None:
        return session.id, True
    if len(subject.encode()) > KEY_BYTES:
        raise Refusal("invalid_token", f"The sub of the token is over {KEY_BYTES} bytes.")
    return subject, False


Waiting = dict[Session, list[Any]]  # who waits for an answer to which requests


@dataclass(slots=True, eq=False)
class _Member:
    anonymous: bool
    tabs: dict[Session, str] = field(default_factory=dict)  # newest last
    written: str | None = None
    waiting: Waiting = field(default_factory=dict)

    @property
    def state(self) -> str | None:
        return next(reversed(self.tabs.values()), None)


Name = tuple[str, str]  # channel and key


class Tracking:
    """All members with a client here.

    Args:
        database: where they are kept.
        node: whose they are.
        settings: the size of a state, and the time to come back.
    """

    def __init__(self, database: Database, node: Node, settings: Settings) -> None:
        self._database = database
        self._node = node
        self._settings = settings
        self._members: dict[Name, _Member] = {}
        self._sizes: Counter[str] = Counter()
        self._keys: dict[tuple[Session, str], str] = {}
        self._ghosts: deque[tuple[float, Session, str]] = deque()
        self._dirty: dict[Name, None] = {}
        self._changed = asyncio.Event()
        self.answer: Callable[[Session, str, list[Any], Refusal | None], None]
        node.forgotten.append(self._rewrite)

    def size(self, channel: str) -> int:
        """How many members of a channel have a client here."""
        return self._sizes[channel]

    def holds(self, channel: str, key: str) -> bool:
        """Whether this member has a client here."""
        return (channel, key) in self._members

    def track(self, session: Session, channel: str, state: str, ref: Any) -> None:
        """Show a session's member in this state.

        `answer` is called with the ref when this state, or a newer one of the session, is written.

        Raises:
            Refusal: see `key_of`.
        """
        key, _ = key_of(session)
        if self._keys.get((session, channel), key) != key:
            self._drop(session, channel)
        self._show(session, channel, state)
        self._wait(session, channel, key, ref)

    def _show(self, session: Session, channel: str, state: str) -> None:
        key, anonymous = key_of(session)
        member = self._members.get((channel, key))
        if member is None:
            member = self._members[channel, key] = _Member(anonymous)
            self._sizes[channel] += 1
        self._keys[session, channel] = key
        member.tabs.pop(session, None)
        member.tabs[session] = state
        self._touch(channel, key)

    def _wait(self, session: Session, channel: str, key: str, ref: Any) -> None:
        refs = self._members[channel, key].waiting.setdefault(session, [])
        if len(refs) >= self._settings.max_pending:
            # All of them have been overtaken. While the database is slow they would pile up.
            self.answer(session, channel, refs.copy(), None)
            refs.clear()
        refs.append(ref)

    def untrack(self, session: Session, channel: str, ref: Any) -> None:
        """Show it no more; `answer` is called with the ref when that is written."""
        key = self._drop(session, channel)
        if key is None:
            self.answer(session, channel, [ref], None)
        else:
            self._wait(session, channel, key, ref)

    def rename(self, session: Session) -> None:
        """The session speaks for another user than before."""
        for channel in session.subscriptions:
            before = self._keys.get((session, channel))
            if before is not None and before != key_of(session)[0]:
                state = self._members[channel, before].tabs[session]
                self._drop(session, channel)
                self._show(session, channel, state)

    def leave(self, session: Session, channel: str, *, lost: bool) -> None:
        """A session has left a channel.

        Args:
            session: which.
            channel: which.
            lost: its connection was; it may be on its way back. Somebody anonymous comes back as
                somebody else.
        """
        key = self._keys.get((session, channel))
        if key is None:
            return
        if lost and not self._members[channel, key].anonymous:
            until = time.monotonic() + self._settings.presence_grace
            self._ghosts.append((until, session, channel))
            self._changed.set()
        else:
            self._drop(session, channel)

    def _drop(self, session: Session, channel: str) -> str | None:
        key = self._keys.pop((session, channel), None)
        if key is not None:
            self._members[channel, key].tabs.pop(session)
            self._touch(channel, key)
        return key

    def _touch(self, channel: str, key: str) -> None:
        self._dirty[channel, key] = None
        self._changed.set()

    def _rewrite(self) -> None:
        self._dirty.update(dict.fromkeys(self._members))
        self._changed.set()

    async def run(self) -> None:
        """Write what changed, for ever; returns only when cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience()):
                    await self._changed.wait()
            self._changed.clear()
            while self._ghosts and self._ghosts[0][0] <= time.monotonic():
                _, session, channel = self._ghosts.popleft()
                self._drop(session, channel)
            pause = asyncio.create_task(asyncio.sleep(INTERVAL))
            dirty, self._dirty = list(self._dirty), {}
            written = [
                await self._write(dirty[at : at + PORTION]) for at in range(0, len(dirty), PORTION)
            ]
            await (pause if all(written) else asyncio.sleep(PAUSE))

    def _patience(self) -> float | None:
        return max(0.0, self._ghosts[0][0] - time.monotonic()) if self._ghosts else None

    async def _write(self, names: list[Name]) -> bool:
        taken: list[_Taken] = []
        for name in names:
            member = self._members[name]
            taken.append((name, member, member.state, member.waiting))
            member.waiting = {}
        rows = [
            (channel, key, state, len(member.tabs), member.anonymous)
            for (channel, key), member, state, _ in taken
        ]
        try:
            async with self._node.turn:
                refused = await self._database.write_presence(
                    self._node.id, rows, self._settings.max_state
                )
        except asyncpg.DataError as error:
            # A state that is JSON, but not to Postgres: the others must not suffer from it.
            if len(names) == 1:
                self._settle(taken, [1], Refusal("invalid_message", f"The state: {error}."))
                return True
            self._put_back(taken)
            return all([await self._write([name]) for name in names])
        except (*UNAVAILABLE, asyncpg.PostgresError) as error:
            observe("presence_failed", error=error)
            refused = None
        if refused is None:
            self._put_back(taken)
            self._dirty.update(dict.fromkeys(names))
            self._changed.set()
            self._node.renew()
            return False
        limit = f"The state is over {self._settings.max_state} bytes, as Postgres writes it."
        self._settle(taken, refused, Refusal("payload_too_large", limit))
        return True

    @staticmethod
    def _put_back(taken: list[_Taken]) -> None:
        for _, member, _, waiting in taken:
            for session, refs in waiting.items():
                member.waiting[session] = refs + member.waiting.get(session, [])

    def _settle(self, taken: list[_Taken], refused: Sequence[int], refusal: Refusal) -> None:
        for number, (name, member, state, waiting) in enumerate(taken, 1):
            if number in refused:
                self._take_back(name, member, state)
            else:
                member.written = state
            for session, refs in waiting.items():
                self.answer(session, name[0], refs, refusal if number in refused else None)
            # Nothing is left of it, unless somebody came while it was written.
            if not member.tabs and name not in self._dirty and member.written is None:
                del self._members[name]
                self._sizes[name[0]] -= 1
                if not self._sizes[name[0]]:
                    del self._sizes[name[0]]

    def _take_back(self, name: Name, member: _Member, state: str | None) -> None:
        """Put what was written before in the place of a state that could not be."""
        for session in [session for session, its in member.tabs.items() if its == state]:
            if member.written is None:
                self._drop(session, name[0])
            else:
                member.tabs[session] = member.written


_Taken = tuple[Name, _Member, str | None, Waiting]
