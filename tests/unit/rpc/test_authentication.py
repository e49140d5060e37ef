"""Authentication: which certificates and tokens identify a caller, and when a call is rejected."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import grpc
import pytest
from cryptography.x509 import UniformResourceIdentifier
from structlog.testing import capture_logs

from integration_server.domain.callers import Identity, IdentityKind
from integration_server.domain.errors import QuotaExceeded
from integration_server.domain.peers import PeerLimiter, TrustedProxies, parse_networks
from integration_server.rpc.authentication import (
    Peer,
    TokenAuthenticator,
    authenticate,
    client_address,
    current_identity,
)
from integration_server.rpc.errors import KeysNotAvailable, TokenExpired, Unauthenticated
from integration_server.rpc.interceptors import compose, convert_errors
from integration_server.rpc.methods import Method
from integration_server.rpc.server import ProtectedHandlers
from tests.fakes.clock import SettableClock
from tests.fakes.inmemory_grpc import FakeContext
from tests.unit.rpc.fake_tokens import FakeTokenVerifier, fake_tokens
from tools.certificates import Authority

METHOD = Method("/service/Method")


async def identity_of(context: FakeContext, tokens: TokenAuthenticator | None = None) -> Identity:
    """The identity that the interceptor determines."""

    async def respond(_request: object, _context: Any) -> Identity:
        return current_identity()

    identity: Identity = await authenticate(tokens or fake_tokens(), SettableClock())(METHOD, respond)(None, context)
    return identity


@pytest.mark.parametrize(
    "values",
    [["Basic YTpi"], ["Bearer"], ["Bearer "], ["token all"], ["Bearer token all"] * 2, [b"\xff"]],
)
async def test_an_authorization_entry_is_one_bearer_token(values: list[str | bytes]) -> None:
    with pytest.raises(Unauthenticated):
        await identity_of(FakeContext(metadata=[("authorization", value) for value in values]))


async def test_a_certificate_neither_adds_to_a_token_nor_replaces_a_bad_one() -> None:
    certificate = Authority().issue([UniformResourceIdentifier("spiffe://example.org/a")]).certificate
    assert await identity_of(FakeContext(token="user ada", certificate=certificate)) == Identity(
        IdentityKind.USER, "ada"
    )
    with pytest.raises(Unauthenticated):
        await identity_of(FakeContext(token="bad", certificate=certificate))
    assert (await identity_of(FakeContext(certificate=certificate))).name == "spiffe://example.org/a"


async def test_a_token_without_keys_to_verify_it_is_refused() -> None:
    async def respond(_request: object, _context: Any) -> None:
        raise AssertionError("the request was passed on")

    with pytest.raises(Unauthenticated):
        await authenticate(None, SettableClock())(METHOD, respond)(None, FakeContext(token="user ada"))


# --- limits of tokens ------------------------------------------------------------------------------------------------


class CountingVerifier(FakeTokenVerifier):
    """Counts the tokens that it verifies, which is the expensive work."""

    def __init__(self, expire_time: datetime | None = None) -> None:
        super().__init__(expire_time)
        self.verified: list[str] = []
        self.error: Unauthenticated | None = None
        self.current_keys = object()

    @property
    def keys(self) -> object:
        return self.current_keys

    async def resolve_identity(self, token: str) -> Identity:
        self.verified.append(token)
        if self.error is not None:
            raise self.error
        return await super().resolve_identity(token)


class TokenSystem:
    """A token authenticator with everything that tests change."""

    def __init__(self, *, is_limited: bool = True, expire_time: datetime | None = None, cache_size: int = 10) -> None:
        self.now = 1_000.0
        self.clock = SettableClock()
        self.verifier = CountingVerifier(expire_time)
        limiter = PeerLimiter(burst=3, per_second=1, monotonic=lambda: self.now) if is_limited else None
        self.tokens = TokenAuthenticator(
            self.verifier, limiter, self.clock, max_token_length=100, cache_size=cache_size
        )

    async def outcomes(self, *tokens: str, peer: Peer) -> list[str]:
        """The name of each token's subject, or the class of the error."""
        return [await self._outcome(token, peer) for token in tokens]

    async def _outcome(self, token: str, peer: Peer) -> str:
        try:
            return (await self.tokens.resolve_identity(token, peer)).name
        except (Unauthenticated, QuotaExceeded) as error:
            return type(error).__name__


