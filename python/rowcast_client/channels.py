"""Which channels are wanted, and where each of them stands."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .connection import LONGEST_PAUSE, Link, Ticket
from .dispatch import Callback, Delivery, Inbox, Listeners
from .frames import Frame, Message, RealtimeError, encode, message_of, refusal
from .resume import Progress, Seen

__all__ = ["EVENTS", "LONGEST_PAUSE", "RETRYABLE", "Join", "Joins", "Phase", "Report"]

NAMES_PER_FRAME = 50
FIRST_JOIN_RETRIES = 5
# Refusals that speak of the moment, not of the caller.
RETRYABLE = {"unavailable", "rate_limited", "internal", "token_expired"}

Report = Callable[[RealtimeError, Listeners | None], None]


# Kinds that no message can reach, whatever its sender calls his event.
EVENTS = {"error", "closed", "deleted", "presence", "resync", "subscribed"}
RESERVED = {"message", "*", *EVENTS}


class Phase(Enum):
    """Of a channel."""

    IDLE = "idle"  # not wanted
    WAITING = "waiting"  # wanted, and not asked for at the moment
    JOINING = "joining"  # asked for
    JOINED = "joined"


@dataclass(slots=True, eq=False)
class Join:
    """What the client knows of one channel name."""

    name: str
    listeners: Listeners = field(default_factory=Listeners)
    phase: Phase = Phase.IDLE
    wanted: bool = False  # for its messages, and not only to be present in it
    members: dict[str, Any] = field(default_factory=dict)
    live: bool = False  # was joined since it is wanted
    after: str | None = None  # what its next join resumes from; ids are kept while it is set
    echo: bool = True
    history: int = 0
    retries: int = 0
    turn: int = 0  # which join an answer belongs to
    left: int = 0  # how often the application has left it
    waiting: int = 0  # how many calls wait for it to be confirmed
    asked: dict[str, tuple[Join, int]] = field(default_factory=dict)
    ticket: Ticket | None = None
    timer: asyncio.TimerHandle | None = None
    moved: float = 0.0  # when something came for it
    seen: Seen = field(default_factory=Seen)
    inbox: Inbox | None = None
    confirmed: asyncio.Future[None] | None = None

    @property
    def hears_messages(self) -> bool:
        """Whether a callback takes messages; else they are kept for `async for`."""
        return bool(self.listeners.kinds - EVENTS)

    def cancel(self) -> None:
        """Stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def unless_left(self, callbacks: Callable[[], list[Callback]]) -> Callable[[], list[Callback]]:
        """The same callbacks, and none once the application has left the channel."""
        left = self.left
        return lambda: callbacks() if self.left == left else []

    def messages(self, message_type: str, event: str) -> list[Callback]:
        """The callbacks for a message."""
        kinds = [] if event in RESERVED else [event]
        if message_type == "message" or event == "message":
            kinds.append("message")
        return self.listeners.of(*kinds, "*")


