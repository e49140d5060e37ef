"""The guard over the servicer over fakes. Each attack has its twin: with the named defence switched off it succeeds."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, NO_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.errors import CallerNotAllowed, IntegrationNotFound
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.rpc import authentication
from integration_server.rpc.authentication import (
    AuthenticatedCall,
    AuthenticationInterceptor,
    Authenticator,
    AuthorizationInterceptor,
    IntegrationTypeCache,
    RequestAuthorizer,
    caller_of,
    quota_key,
)
from integration_server.rpc.peer_identity import (
    Identity,
    IdentityKind,
    Unauthenticated,
    certificate_identity,
    resolve_identity,
)
from integration_server.rpc.permissions import USER_PERMISSIONS, Permission
from integration_server.rpc.policy import Caller, Permissions, Policy
from integration_server.rpc.quotas import Quotas
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1 import integration_service_pb2_grpc as pb_grpc
from tests.fakes.clock import SettableClock
from tests.fakes.inmemory_grpc import Details, FakeContext, FakeServer, RpcError
from tests.fakes.system import FakeSystem
from tests.unit.rpc.conftest import servicer_of

ADA, GRACE = UserId("ada"), UserId("grace")
ALL = frozenset(Permission)


class FakeTokenVerifier:
    """Believes what a token says: "kind name", and nothing else."""

    async def resolve_identity(self, token: str) -> Identity:
        kind, _, name = token.partition(" ")
        if not name:
            raise Unauthenticated("not said")
        return Identity(IdentityKind(kind), (name,))


class ProtectedServicer:
    """The servicer behind a guard; parts of it can be exchanged."""

    def __init__(self, system: FakeSystem, request_authorizer: RequestAuthorizer | None = None) -> None:
        self.clock = SettableClock()
        self.permissions = {
            "all": Permissions(ALL, ALL_INTEGRATION_TYPES),
            "keys": Permissions(ALL, AllowedTypes(frozenset({"fake_key"}))),
        }
        self.authenticator = Authenticator(self.policy, FakeTokenVerifier(), self.clock, health_is_public=False)
        self.server = FakeServer()
        self.system = system
        pb_grpc.add_IntegrationServiceServicer_to_server(servicer_of(system), self.server)  # type: ignore[arg-type]
        self.request_authorizer = request_authorizer or RequestAuthorizer(self.find_type)
        self.between: Quotas | None = None
        self.innermost: Quotas | None = None

    def policy(self) -> Policy:
        callers = {
            (IdentityKind.TOKEN, name): Caller(name, permissions) for name, permissions in self.permissions.items()
        }
        return Policy(callers, Permissions(USER_PERMISSIONS, ALL_INTEGRATION_TYPES))

    async def find_type(self, integration_id: IntegrationId, user_id: UserId) -> str:
        return (await self.system.integration_manager.get_integration(integration_id, user_id)).integration_type

    async def call(self, method: str, request: Message, *, token: str | None) -> Any:
        """The answer. Raises `RpcError`, or the domain's error for the interceptor around it."""

        async def find(details: grpc.HandlerCallDetails) -> Any:
            return self.server.handlers[details.method]

        handler = await self.protected(find, f"/integrations.v1.IntegrationService/{method}")
        context: Any = TokenContext(token)
        try:
            return await handler.unary_unary(handler.request_deserializer(request.SerializeToString()), context)
        except grpc.aio.AbortError:
            raise context.refused from None

    async def protected(self, find: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], path: str) -> Any:
        """The handler that is found, behind all of the guard."""
        authorization = AuthorizationInterceptor(self.authenticator, self.request_authorizer)
        chain: Callable[[grpc.HandlerCallDetails], Awaitable[Any]] = find
        for interceptor in (self.innermost, authorization, self.between, AuthenticationInterceptor(self.authenticator)):
            if interceptor is not None:
                chain = partial(interceptor.intercept_service, chain)
        return await chain(Details(path))


class TokenContext(FakeContext):
    """A context of a call with a token."""

    def __init__(self, token: str | None) -> None:
        super().__init__()
        self._token = token

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [] if self._token is None else [("authorization", f"Bearer {self._token}")]

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}


class AllowAllAuthorizer(RequestAuthorizer):
    """The defence, switched off."""

    async def authorize(self, request: Message, authenticated_call: AuthenticatedCall) -> None:
        """Let everything through."""


def get(integration_id: int, user_id: str = "") -> pb.GetIntegrationRequest:
    return pb.GetIntegrationRequest(integration_id=integration_id, user_id=user_id)


UNKNOWN_ID = 999


# --- users -----------------------------------------------------------------------------------------------------------


