"""The Phoenix wire without a socket: operations of frames, and frames of events."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.bridge.model import Message
from rowcast.bridge.phoenix.codec import Phoenix
from rowcast.bridge.wire.protocol import (
    Auth,
    Authenticated,
    Closed,
    Cursor,
    Deleted,
    Done,
    Ping,
    Publish,
    Published,
    Refresh,
    Refused,
    Resume,
    Status,
    Subscribe,
    Subscribed,
    Track,
    Unsubscribe,
)
from rowcast.errors import Refusal

FORMS = ["phoenix1", "phoenix2"]


class Client:
    """The client of a wire."""

    def __init__(self, form: str = "phoenix2") -> None:
        self.form = form
        self.wire = Phoenix(form, "key")

    def text(self, topic: str, event: str, payload: Any, ref: Any = "1", join: Any = "j") -> bytes:
        if self.form == "phoenix2":
            return json.dumps([join, ref, topic, event, payload]).encode()
        names = ("topic", "event", "payload", "ref", "join_ref")
        return json.dumps(
            dict(zip(names, (topic, event, payload, ref, join), strict=True))
        ).encode()

    def ask(self, *frame: Any, **rest: Any) -> list[Any]:
        """The operations of a valid frame."""
        ops, _, refusal = self.wire.decode(self.text(*frame, **rest), binary=False)
        assert refusal is None, refusal
        return list(ops)

    def refused(self, *frame: Any) -> Refusal:
        ops, ref, refusal = self.wire.decode(self.text(*frame), binary=False)
        assert not ops
        assert refusal is not None
        self.told(Refused.because(ref, refusal))
        return refusal

    def told(self, event: Any) -> list[Any]:
        """Frames that tell an event: (join_ref, ref, topic, event, payload) each."""
        return [self.read(*frame) for frame in frames(self.wire.encode(event))]

    def heard(self, *messages: Message, flag: str | None = None) -> list[Any]:
        data = self.wire.encode_messages(messages[0].channel, messages, flag)
        return [self.read(*frame) for frame in frames(data)]

    def read(self, kind: int, data: bytes) -> Any:
        if kind != 1:
            return kind, data
        frame = json.loads(data)
        if self.form == "phoenix2":
            assert len(frame) == 5
            return tuple(frame)
        assert frame.keys() == {"topic", "event", "payload", "ref", "join_ref"}
        return tuple(frame[k] for k in ("join_ref", "ref", "topic", "event", "payload"))

    def join(self, channel: str = "room", /, **broadcast: Any) -> Any:
        [subscribe] = self.ask(
            f"realtime:{channel}", "phx_join", {"config": {"broadcast": broadcast}}
        )
        self.told(Subscribed(subscribe.ref, channel, cursor="first"))
        return subscribe


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Opcode and payload of unmasked frames."""
    out = []
    while data:
        size, at = data[1], 2
        if size == 126:
            size, at = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, at = int.from_bytes(data[2:10], "big"), 10
        out.append((data[0] & 0x0F, data[at : at + size]))
        data = data[at + size :]
    return out


def message(payload: str = "{}", event: str = "e", at: str = "2026-01-01T00:00:00.000Z") -> Message:
    return Message(1, "id", "broadcast", "room", None, event, payload, "user", "alice", at)


def pushed(join_ref: str, ref: str, topic: str, event: str, payload: bytes, **rest: Any) -> bytes:
    """A binary frame of kind 3."""
    code = rest.get("code", "utf-8")
    meta = json.dumps(rest["meta"]) if "meta" in rest else ""
    parts = [part.encode(code) for part in (join_ref, ref, topic, event, meta)]
    sizes = bytes(len(part) for part in parts)
    return b"\x03" + sizes + bytes([rest.get("encoding", 1)]) + b"".join(parts) + payload


@pytest.fixture(params=FORMS)
def client(request: pytest.FixtureRequest) -> Client:
    return Client(request.param)


