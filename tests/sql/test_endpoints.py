"""Endpoints follow the webhook URLs of their channel, and their secrets stay secret."""

from __future__ import annotations

import base64
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from support.deliveries import ADMIN, alter_settings, claim, deliveries, endpoints
from support.messages import add_channel, only, publish, refused
from support.pg import as_role

Connection = psycopg.Connection[Any]

ONE = "https://one.example/hook"
TWO = "https://two.example/hook?a=b"


def set_urls(tx: Connection, channel: Any, *urls: str | None) -> None:
    tx.execute(
        "update public.realtime_channels set webhook_urls = %s where id = %s",
        [list(urls), channel],
    )


def test_each_url_is_an_endpoint_with_a_secret(tx: Connection) -> None:
    """Each URL of a channel is an endpoint with a secret of its own."""
    channel = add_channel(tx, "room:*", webhook_urls=[ONE, TWO, ONE])
    found = endpoints(tx, channel)
    assert {e.url for e in found} == {ONE, TWO}
    secrets = {e.secret for e in found}
    assert len(secrets) == 2
    for secret in secrets:
        assert secret.startswith("whsec_")
        assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32


def test_a_url_that_stays_keeps_its_endpoint_and_its_secret(tx: Connection) -> None:
    channel = add_channel(tx, "room:*", webhook_urls=[ONE])
    (before,) = endpoints(tx, channel)
    set_urls(tx, channel, TWO, ONE)
    after = {e.url: e for e in endpoints(tx, channel)}
    assert after[ONE] == before
    assert after[TWO].state == "active"


def test_a_removed_url_is_retired(tx: Connection) -> None:
    """A URL that is removed is retired, and one that returns begins anew."""
    channel = add_channel(tx, "room:*", webhook_urls=[ONE])
    set_urls(tx, channel)
    set_urls(tx, channel, ONE)
    old, new = sorted(endpoints(tx, channel), key=lambda e: e.state, reverse=True)
    assert (old.state, old.reason, new.state) == ("retired", "removed", "active")
    assert old.secret != new.secret


@pytest.mark.parametrize("how", ["null", "deleted"])
def test_what_waits_for_a_removed_url_is_cancelled(tx: Connection, how: str) -> None:
    channel = add_channel(tx, "room:*", webhook_urls=[ONE])
    publish(tx, "room:1")
    if how == "null":
        tx.execute("update public.realtime_channels set webhook_urls = null")
    else:
        tx.execute("delete from public.realtime_channels where id = %s", [channel])
    (row,) = deliveries(tx)
    assert (row.state, row.reason, row.next_at) == ("cancelled", "removed", None)
    assert claim(tx, uuid4()) == []


def test_a_channel_that_is_not_inserted_leaves_no_endpoint(tx: Connection) -> None:
    add_channel(tx, "room:*")
    tx.execute(
        "insert into public.realtime_channels (pattern, webhook_urls) values ('room:*', %s)"
        " on conflict do nothing",
        [[ONE]],
    )
    assert endpoints(tx) == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://example.com/", "does not begin with https:// or http://"),
        ("javascript:alert(1)", "does not begin"),
        ("//example.com/", "does not begin"),
        ("", "does not begin"),
        ("https://user:secret@example.com/", "carries a user name or password"),
        ("https://secret@example.com", "carries a user name or password"),
        ("https://example.com/a b", "percent-encoded"),
        ("https://example.com/\n", "percent-encoded"),
        ("https://example.com\\@evil.example/", "percent-encoded"),
        ("https://exämple.com/", "percent-encoded"),
        ("https://example.com/#part", "fragment"),
        ("https://", "has no valid host and port"),
        ("https:///path", "has no valid host and port"),
        ("https://example.com:port/", "has no valid host and port"),
        ("https://[::1/", "has no valid host and port"),
        ("https://example.com/" + "x" * 2048, "more than 2048 bytes"),
        (None, "is null"),
    ],
)
def test_a_url_of_the_wrong_form_is_refused_in_words(
    tx: Connection, url: str | None, words: str
) -> None:
    channel = add_channel(tx, "room:*", webhook_urls=[ONE])
    for statement in (
        lambda: add_channel(tx, "hall:*", webhook_urls=[ONE, url]),
        lambda: set_urls(tx, channel, url),
    ):
        with refused(tx, "RCW01", "channel", words):
            statement()
    assert [e.url for e in endpoints(tx)] == [ONE]


