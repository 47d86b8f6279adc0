"""Publishes that wait for their answer, across as many connections as it takes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from .connection import Connection
from .frames import Frame, RealtimeError, encode, refusal

__all__ = ["Publishing"]

REF_BYTES = 40  # bytes that a request's ref adds to its frame
TOO_BIG = 1009  # close code, RFC 6455


@dataclass(slots=True, eq=False)
class _Entry:
    key: str
    channel: str
    text: str
    result: asyncio.Future[str]
    sent: bool = False

    def fail(self, code: str, text: str) -> None:
        self.settle(RealtimeError(code, text, channel=self.channel, id=self.key))

    def settle(self, outcome: str | RealtimeError) -> None:
        if self.result.done():
            return
        if isinstance(outcome, str):
            self.result.set_result(outcome)
        else:
            self.result.set_exception(outcome)


class Publishing:
    """The queue of publishes.

    Args:
        timeout: seconds until an unanswered publish is an error.
        limit: number of publishes that may wait.
    """

    def __init__(self, timeout: float, limit: int) -> None:
        self._timeout = timeout
        self._limit = limit
        self._entries: dict[_Entry, None] = {}
        self._connection: Connection | None = None
        self._stopped: RealtimeError | None = None

    async def send(self, key: str, head: Frame, payload: Any) -> str:
        """Publish and return the message's id.

        Args:
            key: the idempotency key.
            head: the frame without its payload.
            payload: a value that JSON can represent.

        Raises:
            RealtimeError: see `Channel.send`.
        """
        channel = head["channel"]
        if not isinstance(head["event"], str) or not head["event"]:
            text = "A message needs an event name, which is not empty."
            raise RealtimeError("invalid_message", text, channel=channel)
        if self._stopped is not None:
            raise RealtimeError(self._stopped.code, str(self._stopped), channel=channel, id=key)
        if len(self._entries) >= self._limit:
            text = f"{self._limit} publishes already wait for an answer: publish more slowly."
            raise RealtimeError("queue_full", text, channel=channel, id=key)
        text = f'{encode(head)[:-1]},"payload":{encode(payload)}}}'
        entry = _Entry(key, channel, text, asyncio.get_running_loop().create_future())
        self._entries[entry] = None
        if self._connection is not None:
            self._publish(self._connection, entry)
        try:
            async with asyncio.timeout(self._timeout):
                return await entry.result
        except TimeoutError:
            text = (
                "The server did not answer in time, so the message may be stored: it is safe to"
                " send it again with this id."
                if entry.sent
                else "The message was not sent: there was no connection in time."
            )
            raise RealtimeError("timeout", text, channel=channel, id=key) from None
        finally:
            del self._entries[entry]

    def connected(self, connection: Connection) -> None:
        """Send everything that waits, in the order of the calls."""
        self._connection = connection
        for entry in list(self._entries):
            self._publish(connection, entry)

    def interrupted(self, code: int) -> None:
        """Keep everything for the next connection; this one ended with a close code."""
        self._connection = None
        sent = [entry for entry in self._entries if entry.sent]
        if code == TOO_BIG and sent:
            # The server does not say which frame was too big. Sent again, it would end every
            # connection.
            largest = max(sent, key=lambda entry: len(entry.text))
            text = "The server closed the connection because of the size of this message."
            largest.fail("payload_too_large", text)

    def stop(self, error: RealtimeError) -> None:
        """Refuse everything, because the client will not connect again."""
        self._connection = None
        self._stopped = error
        for entry in self._entries:
            entry.fail(error.code, str(error))

    def _publish(self, connection: Connection, entry: _Entry) -> None:
        limit = connection.limits.get("frame")
        if isinstance(limit, int) and 0 < limit - REF_BYTES < len(entry.text.encode()):
            text = f"The message is larger than the {limit} bytes that the server takes in a frame."
            entry.fail("payload_too_large", text)
            return
        entry.sent = True

        def answer(frame: Frame | None) -> None:
            if frame is None:
                return  # sent again after the reconnect, under the same key
            if frame["op"] == "ok":
                entry.settle(str(frame.get("id", entry.key)))
            else:
                error = refusal(frame, entry.channel)
                error.id = entry.key
                entry.settle(error)

        connection.request(entry.text, answer)