async def test_a_user_is_its_own_user(system: FakeSystem) -> None:
    integration_id = (await system.connect(ADA)).integration_id
    protected = ProtectedServicer(system)
    for named in ("", "ada"):
        response = await protected.call("GetIntegration", get(integration_id, named), token="user ada")
        assert response.integration.user_id == "ada"


async def test_a_user_who_names_another_gets_what_is_not_there(system: FakeSystem) -> None:
    integration_id = (await system.connect(GRACE)).integration_id
    for asked, named in ((integration_id, "grace"), (integration_id, ""), (UNKNOWN_ID, "grace"), (UNKNOWN_ID, "")):
        with pytest.raises((RpcError, IntegrationNotFound)) as refused:
            await ProtectedServicer(system).call("GetIntegration", get(asked, named), token="user ada")
        assert getattr(refused.value, "reason", "") == "INTEGRATION_NOT_FOUND"
    with pytest.raises(RpcError) as not_allowed:
        await ProtectedServicer(system).call(
            "ListIntegrations", pb.ListIntegrationsRequest(user_id="grace"), token="user ada"
        )
    assert not_allowed.value.reason == "CALLER_NOT_ALLOWED"


async def test_unconfined_a_user_reads_what_is_anothers(system: FakeSystem) -> None:
    """The twin."""
    integration_id = (await system.connect(GRACE)).integration_id
    protected = ProtectedServicer(system)
    protected.request_authorizer = AllowAllAuthorizer(protected.find_type)
    response = await protected.call("GetIntegration", get(integration_id, "grace"), token="user ada")
    assert response.integration.user_id == "grace"


async def test_users_get_no_credentials_even_where_a_policy_would_be_made_to_grant_them(system: FakeSystem) -> None:
    integration_id = (await system.connect(ADA)).integration_id
    request = pb.GetCredentialsRequest(integration_id=integration_id, user_id="ada")
    with pytest.raises(RpcError) as refused:
        await ProtectedServicer(system).call("GetCredentials", request, token="user ada")
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
    response = await ProtectedServicer(system).call(
        "GetCredentials", request, token="token all"
    )  # the twin: it is for services
    assert response.credentials.bearer_token


