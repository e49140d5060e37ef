"""The hot path has all defences of the general path, and is taken as soon as a call is repeated."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import grpc
import pytest

from integration_server.domain.allowed_types import ALL_INTEGRATION_TYPES, AllowedTypes
from integration_server.domain.audit import AuditEntry
from integration_server.domain.call_quota import CallQuota, CallRate
from integration_server.domain.callers import (
    Caller,
    Identity,
    IdentityKind,
    Permission,
    Permissions,
    Policy,
    current_caller,
)
from integration_server.domain.integration import IntegrationId, UserId
from integration_server.domain.integration_cache import RaceSafeCache
from integration_server.observability.observed_calls import call_metadata
from integration_server.rpc.authentication import TokenAuthenticator, authenticate, caller_name, peer_address, quota_key
from integration_server.rpc.authorization import RequestAuthorizer, authorize_method, authorize_request
from integration_server.rpc.call_audit import record_audit
from integration_server.rpc.call_log import CallLog
from integration_server.rpc.errors import Unauthenticated
from integration_server.rpc.hot_path import CallerNames, HotPath, PathInterceptors, ReusedResponses
from integration_server.rpc.integration_service import IntegrationService
from integration_server.rpc.interceptors import RequestReader, compose, convert_errors, enforce_quota, read_request
from integration_server.rpc.methods import Behavior, Context, Method, describe_method
from integration_server.service.audit.audit_trail import AuditTrail
from integration_server.storage.engine import Database
from integrations.v1 import integration_service_pb2 as pb
from tests.existence_attack import stores_over
from tests.fakes.inmemory_grpc import FakeContext, RpcError
from tests.fakes.system import ADA, EVE, FakeSystem

METHOD = describe_method("/integrations.v1.IntegrationService/GetCredentials")
ALL = Permissions(frozenset(Permission), ALL_INTEGRATION_TYPES)
OTHER_TYPE = Permissions(frozenset(Permission), AllowedTypes(frozenset({"fake_key"})))
NOTHING = Permissions()


@dataclass
class Verifier:
    """Accepts the tokens of `names`."""

    names: set[str]
    expire_time: datetime | None = None
    keys: object = 0

    async def resolve_identity(self, token: str) -> Identity:
        """The identity of the token's subject."""
        if token not in self.names:
            raise Unauthenticated("no such token")
        return Identity(IdentityKind.TOKEN, token, self.expire_time)


class Log:
    """An `AuditLog` that keeps nothing: the entries are looked at while they wait."""

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        """Drop the entries."""


class RequestContext(FakeContext):
    """A context with the bytes of a request, or an error that reading them raises."""

    def __init__(self, raw: object, **options: Any) -> None:
        super().__init__(**options)
        self._raw = raw

    async def read(self) -> object:
        """The request."""
        if isinstance(self._raw, asyncio.Event):
            await self._raw.wait()
        return self._raw


