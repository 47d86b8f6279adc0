"""The native wire, operation by operation, with a raw client and the real bridge."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Iterator
from typing import Any

import asyncpg
import psycopg
import pytest

from rowcast.errors import CATALOGUE
from support import pg
from support.bridge_process import Daemon, daemon, open_bridge, token
from support.messages import publish_json
from support.wire_client import ClosedError, Frame, Wire, connect

pytestmark = pytest.mark.acceptance

POLICIES = """
insert into realtime_channels (pattern, enabled) values ('disabled:*', false);
insert into realtime_channels (pattern) values
    ('private:*'), ('raises:*'), ('sleeps:*'), ('readonly:*'), ('silent:*');
create or replace function public.fails(p_pattern text) returns boolean language plpgsql as $$
begin
    raise exception 'the secret of %', p_pattern;
end $$;
grant execute on function public.fails(text) to authenticated;
create policy private_not on public.realtime_channels as restrictive for select to authenticated
    using (pattern <> 'private:*');
create policy private_no_publish on public.realtime_messages as restrictive for insert
    to authenticated with check (channel_name not like 'private:%'
        and channel_name not like 'readonly:%');
create policy raising on public.realtime_channels as restrictive for select to authenticated
    using (case when pattern = 'raises:*' then public.fails(pattern) else true end);
create policy raising_publish on public.realtime_messages as restrictive for insert
    to authenticated
    with check (channel_name not like 'raises:%' or public.fails(channel_name));
create policy sleeping on public.realtime_channels as restrictive for select to authenticated
    using (case when pattern = 'sleeps:*' then pg_sleep(60) is null else true end);
create policy sleeping_publish on public.realtime_messages as restrictive for insert
    to authenticated
    with check (case when channel_name like 'sleeps:%' then pg_sleep(60) is null else true end);
create policy silent on public.realtime_messages as restrictive for select to authenticated
    using (channel_name not like 'silent:%');
