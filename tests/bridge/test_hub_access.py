"""Stale subscriptions, patterns and affected subscriptions in the fan-out, without a database."""

from __future__ import annotations

from bridge.test_hub import Scene, message
from rowcast.bridge.access import Verdict
from rowcast.bridge.model import Caller, Message
from rowcast.bridge.session import Session
from rowcast.bridge.subscription import Subscription


def stamped(payload: str, channel: str, row: str) -> Message:
    return Message(1, "id-" + payload, "message", channel, row, "e", payload, "user", "u", "t")


def subscription_of(session: Session, channel: str = "room") -> Subscription:
    return session.subscriptions[channel]


def test_a_stale_subscription_holds_messages_and_no_cursor_covers_them() -> None:
    scene = Scene()
    session, pipe = scene.client("room")
    other, its = scene.client("room")
    subscription = subscription_of(session)
    assert subscription.mark_stale()
    scene.drained(message("1"))
    assert not pipe.payloads()
    assert its.payloads() == [1]
    assert other.dirty
    assert not scene.hub.release(session, subscription)
    assert subscription.allow(0.0, subscription.stale_marks)
    assert scene.hub.release(session, subscription)
    assert pipe.payloads() == [1]


def test_an_answer_frees_what_was_read_before_its_question() -> None:
    """Otherwise signals that come faster than answers would hold messages back for ever."""
    scene = Scene()
    session, pipe = scene.client("room")
    subscription = subscription_of(session)
    assert subscription.mark_stale()
    scene.drained(message("1"))
    asked = scene.hub.next_generation
    scene.drained(message("2"))  # read together with the next signal
    assert scene.hub.release(session, subscription, asked)
    assert pipe.payloads() == [1]
    assert subscription.allow(0.0, subscription.stale_marks)
    assert scene.hub.release(session, subscription)
    assert pipe.payloads() == [2]


def test_a_subscription_that_ends_during_a_delivery_gets_nothing_after_it() -> None:
    scene = Scene()
    clients = [scene.client("room", "hall") for _ in range(600)]
    for messages in ([message("1")], [message("1"), message("2", "hall")]):
        delivery = scene.hub.deliver(messages)
        next(delivery)
        gone = [session for session, pipe in clients if not pipe.data]
        assert gone
        for session in gone:
            scene.hub.leave(session, "room")
        lengths = {session: len(pipe.data) for session, pipe in clients}
        for _ in delivery:
            pass
        for session, pipe in clients:
            if session in gone:
                assert len(pipe.data) == lengths[session]
        for session in gone:
            scene.join(session, "room").go_live()
        for _, pipe in clients:
            pipe.frames()


def test_a_pattern_hears_the_messages_of_its_row_only() -> None:
    scene = Scene()
    session, pipe = scene.client("order:*", "order:1")
    scene.hub.bind_pattern("order:*", "row")
    scene.drained(
        stamped("1", "order:1", "row"),
        stamped("2", "order:2", "another"),
        stamped("3", "order:3", "row"),
    )
    frames = {f["channel"]: [m["channel"] for m in f["messages"]] for f in pipe.frames()}
    assert frames == {"order:*": ["order:1", "order:3"], "order:1": ["order:1"]}
    scene.hub.leave(session, "order:*")
    scene.drained(stamped("4", "order:2", "row"))
    assert not pipe.frames()


def test_while_its_row_is_not_known_what_may_be_of_it_is_held() -> None:
    scene = Scene()
    session, pipe = scene.client()
    subscription = scene.join(session, "order:*")
    scene.drained(stamped("1", "order:1", "row"), stamped("2", "order:2", "another"))
    scene.drained(stamped("3", "hall:1", "hall"))
    subscription.go_live()
    scene.hub.bind_pattern("order:*", "row")
    assert scene.hub.release(session, subscription)
    assert pipe.payloads() == [1]


def test_a_row_that_is_made_anew_goes_on_where_the_old_one_ended() -> None:
    scene = Scene()
    session, pipe = scene.client("order:*")
    scene.hub.bind_pattern("order:*", "old")
    subscription = subscription_of(session, "order:*")
    scene.hub.unbind_pattern("order:*")
    assert subscription.mark_stale()
    scene.drained(
        stamped("1", "order:1", "old"),
        stamped("2", "order:1", "new"),
        stamped("3", "order:1", "another"),
    )
    assert subscription.allow(0.0, subscription.stale_marks)
    scene.hub.bind_pattern("order:*", "new")
    scene.hub.release(session, subscription)
    scene.drained(stamped("4", "order:1", "new"))
    assert pipe.payloads() == [1, 2, 4]


def test_affected_subscriptions_are_found_by_user_name_and_pattern() -> None:
    scene = Scene()
    sessions = {}
    for user, channels in {"a": ["r:1", "r:2"], "b": ["r:1", "r:*"], "c": ["h:1"]}.items():
        session, _ = scene.client(*channels)
        scene.hub.identify(session, Caller("authenticated", user, "{}", 0.0))
        sessions[session] = user

    def affected(user: str | None, channel: str | None) -> set[str]:
        return {f"{sessions[s]} {x.channel}" for s, x in scene.hub.affected_by(user, channel)}

    assert affected("a", None) == {"a r:1", "a r:2"}
    assert affected("a", "r:2") == {"a r:2"}
    assert affected("b", "r:1") == {"b r:1", "b r:*"}
    assert affected(None, "r:1") == {"a r:1", "b r:1"}
    assert affected(None, "r:*") == {"a r:1", "a r:2", "b r:1", "b r:*"}
    assert len(affected(None, None)) == 5
    assert affected("nobody", None) == set()
    for session in list(sessions):
        scene.hub.remove(session)
    assert affected("a", None) == set()
    assert not scene.hub.sessions_of("a")


def test_a_verdict_is_as_true_as_its_answer() -> None:
    """Code that asks `if not verdict` must never let through what was refused."""
    assert Verdict(True)
    assert not Verdict(False, "row", "disabled")
