"""Pipelined requests of Supabase's and InsForge's clients.

No request is lost, executed twice or left behind, and each gets the answer that its client
expects.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from acceptance.test_pipelining import SLOW, audience, state
from support import engineio_client as engineio
from support import pg
from support import phoenix_client as phoenix
from support.bridge_process import Daemon, open_bridge, token
from support.engineio_client import SocketIO, polling
from support.phoenix_client import Phoenix, Pushed
from support.waiting import eventually

pytestmark = pytest.mark.acceptance

MAX_PENDING = 20


@pytest.fixture(scope="module")
def bridge(module_database: pg.Database) -> Iterator[Daemon]:
    with open_bridge(module_database, SLOW, query_timeout=2, max_pending=MAX_PENDING) as bridge:
        yield bridge


def wait_until_empty(database: pg.Database, room: str) -> None:
    """Wait until audience and members of the room are empty."""
    eventually(
        lambda: (state(database, room), audience(database, room)) == ([], 0),
        timeout=30,
        what="audience and members are empty",
    )


# Phoenix: (join_ref, ref, event, payload) each

Push = tuple[str | None, str, str, Any]


def join(join_ref: str, ref: str | None = None, presence: bool = False, **broadcast: Any) -> Push:
    broadcast = {"ack": True, "self": True, **broadcast}
    config = {"broadcast": broadcast, "presence": {"enabled": presence}}
    return join_ref, ref or join_ref, "phx_join", {"config": config}


def leave(join_ref: str | None, ref: str) -> Push:
    return join_ref, ref, "phx_leave", {}


def track(join_ref: str, ref: str, n: int) -> Push:
    return join_ref, ref, "presence", {"type": "presence", "event": "track", "payload": {"n": n}}


def say(join_ref: str, ref: str, payload: Any) -> Push:
    body = {"type": "broadcast", "event": "e", "payload": payload}
    return join_ref, ref, "broadcast", body


async def pushes(client: Phoenix, channel: str, *frames: Push) -> None:
    for join_ref, ref, event, payload in frames:
        text = json.dumps([join_ref, ref, f"realtime:{channel}", event, payload])
        await client.ws.send_str(text)


async def replies(client: Phoenix, *refs: str) -> list[tuple[str, str, str]]:
    """Return (join_ref, ref, status) of the replies to `refs`, in the order of arrival."""
    found: list[Pushed] = []
    while len(found) < len(refs):
        found.append(await client.until(lambda f: f.event == "phx_reply" and f.ref in refs))
    assert sorted(str(f.ref) for f in found) == sorted(refs), found
    return [(str(f.join_ref), str(f.ref), f.status) for f in found]


async def unasked(client: Phoenix) -> list[Pushed]:
    """Return the frames that are neither messages nor presence."""
    events = ("broadcast", "presence_state", "presence_diff")
    return [frame for frame in await client.quiet() if frame.event not in events]


async def test_leaving_and_joining_at_once_is_one_join(
    bridge: Daemon, module_database: pg.Database, room: str
) -> None:
    async with phoenix.connect(bridge.url) as client:
        for j in ("1", "2"):  # with a new join_ref, and once more with the same
            await pushes(client, room, join("1", f"{j}1"), leave("1", f"{j}2"), join(j, f"{j}3"))
            assert sorted(await replies(client, f"{j}1", f"{j}2", f"{j}3"))[1:] == [
                ("1", f"{j}2", "ok"),
                (j, f"{j}3", "ok"),
            ]
            await pushes(client, room, say(j, f"{j}4", j))
            assert await replies(client, f"{j}4") == [(j, f"{j}4", "ok")]
            assert (await client.message())["payload"] == j
            assert audience(module_database, room) == 1
            assert await unasked(client) == []
    wait_until_empty(module_database, room)


async def test_the_leave_of_a_replaced_join_spares_the_new_one(bridge: Daemon, room: str) -> None:
    """A page that re-renders removes the old channel after it has created the new one."""
    async with phoenix.connect(bridge.url) as client:
        await pushes(client, room, join("1"), leave("1", "2"), join("3"), leave("1", "4"))
        found = await replies(client, "1", "2", "3", "4")
        assert found[1:] == [("1", "2", "ok"), ("1", "4", "ok"), ("3", "3", "ok")] or found[1:] == [
            ("1", "2", "ok"), ("3", "3", "ok"), ("1", "4", "ok")
        ]  # fmt: skip
        await pushes(client, room, leave("1", "5"), say("3", "6", "heard"))
        await replies(client, "5", "6")
        assert (await client.message())["payload"] == "heard"
        untrack = {"type": "presence", "event": "untrack"}
        await pushes(client, room, track("3", "7", 1), ("1", "8", "presence", untrack))
        assert sorted(await replies(client, "7", "8")) == [("1", "8", "error"), ("3", "7", "ok")]
        await pushes(client, room, leave("3", "9"), say("3", "10", "not heard"))
        await replies(client, "9")
        assert await unasked(client) == []
        assert client.passed == []


@pytest.mark.parametrize("second", ["1", "2"])
async def test_the_newer_of_two_joins_of_a_topic_counts(
    bridge: Daemon, module_database: pg.Database, room: str, second: str
) -> None:
    async with phoenix.connect(bridge.url) as client:
        await pushes(client, room, join("1", "a"), join(second, "b"), track(second, "c", 1))
        found = await replies(client, "a", "b", "c")
        assert found == [("1", "a", "error"), (second, "b", "ok"), (second, "c", "ok")]
        await pushes(client, room, say(second, "d", "once"))
        await replies(client, "d")
        assert (await client.message())["payload"] == "once"
        # the same where a join is live already
        await pushes(client, room, join("3"), say("3", "e", "twice"), join("4"), say("4", "f", 3))
        assert {ref: status for _, ref, status in await replies(client, "3", "e", "4", "f")} == {
            "3": "error", "e": "ok", "4": "ok", "f": "ok",
        }  # fmt: skip
        # replies to the join that was never answered are its own
        heard = [f.payload["payload"] for f in await client.quiet() if f.event == "broadcast"]
        while 3 not in heard:
            heard.append((await client.message())["payload"])
        assert heard in (["twice", 3], [3])
        assert audience(module_database, room) == 1
    wait_until_empty(module_database, room)


async def test_a_broadcast_behind_a_join_has_the_options_of_the_join(
    bridge: Daemon, module_database: pg.Database, room: str
) -> None:
    """It is acknowledged and kept."""
    async with phoenix.connect(bridge.url) as client:
        heartbeat = json.dumps([None, "h", "phoenix", "heartbeat", {}])
        await pushes(client, room, join("1", presence=True, persist=True), say("1", "2", "kept"))
        await client.ws.send_str(heartbeat)
        await pushes(client, room, track("1", "3", 1))
        assert {s for *_, s in await replies(client, "1", "2", "3", "h")} == {"ok"}
        assert (await client.message())["payload"] == "kept"
        assert state(module_database, room) == [{"n": 1}]
        with module_database.connect() as connection:
            rows = connection.execute(
                "select type from realtime_messages where channel_name = %s", [room]
            ).fetchall()
        assert rows == [("message",)]


async def test_a_message_for_a_pending_topic_reaches_only_that_topic(
    bridge: Daemon, room: str
) -> None:
    """Even if topics share a join_ref."""
    async with phoenix.connect(bridge.url) as client:
        await client.ws.send_str(json.dumps(["1", "1", f"realtime:{room}a", *join("1")[2:]]))
        await replies(client, "1")
        await pushes(client, f"{room}b", join("1", "2"), say("1", "3", "for b"))
        await replies(client, "2", "3")
        heard = await client.until(lambda f: f.event == "broadcast")
        assert heard.topic == f"realtime:{room}b"


async def test_a_token_behind_a_join_is_accepted(bridge: Daemon, room: str) -> None:
    """One that is refused ends the session."""
    async with phoenix.connect(bridge.url) as client:
        new = {"access_token": token(extra=1)}
        await pushes(client, room, join("1"), ("1", "2", "access_token", new), say("1", "3", 1))
        assert {s for *_, s in await replies(client, "1", "3")} == {"ok"}
        assert (await client.message())["payload"] == 1
        assert await unasked(client) == []
        bad = {"access_token": token(exp=1)}
        await pushes(client, f"{room}b", join("5"), ("5", "6", "access_token", bad))
        with pytest.raises(phoenix.ClosedError):
            await client.until(lambda _: False)


async def test_a_leave_does_not_wait_for_the_policies(bridge: Daemon) -> None:
    async with phoenix.connect(bridge.url) as client:
        await pushes(client, "slow:1", join("1"), track("1", "2", 1), leave("1", "3"))
        async with asyncio.timeout(1.5):
            assert await replies(client, "1", "2", "3") == [
                ("1", "1", "error"), ("1", "2", "error"), ("1", "3", "ok"),
            ]  # fmt: skip
        assert await unasked(client) == []


async def test_a_join_over_the_rate_leaves_the_former_unchanged(bridge: Daemon, room: str) -> None:
    async with phoenix.connect(bridge.url) as client:
        await pushes(client, room, join("1"))
        await replies(client, "1")
        slow = [str(100 + n) for n in range(MAX_PENDING)]
        for ref in slow:
            await pushes(client, f"slow:{ref}", join(ref))
        await pushes(client, room, join("2"))
        assert await replies(client, "2") == [("2", "2", "error")]
        for ref in slow:
            await pushes(client, f"slow:{ref}", leave(ref, f"l{ref}"))
        # their policies are still being evaluated
        await replies(client, *slow[:1])
        async with asyncio.timeout(20):
            status = "error"
            while status == "error":
                await pushes(client, room, say("1", "3", "acknowledged"))
                [(_, _, status)] = await replies(client, "3")
        assert (await client.message())["payload"] == "acknowledged"


async def test_a_bad_frame_is_reported_only_to_its_topic(bridge: Daemon, room: str) -> None:
    """A `system` error would end a channel of realtime-py."""
    deep = "[" * 100_000 + "]" * 100_000
    async with phoenix.connect(bridge.url) as client:
        await client.join(room)
        topic = f"realtime:{room}"
        bad = {
            "deep": f'["j","deep","{topic}","broadcast",{{"event":"e","payload":{deep}}}]',
            "mute": f'["j","mute","{topic}","broadcast",{{"payload":1}}]',
            "list": f'["j","list","{topic}","broadcast",[1]]',
            "join": f'["j","join","{topic}","phx_join",{deep}]',
            "torn": f'["j","torn","{topic}","broadcast",{{"event":"e","payload":{{]}}]',
        }
        for text in bad.values():
            await client.ws.send_str(text)
        for text in ("nonsense", "[" * 100_000, '{"a":1}', "x" * 1_100_000):
            await client.ws.send_str(text)
        await client.ws.send_bytes(push("j", "bin", topic, deep.encode()))
        await client.ws.send_bytes(b"\x03\xff")
        found = await replies(client, *bad, "bin")
        assert [ref for _, ref, _ in found] == [*bad, "bin"]
        assert {(j, status) for j, _, status in found} == {("j", "error")}
        rest = await client.quiet()
        assert [(f.ref, f.topic, f.event, f.status) for f in rest] == [
            (None, "phoenix", "phx_reply", "error")
        ] * 5


def push(join_ref: str, ref: str, topic: str, payload: bytes) -> bytes:
    parts = [part.encode() for part in (join_ref, ref, topic, "e", "")]
    return b"\x03" + bytes(map(len, parts)) + b"\x01" + b"".join(parts) + payload


async def test_a_client_that_closes_midway_leaves_no_trace(
    bridge: Daemon, module_database: pg.Database, room: str
) -> None:
    for number in range(20):
        async with phoenix.connect(bridge.url) as client:
            await pushes(
                client, room, join("1"), track("1", "2", 1), leave("1", "3"), join("4"),
                track("4", "5", 2), join("6"), track("6", "7", 3),
            )  # fmt: skip
            if number % 2:
                await client.ws.close()
            else:
                raw = client.ws.get_extra_info("socket")
                raw.shutdown(2)
    wait_until_empty(module_database, room)


async def test_each_random_push_is_answered_once(
    bridge: Daemon, module_database: pg.Database, room: str
) -> None:
    choice = random.Random(11)
    for _ in range(30):
        current, joined, shown, said = "0", False, None, []
        async with phoenix.connect(bridge.url) as client:
            refs = [f"r{n}" for n in range(choice.randrange(2, 10))]
            frames: list[Push] = []
            for n, ref in enumerate(refs):
                match choice.choice(["join", "again", "leave", "track", "say"]):
                    case "join":
                        current, joined, shown = ref, True, shown if joined else None
                        frames.append(join(current, ref))
                    case "again":
                        joined, shown = True, shown if joined else None
                        frames.append(join(current, ref))
                    case "leave":
                        joined, shown = False, None
                        frames.append(leave(current, ref))
                    case "track":
                        shown = n if joined else None
                        frames.append(track(current, ref, n))
                    case _ if joined:
                        said.append(n)
                        frames.append(say(current, ref, n))
                    case _:
                        frames.append(track(current, ref, n))
            await pushes(client, room, *frames)
            await replies(client, *refs)
            # a track behind a replaced join is refused with it
            left = await unasked(client)
            assert left == [], (frames, left)
            await pushes(client, room, leave(None, "end"))
            await replies(client, "end")
        wait_until_empty(module_database, room)


# Socket.IO


async def idle(bridge: Daemon, room: str) -> None:
    """Wait until the slow policy queries have ended."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(TimeoutError, engineio.ClosedError):
                async with engineio.connect(bridge.url) as client:
                    await client.subscribe(room)
                    return


