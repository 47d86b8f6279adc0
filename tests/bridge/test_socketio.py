"""The Socket.IO wire without a socket: operations of packets, and packets of events."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.bridge.model import Message
from rowcast.bridge.socketio.codec import RESERVED, SocketIO
from rowcast.bridge.socketio.packets import split_frames, split_packets
from rowcast.bridge.wire.frames import text_frame
from rowcast.bridge.wire.protocol import (
    Auth,
    Authenticated,
    Change,
    Closed,
    Connect,
    Cursor,
    Deleted,
    Done,
    Member,
    Present,
    Publish,
    Published,
    Refused,
    Status,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Welcome,
)
from rowcast.errors import CATALOGUE, Refusal

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


class Client:
    """The client of a wire."""

    def __init__(self) -> None:
        self.wire = SocketIO()
        self.tell(Welcome("session", 25, 10, {}))

    def tell(self, event: Any) -> list[str]:
        """Packets that tell an event."""
        packets = [p.decode() for p in split_frames(self.wire.encode(event))]
        assert all(packet.startswith("4") for packet in packets)
        return [packet[1:] for packet in packets]

    def ask(self, packet: str) -> list[Any]:
        """The operations of a valid packet."""
        ops, _, refusal = self.wire.decode(packet.encode(), binary=False)
        assert refusal is None, refusal
        return list(ops)

    def emit(self, event: str, body: Any, ack: str = "") -> Any:
        """The one operation of an event."""
        [op] = self.ask(f"2{ack}{json.dumps([event, body])}")
        return op

    def refused(self, packet: str | bytes, *, binary: bool = False) -> tuple[str, list[str]]:
        """The code of a packet's refusal, and the packets that tell it."""
        data = packet if isinstance(packet, bytes) else packet.encode()
        ops, ref, refusal = self.wire.decode(data, binary=binary)
        assert not ops
        assert refusal is not None
        return refusal.code, self.tell(Refused.because(ref, refusal))

    def login(self, user: str | None = "alice") -> None:
        [op] = self.ask('0{"token":"t"}')
        assert self.tell(Authenticated(op.ref, user, "authenticated", 1)) == ['0{"sid":"session"}']

    def subscribed(self, channel: str = "a") -> None:
        op = self.emit("realtime:subscribe", {"channel": channel})
        self.tell(Subscribed(op.ref, channel))


def message(payload: str, event: str = "e", **rest: Any) -> Message:
    return Message(
        **{
            "seq": 1, "id": "00000000-0000-0000-0000-000000000001", "type": "message",
            "channel": "a", "channel_id": None, "event": event, "payload": payload,
            "sender_type": "user", "sender_id": "alice", "timestamp": "2026-01-01T00:00:00.000Z",
            **rest,
        }
    )  # fmt: skip


def heard(*messages: Message) -> list[tuple[str, Any]]:
    data = SocketIO().encode_messages("a", messages)
    packets = [p.decode() for p in split_frames(data)]
    assert all(packet.startswith("42") for packet in packets)
    return [tuple(json.loads(packet[2:])) for packet in packets]


META = {
    "channel": "realtime:a",
    "messageId": "00000000-0000-0000-0000-000000000001",
    "senderType": "user",
    "senderId": "alice",
    "timestamp": "2026-01-01T00:00:00.000Z",
}


# What clients ask


@pytest.mark.parametrize("packet", ['0{"token":"t"}', '0/,{"token":"t"}', '0{"apiKey":"t"}'])
def test_a_token_comes_in_any_of_three_ways(packet: str) -> None:
    [op] = Client().ask(packet)
    assert isinstance(op, Connect)
    assert op.token == "t"


@pytest.mark.parametrize("packet", ["0", "0{}", "0null", '0{"token":null}', "0/"])
def test_no_token_is_a_rejection(packet: str) -> None:
    code, told = Client().refused(packet)
    assert (code, told) == ("unauthorized", ['4{"message":"No authentication provided"}'])


