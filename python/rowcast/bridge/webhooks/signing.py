"""Signs webhook requests (Standard Webhooks 1.0.0), and makes their headers. Does no I/O."""

from __future__ import annotations

import base64
import hashlib
import hmac
import string
from binascii import b2a_base64
from collections.abc import Sequence
from functools import lru_cache

from rowcast import __version__
from rowcast.bridge.model import Delivery

__all__ = ["headers", "key_of", "signature"]

PREFIX = "whsec_"
# Characters that stay as they are in a header. `%` is not among them, so decoding is unique.
PLAIN = frozenset(string.ascii_letters + string.digits + "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")


def key_of(secret: str) -> bytes:
    """Return the key in a secret as Standard Webhooks writes it.

    Raises:
        ValueError: it is not ``whsec_`` and base64.
    """
    if not secret.startswith(PREFIX):
        raise ValueError(f"a signing secret begins with {PREFIX}")
    return base64.b64decode(secret[len(PREFIX) :], validate=True)


@lru_cache(maxsize=1024)
def _keyed(secret: str) -> hmac.HMAC:
    """Return an HMAC with its key set, to be copied: setting a key costs more than signing."""
    return hmac.new(key_of(secret), digestmod=hashlib.sha256)


def signature(secrets: Sequence[str], message_id: str, at: int, body: bytes) -> str:
    """Return the value of ``webhook-signature``: one signature for each valid secret.

    Args:
        secrets: the present one first; while it is being rotated, also the one before.
        message_id: value of ``webhook-id``, without a dot.
        at: value of ``webhook-timestamp``, the second of this attempt.
        body: exactly the bytes that are sent.
    """
    signed = b"%s.%d.%s" % (message_id.encode(), at, body)
    found = []
    for secret in secrets:
        mac = _keyed(secret).copy()
        mac.update(signed)
        found.append(f"v1,{b2a_base64(mac.digest(), newline=False).decode()}")
    return " ".join(found)


def headers(delivery: Delivery, at: int) -> dict[str, str]:
    """Return all headers of a request.

    The id is that of the message and the same at every attempt, so receivers can drop repeats.
    Names of events and channels may hold any character: outside printable ASCII, and for `%`
    itself, they are percent-encoded UTF-8.

    Args:
        delivery: with a body.
        at: the second of this attempt.
    """
    assert delivery.body is not None
    number = str(delivery.message_id)
    message_id = f"msg_{number}"
    event, channel = _safe(delivery.event), _safe(delivery.channel)
    found = {
        "Content-Type": "application/json",
        "User-Agent": f"rowcast/{__version__}",
        "webhook-id": message_id,
        "webhook-timestamp": str(at),
        "webhook-signature": signature(delivery.secrets, message_id, at, delivery.body),
        "X-Rowcast-Event": event,
        "X-Rowcast-Channel": channel,
        "X-Rowcast-Message-Id": number,
    }
    if delivery.bare:
        found |= {
            "X-InsForge-Event": event,
            "X-InsForge-Channel": channel,
            "X-InsForge-Message-Id": number,
        }
    return found


@lru_cache(maxsize=1024)
def _safe(name: str) -> str:
    if PLAIN.issuperset(name):
        return name
    return "".join(
        character
        if character in PLAIN
        else "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "replace"))
        for character in name
    )