ATTACKER, NEIGHBOUR, STRANGER = (
    Peer("10.0.0.1", "ipv4:10.0.0.1:1000"),
    Peer("10.0.0.1", "ipv4:10.0.0.1:2000"),
    Peer("10.0.0.2", "ipv4:10.0.0.2:1000"),
)
FORGED = [f"forged{number}" for number in range(100)]


async def test_forged_tokens_over_the_limit_are_refused_before_they_are_verified() -> None:
    system = TokenSystem()
    outcomes = await system.outcomes(*FORGED, peer=ATTACKER)
    assert outcomes == ["Unauthenticated"] * 3 + ["QuotaExceeded"] * 97
    assert system.verifier.verified == FORGED[:3]
    system.now += 1
    assert await system.outcomes("forged", "forged", peer=ATTACKER) == ["Unauthenticated", "QuotaExceeded"]


async def test_negative_control_without_the_limit_every_forged_token_is_verified() -> None:
    system = TokenSystem(is_limited=False)
    assert await system.outcomes(*FORGED, peer=ATTACKER) == ["Unauthenticated"] * 100
    assert system.verifier.verified == FORGED


async def test_callers_at_another_address_are_not_limited() -> None:
    system = TokenSystem()
    await system.outcomes(*FORGED, peer=ATTACKER)
    assert await system.outcomes("user ada", peer=STRANGER) == ["ada"]


async def test_good_callers_at_the_address_of_an_attacker_are_served() -> None:
    """They share a NAT: each has a connection, and its new tokens too are accepted."""
    system = TokenSystem()
    await system.outcomes(*FORGED, peer=ATTACKER)
    assert await system.outcomes("user ada", "user ada", "user bob", peer=NEIGHBOUR) == ["ada", "ada", "bob"]


async def test_verified_tokens_are_accepted_on_the_connection_of_an_attacker() -> None:
    """They share a proxy, which sends the calls of both on one connection."""
    system = TokenSystem()
    await system.outcomes("user ada", *FORGED, peer=ATTACKER)
    assert await system.outcomes("user ada", peer=ATTACKER) == ["ada"]
    assert await system.outcomes("user bob", peer=ATTACKER) == ["QuotaExceeded"]


async def test_an_attacker_gets_one_more_attempt_on_each_new_connection() -> None:
    system = TokenSystem()
    await system.outcomes(*FORGED, peer=ATTACKER)
    for port in range(5):
        peer = Peer(ATTACKER.address, f"ipv4:10.0.0.1:{port}")
        assert await system.outcomes("forged", "forged", peer=peer) == ["Unauthenticated", "QuotaExceeded"]


async def test_a_token_is_verified_once_until_the_keys_change() -> None:
    system = TokenSystem()
    assert await system.outcomes(*["user ada"] * 3, peer=STRANGER) == ["ada"] * 3
    assert len(system.verifier.verified) == 1
    system.verifier.current_keys = object()
    assert await system.outcomes(*["user ada"] * 3, peer=STRANGER) == ["ada"] * 3
    assert len(system.verifier.verified) == 2


async def test_a_token_whose_key_is_withdrawn_is_refused_although_it_was_verified() -> None:
    system = TokenSystem()
    await system.outcomes("user ada", peer=STRANGER)
    system.verifier.current_keys, system.verifier.error = object(), Unauthenticated("signed with another key")
    assert await system.outcomes("user ada", peer=STRANGER) == ["Unauthenticated"]


