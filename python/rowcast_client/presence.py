"""The members of channels, and this client among them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .channel_state import ChannelState, Phase
from .connection import LONGEST_PAUSE, Connection
from .dispatch import Dispatcher
from .frames import RETRYABLE, Frame, RealtimeError, encode, refusal

__all__ = ["Presence"]

# Seconds until a state that the server was too busy for is sent again.
BUSY_PAUSE = 1.0


@dataclass(slots=True, eq=False)
class _Tracked:
    """The state that this client shows in a channel. One request at a time sends the newest."""

    text: str  # the state as JSON
    release: Callable[[ChannelState], None] | None  # set if tracking subscribed to the channel
    fresh: bool = True  # not sent yet
    sending: bool = False
    shown: str | None = None  # the state that the server has accepted
    waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def settle(self, waiting: list[asyncio.Future[None]], error: RealtimeError | None) -> None:
        """End the waiting of these calls."""
        for future in waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
        self.waiting = [future for future in self.waiting if not future.done()]


class Presence:
    """Presence in all channels of a client.

    Args:
        dispatcher: takes events, and errors that no call waits for.
        timeout: seconds until an unanswered request is an error.
    """

    def __init__(self, dispatcher: Dispatcher, timeout: float) -> None:
        self._dispatcher = dispatcher
        self._timeout = timeout
        self._connection: Connection | None = None
        self._tracked: dict[str, _Tracked] = {}

    def connected(self, connection: Connection) -> None:
        """Use this connection; `joined` follows for each channel."""
        self._connection = connection

    def interrupted(self) -> None:
        """Send every state again after the reconnect: it ended with the connection."""
        self._connection = None
        for tracked in self._tracked.values():
            tracked.fresh, tracked.sending = True, False

    def joined(self, state: ChannelState, frame: Frame) -> None:
        """Take the members from the answer to a subscribe, and show this client's state."""
        if isinstance(frame.get("presence"), list):
            self._replace(state, frame["presence"])
        self._send(state)

    def changed(self, state: ChannelState, frame: Frame) -> None:
        """Handle a `presence` frame."""
        events = frame.get("events")
        if not isinstance(events, list):
            return
        if frame.get("full") is True:
            self._replace(state, events)
            return
        for event in events:
            self._change(state, event["type"], event["key"], event.get("presence"))

    def left(self, state: ChannelState, error: RealtimeError | None) -> None:
        """Forget the members of a channel that was left, and this client's state in it."""
        state.members.clear()
        tracked = self._tracked.pop(state.name, None)
        if tracked is not None:
            tracked.settle(tracked.waiting, error or _untracked(state))

    def _replace(self, state: ChannelState, entries: list[Any]) -> None:
        """Replace the members; the application is told the events that lead to the new list."""
        now = {entry["key"]: entry.get("presence") for entry in entries}
        for key in [key for key in state.members if key not in now]:
            self._change(state, "leave", key, None)
        for key, presence in now.items():
            if key not in state.members:
                self._change(state, "join", key, presence)
            elif state.members[key] != presence:
                self._change(state, "update", key, presence)

    def _change(self, state: ChannelState, kind: str, key: str, presence: Any) -> None:
        last = state.members.pop(key, None) if kind == "leave" else presence
        if kind != "leave":
            state.members[key] = presence
        event = {"type": kind, "key": key, "presence": last if presence is None else presence}
        callbacks = state.unless_left(lambda: state.listeners.of("presence"))
        self._dispatcher.tell(callbacks, event)

    async def track(
        self, state: ChannelState, text: str, release: Callable[[ChannelState], None] | None
    ) -> None:
        """Show this client in a state; return once the server has accepted it.

        Args:
            state: the channel, which is wanted.
            text: the state to show, as JSON.
            release: gives the channel up when the state is no longer shown.

        Raises:
            RealtimeError: the server refused, or did not answer in time.
        """
        tracked = self._tracked.setdefault(state.name, _Tracked(text, release))
        tracked.text, tracked.fresh = text, True
        done = asyncio.get_running_loop().create_future()
        tracked.waiting.append(done)
        self._send(state)
        await self._answered(state, done)

    async def untrack(self, state: ChannelState) -> None:
        """Stop showing this client; return once the server has confirmed.

        Raises:
            RealtimeError: the server refused, or did not answer in time.
        """
        tracked = self._tracked.pop(state.name, None)
        if tracked is None:
            return
        tracked.settle(tracked.waiting, _untracked(state))
        done: asyncio.Future[None] | None = None
        if self._connection is not None and state.phase is Phase.JOINED:
            done = asyncio.get_running_loop().create_future()

            def answer(frame: Frame | None) -> None:
                # If the connection or the subscription has ended, so has the presence.
                error = refusal(frame, state.name) if frame and frame["op"] == "error" else None
                tracked.settle([done], error)

            self._connection.request_until_accepted(
                encode({"op": "untrack", "channel": state.name}),
                answer,
                lambda: state.name not in self._tracked and state.phase is Phase.JOINED,
            )
        if tracked.release is not None:
            tracked.release(state)
        if done is not None:
            await self._answered(state, done)

    async def _answered(self, state: ChannelState, done: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await done
        except TimeoutError:
            text = "The server did not answer in time."
            raise RealtimeError("timeout", text, channel=state.name) from None

    def _send(self, state: ChannelState) -> None:
        """Send the state of a joined channel, unless it was sent or another one is under way."""
        tracked, connection = self._tracked.get(state.name), self._connection
        if tracked is None or connection is None or state.phase is not Phase.JOINED:
            return
        if tracked.sending or not tracked.fresh:
            return
        tracked.sending, tracked.fresh = True, False
        text, waiting = tracked.text, tracked.waiting.copy()
        head = encode({"op": "track", "channel": state.name})

        def answer(frame: Frame | None) -> None:
            if frame is None:
                return  # sent again after the reconnect
            tracked.sending = False
            error = refusal(frame, state.name) if frame["op"] == "error" else None
            again = text == tracked.shown  # sent again after a reconnect
            if error is not None and error.code in (RETRYABLE if again else {"rate_limited"}):
                tracked.fresh = True
                pause = min(error.retry_after or BUSY_PAUSE, LONGEST_PAUSE)
                asyncio.get_running_loop().call_later(pause, self._send, state)
                return
            if error is None:
                tracked.shown = text
            tracked.settle(waiting, error)
            if self._tracked.get(state.name) is not tracked:
                return
            if error is None or tracked.fresh:
                self._send(state)
            elif again or tracked.shown is None:
                del self._tracked[state.name]
                if tracked.release is not None:
                    tracked.release(state)
            else:
                tracked.text = tracked.shown  # the members still see it
            if error is not None and again and not waiting:
                self._dispatcher.report(error, state.listeners)  # no call waits for it

        connection.request(f'{head[:-1]},"state":{text}}}', answer)


def _untracked(state: ChannelState) -> RealtimeError:
    text = "Tracking ended before the server confirmed the state."
    return RealtimeError("untracked", text, channel=state.name)
