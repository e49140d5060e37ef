"""Calls are told of, and credentials are not handed out untold."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from integration_server.domain.audit import Action, AuditEntry
from integration_server.domain.errors import IntegrationNotFound, StoreUnavailable
from integration_server.domain.integration import UserId
from integration_server.rpc.audit import AUDITED_READS, AUDITED_WRITES, UNAUDITED_METHODS, AuditInterceptor
from integration_server.service.audit.audit_trail import AuditTrail, set_audit_user
from integrations.v1 import google_calendar_pb2, integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.fakes.clock import NOON

CALENDARS = google_calendar_pb2.DESCRIPTOR.services_by_name["GoogleCalendarService"]
SERVICE = pb.DESCRIPTOR.services_by_name["IntegrationService"]
GET = f"/{SERVICE.full_name}/GetCredentials"
CONNECT = f"/{SERVICE.full_name}/ConnectWithApiKey"


class Trail(AuditTrail):
    """Keeps what it is told, unless it is full."""

    def __init__(self, *, full: bool = False) -> None:
        self.entries: list[AuditEntry] = []
        self.full = full

    def enqueue(self, entry: AuditEntry) -> bool:
        """Take it."""
        if not self.full:
            self.entries.append(entry)
        return not self.full

    async def record(self, entry: AuditEntry) -> None:
        """Take it."""
        self.entries.append(entry)


class FakeContext:
    """As much of a call as is looked at."""

    def __init__(self, purpose: str | None = None) -> None:
        self._purpose = purpose

    def peer(self) -> str:
        """Who calls."""
        return "billing"

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """With a purpose, if there is one."""
        return [] if self._purpose is None else [("x-purpose", self._purpose)]


async def call(
    trail: AuditTrail,
    method: str,
    request: Any,
    outcome: Callable[[], Any],
    purpose: str | None = None,
    context: FakeContext | None = None,
) -> Any:
    """Call a handler that does this, behind the interceptor."""

    async def behaviour(_request: Any, _context: Any) -> Any:
        return outcome()

    async def continuation(_details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(behaviour)

    class Details:
        """Of the call."""

    details: Any = Details()
    details.method = method
    interceptor = AuditInterceptor(trail, lambda asked: asked.peer(), lambda: NOON)
    handler: Any = await interceptor.intercept_service(continuation, details)
    return await handler.unary_unary(request, context or FakeContext(purpose))


def refused() -> Any:
    raise IntegrationNotFound


def test_every_rpc_is_told_of_or_is_not_on_purpose() -> None:
    audited = {*AUDITED_WRITES, *AUDITED_READS}
    assert not audited & UNAUDITED_METHODS
    services = (SERVICE, CALENDARS)
    methods = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert audited | UNAUDITED_METHODS == methods


async def test_of_a_call_to_a_provider_method_path_and_status_are_told_and_nothing_else() -> None:
    trail = Trail()
    request = pb.CallProviderRequest(user_id="ada", integration_id=7, method="POST", path="/things", body=b"private")
    request.query.add(name="q", value="private")
    await call(trail, f"/{SERVICE.full_name}/CallProvider", request, lambda: pb.CallProviderResponse(status_code=404))
    (entry,) = trail.entries
    assert (entry.action, entry.outcome, entry.details) == (Action.CALL, "OK", "POST /things 404")
    listing = google_calendar_pb2.ListEventsRequest(user_id="ada", integration_id=7)
    await call(trail, f"/{CALENDARS.full_name}/ListEvents", listing, google_calendar_pb2.ListEventsResponse)
    assert (trail.entries[1].action, trail.entries[1].details) == (Action.CALL, "ListEvents")


async def test_a_read_is_told_of_with_its_purpose() -> None:
    trail = Trail()
    request = pb.GetCredentialsRequest(integration_id=7, user_id="ada")
    response = await call(trail, GET, request, pb.GetCredentialsResponse, "nightly\nsync" + 200 * "x")
    assert response == pb.GetCredentialsResponse()
    expected = AuditEntry(NOON, "billing", Action.READ_CREDENTIALS, "ada", 7, purpose=("nightlysync" + 200 * "x")[:128])
    assert trail.entries == [expected]


async def test_what_only_the_answer_says_is_told() -> None:
    trail = Trail()
    integration = integration_pb2.Integration(integration_id=9, user_id="ada", integration_type="acme")
    request = pb.ConnectWithApiKeyRequest(user_id="ada", api_key="secret")
    await call(trail, CONNECT, request, lambda: pb.ConnectWithApiKeyResponse(integration=integration))
    assert trail.entries == [AuditEntry(NOON, "billing", Action.CONNECT, "ada", 9, "acme")]
    assert "secret" not in str(trail.entries)


async def test_a_refusal_is_told_of_by_its_reason() -> None:
    trail = Trail()
    with pytest.raises(IntegrationNotFound):
        await call(trail, GET, pb.GetCredentialsRequest(integration_id=7, user_id="eve"), refused)
    assert [(entry.user_id, entry.outcome) for entry in trail.entries] == [("eve", "INTEGRATION_NOT_FOUND")]


async def test_an_answer_that_is_no_success_is_told_of_by_its_reason_and_its_user() -> None:
    def held() -> Any:
        set_audit_user(UserId("ada"))
        return pb.HandleCallbackResponse(success=False, reason="confirmation_required", integration_id=7)

    trail = Trail()
    await call(trail, f"/{SERVICE.full_name}/HandleCallback", pb.HandleCallbackRequest(state="sealed"), held)
    assert trail.entries == [
        AuditEntry(NOON, "billing", Action.COMPLETE, "ada", 7, outcome="confirmation_required"),
    ]


async def test_a_mistake_of_ours_is_told_of() -> None:
    def fail() -> Any:
        raise LookupError("secret")

    trail = Trail()
    with pytest.raises(LookupError):
        await call(trail, GET, pb.GetCredentialsRequest(integration_id=7, user_id="ada"), fail)
    assert [(entry.user_id, entry.outcome) for entry in trail.entries] == [("ada", "INTERNAL")]


async def test_a_call_that_has_ended_is_not_touched_any_more() -> None:
    """gRPC frees it, and a server that asks it for more is gone."""
    trail, context = Trail(), FakeContext("nightly")

    def ended() -> Any:
        context.invocation_metadata = context.peer = None  # type: ignore[method-assign,assignment]
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await call(trail, GET, pb.GetCredentialsRequest(integration_id=7, user_id="ada"), ended, context=context)
    assert [(entry.outcome, entry.purpose) for entry in trail.entries] == [("CANCELLED", "nightly")]


async def test_what_no_database_would_keep_is_cut() -> None:
    trail = Trail()
    with pytest.raises(IntegrationNotFound):
        await call(trail, GET, pb.GetCredentialsRequest(integration_id=7, user_id="a\0da" + 300 * "x"), refused)
    assert trail.entries[0].user_id == ("ada" + 300 * "x")[:128]


async def test_credentials_are_not_handed_out_untold() -> None:
    request = pb.GetCredentialsRequest(integration_id=7, user_id="ada")
    with pytest.raises(StoreUnavailable):
        await call(Trail(full=True), GET, request, pb.GetCredentialsResponse)


async def test_by_a_trail_that_only_says_it_takes_them_they_would_be() -> None:
    """The twin."""

    class DroppingTrail(Trail):
        """Takes nothing, and says otherwise."""

        def enqueue(self, entry: AuditEntry) -> bool:
            """Drop it."""
            return True

    trail = DroppingTrail()
    await call(trail, GET, pb.GetCredentialsRequest(integration_id=7, user_id="ada"), pb.GetCredentialsResponse)
    assert not trail.entries
