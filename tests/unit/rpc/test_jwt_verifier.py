"""Each way of forging a token fails, and succeeds in the negative control, where the defence is switched off."""

import asyncio
import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey
from joserfc.jws import JWSRegistry
from structlog.testing import capture_logs

from integration_server.domain.callers import Identity, IdentityKind
from integration_server.hot_reload import InvalidFile
from integration_server.rpc.errors import KeysNotAvailable, TokenExpired, Unauthenticated
from integration_server.rpc.jwt_verifier import Issuer, JwtVerifier, RemoteJwks, parse_jwks
from tests.fakes.clock import SettableClock
from tests.tokens import AUDIENCE, TokenIssuer

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LEEWAY = timedelta(seconds=30)


class FixedKeys:
    """Keys that never change."""

    def __init__(self, body: bytes) -> None:
        self.value = parse_jwks(body)

    async def get_keys(self, kid: str | None) -> KeySet:
        return self.value

    async def poll(self) -> None:
        """Do nothing."""


def verifier_for(
    *issuers: TokenIssuer,
    kind: IdentityKind = IdentityKind.TOKEN,
    algorithms: tuple[str, ...] = ("ES256", "RS256"),
    audience: str = AUDIENCE,
    leeway: timedelta = LEEWAY,
) -> JwtVerifier:
    get_keys = [Issuer(kind, issuer.issuer, audience, FixedKeys(issuer.jwks)) for issuer in issuers]
    return JwtVerifier(get_keys, algorithms, leeway, lambda: NOW)


@pytest.fixture
def issuer() -> TokenIssuer:
    return TokenIssuer("https://issuer.example")


async def is_accepted(verifier: JwtVerifier, token: str) -> bool:
    try:
        return (await verifier.resolve_identity(token)).name == "backend"
    except Unauthenticated:
        return False


async def test_a_valid_token_identifies_its_subject_until_it_expires(issuer: TokenIssuer) -> None:
    token = issuer.token("backend", NOW, lifetime=timedelta(minutes=5))
    expire_time = NOW + timedelta(minutes=5) + LEEWAY
    assert await verifier_for(issuer).resolve_identity(token) == Identity(IdentityKind.TOKEN, "backend", expire_time)


@pytest.mark.parametrize(
    ("claims", "negative_control"),
    [
        ({"aud": "another-service"}, {"audience": "another-service"}),
        ({"lifetime": timedelta(seconds=-31)}, {"leeway": timedelta(minutes=5)}),
        ({"nbf": int(NOW.timestamp()) + 31}, {"leeway": timedelta(minutes=5)}),
    ],
    ids=["audience", "expired", "not-yet"],
)
async def test_a_token_for_another_issuer_audience_or_time_is_rejected(
    issuer: TokenIssuer, claims: dict[str, Any], negative_control: dict[str, Any]
) -> None:
    token = issuer.token("backend", NOW, **claims)
    assert not await is_accepted(verifier_for(issuer), token)
    assert await is_accepted(verifier_for(issuer, **negative_control), token)


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://other.example"}, {"iss": None}, {"iss": ["https://issuer.example"]}, {"aud": None},
        {"aud": []}, {"aud": {"integrations": 1}}, {"exp": None}, {"exp": "never"}, {"exp": True}, {"exp": 10**30},
        {"sub": None}, {"sub": ""}, {"sub": 7}, {"sub": ["backend"]}, {"sub": "x" * 129}, {"sub": "back\0end"},
        {"sub": "ada\n"}, {"sub": "\x1b[8mada"}, {"sub": "ada\x7f"}, {"sub": "ada\x85"}, {"sub": "ada\ud800"},
        {"sub": "\ud83d\udc00\ude00"}, {"sub": "\udc00ada"},
    ],
    ids=repr,
)  # fmt: skip
async def test_a_token_with_a_missing_or_malformed_claim_is_rejected(
    issuer: TokenIssuer, claims: dict[str, Any]
) -> None:
    with pytest.raises(Unauthenticated):
        await verifier_for(issuer).resolve_identity(issuer.token("backend", NOW, **claims))


