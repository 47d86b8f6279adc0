"""Decoding frames of the native wire: strict, and never an exception."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.bridge.wire import native
from rowcast.bridge.wire.protocol import Publish, Refused, Subscribe
from rowcast.errors import Refusal


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


DEEP = b"[" * 5000 + b"]" * 5000


@pytest.mark.parametrize("ref", [b'"7"', b"7", b'"a\\"b"', b'"' + b"x" * 255 + b'"'])
@pytest.mark.parametrize(
    "frame",
    [
        b'{"op":"publish","ref":REF,"channel":"a","event":"e","payload":DEEP}',
        b'{"op":"publish","channel":"a","event":"e","payload":DEEP,"ref":REF}',
        b'{ "op" : "publish" , "payload" : DEEP , "ref" : REF , "id" : "\\u0041", "n": -1.5e3 } ',
        b'{"op":"track","channel":"a","state":{"deep":DEEP,"ref":"inner"},"ref":REF}',
    ],
)
def test_what_is_nested_too_deeply_is_refused_by_its_ref(frame: bytes, ref: bytes) -> None:
    op, found, refusal = native.decode(frame.replace(b"REF", ref).replace(b"DEEP", DEEP))
    assert op is None
    assert found == json.loads(ref)
    assert refusal is not None
    assert refusal.code == "invalid_message"
    assert "nested" in str(refusal)


@pytest.mark.parametrize("unit", [b',"ref":1', b',"a":1,"ref":1', b',"ref":""', b',"ref":1 '])
@pytest.mark.parametrize("end", [b"", b"}", b"} x", b'"', b":"])
def test_a_frame_full_of_refs_costs_no_more_than_another(unit: bytes, end: bytes) -> None:
    """A hundred such frames would hold up all clients, before their sender is authenticated."""

    def seconds(unit: bytes) -> float:
        frame = b'{"op":"publish","payload":[' + unit * (2048 // len(unit)) + end
        times = []
        for _ in range(5):
            began = time.perf_counter()
            native.decode(frame)
            times.append(time.perf_counter() - began)
        return min(times)

    assert seconds(unit) < 10 * seconds(b',"of":1') + 0.0005


def test_a_frame_that_is_broken_elsewhere_keeps_its_ref() -> None:
    """A lone surrogate, which browsers send as an escape."""
    _, ref, refusal = native.decode(b'{"op":"publish","payload":"\\ud800","ref":"8"}')
    assert ref == "8"
    assert refusal is not None
    assert refusal.code == "invalid_frame"


@pytest.mark.parametrize(
    "frame",
    [
        b'{"op":"publish","payload":{"ref":"1","deep":DEEP}}',
        b'{"op":"publish","payload":{"deep":DEEP,"ref":"1"}}',
        b'{"op":"publish","payload":[DEEP,{"x":1,"ref":"1"}],"id":"x"}',
        b'{"op":"publish","payload":DEEP,"event":",\\"ref\\":\\"1\\"}"}',
        b'{"op":"publish","payload":DEEP,"ref":{"ref":"1"}}',
        b'{"op":"publish","payload":DEEP,"ref":"' + b"x" * 256 + b'"}',
    ],
)
def test_a_ref_inside_of_a_value_is_not_found(frame: bytes) -> None:
    assert native.decode(frame.replace(b"DEEP", DEEP))[1] is None


@pytest.mark.parametrize(
    "part", [b'"', b"\\", b'{"', b'"a":"b",', b',"ref":"', b',"ref":1,', b'{"a":', b" "]
)
def test_looking_for_the_ref_takes_no_time_that_a_client_can_choose(part: bytes) -> None:
    began = time.perf_counter()
    native.decode(b'{"op":' + part * (1_000_000 // len(part)))
    assert time.perf_counter() - began < 0.5
