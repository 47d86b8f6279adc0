"""Headers of webhook requests: any verifier accepts them, and they are safe whatever the names."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime
from urllib.parse import unquote
from uuid import UUID

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from rowcast.bridge.model import Delivery
from rowcast.bridge.webhooks.egress import retry_after
from rowcast.bridge.webhooks.signing import headers, key_of, signature

OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()
NEW = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def delivery(**changes: object) -> Delivery:
    values: dict[str, object] = {
        "id": 1,
        "attempt": 1,
        "message_id": UUID(int=7),
        "endpoint_id": UUID(int=8),
        "url": "https://example.com/",
        "secrets": (NEW,),
        "bare": False,
        "event": "said",
        "channel": "room:1",
        "body": b'{"a": 1}',
        **changes,
    }
    return Delivery(**values)  # type: ignore[arg-type]


def test_the_signature_is_that_of_the_reference_implementation() -> None:
    at = int(time.time())
    body = '{"text": "ü"}'
    reference = standardwebhooks.Webhook(NEW).sign("msg_1", datetime.fromtimestamp(at, UTC), body)
    assert signature([NEW], "msg_1", at, body.encode()) == reference


def test_while_a_secret_is_rotated_both_sign() -> None:
    sent = headers(delivery(secrets=(NEW, OLD)), int(time.time()))
    assert len(sent["webhook-signature"].split(" ")) == 2
    for secret in (NEW, OLD):
        assert standardwebhooks.Webhook(secret).verify(b'{"a": 1}', sent) == json.loads('{"a": 1}')


def test_a_captured_request_is_refused_when_it_is_old_or_was_changed() -> None:
    verifier = standardwebhooks.Webhook(NEW)
    sent = headers(delivery(), int(time.time()) - 600)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verifier.verify(b'{"a": 1}', sent)
    sent = headers(delivery(), int(time.time()))
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verifier.verify(b'{"a": 2}', sent)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verifier.verify(b'{"a": 1}', {**sent, "webhook-id": "msg_other"})


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_name_makes_headers_that_are_ascii_and_can_be_read_back(
    event: str, channel: str
) -> None:
    sent = headers(delivery(event=event, channel=channel), 1_700_000_000)
    for value in sent.values():
        assert value.isascii()
        assert value.isprintable()
        assert value == value.strip()
    assert unquote(sent["X-Rowcast-Event"]) == event.encode("utf-8", "replace").decode()
    assert "." not in sent["webhook-id"]


@pytest.mark.parametrize("secret", ["", "whsec_", "secret", "whsec_%%%", "whpk_" + NEW[6:]])
def test_a_secret_of_the_wrong_form_is_refused(secret: str) -> None:
    if secret == "whsec_":
        assert key_of(secret) == b""
        return
    with pytest.raises(ValueError, match=r".+"):
        key_of(secret)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120),
        (" 0 ", 0),
        ("99999999999999999999", 86400),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("²", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015 07:30:00 GMT", 60),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 86400),
        ("Wed, 99 Oct 2099 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(text: str, seconds: int | None) -> None:
    given = {"Retry-After": text, "Date": "Wed, 21 Oct 2015 07:29:00 GMT"}
    assert retry_after(given) == seconds


def test_without_a_date_of_the_answer_our_own_clock_counts() -> None:
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    found = retry_after({"Retry-After": later})
    assert found is not None
    assert 90 <= found <= 100
