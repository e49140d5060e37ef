"""Equal calls get the same response only while nothing that it depends on has changed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from integration_server.domain.audit import Action, AuditEntry
from integration_server.domain.credentials import AuthMethod
from integration_server.domain.errors import IntegrationNotFound, StoreUnavailable
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.rpc.call_audit import response_source
from integration_server.rpc.hot_path import ReusedResponses
from integration_server.service.audit.audit_trail import AuditTrail
from integrations.v1 import credentials_pb2
from integrations.v1 import integration_service_pb2 as pb
from tests.fakes.clock import NOON

INTEGRATION = Integration(
    integration_id=IntegrationId(1),
    uid="u",
    user_id=UserId("ada"),
    integration_type="acme",
    auth_method=AuthMethod.OAUTH2,
    create_time=NOON,
    update_time=NOON,
)
REQUEST = pb.GetCredentialsRequest(integration_id=1, user_id="ada").SerializeToString()
TOKEN = "a-token-that-is-secret"


class Log:
    """An `AuditLog` in memory."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []

    async def append(self, entries: Sequence[AuditEntry]) -> None:
        """Keep the entries."""
        self.entries += entries


@dataclass
class Caller:
    """What a call depends on, and the calls that took the general path."""

    responses: ReusedResponses
    trail: AuditTrail
    name: str = "backend"
    purpose: str = ""
    policy: object = field(default_factory=object)
    keys: object = field(default_factory=object)
    current: Integration | None = INTEGRATION
    now: datetime = NOON
    valid_until: datetime | None = NOON + timedelta(minutes=5)
    decoded: int = 0

    async def call(self, raw: bytes = REQUEST, *, fails: bool = False) -> bytes:
        """The response of a call, as the server would send it."""
        key = self.responses.key_of(raw, self)  # type: ignore[arg-type]
        repeated = self.responses.find(key)
        if repeated is not None:
            return repeated
        return await self.responses.keep(key, self._respond(fails))

    async def _respond(self, fails: bool) -> pb.GetCredentialsResponse:
        self.decoded += 1
        if fails:
            raise IntegrationNotFound
        source = response_source.get()
        assert source is not None
        source.integration, source.valid_until = self.current, self.valid_until
        source.entry = AuditEntry(self.now, self.name, Action.READ_CREDENTIALS, "ada", 1, purpose=self.purpose)
        if not self.trail.queue.enqueue(source.entry):
            raise StoreUnavailable
        credentials = credentials_pb2.Credentials(bearer_token=f"{TOKEN} {self.decoded}")
        return pb.GetCredentialsResponse(credentials=credentials)

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """As a context of gRPC."""
        return [("x-purpose", self.purpose)] if self.purpose else []


def make(log: Log, *, checks_changes: bool = True, queue_bytes: int = 1 << 20, max_bytes: int = 1 << 20) -> Caller:
    trail = AuditTrail(log, max_bytes=queue_bytes)
    caller: Caller
    responses = ReusedResponses(
        lambda integration: integration is caller.current or not checks_changes,
        lambda _context: caller.name,
        lambda: caller.policy,
        lambda: caller.keys,
        trail.queue,
        lambda: caller.now,
        max_bytes=max_bytes,
    )
    caller = Caller(responses, trail)
    return caller


@pytest.fixture
def log() -> Log:
    return Log()


async def test_an_equal_call_gets_the_same_response_without_being_decoded(log: Log) -> None:
    caller = make(log)
    first = await caller.call()
    assert [await caller.call() for _ in range(3)] == [first] * 3
    assert (caller.decoded, TOKEN in first.decode()) == (1, True)


async def test_every_repeated_response_is_in_the_audit_log(log: Log) -> None:
    caller = make(log)
    async with caller.trail:
        for seconds in (0, 0.5, 2, 2.1):
            caller.now = NOON + timedelta(seconds=seconds)
            await caller.call()
    assert [(entry.time - NOON, entry.call_count) for entry in log.entries] == [
        (timedelta(0), 2),
        (timedelta(seconds=2), 2),
    ]
    assert {(entry.caller, entry.user_id, entry.integration_id) for entry in log.entries} == {("backend", "ada", 1)}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"purpose": "billing"},
        {"policy": object()},
        {"keys": object()},
        {"current": replace(INTEGRATION)},  # read again: an equal one, but nobody has compared them
        {"current": None},
        {"now": NOON + timedelta(minutes=5)},
        {"now": NOON + timedelta(days=1)},
    ],
    ids=["caller", "purpose", "policy", "data keys", "integration", "disconnected", "end of the token", "long after"],
)
async def test_a_change_of_what_it_depends_on_ends_a_response(change: dict[str, Any], log: Log) -> None:
    caller = make(log)
    first = await caller.call()
    for name, value in change.items():
        setattr(caller, name, value)
    assert await caller.call() != first
    assert caller.decoded == 2


async def test_another_request_has_another_response(log: Log) -> None:
    caller = make(log)
    first = await caller.call()
    for request in (
        pb.GetCredentialsRequest(integration_id=2, user_id="ada"),
        pb.GetCredentialsRequest(integration_id=1, user_id="eve"),
        pb.GetCredentialsRequest(integration_id=1, user_id="ada", required_scopes=["write"]),
    ):
        assert await caller.call(request.SerializeToString()) != first
    assert caller.decoded == 4


async def test_negative_control_without_the_check_a_disconnected_integration_has_a_response(log: Log) -> None:
    caller = make(log, checks_changes=False)
    first = await caller.call()
    caller.current = None
    assert await caller.call() == first


async def test_an_error_is_not_kept(log: Log) -> None:
    caller = make(log)
    for _ in range(2):
        with pytest.raises(IntegrationNotFound):
            await caller.call(fails=True)
    assert caller.decoded == 2


async def test_no_response_is_sent_without_an_audit_entry(log: Log) -> None:
    caller = make(log, queue_bytes=1000)
    await caller.call()
    caller.now = NOON + timedelta(seconds=2)  # the queued entry cannot be shared
    with pytest.raises(StoreUnavailable):
        await caller.call()


async def test_responses_are_encrypted_in_memory_and_bounded(log: Log) -> None:
    caller = make(log, max_bytes=5_000)
    for number in range(1, 21):
        await caller.call(pb.GetCredentialsRequest(integration_id=number, user_id="ada").SerializeToString())
    kept = caller.responses._responses
    assert 1 <= len(kept) <= 5
    assert not any(TOKEN.encode() in entry.encrypted for entry in kept.values())
    assert TOKEN not in repr(kept)
    assert response_source.get() is None


@pytest.mark.parametrize("field", ["unknown", "scopes", "purpose"])
async def test_the_keys_of_responses_are_bounded_too(field: str, log: Log) -> None:
    """Requests may have 32 KiB, also of fields that the server does not know, and the metadata 16 KiB."""
    caller = make(log, max_bytes=100_000)
    for number in range(50):
        text = f"{number:08}" * 500
        request = REQUEST
        if field == "purpose":
            caller.purpose = text
        elif field == "scopes":
            request += pb.GetCredentialsRequest(required_scopes=[text]).SerializeToString()
        else:
            request += b"\x9a\x06" + b"\xa0\x1f" + text.encode()  # field 99, of 4,000 bytes
        await caller.call(request)
    sizes = [sum(map(len, key)) + len(entry.encrypted) for key, entry in caller.responses._responses.items()]
    assert 10 <= len(sizes) < 50
    assert sum(sizes) <= 100_000