def test_another_namespace_is_rejected_by_its_name() -> None:
    assert Client().refused("0/api,{}")[1] == ['4/api,{"message":"Invalid namespace"}']
    assert Client().refused("0/api")[1] == ['4/api,{"message":"Invalid namespace"}']


@pytest.mark.parametrize("code", ["unavailable", "internal", "rate_limited"])
def test_codes_that_do_not_concern_the_token_do_not_reject_a_client(code: str) -> None:
    """A rejected client gives up for good; it must connect again instead."""
    client = Client()
    [op] = client.ask('0{"token":"t"}')
    assert client.tell(Refused.because(op.ref, Refusal(code))) == []
    assert client.wire.adrift


def test_events_become_operations() -> None:
    client = Client()
    client.login()
    op = client.emit("realtime:subscribe", {"channel": "a"})
    assert isinstance(op, Subscribe)
    assert (op.channel, json.loads(bytes(op.state))["type"]) == ("a", "user")
    op = client.emit("realtime:publish", {"channel": "a", "event": "e", "payload": {"n": 1e300}})
    assert isinstance(op, Publish)
    assert (bytes(op.payload), op.type, op.subscribed) == (b'{"n": 1e+300}', "message", True)
    assert isinstance(client.emit("realtime:unsubscribe", {"channel": "a"}), Unsubscribe)
    assert isinstance(client.emit("realtime:auth", {"token": "t"}), Auth)


def test_subscribers_of_a_pattern_are_not_members() -> None:
    client = Client()
    assert client.emit("realtime:subscribe", {"channel": "a:*"}).state is None


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        ("", "invalid_frame"),
        ("7", "invalid_frame"),
        ("4", "invalid_frame"),
        ("2", "invalid_frame"),
        ("2{}", "invalid_frame"),
        ("2[]", "invalid_frame"),
        ("2[1]", "invalid_frame"),
        ('2["realtime:subscribe"]', "invalid_frame"),
        ('2["realtime:subscribe",null]', "invalid_frame"),
        ('2["realtime:subscribe",{"channel":""}]', "invalid_frame"),
        ('2["realtime:subscribe",{"channel":"a\\u0000"}]', "invalid_channel"),
        ('2["realtime:publish",{"channel":"a"}]', "invalid_frame"),
        ('2["realtime:publish",{"channel":"a","event":"e","id":"1"}]', "invalid_frame"),
        ('2["realtime:auth"]', "invalid_frame"),
        ('2["chat message",{}]', "unknown_op"),
        ('51-["realtime:publish",{}]', "invalid_message"),
        ("5[]", "invalid_frame"),
        ("21-[]", "invalid_frame"),
        ("2" + "[" * 100_000, "invalid_frame"),
        (b'2["\xff"]', "invalid_frame"),
        (b"0/\xff,{}", "invalid_frame"),
    ],
)
def test_a_wrong_packet_is_one_error(packet: str | bytes, code: str) -> None:
    got, [told] = Client().refused(packet)
    assert got == code
    assert told.startswith('2["realtime:error",{')


def test_the_bytes_of_a_refused_event_are_refused_with_it() -> None:
    client = Client()
    assert client.refused('52-["realtime:publish",{}]')[0] == "invalid_message"
    for _ in range(2):
        assert client.wire.decode(b"\x00", binary=True) == ((), None, None)
    assert client.refused(b"\x00", binary=True)[0] == "invalid_frame"


# Answers


def test_every_code_is_told_in_a_name_of_its_own() -> None:
    names = {}
    for code in CATALOGUE:
        client = Client()
        op = client.emit("realtime:publish", {"channel": "a", "event": "e"}, "7")
        [told] = client.tell(Refused.because(op.ref, Refusal(code)))
        assert told.startswith("37[")
        [answer] = json.loads(told[2:])
        assert (answer["ok"], answer["channel"]) == (False, "a")
        names[code] = answer["error"]["code"]
    assert names["forbidden"] == "REALTIME_UNAUTHORIZED"
    assert names["not_subscribed"] == "REALTIME_NOT_SUBSCRIBED"
    assert names["internal"] == "INTERNAL_ERROR"
    assert names["unavailable"] == "REALTIME_UNAVAILABLE"


