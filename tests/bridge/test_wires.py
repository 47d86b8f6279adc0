"""Fuzzing of all wires: any frame is operations or a refusal, and each request is answered once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.test_phoenix import frames, pushed
from rowcast.bridge.phoenix.codec import Phoenix
from rowcast.bridge.socketio.codec import SocketIO
from rowcast.bridge.wire.native import NATIVE
from rowcast.bridge.wire.protocol import Refused, Welcome, Wire
from rowcast.errors import CATALOGUE, Refusal

# (payload of a frame, whether it is a binary frame)
Sent = tuple[bytes, bool]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
OPS = ["auth", "subscribe", "unsubscribe", "publish", "track", "untrack", "ping"]
KEYS = ["ref", "channel", "channels", "after", "history", "self", "payload", "event", "type", "id"]
EVENTS = [
    "phx_join", "phx_leave", "heartbeat", "access_token", "broadcast", "presence", "phx_reply",
]  # fmt: skip
PACKETS = [
    '0/,{"token":"t"}', '27["realtime:subscribe",{"channel":"a"}]', "1", "37[]",
    '2["realtime:publish",{"channel":"a","event":"e","payload":{"a":[1]}}]', '51-["x"]',
]  # fmt: skip


def socketio() -> SocketIO:
    wire = SocketIO()
    wire.encode(Welcome("session", 25, 10, {}))
    return wire


WIRES: dict[str, Callable[[], Wire]] = {
    "native": lambda: NATIVE,
    "phoenix1": lambda: Phoenix("phoenix1", "key"),
    "phoenix2": lambda: Phoenix("phoenix2", "key"),
    "socketio": socketio,
}


def native_object(op: str, rest: dict[str, Any]) -> Sent:
    return json.dumps({"op": op, **rest}).encode(), False


def phoenix_frame(wire: str, event: str, payload: Any, ref: Any) -> Sent:
    if wire == "phoenix2":
        return json.dumps(["j", ref, "realtime:a", event, payload]).encode(), False
    frame = {"topic": "realtime:a", "event": event, "payload": payload, "ref": ref, "join_ref": "j"}
    return json.dumps(frame).encode(), False


def phoenix_push(head: bytes, rest: bytes) -> Sent:
    return b"\x03" + head + rest, True


@st.composite
def mutated_packets(draw: Any) -> Sent:
    packet = bytearray(draw(st.sampled_from(PACKETS)).encode())
    for _ in range(draw(st.integers(0, 4))):
        packet[draw(st.integers(0, len(packet) - 1))] = draw(st.integers(0, 255))
    return bytes(packet), False


def phoenix_frames(wire: str) -> st.SearchStrategy[Sent]:
    return st.builds(phoenix_frame, st.just(wire), st.sampled_from(EVENTS), JSON, JSON)


STRATEGIES: list[tuple[str, str, st.SearchStrategy[Sent]]] = [
    *(
        (wire, kind, st.tuples(st.binary(max_size=300), st.just(kind == "binary")))
        for wire in WIRES
        for kind in ("text", "binary")
    ),
    (
        "native",
        "objects",
        st.builds(
            native_object, st.sampled_from(OPS), st.dictionaries(st.sampled_from(KEYS), JSON)
        ),
    ),
    ("phoenix1", "events", phoenix_frames("phoenix1")),
    ("phoenix2", "events", phoenix_frames("phoenix2")),
    (
        "phoenix2",
        "pushes",
        st.builds(phoenix_push, st.binary(min_size=6, max_size=6), st.binary(max_size=400)),
    ),
    ("socketio", "mutated", mutated_packets()),
]


@dataclass
class Session:
    """A wire, and what its client reads of an answer."""

    name: str

    def __post_init__(self) -> None:
        self.wire = WIRES[self.name]()

    def refuse(self, ref: Any, refusal: Refusal) -> None:
        for kind, payload in frames(self.wire.encode(Refused.because(ref, refusal))):
            assert kind == 1
            text = payload.decode()
            if self.name == "socketio":
                assert text.startswith("4")
            else:
                json.loads(text)

    def check(self, data: bytes, *, binary: bool) -> None:
        """Whatever was sent, each request is answered once, and nothing is kept of it."""
        ops, ref, refusal = self.wire.decode(data, binary=binary)
        assert not (ops and refusal)
        if self.name == "native":  # the other wires ignore some frames
            assert ops or refusal
        if refusal is not None:
            assert refusal.code in CATALOGUE
            self.refuse(ref, refusal)
        for op in ops:
            assert op.ref == ref
        if ops:
            self.refuse(ref, Refusal("forbidden"))
        assert not getattr(self.wire, "_requests", None)


@pytest.mark.parametrize(
    ("wire", "strategy"),
    [pytest.param(wire, sent, id=f"{wire}-{name}") for wire, name, sent in STRATEGIES],
)
# How long a busy machine takes to draw a frame says nothing about a wire.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_frame_is_operations_or_a_refusal(
    wire: str, strategy: st.SearchStrategy[Sent], data: st.DataObject
) -> None:
    frame, binary = data.draw(strategy)
    Session(wire).check(frame, binary=binary)


def deep_frames(wire: str, depth: int) -> list[Sent]:
    deep = b"[" * depth + b"]" * depth
    if wire == "native":
        return [
            (b'{"op":"publish","channel":"a","event":"e","payload":' + deep + b"}", False),
            (b"[" * depth, False),
        ]
    if wire == "socketio":
        body = b'{"channel":"a","event":"e","payload":' + deep + b"}"
        return [(b'2["realtime:publish",' + body + b"]", False), (b"2" + b"[" * depth, False)]
    found = []
    for event in (b"phx_join", b"broadcast", b"presence", b"access_token"):
        for payload in (deep, b'{"event":"track","payload":' + deep + b"}"):
            data = b'["1","1","realtime:a","' + event + b'",' + payload + b"]"
            if wire == "phoenix1":
                head = b'{"join_ref":"1","ref":"1","topic":"realtime:a","event":"' + event
                data = head + b'","payload":' + payload + b"}"
            found.append((data, False))
    return [*found, (pushed("j", "1", "realtime:a", "e", deep), True)]


@pytest.mark.parametrize("depth", [10, 1000, 100_000])
@pytest.mark.parametrize("wire", WIRES)
def test_depth_is_not_an_error(wire: str, depth: int) -> None:
    for data, binary in deep_frames(wire, depth):
        Session(wire).check(data, binary=binary)