async def test_an_rpc_that_names_no_user_is_not_for_users(system: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    protected = ProtectedServicer(system)
    assert await protected.call("ListIntegrationTypes", pb.ListIntegrationTypesRequest(), token="user ada")
    monkeypatch.setattr(authentication, "USERLESS_METHODS", frozenset())
    with pytest.raises(RpcError) as refused:
        await protected.call("ListIntegrationTypes", pb.ListIntegrationTypesRequest(), token="user ada")
    assert refused.value.reason == "CALLER_NOT_ALLOWED"


# --- types -----------------------------------------------------------------------------------------------------------


async def test_an_integration_of_a_type_out_of_reach_is_not_there(system: FakeSystem) -> None:
    integration_id = (await system.connect(ADA)).integration_id
    statuses = []
    for asked in (integration_id, UNKNOWN_ID):
        with pytest.raises(RpcError) as refused:
            await ProtectedServicer(system).call(
                "UpdateIntegration",
                pb.UpdateIntegrationRequest(integration_id=asked, user_id="ada", name="x" * 999),
                token="token keys",
            )
        assert refused.value.reason == "INTEGRATION_NOT_FOUND"
        statuses.append(refused.value.wire)
    assert statuses[0] == statuses[1]


async def test_unconfined_a_service_changes_what_is_out_of_its_reach(system: FakeSystem) -> None:
    """The twin."""
    integration_id = (await system.connect(ADA)).integration_id
    protected = ProtectedServicer(system)
    protected.request_authorizer = AllowAllAuthorizer(protected.find_type)
    request = pb.UpdateIntegrationRequest(integration_id=integration_id, user_id="ada", name="mine now")
    assert (await protected.call("UpdateIntegration", request, token="token keys")).integration.name == "mine now"


async def test_a_state_or_confirmation_of_a_type_out_of_reach_is_none(system: FakeSystem) -> None:
    begun = await system.begin(ADA)
    for state in (begun.state, "forged"):
        with pytest.raises(Exception, match="was not made here"):
            await ProtectedServicer(system).call(
                "HandleCallback", pb.HandleCallbackRequest(state=state, code="code", user_id="ada"), token="token keys"
            )


@pytest.mark.parametrize("limits_stand_before", [True, False], ids=["before it", "negative control: behind it"])
async def test_a_caller_who_has_no_calls_left_has_nothing_looked_up(
    system: FakeSystem, limits_stand_before: bool
) -> None:
    looked_up = []

    async def find_type(integration_id: IntegrationId, user_id: UserId) -> str:
        looked_up.append((integration_id, user_id))
        raise IntegrationNotFound

    protected = ProtectedServicer(system, RequestAuthorizer(find_type))
    limits = Quotas(quota_key, concurrency=0, per_second=1)
    protected.between, protected.innermost = (limits, None) if limits_stand_before else (None, limits)
    with pytest.raises(RpcError) as refused:
        await protected.call("GetIntegration", get(UNKNOWN_ID, "ada"), token="token keys")
    expected = ("QUOTA_EXCEEDED", 0) if limits_stand_before else ("INTEGRATION_NOT_FOUND", 1)
    assert (refused.value.reason, len(looked_up)) == expected


@pytest.mark.parametrize(
    ("key", "others_are_refused"), [(quota_key, False), (caller_of, True)], ids=["", "negative control"]
)
async def test_a_user_has_limits_of_its_own(
    system: FakeSystem, key: Callable[[Any], str], others_are_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)  # all within one second
    protected = ProtectedServicer(system)
    protected.between = Quotas(key, concurrency=10, per_second=1)
    request = pb.ListIntegrationsRequest()
    await protected.call("ListIntegrations", request, token="user ada")
    with pytest.raises(RpcError, match="RESOURCE_EXHAUSTED"):
        await protected.call("ListIntegrations", request, token="user ada")
    if others_are_refused:
        with pytest.raises(RpcError, match="RESOURCE_EXHAUSTED"):
            await protected.call("ListIntegrations", request, token="user grace")
    else:
        await protected.call("ListIntegrations", request, token="user grace")
        await protected.call("ListIntegrations", pb.ListIntegrationsRequest(user_id="ada"), token="token all")


async def test_types_are_looked_up_once_and_few_are_kept() -> None:
    looked_up = []

    async def find_type(integration_id: IntegrationId, user_id: UserId) -> str:
        looked_up.append((integration_id, user_id))
        if integration_id == UNKNOWN_ID:
            raise IntegrationNotFound
        return "fake"

    types = IntegrationTypeCache(find_type, max_size=2)
    for integration_id in (1, 1, 2, 1, 3, 1, 2):
        assert await types.get(IntegrationId(integration_id), ADA) == "fake"
    assert [integration_id for integration_id, _ in looked_up] == [1, 2, 3, 2]
    for _ in range(2):
        with pytest.raises(IntegrationNotFound):
            await types.get(IntegrationId(UNKNOWN_ID), ADA)
    await types.get(IntegrationId(1), GRACE)
    assert looked_up[-1] == (1, GRACE)


# --- who -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "", "nonsense"])
async def test_nobody_is_let_in_without_a_name(system: FakeSystem, token: str | None) -> None:
    with pytest.raises(RpcError) as refused:
        await ProtectedServicer(system).call("ListIntegrationTypes", pb.ListIntegrationTypesRequest(), token=token)
    assert refused.value.wire == (grpc.StatusCode.UNAUTHENTICATED, "the caller is not known", ())


async def test_a_method_is_logged_where_there_is_one_of_that_name(system: FakeSystem) -> None:
    """A name that nobody has given is the client's own text, and the client may be anybody."""

    async def find_nothing(_details: grpc.HandlerCallDetails) -> Any:
        return None

    invented = await ProtectedServicer(system).protected(find_nothing, "/key=" + "key=" * 4_000)
    with capture_logs() as logs:
        with pytest.raises(grpc.aio.AbortError):
            await invented.stream_unary(None, TokenContext(None))
        with pytest.raises(RpcError):
            await ProtectedServicer(system).call("ListIntegrationTypes", pb.ListIntegrationTypesRequest(), token=None)
    assert [(entry["event"], entry["method"]) for entry in logs] == [
        ("unauthenticated", "unknown"),
        ("unauthenticated", "/integrations.v1.IntegrationService/ListIntegrationTypes"),
    ]


@pytest.mark.parametrize(
    "values",
    [["Basic YTpi"], ["Bearer"], ["Bearer "], ["token all"], ["Bearer token all"] * 2, [b"\xff"]],
)
async def test_an_authorization_is_one_bearer_token(values: list[str | bytes]) -> None:
    with pytest.raises(Unauthenticated):
        await resolve_identity([("authorization", value) for value in values], {}, FakeTokenVerifier())


CERTIFIED = {"peer_uri": [b"spiffe://example.org/a"], "x509_common_name": [b"root"]}


async def test_a_token_stands_alone() -> None:
    """A certificate beside it neither adds to a token nor makes up for a bad one."""
    assert (
        await resolve_identity([("authorization", "bearer user ada")], CERTIFIED, FakeTokenVerifier())
    ).kind is IdentityKind.USER
    for tokens in (FakeTokenVerifier(), None):
        with pytest.raises(Unauthenticated):
            await resolve_identity([("authorization", "Bearer bad")], CERTIFIED, tokens)
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
def test_a_certificate_without_one_clear_name_names_nobody(context: dict[str, list[bytes]]) -> None:
    with pytest.raises(Unauthenticated):
        certificate_identity(context)


# --- streams ---------------------------------------------------------------------------------------------------------


class EndlessHealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # has no types
    """A health service that always has more to say."""

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """One answer after another."""
        while True:
            yield health_pb2.HealthCheckResponse(status=1)


class NoReauthorization(Authenticator):
    """The defence, switched off."""

    def reauthorize(self, authenticated_call: AuthenticatedCall) -> None:
        """Whoever is in stays in."""


async def test_a_type_is_reached_by_any_of_its_names(system: FakeSystem) -> None:
    own_names = {"pretend_key": "fake_key", "pretend": "fake"}
    request_authorizer = RequestAuthorizer(ProtectedServicer(system).find_type, lambda name: own_names.get(name, name))
    caller = Caller("keys", Permissions(ALL, AllowedTypes(frozenset({"fake_key"}))))
    authenticated_call = AuthenticatedCall(
        "/integrations.v1.IntegrationService/Connect", Identity(IdentityKind.TOKEN, ("keys",)), caller
    )
    for named in ("fake_key", "pretend_key"):
        await request_authorizer.authorize(pb.ConnectRequest(user_id="ada", integration_type=named), authenticated_call)
    for named in ("fake", "pretend"):
        with pytest.raises(CallerNotAllowed):
            await request_authorizer.authorize(
                pb.ConnectRequest(user_id="ada", integration_type=named), authenticated_call
            )


async def watch_health(
    protected: ProtectedServicer, authenticator: Authenticator
) -> tuple[AsyncIterator[Any], TokenContext]:
    server = FakeServer()
    health_pb2_grpc.add_HealthServicer_to_server(EndlessHealthServicer(), server)

    async def find(details: grpc.HandlerCallDetails) -> Any:
        return server.handlers[details.method]

    protected.authenticator = authenticator
    handler = await protected.protected(find, "/grpc.health.v1.Health/Watch")
    context = TokenContext("token all")
    return handler.unary_stream(health_pb2.HealthCheckRequest(), context), context


async def test_a_stream_ends_once_its_caller_would_not_be_let_in_any_more(system: FakeSystem) -> None:
    protected = ProtectedServicer(system)
    stream, context = await watch_health(protected, protected.authenticator)
    assert await anext(stream)
    protected.permissions.clear()
    with pytest.raises(grpc.aio.AbortError):
        await anext(stream)
    assert context.refused is not None
    assert context.refused.reason == "CALLER_NOT_ALLOWED"


async def test_a_stream_ends_once_its_caller_reaches_less_far(system: FakeSystem) -> None:
    protected = ProtectedServicer(system)
    stream, context = await watch_health(protected, protected.authenticator)
    assert await anext(stream)
    protected.permissions["all"] = Permissions(ALL, AllowedTypes(frozenset({"fake"})))
    with pytest.raises(grpc.aio.AbortError):
        await anext(stream)
    assert context.refused is not None
    assert context.refused.reason == "CALLER_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("wider", "narrower"),
    [
        (ALL_INTEGRATION_TYPES, ALL_INTEGRATION_TYPES),
        (ALL_INTEGRATION_TYPES, AllowedTypes(frozenset({"a"}))),
        (AllowedTypes(frozenset({"a", "b"})), AllowedTypes(frozenset({"a"}))),
        (AllowedTypes(frozenset({"a"})), NO_INTEGRATION_TYPES),
    ],
)
def test_a_reach_includes_what_is_no_wider(wider: AllowedTypes, narrower: AllowedTypes) -> None:
    assert wider.contains(narrower)
    assert wider == narrower or not narrower.contains(wider)


async def test_a_stream_that_is_not_looked_at_again_goes_on(system: FakeSystem) -> None:
    """The twin."""
    protected = ProtectedServicer(system)
    stream, _ = await watch_health(
        protected, NoReauthorization(protected.policy, FakeTokenVerifier(), protected.clock, health_is_public=False)
    )
    assert await anext(stream)
    protected.permissions.clear()
    assert await anext(stream)


def test_a_stream_ends_with_its_token(system: FakeSystem) -> None:
    protected = ProtectedServicer(system)
    identity = Identity(IdentityKind.TOKEN, ("all",), protected.clock.now + timedelta(minutes=1))
    authenticated_call = AuthenticatedCall(
        "/grpc.health.v1.Health/Watch", identity, Caller("all", protected.permissions["all"])
    )
    protected.authenticator.reauthorize(authenticated_call)
    protected.clock.advance(timedelta(minutes=1))
    with pytest.raises(Unauthenticated):
        protected.authenticator.reauthorize(authenticated_call)