def test_a_heartbeat_is_answered_with_its_ref_also_without_one(client: Client) -> None:
    for ref in ("7", None, 7):
        [ping] = client.ask("phoenix", "heartbeat", {}, ref, None)
        assert isinstance(ping, Ping)
        payload = {"status": "ok", "response": {}}
        assert client.told(Done(ping.ref)) == [(None, ref, "phoenix", "phx_reply", payload)]


def test_a_join_is_a_subscribe_without_ones_own_messages(client: Client) -> None:
    [op] = client.ask("realtime:room:1", "phx_join", {})
    assert isinstance(op, Subscribe)
    assert (op.names(), op.own, op.after, op.history) == (["room:1"], False, None, 0)
    [reply] = client.told(Subscribed(op.ref, "room:1", "cursor"))
    assert reply == ("j", "1", "realtime:room:1", "phx_reply", {"status": "ok", "response": {}})


@pytest.mark.parametrize("config", [None, 5, [], {"broadcast": 1, "presence": None}, {"x": {}}])
def test_an_invalid_config_counts_as_absent(client: Client, config: Any) -> None:
    [op] = client.ask("realtime:room", "phx_join", {"config": config, "access_token": 5})
    assert op.own is False


def test_flags_may_come_as_text(client: Client) -> None:
    config = {"broadcast": {"self": "true"}, "presence": {"enabled": "TRUE"}}
    [op] = client.ask("realtime:room", "phx_join", {"config": config})
    assert op.own is True
    _, state = client.told(Subscribed(op.ref, "room"))
    assert state == ("j", None, "realtime:room", "presence_state", {})


def test_a_token_in_a_join_comes_before_it_and_only_when_it_is_new(client: Client) -> None:
    auth, subscribe = client.ask("realtime:room", "phx_join", {"access_token": "user"})
    assert isinstance(auth, Auth)
    assert auth.token == "user"
    assert client.told(Authenticated(auth.ref, "alice", "authenticated", 1)) == []
    assert client.told(Subscribed(subscribe.ref, "room"))
    assert len(client.ask("realtime:hall", "phx_join", {"access_token": "user"})) == 1
    assert len(client.ask("realtime:lobby", "phx_join", {"access_token": "sb_publishable"})) == 1
    assert client.ask("realtime:room", "access_token", {"access_token": "user"}) == []
    assert client.ask("realtime:room", "access_token", {"access_token": None}) == []
    [refresh] = client.ask("realtime:room", "access_token", {"access_token": "newer"})
    assert isinstance(refresh, Refresh)


def test_a_token_that_was_refused_is_tried_again_and_never_taken_for_known(client: Client) -> None:
    for _ in range(2):
        auth, _ = client.ask("realtime:room", "phx_join", {"access_token": "bad"})
        [reply] = client.told(Refused.because(auth.ref, Refusal("token_expired")))
        assert reply[3] == "phx_reply"
        assert reply[4]["status"] == "error"
        assert reply[4]["response"]["reason"].startswith("token_expired: ")


def test_postgres_changes_are_refused_with_what_to_do(client: Client) -> None:
    config = {"postgres_changes": [{"event": "*", "schema": "public"}]}
    refusal = client.refused("realtime:room", "phx_join", {"config": config})
    assert refusal.code == "unsupported"
    assert "rowcast.attach" in str(refusal)


def test_reasons_of_rate_limits_are_those_that_clients_know(client: Client) -> None:
    [op] = client.ask("realtime:room", "phx_join", {})
    [reply] = client.told(Refused.because(op.ref, Refusal("rate_limited")))
    assert reply[4]["response"]["reason"].startswith("ClientJoinRateLimitReached: ")


def test_a_publish_is_answered_only_when_it_was_asked_or_refused(client: Client) -> None:
    body = {"type": "broadcast", "event": "e", "payload": {"a": 1}}
    for ack, replies in ((False, 0), (True, 1)):
        client.join(ack=ack)
        [op] = client.ask("realtime:room", "broadcast", body, "9")
        assert isinstance(op, Publish)
        assert (op.channel, op.event, op.type) == ("room", "e", "broadcast")
        assert json.loads(bytes(op.payload)) == {"a": 1}
        assert len(client.told(Published(op.ref, "id"))) == replies
        [op] = client.ask("realtime:room", "broadcast", body, "10")
        [reply] = client.told(Refused.because(op.ref, Refusal("forbidden")))
        assert (reply[1], reply[4]["status"]) == ("10", "error")


