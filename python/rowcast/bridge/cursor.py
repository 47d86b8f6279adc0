"""Positions in the feed: a snapshot of Postgres, and the signed cursor that clients keep.

A sequence number cannot say what a reader has seen, because numbers commit out of order; a
snapshot can. A snapshot is valid only in the life of the cluster in which it was taken, hence the
boot id. Cursors are signed, because a forged one would be a permission to read history.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

__all__ = ["CursorKey", "Position"]

VERSION = 1
TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class Position:
    """Everything visible in `snapshot` has been read.

    Args:
        snapshot: `pg_snapshot` as text, ``xmin:xmax:xip,…``.
        boot: the life of the cluster.
        issued_at: the database clock when the snapshot was taken.
    """

    snapshot: str
    boot: UUID
    issued_at: datetime
    _packed: list[bytes] = field(default_factory=list, repr=False, compare=False)

    def pack(self) -> bytes:
        """Return the packed form; kept, because thousands of cursors carry the same one."""
        if not self._packed:
            xmin, xmax, xip = self.snapshot.split(":")
            running = [int(x) for x in xip.split(",")] if xip else []
            numbers = [
                int(self.issued_at.timestamp() * 1000),
                int(xmin),
                int(xmax) - int(xmin),
                len(running),
            ]
            before = int(xmin)
            for x in running:
                numbers.append(x - before)
                before = x
            self._packed.append(
                bytes((VERSION,)) + self.boot.bytes + b"".join(map(_varint, numbers))
            )
        return self._packed[0]

    @classmethod
    def unpack(cls, packed: bytes) -> Position:
        """Return the position that was packed; raises ValueError or IndexError for other bytes."""
        if packed[0] != VERSION:
            raise ValueError("another version")
        boot = UUID(bytes=packed[1:17])
        numbers: list[int] = []
        at = 17
        while at < len(packed):
            value = shift = 0
            while True:
                byte = packed[at]
                at += 1
                value |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            numbers.append(value)
        issued, xmin, width, count = numbers[:4]
        running: list[int] = []
        before = xmin
        for step in numbers[4:]:
            before += step
            running.append(before)
        if len(running) != count:
            raise ValueError("truncated")
        snapshot = f"{xmin}:{xmin + width}:{','.join(map(str, running))}"
        return cls(snapshot, boot, datetime.fromtimestamp(issued / 1000, UTC))


@dataclass(frozen=True, slots=True)
class CursorKey:
    """Signs and reads cursors; the key is in the database, so that any bridge can read them."""

    key: bytes

    def sign(self, position: Position, subject: str) -> str:
        """Return the cursor that this subject may present."""
        packed = position.pack()
        return base64.urlsafe_b64encode(self._tag(packed, subject) + packed).rstrip(b"=").decode()

    def read(self, cursor: str, subject: str) -> Position | None:
        """Return the position, or None when the cursor was not signed for this subject."""
        try:
            raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
            tag, packed = raw[:TAG_BYTES], raw[TAG_BYTES:]
            if not hmac.compare_digest(tag, self._tag(packed, subject)):
                return None
            return Position.unpack(packed)
        except (ValueError, IndexError, OverflowError, OSError, binascii.Error):
            return None

    def _tag(self, packed: bytes, subject: str) -> bytes:
        # The length of the packed form is signed, so the subject cannot be moved into it.
        signed = len(packed).to_bytes(4, "big") + packed + subject.encode("utf-8", "surrogatepass")
        return hmac.digest(self.key, signed, hashlib.sha256)[:TAG_BYTES]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
