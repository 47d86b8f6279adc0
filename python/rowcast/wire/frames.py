"""WebSocket frames of a server (RFC 6455, section 5.2).

A server's frames are not masked, so one byte string serves every client, and what one tick has
for a client is joined into one write. The library's own writer would frame once per client.
"""

from __future__ import annotations

__all__ = ["text_frame"]

FIN_TEXT = 0x81


def text_frame(payload: bytes) -> bytes:
    """Return the payload as one unfragmented, uncompressed text frame."""
    size = len(payload)
    if size < 126:
        return bytes((FIN_TEXT, size)) + payload
    if size < 65536:
        return bytes((FIN_TEXT, 126)) + size.to_bytes(2, "big") + payload
    return bytes((FIN_TEXT, 127)) + size.to_bytes(8, "big") + payload
