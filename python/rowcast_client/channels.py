"""All channels of a client: which are wanted, the requests for them, and the frames for them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from .channel_state import ChannelState, Phase
from .connection import LONGEST_PAUSE, Connection
from .dispatch import Dispatcher, Inbox
from .frames import RETRYABLE, Frame, Message, RealtimeError, encode, message_of, refusal
from .identity import Identity
from .options import Options
from .presence import Presence
from .resume import Progress, Seen

__all__ = ["Channels"]

NAMES_PER_FRAME = 50
FIRST_JOIN_RETRIES = 5
# Codes of a closed channel after which the client subscribes again by itself.
TEMPORARY = {"lagging", "expired", "unavailable"}


class Channels:
    """The channels of a client, by name.

    Args:
        dispatcher: takes messages, events and errors.
        identity: refreshes an expired token.
        presence: told when a channel is joined and left.
        options: the cursor to start from, pauses and timeouts.
    """

    def __init__(
        self, dispatcher: Dispatcher, identity: Identity, presence: Presence, options: Options
    ) -> None:
        self._dispatcher = dispatcher
        self._identity = identity
        self._presence = presence
        self._options = options
        self._progress = Progress(options.after)
        self._resumed: set[str] = set()  # channels that have used `options.after`
        self._stopped: RealtimeError | None = None
        self._states: dict[str, ChannelState] = {}
        self._connection: Connection | None = None

    def get(self, name: str) -> ChannelState:
        """Return the state of a channel, and create it if necessary."""
        return self._states.setdefault(name, ChannelState(name))

    def find(self, name: object) -> ChannelState | None:
        """Return the state of a channel that is in use."""
        return self._states.get(name) if isinstance(name, str) else None

    def discard_unused(self, state: ChannelState) -> None:
        """Forget a channel that is neither wanted nor listened to."""
        if state.phase is Phase.IDLE and not len(state.listeners):
            self._states.pop(state.name, None)

    def connected(self, connection: Connection) -> None:
        """Subscribe to all wanted channels on a new connection."""
        self._connection = connection
        self._subscribe_waiting()

    def interrupted(self) -> None:
        """Put every channel into the state from which the next connection resumes it."""
        self._connection = None
        for state in self._states.values():
            state.cancel_timer()
            if state.phase is Phase.JOINED:
                state.after = self._progress.cursor
            if state.phase is not Phase.IDLE:
                state.phase = Phase.WAITING
        self._progress.interrupt()

    def stop(self, error: RealtimeError | None) -> None:
        """End every channel; with an error, its consumers get it."""
        self._connection = None
        self._stopped = error or RealtimeError("disconnected", "The client was closed.")
        for state in list(self._states.values()):
            if state.phase is not Phase.IDLE:
                self.leave(state, error)

    def refresh_token(self) -> None:
        """Present a new token, and subscribe to the waiting channels once it is accepted."""
        self._identity.refresh(self._subscribe_waiting)

    # Requests of the application

    async def subscribe(self, name: str, history: int, echo: bool, after: str | None) -> None:
        """Subscribe; return once the server has confirmed. See `Channel.subscribe`."""
        state = self.get(name)
        if state.phase is Phase.IDLE:
            state.history, state.echo, state.after = history, echo, after
        confirmed = self._want(state)
        if not state.wants_messages and not state.has_message_callback:
            state.inbox = Inbox(self._dispatcher)
        state.wants_messages = True
        state.subscribers += 1
        try:
            async with asyncio.timeout(self._options.timeout):
                await asyncio.shield(confirmed)
        except TimeoutError:
            text = f"The server did not answer the subscription to {name} in time."
            raise RealtimeError("timeout", text, channel=name) from None
        finally:
            state.subscribers -= 1
            # It timed out or was cancelled: its messages would not be read.
            if not state.subscribers and not confirmed.done():
                self.leave(state)

    def inbox(self, state: ChannelState) -> Inbox:
        """Return the inbox of a channel, and create it if necessary."""
        if state.inbox is None:
            state.inbox = Inbox(self._dispatcher)
        return state.inbox

    async def track(self, name: str, shown: Mapping[str, Any]) -> None:
        """Show this client as present in a channel. See `Channel.track`."""
        if not isinstance(shown, Mapping):
            raise RealtimeError("invalid_message", "track(state) takes a mapping.", channel=name)
        text = encode(dict(shown))
        state = self.get(name)
        subscribes = state.phase is Phase.IDLE
        if subscribes:
            self._want(state)
        await self._presence.track(state, text, self._release if subscribes else None)

    async def untrack(self, name: str) -> None:
        """Stop showing this client as present in a channel. See `Channel.untrack`."""
        state = self.find(name)
        if state is not None:
            await self._presence.untrack(state)

    def _release(self, state: ChannelState) -> None:
        """Leave a channel that was subscribed to for presence only."""
        if not state.wants_messages:
            self.leave(state)

    def _want(self, state: ChannelState) -> asyncio.Future[None]:
        """Subscribe to a channel, unless it is wanted already.

        Returns:
            A future that is done when the server has answered.

        Raises:
            RealtimeError: the client was closed.
        """
        if self._stopped is not None:
            raise RealtimeError(self._stopped.code, str(self._stopped), channel=state.name)
        if state.confirmed is None or state.phase is Phase.IDLE:
            state.confirmed = asyncio.get_running_loop().create_future()
            # Its exception is reported as an event as well, so it need not be retrieved.
            state.confirmed.add_done_callback(lambda f: f.cancelled() or f.exception())
        if state.phase is Phase.IDLE:
            self._states[state.name] = state
            state.phase = Phase.WAITING
            # The cursor of an earlier process applies to the first subscribe of each channel.
            if state.name not in self._resumed:
                state.after = state.after or self._options.after
            self._request([state])
        return state.confirmed

    def leave(self, state: ChannelState, error: RealtimeError | None = None) -> None:
        """End a subscription; with an error, because the server has ended it."""
        connection, unanswered, request = self._connection, state.unanswered, state.request
        asked = state.phase in (Phase.JOINING, Phase.JOINED)
        if connection is not None and error is None and asked:

            def answer(frame: Frame | None) -> None:
                # The server may not answer the subscribe that this unsubscribe ended.
                pending = frame is not None and unanswered.pop(state.name, (None, 0))[0]
                if pending and request is not None:
                    connection.expect_one_less(request)

            connection.request_until_accepted(
                encode({"op": "unsubscribe", "channel": state.name}),
                answer,
                lambda: (self.find(state.name) or state).phase is Phase.IDLE,
            )
        state.cancel_timer()
        state.phase, state.live, state.after, state.retries = Phase.IDLE, False, None, 0
        state.wants_messages = False
        state.attempt += 1
        state.times_left += error is None
        self._presence.left(state, error)
        state.seen = Seen()
        if state.confirmed is not None and not state.confirmed.done():
            text = "The subscription ended before the server confirmed it."
            ended = error or RealtimeError("unsubscribed", text, channel=state.name)
            state.confirmed.set_exception(ended)
        if state.inbox is not None:
            if error is None:
                state.inbox.close()
            else:
                self._dispatcher.end(state.inbox, error)
            state.inbox = None
        self._forget_before(self._progress.settle(state.name))
        self.discard_unused(state)

    # Requests to the server

    def _subscribe_waiting(self) -> None:
        waiting = [state for state in self._states.values() if state.phase is Phase.WAITING]
        self._request(waiting)

    def _request(self, states: Iterable[ChannelState]) -> None:
        """Subscribe to channels, with one frame for those with the same options."""
        connection = self._connection
        if connection is None:
            return
        groups: dict[str, list[ChannelState]] = defaultdict(list)
        for state in states:
            state.cancel_timer()
            state.phase = Phase.JOINING
            state.attempt += 1
            state.progress_at = time.monotonic()
            request: Frame = {"op": "subscribe"}
            if state.after is not None:
                self._progress.resume(state.name)
                request["after"] = state.after
            if state.history:
                request["history"] = state.history
            if not state.echo:
                request["self"] = False
            groups[encode(request)].append(state)
        for text, members in groups.items():
            for at in range(0, len(members), NAMES_PER_FRAME):
                self._request_frame(connection, text, members[at : at + NAMES_PER_FRAME])

    def _request_frame(
        self, connection: Connection, text: str, members: list[ChannelState]
    ) -> None:
        unanswered = {state.name: (state, state.attempt) for state in members}
        names = list(unanswered)
        key = "channel" if len(names) == 1 else "channels"
        value = encode(names[0] if len(names) == 1 else names)

        def answer(frame: Frame | None) -> None:
            if frame is None:
                return  # requested again after the reconnect
            named = frame.get("channel")
            for name in [named] if isinstance(named, str) else list(unanswered):
                state, attempt = unanswered.pop(name, (None, 0))
                # It was left or requested again since: this answer is not the one it waits for.
                if state is None or state.attempt != attempt:
                    self._offer(frame.get("cursor"))
                elif frame["op"] == "ok":
                    self._joined(state, frame)
                else:
                    self._refused(state, refusal(frame, name))

        request = connection.request(f'{text[:-1]},"{key}":{value}}}', answer, len(names))
        for state in members:
            state.unanswered, state.request = unanswered, request
            state.timer = asyncio.get_running_loop().call_later(
                self._options.timeout, self._overdue, connection, state, state.attempt
            )

    def _overdue(self, connection: Connection, state: ChannelState, attempt: int) -> None:
        """Close the connection when a subscribe has neither an answer nor a replay."""
        if state.phase is not Phase.JOINING or state.attempt != attempt:
            return
        left = state.progress_at + self._options.timeout - time.monotonic()
        if left > 0:  # its replay is arriving
            state.timer = asyncio.get_running_loop().call_later(
                left, self._overdue, connection, state, attempt
            )
        else:
            connection.abort()

    def _joined(self, state: ChannelState, frame: Frame) -> None:
        after, resumed = state.after, state.live or state.after is not None
        state.cancel_timer()
        state.phase, state.live, state.after, state.retries = Phase.JOINED, True, None, 0
        if self._options.after is not None:
            self._resumed.add(state.name)
        self._progress.settle(state.name)
        self._offer(frame.get("cursor"))
        if state.confirmed is not None and not state.confirmed.done():
            state.confirmed.set_result(None)
        self._presence.joined(state, frame)
        self._tell(state, "subscribed", {"channel": state.name, "resumed": resumed})
        recovered = after is not None and frame.get("recovered") is not False
        ephemeral = after is not None and frame.get("ephemeral") is not False
        if resumed and not (recovered and ephemeral):
            reason = frame.get("reason") or ("no_cursor" if after is None else None)
            told = {"recovered": recovered, "ephemeral": ephemeral, "reason": reason}
            self._tell(state, "resync", {"channel": state.name, **told})

    def _refused(self, state: ChannelState, error: RealtimeError) -> None:
        if error.code in RETRYABLE and (state.live or state.retries < FIRST_JOIN_RETRIES):
            # The channel keeps its `after`, so the session's cursor may advance without it.
            state.phase = Phase.WAITING
            self._forget_before(self._progress.settle(state.name))
            if error.code == "token_expired":
                self.refresh_token()
            if state.retries == 0:
                self._dispatcher.report(error, state.listeners)
            self._retry_later(state, error.retry_after)
            return
        live = state.live
        listeners = state.listeners
        self.leave(state, error)
        self._dispatcher.report(error, listeners)
        if live:
            told = {"channel": state.name, "code": error.code, "final": True}
            self._dispatcher.tell(lambda: listeners.of("closed"), told)

    def _retry_later(self, state: ChannelState, retry_after: float | None = None) -> None:
        """Subscribe again after a pause, given in seconds by the server or growing."""
        delay = min(self._options.max_delay, self._options.min_delay * 2.0**state.retries)
        delay *= random.uniform(0.5, 1)
        if retry_after is not None and retry_after > 0:
            delay = min(retry_after, LONGEST_PAUSE)
        state.retries += 1
        state.cancel_timer()
        state.timer = asyncio.get_running_loop().call_later(delay, self._retry, state)

    def _retry(self, state: ChannelState) -> None:
        if state.phase is Phase.WAITING:
            self._request([state])

    # Frames that the server sends without a request

    def on_messages(self, frame: Frame) -> None:
        """Handle a `messages` frame."""
        state = self.find(frame.get("channel"))
        if state is None or state.phase is Phase.IDLE:
            return
        now = state.progress_at = time.monotonic()
        earlier = frame.get("history") is True or frame.get("replay") is True
        if state.phase is Phase.JOINING and not earlier:
            # Live messages follow the answer: these belong to a subscription that has ended.
            return
        items = frame.get("messages")
        if not isinstance(items, list):
            text = "The server sent messages that are not a list."
            error = RealtimeError("invalid_frame", text, channel=state.name)
            self._dispatcher.report(error, state.listeners)
            return
        for item in items:
            try:
                message = message_of(item, state.name, frame)
            except RealtimeError as error:
                self._dispatcher.report(error, state.listeners)
                continue
            durable = message.type == "message"
            if message.id is None or state.seen.add(message.id, now, durable):
                self._deliver(state, message)

    def _deliver(self, state: ChannelState, message: Message) -> None:
        if message.raw:
            text = "Python cannot read this payload (too deep or too long): it is given as text."
            error = RealtimeError("unreadable_payload", text, channel=state.name, id=message.id)
            self._dispatcher.report(error, state.listeners)
        self._dispatcher.tell(
            state.unless_left(lambda: state.callbacks(message.type, message.event)),
            message,
            state.inbox,
        )

    def on_presence(self, frame: Frame) -> None:
        """Handle a `presence` frame."""
        state = self.find(frame.get("channel"))
        if state is not None and state.phase is Phase.JOINED:
            self._presence.changed(state, frame)

    def on_deleted(self, frame: Frame) -> None:
        """Handle a `deleted` frame."""
        state = self.find(frame.get("channel"))
        if state is not None:
            self._tell(state, "deleted", {"channel": state.name, "id": frame.get("id")})

    def on_closed(self, frame: Frame) -> None:
        """Handle a `closed` frame. During a subscribe its answer decides instead."""
        state, code = self.find(frame.get("channel")), str(frame.get("code"))
        if state is None or state.phase is not Phase.JOINED:
            return
        final = code not in TEMPORARY
        if final:
            text = f"The server closed channel {state.name}: {code}."
            self.leave(state, RealtimeError(code, text, channel=state.name))
        else:
            state.phase = Phase.WAITING
            state.after = self._progress.cursor
            if code == "expired":
                self.refresh_token()  # it is subscribed again once the new token is accepted
            else:
                self._retry_later(state)
        self._tell(state, "closed", {"channel": state.name, "code": code, "final": final})

    def on_cursor(self, frame: Frame) -> None:
        """Handle a `cursor` frame."""
        self._offer(frame.get("cursor"))

    def _offer(self, cursor: object) -> None:
        self._forget_before(self._progress.offer(cursor, time.monotonic()))

    def _forget_before(self, at: float | None) -> None:
        if at is None or self._connection is None:
            return
        assert self._progress.cursor is not None
        self._dispatcher.mark(self._progress.cursor)
        for state in self._states.values():
            if state.after is None:
                state.seen.forget(at - self._connection.overlap, state.history)

    def _tell(self, state: ChannelState, kind: str, argument: Any) -> None:
        self._dispatcher.tell(lambda: state.listeners.of(kind), argument)
