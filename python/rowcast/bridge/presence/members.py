"""Writes the members that clients of this bridge track to the database.

A member is a user, not a connection: its tabs share one row, which shows the state of the tab that
tracked last. Only the newest state is written, many members in one statement, so the number of
writes depends on time and not on how often clients track.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from rowcast.bridge.database import UNAVAILABLE, Database
from rowcast.bridge.node import INTERVAL, PAUSE, Node
from rowcast.bridge.session import Session
from rowcast.bridge.wire.protocol import Done, Event, Refused
from rowcast.config import Settings
from rowcast.errors import Refusal
from rowcast.observe import metrics, observe

__all__ = ["Members", "key_of"]

# Members in one statement.
PORTION = 500
# OpenID Connect Core 1.0, section 2: a sub must not exceed 255 ASCII characters.
KEY_BYTES = 255


def key_of(session: Session) -> tuple[str, bool]:
    """Return the key of a session's member, and whether it is anonymous.

    Clients cannot choose a key: it is the sub of the token, or the id of an anonymous session.

    Raises:
        Refusal: it has no token, or one whose sub is too long.
    """
    subject = session.authenticated().subject
    if subject is None:
        return session.id, True
    if len(subject.encode()) > KEY_BYTES:
        raise Refusal("invalid_token", f"The sub of the token is over {KEY_BYTES} bytes.")
    return subject, False


Waiting = dict[Session, list[Any]]  # refs of requests that are not answered yet


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


class Members:
    """All members with a client here.

    Args:
        database: keeps the members.
        node: the bridge to which they belong.
        settings: the largest size of a state, and the grace time for clients that come back.
    """

    def __init__(self, database: Database, node: Node, settings: Settings) -> None:
        self._database = database
        self._node = node
        self._settings = settings
        self._members: dict[Name, _Member] = {}
        self._sizes: Counter[str] = Counter()
        self._keys: dict[tuple[Session, str], str] = {}
        self._leaving: deque[tuple[float, Session, str]] = deque()
        self._dirty: dict[Name, None] = {}
        self._changed = asyncio.Event()

    def size(self, channel: str) -> int:
        """How many members of a channel have a client here."""
        return self._sizes[channel]

    def holds(self, channel: str, key: str) -> bool:
        """Whether this member has a client here."""
        return (channel, key) in self._members

    def track(self, session: Session, channel: str, state: str, ref: Any) -> None:
        """Show a session's member in this state.

        The ref is answered when this state, or a newer one of the session, is written.

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
            # All of them have been overtaken; while the database is slow they would pile up.
            _answer(session, channel, refs.copy(), None)
            refs.clear()
        refs.append(ref)

    def untrack(self, session: Session, channel: str, ref: Any) -> None:
        """Stop showing it; the ref is answered when that is written."""
        key = self._drop(session, channel)
        if key is None:
            _answer(session, channel, [ref], None)
        else:
            self._wait(session, channel, key, ref)

    def rename(self, session: Session) -> None:
        """Move what the session tracks to the member of its new token."""
        for channel in session.subscriptions:
            before = self._keys.get((session, channel))
            if before is not None and before != key_of(session)[0]:
                state = self._members[channel, before].tabs[session]
                self._drop(session, channel)
                self._show(session, channel, state)

    def leave(self, session: Session, channel: str, *, lost: bool) -> None:
        """A session has left a channel.

        Args:
            session: the one that left.
            channel: the channel it left.
            lost: whether its connection was lost, so that it may come back. An anonymous session
                comes back as another member, so it is dropped at once.
        """
        key = self._keys.get((session, channel))
        if key is None:
            return
        if lost and not self._members[channel, key].anonymous:
            until = time.monotonic() + self._settings.presence_grace
            self._leaving.append((until, session, channel))
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

    def renew_lease(self) -> None:
        """Find out soon whether the database has lost the members."""
        self._node.renew()

    def write_again(self) -> None:
        """Write all members again: the database has lost them."""
        self._dirty.update(dict.fromkeys(self._members))
        self._changed.set()

    async def run(self) -> None:
        """Write what changed, for ever; returns only when cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience()):
                    await self._changed.wait()
            self._changed.clear()
            while self._leaving and self._leaving[0][0] <= time.monotonic():
                _, session, channel = self._leaving.popleft()
                self._drop(session, channel)
            pause = asyncio.create_task(asyncio.sleep(INTERVAL))
            dirty, self._dirty = list(self._dirty), {}
            written = [
                await self._write(dirty[at : at + PORTION]) for at in range(0, len(dirty), PORTION)
            ]
            await (pause if all(written) else asyncio.sleep(PAUSE))

    def _patience(self) -> float | None:
        return max(0.0, self._leaving[0][0] - time.monotonic()) if self._leaving else None

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
            async with self._node.write_lock:
                refused = await self._database.write_presence(
                    self._node.id, rows, self._settings.max_state
                )
        except asyncpg.DataError as error:
            # A state that is JSON, but not to Postgres: write the other members without it.
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
                _answer(session, name[0], refs, refusal if number in refused else None)
            # It is over, unless a tab came while it was written.
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


def _answer(session: Session, channel: str, refs: list[Any], refusal: Refusal | None) -> None:
    """Answer many requests in one write."""
    if refusal is None:
        answers: list[Event] = [Done(ref, channel) for ref in refs]
    else:
        answers = [Refused.because(ref, refusal, channel) for ref in refs]
        metrics.refusals.labels(refusal.code).inc(len(refs))
    session.write(b"".join(map(session.wire.encode, answers)))


_Taken = tuple[Name, _Member, str | None, Waiting]