class HotServer:
    """`GetCredentials` over fakes, or over the stores of a database, on both paths. `slow_calls` are those decoded.

    Without `notices_changes`, a negative control, an admission stays valid whatever happens.
    """

    def __init__(
        self,
        database: Database | None = None,
        *,
        notices_changes: bool = True,
        per_second: int = 1000,
        concurrency: int = 10,
    ) -> None:
        self.cache = cache = RaceSafeCache(2**20, lambda: 0.0)
        cache.apply_changes(None, 0.0)
        self.system = FakeSystem(
            options={"cache": cache},
            wrap_stores=lambda stores, _: (
                stores if database is None else replace(stores_over(database, cache), journal=stores.journal)
            ),
        )
        self.trail = AuditTrail(Log())
        service = self.system.another_process()
        assert service.cached is not None
        self.verifier = Verifier({"backend", "other"})
        self.policy = self.policy_with(ALL)
        self.data_keys: object = object()
        self.slow_calls = 0
        self.records: list[tuple[str, str]] = []
        clock = self.system.clock
        self.rate = CallRate(per_second, monotonic=lambda: 0.0)
        tokens = TokenAuthenticator(self.verifier, None, clock)
        convert = convert_errors(caller_name, CallLog(), record=self._record)
        self.responses = ReusedResponses(
            service.cached.is_current,
            caller_name,
            current_caller,
            lambda: self.data_keys,
            self.trail.queue,
            clock,
            max_bytes=2**20,
        )
        admit = (
            authenticate(tokens, clock),
            authorize_method(lambda: self.policy),
            enforce_quota(quota_key, self.rate, concurrency=concurrency),
        )
        process = (
            self._count,
            authorize_request(RequestAuthorizer(self._find_type)),
            record_audit(self.trail, caller_name, clock),
        )
        reader = RequestReader(timedelta(seconds=60))
        self.hot_path = HotPath(
            PathInterceptors(convert, admit, process),
            CallerNames(
                caller_name,
                quota_key,
                peer_address,
                (lambda: (self.policy, self.verifier.keys)) if notices_changes else (lambda: 0),
            ),
            CallQuota(self.rate, concurrency=concurrency),
            reader,
            self.responses,
            clock,
            self._record,
        )
        behavior = IntegrationService(service.use_cases, clock).GetCredentials
        self._hot = self.hot_path(METHOD, behavior)
        self._general = compose(METHOD, behavior, (convert, *admit, read_request(reader), *process))

    @staticmethod
    def policy_with(permissions: Permissions) -> Policy:
        """A policy with these permissions of both backends."""
        names = ("backend", "other")
        return Policy({(IdentityKind.TOKEN, name): Caller(name, permissions) for name in names}, NOTHING)

    async def call(
        self,
        integration_id: int,
        user_id: str = ADA,
        *,
        token: str | None = "backend",
        raw: object = None,
        metadata: Sequence[tuple[str, str]] = (),
        only_general: bool = False,
    ) -> bytes:
        """The response; of the general path, without the hot path beside it, with `only_general`. Raises `RpcError`."""
        request = pb.GetCredentialsRequest(integration_id=integration_id, user_id=user_id).SerializeToString()
        context = RequestContext(request if raw is None else raw, token=token, metadata=metadata)
        try:
            call_metadata.set(context.invocation_metadata() or ())
            response = await (self._general if only_general else self._hot)(None, context)
        except grpc.aio.AbortError:
            assert context.error is not None
            raise context.error from None
        return response if isinstance(response, bytes) else bytes(response.SerializeToString())

    async def warm(self, integration_id: int) -> bytes:
        """Call until the hot path is taken, and return its response."""
        first = await self.call(integration_id)
        before = self.slow_calls
        assert await self.call(integration_id) == first
        assert self.slow_calls == before, "the second call takes the hot path"
        return first

    def _count(self, method: Method, behavior: Behavior) -> Behavior:
        async def count(request: Any, context: Context) -> Any:  # a message
            self.slow_calls += 1
            return await behavior(request, context)

        return count

    async def _find_type(self, integration_id: Any, user_id: Any) -> str:  # ids
        found = await self.system.integration_manager.get_integration(integration_id, user_id)
        return found.integration_type

    def _record(self, _method: object, status: str, reason: str, _seconds: float) -> None:
        self.records.append((status, reason))


async def connected(server: HotServer, user_id: UserId = ADA) -> int:
    return int((await server.system.connect(user_id)).integration_id)


# --- the path that is taken ------------------------------------------------------------------------------------------


async def test_the_second_of_equal_calls_takes_the_hot_path_and_is_recorded() -> None:
    server = HotServer()
    integration_id = await connected(server)
    await server.warm(integration_id)
    for _ in range(5):
        await server.call(integration_id)
    assert server.slow_calls == 1
    assert server.records == [("OK", "")] * 7
    (entry,) = [one for one in server.trail.queue.first(100) if one.entry.action == "read_credentials"]
    assert (entry.entry.caller, entry.entry.integration_id, entry.call_count) == ("backend", integration_id, 7)


