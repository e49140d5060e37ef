"""Calls are recorded, and credentials are not returned without an entry."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from integration_server.domain.audit import Action, AuditEntry
from integration_server.domain.audit_queue import AuditQueue
from integration_server.domain.errors import IntegrationNotFound, InvalidField, StoreUnavailable
from integration_server.domain.integration import UserId
from integration_server.domain.text_escaping import escape
from integration_server.rpc.call_audit import record_audit
from integration_server.rpc.methods import describe_method
from integration_server.service.audit.audit_trail import AuditTrail, audit_user
from integrations.v1 import google_calendar_pb2, integration_pb2
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1 import operator_service_pb2 as operator_pb
from integrations.v1.integration_pb2 import Status
from tests.fakes.clock import NOON

CALENDARS = google_calendar_pb2.DESCRIPTOR.services_by_name["GoogleCalendarService"]
OPERATOR = operator_pb.DESCRIPTOR.services_by_name["OperatorService"]
SERVICE = pb.DESCRIPTOR.services_by_name["IntegrationService"]
GET = f"/{SERVICE.full_name}/GetCredentials"
CONNECT = f"/{SERVICE.full_name}/ConnectWithApiKey"
ACK = f"/{SERVICE.full_name}/AckWebhookEvents"
NEVER = timedelta(hours=1)
_BYTES = 512  # of an entry, at least


class Trail(AuditTrail):
    """Has its entries as the log stores them."""

    def __init__(self, *, full: bool = False) -> None:
        self.queue = AuditQueue(timedelta(0), max_bytes=0 if full else 1_000_000)

    async def enqueue_later(self, entry: AuditEntry, *, waits: bool = True) -> None:
        """Raise `StoreUnavailable`: the queue stays full."""
        raise StoreUnavailable

    async def wait_for_room(self, action: Action) -> None:
        """Raise `StoreUnavailable` while the queue is full."""
        if not self.queue.has_room:
            raise StoreUnavailable

    async def record(self, entry: AuditEntry) -> None:
        """Keep the entry."""
        self.queue.append(entry)

    @property
    def entries(self) -> list[AuditEntry]:
        """The entries so far."""
        return [queued.record().escaped() for queued in self.queue.first(1000)]


class FakeContext:
    """The part of a call's context that is used."""

    def __init__(self, purpose: str | None = None) -> None:
        self._purpose = purpose

    def peer(self) -> str:
        """The caller."""
        return "billing"

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """The purpose, if there is one."""
        return [] if self._purpose is None else [("x-purpose", self._purpose)]


async def call(
    trail: AuditTrail,
    method: str,
    request: Any,
    outcome: Callable[[], Any],
    purpose: str | None = None,
    context: FakeContext | None = None,
) -> Any:
    """Call a method with this outcome, behind the interceptor."""

    async def behavior(_request: Any, _context: Any) -> Any:
        return outcome()

    recorded = record_audit(trail, lambda asked: asked.peer(), lambda: NOON)(describe_method(method), behavior)
    return await recorded(request, context or FakeContext(purpose))


def reject() -> Any:
    raise IntegrationNotFound


async def test_only_method_path_and_status_of_a_provider_call_are_recorded() -> None:
    trail = Trail()
    request = pb.CallProviderRequest(user_id="ada", integration_id=7, method="POST", path="/things", body=b"private")
    request.query.add(name="q", value="private")
    await call(trail, f"/{SERVICE.full_name}/CallProvider", request, lambda: pb.CallProviderResponse(status_code=404))
    (entry,) = trail.entries
    assert (entry.action, entry.outcome, entry.details) == (Action.CALL, "OK", "POST /things 404")
    listing = google_calendar_pb2.ListEventsRequest(user_id="ada", integration_id=7)
    await call(trail, f"/{CALENDARS.full_name}/ListEvents", listing, google_calendar_pb2.ListEventsResponse)
    assert (trail.entries[1].action, trail.entries[1].details) == (Action.CALL, "ListEvents")