async def events(client: SocketIO, *asked: tuple[str, str, Any]) -> list[str]:
    """Send each (event, channel, further keys) with an ack id; return the ids."""
    numbers = [str(1000 + n) for n in range(len(asked))]
    for number, (event, channel, rest) in zip(numbers, asked, strict=True):
        body = {"channel": channel, **rest}
        await client.ws.send_str(f"42{number}" + json.dumps([f"realtime:{event}", body]))
    return numbers


async def acks(client: SocketIO, numbers: list[str]) -> list[str]:
    """Return how each was acknowledged: "ok" or its code."""
    found = {}
    for number in numbers:
        packet = await client.until(lambda p, n=number: p.startswith(f"43{n}["))
        body = json.loads(packet[packet.index("[") :])[0]
        found[number] = "ok" if body["ok"] else body["error"]["code"].removeprefix("REALTIME_")
    return list(found.values())


def said(n: Any) -> dict[str, Any]:
    return {"event": "e", "payload": {"n": n}}


async def still(client: SocketIO) -> list[str]:
    """Return all packets written before a further event was acknowledged."""
    await client.ask("realtime:unsubscribe", {"channel": "room:none"})
    passed, client.passed = client.passed, []
    return [packet for packet in passed if packet[0] == "4"]


async def test_subscribe_unsubscribe_and_subscribe_at_once(
    bridge: Daemon, module_database: pg.Database, room: str
) -> None:
    async with engineio.connect(bridge.url) as client:
        numbers = await events(
            client,
            ("subscribe", room, {}), ("subscribe", room, {}), ("unsubscribe", room, {}),
            ("subscribe", room, {}), ("publish", room, said(1)), ("unsubscribe", room, {}),
            ("publish", room, said(2)), ("subscribe", room, {}), ("publish", room, said(3)),
        )  # fmt: skip
        assert await acks(client, numbers) == [
            "NOT_SUBSCRIBED", "NOT_SUBSCRIBED", "ok", "NOT_SUBSCRIBED", "NOT_SUBSCRIBED", "ok",
            "NOT_SUBSCRIBED", "ok", "ok",
        ]  # fmt: skip
        assert (await client.heard())["n"] == 3
        assert await still(client) == []
        assert audience(module_database, room) == 1
    wait_until_empty(module_database, room)


