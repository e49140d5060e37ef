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

from integration_server.domain.errors import CallerNotAllowed, IntegrationNotFound
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.domain.reach import EVERYTHING, NOTHING, Reach
from integration_server.rpc import guard
from integration_server.rpc.access import FOR_USERS, Group
from integration_server.rpc.callers import CallerUnknown, Identity, Kind, certificate_identity, identity_of
from integration_server.rpc.guard import (
    Admission,
    CallerInterceptor,
    Confinement,
    ConfinementInterceptor,
    Doorkeeper,
    RememberedTypes,
    caller_of,
    limited_as,
)
from integration_server.rpc.limits import CallLimits
from integration_server.rpc.policy import Caller, Policy, Rights
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1 import integration_service_pb2_grpc as pb_grpc
from tests.fakes.clock import SettableClock
from tests.fakes.edge import Details, FakeContext, FakeServer, Refused
from tests.fakes.system import FakeSystem
from tests.unit.rpc.conftest import servicer_of

ADA, GRACE = UserId("ada"), UserId("grace")
ALL = frozenset(Group)


class SpokenTokens:
    """Believes what a token says: "kind name", and nothing else."""

    async def identity_of(self, token: str) -> Identity:
        kind, _, name = token.partition(" ")
        if not name:
            raise CallerUnknown("not said")
        return Identity(Kind(kind), (name,))


class Guarded:
    """The servicer behind a guard; parts of it can be exchanged."""

    def __init__(self, system: FakeSystem, confinement: Confinement | None = None) -> None:
        self.clock = SettableClock()
        self.rights = {"all": Rights(ALL, EVERYTHING), "keys": Rights(ALL, Reach(frozenset({"fake_key"})))}
        self.doorkeeper = Doorkeeper(self.policy, SpokenTokens(), self.clock, health_is_open=False)
        self.server = FakeServer()
        self.system = system
        pb_grpc.add_IntegrationServiceServicer_to_server(servicer_of(system), self.server)  # type: ignore[arg-type]
        self.confinement = confinement or Confinement(self.type_of)
        self.between: CallLimits | None = None
        self.innermost: CallLimits | None = None

    def policy(self) -> Policy:
        callers = {(Kind.TOKEN, name): Caller(name, rights) for name, rights in self.rights.items()}
        return Policy(callers, Rights(FOR_USERS, EVERYTHING))

    async def type_of(self, integration_id: IntegrationId, user_id: UserId) -> str:
        return (await self.system.managing.get_integration(integration_id, user_id)).integration_type

    async def call(self, method: str, request: Message, *, token: str | None) -> Any:
        """The answer. Raises `Refused`, or the domain's error for the interceptor around it."""

        async def find(details: grpc.HandlerCallDetails) -> Any:
            return self.server.handlers[details.method]

        handler = await self.guarded(find, f"/integrations.v1.IntegrationService/{method}")
        context: Any = KnownContext(token)
        try:
            return await handler.unary_unary(handler.request_deserializer(request.SerializeToString()), context)
        except grpc.aio.AbortError:
            raise context.refused from None

    async def guarded(self, find: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], path: str) -> Any:
        """The handler that is found, behind all of the guard."""
        confining = ConfinementInterceptor(self.doorkeeper, self.confinement)
        behind: Callable[[grpc.HandlerCallDetails], Awaitable[Any]] = find
        for interceptor in (self.innermost, confining, self.between, CallerInterceptor(self.doorkeeper)):
            if interceptor is not None:
                behind = partial(interceptor.intercept_service, behind)
        return await behind(Details(path))


class KnownContext(FakeContext):
    """A context of a call with a token."""

    def __init__(self, token: str | None) -> None:
        super().__init__()
        self._token = token

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [] if self._token is None else [("authorization", f"Bearer {self._token}")]

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}


class Unconfined(Confinement):
    """The defence, switched off."""

    async def confine(self, request: Message, admission: Admission) -> None:
        """Let everything through."""


def get(integration_id: int, user_id: str = "") -> pb.GetIntegrationRequest:
    return pb.GetIntegrationRequest(integration_id=integration_id, user_id=user_id)


NOBODYS = 999


# --- users -----------------------------------------------------------------------------------------------------------


async def test_a_user_is_its_own_user(system: FakeSystem) -> None:
    integration_id = (await system.connect(ADA)).integration_id
    guarded = Guarded(system)
    for named in ("", "ada"):
        answer = await guarded.call("GetIntegration", get(integration_id, named), token="user ada")
        assert answer.integration.user_id == "ada"


