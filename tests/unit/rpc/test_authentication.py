"""Authentication: which certificates and tokens identify a caller, and when a call is rejected."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from integration_server.rpc.authentication import (
    Identity,
    IdentityKind,
    authenticate,
    certificate_identity,
    current_identity,
    resolve_identity,
)
from integration_server.rpc.errors import Unauthenticated
from integration_server.rpc.interceptors import ProtectedHandlers, compose, convert_errors
from integration_server.rpc.methods import Method
from tests.fakes.clock import SettableClock
from tests.fakes.inmemory_grpc import FakeContext
from tests.unit.rpc.fake_tokens import FakeTokenVerifier

METHOD = Method("/service/Method")
CERTIFIED = {"peer_uri": [b"spiffe://example.org/a"], "x509_common_name": [b"root"]}


@pytest.mark.parametrize(
    "values",
    [["Basic YTpi"], ["Bearer"], ["Bearer "], ["token all"], ["Bearer token all"] * 2, [b"\xff"]],
)
async def test_an_authorization_entry_is_one_bearer_token(values: list[str | bytes]) -> None:
    with pytest.raises(Unauthenticated):
        await resolve_identity([("authorization", value) for value in values], {}, FakeTokenVerifier())


async def test_a_certificate_neither_adds_to_a_token_nor_replaces_a_bad_one() -> None:
    identity = await resolve_identity([("authorization", "bearer user ada")], CERTIFIED, FakeTokenVerifier())
    assert identity == Identity(IdentityKind.USER, ("ada",))
    for verifier in (FakeTokenVerifier(), None):
        with pytest.raises(Unauthenticated):
            await resolve_identity([("authorization", "Bearer bad")], CERTIFIED, verifier)
    assert (await resolve_identity([], CERTIFIED, FakeTokenVerifier())).names == ("spiffe://example.org/a",)


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"x509_common_name": [b"root"], "x509_subject": [b"CN=root"]},
        {"peer_uri": [b"spiffe://a/b", b"spiffe://a/c"]},
        {"peer_uri": [b"https://example.org"]},
        {"peer_dns": ["ä.example".encode()]},
    ],
    ids=["none", "common-name", "two", "https", "not-ascii"],
)
def test_a_certificate_without_one_clear_name_identifies_nobody(context: dict[str, list[bytes]]) -> None:
    with pytest.raises(Unauthenticated):
        certificate_identity(context)


# --- the interceptor -------------------------------------------------------------------------------------------------


async def test_the_identity_is_that_of_the_current_call() -> None:
    async def respond(_request: object, _context: Any) -> Identity:
        return current_identity()

    behavior = authenticate(FakeTokenVerifier(), SettableClock())(METHOD, respond)
    assert await behavior(None, FakeContext(token="user ada")) == Identity(IdentityKind.USER, ("ada",))


@pytest.mark.parametrize("token", [None, "", "nonsense"])
async def test_an_unauthenticated_call_is_rejected_before_its_request_is_read(token: str | None) -> None:
    async def respond(_request: object, _context: Any) -> None:
        raise AssertionError("the request was passed on")

    context = FakeContext(token=token)
    interceptors = [convert_errors(), authenticate(FakeTokenVerifier(), SettableClock())]
    with pytest.raises(grpc.aio.AbortError):
        await compose(METHOD, respond, interceptors)(None, context)
    assert context.error is not None
    assert context.error.wire == (grpc.StatusCode.UNAUTHENTICATED, "the caller is not known", ())


async def test_an_unknown_method_is_not_revealed_or_logged_for_unauthenticated_callers() -> None:
    """The path of an unknown method is the client's text, and the client can be anybody."""
    interceptors = [convert_errors(), authenticate(FakeTokenVerifier(), SettableClock())]
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
    verifier = FakeTokenVerifier(expire_time=clock.now + timedelta(minutes=1))

    async def respond(_request: object, _context: Any) -> AsyncIterator[str]:
        while True:
            yield "response"

    method = Method("/service/Stream", streams_responses=True)
    stream = authenticate(verifier, clock)(method, respond)(None, FakeContext(token="user ada"))
    assert await anext(stream) == "response"
    if clock_advances:
        clock.advance(timedelta(minutes=1))
        with pytest.raises(Unauthenticated):
            await anext(stream)
    else:
        assert await anext(stream) == "response"
