"""The fan-out without a socket or a database: which client gets what, and which cursor it gets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from rowcast.bridge.cursor import CursorKey, Position
from rowcast.bridge.facts import DatabaseFacts, Facts
from rowcast.bridge.hub import Hub
from rowcast.bridge.model import Caller, Message
from rowcast.bridge.session import Session
from rowcast.bridge.subscription import Subscription
from rowcast.bridge.wire.native import NATIVE, Native
from rowcast.bridge.wire.protocol import Event, Status
from rowcast.config import Settings
from rowcast.errors import CLOSE, Refusal
from rowcast.observe import metrics

KEY = CursorKey(b"k" * 64)


class Pipe:
    """Collects what a client would have been sent."""

    def __init__(self) -> None:
        self.data = b""
        self.closed: int | None = None
        self.stuck = 0

    def write(self, data: bytes) -> None:
        self.data += data

    def waiting(self) -> int:
        return self.stuck

    def close(self, code: int, reason: str) -> None:
        self.closed = code

    def frames(self) -> list[dict[str, Any]]:
        """Decode and forget what was written: unmasked text frames."""
        out, data = [], self.data
        self.data = b""
        while data:
            assert data[0] == 0x81
            size, at = data[1], 2
            if size == 126:
                size, at = int.from_bytes(data[2:4], "big"), 4
            elif size == 127:
                size, at = int.from_bytes(data[2:10], "big"), 10
            out.append(msgspec.json.decode(data[at : at + size]))
            data = data[at + size :]
        return out

    def payloads(self) -> list[Any]:
        return [
            message["payload"]
            for frame in self.frames()
            if frame["op"] == "messages"
            for message in frame["messages"]
        ]


def position(xmax: int) -> Position:
    return Position(f"{xmax}:{xmax}:", UUID(int=1), datetime.now(UTC))


def message(payload: str, channel: str = "room") -> Message:
    identity = "id-" + payload.strip('"')
    return Message(1, identity, "message", channel, None, "e", payload, "user", "u", "t")


class Scene:
    """A hub with clients."""

    def __init__(self) -> None:
        self.hub = Hub(Facts(DatabaseFacts(cursor_key=KEY)))
        self.hub.delivered_up_to(position(1))

    def client(
        self, *channels: str, wire: Native = NATIVE, **settings: Any
    ) -> tuple[Session, Pipe]:
        pipe = Pipe()
        session = Session(pipe, Settings(**settings), wire)
        session.caller = Caller("authenticated", "alice", "{}", 0.0)
        self.hub.add(session)
        for channel in channels:
            self.join(session, channel).go_live()
        return session, pipe

    def join(self, session: Session, channel: str, **options: Any) -> Subscription:
        subscription = Subscription(channel, **options)
        self.hub.join(session, subscription)
        return subscription

    def deliver(self, *messages: Message) -> None:
        for _ in self.hub.deliver(list(messages)):
            pass

    def drained(self, *messages: Message) -> None:
        self.deliver(*messages)
        assert self.hub.position is not None
        self.hub.delivered_up_to(position(self.hub.generation + 2))


class Loud(Native):
    """Another wire."""

    format = "loud"

    def encode_messages(
        self, channel: str, messages: Sequence[Message], flag: str | None = None
    ) -> bytes:
        return super().encode_messages(channel.upper(), messages, flag)


def encodings(wire: str) -> float:
    value = metrics.registry.get_sample_value("rowcast_encodings_total", {"wire": wire})
    return value or 0.0


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_message_goes_to_its_channel_only_and_in_order(scene: Scene) -> None:
    _, room = scene.client("room")
    _, both = scene.client("room", "hall")
    scene.drained(message("1"), message("2", "hall"), message("3"))
    assert room.payloads() == [1, 3]
    assert sorted(both.payloads()) == [1, 2, 3]


def test_a_message_is_encoded_once_for_each_wire_however_many_hear_it(scene: Scene) -> None:
    native = [scene.client("room")[1] for _ in range(20)]
    loud = [scene.client("room", wire=Loud())[1] for _ in range(20)]
    before = encodings("native"), encodings("loud")
    scene.drained(message("1"), message("2"))
    assert (encodings("native"), encodings("loud")) == (before[0] + 2, before[1] + 2)
    for pipe, channel in [(pipe, "room") for pipe in native] + [(pipe, "ROOM") for pipe in loud]:
        [frame] = pipe.frames()
        assert frame["channel"] == channel
        assert [m["payload"] for m in frame["messages"]] == [1, 2]


def test_a_wire_without_subscribers_is_not_encoded(scene: Scene) -> None:
    scene.client("room")
    scene.client("hall", wire=Loud())
    before = encodings("loud")
    scene.drained(message("1"))
    assert encodings("loud") == before


def test_a_broadcast_is_encoded_for_each_wire(scene: Scene) -> None:
    class Mute(Native):
        format = "mute"

        def encode(self, event: Event) -> bytes:
            return b""

    _, hears = scene.client()
    mute, silent = scene.client(wire=Mute())
    scene.hub.broadcast(Status("degraded"))
    assert hears.frames() == [{"op": "status", "status": "degraded"}]
    assert not silent.data
    assert not mute.closed


def test_while_pending_messages_are_held_and_then_come_in_order(scene: Scene) -> None:
    session, pipe = scene.client()
    subscription = scene.join(session, "room")
    scene.drained(message("1"))
    scene.drained(message("2"))
    assert not pipe.payloads()
    assert not scene.hub.release(session, subscription)
    subscription.go_live()
    assert scene.hub.release(session, subscription)
    assert pipe.payloads() == [1, 2]
    scene.drained(message("3"))
    assert pipe.payloads() == [3]


def test_a_replay_covers_what_was_held_before_it(scene: Scene) -> None:
    session, pipe = scene.client()
    subscription = scene.join(session, "room")
    scene.drained(message("1"))
    subscription.drop_held(scene.hub.generation)
    scene.drained(message("2"))
    subscription.go_live()
    scene.hub.release(session, subscription)
    assert pipe.payloads() == [2]


def test_joining_during_a_delivery_begins_after_it(scene: Scene) -> None:
    scene.client("room")
    late, _ = scene.client()
    scene.deliver(message("1"))
    before = scene.hub.generation
    subscription = scene.join(late, "room")
    assert subscription.joined == before + 1
    assert subscription.start is None
    scene.hub.delivered_up_to(position(9))
    assert scene.hub.generation == subscription.joined
    assert scene.join(late, "hall").joined == scene.hub.generation


def test_history_ends_where_a_subscription_begins_however_late_it_is_read(scene: Scene) -> None:
    late, _ = scene.client()
    scene.deliver(message("1"))
    subscription = scene.join(late, "room")
    scene.hub.delivered_up_to(position(9))
    begins = scene.hub.position
    scene.drained(message("2"))
    assert subscription.start is begins
    assert [generation for generation, *_ in subscription.held] == [subscription.joined]


def test_a_drain_that_is_cut_off_leaves_no_client_with_a_cursor_too_new(scene: Scene) -> None:
    session, pipe = scene.client("room")
    scene.deliver(message("1"))  # and then the connection is lost
    assert not scene.hub.cursor(session)
    assert pipe.payloads() == [1]
    scene.hub.delivered_up_to(position(9))
    assert scene.hub.cursor(session)
    [frame] = pipe.frames()
    read = KEY.read(frame["cursor"], "authenticated:alice")
    assert read is not None
    assert read.snapshot == "9:9:"


def test_no_cursor_covers_what_is_held_back(scene: Scene) -> None:
    session, _ = scene.client("room")
    quiet = scene.join(session, "hall", echo=False)
    quiet.go_live()
    quiet.publish_begins()
    scene.drained(message("1", "hall"))
    assert not scene.hub.cursor(session)
    quiet.publish_ends()
    scene.hub.release(session, quiet)
    assert scene.hub.cursor(session)


def test_own_messages_are_left_out_without_echo(scene: Scene) -> None:
    session, pipe = scene.client()
    subscription = scene.join(session, "room", echo=False)
    subscription.go_live()
    session.own_ids.append("id-2")
    scene.drained(message("1"), message("2"), message("3"))
    assert pipe.payloads() == [1, 3]
    scene.drained(message("2"))
    assert not pipe.frames()


def test_held_messages_are_not_released_after_leaving(scene: Scene) -> None:
    session, pipe = scene.client()
    subscription = scene.join(session, "room", echo=False)
    subscription.go_live()
    subscription.publish_begins()
    scene.drained(message("1"))
    scene.hub.leave(session, "room")
    subscription.publish_ends()
    assert not scene.hub.release(session, subscription)
    assert not pipe.frames()


def test_only_a_client_that_does_not_read_is_closed(scene: Scene) -> None:
    _, slow = scene.client("room", buffer_bytes=5000)
    _, brisk = scene.client("room", buffer_bytes=5000)
    slow.stuck = 5001
    scene.drained(message("1"))
    assert slow.closed == CLOSE["slow"][0]
    assert not slow.data
    assert brisk.payloads() == [1]


def test_what_is_held_for_a_client_is_bounded_too(scene: Scene) -> None:
    session, pipe = scene.client(buffer_bytes=5000)
    scene.join(session, "room")
    for number in range(100):
        scene.drained(message(str(number)))
    assert pipe.closed == CLOSE["slow"][0]


def test_removing_a_session_removes_it_from_every_channel(scene: Scene) -> None:
    session, pipe = scene.client("room", "hall")
    scene.hub.remove(session)
    scene.drained(message("1"), message("2", "hall"))
    scene.hub.deleted("room", "x")
    assert not pipe.frames()
    assert not scene.hub.leave(session, "room")


def test_a_portion_of_many_messages_is_cut_into_frames(scene: Scene) -> None:
    _, pipe = scene.client("room")
    scene.drained(*(message(f'"{n:01000}"') for n in range(1000)))
    frames = pipe.frames()
    assert len(frames) > 3
    assert [m["payload"] for f in frames for m in f["messages"]] == [
        f"{n:01000}" for n in range(1000)
    ]


def test_frames_beyond_the_rate_are_refused_with_a_time(scene: Scene) -> None:
    session, _ = scene.client(frame_rate=10, frame_burst=5)
    for _ in range(5):
        session.count_request()
    with pytest.raises(Refusal) as caught:
        session.count_request()
    assert caught.value.code == "rate_limited"
    assert 0 < (caught.value.retry_after or 0) <= 0.1


def test_bad_frames_alone_close_a_session_mixed_ones_do_not(scene: Scene) -> None:
    session, pipe = scene.client()
    for _ in range(1000):
        session.bad_frame()
        session.good_frame()
    assert pipe.closed is None
    for _ in range(101):
        session.bad_frame()
    assert pipe.closed == CLOSE["abuse"][0]