@pytest.mark.parametrize(
    ("notices_change", "later"),
    [(True, ["Unauthenticated"] * 2), (False, ["ada"] * 2)],
    ids=["", "negative control"],
)
async def test_a_key_that_is_withdrawn_during_a_verification_verifies_nothing(
    notices_change: bool, later: list[str]
) -> None:
    """Such as while another issuer's keys are fetched for the same token."""
    system = TokenSystem()
    verifier = system.verifier
    resolve = verifier.resolve_identity

    class SlowVerifier(CountingVerifier):
        async def resolve_identity(self, token: str) -> Identity:
            identity = await resolve(token)
            verifier.error = Unauthenticated("signed with another key")
            if notices_change:
                verifier.current_keys = withdrawn
            return identity

        @property
        def keys(self) -> object:
            return verifier.current_keys

    withdrawn = object()
    system.tokens = TokenAuthenticator(SlowVerifier(), None, system.clock)
    assert await system.outcomes("user ada", "user ada", peer=STRANGER) == later


async def test_a_verified_token_expires() -> None:
    system = TokenSystem(expire_time=SettableClock().now + timedelta(minutes=1))
    assert await system.outcomes("user ada", peer=STRANGER) == ["ada"]
    system.clock.advance(timedelta(minutes=1))
    assert await system.outcomes(*["user ada"] * 10, peer=STRANGER) == ["TokenExpired"] * 10
    assert len(system.verifier.verified) == 1


async def test_expired_tokens_are_no_failures_and_are_verified_once() -> None:
    """A gateway forwards the tokens of its users, some of which have expired."""
    system = TokenSystem(cache_size=1000)
    system.verifier.error = TokenExpired("the token has expired")
    assert await system.outcomes(*FORGED, *FORGED, peer=STRANGER) == ["TokenExpired"] * 200
    assert system.verifier.verified == FORGED
    system.verifier.error = None
    assert await system.outcomes("user ada", peer=STRANGER) == ["ada"]


async def test_tokens_that_cannot_be_verified_for_lack_of_keys_are_no_failures() -> None:
    system = TokenSystem()
    system.verifier.error = KeysNotAvailable("the issuer's keys are not available")
    assert await system.outcomes(*["user ada"] * 10, peer=STRANGER) == ["KeysNotAvailable"] * 10
    system.verifier.error = None
    assert await system.outcomes("user ada", peer=STRANGER) == ["ada"]


async def test_forged_tokens_do_not_evict_verified_ones() -> None:
    system = TokenSystem(is_limited=False, cache_size=3)
    await system.outcomes("user ada", *FORGED, "user ada", peer=ATTACKER)
    assert system.verifier.verified.count("user ada") == 1


async def test_a_long_token_is_measured_before_it_is_verified() -> None:
    system = TokenSystem()
    with pytest.raises(Unauthenticated) as refused:
        await system.tokens.resolve_identity("user " + "a" * 96, STRANGER)
    assert refused.value.public_message == "the authorization entry has a token of more than 100 characters"
    assert not system.verifier.verified
    assert await system.outcomes("user " + "a" * 95, peer=STRANGER) == ["a" * 95]


async def test_failures_are_counted_for_the_client_that_a_trusted_proxy_names() -> None:
    system = TokenSystem()
    address_of = client_address(TrustedProxies(parse_networks("10.0.0.0/8")))

    async def respond(_request: object, _context: Any) -> str:
        return "response"

    async def call(token: str, forwarded_for: str) -> str:
        metadata = [("authorization", f"Bearer {token}"), ("x-forwarded-for", forwarded_for)]
        behavior = authenticate(system.tokens, system.clock, address_of)(METHOD, respond)
        try:
            return str(await behavior(None, FakeContext(metadata=metadata)))
        except (Unauthenticated, QuotaExceeded) as error:
            return type(error).__name__

    assert [await call("forged", "203.0.113.9") for _ in range(4)] == ["Unauthenticated"] * 3 + ["QuotaExceeded"]
    assert await call("user ada", "203.0.113.10") == "response"
    # What the attacker itself writes to the left changes nothing.
    assert await call("forged", "198.51.100.1, 203.0.113.9") == "QuotaExceeded"