@pytest.mark.parametrize(
    ("name", "request_", "action", "details"),
    [
        ("FindIntegrations", operator_pb.FindIntegrationsRequest(), Action.FIND_INTEGRATIONS, ""),
        (
            "FindIntegrations",
            operator_pb.FindIntegrationsRequest(account_id="a b", status=Status.STATUS_ERROR, count_only=True),
            Action.FIND_INTEGRATIONS,
            "count_only=True status=STATUS_ERROR account_id=a b",
        ),
        (
            "FindIntegrations",
            operator_pb.FindIntegrationsRequest.FromString(b"\x10\x63"),
            Action.FIND_INTEGRATIONS,
            "status=99",
        ),
        (
            "ListDueWork",
            operator_pb.ListDueWorkRequest(job=operator_pb.JOB_REFRESH),
            Action.READ_DUE_WORK,
            "job=JOB_REFRESH",
        ),
        (
            "ListAuditEntries",
            operator_pb.ListAuditEntriesRequest(caller="billing", action="call"),
            Action.READ_AUDIT_ENTRIES,
            "action=call caller=billing",
        ),
    ],
)
async def test_the_conditions_of_an_operators_read_are_recorded(
    name: str, request_: Any, action: Action, details: str
) -> None:
    trail = Trail()
    response = {"FindIntegrations": operator_pb.FindIntegrationsResponse}.get(name, operator_pb.ListDueWorkResponse)
    await call(trail, f"/{OPERATOR.full_name}/{name}", request_, response)
    (entry,) = trail.entries
    assert (entry.caller, entry.action, entry.details, entry.outcome) == ("billing", action, details, "OK")


async def test_an_operators_read_about_a_user_is_an_entry_of_that_user() -> None:
    trail = Trail()
    request = operator_pb.ListAuditEntriesRequest(user_id="ada", integration_id=7)
    await call(trail, f"/{OPERATOR.full_name}/ListAuditEntries", request, operator_pb.ListAuditEntriesResponse)
    with pytest.raises(StoreUnavailable):  # what is not recorded is not returned
        await call(
            Trail(full=True), f"/{OPERATOR.full_name}/ListAuditEntries", request, operator_pb.ListAuditEntriesResponse
        )
    (entry,) = trail.entries
    assert (entry.user_id, entry.integration_id) == ("ada", 7)


async def test_a_read_is_recorded_with_its_purpose() -> None:
    trail = Trail()
    request = pb.GetCredentialsRequest(integration_id=7, user_id="ada")
    response = await call(trail, GET, request, pb.GetCredentialsResponse, "nightly sync")
    assert response == pb.GetCredentialsResponse()
    expected = AuditEntry(NOON, "billing", Action.READ_CREDENTIALS, "ada", 7, purpose="nightly sync")
    assert trail.entries == [expected]


async def test_a_long_purpose_is_cut_and_marked_with_its_digest() -> None:
    trail = Trail()
    request = pb.GetCredentialsRequest(integration_id=7, user_id="ada")
    for last in "xy":
        await call(trail, GET, request, pb.GetCredentialsResponse, 300 * "x" + last)
    first, second = (entry.purpose for entry in trail.entries)
    assert first.startswith(255 * "x" + "\\{301 characters, sha256 ")
    assert first != second


@pytest.mark.parametrize("purpose", ["nightly\nsync", "a\0b", "\x1b[8msync", "a\x85b", "a\ud800"])
async def test_a_purpose_with_control_characters_is_rejected_and_recorded(purpose: str) -> None:
    trail = Trail()
    with pytest.raises(InvalidField) as rejected:
        await call(trail, GET, pb.GetCredentialsRequest(integration_id=7, user_id="ada"), reject, purpose)
    assert rejected.value.field == "x-purpose"
    assert [(entry.purpose, entry.outcome) for entry in trail.entries] == [(escape(purpose), "INVALID_FIELD")]


async def test_an_integration_that_only_the_response_names_is_recorded() -> None:
    trail = Trail()
    integration = integration_pb2.Integration(integration_id=9, user_id="ada", integration_type="acme")
    request = pb.ConnectWithApiKeyRequest(user_id="ada", api_key="secret")
    await call(trail, CONNECT, request, lambda: pb.ConnectWithApiKeyResponse(integration=integration))
    assert trail.entries == [AuditEntry(NOON, "billing", Action.CONNECT, "ada", 9, "acme")]
    assert "secret" not in str(trail.entries)


async def test_a_rejection_is_recorded_with_its_reason() -> None:
    trail = Trail()
    with pytest.raises(IntegrationNotFound):
        await call(trail, GET, pb.GetCredentialsRequest(integration_id=7, user_id="eve"), reject)
    assert [(entry.user_id, entry.outcome) for entry in trail.entries] == [("eve", "INTEGRATION_NOT_FOUND")]


async def test_a_response_without_success_is_recorded_with_its_reason_and_user() -> None:
    def block() -> Any:
        audit_user.set(UserId("ada"))
        return pb.HandleCallbackResponse(success=False, reason="confirmation_required", integration_id=7)

    trail = Trail()
    await call(trail, f"/{SERVICE.full_name}/HandleCallback", pb.HandleCallbackRequest(state="sealed"), block)
    assert trail.entries == [
        AuditEntry(NOON, "billing", Action.COMPLETE, "ada", 7, outcome="confirmation_required"),
    ]


