"""Authorization: every RPC of the server × every kind of caller, over real channels.

The RPCs are those that the running server reflects. An RPC without a row in the table below fails the tests.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from cryptography import x509
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2
from sqlalchemy import select

from integration_server.domain.text_escaping import unescape
from integration_server.rpc.methods import method_of
from integration_server.storage.tables import audit_entries
from integrations.v1 import google_calendar_pb2 as calendars
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1 import operator_service_pb2 as operator_pb
from integrations.v1.google_calendar_pb2_grpc import GoogleCalendarServiceStub
from integrations.v1.operator_service_pb2_grpc import OperatorServiceStub
from tests.end_to_end.authenticated_system import (
    APP_SECRET,
    AuthenticatedSystem,
    Caller,
    begin,
    connect,
    run_authenticated_system,
)
from tests.end_to_end.databases import fetch
from tests.end_to_end.system import next_event
from tests.existence_attack import results_of
from tests.signed_webhook_provider import SIGNED_WEBHOOK, signature_headers, webhook_body
from tools.certificates import Pair

pytestmark = pytest.mark.asyncio(loop_scope="module")

ABSENT = 4_000_000_000  # an id that does not exist
FORGED = "forged"

# Columns: a service with all permissions, for ada; the same, for grace; one with all permissions for other types;
# one without permissions; one that is not in the policy; the sidecar; ada; grace without a user_id; grace with the
# user_id ada; and no identity. Every request concerns data of ada.
GRID = """
                       backend  for_grace  other_type  bystander  unlisted  sidecar  ada      grace     grace_as_ada  unidentified
