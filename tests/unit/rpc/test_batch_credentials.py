"""`BatchGetCredentials`: each item has its own result, policy check, audit entry and place in the response."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2

from integration_server.domain.allowed_types import AllowedTypes
from integration_server.domain.errors import IntegrationNotFound, ProviderUnavailable, StoreUnavailable
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.domain.integration_cache import RaceSafeCache
from integration_server.rpc.call_audit import record_audit
from integration_server.rpc.credential_results import MAX_BATCH, CredentialResults
from integration_server.rpc.hot_path import ReusedResponses
from integration_server.rpc.integration_service import IntegrationService
from integration_server.rpc.methods import describe_method
from integration_server.service.audit.audit_trail import AuditTrail
from integration_server.service.credentials.credential_service import CredentialRequest, UsableCredentials
from integrations.v1 import integration_service_pb2 as pb
from integrations.v1 import integration_service_pb2_grpc as pb_grpc
from tests.fakes.clock import NOON
from tests.fakes.inmemory_grpc import FakeContext, InMemoryGrpc, RpcError
from tests.fakes.system import ADA, EVE, FakeSystem
from tests.statements import captured_statements

HOUR = timedelta(hours=1)


class BatchServer:
    """A server with an audit trail and a cache of integrations that is up to date."""

    def __init__(self, *, max_bytes: int = 4 * 1024 * 1024, cached: bool = True) -> None:
        self.cache = RaceSafeCache(2**24, lambda: 0.0)
        self.cache.apply_changes(None, 0.0)
        self.system = FakeSystem(
            settings={"grpc_max_message_bytes": max_bytes}, options={"cache": self.cache} if cached else {}
        )
        service = self.system.another_process()
        self.responses = None
        if service.cached is not None:
            self.responses = ReusedResponses(
                service.cached.is_current,
                lambda _: "caller",
                lambda: None,
                lambda: None,
                self.system.trail.queue,
                self.system.clock,
                max_bytes=2**24,
            )
        self.credentials = service.use_cases.credentials
        results = CredentialResults(service.use_cases.credentials, max_bytes=max_bytes, responses=self.responses)
        servicer = IntegrationService(service.use_cases, self.system.clock, results)

        def register(server: Any) -> None:
            pb_grpc.add_IntegrationServiceServicer_to_server(servicer, server)

        audit = record_audit(self.system.trail, lambda _: "caller", self.system.clock)
        self.client = InMemoryGrpc("integrations.v1.IntegrationService", register, [audit])

    async def batch(
        self, items: Sequence[tuple[int, str]], context: FakeContext | None = None, **fields: Any
    ) -> Sequence[pb.CredentialsResult]:
        """The results of a batch."""
        requests = [pb.GetCredentialsRequest(integration_id=one, user_id=user, **fields) for one, user in items]
        request = pb.BatchGetCredentialsRequest(requests=requests)
        response: pb.BatchGetCredentialsResponse = await self.client.call("BatchGetCredentials", request, context)
        return list(response.results)

    def entries(self) -> list[tuple[str, int, str, str]]:
        """The recorded reads of credentials."""
        return [
            (entry.user_id, entry.integration_id, entry.outcome, entry.purpose)
            for entry in self.system.trail.entries
            if entry.action == "read_credentials"
        ]


def reason(result: pb.CredentialsResult) -> str:
    """The reason of a result's error; "OK" for credentials."""
    if result.HasField("credentials"):
        return "OK"
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in result.error.details)
    return info.reason


def detail(result: pb.CredentialsResult, kind: Any) -> Any:
    """The detail of this kind of a result's error."""
    found = kind()
    assert any(one.Unpack(found) for one in result.error.details)
    return found


async def connect_many(system: FakeSystem, count: int) -> list[int]:
    """Connect integrations of several accounts of ada's."""
    return [(await system.connect_account(f"account-{number}")).integration_id for number in range(count)]


@pytest.fixture
async def server() -> AsyncIterator[BatchServer]:
    server = BatchServer()
    async with server.system.tasks:
        yield server


# --- results ---------------------------------------------------------------------------------------------------------