@pytest.mark.parametrize(
    "subject",
    ["ada\u200b", "a\u00adda", "\u202eada", "a\u200dda", "李\u3000雷", "ada\u00a0", "ada\ue000", "ada\U000e0061", "😀"],
)
async def test_a_subject_with_other_characters_is_accepted_unchanged(issuer: TokenIssuer, subject: str) -> None:
    identity = await verifier_for(issuer).resolve_identity(issuer.token(subject, NOW))
    assert identity.name == subject


async def test_an_audience_may_be_one_of_several(issuer: TokenIssuer) -> None:
    assert await is_accepted(verifier_for(issuer), issuer.token("backend", NOW, aud=["other", AUDIENCE]))


# --- signatures ------------------------------------------------------------------------------------------------------


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def claims_of(token: str) -> Any:
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


async def test_an_unsigned_token_is_rejected(issuer: TokenIssuer) -> None:
    claims = claims_of(issuer.token("backend", NOW))
    token = f"{encoded({'alg': 'none', 'kid': 'one'})}.{encoded(claims)}."
    assert not await is_accepted(verifier_for(issuer), token)
    with pytest.warns(match="none"):  # the negative control: the library alone, with the algorithm allowed
        assert jwt.decode(token, issuer.key, registry=JWSRegistry(algorithms=["none"])).claims == claims


async def test_a_token_signed_with_the_public_key_as_a_secret_is_rejected(issuer: TokenIssuer) -> None:
    """RFC 8725 §2.1."""
    rsa = RSAKey.generate_key(2048, {"kid": "one"})
    public = json.dumps(rsa.as_dict(private=False)).encode()  # as it is published; the library itself rejects its PEM
    claims = claims_of(issuer.token("backend", NOW))
    secret = base64.urlsafe_b64encode(public).rstrip(b"=").decode()
    key = OctKey.import_key({"kty": "oct", "k": secret, "kid": "one"})
    token = jwt.encode({"alg": "HS256", "kid": "one"}, claims, key)
    # The second defence, if HS256 were allowed by mistake: the type of the key.
    for algorithms in (("RS256",), ("RS256", "HS256")):
        keys = FixedKeys(json.dumps({"keys": [rsa.as_dict(private=False)]}).encode())
        verifier = JwtVerifier(
            [Issuer(IdentityKind.TOKEN, issuer.issuer, AUDIENCE, keys)], algorithms, LEEWAY, lambda: NOW
        )
        assert not await is_accepted(verifier, token)
    # The negative control: the public key is used as a secret.
    assert jwt.decode(token, key, algorithms=["HS256"]).claims["sub"] == "backend"


async def test_a_key_in_the_token_itself_is_not_used(issuer: TokenIssuer) -> None:
    forger = TokenIssuer(issuer.issuer)
    token = forger.token("backend", NOW, header={"jwk": forger.key.as_dict(private=False)})
    assert not await is_accepted(verifier_for(issuer), token)
    assert await is_accepted(verifier_for(forger), token)  # the negative control: the key is trusted


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-8] + "AAAAAAAA",
        lambda token: token.rpartition(".")[0] + ".",
        lambda token: token.replace(token.split(".")[1], encoded({**claims_of(token), "sub": "root"})),
        lambda token: token + ".x",
        lambda _: "x",
        lambda _: "..",
        lambda _: f"{encoded(['alg'])}.e30.x",
        lambda _: f"{encoded({'alg': 'ES256', 'kid': 'one', 'crit': ['exp']})}.e30.x",
        lambda _: "é.é.é",
        lambda _: f"{'W1' * 4000}.e30.x",
    ],
    ids=["signature", "none", "claims", "more-parts", "one-part", "empty", "header", "crit", "not-ascii", "deep"],
)  # fmt: skip
async def test_an_altered_token_is_rejected(issuer: TokenIssuer, change: Callable[[str], str]) -> None:
    with pytest.raises(Unauthenticated) as unknown:
        await verifier_for(issuer).resolve_identity(change(issuer.token("backend", NOW)))
    assert "backend" not in str(unknown.value)