async def test_publishes_behind_a_subscribe_follow_it_in_order(bridge: Daemon, room: str) -> None:
    async with engineio.connect(bridge.url) as client:
        for again in (0, 10):
            numbers = await events(
                client,
                ("subscribe", room, {}),
                *(("publish", room, said(again + n)) for n in range(9)),
            )
            assert await acks(client, numbers) == ["ok"] * 10
            assert [(await client.heard())["n"] for _ in range(9)] == [again + n for n in range(9)]
        numbers = await events(
            client, ("subscribe", "private:1", {}), ("publish", "private:1", said(1))
        )
        assert await acks(client, numbers) == ["UNAUTHORIZED", "UNAUTHORIZED"]
        assert await still(client) == []


async def test_an_unsubscribe_over_the_rate_is_refused(bridge: Daemon, room: str) -> None:
    """Otherwise its client would believe that it receives no more and hide what arrives."""
    async with engineio.connect(bridge.url) as client:
        await client.subscribe(room)
        for number in range(MAX_PENDING):
            await client.emit("realtime:subscribe", {"channel": f"slow:{number}"})
        numbers = await events(client, ("unsubscribe", room, {}))
        assert await acks(client, numbers) == ["RATE_LIMITED"]
        await client.emit("realtime:unsubscribe", {"channel": room})
        assert (await client.heard("realtime:error"))["code"] == "REALTIME_RATE_LIMITED"
    await idle(bridge, room)


