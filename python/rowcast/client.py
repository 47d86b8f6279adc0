"""The former name of `rowcast_client`, kept for one release: import that instead."""

from __future__ import annotations

from rowcast_client import Channel, Message, Realtime, RealtimeError, connect

__all__ = ["Channel", "Message", "Realtime", "RealtimeError", "connect"]