async def test_results_have_the_order_of_the_requests_with_duplicates_and_own_errors(server: BatchServer) -> None:
    ids = await connect_many(server.system, 3)
    key = (await server.system.connect_key(EVE)).integration_id
    asked = [(ids[2], ADA), (999, ADA), (key, EVE), (ids[0], EVE), (ids[2], ADA), (ids[1], "")]
    results = await server.batch(asked)
    reasons = ["OK", "INTEGRATION_NOT_FOUND", "OK", "INTEGRATION_NOT_FOUND", "OK", "INVALID_FIELD"]
    assert [reason(result) for result in results] == reasons
    assert results[0] == results[4]
    assert results[2].credentials.api_key.api_key == "key-1"
    (violation,) = detail(results[5], error_details_pb2.BadRequest).field_violations
    assert violation.field == "requests[5].user_id"
    # Another user's integration is reported like one that does not exist.
    assert results[3] == results[1]
    assert [reason(one) for one in await server.batch(asked)] == reasons, "also if they are sent again"


async def test_each_result_equals_that_of_a_single_call(server: BatchServer) -> None:
    system = server.system
    inactive, ended, scarce, pending = await connect_many(system, 4)
    system.set_columns(inactive, is_active=False)
    system.set_columns(ended, reauthorization_required=True)
    system.corrupt(scarce)
    began = await system.begin()
    for one in (inactive, ended, scarce, began.integration_id, 999):
        (result,) = await server.batch([(one, ADA)])
        with pytest.raises(RpcError) as single:
            await server.client.call("GetCredentials", pb.GetCredentialsRequest(integration_id=one, user_id=ADA))
        assert result.error.SerializeToString() == dict(single.value.wire[2])["grpc-status-details-bin"]
    (ok,) = await server.batch([(pending, ADA)], required_scopes=["read"], min_ttl=Duration(seconds=60))
    request = pb.GetCredentialsRequest(
        integration_id=pending, user_id=ADA, required_scopes=["read"], min_ttl=Duration(seconds=60)
    )
    assert ok.credentials == (await server.client.call("GetCredentials", request)).credentials


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"integration_id": 0}, "requests[1].integration_id"),
        ({"integration_id": -5}, "requests[1].integration_id"),
        ({"user_id": "a\x1b"}, "requests[1].user_id"),
        ({"user_id": 129 * "a"}, "requests[1].user_id"),
        ({"min_ttl": Duration(seconds=-1)}, "requests[1].min_ttl"),
        ({"required_scopes": ["read", "a b"]}, "requests[1].required_scopes[1]"),
        ({"required_scopes": 101 * ["read"]}, "requests[1].required_scopes"),
    ],
)
async def test_an_invalid_item_names_its_field_and_spoils_no_other(
    server: BatchServer, fields: dict[str, Any], path: str
) -> None:
    good: dict[str, Any] = {"integration_id": (await server.system.connect()).integration_id, "user_id": ADA}
    requests = [pb.GetCredentialsRequest(**good), pb.GetCredentialsRequest(**{**good, **fields})]
    response = await server.client.call("BatchGetCredentials", pb.BatchGetCredentialsRequest(requests=requests))
    first, second = response.results
    assert (reason(first), reason(second)) == ("OK", "INVALID_FIELD")
    assert detail(second, error_details_pb2.BadRequest).field_violations[0].field == path


@pytest.mark.parametrize("count", [0, MAX_BATCH + 1, 3 * MAX_BATCH])
async def test_a_batch_has_at_least_one_and_at_most_a_thousand_items(server: BatchServer, count: int) -> None:
    with pytest.raises(RpcError) as rejected:
        await server.batch(count * [(1, ADA)])
    assert (rejected.value.reason, rejected.value.fields) == ("INVALID_FIELD", ["requests"])
    assert len(await server.batch(MAX_BATCH * [(1, ADA)])) == MAX_BATCH