Connect                ok       ok         denied      denied     denied    denied   ok       ok        denied        unknown
ConnectWithApiKey      ok       ok         ok          denied     denied    denied   ok       ok        denied        unknown
HandleCallback         ok       mismatch   forged      denied     denied    ok       ok       mismatch  denied        unknown
ConfirmConnection      ok       mismatch   forged      denied     denied    denied   ok       mismatch  denied        unknown
ListIntegrations       ok       empty      empty       denied     denied    denied   ok       empty     denied        unknown
GetIntegration         ok       absent     absent      denied     denied    denied   ok       absent    absent        unknown
UpdateIntegration      ok       absent     absent      denied     denied    denied   ok       absent    absent        unknown
DisconnectIntegration  ok       absent     absent      denied     denied    denied   ok       absent    absent        unknown
CheckAllHealth         ok       empty      empty       denied     denied    denied   ok       empty     denied        unknown
CheckHealth            ok       absent     absent      denied     denied    denied   ok       absent    absent        unknown
ListHealthChecks       ok       absent     absent      denied     denied    denied   ok       absent    absent        unknown
RefreshToken           ok       absent     absent      denied     denied    denied   ok       absent    absent        unknown
ListIntegrationTypes   ok       ok         ok          denied     denied    denied   ok       ok        ok            unknown
GetCredentials         ok       absent     absent      denied     denied    denied   denied   denied    denied        unknown
BatchGetCredentials    ok       absent     absent      denied     denied    denied   denied   denied    denied        unknown
WatchCredentials       ok       absent     absent      denied     denied    denied   denied   denied    denied        unknown
ReceiveWebhook         denied   denied     denied      denied     denied    ok       denied   denied    denied        unknown
ListWebhookEvents      ok       absent     absent      denied     denied    denied   denied   denied    denied        unknown
AckWebhookEvents       ok       absent     absent      denied     denied    denied   denied   denied    denied        unknown
GetWebhookEndpoint     ok       absent     absent      denied     denied    denied   denied   denied    denied        unknown
SetWebhookSecret       ok       absent     absent      denied     denied    denied   denied   denied    denied        unknown
WatchIntegrations      ok       quiet      quiet       denied     denied    denied   ok       quiet     denied        unknown
CallProvider           ok       absent     absent      denied     denied    denied   denied   denied    denied        unknown
StreamProvider         ok       absent     absent      denied     denied    denied   denied   denied    denied        unknown
ListCalendars          ok       absent     absent      denied     denied    denied   denied   denied    denied        unknown
ListEvents             ok       absent     absent      denied     denied    denied   denied   denied    denied        unknown
CreateEvent            ok       absent     absent      denied     denied    denied   denied   denied    denied        unknown
GetEvent               ok       absent     absent      denied     denied    denied   denied   denied    denied        unknown
ListEventInstances     ok       absent     absent      denied     denied    denied   denied   denied    denied        unknown
UpdateEvent            ok       absent     absent      denied     denied    denied   denied   denied    denied        unknown
DeleteEvent            ok       absent     absent      denied     denied    denied   denied   denied    denied        unknown
FindIntegrations       ok       ok         empty       denied     denied    denied   denied   denied    denied        unknown
ListDueWork            ok       ok         empty       denied     denied    denied   denied   denied    denied        unknown
ListAuditEntries       ok       ok         denied      denied     denied    denied   denied   denied    denied        unknown
ListUnroutedWebhooks   ok       ok         empty       denied     denied    denied   denied   denied    denied        unknown
PutOAuthClient         ok       ok         denied      denied     denied    denied   denied   denied    denied        unknown
ListOAuthClients       ok       ok         empty       denied     denied    denied   denied   denied    denied        unknown
DeleteOAuthClient      ok       ok         denied      denied     denied    denied   denied   denied    denied        unknown
Check                  ok       ok         ok          denied     denied    ok       denied   denied    denied        unknown
List                   ok       ok         ok          denied     denied    ok       denied   denied    denied        unknown
Watch                  ok       ok         ok          denied     denied    ok       denied   denied    denied        unknown
ServerReflectionInfo   ok       ok         ok          denied     denied    denied   denied   denied    denied        unknown
"""  # noqa: E501  # a table

COLUMNS, *ROWS = (line.split() for line in GRID.strip().splitlines())
CELLS = {(row[0], column): outcome for row in ROWS for column, outcome in zip(COLUMNS, row[1:], strict=True)}


@dataclass(frozen=True, slots=True)
class Scenario:
    """All callers, the methods that the server reflects by their path, and ada's data."""

    authenticated: AuthenticatedSystem
    callers: dict[str, Caller]
    methods: Mapping[str, MethodDescriptor]
    integration_id: int
    signed_webhook_id: int
    calendar_id: int

    @property
    def backend(self) -> Caller:
        """The service that may do everything."""
        return self.callers["backend"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scenario(shared_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scenario]:
    async with run_authenticated_system(shared_database_url, tmp_path_factory.mktemp("office")) as authenticated:
        yield await build_scenario(authenticated)


async def build_scenario(authenticated: AuthenticatedSystem) -> Scenario:
    backend = await authenticated.backend()
    grace = await authenticated.user("grace")
    names = {"bystander": "/bystander", "unlisted": "/unlisted", "sidecar": "/sidecar"}
    callers = {
        "backend": backend,
        "for_grace": backend,
        "other_type": await authenticated.caller(other_type_certificate(authenticated)),
        **{
            name: await authenticated.caller(authenticated.credential_issuer.certificate(path))
            for name, path in names.items()
        },
        "ada": await authenticated.user("ada"),
        "grace": grace,
        "grace_as_ada": grace,
        "unidentified": await authenticated.unidentified(),
    }
    return Scenario(
        authenticated,
        callers,
        await reflected_methods(backend),
        await connect(authenticated, backend),
        await connect_signed_webhook(authenticated, backend),
        await connect(authenticated, backend, integration_type="google_calendar"),
    )


async def connect_signed_webhook(authenticated: AuthenticatedSystem, backend: Caller) -> int:
    """Connect an integration of ada's and deliver a webhook."""
    request = pb.ConnectWithApiKeyRequest(user_id="ada", integration_type=SIGNED_WEBHOOK, api_key="ada:key")
    connected = await backend.service.ConnectWithApiKey(request)
    body = webhook_body({"id": "e-1", "account": "ada"}, {"id": "e-2", "account": "nobody"})
    url = f"{authenticated.system.sidecar_url}/api/v1/webhooks/{SIGNED_WEBHOOK}/app"
    response = await authenticated.system.browser.post(url, content=body, headers=signature_headers(body, APP_SECRET))
    assert response.status_code == 202
    return int(connected.integration.integration_id)


def other_type_certificate(authenticated: AuthenticatedSystem) -> Pair:
    """A certificate with a DNS name in another case than in the policy."""
    return authenticated.credential_issuer.authority.issue([x509.DNSName("Other-Type.integrations.example")])


# --- completeness of the table --------------------------------------------------------------------------------------


async def reflected_methods(caller: Caller) -> dict[str, MethodDescriptor]:
    """Every method of every service that the server reflects, by its path."""
    ask = caller.channel.unary_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    responses = [response async for response in ask(reflection_pb2.ServerReflectionRequest(list_services=""))]
    pool = descriptor_pool.Default()
    services = [pool.FindServiceByName(service.name) for service in responses[0].list_services_response.service]
    return {f"/{service.full_name}/{method.name}": method for service in services for method in service.methods}


@pytest.mark.slow
async def test_every_rpc_of_the_server_has_a_row_and_a_permission(scenario: Scenario) -> None:
    methods = scenario.methods
    assert {path.rpartition("/")[2] for path in methods} == {row[0] for row in ROWS}
    assert len(methods) == len(ROWS)
    assert all(method_of(descriptor).permission for descriptor in methods.values())


async def test_requests_have_user_and_integration_ids_only_in_the_fields_that_are_authorized(
    scenario: Scenario,
) -> None:
    """An RPC with these fields elsewhere needs an authorizer that reads them there."""
    for method in scenario.methods.values():
        if method.containing_service.full_name.startswith("integrations."):
            authorized = {"user_id", "integration_id", "integration_type"}
            items_field = method_of(method).items_field
            if items_field:  # its entries are authorized one by one
                authorized |= {items_field + "[]", *(f"{items_field}[].{name}" for name in authorized)}
            assert not set(identifying_fields(method.input_type)) - authorized


def identifying_fields(message: Any, inside: str = "") -> list[str]:
    """The fields for users, integrations or types, at any depth."""
    found = []
    for field in message.fields:
        if any(word in field.name for word in ("user", "integration")):
            found.append(f"{inside}{field.name}{'[]' if field.is_repeated else ''}")
        if field.message_type is not None and field.message_type.full_name.startswith("integrations."):
            found.extend(identifying_fields(field.message_type, f"{inside}{field.name}{'[]' * field.is_repeated}."))
    return found


# --- requests --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refused:
    """The complete response to a rejected call."""

    code: grpc.StatusCode
    details: str
    trailing: tuple[tuple[str, Any], ...]

    @property
    def reason(self) -> str:
        """The reason; empty if there is none."""
        status = status_pb2.Status.FromString(dict(self.trailing).get("grpc-status-details-bin", b""))
        info = error_details_pb2.ErrorInfo()
        for detail in status.details:
            detail.Unpack(info)
        return info.reason


async def outcome_of(call: Awaitable[Message]) -> Message | Refused:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        trailing = tuple(error.trailing_metadata() or ())
        return Refused(error.code(), error.details() or "", trailing)


async def call(caller: Caller, path: str, method: MethodDescriptor, request: Message) -> Message:
    """Make a call of any kind; the response, or the first of a stream.

    A call whose response may be sent again is made three times, with one outcome: the second takes the hot path.
    """
    if not method_of(method).repeats_responses:
        return await call_once(caller, path, method, request)
    outcomes = [await outcome_of(call_once(caller, path, method, request)) for _ in range(2)]
    last = await outcome_of(call_once(caller, path, method, request))
    assert outcomes == [last, last]
    return await call_once(caller, path, method, request)


async def call_once(caller: Caller, path: str, method: MethodDescriptor, request: Message) -> Message:
    """Make a call."""
    is_stream = method.server_streaming
    make: Callable[..., Any] = caller.channel.unary_stream if is_stream else caller.channel.unary_unary
    response_class = message_factory.GetMessageClass(method.output_type)
    rpc = make(
        path, request_serializer=type(request).SerializeToString, response_deserializer=response_class.FromString
    )
    rpc_call = rpc(request, metadata=caller.metadata, timeout=30)
    if not is_stream:
        return without_errors(await rpc_call)
    try:
        return without_errors(await anext(aiter(rpc_call)))
    finally:
        rpc_call.cancel()


def without_errors(response: Message) -> Message:
    """A response. Raises the first error in its results, as a single call would end with it."""
    for result in results_of(response):
        if result.HasField("error"):
            (code,) = (code for code in grpc.StatusCode if code.value[0] == result.error.code)
            details = grpc.aio.Metadata(("grpc-status-details-bin", result.error.SerializeToString()))
            raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), details, result.error.message)
    return response