class Joins:
    """All channels of a client.

    Args:
        delivery: where messages and events go.
        progress: the session's cursor.
        report: told of errors.
        refresh: called when the server says that the token has expired.
        delays: shortest and longest pause before an attempt.
        timeout: seconds after which an unanswered subscription ends the connection.
    """

    def __init__(
        self,
        delivery: Delivery,
        progress: Progress,
        report: Report,
        refresh: Callable[[], None],
        delays: tuple[float, float],
        timeout: float,
    ) -> None:
        self._delivery = delivery
        self._progress = progress
        self._report = report
        self.refresh = refresh
        self._delays = delays
        self._timeout = timeout
        self._first = progress.cursor
        self._taken: set[str] = set()
        self._stopped: RealtimeError | None = None
        self._joins: dict[str, Join] = {}
        self._link: Link | None = None
        # Who wants to know of a join and of its end.
        self.joined: Callable[[Join, Frame], None] = lambda _join, _frame: None
        self.left: Callable[[Join, RealtimeError | None], None] = lambda _join, _error: None

    def of(self, name: str) -> Join:
        """The state of a channel, made when there is none."""
        return self._joins.setdefault(name, Join(name))

    def find(self, name: object) -> Join | None:
        return self._joins.get(name) if isinstance(name, str) else None

    def settle(self, join: Join) -> None:
        """Forget a channel that nobody uses."""
        if join.phase is Phase.IDLE and not len(join.listeners):
            self._joins.pop(join.name, None)

    def want(self, join: Join, *, listen: bool = True) -> asyncio.Future[None]:
        """Subscribe; the future tells how it went.

        Args:
            join: the channel.
            listen: keep messages to which no callback listens.

        Raises:
            RealtimeError: the client was closed.
        """
        if self._stopped is not None:
            raise RealtimeError(self._stopped.code, str(self._stopped), channel=join.name)
        if join.confirmed is None or join.phase is Phase.IDLE:
            join.confirmed = asyncio.get_running_loop().create_future()
            # It is told as an event as well, so nobody has to look.
            join.confirmed.add_done_callback(lambda f: f.cancelled() or f.exception())
        if join.phase is Phase.IDLE:
            self._joins[join.name] = join
            join.phase = Phase.WAITING
            # A process that resumes an earlier one does so for every channel it takes up, once.
            if join.name not in self._taken:
                join.after = join.after or self._first
            self.ask([join])
        if listen:
            if not join.wanted and not join.hears_messages:
                join.inbox = Inbox(self._delivery)
            join.wanted = True
        return join.confirmed

    def connected(self, link: Link) -> None:
        """Ask for everything that is wanted, on a new connection."""
        self._link = link
        self.ask(join for join in list(self._joins.values()) if join.phase is Phase.WAITING)

    def again(self) -> None:
        """Ask for what waits: the token is a new one."""
        self.ask(join for join in list(self._joins.values()) if join.phase is Phase.WAITING)

    def interrupted(self) -> None:
        """The connection is lost: leave everything so that the next one can go on."""
        self._link = None
        for join in self._joins.values():
            join.cancel()
            if join.phase is Phase.JOINED:
                join.after = self._progress.cursor
            if join.phase is not Phase.IDLE:
                join.phase = Phase.WAITING
        self._progress.interrupt()

    def leave(self, join: Join, error: RealtimeError | None = None) -> None:
        """Not wanted any more; with an error, because the server said so."""
        link, asked, ticket = self._link, join.asked, join.ticket
        if link is not None and error is None and join.phase in (Phase.JOINING, Phase.JOINED):

            def answer(frame: Frame | None) -> None:
                # The subscription it ended may remain without an answer.
                if frame is not None and asked.pop(join.name, (None, 0))[0] and ticket is not None:
                    link.forget(ticket)

            link.insist(
                encode({"op": "unsubscribe", "channel": join.name}),
                answer,
                lambda: (self.find(join.name) or join).phase is Phase.IDLE,
            )
        join.cancel()
        join.phase, join.live, join.after, join.retries = Phase.IDLE, False, None, 0
        join.wanted = False
        join.turn += 1
        join.left += error is None
        self.left(join, error)
        join.seen = Seen()
        if join.confirmed is not None and not join.confirmed.done():
            join.confirmed.set_exception(
                error
                or RealtimeError("unsubscribed", "The subscription was ended.", channel=join.name)
            )
        if join.inbox is not None:
            if error is None:
                join.inbox.close()
            else:
                self._delivery.end(join.inbox, error)
            join.inbox = None
        self._forget_before(self._progress.settle(join.name))
        self.settle(join)

    def stop(self, error: RealtimeError | None) -> None:
        """End every channel."""
        self._link = None
        self._stopped = error or RealtimeError("disconnected", "The client was closed.")
        for join in list(self._joins.values()):
            if join.phase is not Phase.IDLE:
                self.leave(join, error)

    # Asking

    def ask(self, joins: Iterable[Join]) -> None:
        """Send subscriptions, one frame for all that ask for the same."""
        link = self._link
        if link is None:
            return
        groups: dict[str, list[Join]] = defaultdict(list)
        for join in joins:
            join.cancel()
            join.phase = Phase.JOINING
            join.turn += 1
            join.moved = time.monotonic()
            request: Frame = {"op": "subscribe"}
            if join.after is not None:
                self._progress.resume(join.name)
                request["after"] = join.after
            if join.history:
                request["history"] = join.history
            if not join.echo:
                request["self"] = False
            groups[encode(request)].append(join)
        for text, members in groups.items():
            for at in range(0, len(members), NAMES_PER_FRAME):
                self._ask_frame(link, text, members[at : at + NAMES_PER_FRAME])

    def _ask_frame(self, link: Link, text: str, members: list[Join]) -> None:
        asked = {join.name: (join, join.turn) for join in members}
        names = list(asked)
        key = "channel" if len(names) == 1 else "channels"
        value = encode(names[0] if len(names) == 1 else names)

        def answer(frame: Frame | None) -> None:
            if frame is None:
                return  # asked again after the reconnect
            named = frame.get("channel")
            for name in [named] if isinstance(named, str) else list(asked):
                join, turn = asked.pop(name, (None, 0))
                # Meanwhile left, or asked for again: this is not the answer it waits for.
                if join is None or join.turn != turn:
                    self._offer(frame.get("cursor"))
                elif frame["op"] == "ok":
                    self._joined(join, frame)
                else:
                    self._refused(join, refusal(frame, name))

        ticket = link.ask(f'{text[:-1]},"{key}":{value}}}', answer, len(names))
        for join in members:
            join.asked, join.ticket = asked, ticket
            join.timer = asyncio.get_running_loop().call_later(
                self._timeout, self._overdue, link, join, join.turn
            )

    def _overdue(self, link: Link, join: Join, turn: int) -> None:
        if join.phase is not Phase.JOINING or join.turn != turn:
            return
        left = join.moved + self._timeout - time.monotonic()
        if left > 0:  # its replay is coming
            join.timer = asyncio.get_running_loop().call_later(
                left, self._overdue, link, join, turn
            )
        else:
            link.abandon()

    def _joined(self, join: Join, frame: Frame) -> None:
        after, resumed = join.after, join.live or join.after is not None
        join.cancel()
        join.phase, join.live, join.after, join.retries = Phase.JOINED, True, None, 0
        if self._first is not None:
            self._taken.add(join.name)
        self._progress.settle(join.name)
        self._offer(frame.get("cursor"))
        if join.confirmed is not None and not join.confirmed.done():
            join.confirmed.set_result(None)
        self.joined(join, frame)
        self._tell(join, "subscribed", {"channel": join.name, "resumed": resumed})
        recovered = after is not None and frame.get("recovered") is not False
        ephemeral = after is not None and frame.get("ephemeral") is not False
        if resumed and not (recovered and ephemeral):
            reason = frame.get("reason") or ("no_cursor" if after is None else None)
            told = {"recovered": recovered, "ephemeral": ephemeral, "reason": reason}
            self._tell(join, "resync", {"channel": join.name, **told})

    def _refused(self, join: Join, error: RealtimeError) -> None:
        if error.code in RETRYABLE and (join.live or join.retries < FIRST_JOIN_RETRIES):
            # Its `after` stays with it, so the session's cursor may go on without it.
            join.phase = Phase.WAITING
            self._forget_before(self._progress.settle(join.name))
            if error.code == "token_expired":
                self.refresh()
            if join.retries == 0:
                self._report(error, join.listeners)
            self.later(join, error.retry_after)
            return
        live = join.live
        listeners = join.listeners
        self.leave(join, error)
        self._report(error, listeners)
        if live:
            told = {"channel": join.name, "code": error.code, "final": True}
            self._delivery.tell(lambda: listeners.of("closed"), told)

    def later(self, join: Join, retry_after: float | None = None) -> None:
        """Ask again after a pause."""
        shortest, longest = self._delays
        delay = min(longest, shortest * 2.0**join.retries) * random.uniform(0.5, 1)
        if retry_after is not None and retry_after > 0:
            delay = min(retry_after, LONGEST_PAUSE)
        join.retries += 1
        join.cancel()
        join.timer = asyncio.get_running_loop().call_later(delay, self._try_again, join)

    def _try_again(self, join: Join) -> None:
        if join.phase is Phase.WAITING:
            self.ask([join])

    # What the server sends without being asked

    def messages(self, frame: Frame) -> None:
        """A `messages` frame."""
        join = self.find(frame.get("channel"))
        if join is None or join.phase is Phase.IDLE:
            return
        now = join.moved = time.monotonic()
        earlier = frame.get("history") is True or frame.get("replay") is True
        if join.phase is Phase.JOINING and not earlier:
            # Live ones come behind the answer: these are of a subscription that was ended.
            return
        items = frame.get("messages")
        if not isinstance(items, list):
            text = "The server sent messages that are no list."
            self._report(RealtimeError("invalid_frame", text, channel=join.name), join.listeners)
            return
        for item in items:
            try:
                message = message_of(item, join.name, frame)
            except RealtimeError as error:
                self._report(error, join.listeners)
                continue
            durable = message.type == "message"
            if message.id is None or join.seen.add(message.id, now, durable):
                self._deliver(join, message)

    def _deliver(self, join: Join, message: Message) -> None:
        if message.raw:
            text = "A payload is too deep or too long for Python: it is given as its text."
            error = RealtimeError("unreadable_payload", text, channel=join.name, id=message.id)
            self._report(error, join.listeners)

        def callbacks() -> list[Callback]:
            return join.messages(message.type, message.event)

        self._delivery.tell(join.unless_left(callbacks), message, join.inbox)

    def deleted(self, frame: Frame) -> None:
        """A `deleted` frame."""
        join = self.find(frame.get("channel"))
        if join is not None:
            self._tell(join, "deleted", {"channel": join.name, "id": frame.get("id")})

    def closed(self, frame: Frame) -> None:
        """A `closed` frame. While a join is under way its answer decides instead."""
        join, code = self.find(frame.get("channel")), str(frame.get("code"))
        if join is None or join.phase is not Phase.JOINED:
            return
        final = code not in ("lagging", "expired", "unavailable")
        if final:
            text = f"The server closed channel {join.name}: {code}."
            self.leave(join, RealtimeError(code, text, channel=join.name))
        else:
            self.stand(join)
            if code == "expired":
                self.refresh()  # it is joined again when that has succeeded
            else:
                self.later(join)
        self._tell(join, "closed", {"channel": join.name, "code": code, "final": final})

    # The cursor

    def cursor(self, frame: Frame) -> None:
        """A `cursor` frame."""
        self._offer(frame.get("cursor"))

    def stand(self, join: Join) -> None:
        """The server dropped it on the way: it waits to be resumed from here."""
        join.phase = Phase.WAITING
        join.after = self._progress.cursor

    def _tell(self, join: Join, kind: str, argument: Any) -> None:
        self._delivery.tell(lambda: join.listeners.of(kind), argument)

    def _offer(self, cursor: object) -> None:
        self._forget_before(self._progress.offer(cursor, time.monotonic()))

    def _forget_before(self, at: float | None) -> None:
        if at is None or self._link is None:
            return
        assert self._progress.cursor is not None
        self._delivery.mark(self._progress.cursor)
        for join in self._joins.values():
            if join.after is None:
                join.seen.forget(at - self._link.overlap, join.history)