async def test_a_user_who_names_another_gets_what_is_not_there(system: FakeSystem) -> None:
    integration_id = (await system.connect(GRACE)).integration_id
    for asked, named in ((integration_id, "grace"), (integration_id, ""), (NOBODYS, "grace"), (NOBODYS, "")):
        with pytest.raises((Refused, IntegrationNotFound)) as refused:
            await Guarded(system).call("GetIntegration", get(asked, named), token="user ada")
        assert getattr(refused.value, "reason", "") == "INTEGRATION_NOT_FOUND"
    with pytest.raises(Refused) as not_allowed:
        await Guarded(system).call("ListIntegrations", pb.ListIntegrationsRequest(user_id="grace"), token="user ada")
    assert not_allowed.value.reason == "CALLER_NOT_ALLOWED"


async def test_unconfined_a_user_reads_what_is_anothers(system: FakeSystem) -> None:
    """The twin."""
    integration_id = (await system.connect(GRACE)).integration_id
    guarded = Guarded(system)
    guarded.confinement = Unconfined(guarded.type_of)
    answer = await guarded.call("GetIntegration", get(integration_id, "grace"), token="user ada")
    assert answer.integration.user_id == "grace"


async def test_users_get_no_credentials_even_where_a_policy_would_be_made_to_grant_them(system: FakeSystem) -> None:
    integration_id = (await system.connect(ADA)).integration_id
    request = pb.GetCredentialsRequest(integration_id=integration_id, user_id="ada")
    with pytest.raises(Refused) as refused:
        await Guarded(system).call("GetCredentials", request, token="user ada")
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
    answer = await Guarded(system).call("GetCredentials", request, token="token all")  # the twin: it is for services
    assert answer.credentials.bearer_token