NAMED_BY = {"for_grace": "grace", "grace": "", "ada": "", "grace_as_ada": "ada"}


async def request_for(scenario: Scenario, method: MethodDescriptor, column: str, *, exists: bool = True) -> Message:
    """The request of a cell: for ada's data, or for ids that do not exist."""
    request_class = message_factory.GetMessageClass(method.input_type)
    fields = method.input_type.fields_by_name
    values: dict[str, Any] = {}
    if "user_id" in fields and not (column == "sidecar" and method.name == "HandleCallback"):
        values["user_id"] = NAMED_BY.get(column, "ada")
    if method.name == "Connect":
        values["integration_type"] = "sandbox"
    elif method.name == "ConnectWithApiKey":
        key = scenario.authenticated.system.sandbox.api_key.key
        values |= {"integration_type": "sandbox_api_key", "api_key": key}
    elif method.name == "HandleCallback":
        query = await begin(scenario.authenticated, scenario.backend) if exists else {"code": "code", "state": FORGED}
        values |= query
    elif method.name == "ConfirmConnection":
        values["confirmation_token"] = await pending_confirmation(scenario) if exists else FORGED
    elif "integration_id" in fields:
        is_of_calendars = method.containing_service.name == "GoogleCalendarService"
        own = scenario.calendar_id if is_of_calendars else scenario.integration_id
        values["integration_id"] = own if exists else ABSENT
    if "requests" in fields:  # a batch
        target = scenario.integration_id if exists else ABSENT
        values["requests"] = [{"integration_id": target, "user_id": NAMED_BY.get(column, "ada")}]
    if "integration_ids" in fields:  # a stream
        values["integration_ids"] = [scenario.integration_id if exists else ABSENT]
    if exists and "Webhook" in method.name and "integration_id" in fields:
        values["integration_id"] = scenario.signed_webhook_id
    if method.name == "DeleteOAuthClient" and exists:
        stub: Any = OperatorServiceStub(scenario.backend.channel)
        await stub.PutOAuthClient(operator_pb.PutOAuthClientRequest(**ALWAYS["PutOAuthClient"]))
    if method.name in {"CreateEvent", "UpdateEvent"}:
        event_id = await new_event(scenario) if method.name == "UpdateEvent" else ""
        values["event"] = {"event_id": event_id, **A_DAY}
    if method.name in {"DeleteEvent", "GetEvent", "ListEventInstances"}:
        values["event_id"] = await new_event(scenario)
    return request_class(**values, **ALWAYS.get(method.name, {}))