def test_a_subscribe_that_the_database_could_not_answer_is_not_answered_with_no() -> None:
    client = Client()
    op = client.emit("realtime:subscribe", {"channel": "a"}, "7")
    [told] = client.tell(Refused.because(op.ref, Refusal("unavailable"), "a"))
    assert json.loads(told[1:])[1]["code"] == "REALTIME_UNAVAILABLE"
    assert client.wire.adrift


def test_each_subscribe_of_one_channel_is_answered_once() -> None:
    client = Client()
    client.login()
    op = client.emit("realtime:subscribe", {"channel": "a"}, "1")
    for number in (2, 3):
        assert client.ask(f'2{number}["realtime:subscribe",{{"channel":"a"}}]') == []
    told = client.tell(Subscribed(op.ref, "a"))
    assert [packet[:2] for packet in told] == ["31", "32", "33"]
    assert client.emit("realtime:subscribe", {"channel": "a"}, "4")


def test_a_subscribe_after_an_unsubscribe_is_a_new_one() -> None:
    client = Client()
    first = client.emit("realtime:subscribe", {"channel": "a"}, "1")
    op = client.emit("realtime:unsubscribe", {"channel": "a"})
    [told] = client.tell(Refused.because(first.ref, Refusal("not_subscribed"), "a"))
    assert told.startswith('31[{"ok":false')
    client.tell(Done(op.ref, "a"))
    second = client.emit("realtime:subscribe", {"channel": "a"}, "2")
    assert first.ref != second.ref
    [told] = client.tell(Subscribed(second.ref, "a"))
    assert told.startswith('32[{"ok":true')


def test_a_subscriber_is_in_its_own_list_once() -> None:
    client = Client()
    client.login(None)
    op = client.emit("realtime:subscribe", {"channel": "a"}, "1")
    [told] = client.tell(Subscribed(op.ref, "a"))
    [member] = json.loads(told[2:])[0]["presence"]["members"]
    assert (member["type"], member["presenceId"]) == ("anonymous", "session")
    op = client.emit("realtime:subscribe", {"channel": "a"}, "1")
    state = msgspec.Raw(json.dumps({"joinedAt": "then", "type": "anonymous"}).encode())
    [told] = client.tell(Subscribed(op.ref, "a", presence=[Member("session", state)]))
    [member] = json.loads(told[2:])[0]["presence"]["members"]
    assert member["joinedAt"] == "then"


def test_requests_without_an_ack_id_are_not_answered() -> None:
    client = Client()
    client.login()
    op = client.emit("realtime:publish", {"channel": "a", "event": "e"})
    assert client.tell(Published(op.ref, "id")) == []
    op = client.emit("realtime:unsubscribe", {"channel": "a"})
    assert client.tell(Refused.because(op.ref, Refusal("not_subscribed"))) == []
    op = client.emit("realtime:auth", {"token": "t"}, "9")
    assert client.tell(Authenticated(op.ref, "alice", "r", 1)) == ['39[{"ok":true}]']
    assert client.tell(Done(None, "a")) == []
    for event in (Cursor("c"), Deleted("a", "id"), Status("degraded"), Status("ok")):
        assert client.tell(event) == []


def test_a_goodbye_is_seen_and_needs_no_answer() -> None:
    client = Client()
    assert client.ask("1/other") == []
    assert not client.wire.left
    assert client.ask("1") == []
    assert client.wire.left


def test_the_end_of_a_subscription_is_told_and_an_unasked_one_brings_the_client_back() -> None:
    client = Client()
    for code in ("revoked", "disabled", "deleted"):
        [told] = client.tell(Closed("a", code))
        assert json.loads(told[1:])[1]["code"] == "REALTIME_UNAUTHORIZED"
        assert not client.wire.adrift
    [told] = client.tell(Closed("a", "unavailable"))
    assert json.loads(told[1:])[1]["code"] == "REALTIME_UNAVAILABLE"
    assert client.wire.adrift