async def test_an_unhandled_exception_is_recorded() -> None:
    def fail() -> Any:
        raise LookupError("secret")

    trail = Trail()
    with pytest.raises(LookupError):
        await call(trail, GET, pb.GetCredentialsRequest(integration_id=7, user_id="ada"), fail)
    assert [(entry.user_id, entry.outcome) for entry in trail.entries] == [("ada", "INTERNAL")]


async def test_the_context_of_an_ended_call_is_not_used() -> None:
    """gRPC frees the context of an ended call: access would crash the server."""
    trail, context = Trail(), FakeContext("nightly")

    def ended() -> Any:
        context.invocation_metadata = context.peer = None  # type: ignore[method-assign,assignment]
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await call(trail, GET, pb.GetCredentialsRequest(integration_id=7, user_id="ada"), ended, context=context)
    assert [(entry.outcome, entry.purpose) for entry in trail.entries] == [("CANCELLED", "nightly")]


async def recorded_users(users: Sequence[str]) -> list[str]:
    """The user of the entry of a call for each of these users."""
    trail = Trail()
    for user_id in users:
        request = Request(pb.GetCredentialsRequest(integration_id=7), user_id)
        with pytest.raises(IntegrationNotFound):
            await call(trail, GET, request, reject)
    return [entry.user_id for entry in trail.entries]


class Request:
    """A request with a user that protobuf itself would refuse, such as a lone surrogate."""

    def __init__(self, request: pb.GetCredentialsRequest, user_id: str) -> None:
        self.integration_id, self.user_id = request.integration_id, user_id


SIMILAR = (
    "ada",
    "ada\u200b",
    "ada\x1b",
    "a\u00adda",
    "\u202eada",
    "ada\0",
    "ada\ud800",
    "ada\U000e0061",
    "ada\ufe0f",
    "ada ",
)
LONG = ("x" * 128, "x" * 129, "x" * 300, "x" * 299 + "y")


async def test_users_with_similar_names_stay_different() -> None:
    recorded = await recorded_users([*SIMILAR, *LONG])
    assert len(set(recorded)) == len(SIMILAR) + len(LONG)
    assert recorded[:2] == ["ada", "ada\\u{200b}"]
    assert all(name.isprintable() for name in recorded)


def test_negative_control_filtered_and_shortened_names_become_one() -> None:
    def sanitize(text: str) -> str:
        return "".join(filter(str.isprintable, text))[:128]

    assert len(set(map(sanitize, SIMILAR[:-2]))) == 1
    assert len(set(map(sanitize, LONG))) == 1


async def test_every_text_of_an_entry_is_escaped() -> None:
    entry = AuditEntry(NOON, "a\x1b", Action.CALL, "b\x1b", 7, "c\x1b", "d\x1b", "e\x1b", "f\x1b").escaped()
    texts = [getattr(entry, field.name) for field in fields(entry) if field.type == "str" or field.type is str]
    assert texts == [f"{letter}\\u{{1b}}" for letter in "abcdef"]
    assert replace(entry, integration_id=8).escaped().user_id == "b\\u{1b}"  # not escaped twice


async def test_credentials_are_not_returned_without_an_entry() -> None:
    request = pb.GetCredentialsRequest(integration_id=7, user_id="ada")
    with pytest.raises(StoreUnavailable):
        await call(Trail(full=True), GET, request, pb.GetCredentialsResponse)


async def test_a_full_queue_changes_no_error_and_drops_no_change() -> None:
    """The change of a call that fails, or is cancelled, may be made all the same."""
    request, acknowledgement = pb.GetCredentialsRequest(integration_id=7, user_id="ada"), pb.AckWebhookEventsRequest()
    connect = pb.ConnectWithApiKeyRequest(user_id="ada", api_key="secret")
    for path, message, error, recorded in (
        (GET, request, IntegrationNotFound, []),
        (CONNECT, connect, IntegrationNotFound, [("connect", "INTEGRATION_NOT_FOUND")]),
        (CONNECT, connect, asyncio.CancelledError, [("connect", "CANCELLED")]),
        (ACK, acknowledgement, asyncio.CancelledError, [("ack_webhooks", "CANCELLED")]),
        (ACK, acknowledgement, None, [("ack_webhooks", "OK")]),
    ):
        trail = Trail()

        def fill(trail: Trail = trail, error: type[BaseException] | None = error) -> pb.AckWebhookEventsResponse:
            trail.queue = AuditQueue(timedelta(0), max_bytes=0)
            if error is not None:
                raise error
            return pb.AckWebhookEventsResponse()

        with nullcontext() if error is None else pytest.raises(error):
            await call(trail, path, message, fill)
        assert [(entry.action, entry.outcome) for entry in trail.entries] == recorded