def test_what_is_to_persist_is_a_message(client: Client) -> None:
    body = {"event": "e", "payload": {}}
    client.join()
    assert client.ask("realtime:room", "broadcast", body)[0].type == "broadcast"
    assert client.ask("realtime:room", "broadcast", {**body, "persist": True})[0].type == "message"
    client.join(persist=True)
    assert client.ask("realtime:room", "broadcast", body)[0].type == "message"


def test_a_binary_push_is_read_as_its_text_would_be() -> None:
    client = Client()
    client.join(ack=True)
    payload = '{ "a" : 1.10, "ü": 1e400 }'.encode()
    data = pushed("j", "3", "realtime:room", "ë", payload, meta={"persist": {"ttl": 5}})
    [op], _, refusal = client.wire.decode(data, binary=True)
    assert refusal is None
    assert isinstance(op, Publish)
    assert (op.channel, op.event, op.type) == ("room", "ë", "message")
    assert bytes(op.payload) == payload
    [reply] = client.told(Published(op.ref, "id"))
    assert reply[:3] == ("j", "3", "realtime:room")


def test_bytes_are_published_as_json_and_read_as_bytes_again() -> None:
    client = Client()
    data = bytes(range(256))
    frame = pushed("j", "3", "realtime:room", "e", data, encoding=0)
    [op], _, _ = client.wire.decode(frame, binary=True)
    assert isinstance(op, Publish)
    published = json.loads(bytes(op.payload))
    assert base64.b64decode(published["$binary"]) == data
    [(kind, frame)] = client.heard(message(json.dumps(published)))
    assert kind == 2
    topic, event, meta = frame[1], frame[2], frame[3]
    head = frame[5 : 5 + topic + event + meta]
    assert (frame[0], frame[4]) == (4, 0)
    assert head[: topic + event] == b"realtime:roome"
    assert json.loads(head[topic + event :])["id"] == "id"
    assert frame[5 + len(head) :] == data
    [older] = Client("phoenix1").heard(message(json.dumps(published)))
    assert older[4]["payload"] == published


@pytest.mark.parametrize(
    "payload", ['{"$binary": "?"}', '{"$binary": 5}', '{"$binary": "", "a": 1}']
)
def test_what_only_looks_like_bytes_stays_json(payload: str) -> None:
    [frame] = Client().heard(message(payload))
    assert frame[4]["payload"] == json.loads(payload)


def test_a_mangled_topic_is_found_by_the_join_of_its_channel() -> None:
    client = Client()
    client.join("комната")
    spoiled = "".join(chr(ord(c) & 0xFF) for c in "realtime:комната")
    data = pushed("j", "3", spoiled, "ë", b"{}", code="latin-1")
    [op], _, _ = client.wire.decode(data, binary=True)
    assert isinstance(op, Publish)
    assert (op.channel, op.event) == ("комната", "ë")


def test_a_ref_shared_by_two_joins_does_not_identify_a_topic(client: Client) -> None:
    client.join("public")
    body = {"event": "e", "payload": {}}
    [op] = client.ask("realtime:private", "broadcast", body)
    assert op.channel == "private"


@pytest.mark.parametrize("depth", [0, 5000])
def test_an_unreadable_frame_is_refused_by_its_refs(client: Client, depth: int) -> None:
    payload = b'{"event":"e","payload":' + b"[" * depth + b"]" * depth + (b"}" if depth else b"")
    data = client.text("realtime:room", "broadcast", "?", "7", "j").replace(b'"?"', payload)
    ops, ref, refusal = client.wire.decode(data, binary=False)
    assert not ops
    assert refusal is not None
    [told] = client.told(Refused.because(ref, refusal))
    assert told[:4] == ("j", "7", "realtime:room", "phx_reply")
    for broken in (b"x", b"[" * 9999, b"[1,2,3,4", b'{"topic":{}'):
        _, ref, refusal = client.wire.decode(broken, binary=False)
        assert refusal is not None
        [told] = client.told(Refused.because(ref, refusal))
        assert told[:4] == (None, None, "phoenix", "phx_reply")