def test_the_shutdown_is_announced() -> None:
    [told] = Client().tell(Status("draining", 0.3))
    name, body = json.loads(told[1:])
    assert (name, body["level"], body["title"]) == ("notification", "warning", "Server Shutdown")
    assert "channel" not in body["meta"]


# Messages and members


@pytest.mark.parametrize(
    ("payload", "spread"),
    [
        ("{}", {}),
        ('{"a": 1}', {"a": 1}),
        ('{"meta": {"senderId": "bob"}}', {}),
        ('{"a": {"meta": 1}, "meta": 2, "b": 3}', {"a": {"meta": 1}, "b": 3}),
        ('["x", {"meta": 1}]', {"0": "x", "1": {"meta": 1}}),
        ("[]", {}),
        ('"text"', {"payload": "text"}),
        ("1", {"payload": 1}),
        ("null", {"payload": None}),
    ],
)
def test_a_payload_is_spread_beside_meta(payload: str, spread: Any) -> None:
    assert heard(message(payload)) == [("e", {**spread, "meta": META})]


@given(JSON)
def test_any_payload_is_there_and_meta_is_ours_alone(payload: Any) -> None:
    [(_, body)] = heard(message(json.dumps(payload, ensure_ascii=False)))
    assert body.pop("meta") == META
    if isinstance(payload, dict):
        assert body == {key: value for key, value in payload.items() if key != "meta"}


def test_numbers_are_not_touched_and_depth_is_no_limit() -> None:
    data = SocketIO().encode_messages("a", [message('{"n": 1.10e400, "meta": 1, "m": 1.0}')])
    assert b'"n":1.10e400' in data
    assert b'"m":1.0' in data
    deep = '{"meta":' + "[" * 5000 + "]" * 5000 + "}"
    for payload in (deep, f"[{deep}]", deep.replace("meta", "a")):
        data = SocketIO().encode_messages("a", [message(payload)])
        assert data.rstrip().endswith(b"}}]")


def test_an_unknown_sender_is_absent() -> None:
    [(_, body)] = heard(message("{}", sender_type="system", sender_id=None))
    assert "senderId" not in body["meta"]
    assert body["meta"]["senderType"] == "system"


@pytest.mark.parametrize(
    "event", [*sorted(RESERVED), "realtime:error", "realtime:message", "presence:join", "presence:"]
)
def test_names_of_the_server_come_as_another_event(event: str) -> None:
    [(name, body)] = heard(message('{"code": "X"}', event))
    assert name == "realtime:message"
    assert body == {"code": "X", "meta": {**META, "event": event}}


def test_a_member_cannot_say_who_it_is() -> None:
    state = {"presenceId": "bob", "type": "root", "joinedAt": 5, "a": 1, "meta": {}}
    [told] = Client().tell(
        Present("a", [Change("join", "eve", msgspec.Raw(json.dumps(state).encode()))])
    )
    name, body = json.loads(told[1:])
    assert name == "presence:join"
    assert (body["member"]["presenceId"], body["member"]["type"]) == ("eve", "user")
    assert isinstance(body["member"]["joinedAt"], str)
    assert told.count('"presenceId"') == told.count('"joinedAt"') == 1
    assert body["member"]["a"] == 1
    assert body["meta"]["channel"] == "a"


def test_a_whole_list_also_says_who_is_gone() -> None:
    joins = [Change("join", "bob", msgspec.Raw(b"{}"))]
    told = Client().tell(Present("a", joins, full=True, gone=["eve"]))
    assert [json.loads(packet[1:])[0] for packet in told] == ["presence:leave", "presence:join"]


# Engine.IO


@given(st.lists(st.binary(max_size=70_000), max_size=5))
def test_what_is_in_frames_is_what_was_put_there(packets: list[bytes]) -> None:
    assert list(split_frames(b"".join(map(text_frame, packets)))) == packets


def test_a_body_is_cut_into_packets_but_not_into_too_many() -> None:
    assert split_packets(b"3\x1e42[]", 2) == [b"3", b"42[]"]
    for body in (b"", b"3\x1e", b"\x1e3", b"3\x1e3\x1e3"):
        with pytest.raises(ValueError, match="packet"):
            split_packets(body, 2)
