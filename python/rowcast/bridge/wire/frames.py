"""WebSocket frames of a server (RFC 6455, section 5.2).

A server's frames are not masked, so one byte string serves every client, and what one tick has
for a client is joined into one write. The library's own writer would frame once per client.
"""

from __future__ import annotations

__all__ = ["binary_frame", "ping_frame", "text_frame"]

FIN_TEXT = 0x81
FIN_BINARY = 0x82
FIN_PING = 0x89


def text_frame(payload: bytes) -> bytes:
    """Return the payload as one unfragmented, uncompressed text frame."""
    return _frame(FIN_TEXT, payload)


def binary_frame(payload: bytes) -> bytes:
    """Return the payload as one unfragmented, uncompressed binary frame."""
    return _frame(FIN_BINARY, payload)


def ping_frame(payload: bytes) -> bytes:
    """Return a ping; the pong repeats the payload, of at most 125 bytes, and comes after
    everything that was written before the ping has arrived."""
    return _frame(FIN_PING, payload)


def _frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload
