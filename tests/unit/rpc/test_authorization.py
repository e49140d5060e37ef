"""Authorization over the servicer over fakes. Each defence has a negative control: without it, the attack succeeds."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import repeat
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, NO_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.call_quota import CallRate
from integration_server.domain.callers import USER_PERMISSIONS, Caller, IdentityKind, Permission, Permissions, Policy
from integration_server.domain.errors import CallerNotAllowed, IntegrationNotFound
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.rpc.authentication import authenticate, caller_name, quota_key
from integration_server.rpc.authorization import (
    IntegrationTypeLookup,
    RequestAuthorizer,
    authorize_method,
    authorize_request,
)
from integration_server.rpc.interceptors import compose, enforce_quota
from integration_server.rpc.methods import Interceptor, Method, describe_method
from integrations.v1 import integration_service_pb2 as pb
from tests.fakes.clock import SettableClock
from tests.fakes.inmemory_grpc import FakeContext, InMemoryGrpc, RpcError
from tests.fakes.system import FakeSystem
from tests.unit.rpc.conftest import client_of
from tests.unit.rpc.fake_tokens import fake_tokens

ADA, GRACE = UserId("ada"), UserId("grace")
ALL = frozenset(Permission)
UNKNOWN_ID = 999


class ProtectedService:
    """The servicer behind the interceptors; a test can add interceptors or leave one out."""

    def __init__(
        self,
        system: FakeSystem,
        *,
        before_requests: Interceptor | None = None,
        after_requests: Interceptor | None = None,
        authorizes_requests: bool = True,
        find_type: IntegrationTypeLookup | None = None,
    ) -> None:
        self._system = system
        self.permissions = {
            "all": Permissions(ALL, ALL_INTEGRATION_TYPES),
            "keys": Permissions(ALL, AllowedTypes(frozenset({"fake_key"}))),
        }
        request_authorizer = authorize_request(RequestAuthorizer(find_type or self._find_type))
        self.interceptors = [authenticate(fake_tokens(), SettableClock()), authorize_method(self.policy)]
        self.interceptors += [before_requests] if before_requests else []
        self.interceptors += [request_authorizer] if authorizes_requests else []
        self.interceptors += [after_requests] if after_requests else []
        self._client: InMemoryGrpc = client_of(system, self.interceptors)

    def policy(self) -> Policy:
        callers = {
            (IdentityKind.TOKEN, name): Caller(name, permissions) for name, permissions in self.permissions.items()
        }
        return Policy(callers, Permissions(USER_PERMISSIONS, ALL_INTEGRATION_TYPES))

    async def _find_type(self, integration_id: IntegrationId, user_id: UserId) -> str:
        return (await self._system.integration_manager.get_integration(integration_id, user_id)).integration_type

    async def call(self, method: str, request: Message, *, token: str) -> Any:
        """Return the response. Raises `RpcError`."""
        return await self._client.call(method, request, FakeContext(token=token))


def get(integration_id: int, user_id: str = "") -> pb.GetIntegrationRequest:
    return pb.GetIntegrationRequest(integration_id=integration_id, user_id=user_id)


# --- users -----------------------------------------------------------------------------------------------------------


async def test_a_users_request_is_bound_to_that_user(system: FakeSystem) -> None:
    integration_id = (await system.connect(ADA)).integration_id
    service = ProtectedService(system)
    for named in ("", "ada"):
        response = await service.call("GetIntegration", get(integration_id, named), token="user ada")
        assert response.integration.user_id == "ada"


async def test_another_users_integration_does_not_exist_for_a_user(system: FakeSystem) -> None:
    integration_id = (await system.connect(GRACE)).integration_id
    service = ProtectedService(system)
    for asked, named in ((integration_id, "grace"), (integration_id, ""), (UNKNOWN_ID, "grace"), (UNKNOWN_ID, "")):
        with pytest.raises(RpcError) as rejected:
            await service.call("GetIntegration", get(asked, named), token="user ada")
        assert rejected.value.reason == "INTEGRATION_NOT_FOUND"
    with pytest.raises(RpcError) as not_allowed:
        await service.call("ListIntegrations", pb.ListIntegrationsRequest(user_id="grace"), token="user ada")
    assert not_allowed.value.reason == "CALLER_NOT_ALLOWED"


async def test_negative_control_without_the_check_a_user_reads_anothers_integration(system: FakeSystem) -> None:
    integration_id = (await system.connect(GRACE)).integration_id
    service = ProtectedService(system, authorizes_requests=False)
    response = await service.call("GetIntegration", get(integration_id, "grace"), token="user ada")
    assert response.integration.user_id == "grace"


async def test_users_get_no_credentials(system: FakeSystem) -> None:
    integration_id = (await system.connect(ADA)).integration_id
    request = pb.GetCredentialsRequest(integration_id=integration_id, user_id="ada")
    service = ProtectedService(system)
    with pytest.raises(RpcError) as rejected:
        await service.call("GetCredentials", request, token="user ada")
    assert (rejected.value.code, rejected.value.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
    # The negative control: a service gets them.
    assert (await service.call("GetCredentials", request, token="token all")).credentials.bearer_token


@pytest.mark.parametrize("names_user", [True, False], ids=["", "negative control"])
async def test_a_request_that_cannot_name_its_user_is_denied_to_users(names_user: bool) -> None:
    async def find_type(_integration_id: IntegrationId, _user_id: UserId) -> str:
        raise AssertionError("nothing is looked up")

    method = Method("/service/Method", names_user=names_user)
    user = Caller("user", Permissions(USER_PERMISSIONS, ALL_INTEGRATION_TYPES), ADA)
    authorized = RequestAuthorizer(find_type).authorize(method, pb.ListIntegrationTypesRequest(), user)
    if names_user:
        with pytest.raises(CallerNotAllowed):
            await authorized
    else:
        await authorized


# --- types -----------------------------------------------------------------------------------------------------------


async def test_an_integration_of_a_type_that_is_not_allowed_does_not_exist(system: FakeSystem) -> None:
    integration_id = (await system.connect(ADA)).integration_id
    service, statuses = ProtectedService(system), []
    for asked in (integration_id, UNKNOWN_ID):
        request = pb.UpdateIntegrationRequest(integration_id=asked, user_id="ada", name="x" * 999)
        with pytest.raises(RpcError) as rejected:
            await service.call("UpdateIntegration", request, token="token keys")
        assert rejected.value.reason == "INTEGRATION_NOT_FOUND"
        statuses.append(rejected.value.wire)
    assert statuses[0] == statuses[1]


async def test_negative_control_without_the_check_a_service_updates_any_type(system: FakeSystem) -> None:
    integration_id = (await system.connect(ADA)).integration_id
    service = ProtectedService(system, authorizes_requests=False)
    request = pb.UpdateIntegrationRequest(integration_id=integration_id, user_id="ada", name="mine now")
    assert (await service.call("UpdateIntegration", request, token="token keys")).integration.name == "mine now"


async def test_a_state_of_a_type_that_is_not_allowed_looks_forged(system: FakeSystem) -> None:
    started = await system.begin(ADA)
    for state in (started.state, "forged"):
        request = pb.HandleCallbackRequest(state=state, code="code", user_id="ada")
        with pytest.raises(RpcError) as rejected:
            await ProtectedService(system).call("HandleCallback", request, token="token keys")
        assert rejected.value.reason == "STATE_INVALID"


@pytest.mark.parametrize("requires_all_types", [True, False], ids=["", "negative control"])
async def test_what_names_no_type_is_denied_to_callers_of_some_types(requires_all_types: bool) -> None:
    async def respond(_request: object, _context: object) -> str:
        return "entries of every type"

    some = Permissions(frozenset({Permission.OPERATE}), AllowedTypes(frozenset({"fake"})))
    every = Permissions(frozenset({Permission.OPERATE}), ALL_INTEGRATION_TYPES)
    declared = describe_method("/integrations.v1.OperatorService/ListAuditEntries")
    assert declared.requires_all_types
    method = replace(declared, requires_all_types=requires_all_types)
    for permissions in (some, every):
        policy = Policy({(IdentityKind.TOKEN, "all"): Caller("all", permissions)}, Permissions())
        authorized = authorize_method(repeat(policy).__next__)(method, respond)
        outcome = authenticate(fake_tokens(), SettableClock())(method, authorized)(None, FakeContext(token="token all"))
        if permissions is some and requires_all_types:
            with pytest.raises(CallerNotAllowed):
                await outcome
        else:
            assert await outcome == "entries of every type"


async def test_an_alias_stands_for_its_type() -> None:
    async def find_type(_integration_id: IntegrationId, _user_id: UserId) -> str:
        raise AssertionError("nothing is looked up")

    canonical_names = {"pretend_key": "fake_key", "pretend": "fake"}
    authorizer = RequestAuthorizer(find_type, lambda name: canonical_names.get(name, name))
    caller = Caller("keys", Permissions(ALL, AllowedTypes(frozenset({"fake_key"}))))
    method = describe_method("/integrations.v1.IntegrationService/Connect")
    for named in ("fake_key", "pretend_key"):
        await authorizer.authorize(method, pb.ConnectRequest(user_id="ada", integration_type=named), caller)
    for named in ("fake", "pretend"):
        with pytest.raises(CallerNotAllowed):
            await authorizer.authorize(method, pb.ConnectRequest(user_id="ada", integration_type=named), caller)


async def test_types_are_looked_up_once_and_the_cache_is_bounded() -> None:
    looked_up = []

    async def find_type(integration_id: IntegrationId, user_id: UserId) -> str:
        looked_up.append((integration_id, user_id))
        if integration_id == UNKNOWN_ID:
            raise IntegrationNotFound
        return "fake"

    authorizer = RequestAuthorizer(find_type, cache_size=2)
    method = describe_method("/integrations.v1.IntegrationService/GetIntegration")
    caller = Caller("fake", Permissions(ALL, AllowedTypes(frozenset({"fake"}))))

    async def authorize(integration_id: int, user_id: UserId = ADA) -> None:
        request = pb.GetIntegrationRequest(integration_id=integration_id, user_id=user_id)
        await authorizer.authorize(method, request, caller)

    for integration_id in (1, 1, 2, 1, 3, 1, 2):
        await authorize(integration_id)
    assert [integration_id for integration_id, _ in looked_up] == [1, 2, 3, 2]
    for _ in range(2):
        with pytest.raises(IntegrationNotFound):
            await authorize(UNKNOWN_ID)
    await authorize(1, GRACE)
    assert looked_up[-1] == (1, GRACE)


async def test_a_type_that_is_not_allowed_is_looked_up_like_an_integration_that_does_not_exist() -> None:
    """Else the time of the second call would tell the two apart."""
    looked_up: list[int] = []
    allowed = AllowedTypes(frozenset({"fake", "withdrawn"}))

    async def find_type(integration_id: IntegrationId, _user_id: UserId) -> str:
        looked_up.append(integration_id)
        if integration_id == UNKNOWN_ID:
            raise IntegrationNotFound
        return "withdrawn" if integration_id == 2 else "other"

    authorizer = RequestAuthorizer(find_type)
    method = describe_method("/integrations.v1.IntegrationService/GetIntegration")

    async def authorize(integration_id: int, allowed_types: AllowedTypes) -> None:
        caller = Caller("fake", Permissions(ALL, allowed_types))
        await authorizer.authorize(
            method, pb.GetIntegrationRequest(integration_id=integration_id, user_id="ada"), caller
        )

    await authorize(2, allowed)  # remembered, and then withdrawn from the policy
    looked_up.clear()
    for integration_id in (1, 2, UNKNOWN_ID):
        for _ in range(3):
            with pytest.raises(IntegrationNotFound):
                await authorize(integration_id, AllowedTypes(frozenset({"fake"})))
    assert looked_up == [1] * 3 + [2] * 3 + [UNKNOWN_ID] * 3


@pytest.mark.parametrize(("token", "sees"), [("token keys", False), ("token all", True)], ids=["", "negative control"])
async def test_an_item_of_a_type_that_is_not_allowed_does_not_exist(system: FakeSystem, token: str, sees: bool) -> None:
    hidden = (await system.connect(ADA)).integration_id
    allowed = (await system.connect_key(ADA)).integration_id
    items = [pb.GetCredentialsRequest(integration_id=one, user_id="ada") for one in (hidden, UNKNOWN_ID, allowed)]
    request = pb.BatchGetCredentialsRequest(requests=items)
    first, absent, last = (await ProtectedService(system).call("BatchGetCredentials", request, token=token)).results
    assert last.credentials.api_key.api_key
    assert (first == absent) != sees
    assert first.HasField("credentials") == sees


async def test_users_get_no_batch(system: FakeSystem) -> None:
    integration_id = (await system.connect(ADA)).integration_id
    item = pb.GetCredentialsRequest(integration_id=integration_id, user_id="ada")
    request = pb.BatchGetCredentialsRequest(requests=[item])
    with pytest.raises(RpcError) as rejected:
        await ProtectedService(system).call("BatchGetCredentials", request, token="user ada")
    assert rejected.value.reason == "CALLER_NOT_ALLOWED"


# --- quotas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quota_is_first", [True, False], ids=["", "negative control"])
async def test_a_caller_without_quota_causes_no_lookup(system: FakeSystem, quota_is_first: bool) -> None:
    looked_up = []

    async def find_type(integration_id: IntegrationId, user_id: UserId) -> str:
        looked_up.append((integration_id, user_id))
        raise IntegrationNotFound

    quota = enforce_quota(quota_key, CallRate(1), concurrency=0)
    service = ProtectedService(
        system,
        before_requests=quota if quota_is_first else None,
        after_requests=None if quota_is_first else quota,
        find_type=find_type,
    )
    with pytest.raises(RpcError) as rejected:
        await service.call("GetIntegration", get(UNKNOWN_ID, "ada"), token="token keys")
    expected = ("QUOTA_EXCEEDED", 0) if quota_is_first else ("INTEGRATION_NOT_FOUND", 1)
    assert (rejected.value.reason, len(looked_up)) == expected


@pytest.mark.parametrize(
    ("key", "others_are_rejected"), [(quota_key, False), (caller_name, True)], ids=["", "negative control"]
)
async def test_each_user_has_its_own_quota(
    system: FakeSystem, key: Callable[[Any], str], others_are_rejected: bool
) -> None:
    rate = CallRate(1, monotonic=lambda: 0.0)  # all calls are in one second
    service = ProtectedService(system, before_requests=enforce_quota(key, rate, concurrency=10))
    request = pb.ListIntegrationsRequest()
    await service.call("ListIntegrations", request, token="user ada")
    with pytest.raises(RpcError, match="RESOURCE_EXHAUSTED"):
        await service.call("ListIntegrations", request, token="user ada")
    if others_are_rejected:
        with pytest.raises(RpcError, match="RESOURCE_EXHAUSTED"):
            await service.call("ListIntegrations", request, token="user grace")
    else:
        await service.call("ListIntegrations", request, token="user grace")
        await service.call("ListIntegrations", pb.ListIntegrationsRequest(user_id="ada"), token="token all")


def key_with_slash(context: Any) -> str:
    return quota_key(context).replace("\0", "/")


@pytest.mark.parametrize(
    ("key", "is_shared"), [(quota_key, False), (key_with_slash, True)], ids=["", "negative control"]
)
async def test_a_service_does_not_share_the_quota_of_a_user(
    system: FakeSystem, key: Callable[[Any], str], is_shared: bool
) -> None:
    keys = set[str]()

    def spying(context: Any) -> str:
        keys.add(key(context))
        return key(context)

    service = ProtectedService(system, before_requests=enforce_quota(spying, CallRate(10), concurrency=10))
    service.permissions["user/ada"] = service.permissions["all"]
    for token in ("user ada", "token user/ada"):
        await service.call("ListIntegrations", pb.ListIntegrationsRequest(user_id="ada"), token=token)
    assert (len(keys) == 1) == is_shared


# --- streams ---------------------------------------------------------------------------------------------------------


async def endless(_request: object, _context: Any) -> AsyncIterator[str]:
    while True:
        yield "response"


def watch(policy: Callable[[], Policy]) -> AsyncIterator[str]:
    """Start a stream under the policy."""
    method = describe_method("/integrations.v1.IntegrationService/WatchIntegrations")
    interceptors = [authenticate(fake_tokens(), SettableClock()), authorize_method(policy)]
    stream: AsyncIterator[str] = compose(method, endless, interceptors)(None, FakeContext(token="token all"))
    return stream


@pytest.mark.parametrize("later", [None, Permissions(ALL, AllowedTypes(frozenset({"fake"})))], ids=["none", "fewer"])
async def test_a_stream_ends_once_the_policy_grants_less(system: FakeSystem, later: Permissions | None) -> None:
    service = ProtectedService(system)
    stream = watch(service.policy)
    assert await anext(stream) == "response"
    service.permissions = {} if later is None else {"all": later}
    with pytest.raises(CallerNotAllowed):
        await anext(stream)


async def test_negative_control_under_the_policy_of_its_start_a_stream_continues(system: FakeSystem) -> None:
    service = ProtectedService(system)
    policy = service.policy()
    stream = watch(lambda: policy)
    assert await anext(stream) == "response"
    service.permissions = {}
    assert await anext(stream) == "response"


@pytest.mark.parametrize(
    ("wider", "narrower"),
    [
        (ALL_INTEGRATION_TYPES, ALL_INTEGRATION_TYPES),
        (ALL_INTEGRATION_TYPES, AllowedTypes(frozenset({"a"}))),
        (AllowedTypes(frozenset({"a", "b"})), AllowedTypes(frozenset({"a"}))),
        (AllowedTypes(frozenset({"a"})), NO_INTEGRATION_TYPES),
    ],
)
def test_allowed_types_contain_those_that_are_no_wider(wider: AllowedTypes, narrower: AllowedTypes) -> None:
    assert wider.contains(narrower)
    assert wider == narrower or not narrower.contains(wider)


def test_requests_that_are_streamed_cannot_bypass_the_check() -> None:
    async def find_type(_integration_id: IntegrationId, _user_id: UserId) -> str:
        return "fake"

    wrap = authorize_request(RequestAuthorizer(find_type))
    with pytest.raises(NotImplementedError):
        wrap(Method("/service/Method", Permission.READ, streams_requests=True), endless)