def test_a_join_that_was_not_tried_ends_neither_one_that_lives_nor_one_that_waits(
    client: Client,
) -> None:
    client.join("room", ack=True)
    [second] = client.ask("realtime:room", "phx_join", {}, "2", "2")
    unsubscribe, third = client.ask("realtime:room", "phx_join", {}, "3", "3")
    assert isinstance(unsubscribe, Unsubscribe)
    client.told(Refused.because(third.ref, Refusal("rate_limited")))
    [_, fourth] = client.ask("realtime:room", "phx_join", {}, "4", "4")
    client.told(Refused.because(second.ref, Refusal("not_subscribed"), "room"))
    assert client.told(Done(fourth.ref, "room")) == []
    [reply] = client.told(Subscribed(fourth.ref, "room"))
    assert (reply[0], reply[1], reply[4]["status"]) == ("4", "4", "ok")
    assert not client.wire._requests  # noqa: SLF001
    assert not client.wire._joining  # noqa: SLF001


def test_leaving_ends_the_join_and_twice_is_no_error(client: Client) -> None:
    client.join()
    [op] = client.ask("realtime:room", "phx_leave", {}, "5")
    assert isinstance(op, Unsubscribe)
    [reply] = client.told(Done(op.ref, "room"))
    assert (reply[1], reply[4]["status"]) == ("5", "ok")
    [op] = client.ask("realtime:room", "phx_leave", {}, "6")
    [reply] = client.told(Refused.because(op.ref, Refusal("not_subscribed")))
    assert (reply[1], reply[4]["status"]) == ("6", "ok")


def test_a_closed_channel_is_announced_and_closed(client: Client) -> None:
    client.join()
    system, close = client.told(Closed("room", "revoked"))
    assert system[3] == "system"
    assert system[4].keys() == {"extension", "status", "message", "channel"}
    assert system[4]["status"] == "error"
    assert close == ("j", "j", "realtime:room", "phx_close", {})
    client.join()
    assert client.told(Closed("room", "lagging"))[-1][3] == "phx_error"


def test_the_end_of_a_token_is_told_on_every_topic(client: Client) -> None:
    client.join("a")
    client.join("b")
    told = client.told(Refused.because(None, Refusal("token_expired")))
    assert [(frame[2], frame[3]) for frame in told] == [
        ("realtime:a", "system"),
        ("realtime:b", "system"),
    ]


def test_events_without_a_frame_are_left_out(client: Client) -> None:
    assert client.told(Status("degraded")) == []
    assert client.told(Deleted("room", "id")) == []
    assert client.told(Cursor("c")) == []


def test_only_objects_are_tracked(client: Client) -> None:
    client.join()
    [op] = client.ask("realtime:room", "presence", {"event": "track", "payload": {"a": 1}})
    assert isinstance(op, Track)
    for payload in (1, [], "x", None):
        frame = ("realtime:room", "presence", {"event": "track", "payload": payload})
        assert client.refused(*frame).code == "invalid_message"


def test_messages_carry_the_stamps_and_cannot_speak_as_the_server(
    client: Client,
) -> None:
    names = ["phx_reply", "phx_close", "system", "presence_state", 'x","event":"phx_close']
    for event in names:
        [frame] = client.heard(message('{"status": "error"}', event))
        assert frame[:4] == (None, None, "realtime:room", "broadcast")
        assert frame[4] == {
            "type": "broadcast",
            "event": event,
            "payload": {"status": "error"},
            "meta": {"id": "id", "timestamp": "2026-01-01T00:00:00.000Z", "senderId": "alice"},
        }
    [frame] = client.heard(message(), flag="replay")
    assert frame[4]["meta"]["replayed"] is True