async def test_the_key_is_the_one_that_the_token_names(issuer: TokenIssuer) -> None:
    new = TokenIssuer(issuer.issuer, kid="two")
    both = FixedKeys(json.dumps({"keys": [key.as_dict(private=False) for key in (issuer.key, new.key)]}).encode())
    verifier = JwtVerifier([Issuer(IdentityKind.TOKEN, issuer.issuer, AUDIENCE, both)], ["ES256"], LEEWAY, lambda: NOW)
    assert await is_accepted(verifier, issuer.token("backend", NOW))
    assert await is_accepted(verifier, new.token("backend", NOW))
    assert not await is_accepted(verifier, issuer.token("backend", NOW, header={"kid": "two"}))
    assert not await is_accepted(verifier, issuer.token("backend", NOW, header={"kid": "three"}))


# --- services and users ----------------------------------------------------------------------------------------------


async def test_the_issuer_distinguishes_tokens_of_services_and_users(issuer: TokenIssuer) -> None:
    app = TokenIssuer("https://app.example")
    verifier = JwtVerifier(
        [
            Issuer(IdentityKind.TOKEN, issuer.issuer, AUDIENCE, FixedKeys(issuer.jwks)),
            Issuer(IdentityKind.USER, app.issuer, AUDIENCE, FixedKeys(app.jwks)),
        ],
        ["ES256"],
        LEEWAY,
        lambda: NOW,
    )
    assert (await verifier.resolve_identity(issuer.token("ada", NOW))).kind is IdentityKind.TOKEN
    assert (await verifier.resolve_identity(app.token("ada", NOW))).kind is IdentityKind.USER
    with pytest.raises(Unauthenticated):
        await verifier.resolve_identity(app.token("backend", NOW, iss=issuer.issuer))


async def test_a_token_that_is_valid_for_both_kinds_is_rejected(issuer: TokenIssuer) -> None:
    def verifier(*audiences: tuple[IdentityKind, str]) -> JwtVerifier:
        keys = FixedKeys(issuer.jwks)
        issuers = [Issuer(kind, issuer.issuer, audience, keys) for kind, audience in audiences]
        return JwtVerifier(issuers, ["ES256"], LEEWAY, lambda: NOW)

    token = issuer.token("backend", NOW, aud=["services", "users"])
    with pytest.raises(Unauthenticated, match="both"):
        await verifier((IdentityKind.TOKEN, "services"), (IdentityKind.USER, "users")).resolve_identity(token)
    assert (await verifier((IdentityKind.TOKEN, "services")).resolve_identity(token)).kind is IdentityKind.TOKEN


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["1", "[]", "[1]", '[{"kty": "EC"}]', "[[]]", "x"])
def test_an_invalid_key_set_is_rejected(keys: str) -> None:
    for body in (f'{{"keys": {keys}}}', keys, ""):
        with pytest.raises(InvalidFile):
            parse_jwks(body.encode())


def test_symmetric_and_encryption_keys_are_ignored() -> None:
    keys = [
        {"kty": "oct", "k": "c2VjcmV0"},
        ECKey.generate_key("P-256", {"use": "enc"}).as_dict(private=False),
        ECKey.generate_key("P-256", {"kid": "good"}).as_dict(private=False),
    ]
    assert [key.kid for key in parse_jwks(json.dumps({"keys": keys}).encode())] == ["good"]


ODD_KEYS: list[Any] = [
    {"kty": "EC", "crv": "secp256k1", "kid": "x", "x": "AAAA", "y": "AAAA"},
    {"kty": "EC", "crv": "brainpoolP256r1", "kid": "x", "x": "AAAA", "y": "AAAA"},
    {"kty": "OKP", "crv": "X5", "kid": "x", "x": "AAAA"},
    {"kty": "RSA", "kid": "x", "e": "AQAB"},
    {"kty": "RSA", "kid": ["x"], "n": "AQAB", "e": "AQAB"},
    {"kty": ["RSA"], "kid": "x"},
]


