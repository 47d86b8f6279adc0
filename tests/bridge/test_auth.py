"""Tokens: which are accepted, and a long table of tokens that are not."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from rowcast.bridge.auth import Verifier
from rowcast.bridge.facts import Facts
from rowcast.config import Settings
from rowcast.errors import AuthError

SECRET = "a secret of the tests, longer than 32 bytes"
ROLES = ("anon", "authenticated")
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
STRANGER = rsa.generate_private_key(65537, 2048)
KEYS: dict[str, tuple[str, Any]] = {"rsa": ("RS256", RSA), "ec": ("ES256", EC), "ed": ("EdDSA", ED)}


def claims(**rest: Any) -> dict[str, Any]:
    return {"role": "authenticated", "sub": "alice", "exp": int(time.time()) + 60, **rest}


def encoded(data: Any) -> bytes:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=")


def handmade(body: Any, header: Any = None, key: str = SECRET) -> str:
    """Return a token with a valid HS256 signature over any body."""
    signed = encoded({"alg": "HS256"} if header is None else header) + b"." + encoded(body)
    return (signed + b"." + encoded(hmac.digest(key.encode(), signed, "sha256"))).decode()


def published(key: Any, kid: str) -> dict[str, Any]:
    algorithm = jwt.algorithms.get_default_algorithms()[KEYS[kid][0]]
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "alg": KEYS[kid][0]}


class KeyServer:
    """A JWKS as an identity provider publishes it."""

    def __init__(self) -> None:
        self.url = ""
        self.asked = 0
        self.status = 200
        self.keys = [published(key, kid) for kid, (_, key) in KEYS.items()]
        self.arrived = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def answer(self, _request: web.Request) -> web.Response:
        self.asked += 1
        self.arrived.set()
        await self.gate.wait()
        return web.json_response({"keys": self.keys}, status=self.status)


@pytest.fixture
async def keys() -> AsyncIterator[KeyServer]:
    server = KeyServer()
    app = web.Application()
    app.router.add_get("/jwks", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    yield server
    await runner.cleanup()


def verifier(**rest: Any) -> Verifier:
    return Verifier(Settings(jwt_secret=SECRET, **rest), Facts())


async def refusal(verify: Verifier, token: str) -> AuthError:
    with pytest.raises(AuthError) as caught:
        await verify.verify(token, ROLES)
    return caught.value


async def test_a_good_token_becomes_its_caller() -> None:
    body = claims(team={"name": "ä"}, aud="whoever")
    caller = await verifier().verify(jwt.encode(body, SECRET, "HS256"), ROLES)
    assert (caller.role, caller.subject, caller.expires) == ("authenticated", "alice", body["exp"])
    assert json.loads(caller.claims) == body
    assert caller.cursor_subject == "authenticated:alice"


async def test_a_token_without_sub_is_anonymous() -> None:
    body = {"role": "anon", "exp": time.time() + 60}
    assert (await verifier().verify(jwt.encode(body, SECRET, "HS256"), ROLES)).subject is None


HUGE = 10**30
BAD_CLAIMS: dict[str, Any] = {
    "no exp": {"role": "authenticated"},
    "exp null": claims(exp=None),
    "exp text": claims(exp="4000000000"),
    "exp huge": claims(exp=HUGE),
    "exp negative": claims(exp=-1),
    "exp list": claims(exp=[4000000000]),
    "exp true": claims(exp=True),
    "exp past": claims(exp=time.time() - 100),
    "nbf future": claims(nbf=time.time() + 100),
    "iat future": claims(iat=time.time() + 100),
    "iat text": claims(iat="now"),
    "no role": {"exp": time.time() + 60},
    "role none": claims(role="none"),
    "role postgres": claims(role="postgres"),
    "role owner": claims(role="rowcast_owner"),
    "role empty": claims(role=""),
    "role case": claims(role="Authenticated"),
    "role injected": claims(role='authenticated"; reset role; --'),
    "role list": claims(role=["authenticated"]),
    "role object": claims(role={"authenticated": 1}),
    "role null": claims(role=None),
    "sub number": claims(sub=5),
    "sub object": claims(sub={"a": 1}),
    "sub NUL": claims(sub="a\0b"),
    "claim NUL": claims(name="a\0b"),
    "claim surrogate": claims(name="\ud800"),
    "a list": [1],
    "a number": 5,
    "null": None,
    "exp 1e400": b'{"role":"authenticated","exp":1e400}',
    "exp NaN": b'{"role":"authenticated","exp":NaN}',
    "nbf 1e400": b'{"role":"authenticated","exp":4000000000,"nbf":1e400}',
    "not JSON": b"{",
    "not UTF-8": b'{"sub":"\xff"}',
    "deep": b'{"a":' * 1200 + b"1" + b"}" * 1200,
}


@pytest.mark.parametrize("body", BAD_CLAIMS.values(), ids=BAD_CLAIMS.keys())
async def test_claims_that_cannot_be_trusted_are_refused_in_a_sentence(body: Any) -> None:
    error = await refusal(verifier(jwt_leeway=0), handmade(body))
    assert error.code in ("invalid_token", "token_expired")
    assert str(error).endswith(".")


BAD_TOKENS: dict[str, str] = {
    "empty": "",
    "one part": "abc",
    "dots": "...",
    "garbage": "💥.💥.💥",
    "unsigned": jwt.encode(claims(), None, "none"),
    "none spelled otherwise": handmade(claims(), {"alg": "nOnE"}),
    "other secret": jwt.encode(claims(), SECRET + "x", "HS256"),
    "no signature": jwt.encode(claims(), SECRET, "HS256").rsplit(".", 1)[0] + ".",
    "HS512": jwt.encode(claims(), SECRET, "HS512"),
    "crit": handmade(claims(), {"alg": "HS256", "crit": ["exp"], "exp": 1}),
    "alg a list": handmade(claims(), {"alg": ["HS256"]}),
    "no alg": handmade(claims(), {"typ": "JWT"}),
    "kid an object": handmade(claims(), {"alg": "RS256", "kid": {"a": 1}}),
    "header a list": handmade(claims(), []),
    "RS256 without keys": jwt.encode(claims(), RSA, "RS256"),
    "too long": jwt.encode(claims(x="x" * 9000), SECRET, "HS256"),
}


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
async def test_invalid_tokens_are_refused(token: str) -> None:
    assert (await refusal(verifier(), token)).code == "invalid_token"


@pytest.mark.parametrize("token", ["", "abc", "...", "💥.💥.💥", "a.b", "bm8.bm8.bm8", "[]"])
async def test_the_refusal_of_other_text_says_what_a_token_looks_like(token: str) -> None:
    assert "three base64url parts joined by dots" in str(await refusal(verifier(), token))


@pytest.mark.parametrize("token", ["other secret", "no signature"])
async def test_a_signature_that_does_not_fit_is_told_apart(token: str) -> None:
    assert "signature does not fit" in str(await refusal(verifier(), BAD_TOKENS[token]))


async def test_an_expired_token_is_told_apart_and_clocks_may_differ_a_little() -> None:
    token = jwt.encode(claims(exp=int(time.time()) - 10), SECRET, "HS256")
    assert (await refusal(verifier(jwt_leeway=0), token)).code == "token_expired"
    assert await verifier(jwt_leeway=30).verify(token, ROLES)


async def test_audience_and_issuer_are_checked_where_they_are_set() -> None:
    strict = verifier(jwt_audience="app", jwt_issuer="https://id.example")
    good = claims(aud=["other", "app"], iss="https://id.example")
    assert await strict.verify(jwt.encode(good, SECRET, "HS256"), ROLES)
    for wrong in ({**good, "aud": "other"}, {**good, "iss": "x"}, claims(), {**good, "aud": 5}):
        await refusal(strict, handmade(wrong))


@pytest.mark.parametrize("kid", KEYS)
async def test_published_keys_verify_their_own_algorithm(keys: KeyServer, kid: str) -> None:
    algorithm, key = KEYS[kid]
    both = verifier(jwks_url=keys.url)
    token = jwt.encode(claims(), key, algorithm, headers={"kid": kid})
    assert (await both.verify(token, ROLES)).subject == "alice"
    # The shared secret goes on working beside them, also with a kid.
    assert await both.verify(jwt.encode(claims(), SECRET, "HS256", headers={"kid": "x"}), ROLES)
    assert keys.asked == 1


async def test_a_public_key_is_never_the_secret_of_an_hmac(keys: KeyServer) -> None:
    pem = RSA.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    confused = handmade(claims(), {"alg": "HS256", "kid": "rsa"}, pem.decode())
    await refusal(verifier(jwks_url=keys.url), confused)
    await refusal(Verifier(Settings(jwks_url=keys.url), Facts()), confused)


async def test_a_key_of_another_algorithm_or_owner_is_refused(keys: KeyServer) -> None:
    asymmetric = Verifier(Settings(jwks_url=keys.url), Facts())
    for key, algorithm, kid in (
        (STRANGER, "RS256", "rsa"),
        (RSA, "RS256", "ec"),
        (EC, "ES256", "rsa"),
        (RSA, "RS512", "rsa"),
        (RSA, "PS256", "rsa"),
        (RSA, "RS256", "unknown"),
    ):
        token = jwt.encode(claims(), key, algorithm, headers={"kid": kid})
        assert (await refusal(asymmetric, token)).code == "invalid_token"
    without_kid = jwt.encode(claims(), STRANGER, "RS256", headers={"jku": "http://evil.example"})
    await refusal(asymmetric, without_kid)
    await refusal(asymmetric, jwt.encode(claims(), SECRET, "HS256"))


async def test_unknown_keys_do_not_make_us_ask_all_the_time(keys: KeyServer) -> None:
    asymmetric = Verifier(Settings(jwks_url=keys.url), Facts())
    for number in range(20):
        token = jwt.encode(claims(), RSA, "RS256", headers={"kid": f"unknown {number}"})
        await refusal(asymmetric, token)
    assert keys.asked == 1


async def test_tokens_that_come_while_keys_are_fetched_wait_for_them(keys: KeyServer) -> None:
    asymmetric = Verifier(Settings(jwks_url=keys.url), Facts())
    token = jwt.encode(claims(), RSA, "RS256", headers={"kid": "rsa"})
    keys.gate.clear()
    asking = [asyncio.create_task(asymmetric.verify(token, ROLES)) for _ in range(10)]
    await keys.arrived.wait()
    keys.gate.set()
    assert [caller.subject for caller in await asyncio.gather(*asking)] == ["alice"] * 10
    assert keys.asked == 1


async def test_without_keys_no_token_is_refused_for_good(keys: KeyServer) -> None:
    keys.status = 500
    asymmetric = Verifier(Settings(jwks_url=keys.url), Facts())
    token = jwt.encode(claims(), RSA, "RS256", headers={"kid": "rsa"})
    assert (await refusal(asymmetric, token)).code == "unavailable"


async def test_a_jwks_without_usable_keys_verifies_nothing(keys: KeyServer) -> None:
    keys.keys = [{"kty": "oct", "k": "eA", "kid": "rsa", "alg": "HS256"}, {"kty": "?"}]
    asymmetric = Verifier(Settings(jwks_url=keys.url), Facts())
    await refusal(asymmetric, handmade(claims(), {"alg": "HS256", "kid": "rsa"}, "x"))
    await refusal(asymmetric, jwt.encode(claims(), RSA, "RS256", headers={"kid": "rsa"}))