def test_a_refusal_does_not_repeat_a_password(tx: Connection) -> None:
    with pytest.raises(psycopg.Error) as refusal, tx.transaction():
        add_channel(tx, "room:*", webhook_urls=["https://me:hunter2@example.com/"])
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "HTTPS://EXAMPLE.com:8443/a?b=@c",
        "https://[2001:db8::1]:443/x",
        "http://127.0.0.1:9/",
    ],
)
def test_a_url_of_the_right_form_is_taken_wherever_it_leads(tx: Connection, url: str) -> None:
    channel = add_channel(tx, "room:*", webhook_urls=[url])
    assert [e.url for e in endpoints(tx, channel)] == [url]


def test_more_urls_than_the_limit_are_refused(tx: Connection) -> None:
    alter_settings(tx, webhook_limit=2)
    with refused(tx, "RCW02", '"room:*"', "3 webhook URLs", "limit is 2"):
        add_channel(tx, "room:*", webhook_urls=[ONE, TWO, "https://three.example/"])


@pytest.mark.parametrize(
    "role",
    [
        "anon",
        "authenticated",
        "rowcast_publisher",
        "rowcast_bridge",
        "rowcast_caller",
        "rowcast_admin",
    ],
)
@pytest.mark.parametrize("table", ["endpoint", "delivery", "attempt"])
def test_nobody_but_the_owner_reads_the_tables(tx: Connection, role: str, table: str) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    with refused(tx, "42501", table), as_role(tx, role):
        tx.execute("select * from rowcast." + table)  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["anon", "authenticated", "rowcast_caller", "rowcast_publisher"])
def test_callers_cannot_call_what_shows_a_secret(tx: Connection, role: str) -> None:
    add_channel(tx, "room:*", webhook_urls=[ONE])
    (endpoint,) = endpoints(tx)
    for call in (
        f"select rowcast.admin_rotate_secret('{ADMIN}', '{endpoint.id}')",
        f"select rowcast.rotate_secret('{endpoint.id}')",
        "select rowcast.claim_deliveries(gen_random_uuid(), 1, '1 s', '{}', '{}')",
        f"select rowcast.admin_endpoints('{ADMIN}', null)",
    ):
        with refused(tx, "42501", "permission denied"), as_role(tx, role):
            tx.execute(call)  # type: ignore[arg-type]


def test_both_secrets_sign_during_the_grace_time(tx: Connection) -> None:
    """A rotated secret signs beside the old one for the grace time."""
    add_channel(tx, "room:*", webhook_urls=[ONE])
    (before,) = endpoints(tx)
    publish(tx, "room:1")
    publish(tx, "room:1")
    new = only(tx, "select rowcast.rotate_secret(%s)", [before.id])
    assert new != before.secret
    (first,) = claim(tx, uuid4(), 1)
    assert first.secrets == [new, before.secret]
    tx.execute("update rowcast.endpoint set previous_until = clock_timestamp()")
    (second,) = claim(tx, uuid4(), 1)
    assert second.secrets == [new]


def test_rotating_what_is_not_there_is_refused(tx: Connection) -> None:
    channel = add_channel(tx, "room:*", webhook_urls=[ONE])
    (endpoint,) = endpoints(tx)
    set_urls(tx, channel)
    for unknown in (uuid4(), endpoint.id):
        with refused(tx, "RCW06", "no endpoint"):
            tx.execute("select rowcast.rotate_secret(%s)", [unknown])


def test_only_rotate_shows_secrets(tx: Connection) -> None:
    """Only the answer of rotate shows secrets; no other answer to an administrator does."""
    add_channel(tx, "room:*", webhook_urls=[ONE])
    (endpoint,) = endpoints(tx)
    publish(tx, "room:1")
    assert "whsec_" not in only(tx, "select rowcast.admin_endpoints(%s, null)", [ADMIN])
    assert "whsec_" not in only(
        tx, "select rowcast.admin_deliveries(%s, null, null, null, null)", [ADMIN]
    )
    shown = only(tx, "select rowcast.admin_rotate_secret(%s, %s)", [ADMIN, endpoint.id])
    assert shown.count("whsec_") == 1