# --- statements and sharing ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
async def test_all_misses_are_one_statement_and_hits_none(cached: bool) -> None:
    server = BatchServer(cached=cached)
    ids = await connect_many(server.system, 60)
    asked = [*((one, ADA) for one in ids), (999, ADA), (ids[0], EVE)]
    for expected in (1, 0 if cached else 1):
        with captured_statements() as statements:
            results = await server.batch(asked[:60] if not expected else asked)
        assert {reason(result) for result in results[:60]} == {"OK"}
        assert len([one for one in statements if one.startswith("SELECT")]) == expected


@pytest.mark.parametrize("kind", ["hidden", "foreign", "absent", "allowed"])
async def test_a_cached_item_that_is_not_the_callers_takes_the_statement_of_an_absent_one(
    server: BatchServer, kind: str
) -> None:
    mine = (await server.system.connect_key()).integration_id
    hidden = (await server.system.connect()).integration_id
    targets = {"hidden": (hidden, ADA), "foreign": (mine, EVE), "absent": (999, ADA), "allowed": (mine, ADA)}
    await server.batch([(mine, ADA), (hidden, ADA)])  # cached
    integration_id, user_id = targets[kind]
    request = CredentialRequest(IntegrationId(integration_id), user_id)
    with captured_statements() as statements:
        (outcome,) = await server.credentials.get_many([request], AllowedTypes(frozenset({"fake_key"})))
    is_found = kind == "allowed"
    assert isinstance(outcome, UsableCredentials if is_found else IntegrationNotFound)
    assert any(one.startswith("SELECT") for one in statements) != is_found


async def test_batches_and_single_calls_send_each_others_responses_again(server: BatchServer) -> None:
    one, other = await connect_many(server.system, 2)
    assert server.responses is not None
    await server.batch([(one, ADA)])
    raw = pb.GetCredentialsRequest(integration_id=one, user_id=ADA).SerializeToString()
    repeated = server.responses.find(server.responses.key_of(raw, FakeContext()))  # type: ignore[arg-type]
    assert repeated is not None
    assert pb.GetCredentialsResponse.FromString(repeated).credentials.bearer_token == "access-1"
    assert [reason(result) for result in await server.batch([(other, ADA), (one, ADA)])] == ["OK", "OK"]


async def test_a_changed_integration_is_not_sent_again(server: BatchServer) -> None:
    integration = await server.system.connect()
    await server.batch([(integration.integration_id, ADA)])
    await server.system.integrations.remove(integration.integration_id, ADA)
    server.cache.apply_changes({integration.integration_id}, 0.0)
    (result,) = await server.batch([(integration.integration_id, ADA)])
    assert reason(result) == "INTEGRATION_NOT_FOUND"


# --- refreshes -------------------------------------------------------------------------------------------------------


async def test_due_items_are_refreshed_once_each_and_concurrently(server: BatchServer) -> None:
    ids = await connect_many(server.system, 5)
    server.system.clock.advance(HOUR)
    results = await server.batch([(one, ADA) for one in (*ids, *ids)])
    assert {reason(result) for result in results} == {"OK"}
    assert len(server.system.provider.refreshes) == 5
    assert results[:5] == results[5:]


async def test_a_failed_refresh_has_the_status_and_details_of_a_single_call(server: BatchServer) -> None:
    good = (await server.system.connect_key()).integration_id
    expired = (await server.system.connect()).integration_id
    server.system.clock.advance(HOUR)
    server.system.provider.refresh_error = ProviderUnavailable(retry_after=timedelta(seconds=7))
    first, second = await server.batch([(expired, ADA), (good, ADA)])
    assert (reason(first), reason(second)) == ("PROVIDER_UNAVAILABLE", "OK")
    assert first.error.code == code_pb2.UNAVAILABLE
    assert detail(first, error_details_pb2.RetryInfo).retry_delay.seconds > 0


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [True, False])
async def test_what_does_not_fit_is_requested_again_until_all_is_there(cached: bool) -> None:
    max_bytes = 64 * 1024
    server = BatchServer(max_bytes=max_bytes, cached=cached)
    long_key = 2000 * "k"
    users = [UserId(f"user-{number}") for number in range(40)]
    connected = [await server.system.connect_key(user, f"{user}{long_key}") for user in users]
    user_of = {one.integration_id: one.user_id for one in connected}
    waiting = list(user_of)
    got: dict[int, str] = {}
    for round_number in range(20):
        request = pb.BatchGetCredentialsRequest(
            requests=[pb.GetCredentialsRequest(integration_id=one, user_id=user_of[one]) for one in waiting]
        )
        response = await server.client.call("BatchGetCredentials", request)
        assert response.ByteSize() <= max_bytes
        for one, result in zip(waiting, response.results, strict=True):
            if result.HasField("credentials"):
                got[one] = result.credentials.api_key.api_key
            else:
                assert (result.error.code, reason(result)) == (code_pb2.RESOURCE_EXHAUSTED, "ANSWER_TOO_LARGE")
                assert detail(result, error_details_pb2.RetryInfo).retry_delay.seconds == 0
        assert len(got) > round_number, "each batch makes progress"
        waiting = [one for one in waiting if one not in got]
        if not waiting:
            break
    assert not waiting
    assert len(set(got.values())) == 40


