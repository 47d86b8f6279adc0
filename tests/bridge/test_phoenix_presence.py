"""Presence frames of Phoenix, read by the rules of its clients."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest

from bridge.test_phoenix import frames
from rowcast.bridge.phoenix.codec import presence_diff, presence_state
from rowcast.bridge.wire.protocol import Change, Member

FORM = "phoenix2"


def change(key: str, before: str | None, now: str | None) -> Change:
    kind = "leave" if now is None else "join" if before is None else "update"
    last = None if before is None else msgspec.Raw(before.encode())
    return Change(kind, key, msgspec.Raw((now or before or "{}").encode()), last)


def member(key: str, text: str) -> Member:
    return Member(key, msgspec.Raw(text.encode()))


def read(data: bytes) -> list[Any]:
    return [json.loads(frame) for _, frame in frames(data)]


class Presence:
    """The members that phoenix.js knows, with the rule of realtime-js 2.109 for joins and leaves in
    one frame: a leave is looked up before the joins are added."""

    def __init__(self) -> None:
        self.metas: dict[str, dict[str, Any]] = {}

    def take(self, data: bytes) -> None:
        for _, _, _, event, payload in read(data):
            assert event == "presence_diff"
            assert not (payload["joins"] and payload["leaves"])
            for key, left in payload["leaves"].items():
                for meta in left["metas"]:
                    self.metas[key].pop(meta["phx_ref"])
                if not self.metas[key]:
                    del self.metas[key]
            for key, joined in payload["joins"].items():
                for meta in joined["metas"]:
                    known = self.metas.setdefault(key, {})
                    assert meta["phx_ref"] not in known
                    known[meta["phx_ref"]] = meta

    def states(self) -> dict[str, Any]:
        found = {}
        for key, metas in self.metas.items():
            [meta] = metas.values()
            found[key] = {name: value for name, value in meta.items() if name != "phx_ref"}
        return found


def test_after_a_thousand_changes_a_client_knows_the_members() -> None:
    chance = random.Random(3)
    true: dict[str, str] = {}
    client = Presence()
    for _ in range(1000):
        changes: list[Change] = []
        for key in chance.sample(["a", "b", "__proto__", "metas", "ü", ""], 3):
            now = chance.choice([None, json.dumps({"n": chance.randrange(5)}), "{}"])
            if now != true.get(key):
                changes.append(change(key, true.get(key), now))
                true[key] = now  # type: ignore[assignment]
        true = {key: value for key, value in true.items() if value is not None}
        client.take(presence_diff(FORM, "room", changes))
        assert client.states() == {key: json.loads(value) for key, value in true.items()}


def test_the_list_and_the_changes_name_the_same_metas_on_every_bridge() -> None:
    [[join_ref, _, topic, event, listed]] = read(
        presence_state(FORM, "room", [member("a", '{"n": 1}')], "j")
    )
    assert (join_ref, topic, event) == ("j", "realtime:room", "presence_state")
    [[*_, changed]] = read(presence_diff(FORM, "room", [change("a", None, '{"n": 1}')]))
    assert changed == {"joins": listed, "leaves": {}}
    [[*_, other]] = read(presence_state(FORM, "room", [member("a", '{"n": 2}')], "j"))
    assert other["a"]["metas"][0]["phx_ref"] != listed["a"]["metas"][0]["phx_ref"]


@pytest.mark.parametrize("text", ['{"phx_ref": "mine"}', "{}", '{"a": {"phx_ref": 1}}'])
def test_a_member_cannot_choose_its_ref(text: str) -> None:
    [[*_, payload]] = read(presence_state(FORM, "room", [member("a", text)], None))
    [meta] = payload["a"]["metas"]
    assert len(meta["phx_ref"]) == 24


def test_without_changes_there_is_no_frame() -> None:
    assert presence_diff(FORM, "room", []) == b""
    assert read(presence_state(FORM, "room", [], "j"))[0][4] == {}