OAUTH_CLIENT: Mapping[str, Any] = {"integration_type": "sandbox", "name": "tenant"}
ALWAYS: Mapping[str, Mapping[str, Any]] = {
    "ReceiveWebhook": {
        "integration_type": SIGNED_WEBHOOK,
        "endpoint": "app",
        "url": "https://x.example",
        "method": "POST",
    },
    "ListWebhookEvents": {"consumer": "mail"},
    "AckWebhookEvents": {"consumer": "mail", "through_number": 1},
    "UpdateIntegration": {"name": "renamed"},
    "CallProvider": {"method": "GET", "path": "/userinfo"},
    "StreamProvider": {"method": "GET", "path": "/userinfo"},
    "ServerReflectionInfo": {"list_services": ""},
    "PutOAuthClient": {**OAUTH_CLIENT, "client_id": "id-of-tenant", "client_secret": "secret of the tenant"},
    "DeleteOAuthClient": OAUTH_CLIENT,
}
A_DAY: Mapping[str, Any] = {"start": {"date": "2026-03-28"}, "end": {"date": "2026-03-29"}}


async def new_event(scenario: Scenario) -> str:
    """Create an event in ada's calendar."""
    stub: Any = GoogleCalendarServiceStub(scenario.backend.channel)
    request = calendars.CreateEventRequest(user_id="ada", integration_id=scenario.calendar_id, event=A_DAY)
    return str((await stub.CreateEvent(request)).event.event_id)


