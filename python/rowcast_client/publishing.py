"""Publishes that wait for their answer, over as many connections as it takes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from .connection import Link
from .frames import Frame, RealtimeError, encode, refusal

__all__ = ["Outbox"]

REF_BYTES = 40  # what a request's ref adds to its frame
TOO_BIG = 1009


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


class Outbox:
    """The queue of publishes.

    Args:
        timeout: seconds until an unanswered one is an error.
        limit: how many may wait.
    """

    def __init__(self, timeout: float, limit: int) -> None:
        self._timeout = timeout
        self._limit = limit
        self._entries: dict[_Entry, None] = {}
        self._link: Link | None = None
        self._stopped: RealtimeError | None = None

    async def send(self, key: str, head: Frame, payload: Any) -> str:
        """Publish; returns the message's id. Raises `RealtimeError` as `Channel.send` says."""
        channel = head["channel"]
        if not isinstance(head["event"], str) or not head["event"]:
            raise RealtimeError("invalid_message", "A message needs an event.", channel=channel)
        if self._stopped is not None:
            raise RealtimeError(self._stopped.code, str(self._stopped), channel=channel, id=key)
        if len(self._entries) >= self._limit:
            text = f"{self._limit} messages wait for an answer already: send slower."
            raise RealtimeError("queue_full", text, channel=channel, id=key)
        text = f'{encode(head)[:-1]},"payload":{encode(payload)}}}'
        entry = _Entry(key, channel, text, asyncio.get_running_loop().create_future())
        self._entries[entry] = None
        if self._link is not None:
            self._publish(self._link, entry)
        try:
            async with asyncio.timeout(self._timeout):
                return await entry.result
        except TimeoutError:
            text = (
                "The server did not answer in time, so the message may be stored: sending it"
                " again with this id is safe."
                if entry.sent
                else "There was no connection in time: the message was not sent."
            )
            raise RealtimeError("timeout", text, channel=channel, id=key) from None
        finally:
            del self._entries[entry]

    def connected(self, link: Link) -> None:
        """Send what waits, in the order it was given."""
        self._link = link
        for entry in list(self._entries):
            self._publish(link, entry)

    def interrupted(self, code: int) -> None:
        """The connection is lost with this close code."""
        self._link = None
        sent = [entry for entry in self._entries if entry.sent]
        if code == TOO_BIG and sent:
            # The server tells not which frame was too big for it; sent again, it would end
            # every connection.
            largest = max(sent, key=lambda entry: len(entry.text))
            largest.fail("payload_too_large", "The server closed over the size of this message.")

    def stop(self, error: RealtimeError) -> None:
        """No connection will come any more."""
        self._link = None
        self._stopped = error
        for entry in self._entries:
            entry.fail(error.code, str(error))

    def _publish(self, link: Link, entry: _Entry) -> None:
        limit = link.limits.get("frame")
        if isinstance(limit, int) and 0 < limit - REF_BYTES < len(entry.text.encode()):
            text = f"The message is larger than the {limit} bytes the server takes at once."
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

        link.ask(entry.text, answer)