# --- the interceptor -------------------------------------------------------------------------------------------------


async def test_the_identity_is_that_of_the_current_call() -> None:
    assert await identity_of(FakeContext(token="user ada")) == Identity(IdentityKind.USER, "ada")


@pytest.mark.parametrize("token", [None, "", "nonsense"])
async def test_an_unauthenticated_call_is_rejected_before_its_request_is_read(token: str | None) -> None:
    async def respond(_request: object, _context: Any) -> None:
        raise AssertionError("the request was passed on")

    context = FakeContext(token=token)
    interceptors = [convert_errors(), authenticate(fake_tokens(), SettableClock())]
    with pytest.raises(grpc.aio.AbortError):
        await compose(METHOD, respond, interceptors)(None, context)
    assert context.error is not None
    assert context.error.wire == (grpc.StatusCode.UNAUTHENTICATED, "the caller is not known", ())


async def test_an_unknown_method_is_not_revealed_or_logged_for_unauthenticated_callers() -> None:
    """The path of an unknown method is the client's text, and the client can be anybody."""
    interceptors = [convert_errors(), authenticate(fake_tokens(), SettableClock())]
    handlers = ProtectedHandlers(interceptors, unknown_method=interceptors)

    class Details(grpc.HandlerCallDetails):
        method = "/key=" + "key=" * 4_000
        invocation_metadata = ()

    handler: Any = handlers.service(Details())
    for token, code in ((None, grpc.StatusCode.UNAUTHENTICATED), ("user ada", grpc.StatusCode.UNIMPLEMENTED)):
        context = FakeContext(token=token)
        with capture_logs() as logs, pytest.raises(grpc.aio.AbortError):
            await handler.stream_unary(None, context)
        assert context.error is not None
        assert context.error.code is code
        assert [(entry["event"], entry["method"]) for entry in logs] == (
            [("unauthenticated", "unknown")] if token is None else []
        )


@pytest.mark.parametrize("clock_advances", [True, False], ids=["", "negative control"])
async def test_a_stream_ends_when_its_token_expires(clock_advances: bool) -> None:
    clock = SettableClock()
    tokens = fake_tokens(clock.now + timedelta(minutes=1))

    async def respond(_request: object, _context: Any) -> AsyncIterator[str]:
        while True:
            yield "response"

    method = Method("/service/Stream", streams_responses=True)
    stream = authenticate(tokens, clock)(method, respond)(None, FakeContext(token="user ada"))
    assert await anext(stream) == "response"
    if clock_advances:
        clock.advance(timedelta(minutes=1))
        with pytest.raises(Unauthenticated):
            await anext(stream)
    else:
        assert await anext(stream) == "response"


@pytest.mark.parametrize(
    ("is_withdrawn", "notices_change"),
    [(True, True), (True, False), (False, True)],
    ids=["", "negative control", "another key is added"],
)
async def test_a_stream_ends_when_the_key_of_its_token_is_withdrawn(is_withdrawn: bool, notices_change: bool) -> None:
    """Whoever had stolen the key may have signed a token that expires in years."""
    system = TokenSystem()

    async def respond(_request: object, _context: Any) -> AsyncIterator[str]:
        while True:
            yield "response"

    method = Method("/service/Stream", streams_responses=True)
    stream = authenticate(system.tokens, system.clock)(method, respond)(None, FakeContext(token="user ada"))
    assert await anext(stream) == "response"
    if is_withdrawn:
        system.verifier.error = Unauthenticated("signed with another key")
    if notices_change:
        system.verifier.current_keys = object()
    if is_withdrawn and notices_change:
        with pytest.raises(Unauthenticated):
            await anext(stream)
    else:
        assert [await anext(stream) for _ in range(3)] == ["response"] * 3
        assert len(system.verifier.verified) == 1 + notices_change
