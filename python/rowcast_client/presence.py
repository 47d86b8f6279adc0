"""Who is present in channels, and this client among them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .channels import LONGEST_PAUSE, RETRYABLE, Join, Joins, Phase, Report
from .connection import Link
from .dispatch import Delivery
from .frames import Frame, RealtimeError, encode, refusal

__all__ = ["Presences"]

# Seconds until a state is sent again that came too early for the server.
PAUSE = 1.0


@dataclass(slots=True, eq=False)
class _Tracking:
    """A state that is to be shown. One is under way at a time, of the others only the newest."""

    text: str
    joined: bool  # whether it was this that subscribed to the channel
    fresh: bool = True
    sending: bool = False
    shown: str | None = None  # what the server has taken
    waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def settle(self, waiting: list[asyncio.Future[None]], error: RealtimeError | None) -> None:
        for future in waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
        self.waiting = [future for future in self.waiting if not future.done()]


class Presences:
    """Presence in all channels of a client.

    Args:
        joins: the channels.
        delivery: where events go.
        report: told of errors that nobody awaits.
        timeout: seconds until an unanswered request is an error.
    """

    def __init__(self, joins: Joins, delivery: Delivery, report: Report, timeout: float) -> None:
        self._joins = joins
        self._delivery = delivery
        self._report = report
        self._timeout = timeout
        self._link: Link | None = None
        self._tracked: dict[str, _Tracking] = {}

    # What the server says

    def connected(self, link: Link) -> None:
        """There is a connection; channels are joined on it one by one."""
        self._link = link

    def interrupted(self) -> None:
        """It is lost, and with it what the server knew of us."""
        self._link = None
        for tracking in self._tracked.values():
            tracking.fresh, tracking.sending = True, False

    def joined(self, join: Join, frame: Frame) -> None:
        """A channel is joined; the answer says who is present."""
        if isinstance(frame.get("presence"), list):
            self._whole(join, frame["presence"])
        self._pump(join)

    def frame(self, frame: Frame) -> None:
        """A `presence` frame."""
        join, events = self._joins.find(frame.get("channel")), frame.get("events")
        if join is None or join.phase is not Phase.JOINED or not isinstance(events, list):
            return
        if frame.get("full") is True:
            self._whole(join, events)
            return
        for event in events:
            self._change(join, event["type"], event["key"], event.get("presence"))

    def left(self, join: Join, error: RealtimeError | None) -> None:
        """The channel was left; its members are not known any more."""
        join.members.clear()
        tracking = self._tracked.pop(join.name, None)
        if tracking is not None:
            text = "The presence was taken back before it was confirmed."
            gone = error or RealtimeError("untracked", text, channel=join.name)
            tracking.settle(tracking.waiting, gone)

    def _whole(self, join: Join, entries: list[Any]) -> None:
        """Tell a whole list as the events that lead to it."""
        now = {entry["key"]: entry.get("presence") for entry in entries}
        for key in [key for key in join.members if key not in now]:
            self._change(join, "leave", key, None)
        for key, presence in now.items():
            if key not in join.members:
                self._change(join, "join", key, presence)
            elif join.members[key] != presence:
                self._change(join, "update", key, presence)

    def _change(self, join: Join, kind: str, key: str, presence: Any) -> None:
        last = join.members.pop(key, None) if kind == "leave" else presence
        if kind != "leave":
            join.members[key] = presence
        event = {"type": kind, "key": key, "presence": last if presence is None else presence}
        self._delivery.tell(join.unless_left(lambda: join.listeners.of("presence")), event)

    # What the application wants

    async def track(self, name: str, state: Mapping[str, Any]) -> None:
        """Show this client to the others in a state. Raises as `Channel.track` says."""
        if not isinstance(state, Mapping):
            raise RealtimeError("invalid_message", "A state is a mapping.", channel=name)
        text = encode(dict(state))
        join = self._joins.of(name)
        tracking = self._tracked.get(name)
        if tracking is None:
            idle = join.phase is Phase.IDLE
            tracking = _Tracking(text, idle)
            self._tracked[name] = tracking
            if idle:
                self._joins.want(join, listen=False)
        tracking.text, tracking.fresh = text, True
        done = asyncio.get_running_loop().create_future()
        tracking.waiting.append(done)
        self._pump(join)
        await self._answered(name, done)

    async def untrack(self, name: str) -> None:
        """Show it no more."""
        tracking = self._tracked.pop(name, None)
        join = self._joins.find(name)
        if tracking is None or join is None:
            return
        text = "The presence was taken back before it was confirmed."
        tracking.settle(tracking.waiting, RealtimeError("untracked", text, channel=name))
        done: asyncio.Future[None] | None = None
        if self._link is not None and join.phase is Phase.JOINED:
            done = asyncio.get_running_loop().create_future()

            def answer(frame: Frame | None) -> None:
                # With the connection, or the subscription, the presence has ended as well.
                error = refusal(frame, name) if frame and frame["op"] == "error" else None
                tracking.settle([done], error)

            self._link.insist(
                encode({"op": "untrack", "channel": name}),
                answer,
                lambda: name not in self._tracked and join.phase is Phase.JOINED,
            )
        if tracking.joined and not join.wanted:
            self._joins.leave(join)
        if done is not None:
            await self._answered(name, done)

    async def _answered(self, name: str, done: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await done
        except TimeoutError:
            text = "The server did not answer in time."
            raise RealtimeError("timeout", text, channel=name) from None

    def _pump(self, join: Join) -> None:
        tracking, link = self._tracked.get(join.name), self._link
        if tracking is None or link is None or join.phase is not Phase.JOINED:
            return
        if tracking.sending or not tracking.fresh:
            return
        tracking.sending, tracking.fresh = True, False
        text, waiting = tracking.text, tracking.waiting.copy()
        head = encode({"op": "track", "channel": join.name})

        def answer(frame: Frame | None) -> None:
            if frame is None:
                return  # tracked again after the reconnect
            tracking.sending = False
            error = refusal(frame, join.name) if frame["op"] == "error" else None
            again = text == tracking.shown  # after a reconnect
            if error is not None and error.code in (RETRYABLE if again else {"rate_limited"}):
                tracking.fresh = True
                pause = min(error.retry_after or PAUSE, LONGEST_PAUSE)
                asyncio.get_running_loop().call_later(pause, self._pump, join)
                return
            if error is None:
                tracking.shown = text
            tracking.settle(waiting, error)
            if self._tracked.get(join.name) is not tracking:
                return
            if error is None or tracking.fresh:
                self._pump(join)
            elif again or tracking.shown is None:
                del self._tracked[join.name]
                if tracking.joined and not join.wanted:
                    self._joins.leave(join)
            else:
                tracking.text = tracking.shown  # the others still see it
            if error is not None and again and not waiting:
                self._report(error, join.listeners)  # nobody awaits it

        link.ask(f'{head[:-1]},"state":{text}}}', answer)
