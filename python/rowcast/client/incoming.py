"""What the server sends without being asked, for one channel or another."""

from __future__ import annotations

import time
from typing import Any

from .delivery import Callback, Delivery
from .frames import Frame, Message, RealtimeError, message_of
from .join import Join, Phase
from .joining import Joins, Report

__all__ = ["Incoming"]


class Incoming:
    """Hands frames to channels.

    Args:
        joins: the channels.
        delivery: where messages and events go.
        report: told of errors.
    """

    def __init__(self, joins: Joins, delivery: Delivery, report: Report) -> None:
        self._joins = joins
        self._delivery = delivery
        self._report = report

    def messages(self, frame: Frame) -> None:
        """A `messages` frame."""
        join = self._joins.find(frame.get("channel"))
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
        join = self._joins.find(frame.get("channel"))
        if join is not None:
            self._tell(join, "deleted", {"channel": join.name, "id": frame.get("id")})

    def closed(self, frame: Frame) -> None:
        """A `closed` frame. While a join is under way its answer decides instead."""
        join, code = self._joins.find(frame.get("channel")), str(frame.get("code"))
        if join is None or join.phase is not Phase.JOINED:
            return
        final = code not in ("lagging", "expired", "unavailable")
        if final:
            text = f"The server closed channel {join.name}: {code}."
            self._joins.leave(join, RealtimeError(code, text, channel=join.name))
        else:
            self._joins.stand(join)
            if code == "expired":
                self._joins.refresh()  # it is joined again when that has succeeded
            else:
                self._joins.later(join)
        self._tell(join, "closed", {"channel": join.name, "code": code, "final": final})

    def _tell(self, join: Join, kind: str, argument: Any) -> None:
        self._delivery.tell(lambda: join.listeners.of(kind), argument)