@pytest.mark.parametrize("odd", ODD_KEYS, ids=str)
async def test_an_unsupported_key_is_skipped(odd: Any, issuer: TokenIssuer) -> None:
    """RFC 7517 §5."""
    body = json.dumps({"keys": [odd, *json.loads(issuer.jwks)["keys"], odd]}).encode()
    with capture_logs() as logs:
        keys = FixedKeys(body)
    verifier = JwtVerifier([Issuer(IdentityKind.TOKEN, issuer.issuer, AUDIENCE, keys)], ["ES256"], LEEWAY, lambda: NOW)
    assert await is_accepted(verifier, issuer.token("backend", NOW))
    ((first, last),) = [entry["skipped"] for entry in logs if entry["event"] == "jwks_keys_skipped"]
    assert (first.partition(":")[0], last.partition(":")[0]) == ("1", "3")
    assert "AAAA" not in str(logs)
    with pytest.raises(InvalidFile, match="that is supported"):
        parse_jwks(json.dumps({"keys": [odd]}).encode())
    with pytest.raises(Exception):  # the negative control: the library alone rejects the whole set  # noqa: B017, PT011
        KeySet.import_key_set(json.loads(body))


class JwksEndpoint:
    """The endpoint of an issuer's keys."""

    def __init__(self, body: bytes) -> None:
        self.body: bytes | None = body
        self.fetched = 0

    async def __call__(self) -> bytes:
        self.fetched += 1
        if self.body is None:
            raise OSError("away")
        return self.body


async def test_an_unknown_kid_causes_at_most_one_fetch_per_interval(issuer: TokenIssuer) -> None:
    clock, page = SettableClock(), JwksEndpoint(issuer.jwks)
    keys = RemoteJwks(page, clock)
    for _ in range(3):
        assert [key.kid for key in await keys.get_keys("one")] == ["one"]
    assert page.fetched == 1
    page.body = TokenIssuer(issuer.issuer, kid="two").jwks
    for forged in range(100):
        assert [key.kid for key in await keys.get_keys(f"forged-{forged}")] == ["one"]
    assert page.fetched == 1
    clock.advance(timedelta(seconds=10))
    assert [key.kid for key in await keys.get_keys("two")] == ["two"]
    assert page.fetched == 2


async def test_negative_control_without_the_interval_each_forged_kid_is_a_fetch(issuer: TokenIssuer) -> None:
    page = JwksEndpoint(issuer.jwks)
    keys = RemoteJwks(page, SettableClock(), min_interval=timedelta())
    for forged in range(100):
        await keys.get_keys(f"forged-{forged}")
    assert page.fetched == 100


class SlowJwksEndpoint:
    """An endpoint that times out, ten seconds after its release."""

    def __init__(self, clock: SettableClock) -> None:
        self.fetched = 0
        self._clock = clock
        self._released = asyncio.Event()

    async def __call__(self) -> bytes:
        self.fetched += 1
        await self._released.wait()
        self._clock.advance(timedelta(seconds=10))
        raise TimeoutError

    def release(self) -> None:
        self._released.set()


class WithoutSingleFlight(RemoteJwks):
    """The defence, switched off: each caller waits for a lock, and then fetches if the interval has passed."""

    lock: asyncio.Lock
    started: datetime | None = None

    async def _refresh(self) -> None:
        async with self.lock:
            if self.started is None or self._clock() - self.started >= self._min_interval:
                self.started = self._clock()
                await self._fetch_once()


async def query_concurrently(keys: RemoteJwks, page: SlowJwksEndpoint) -> None:
    async with asyncio.TaskGroup() as callers:
        for forged in range(30):
            callers.create_task(keys.get_keys(f"forged-{forged}"))
        await asyncio.sleep(0)
        page.release()


@pytest.mark.parametrize("min_interval", [timedelta(seconds=10), timedelta()], ids=["", "negative control"])
async def test_concurrent_callers_share_one_fetch_and_the_interval_starts_at_its_end(min_interval: timedelta) -> None:
    clock = SettableClock()
    page = SlowJwksEndpoint(clock)
    keys = RemoteJwks(page, clock, min_interval=min_interval)
    await query_concurrently(keys, page)
    assert page.fetched == 1
    await keys.get_keys("forged-at-its-end")
    assert page.fetched == (2 if min_interval == timedelta() else 1)