async def pending_confirmation(scenario: Scenario) -> str:
    """The confirmation token of a callback at the sidecar."""
    connect_response = await scenario.backend.service.Connect(
        pb.ConnectRequest(user_id="ada", integration_type="sandbox")
    )
    response = await scenario.authenticated.system.follow(
        await scenario.authenticated.system.decide(connect_response, account="ada")
    )
    return str(response.json()["confirmation_token"])


REASONS = {
    "absent": (grpc.StatusCode.NOT_FOUND, "INTEGRATION_NOT_FOUND"),
    "denied": (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED"),
    "mismatch": (grpc.StatusCode.PERMISSION_DENIED, "USER_MISMATCH"),
    "unknown": (grpc.StatusCode.UNAUTHENTICATED, ""),
}
FORGERIES = {"HandleCallback": "STATE_INVALID", "ConfirmConnection": "CONFIRMATION_INVALID"}


@pytest.mark.quick_on("sqlite")
@pytest.mark.parametrize(("name", "column"), [pytest.param(*cell, id="-".join(cell)) for cell in CELLS])
async def test_a_caller_reads_its_own_integrations_and_cannot_detect_others(
    scenario: Scenario, name: str, column: str
) -> None:
    ((path, method),) = ((path, method) for path, method in scenario.methods.items() if method.name == name)
    outcome, caller = CELLS[name, column], scenario.callers[column]
    if outcome in {"ok", "empty", "quiet"}:
        if name == "DisconnectIntegration":
            scenario = replace(
                scenario, integration_id=await connect(scenario.authenticated, scenario.backend, account="grace")
            )
        response = await call(caller, path, method, await request_for(scenario, method, column))
        if outcome == "empty":
            empty = NEW if "user_id" in method.input_type.fields_by_name else {"integration_type": "sandbox_api_key"}
            unknown_response = await call(
                scenario.backend, path, method, message_factory.GetMessageClass(method.input_type)(**empty)
            )
            assert without_time(response) == without_time(unknown_response)
        if outcome == "quiet":
            assert not response.HasField("event")  # see the test of streams below
        await remove_created(scenario)
        return

    request = await request_for(scenario, method, column)
    before = await all_of_ada(scenario)
    refused = await outcome_of(call(caller, path, method, request))

    assert isinstance(refused, Refused), refused
    expected = (grpc.StatusCode.INVALID_ARGUMENT, FORGERIES[name]) if outcome == "forged" else REASONS[outcome]
    assert (refused.code, refused.reason) == expected
    if outcome != "mismatch":  # only a caller with a valid state or token sees this, and these cannot be guessed
        assert refused == await outcome_of(
            call(caller, path, method, await request_for(scenario, method, column, exists=False))
        )
    if outcome == "absent":
        own = await request_for(scenario, method, "backend", exists=False)
        assert refused == await outcome_of(call(scenario.backend, path, method, own))
    assert await all_of_ada(scenario) == before
    if name in FORGERIES:  # a rejected call consumes nothing
        finished = await call(scenario.backend, path, method, with_user(request, "ada"))
        assert finished.success  # type: ignore[attr-defined]
    await remove_created(scenario)


NEW: Mapping[str, Any] = {"user_id": "somebody-new"}


def with_user(request: Message, user_id: str) -> Message:
    request.user_id = user_id  # type: ignore[attr-defined]
    return request


def without_time(response: Message) -> bytes:
    response.ClearField("check_time") if "check_time" in response.DESCRIPTOR.fields_by_name else None
    return response.SerializeToString()


async def all_of_ada(scenario: Scenario) -> list[bytes]:
    listed = await scenario.backend.service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ada"))
    return [integration.SerializeToString() for integration in listed.integrations]


async def remove_created(scenario: Scenario) -> None:
    """Remove the integrations that a cell has created."""
    keep = {scenario.integration_id, scenario.calendar_id}
    for user_id in ("ada", "grace"):
        listed = await scenario.backend.service.ListIntegrations(pb.ListIntegrationsRequest(user_id=user_id))
        for integration in listed.integrations:
            if integration.integration_id not in keep and integration.account_id != "ada":
                await scenario.backend.service.DisconnectIntegration(
                    pb.DisconnectIntegrationRequest(integration_id=integration.integration_id, user_id=user_id)
                )


# --- further tests ---------------------------------------------------------------------------------------------------


async def test_an_unknown_method_is_reported_to_authenticated_callers_only(scenario: Scenario) -> None:
    for path in ("/integrations.v1.IntegrationService/NoSuchMethod", "/no.such.Service/Method"):
        for column, code in (
            ("unidentified", grpc.StatusCode.UNAUTHENTICATED),
            ("unlisted", grpc.StatusCode.UNIMPLEMENTED),
            ("backend", grpc.StatusCode.UNIMPLEMENTED),
        ):
            caller = scenario.callers[column]
            make: Any = caller.channel.unary_unary(path)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await make(b"", metadata=caller.metadata)
            assert refused.value.code() == code


async def test_the_request_of_an_unknown_caller_is_not_parsed(scenario: Scenario) -> None:
    codes = {}
    for column in ("unidentified", "unlisted", "backend"):
        make: Any = scenario.callers[column].channel.unary_unary("/integrations.v1.IntegrationService/GetIntegration")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await make(b"\xff" * 32)
        codes[column] = refused.value.code()
    assert codes == {
        "unidentified": grpc.StatusCode.UNAUTHENTICATED,
        "unlisted": grpc.StatusCode.PERMISSION_DENIED,
        "backend": grpc.StatusCode.INVALID_ARGUMENT,
    }


async def test_lists_leave_out_integrations_of_types_that_are_not_allowed(scenario: Scenario) -> None:
    key = scenario.authenticated.system.sandbox.api_key.key
    with_key = pb.ConnectWithApiKeyRequest(user_id="ada", integration_type="sandbox_api_key", api_key=key)
    other = (await scenario.backend.service.ConnectWithApiKey(with_key)).integration.integration_id
    service = scenario.callers["other_type"].service
    page = await service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ada", page_size=1))
    assert [integration.integration_id for integration in page.integrations] == [other]
    assert page.next_page_token == ""
    checked = await service.CheckAllHealth(pb.CheckAllHealthRequest(user_id="ada"))
    assert [check.integration_id for check in checked.integrations] == [other]
    types = await service.ListIntegrationTypes(pb.ListIntegrationTypesRequest())
    assert [known.integration_type for known in types.integration_types] == ["sandbox_api_key"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.ListIntegrations(pb.ListIntegrationsRequest(user_id="ada", integration_type="sandbox"))
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    got = await service.GetCredentials(pb.GetCredentialsRequest(integration_id=other, user_id="ada"))
    assert got.credentials.api_key.api_key == key
    await remove_created(scenario)


async def test_a_stream_contains_only_events_that_its_caller_may_read(scenario: Scenario) -> None:
    queries = {
        "backend, for all": ("backend", pb.WatchIntegrationsRequest()),
        "backend, for ada": ("backend", pb.WatchIntegrationsRequest(user_id="ada")),
        "backend, for grace": ("backend", pb.WatchIntegrationsRequest(user_id="grace")),
        "backend, the type": ("backend", pb.WatchIntegrationsRequest(integration_type="sandbox")),
        "backend, another type": ("backend", pb.WatchIntegrationsRequest(integration_type=SIGNED_WEBHOOK)),
        "a service of other types": ("other_type", pb.WatchIntegrationsRequest()),
        "ada": ("ada", pb.WatchIntegrationsRequest()),
        "grace": ("grace", pb.WatchIntegrationsRequest()),
    }
    streams = {}
    for name, (column, request) in queries.items():
        caller = scenario.callers[column]
        streams[name] = caller.service.WatchIntegrations(request, metadata=caller.metadata, timeout=30)
        assert not (await streams[name].read()).HasField("event")
    update = pb.UpdateIntegrationRequest(user_id="ada", integration_id=scenario.integration_id, name="watched")
    await scenario.backend.service.UpdateIntegration(update)
    # The same for grace, whose stream reports it next: no event of ada's precedes it.
    key = scenario.authenticated.system.sandbox.api_key.key
    with_key = pb.ConnectWithApiKeyRequest(user_id="grace", integration_type="sandbox_api_key", api_key=key)
    graces_id = (await scenario.backend.service.ConnectWithApiKey(with_key)).integration.integration_id
    with_key.user_id, with_key.integration_type, with_key.api_key = "ada", SIGNED_WEBHOOK, "other:key"
    signed_webhook_integration_id = (
        await scenario.backend.service.ConnectWithApiKey(with_key)
    ).integration.integration_id
    first_reported = {name: (await next_event(stream)).integration_id for name, stream in streams.items()}
    assert first_reported == {
        "backend, for all": scenario.integration_id,
        "backend, for ada": scenario.integration_id,
        "backend, for grace": graces_id,
        "backend, the type": scenario.integration_id,
        "backend, another type": signed_webhook_integration_id,
        "a service of other types": graces_id,
        "ada": scenario.integration_id,
        "grace": graces_id,
    }
    for stream in streams.values():
        stream.cancel()
    await remove_created(scenario)


# --- names in the audit log ------------------------------------------------------------------------------------------

# All of them look like "ada" in some terminal. The second group has control characters, which no user may have.
SIMILAR_USERS = (
    "ada",
    "ada\u200b",
    "\u202eada",
    "a\u00adda",
    "ada\ufeff",
    "ada\u3000",
    "ada\ufe0f",
    "ada\U000e0061",
    "ada ",
)
REFUSED_USERS = ("ada\x1b", "ada\n", "ada\x7f", "ada\x85", "ada\0")


async def recorded_names(database_url: str, integration_id: int, count: int) -> set[tuple[str, str]]:
    """User and outcome of the entries about an integration, once there are `count` of them."""
    columns = (audit_entries.c.user_id, audit_entries.c.outcome)
    query = select(*columns).where(audit_entries.c.integration_id == integration_id)
    async with asyncio.timeout(60):  # entries are written within a second
        while True:
            rows = await fetch(database_url, query)
            if len(rows) >= count:
                return {(row.user_id, row.outcome) for row in rows}
            await asyncio.sleep(0.1)


async def test_users_with_similar_names_are_recorded_as_different_users(
    scenario: Scenario, shared_database_url: str
) -> None:
    by_user, by_service = ABSENT + 1, ABSENT + 2
    for user_id in SIMILAR_USERS:
        caller = await scenario.authenticated.user(user_id)
        requests = (
            (caller, pb.UpdateIntegrationRequest(integration_id=by_user, name="n")),
            (scenario.backend, pb.UpdateIntegrationRequest(integration_id=by_service, name="n", user_id=user_id)),
        )
        for asking, request in requests:
            refused = await outcome_of(asking.service.UpdateIntegration(request, metadata=asking.metadata))
            assert isinstance(refused, Refused)
            assert refused.reason == "INTEGRATION_NOT_FOUND"
    for integration_id in (by_user, by_service):
        recorded = await recorded_names(shared_database_url, integration_id, len(SIMILAR_USERS))
        assert {unescape(user_id) for user_id, _ in recorded} == set(SIMILAR_USERS)
        assert all(user_id.isprintable() and not user_id.endswith(" ") for user_id, _ in recorded)
    # The negative control: without what is not printable, as names were recorded before, most are one user.
    assert len({"".join(filter(str.isprintable, user_id)) for user_id in SIMILAR_USERS}) < 4


async def test_users_with_control_characters_are_refused_everywhere(
    scenario: Scenario, shared_database_url: str
) -> None:
    integration_id = ABSENT + 3
    for user_id in REFUSED_USERS:
        caller = await scenario.authenticated.user(user_id)
        request = pb.UpdateIntegrationRequest(integration_id=integration_id, name="n")
        refused = await outcome_of(caller.service.UpdateIntegration(request, metadata=caller.metadata))
        assert isinstance(refused, Refused)
        assert refused.code == grpc.StatusCode.UNAUTHENTICATED
        request.user_id = user_id
        refused = await outcome_of(scenario.backend.service.UpdateIntegration(request))
        assert isinstance(refused, Refused)
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    recorded = await recorded_names(shared_database_url, integration_id, len(REFUSED_USERS))
    assert {unescape(user_id) for user_id, _ in recorded} == set(REFUSED_USERS)
    assert {outcome for _, outcome in recorded} == {"INVALID_FIELD"}


async def put_client(scenario: Scenario, name: str, *callers: str) -> operator_pb.OAuthClient:
    """Add or change a client, as an operator."""
    stub: Any = OperatorServiceStub(scenario.backend.channel)
    fields: dict[str, Any] = {"client_id": f"id-of-{name}", "client_secret": f"secret of {name}", "callers": callers}
    request = operator_pb.PutOAuthClientRequest(integration_type="sandbox", name=name, **fields)
    response: operator_pb.PutOAuthClientResponse = await stub.PutOAuthClient(request)
    return response.oauth_client


@pytest.mark.parametrize(("column", "own_name"), [("ada", "user"), ("backend", "backend")])
async def test_only_named_callers_use_a_client_and_others_cannot_tell_whether_it_exists(
    scenario: Scenario, column: str, own_name: str
) -> None:
    caller = scenario.callers[column]
    put = await put_client(scenario, "guarded", "somebody-else")
    assert (put.name, put.client_id, list(put.callers)) == ("guarded", "id-of-guarded", ["somebody-else"])
    assert "secret of" not in str(put)

    async def connect_with(name: str) -> Message | Refused:
        request = pb.ConnectRequest(user_id="ada", integration_type="sandbox", oauth_client=name)
        return await outcome_of(caller.service.Connect(request, metadata=caller.metadata))

    refused, absent = await connect_with("guarded"), await connect_with("absent")
    assert isinstance(refused, Refused)
    assert refused == absent
    assert (refused.code, refused.reason) == REASONS["denied"]
    await put_client(scenario, "guarded", "somebody-else", own_name)
    accepted = await connect_with("guarded")
    assert isinstance(accepted, pb.ConnectResponse)
    assert "client_id=id-of-guarded" in accepted.authorization_url


@pytest.mark.parametrize("name", ["", "a/b", "-a", "ü", "a" * 65, "a\n", "a b"])
async def test_a_name_that_no_client_can_have_is_an_invalid_field(scenario: Scenario, name: str) -> None:
    stub: Any = OperatorServiceStub(scenario.backend.channel)
    fields: dict[str, Any] = {"client_id": "i", "client_secret": "s"}
    request = operator_pb.PutOAuthClientRequest(integration_type="sandbox", name=name, **fields)
    refused = await outcome_of(stub.PutOAuthClient(request))
    assert isinstance(refused, Refused)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_the_audit_log_names_the_client(scenario: Scenario, shared_database_url: str) -> None:
    await put_client(scenario, "audited")
    query = select(audit_entries.c.caller, audit_entries.c.outcome).where(
        audit_entries.c.action == "put_oauth_client", audit_entries.c.details == "audited"
    )
    async with asyncio.timeout(60):
        while not (rows := await fetch(shared_database_url, query)):  # noqa: ASYNC110  # the server writes it
            await asyncio.sleep(0.1)
    assert [tuple(row) for row in rows] == [("backend", "OK")]