async def test_packets_of_one_body_are_executed_in_order(bridge: Daemon, room: str) -> None:
    def packet(number: int, name: str, **rest: Any) -> str:
        return f"42{number}" + json.dumps([f"realtime:{name}", {"channel": room, **rest}])

    async with polling(bridge.url) as poller:
        body = [
            "40" + json.dumps({"token": token()}),
            packet(1, "subscribe"), packet(2, "publish", **said(1)), packet(3, "unsubscribe"),
            packet(4, "subscribe"), packet(5, "publish", **said(2)),
        ]  # fmt: skip
        assert await poller.post("\x1e".join(body)) == (200, "ok")
        got: list[str] = []
        async with asyncio.timeout(10):
            while not {"435[", '42["e'} <= {p[:4] if p[1] == "3" else p[:5] for p in got}:
                got += (await poller.get())[1].split("\x1e")
        assert got[0].startswith('40{"sid"')
        oks = {p[2]: '"ok":true' in p for p in got if p.startswith("43")}
        assert oks == {"1": False, "2": False, "3": True, "4": True, "5": True}
        assert sum(p.startswith('42["e",') for p in got) == 1


async def test_packets_after_a_disconnect_or_close_are_ignored(
    bridge: Daemon, module_database: pg.Database, room: str
) -> None:
    sub = "421" + json.dumps(["realtime:subscribe", {"channel": room}])
    publish = "42" + json.dumps(["realtime:publish", {"channel": room, **said(1)}])
    good, bad = ("40" + json.dumps({"token": t}) for t in (token(), token(exp=1)))
    async with engineio.connect(bridge.url) as neighbour:
        await neighbour.subscribe(room)
        for end in ("41", "1", bad):
            async with polling(bridge.url, **({} if end is bad else {"token": token()})) as poller:
                await poller.post("\x1e".join([end, good, sub, publish]))
                status, body = await poller.get()
                assert status == 400 or body == "1" or body.startswith("44"), body
                assert '"ok":true' not in body
            async with engineio.connect(bridge.url, login=end is not bad) as client:
                with contextlib.suppress(ConnectionError):
                    for text in (end, good, sub, publish):
                        await client.ws.send_str(text)
                await client.closed()
        assert not [p for p in await still(neighbour) if p.startswith('42["e"')]
    wait_until_empty(module_database, room)