class UnavailableLog:
    """An `AuditLog` that cannot be written."""

    async def append(self, _entries: Sequence[AuditEntry]) -> None:
        """Raise `StoreUnavailable`."""
        raise StoreUnavailable


class UnboundedTrail(AuditTrail):
    """For the negative control."""

    async def wait_for_room(self, _action: Action) -> None:
        """Return at once."""


@pytest.mark.parametrize(("trail_type", "is_bounded"), [(AuditTrail, True), (UnboundedTrail, False)])
async def test_changes_begin_only_while_the_queue_has_room(trail_type: type[AuditTrail], is_bounded: bool) -> None:
    """Callers that repeat what fails while the database is away do not fill the memory."""
    begun = 0

    def fail() -> Any:
        nonlocal begun
        begun += 1
        raise StoreUnavailable

    request = pb.ConnectWithApiKeyRequest(user_id="ada", api_key="secret")
    max_wait = timedelta(milliseconds=1)
    async with trail_type(UnavailableLog(), max_bytes=5 * _BYTES, max_wait=max_wait) as trail:
        for _ in range(100):
            with pytest.raises(StoreUnavailable):
                await call(trail, CONNECT, request, fail)
        assert begun == len(trail.queue)
        assert (begun <= 5) == is_bounded


async def test_changes_wait_in_turn_with_reads_and_none_is_refused() -> None:
    log = SlowLog()

    async def one(trail: AuditTrail, number: int) -> None:
        if number % 2:
            read = pb.GetCredentialsRequest(integration_id=number, user_id="ada")
            await call(trail, GET, read, pb.GetCredentialsResponse)
        else:
            connect = pb.ConnectWithApiKeyRequest(user_id="ada", api_key="secret")
            response = pb.ConnectWithApiKeyResponse(integration=integration_pb2.Integration(integration_id=number))
            await call(trail, CONNECT, connect, lambda: response)

    async with AuditTrail(log, max_bytes=5 * _BYTES, max_wait=NEVER) as trail:
        await asyncio.gather(*(one(trail, number) for number in range(1, 101)))
    assert sorted(log.ids) == list(range(1, 101))


class SlowLog:
    """An `AuditLog` that takes each batch some turns of the event loop later."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        """Store entries."""
        for _ in range(10):
            await asyncio.sleep(0)
        self.ids += [entry.integration_id for entry in entries]


@pytest.mark.parametrize("fails", [False, True])
async def test_reads_wait_while_the_queue_is_full_also_those_that_fail(fails: bool) -> None:
    log = SlowLog()

    async def read(trail: AuditTrail, number: int) -> None:
        request = pb.GetCredentialsRequest(integration_id=number, user_id="ada")
        if fails:
            with pytest.raises(IntegrationNotFound):
                await call(trail, GET, request, reject)
        else:
            assert await call(trail, GET, request, pb.GetCredentialsResponse) == pb.GetCredentialsResponse()

    async with AuditTrail(log, max_bytes=5000, max_wait=NEVER) as trail:
        await asyncio.gather(*(read(trail, number) for number in range(1, 51)))
    assert log.ids == list(range(1, 51))


async def test_a_call_that_has_ended_does_not_wait_for_room() -> None:
    """Nobody waits for its response, and thousands of them would wait."""

    def end() -> Any:
        raise asyncio.CancelledError

    request = pb.GetCredentialsRequest(integration_id=7, user_id="ada")
    trail = AuditTrail(
        SlowLog(), max_bytes=0, max_wait=timedelta(hours=1)
    )  # is never written, because it is not entered
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(call(trail, GET, request, end), 60)
    assert [line["event"] for line in logs] == ["audit_queue_full"]


async def test_negative_control_a_trail_that_drops_entries_returns_credentials() -> None:
    """The negative control."""

    class DroppingQueue(AuditQueue):
        """Drops entries and reports them as queued."""

        def enqueue(self, entry: AuditEntry) -> bool:
            """Drop it."""
            return True

    trail = Trail()
    trail.queue = DroppingQueue(timedelta(0), 1_000_000)
    await call(trail, GET, pb.GetCredentialsRequest(integration_id=7, user_id="ada"), pb.GetCredentialsResponse)
    assert not trail.entries