# --- audit -----------------------------------------------------------------------------------------------------------


async def test_each_item_has_an_entry_whether_it_is_read_or_sent_again(server: BatchServer) -> None:
    one = (await server.system.connect()).integration_id
    other = (await server.system.connect_key(EVE)).integration_id
    context = FakeContext(metadata=[("x-purpose", "sync")])
    expected = [(ADA, one, "OK", "sync"), (EVE, other, "OK", "sync"), (ADA, 999, "INTEGRATION_NOT_FOUND", "sync")]
    for _ in range(2):
        server.system.trail.entries.clear()
        await server.batch([(one, ADA), (other, EVE), (999, ADA)], context)
        assert sorted(server.entries()) == sorted(expected)


async def test_without_an_entry_no_credentials_are_returned() -> None:
    server = BatchServer()
    one = (await server.system.connect()).integration_id
    await server.batch([(one, ADA)])  # from now on it is sent again
    for integration_id in (one, (await server.system.connect_key()).integration_id):
        server.system.trail.queue.is_full = True
        with pytest.raises(RpcError) as rejected:
            await server.batch([(integration_id, ADA)])
        assert rejected.value.reason == "STORE_UNAVAILABLE"
        server.system.trail.queue.is_full = False
        assert [reason(result) for result in await server.batch([(integration_id, ADA)])] == ["OK"]


async def test_a_batch_that_is_cancelled_while_the_queue_is_full_ends_at_once() -> None:
    """Nobody waits for it: of a thousand items, each would wait for room."""
    started = asyncio.Event()

    class HangingCredentials:
        async def get_many(self, *_: object) -> None:
            started.set()
            await asyncio.Event().wait()

    class UnwritableLog:
        async def append(self, _entries: object) -> None:
            raise StoreUnavailable

    trail = AuditTrail(UnwritableLog(), max_bytes=0, max_wait=HOUR)
    results: Any = CredentialResults(HangingCredentials())  # type: ignore[arg-type]
    method = describe_method("/integrations.v1.IntegrationService/BatchGetCredentials")
    batch = record_audit(trail, lambda _: "caller", lambda: NOON)(method, results.batch)
    request = pb.BatchGetCredentialsRequest(requests=[pb.GetCredentialsRequest(integration_id=1, user_id=ADA)])
    call = asyncio.ensure_future(batch(request, FakeContext()))
    await started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(call, 60)


async def test_a_rejected_batch_has_one_entry(server: BatchServer) -> None:
    with pytest.raises(RpcError):
        await server.batch([])
    with pytest.raises(RpcError):
        await server.batch([(1, ADA)], FakeContext(metadata=[("x-purpose", "a\nb")]))
    assert [entry[:3] for entry in server.entries()] == 2 * [("", 0, "INVALID_FIELD")]


# --- other calls -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True])
async def test_other_calls_run_between_the_items(server: BatchServer, again: bool) -> None:
    ids = await connect_many(server.system, 10)
    asked = [(one, ADA) for one in ids for _ in range(100)]
    if again:
        await server.batch(asked)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count_turns())
    await server.batch(asked)
    counting.cancel()
    assert turns >= 9
