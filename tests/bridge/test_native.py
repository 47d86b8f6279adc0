"""Decoding what clients send: strict, and never an exception."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.errors import CATALOGUE, Refusal
from rowcast.wire import native
from rowcast.wire.events import Refused
from rowcast.wire.operations import Publish, Subscribe

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
OPS = ["auth", "subscribe", "unsubscribe", "publish", "track", "untrack", "ping"]
KEYS = ["ref", "channel", "channels", "after", "history", "self", "payload", "event", "type", "id"]


def same(data: bytes) -> None:
    op, _, refusal = native.decode(data)
    assert (op is None) == (refusal is not None)
    if refusal is not None:
        assert refusal.code in CATALOGUE


@given(st.binary(max_size=300))
def test_any_bytes_are_an_operation_or_a_refusal(data: bytes) -> None:
    same(data)


@given(st.sampled_from(OPS), st.dictionaries(st.sampled_from(KEYS), JSON))
def test_any_object_is_an_operation_or_a_refusal(op: str, rest: dict[str, Any]) -> None:
    same(json.dumps({"op": op, **rest}).encode())


@pytest.mark.parametrize("depth", [10, 1000, 100_000])
def test_depth_is_no_error(depth: int) -> None:
    same(
        b'{"op":"publish","channel":"a","event":"e","payload":' + b"[" * depth + b"]" * depth + b"}"
    )
    same(b"[" * depth)


@pytest.mark.parametrize("ref", ["1", "", "x" * 255, 0, -5, 2**53])
def test_a_ref_comes_back_also_when_the_rest_is_wrong(ref: Any) -> None:
    for frame in (
        {"op": "ping"},
        {"op": "nothing"},
        {"op": "publish", "payload": 1, "channel": 5},
        {"op": "subscribe", "history": -1},
    ):
        assert native.decode(json.dumps({**frame, "ref": ref}).encode())[1] == ref


def test_a_payload_stays_the_bytes_that_came() -> None:
    text = b'{ "a" : 1.10, "b": 1e400, "a": 123456789012345678901234567890 }'
    op, _, _ = native.decode(b'{"op":"publish","channel":"c","event":"e","payload":' + text + b"}")
    assert isinstance(op, Publish)
    assert bytes(op.payload) == text


def test_names_with_nul_or_too_many_bytes_are_refused_before_sql() -> None:
    for name in ("a\0", "é" * 128):
        for op in ("subscribe", "unsubscribe", "publish"):
            frame = {"op": op, "channel": name, "event": "e"}
            _, _, refusal = native.decode(json.dumps(frame).encode())
            assert refusal is not None
            assert refusal.code in ("invalid_channel", "invalid_frame")


def test_channels_are_asked_for_once_each() -> None:
    op, _, _ = native.decode(b'{"op":"subscribe","channel":"a","channels":["b","a","b"]}')
    assert isinstance(op, Subscribe)
    assert op.names() == ["a", "b"]


@given(st.text(), st.text(min_size=1, max_size=300))
def test_errors_are_valid_frames_whatever_they_quote(ref: str, text: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in ref + text):
        return
    data = native.NATIVE.encode(Refused.because(ref, Refusal("unavailable", text), text))
    at = {126: 4, 127: 10}.get(data[1], 2)
    frame = msgspec.json.decode(data[at:])
    assert (frame["ref"], frame["message"], frame["retryAfter"]) == (ref, text, 1.0)