def test_all_clients_of_a_version_share_the_bytes_of_a_message() -> None:
    one, other = Client(), Client()
    one.join("room", ack=True)
    assert one.wire.format == other.wire.format
    assert one.wire.encode_messages("room", [message()]) == other.wire.encode_messages(
        "room", [message()]
    )
    assert Client("phoenix1").wire.format != one.wire.format


def test_replay_is_history_since_a_time(client: Client) -> None:
    config = {"broadcast": {"replay": {"since": 1_767_225_600_500, "limit": 1000}}}
    [op] = client.ask("realtime:room", "phx_join", {"config": config})
    assert op.history == 25
    rows = [message('"old"'), message('"new"', at="2026-01-01T00:00:00.500Z")]
    assert [f[4]["payload"] for f in client.heard(*rows, flag="history")] == ["new"]
    for since in ("x", True, -1, 1e300, None):
        config = {"broadcast": {"replay": {"since": since}}}
        *_, op = client.ask("realtime:room", "phx_join", {"config": config})
        assert op.history in (0, 25)


def pings(data: bytes) -> list[bytes]:
    return [payload for kind, payload in frames(data) if kind == 9]


def test_a_cursor_is_kept_when_the_client_has_got_what_it_covers(client: Client) -> None:
    op = client.join("hall")
    assert not isinstance(op, Resume)
    [op] = client.ask("realtime:room", "phx_join", {"config": {"broadcast": {"resume": "handle"}}})
    assert isinstance(op, Resume)
    assert op.handle == "handle"
    [first] = pings(client.wire.encode(Subscribed(op.ref, "room", "first")))
    assert client.wire.confirmed(first) == [("handle", "room", "first")]
    [second] = pings(client.wire.encode(Cursor("second")))
    [third] = pings(client.wire.encode(Cursor("third")))
    assert not client.wire.confirmed(b"of another client")
    assert client.wire.confirmed(third) == [("handle", "room", "third")]
    assert not client.wire.confirmed(second)  # late, and worth nothing any more


def test_an_invalid_handle_is_ignored(client: Client) -> None:
    for handle in ("", 5, None, {}, "x" * 256):
        assert not isinstance(client.join(resume=handle), Resume)
    assert not pings(client.wire.encode(Cursor("c")))


def test_a_client_learns_how_it_was_resumed(client: Client) -> None:
    for answer, word in (
        ({}, "live"),
        ({"recovered": True, "ephemeral": True}, "resumed"),
        ({"recovered": False, "ephemeral": False, "reason": "too_far"}, "too_far"),
    ):
        [op] = client.ask(
            "realtime:room", "phx_join", {"config": {"broadcast": {"resume": "handle"}}}
        )
        _, system = client.told(Subscribed(op.ref, "room", **answer))
        assert system[4]["status"] == "ok"
        assert system[4]["message"].startswith(f"{word}: ")


def test_names_with_nul_or_too_many_bytes_are_refused_before_sql(client: Client) -> None:
    for name in ("a\0", "é" * 128):
        for event, payload in (
            ("phx_join", {}), ("phx_leave", {}), ("broadcast", {"event": "e"}),
            ("presence", {"event": "untrack"}),
        ):  # fmt: skip
            assert client.refused(f"realtime:{name}", event, payload).code == "invalid_channel"
    assert client.refused("realtime:room", "broadcast", {"event": ""}).code == "invalid_message"


@pytest.mark.parametrize("topic", ["", "room", "realtime", "realtime:", "phoenix", "Realtime:a"])
def test_other_topics_are_answered(client: Client, topic: str) -> None:
    assert client.refused(topic, "phx_join", {}).code == "invalid_channel"


@given(st.text(), st.text(max_size=50))
def test_frames_are_valid_whatever_they_quote(event: str, payload: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in event + payload):
        return
    for form in FORMS:
        text = msgspec.json.encode(payload).decode()
        [frame] = Client(form).heard(message(text, event))
        assert (frame[4]["event"], frame[4]["payload"]) == (event, payload)