async def test_negative_control_without_single_flight_callers_fetch_one_after_another() -> None:
    clock = SettableClock()
    page = SlowJwksEndpoint(clock)
    keys = WithoutSingleFlight(page, clock)
    keys.lock = asyncio.Lock()
    await query_concurrently(keys, page)
    assert page.fetched == 30


async def test_a_cancelled_caller_does_not_cancel_the_fetch(issuer: TokenIssuer) -> None:
    gate = asyncio.Event()

    async def slow() -> bytes:
        await gate.wait()
        return issuer.jwks

    keys = RemoteJwks(slow, SettableClock())
    leaving, staying = (asyncio.create_task(keys.get_keys("one")) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    gate.set()
    assert [key.kid for key in await staying] == ["one"]
    assert leaving.cancelled()


async def test_a_failed_fetch_keeps_the_keys(issuer: TokenIssuer) -> None:
    clock, page = SettableClock(), JwksEndpoint(issuer.jwks)
    keys = RemoteJwks(page, clock)
    await keys.poll()
    for body in (None, b"<html>"):
        page.body = body
        clock.advance(timedelta(minutes=5))
        with capture_logs() as logs:
            await keys.poll()
        assert [entry["event"] for entry in logs] == ["jwks_fetch_failed"]
        assert [key.kid for key in await keys.get_keys("one")] == ["one"]


async def test_a_withdrawn_key_is_accepted_for_at_most_five_minutes(issuer: TokenIssuer) -> None:
    clock, page = SettableClock(), JwksEndpoint(issuer.jwks)
    keys = RemoteJwks(page, clock)
    await keys.poll()
    page.body = TokenIssuer(issuer.issuer, kid="two").jwks
    clock.advance(timedelta(minutes=4, seconds=59))
    await keys.poll()
    assert page.fetched == 1
    clock.advance(timedelta(seconds=1))
    await keys.poll()
    assert [key.kid for key in await keys.get_keys("two")] == ["two"]


# --- what a token authenticator needs to know ------------------------------------------------------------------------


async def test_an_expired_token_is_told_from_a_forged_one(issuer: TokenIssuer) -> None:
    verifier = verifier_for(issuer)
    with pytest.raises(TokenExpired):
        await verifier.resolve_identity(issuer.token("backend", NOW, lifetime=timedelta(minutes=-1)))
    stranger = TokenIssuer(issuer.issuer)
    with pytest.raises(Unauthenticated) as forged:
        await verifier.resolve_identity(stranger.token("backend", NOW, lifetime=timedelta(minutes=-1)))
    assert not isinstance(forged.value, TokenExpired)


async def test_a_token_is_not_forged_while_its_issuer_has_no_keys(issuer: TokenIssuer) -> None:
    page = JwksEndpoint(issuer.jwks)
    page.body = None
    keys = RemoteJwks(page, SettableClock())
    verifier = JwtVerifier([Issuer(IdentityKind.TOKEN, issuer.issuer, AUDIENCE, keys)], ["ES256"], LEEWAY, lambda: NOW)
    with pytest.raises(KeysNotAvailable):
        await verifier.resolve_identity(issuer.token("backend", NOW))


async def test_the_keys_stay_the_same_object_until_their_content_changes(issuer: TokenIssuer) -> None:
    clock, page = SettableClock(), JwksEndpoint(issuer.jwks)
    keys = RemoteJwks(page, clock)
    verifier = JwtVerifier([Issuer(IdentityKind.TOKEN, issuer.issuer, AUDIENCE, keys)], ["ES256"], LEEWAY, clock)
    await keys.poll()
    first = verifier.keys
    clock.advance(timedelta(minutes=5))
    await keys.poll()
    assert verifier.keys == first
    page.body = TokenIssuer(issuer.issuer, kid="two").jwks
    clock.advance(timedelta(minutes=5))
    await keys.poll()
    assert verifier.keys != first
    assert page.fetched == 3


async def test_an_empty_key_set_is_refused() -> None:
    page = JwksEndpoint(b"")
    keys = RemoteJwks(page, SettableClock())
    with capture_logs() as logs:
        await keys.poll()
    assert [entry["event"] for entry in logs] == ["jwks_fetch_failed"]