async def test_a_polling_client_sent_away_cannot_publish(
    bridge: Daemon, module_database: pg.Database, room: str
) -> None:
    """Its session remains until its last poll, or for a second."""
    publish = "429" + json.dumps(["realtime:publish", {"channel": room, **said(1)}])
    async with (
        engineio.connect(bridge.url, token=token("bob")) as neighbour,
        engineio.connect(bridge.url, token=token("carol")) as other,
        polling(bridge.url, token=token("carol")) as poller,
    ):
        await neighbour.subscribe(room)
        await poller.post("421" + json.dumps(["realtime:subscribe", {"channel": room}]))
        assert (await poller.get())[1].startswith('431[{"ok":true')
        with module_database.connect() as connection:
            connection.execute("select rowcast.kick('carol')")
        await other.closed()  # so the polling client is revoked, too
        await poller.post(publish)
        await poller.get()
        await neighbour.publish(room, {"n": 2})
        assert (await neighbour.heard())["n"] == 2


async def test_an_immediate_upgrade_leaves_no_poll_waiting(bridge: Daemon, room: str) -> None:
    subscribe = json.dumps(["realtime:subscribe", {"channel": room}])
    for _ in range(20):
        async with polling(bridge.url, token=token()) as poller:
            waiting = asyncio.create_task(poller.get())
            async with engineio.connect(bridge.url, f"&sid={poller.sid}") as client:
                for text in ("2probe", "5", f"421{subscribe}"):
                    await client.ws.send_str(text)
                assert await client.read() == "3probe"
                assert (await client.read()).startswith('431[{"ok":true')
                async with asyncio.timeout(5):
                    assert await waiting == (200, "6")