@pytest.mark.parametrize(
    "difference",
    [{"token": "other"}, {"metadata": [("x-purpose", "billing")]}, {"raw": b"unknown field"}],
    ids=["another token", "a purpose", "other bytes"],
)
async def test_a_call_that_differs_takes_the_general_path_first(difference: dict[str, Any]) -> None:
    server = HotServer()
    integration_id = await connected(server)
    await server.warm(integration_id)
    if "raw" in difference:
        request = pb.GetCredentialsRequest(integration_id=integration_id, user_id=ADA).SerializeToString()
        difference = {"raw": request + b"\x9a\x06\x01x"}  # field 99
    await server.call(integration_id, **difference)
    assert server.slow_calls == 2


async def test_repeated_purposes_are_one_purpose_on_both_paths() -> None:
    server = HotServer()
    integration_id = await connected(server)
    twice = [("x-purpose", ""), ("x-purpose", "sync")]
    for _ in range(2):
        await server.call(integration_id, metadata=twice)
    await server.call(integration_id, metadata=[("x-purpose", "sync")])
    assert server.slow_calls == 2
    purposes = {one.entry.purpose: one.call_count for one in server.trail.queue.first(100) if one.entry.purpose}
    assert purposes == {", sync": 2, "sync": 1}


# --- what ends it ----------------------------------------------------------------------------------------------------


def revoke(server: HotServer) -> None:
    server.policy = server.policy_with(NOTHING)


def narrow(server: HotServer) -> None:
    server.policy = server.policy_with(OTHER_TYPE)


def withdraw_key(server: HotServer) -> None:
    server.verifier.names.clear()
    server.verifier.keys = 1


CHANGES: dict[str, tuple[Callable[[HotServer], None], str]] = {
    "the policy grants nothing any more": (revoke, "PERMISSION_DENIED"),
    "the policy allows other types": (narrow, "NOT_FOUND"),
    "the key of the token is withdrawn": (withdraw_key, "UNAUTHENTICATED"),
}


@pytest.mark.parametrize(("change", "code"), CHANGES.values(), ids=CHANGES)
async def test_a_change_of_authentication_or_authorization_counts_at_once(
    change: Callable[[HotServer], None], code: str
) -> None:
    server = HotServer()
    integration_id = await connected(server)
    await server.warm(integration_id)
    change(server)
    for _ in range(2):
        with pytest.raises(RpcError, match=code):
            await server.call(integration_id)


@pytest.mark.parametrize(("change", "code"), CHANGES.values(), ids=CHANGES)
async def test_negative_control_an_admission_that_notices_no_change_gives_credentials(
    change: Callable[[HotServer], None], code: str
) -> None:
    server = HotServer(notices_changes=False)
    integration_id = await connected(server)
    response = await server.warm(integration_id)
    change(server)
    assert await server.call(integration_id) == response, code


async def test_an_expired_token_is_refused() -> None:
    server = HotServer()
    server.verifier.expire_time = server.system.clock() + timedelta(minutes=1)
    integration_id = await connected(server)
    await server.warm(integration_id)
    server.system.clock.advance(timedelta(minutes=1))
    for _ in range(2):
        with pytest.raises(RpcError, match="UNAUTHENTICATED"):
            await server.call(integration_id)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ({"token": None}, "UNAUTHENTICATED"),
        ({"token": "forged"}, "UNAUTHENTICATED"),
        ({"token": "BACKEND"}, "UNAUTHENTICATED"),
        ({"metadata": [("authorization", "Bearer backend")]}, "UNAUTHENTICATED"),
        ({"user_id": EVE}, "NOT_FOUND"),
        ({"user_id": ""}, "INVALID_ARGUMENT"),
        ({"raw": grpc.aio.EOF}, "INVALID_ARGUMENT"),
        ({"raw": b"\xff"}, "INVALID_ARGUMENT"),
        ({"raw": b"\x0a" * 20_000}, "INVALID_ARGUMENT"),
        ({"metadata": [("x-purpose", "a\nb")]}, "INVALID_ARGUMENT"),
    ],
    ids=[
        "no token",
        "a forged token",
        "a token in capitals",
        "two tokens",
        "another user",
        "no user",
        "no request",
        "malformed",
        "large",
        "a purpose with a line break",
    ],
)
async def test_attacks_fail_beside_calls_on_the_hot_path(call: dict[str, Any], code: str) -> None:
    server = HotServer()
    integration_id = await connected(server)
    response = await server.warm(integration_id)
    for _ in range(3):
        with pytest.raises(RpcError, match=code):
            await server.call(integration_id, **call)
    assert await server.call(integration_id) == response
    assert server.records[-1] == ("OK", "")