"""


@pytest.fixture(scope="module")
def bridge(module_database: pg.Database) -> Iterator[Daemon]:
    with open_bridge(
        module_database, POLICIES, query_timeout=2, max_channels=10, max_frame=2_000_000
    ) as bridge:
        yield bridge


async def settle(bridge: Daemon, module_db: psycopg.Connection[Any]) -> None:
    """Return when the bridge has read every committed message, so that none comes live."""
    async with connect(bridge.url, token("settler")) as wire:
        channel = f"room:{uuid.uuid4().hex}"
        await wire.subscribe(channel)
        publish_json(module_db, channel, "settled")
        await wire.messages(1)


def payloads(frames: list[Frame], flag: str | None = None) -> list[Any]:
    """Return the payloads of `messages` frames with this flag, or of live ones."""
    return [
        message["payload"]
        for frame in frames
        if frame["op"] == "messages"
        and (frame.get(flag) if flag else not (frame.get("history") or frame.get("replay")))
        for message in frame["messages"]
    ]


async def test_a_welcome_names_the_user_and_the_limits(bridge: Daemon) -> None:
    async with connect(bridge.url) as wire:
        assert wire.welcome["session"]
        assert wire.welcome["heartbeat"] == 25
        assert wire.welcome["replayOverlap"] == 10
        limits = wire.welcome["limits"]
        assert limits["channels"] == 10
        assert limits["payload"] == 262144
        assert limits["frame"] == 2_000_000


async def test_a_token_may_come_in_the_url_or_as_an_op(bridge: Daemon) -> None:
    async with connect(bridge.url, "") as wire:
        for op in ("subscribe", "publish", "track"):
            answer = await wire.ask(op=op, channel="room:1", event="e")
            assert answer["code"] == "unauthorized", op
        answer = await wire.ask(op="auth", token=token("alice", exp=4_000_000_000))
        assert answer["op"] == "ok"
        assert answer["user"] == "alice"
        assert answer["role"] == "authenticated"
        assert answer["expires"] == 4_000_000_000
        await wire.subscribe("room:1")


@pytest.mark.parametrize("bad", ["x", "a.b.c", token(exp=1), token(role="postgres")])
async def test_a_refused_token_in_the_url_closes_for_good(bridge: Daemon, bad: str) -> None:
    async with connect(bridge.url, bad) as wire:
        refused = await wire.until(lambda f: f["op"] == "error")
        assert refused["ref"] is None
        assert refused["code"] in ("invalid_token", "token_expired")
        assert await wire.closed() in (3500, 3501)


async def test_a_message_arrives_as_it_was_published(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url) as wire:
        await wire.subscribe(room)
        payload = {"text": "hé 💥", "n": 12345678901234567890, "deep": [[[{}]]], "none": None}
        sent = await wire.publish(room, payload, "message.new")
        [message] = await wire.messages(1)
        assert message.pop("timestamp").endswith("Z")
        assert message == {
            "id": sent,
            "type": "message",
            "event": "message.new",
            "channel": room,
            "payload": payload,
            "senderId": "alice",
        }


async def test_a_number_keeps_its_digits(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url) as wire:
        await wire.subscribe(room)
        await wire.ws.send_str(
            '{"op":"publish","ref":"x","channel":"ROOM","event":"e","payload":'
            '{"a":1.10,"b":123456789012345678901234567890}}'.replace("ROOM", room)
        )
        while True:
            text = await wire.ws.receive_str()
            if '"messages"' in text:
                break
        assert '"a": 1.10' in text
        assert "123456789012345678901234567890" in text


async def test_a_sender_without_echo_hears_all_others(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url) as wire, connect(bridge.url, token("bob")) as bob:
        await wire.subscribe(room, self=False)
        await bob.subscribe(room)
        for number in range(20):
            await asyncio.gather(
                wire.publish(room, f"own {number}"), bob.publish(room, f"other {number}")
            )
        got = await wire.messages(20)
        assert [m["payload"] for m in got] == [f"other {n}" for n in range(20)]
        assert not payloads(await wire.quiet())
        assert len(await bob.messages(40)) == 40


async def test_unsubscribe_is_silent_and_twice_is_an_error(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url) as wire:
        await wire.subscribe(room)
        answer = await wire.ask(op="unsubscribe", channel=room)
        assert answer["op"] == "ok"
        assert answer["channel"] == room
        await wire.publish(room, 1)
        assert not payloads(await wire.quiet())
        assert (await wire.ask(op="unsubscribe", channel=room))["code"] == "not_subscribed"


async def test_an_unsubscribe_of_a_pending_subscribe_answers_both(
    bridge: Daemon, room: str
) -> None:
    async with connect(bridge.url) as wire:
        first = await wire.send(op="subscribe", channel=room)
        second = await wire.send(op="unsubscribe", channel=room)
        assert (await wire.until(lambda f: f.get("ref") == second))["op"] == "ok"
        answer = await wire.until(lambda f: f.get("ref") == first)
        assert answer["op"] == "ok" or answer["code"] == "not_subscribed"
        await wire.publish(room, 1)
        assert not payloads(await wire.quiet())


async def test_many_channels_get_one_answer_each(bridge: Daemon) -> None:
    async with connect(bridge.url) as wire:
        names = ["room:a", "private:b", "room:c", "room:a", "nope"]
        ref = await wire.send(op="subscribe", channels=names)
        answers = {}
        for _ in range(4):
            answer = await wire.until(lambda f: f.get("ref") == ref)
            answers[answer["channel"]] = answer.get("code", answer["op"])
        assert answers == {
            "room:a": "ok",
            "private:b": "forbidden",
            "room:c": "ok",
            "nope": "forbidden",
        }


async def test_denied_unknown_and_disabled_answer_alike(bridge: Daemon) -> None:
    async with connect(bridge.url) as wire:
        for rest in ({"op": "subscribe"}, {"op": "publish", "event": "e", "payload": 1}):
            answers = []
            for channel in ("private:1", "unknown:1", "disabled:1"):
                answer = await wire.ask(channel=channel, **rest)
                assert answer.pop("channel") == channel
                answer.pop("ref")
                answers.append(answer)
            assert answers[0]["code"] == "forbidden"
            assert answers[0] == answers[1] == answers[2]


async def test_history_and_live_meet_without_a_gap(
    bridge: Daemon, module_database: pg.Database, room: str
) -> None:
    """While messages are committed, those before and after the `ok` are complete, each once."""
    stop = asyncio.Event()
    count = 0

    async def write() -> None:
        nonlocal count
        connection = await asyncpg.connect(module_database.url)
        while not stop.is_set():
            await connection.execute("select rowcast.publish($1, 'e', $2)", room, str(count))
            count += 1
        await connection.close()

    writing = asyncio.create_task(write())
    try:
        for _ in range(10):
            async with connect(bridge.url) as wire:
                ref = await wire.send(op="subscribe", channel=room, history=1000)
                before: list[int] = []
                while True:
                    frame = await wire.read()
                    if frame.get("ref") == ref:
                        break
                    assert frame["history"] is True
                    before += [m["payload"] for m in frame["messages"]]
                after = [m["payload"] for m in (await wire.until(live))["messages"]]
                got = before[-200:] + after
                assert got == list(range(got[0], got[0] + len(got)))
                if count > 900:
                    break
    finally:
        stop.set()
        await writing


def live(frame: Frame) -> bool:
    return frame["op"] == "messages" and "history" not in frame and "replay" not in frame


async def test_history_is_the_newest_durable_messages_oldest_first(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    publish_json(module_db, room, *range(8))
    publish_json(module_db, room, "gone", kind="broadcast")
    await settle(bridge, module_db)
    async with connect(bridge.url) as wire:
        ref = await wire.send(op="subscribe", channel=room, history=5)
        await wire.until(lambda f: f.get("ref") == ref)
        assert payloads(wire.passed, "history") == [3, 4, 5, 6, 7]


async def test_history_is_governed_by_its_own_policy(
    bridge: Daemon, module_db: psycopg.Connection[Any]
) -> None:
    publish_json(module_db, "silent:1", "hidden")
    await settle(bridge, module_db)
    async with connect(bridge.url) as wire:
        cursor = (await wire.subscribe("silent:1", history=10))["cursor"]
        assert not payloads(wire.passed, "history")
        publish_json(module_db, "silent:1", "live")
        assert payloads([await wire.until(live)]) == ["live"]
    # a replay continues live delivery, so the right to subscribe governs it
    async with connect(bridge.url) as wire:
        await wire.subscribe("silent:1", after=cursor)
        assert payloads(wire.passed, "replay") == ["live"]


async def test_a_repeated_publish_gets_the_first_answer(bridge: Daemon, room: str) -> None:
    """A sender may repeat a publish that has an id."""
    key = str(uuid.uuid4())
    async with connect(bridge.url) as wire, connect(bridge.url, token("bob")) as bob:
        await wire.subscribe(room)
        first = await wire.publish(room, 1, id=key)
        assert await wire.publish(room, 2, id=key) == first
        assert await bob.publish(room, 3, id=key) != first  # ids are unique per sender
        assert sorted(m["payload"] for m in await wire.messages(2)) == [1, 3]
        assert not payloads(await wire.quiet())


async def test_resuming_replays_exactly_the_missed_messages(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    publish_json(module_db, room, "before")
    await settle(bridge, module_db)
    async with connect(bridge.url) as wire:
        cursor = (await wire.subscribe(room))["cursor"]
    publish_json(module_db, room, "missed 1", "missed 2")
    publish_json(module_db, room, "missed 3", kind="broadcast")
    await settle(bridge, module_db)
    async with connect(bridge.url) as wire:
        answer = await wire.subscribe(room, after=cursor, history=10)
        assert answer["recovered"] is True
        assert answer["ephemeral"] is True
        assert payloads(wire.passed, "replay") == ["missed 1", "missed 2", "missed 3"]
        assert not payloads(wire.passed, "history")
        publish_json(module_db, room, "live")
        assert payloads([await wire.until(live)]) == ["live"]
    async with connect(bridge.url) as wire:  # an old cursor stays valid
        await wire.subscribe(room, after=cursor)
        assert len(payloads(wire.passed, "replay")) == 4


async def test_a_transaction_open_at_the_cursor_is_replayed(
    bridge: Daemon, module_database: pg.Database, module_db: psycopg.Connection[Any], room: str
) -> None:
    with module_database.connect(autocommit=False) as slow:
        publish_json(slow, room, "older number, later commit")
        publish_json(module_db, room, "seen")
        await settle(bridge, module_db)
        async with connect(bridge.url) as wire:
            cursor = (await wire.subscribe(room))["cursor"]
        slow.commit()
    await settle(bridge, module_db)
    async with connect(bridge.url) as wire:
        await wire.subscribe(room, after=cursor)
        assert payloads(wire.passed, "replay") == ["older number, later commit"]


async def test_a_cursor_follows_messages_and_covers_them(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url) as wire:
        await wire.subscribe(room)
        await wire.publish(room, 1)
        await wire.messages(1)
        cursor = (await wire.until(lambda f: f["op"] == "cursor"))["cursor"]
    async with connect(bridge.url) as wire:
        answer = await wire.subscribe(room, after=cursor)
        assert answer["recovered"] is True
        assert not payloads(wire.passed, "replay")


def forged(cursor: str) -> list[str]:
    raw = bytearray(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    out = ["", "x", "💥", "a" * 60_000, cursor[:-1], cursor + "AAAA", cursor[:10]]
    for at in (0, 15, 16, 17, 33, len(raw) - 1):
        changed = bytearray(raw)
        changed[at] ^= 1
        out.append(base64.urlsafe_b64encode(changed).rstrip(b"=").decode())
    return out


async def test_a_forged_cursor_is_ignored_and_reported(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    async with connect(bridge.url) as wire:
        cursor = (await wire.subscribe(room))["cursor"]
    publish_json(module_db, room, "missed")
    await settle(bridge, module_db)
    async with connect(bridge.url) as wire:
        for bad in forged(cursor):
            answer = await wire.subscribe(room, after=bad)
            assert answer["recovered"] is False
            assert answer["reason"] == "invalid_cursor"
    for bearer in (token("bob"), token("alice", role="anon")):
        async with connect(
            bridge.url, bearer
        ) as wire:  # another user's cursor is treated like a forged one
            answer = await wire.subscribe(room, after=cursor)
            assert answer["recovered"] is False
            assert not payloads(wire.passed, "replay")


async def test_too_much_to_replay_is_reported(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    async with connect(bridge.url) as wire:
        cursor = (await wire.subscribe(room))["cursor"]
    module_db.execute(
        "insert into realtime_messages (channel_name, event_name) "
        "select %s, 'e' from generate_series(1, 10001)",
        [room],
    )
    await settle(bridge, module_db)
    async with connect(bridge.url) as wire:
        answer = await wire.subscribe(room, after=cursor)
        assert answer["recovered"] is False
        assert answer["reason"] == "too_far"
        assert not payloads(wire.passed, "replay")
        # another channel is not affected
        answer = await wire.subscribe(f"{room}-other", after=cursor)
        assert answer["recovered"] is True


async def test_an_old_cursor_expires_only_where_messages_are_gone(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    async with connect(bridge.url) as wire:
        cursor = (await wire.subscribe(room))["cursor"]
    module_db.execute(
        "insert into rowcast.expired (channel_name, xid) values (%s, pg_current_xact_id())", [room]
    )
    async with connect(bridge.url) as wire:
        answer = await wire.subscribe(room, after=cursor)
        assert (answer["recovered"], answer["reason"]) == (False, "expired")
        assert (await wire.subscribe(f"{room}-quiet", after=cursor))["recovered"] is True


async def test_lost_broadcasts_are_told_apart_from_lost_messages(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    async with connect(bridge.url) as wire:
        cursor = (await wire.subscribe(room))["cursor"]
    publish_json(module_db, room, "kept")
    await settle(bridge, module_db)
    module_db.execute(
        "insert into rowcast.expired_broadcast (channel_name, xid)"
        " values (%s, pg_current_xact_id())",
        [room],
    )
    async with connect(bridge.url) as wire:
        answer = await wire.subscribe(room, after=cursor)
        assert (answer["recovered"], answer["ephemeral"]) == (True, False)
        assert payloads(wire.passed, "replay") == ["kept"]


async def test_no_cursor_is_sent_while_a_channel_resumes(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    channels = [f"{room}-{n}" for n in range(8)]
    async with connect(bridge.url) as wire:
        for channel in channels:
            cursor = (await wire.subscribe(channel))["cursor"]
    for channel in channels:
        publish_json(module_db, channel, *range(50))
    await settle(bridge, module_db)
    async with connect(bridge.url) as wire:
        ref = await wire.send(op="subscribe", channels=channels, after=cursor)
        answers = [await wire.until(lambda f: f.get("ref") == ref) for _ in channels]
        assert all(answer["recovered"] for answer in answers)
        assert all("cursor" not in answer for answer in answers[:-1])
        newest = answers[-1]["cursor"]
        assert not [f for f in wire.passed if f["op"] == "cursor"]
    async with connect(bridge.url) as wire:
        for channel in channels:
            await wire.subscribe(channel, after=newest)
        assert not payloads(wire.passed, "replay")


async def test_a_raising_policy_denies_only_its_own_and_is_logged(
    bridge: Daemon, room: str
) -> None:
    async with connect(bridge.url) as wire:
        bad = await wire.send(op="subscribe", channel="raises:1")
        good = await wire.send(op="subscribe", channel=room)
        denied = await wire.until(lambda f: f.get("ref") == bad)
        assert denied["code"] == "forbidden"
        assert "secret" not in denied["message"]
        assert (await wire.until(lambda f: f.get("ref") == good))["op"] == "ok"
        denied = await wire.ask(op="publish", channel="raises:1", event="e", payload=1)
        assert denied["code"] == "forbidden"
        assert "secret" not in str(denied)
    assert bridge.log.count("policy_error") >= 2
    assert "the secret of raises" in bridge.log


async def test_only_a_sleeping_policy_is_unavailable(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url) as wire, connect(bridge.url, token("bob")) as bob:
        for op in ("subscribe", "publish"):
            slow = await wire.send(op=op, channel="sleeps:1", event="e", payload=1)
            for _ in range(5):
                answer = await bob.ask(op=op, channel=room, event="e", payload=1, within=20)
                assert answer["op"] == "ok", op
            answer = await wire.until(lambda f, ref=slow: f.get("ref") == ref, 20)
            assert answer["code"] == "unavailable"
            assert answer["retryAfter"] > 0


async def test_a_bad_publish_fails_alone_and_the_order_stays(bridge: Daemon, room: str) -> None:
    """All are sent at once, so that they share transactions."""
    async with connect(bridge.url) as wire, connect(bridge.url, token("bob")) as bob:
        await bob.subscribe(room)
        refs = []
        for number in range(100):
            match number % 10:
                case 3:
                    bad: Frame = {"channel": "readonly:1", "event": "e", "payload": number}
                case 5:
                    bad = {"channel": room, "event": "e", "payload": number, "type": "wrong"}
                case 7:
                    bad = {"channel": "bad channel", "event": "e", "payload": number}
                case 9:
                    bad = {"channel": room, "event": "e", "payload": "\0"}
                case _:
                    bad = {}
            frame = bad or {"channel": room, "event": "e", "payload": number}
            refs.append(await wire.send(op="publish", **frame))
        codes = {3: "forbidden", 5: "invalid_message", 7: "invalid_channel", 9: "invalid_message"}
        for number, ref in enumerate(refs):
            answer = await wire.until(lambda f, ref=ref: f.get("ref") == ref, 20)
            assert answer.get("code") == codes.get(number % 10), (number, answer)
        good = [n for n in range(100) if n % 10 not in codes]
        assert [m["payload"] for m in await bob.messages(len(good))] == good


async def test_pipelined_publishes_of_a_session_stay_in_order(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url) as one, connect(bridge.url, token("bob")) as two:
        await one.subscribe(room)

        async def flood(wire: Wire) -> None:
            refs = [
                await wire.send(op="publish", channel=room, event="e", payload=n) for n in range(90)
            ]
            for ref in refs:
                await wire.until(lambda f, ref=ref: f.get("ref") == ref)

        await asyncio.gather(flood(one), flood(two))
        got = await one.messages(180)
        for sender in ("alice", "bob"):
            assert [m["payload"] for m in got if m["senderId"] == sender] == list(range(90))


async def test_publishing_and_subscribing_need_separate_rights(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url) as wire:
        await wire.publish(room, 1)
        await wire.subscribe("readonly:1")
        assert (await wire.ask(op="publish", channel="readonly:1", event="e"))[
            "code"
        ] == "forbidden"


async def test_a_deleted_message_is_announced(
    bridge: Daemon, module_db: psycopg.Connection[Any], room: str
) -> None:
    async with connect(bridge.url) as wire:
        cursor = (await wire.subscribe(room))["cursor"]
        sent = await wire.publish(room, "regretted")
        await wire.messages(1)
        assert module_db.execute("select rowcast.delete_message(%s)", [sent]).fetchone() == (True,)
        deleted = await wire.until(lambda f: f["op"] == "deleted")
        assert (deleted["channel"], deleted["id"]) == (room, sent)
    async with connect(bridge.url) as wire:
        assert (await wire.subscribe(room, after=cursor))["recovered"] is True
        assert not payloads(wire.passed, "replay")


async def test_a_session_has_a_channel_limit(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url) as wire:
        for number in range(10):
            await wire.subscribe(f"{room}-{number}")
        refused = await wire.ask(op="subscribe", channel=f"{room}-10")
        assert refused["code"] == "too_many_channels"
        await wire.subscribe(f"{room}-3")  # subscribing again does not count twice
        await wire.ask(op="unsubscribe", channel=f"{room}-3")
        await wire.subscribe(f"{room}-10")


async def test_a_payload_over_the_limit_is_only_refused(bridge: Daemon, room: str) -> None:
    async with connect(bridge.url) as wire:
        for payload in ("x" * 262_200, "x" * 1_200_000):
            refused = await wire.ask(op="publish", channel=room, event="e", payload=payload)
            assert refused["code"] == "payload_too_large"
            assert "\n" not in refused["message"]
        await wire.ws.send_str(
            '{"op":"publish","ref":"bomb","channel":"ROOM","event":"e",'
            '"payload":[1e131000,1e131000,1e131000]}'.replace("ROOM", room)
        )
        refused = await wire.until(lambda f: f.get("ref") == "bomb")
        assert refused["code"] == "payload_too_large"
        await wire.publish(room, "x" * 262_000)


async def test_a_frame_over_the_rate_is_only_refused(
    module_database: pg.Database, bridge: Daemon
) -> None:
    with daemon(module_database, frame_rate=10, frame_burst=20) as limited:
        async with connect(limited.url) as wire:
            refs = [await wire.send(op="ping") for _ in range(40)]
            answers = [await wire.until(lambda f, r=r: f.get("ref") == r) for r in refs]
            refused = [a for a in answers if a["op"] == "error"]
            assert 15 <= len(refused) <= 20
            assert {a["code"] for a in refused} == {"rate_limited"}
            assert all(0 < a["retryAfter"] <= 0.2 for a in refused)


async def test_too_many_unanswered_requests_are_refused(
    module_database: pg.Database, bridge: Daemon
) -> None:
    with daemon(module_database, max_pending=5, query_timeout=2) as limited:
        async with connect(limited.url) as wire:
            refs = [await wire.send(op="publish", channel="sleeps:1", event="e") for _ in range(10)]
            answers = [await wire.until(lambda f, r=r: f.get("ref") == r, 20) for r in refs]
            codes = [answer["code"] for answer in answers]
            assert codes.count("rate_limited") == 5
            assert codes.count("unavailable") == 5


async def test_an_origin_that_is_not_allowed_gets_no_socket(
    module_database: pg.Database, bridge: Daemon
) -> None:
    with daemon(module_database, allowed_origins="https://app.example") as limited:
        async with connect(limited.url, origin="https://app.example") as wire:
            await wire.quiet()
        with pytest.raises(Exception, match="403"):
            async with connect(limited.url, origin="https://evil.example"):
                pass


async def test_an_unsupported_operation_says_so(bridge: Daemon) -> None:
    async with connect(bridge.url) as wire:
        answer = await wire.ask(op="frobnicate")
        assert answer["code"] == "unknown_op"
        assert "subscribe" in answer["message"]


async def test_every_error_is_in_the_catalogue_with_a_hint(bridge: Daemon) -> None:
    async with connect(bridge.url) as wire:
        for frame in (
            {"op": "subscribe"},
            {"op": "subscribe", "channel": ""},
            {"op": "subscribe", "channel": "room:1", "history": 10_000},
            {"op": "publish", "channel": "room:1"},
            {"op": "publish", "channel": "room:1", "event": "e", "id": "no uuid"},
            {"op": "auth", "token": 5},
            {"op": "auth"},
        ):
            answer = await wire.ask(**frame)
            assert answer["op"] == "error", frame
            assert answer["code"] in CATALOGUE
            assert answer["message"].endswith((".", "`"))
            assert ("retryAfter" in answer) == CATALOGUE[answer["code"]].retry


async def test_the_log_contains_no_token_and_no_payload(bridge: Daemon, room: str) -> None:
    bearer = token("a-very-recognisable-subject")
    async with connect(bridge.url, bearer) as wire:
        await wire.subscribe(room)
        await wire.publish(room, "a very recognisable payload")
        await wire.ask(op="auth", token=bearer + "x")
    with pytest.raises(ClosedError):
        async with connect(bridge.url, bearer + "x") as wire:
            await wire.until(lambda _: False)
    assert bearer[:60] not in bridge.log
    assert "recognisable" not in bridge.log


async def test_a_too_deeply_nested_payload_is_refused_by_its_ref(bridge: Daemon, room: str) -> None:
    deep = "[" * 5000 + "]" * 5000
    async with connect(bridge.url) as wire:
        for text in (
            f'{{"op":"publish","channel":"{room}","event":"e","payload":{deep},"ref":"deep"}}',
            f'{{"op":"publish","ref":"deep","channel":"{room}","event":"e","payload":{deep}}}',
        ):
            await wire.ws.send_str(text)
            answer = await wire.until(lambda f: f.get("ref") == "deep")
            assert answer["code"] == "invalid_message"
        await wire.subscribe(room)