async def test_only_one_websocket_takes_over(bridge: Daemon) -> None:
    """Another would stay open for ever, because it is not pinged."""
    async with polling(bridge.url, token=token()) as poller:
        query = f"&sid={poller.sid}"
        async with (
            engineio.connect(bridge.url, query) as first,
            engineio.connect(bridge.url, query) as second,
        ):
            await first.ws.send_str("2probe")
            assert await first.read() == "3probe"
            await second.ws.send_str("2probe")
            await second.closed()
            await first.ws.send_str("5")
            assert await first.ask("realtime:unsubscribe", {"channel": "room:x"}) == {
                "ok": True, "channel": "room:x",
            }  # fmt: skip


async def test_messages_during_an_upgrade_arrive_once_and_in_order(
    bridge: Daemon, room: str
) -> None:
    async with engineio.connect(bridge.url) as writer:
        await writer.subscribe(room)

        async def write() -> None:
            for n in range(100):
                await writer.publish(room, {"n": n})

        for _ in range(3):
            async with polling(bridge.url, token=token()) as poller:
                sub = json.dumps(["realtime:subscribe", {"channel": room}])
                await poller.post(f"421{sub}")
                assert (await poller.get())[1].startswith('431[{"ok":true')
                writing = asyncio.create_task(write())
                got: list[str] = []
                for _ in range(5):
                    got += (await poller.get())[1].split("\x1e")
                async with engineio.connect(bridge.url, f"&sid={poller.sid}") as client:
                    polled = asyncio.create_task(poller.get())
                    await client.ws.send_str("2probe")
                    assert await client.read() == "3probe"
                    got += (await polled)[1].split("\x1e")
                    await client.ws.send_str("5")
                    heard = [json.loads(p[2:])[1]["n"] for p in got if p.startswith('42["e",')]
                    async with asyncio.timeout(20):
                        while len(heard) < 100:
                            heard.append((await client.heard())["n"])
                    assert heard == list(range(100))
                    await writing