async def test_what_the_response_depends_on_ends_it() -> None:
    server = HotServer()
    integration_id = await connected(server)
    await server.warm(integration_id)
    server.data_keys = object()  # one of them is withdrawn
    await server.call(integration_id)
    assert server.slow_calls == 2
    await server.system.revocation_service.disconnect_integration(IntegrationId(integration_id), ADA)
    server.cache.invalidate(IntegrationId(integration_id))  # as the change feed does
    with pytest.raises(RpcError, match="NOT_FOUND"):
        await server.call(integration_id)


# --- quotas ----------------------------------------------------------------------------------------------------------


async def test_calls_on_the_hot_path_count_for_the_rate() -> None:
    server = HotServer(per_second=5)
    integration_id = await connected(server)
    await server.warm(integration_id)
    for _ in range(3):
        await server.call(integration_id)
    with pytest.raises(RpcError, match="RESOURCE_EXHAUSTED"):
        await server.call(integration_id)
    assert server.slow_calls == 1
    assert server.records[-1] == ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
    await server.call(integration_id, token="other")  # has a quota of its own


async def test_calls_that_wait_for_their_request_count_as_concurrent_and_end_when_the_client_goes() -> None:
    server = HotServer(concurrency=2)
    integration_id = await connected(server)
    await server.warm(integration_id)
    waiting = [asyncio.create_task(server.call(integration_id, raw=asyncio.Event())) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(RpcError, match="RESOURCE_EXHAUSTED"):
        await server.call(integration_id)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert server.records[-2:] == [("CANCELLED", "")] * 2
    await server.call(integration_id)
    assert server.slow_calls == 1


# --- both paths agree ------------------------------------------------------------------------------------------------

FIELDS = {field.name: field.number for field in pb.GetCredentialsRequest.DESCRIPTOR.fields}


def varint(number: int, length: int = 0) -> bytes:
    """A varint; of `length` bytes, which is more than it needs, by default as short as possible."""
    encoded = bytearray()
    while number > 0x7F or len(encoded) + 1 < length:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def delimited(name: str, content: bytes, declared: int | None = None) -> bytes:
    """A field with a length, which may be another than that of its content."""
    return varint(FIELDS[name] << 3 | 2) + varint(len(content) if declared is None else declared) + content


def random_request(rng: random.Random, integration_id: int) -> bytes:
    """A request that is valid, unusual or broken: fields in any order, repeated, of wrong types, and damaged bytes."""
    number = varint(FIELDS["integration_id"] << 3)
    numbers = [
        number + varint(integration_id),
        number + varint(integration_id, rng.randint(2, 12)),  # not canonical; one of 11 bytes is malformed
        number + varint(rng.choice([0, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, integration_id + (1 << 64)])),
        varint(FIELDS["integration_id"] << 3 | 1) + integration_id.to_bytes(8, "little"),
        varint(FIELDS["integration_id"] << 3 | 2) + varint(1) + varint(integration_id),
    ]
    users = [delimited("user_id", text) for text in (ADA.encode(), EVE.encode(), b"", b"\xff\xfe", b"a\0", b"u" * 200)]
    durations = [
        b"",
        b"\x08\x3c",
        b"\x08\x3c\x10\x05",
        b"\x08" + varint((1 << 64) - 5),
        b"\x10\x01",
        b"\x08",
        b"\x0a\x01x",
    ]
    others = [
        *(delimited("min_ttl", content) for content in durations),
        delimited("required_scopes", b"read"),
        delimited("required_scopes", b"\xc3\x28"),
        delimited("required_scopes", b"x" * rng.choice([1, 300, 20_000])),
        b"\x9a\x06\x01x",  # a field that the contract does not have
        b"\x9b\x06\x9c\x06",  # a group
        delimited("user_id", ADA.encode(), rng.randint(0, 300)),
        b"\x00\x00",
        rng.randbytes(rng.randint(1, 12)),
    ]
    parts = [rng.choice(numbers[: rng.choice([1, 1, 2, 5])]), users[rng.choice([0, 0, 0, rng.randrange(len(users))])]]
    parts += rng.choices(others, k=rng.choice([0, 0, 1, 1, 3]))
    parts += rng.choices([*numbers, *users], k=rng.choice([0, 0, 0, 2]))
    rng.shuffle(parts)
    raw = bytearray(b"".join(parts))
    damage = rng.random()
    if damage < 0.1:
        del raw[rng.randint(0, len(raw)) :]
    elif damage < 0.2 and raw:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


async def disagreements(server: HotServer, seed: int) -> tuple[Sequence[str], Counter[str]]:
    """The requests, of 500, whose outcomes are not the same on both paths, and the statuses of all of them.

    Between them the policy changes, and the credentials. Each is sent twice, so that the second call takes the hot path
    if that takes it at all.
    """
    rng = random.Random(seed)
    integration_id = await connected(server)
    await server.warm(integration_id)
    found, statuses = [], Counter[str]()
    requests = [random_request(rng, integration_id) for _ in range(100)]

    async def outcome(raw: bytes, only_general: bool) -> tuple[str, object]:
        purpose, token = rng.choice([(), (), [("x-purpose", "sync")]]), rng.choice(["backend", "backend", "other", "x"])
        decoded = server.slow_calls
        try:
            response = await server.call(0, raw=raw, token=token, metadata=purpose, only_general=only_general)
        except RpcError as error:
            return error.code.name, error.wire
        status = "OK again" if server.slow_calls == decoded else "OK"
        return status, pb.GetCredentialsResponse.FromString(response)

    for _ in range(500):
        change = rng.random()
        if change < 0.05:
            server.policy = server.policy_with(rng.choice([ALL, ALL, ALL, OTHER_TYPE, NOTHING]))
        elif change < 0.08:
            await server.system.credentials.refresh_token(IntegrationId(integration_id), ADA, force=True)
            server.cache.invalidate(IntegrationId(integration_id))  # as the change feed does
        elif change < 0.1:
            server.system.clock.advance(timedelta(seconds=rng.choice([1, 40, 4000])))
        raw, state = rng.choice(requests), rng.getstate()
        outcomes = []
        for only_general in (False, False, True):
            rng.setstate(state)  # the same caller and purpose
            outcomes.append(await outcome(raw, only_general))
        statuses.update(status for status, _ in outcomes)
        if any(result != outcomes[0][1] for _, result in outcomes):
            found.append(f"{raw.hex()}: {outcomes}")
    return found, statuses


@pytest.mark.parametrize("seed", range(3))
async def test_any_bytes_have_the_same_outcome_on_both_paths(seed: int) -> None:
    found, statuses = await disagreements(HotServer(per_second=100_000), seed)
    assert found == []
    for status in ("OK", "OK again", "NOT_FOUND", "INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED"):
        assert statuses[status] > 10, statuses


async def test_negative_control_paths_disagree_when_one_notices_no_change() -> None:
    found, _ = await disagreements(HotServer(per_second=100_000, notices_changes=False), 0)
    assert found