async def test_an_rpc_that_names_no_user_is_not_for_users(system: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = Guarded(system)
    assert await guarded.call("ListIntegrationTypes", pb.ListIntegrationTypesRequest(), token="user ada")
    monkeypatch.setattr(guard, "ABOUT_NO_USER", frozenset())
    with pytest.raises(Refused) as refused:
        await guarded.call("ListIntegrationTypes", pb.ListIntegrationTypesRequest(), token="user ada")
    assert refused.value.reason == "CALLER_NOT_ALLOWED"


# --- types -----------------------------------------------------------------------------------------------------------


async def test_an_integration_of_a_type_out_of_reach_is_not_there(system: FakeSystem) -> None:
    integration_id = (await system.connect(ADA)).integration_id
    seen = []
    for asked in (integration_id, NOBODYS):
        with pytest.raises(Refused) as refused:
            await Guarded(system).call(
                "UpdateIntegration",
                pb.UpdateIntegrationRequest(integration_id=asked, user_id="ada", name="x" * 999),
                token="token keys",
            )
        assert refused.value.reason == "INTEGRATION_NOT_FOUND"
        seen.append(refused.value.wire)
    assert seen[0] == seen[1]


async def test_unconfined_a_service_changes_what_is_out_of_its_reach(system: FakeSystem) -> None:
    """The twin."""
    integration_id = (await system.connect(ADA)).integration_id
    guarded = Guarded(system)
    guarded.confinement = Unconfined(guarded.type_of)
    request = pb.UpdateIntegrationRequest(integration_id=integration_id, user_id="ada", name="mine now")
    assert (await guarded.call("UpdateIntegration", request, token="token keys")).integration.name == "mine now"


async def test_a_state_or_confirmation_of_a_type_out_of_reach_is_none(system: FakeSystem) -> None:
    begun = await system.begin(ADA)
    for state in (begun.state, "forged"):
        with pytest.raises(Exception, match="was not made here"):
            await Guarded(system).call(
                "HandleCallback", pb.HandleCallbackRequest(state=state, code="code", user_id="ada"), token="token keys"
            )


@pytest.mark.parametrize("limits_stand_before", [True, False], ids=["before it", "twin: behind it"])
async def test_a_caller_who_has_no_calls_left_has_nothing_looked_up(
    system: FakeSystem, limits_stand_before: bool
) -> None:
    looked_up = []

    async def type_of(integration_id: IntegrationId, user_id: UserId) -> str:
        looked_up.append((integration_id, user_id))
        raise IntegrationNotFound

    guarded = Guarded(system, Confinement(type_of))
    limits = CallLimits(limited_as, concurrency=0, per_second=1)
    guarded.between, guarded.innermost = (limits, None) if limits_stand_before else (None, limits)
    with pytest.raises(Refused) as refused:
        await guarded.call("GetIntegration", get(NOBODYS, "ada"), token="token keys")
    expected = ("QUOTA_EXCEEDED", 0) if limits_stand_before else ("INTEGRATION_NOT_FOUND", 1)
    assert (refused.value.reason, len(looked_up)) == expected


@pytest.mark.parametrize(("key", "others_are_refused"), [(limited_as, False), (caller_of, True)], ids=["", "twin"])
async def test_a_user_has_limits_of_its_own(
    system: FakeSystem, key: Callable[[Any], str], others_are_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)  # all within one second
    guarded = Guarded(system)
    guarded.between = CallLimits(key, concurrency=10, per_second=1)
    request = pb.ListIntegrationsRequest()
    await guarded.call("ListIntegrations", request, token="user ada")
    with pytest.raises(Refused, match="RESOURCE_EXHAUSTED"):
        await guarded.call("ListIntegrations", request, token="user ada")
    if others_are_refused:
        with pytest.raises(Refused, match="RESOURCE_EXHAUSTED"):
            await guarded.call("ListIntegrations", request, token="user grace")
    else:
        await guarded.call("ListIntegrations", request, token="user grace")
        await guarded.call("ListIntegrations", pb.ListIntegrationsRequest(user_id="ada"), token="token all")


async def test_types_are_looked_up_once_and_few_are_kept() -> None:
    looked_up = []

    async def type_of(integration_id: IntegrationId, user_id: UserId) -> str:
        looked_up.append((integration_id, user_id))
        if integration_id == NOBODYS:
            raise IntegrationNotFound
        return "fake"

    types = RememberedTypes(type_of, most=2)
    for integration_id in (1, 1, 2, 1, 3, 1, 2):
        assert await types.of(IntegrationId(integration_id), ADA) == "fake"
    assert [integration_id for integration_id, _ in looked_up] == [1, 2, 3, 2]
    for _ in range(2):
        with pytest.raises(IntegrationNotFound):
            await types.of(IntegrationId(NOBODYS), ADA)
    await types.of(IntegrationId(1), GRACE)
    assert looked_up[-1] == (1, GRACE)


# --- who -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "", "nonsense"])
async def test_nobody_is_let_in_without_a_name(system: FakeSystem, token: str | None) -> None:
    with pytest.raises(Refused) as refused:
        await Guarded(system).call("ListIntegrationTypes", pb.ListIntegrationTypesRequest(), token=token)
    assert refused.value.wire == (grpc.StatusCode.UNAUTHENTICATED, "the caller is not known", ())


async def test_a_method_is_logged_where_there_is_one_of_that_name(system: FakeSystem) -> None:
    """A name that nobody has given is the client's own text, and the client may be anybody."""

    async def find_nothing(_details: grpc.HandlerCallDetails) -> Any:
        return None

    invented = await Guarded(system).guarded(find_nothing, "/key=" + "key=" * 4_000)
    with capture_logs() as logs:
        with pytest.raises(grpc.aio.AbortError):
            await invented.stream_unary(None, KnownContext(None))
        with pytest.raises(Refused):
            await Guarded(system).call("ListIntegrationTypes", pb.ListIntegrationTypesRequest(), token=None)
    assert [(entry["event"], entry["method"]) for entry in logs] == [
        ("caller_unknown", "unknown"),
        ("caller_unknown", "/integrations.v1.IntegrationService/ListIntegrationTypes"),
    ]


@pytest.mark.parametrize(
    "values",
    [["Basic YTpi"], ["Bearer"], ["Bearer "], ["token all"], ["Bearer token all"] * 2, [b"\xff"]],
)
async def test_an_authorization_is_one_bearer_token(values: list[str | bytes]) -> None:
    with pytest.raises(CallerUnknown):
        await identity_of([("authorization", value) for value in values], {}, SpokenTokens())


CERTIFIED = {"peer_uri": [b"spiffe://example.org/a"], "x509_common_name": [b"root"]}


async def test_a_token_stands_alone() -> None:
    """A certificate beside it neither adds to a token nor makes up for a bad one."""
    assert (await identity_of([("authorization", "bearer user ada")], CERTIFIED, SpokenTokens())).kind is Kind.USER
    for tokens in (SpokenTokens(), None):
        with pytest.raises(CallerUnknown):
            await identity_of([("authorization", "Bearer bad")], CERTIFIED, tokens)
    assert (await identity_of([], CERTIFIED, SpokenTokens())).names == ("spiffe://example.org/a",)


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
    with pytest.raises(CallerUnknown):
        certificate_identity(context)


# --- streams ---------------------------------------------------------------------------------------------------------


class Endless(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # has no types
    """A health service that always has more to say."""

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """One answer after another."""
        while True:
            yield health_pb2.HealthCheckResponse(status=1)


class LettingGoOn(Doorkeeper):
    """The defence, switched off."""

    def check_again(self, admission: Admission) -> None:
        """Whoever is in stays in."""


async def test_a_type_is_reached_by_any_of_its_names(system: FakeSystem) -> None:
    own_names = {"pretend_key": "fake_key", "pretend": "fake"}
    confinement = Confinement(Guarded(system).type_of, lambda name: own_names.get(name, name))
    caller = Caller("keys", Rights(ALL, Reach(frozenset({"fake_key"}))))
    admission = Admission("/integrations.v1.IntegrationService/Connect", Identity(Kind.TOKEN, ("keys",)), caller)
    for named in ("fake_key", "pretend_key"):
        await confinement.confine(pb.ConnectRequest(user_id="ada", integration_type=named), admission)
    for named in ("fake", "pretend"):
        with pytest.raises(CallerNotAllowed):
            await confinement.confine(pb.ConnectRequest(user_id="ada", integration_type=named), admission)


async def watched(guarded: Guarded, doorkeeper: Doorkeeper) -> tuple[AsyncIterator[Any], KnownContext]:
    server = FakeServer()
    health_pb2_grpc.add_HealthServicer_to_server(Endless(), server)

    async def find(details: grpc.HandlerCallDetails) -> Any:
        return server.handlers[details.method]

    guarded.doorkeeper = doorkeeper
    handler = await guarded.guarded(find, "/grpc.health.v1.Health/Watch")
    context = KnownContext("token all")
    return handler.unary_stream(health_pb2.HealthCheckRequest(), context), context


async def test_a_stream_ends_once_its_caller_would_not_be_let_in_any_more(system: FakeSystem) -> None:
    guarded = Guarded(system)
    stream, context = await watched(guarded, guarded.doorkeeper)
    assert await anext(stream)
    guarded.rights.clear()
    with pytest.raises(grpc.aio.AbortError):
        await anext(stream)
    assert context.refused is not None
    assert context.refused.reason == "CALLER_NOT_ALLOWED"


async def test_a_stream_ends_once_its_caller_reaches_less_far(system: FakeSystem) -> None:
    guarded = Guarded(system)
    stream, context = await watched(guarded, guarded.doorkeeper)
    assert await anext(stream)
    guarded.rights["all"] = Rights(ALL, Reach(frozenset({"fake"})))
    with pytest.raises(grpc.aio.AbortError):
        await anext(stream)
    assert context.refused is not None
    assert context.refused.reason == "CALLER_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("wider", "narrower"),
    [
        (EVERYTHING, EVERYTHING),
        (EVERYTHING, Reach(frozenset({"a"}))),
        (Reach(frozenset({"a", "b"})), Reach(frozenset({"a"}))),
        (Reach(frozenset({"a"})), NOTHING),
    ],
)
def test_a_reach_includes_what_is_no_wider(wider: Reach, narrower: Reach) -> None:
    assert wider.includes(narrower)
    assert wider == narrower or not narrower.includes(wider)


async def test_a_stream_that_is_not_looked_at_again_goes_on(system: FakeSystem) -> None:
    """The twin."""
    guarded = Guarded(system)
    stream, _ = await watched(guarded, LettingGoOn(guarded.policy, SpokenTokens(), guarded.clock, health_is_open=False))
    assert await anext(stream)
    guarded.rights.clear()
    assert await anext(stream)


def test_a_stream_ends_with_its_token(system: FakeSystem) -> None:
    guarded = Guarded(system)
    identity = Identity(Kind.TOKEN, ("all",), guarded.clock.now + timedelta(minutes=1))
    admission = Admission("/grpc.health.v1.Health/Watch", identity, Caller("all", guarded.rights["all"]))
    guarded.doorkeeper.check_again(admission)
    guarded.clock.advance(timedelta(minutes=1))
    with pytest.raises(CallerUnknown):
        guarded.doorkeeper.check_again(admission)
