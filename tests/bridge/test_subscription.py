"""The state machine of a subscription: when its messages are held, and which are released."""

from __future__ import annotations

from rowcast.bridge.subscription import State, Subscription
from rowcast.bridge.wire.protocol import Resume, Subscribe, Untrack


def live(*, echo: bool = True) -> Subscription:
    subscription = Subscription("room", echo=echo)
    subscription.go_live()
    return subscription


def test_messages_are_held_until_it_is_live_and_again_when_it_is_subscribed_anew() -> None:
    subscription = Subscription("room")
    assert subscription.holding
    subscription.go_live()
    assert not subscription.holding
    subscription.begin(Subscribe(ref=1, channel="room"))
    assert subscription.holding
    subscription.go_live()
    subscription.end()
    assert subscription.holding
    assert subscription.state is State.ENDED


def test_a_stale_subscription_holds_until_the_answer_to_its_newest_mark() -> None:
    subscription = live()
    first = subscription.stale_marks
    assert subscription.mark_stale()
    asked = subscription.stale_marks
    assert subscription.mark_stale()
    assert not subscription.allow(1.0, asked)
    assert subscription.holding
    assert not subscription.not_ready
    assert subscription.allow(2.0, subscription.stale_marks)
    assert not subscription.holding
    assert (subscription.checked, subscription.stale_marks) == (2.0, first + 2)


def test_a_pending_subscription_only_counts_marks() -> None:
    subscription = Subscription("room")
    assert not subscription.mark_stale()
    subscription.go_live()
    assert not subscription.holding
    assert not subscription.allow(1.0, 0)


def test_own_publishes_hold_messages_only_without_echo() -> None:
    loud, quiet = live(), live(echo=False)
    for subscription in (loud, quiet):
        subscription.publish_begins()
        subscription.publish_begins()
        subscription.publish_ends()
    assert (loud.holding, quiet.holding) == (False, True)
    quiet.publish_ends()
    assert not quiet.holding


def test_held_messages_are_taken_once_and_only_up_to_a_generation() -> None:
    subscription = Subscription("room")
    for generation in range(4):
        assert subscription.hold(generation, [], b"12") == 2 * (generation + 1)
    subscription.drop_held(1)
    assert [generation for generation, *_ in subscription.take_held(3)] == [1, 2]
    assert subscription.held_bytes == 2
    assert [generation for generation, *_ in subscription.take_held()] == [3]
    assert (subscription.held, subscription.held_bytes) == ([], 0)


def test_a_request_and_what_is_queued_behind_it_are_answered_once() -> None:
    subscription = Subscription("room")
    request = Resume(ref=1, channel="room", handle="h")
    subscription.begin(request)
    assert subscription.resuming
    behind = Untrack(ref=2, channel="room")
    subscription.queue(behind)
    assert subscription.take_request() is request
    assert subscription.take_request() is None
    assert list(subscription.take_queued()) == [behind]
    assert not subscription.take_queued()


def test_it_is_counted_once() -> None:
    subscription = live()
    assert [subscription.count(), subscription.count()] == [True, False]
    assert [subscription.uncount(), subscription.uncount()] == [True, False]
