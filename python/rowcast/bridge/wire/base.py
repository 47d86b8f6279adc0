"""What a wire is: the words in which one client and the bridge speak.

Frames in, operations out; events in, bytes out. No I/O, and no decision about what is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rowcast.bridge.message import Message
from rowcast.errors import Refusal

from .events import Event
from .operations import Op

__all__ = ["Wire"]


class Wire(Protocol):
    """One client's words. What it remembers of the client is its own business.

    `format` names the bytes of messages: the hub encodes once per format, not once per client.
    So live messages, and events that go to many, must be encoded alike for all of its clients.
    """

    format: str
    admin: bool  # whether administrators connect here, as the application itself

    def decode(self, data: bytes, *, binary: bool) -> tuple[Sequence[Op], Any, Refusal | None]:
        """Decode one frame.

        Args:
            data: its payload.
            binary: whether it was a binary frame, not a text frame.

        Returns:
            The operations, to be done in this order; the ref to answer to; why there are none,
            or None.
        """

    def encode(self, event: Event) -> bytes:
        """Return frames that tell this event; none where the wire has no word for it."""

    def encode_messages(
        self, channel: str, messages: Sequence[Message], flag: str | None = None
    ) -> bytes:
        """Return frames of messages of one channel.

        Args:
            channel: the name they were published to.
            messages: at least one.
            flag: "history" or "replay", or None for live ones.
        """
