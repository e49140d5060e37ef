"""Device authorizations (RFC 8628): when the provider is asked for the tokens, by whom, and how each attempt ends."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import select

from integration_server.domain.audit import Action
from integration_server.domain.credentials import DecisionPending, DeviceAuthorization, OAuthTokens
from integration_server.domain.errors import (
    AccountMismatch,
    CredentialsUnreadable,
    InvalidField,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    StateExpired,
    StateUsed,
    UserMismatch,
)
from integration_server.domain.events import EventKind
from integration_server.domain.integration import Status
from integration_server.service.background.background_worker import BackgroundWorker
from integration_server.service.background.ports import JobKind
from integration_server.service.connections.oauth_callback import ConnectionResult
from integration_server.service.connections.oauth_connection import AuthorizationRequest
from integration_server.service.connections.ports import AuthorizationAttempt
from integration_server.service.integrations.ports import NewAccount
from integration_server.storage.tables import integration_changes
from tests.fakes.provider import FakeProvider, wait_until
from tests.fakes.stores import intercept
from tests.fakes.system import ADA, EVE, FakeSystem
from tests.fakes.workers import is_busy

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
DEVICE = DeviceAuthorization(
    "device", "WDJB", "https://fake.example/device", "https://fake.example/device?c=WDJB", 30 * MINUTE, 5 * SECOND
)
CLAIM = MINUTE  # six times the time that a provider has to respond
PENDING, SLOW_DOWN = DecisionPending(), DecisionPending(slow_down=True)


@pytest.fixture
async def system() -> AsyncIterator[FakeSystem]:
    """A system that asks for confirmations, as in production, with a provider of device authorizations."""
    system = new_system()
    async with system.tasks:
        yield system


def new_system(**options: Any) -> FakeSystem:
    system = FakeSystem({"skip_confirmation": False, "default_return_url": None}, options)
    system.provider.device = DEVICE
    return system


async def work(worker: BackgroundWorker) -> None:
    """Do all that is due."""
    await worker.poll()
    await wait_until(lambda: not is_busy(worker))


async def advance(system: FakeSystem, by: timedelta, step: timedelta = SECOND) -> None:
    """Let time pass; the worker polls after each step."""
    for _ in range(round(by / step)):
        system.clock.advance(step)
        await work(system.worker)


def seconds_between_polls(provider: FakeProvider) -> list[float]:
    times = [time for time, _ in provider.polls]
    return [(after - before) / SECOND for before, after in pairwise(times)]


async def result_of(system: FakeSystem, begun: AuthorizationRequest) -> ConnectionResult:
    return await system.call_back(begun.state, code="", user_id=ADA)


# --- the course of an authorization ----------------------------------------------------------------------------------


async def test_an_approval_connects_the_integration(system: FakeSystem) -> None:
    begun = await system.begin(return_url="")
    assert (begun.user_code, begun.verification_uri) == ("WDJB-1", DEVICE.verification_uri)
    assert begun.url == begun.verification_uri_complete == DEVICE.verification_uri_complete
    assert begun.expire_time == system.clock() + 30 * MINUTE
    system.provider.decisions = [PENDING, PENDING]
    await advance(system, 14 * SECOND)
    pending = await result_of(system, begun)
    assert (pending.success, pending.reason) == (False, "authorization_pending")
    assert system.row(begun.integration_id).status(system.clock()) is Status.PENDING
    await advance(system, SECOND)
    assert system.provider.polls == [(begun.expire_time - 30 * MINUTE + n * 5 * SECOND, "device-1") for n in (1, 2, 3)]
    integration = system.row(begun.integration_id)
    assert (integration.status(system.clock()), integration.account_id) == (Status.ACTIVE, "account-1")
    for _ in range(2):
        connected = await result_of(system, begun)
        assert (connected.success, connected.integration_id) == (True, begun.integration_id)
    assert system.provider.exchanges == []
    query = select(integration_changes.c.kind, integration_changes.c.status_after)
    assert (EventKind.STATUS_CHANGED.value, "active") in {
        (row.kind, row.status_after) for row in system.database.rows(query)
    }
    assert [entry.action for entry in system.trail.entries].count(Action.STORE_CREDENTIALS) == 1
    await advance(system, MINUTE)
    assert len(system.provider.polls) == 3


async def test_neither_confirmation_nor_return_url_is_needed(system: FakeSystem) -> None:
    begun = await system.begin()
    await advance(system, 5 * SECOND)
    assert system.row(begun.integration_id).is_connected
    system.provider.device = None
    with pytest.raises(InvalidField, match="return_url"):  # negative control: with a browser that returns, it is
        await system.begin()


async def test_a_missing_scope_shows_as_after_a_callback(system: FakeSystem) -> None:
    system.provider.granted_scopes = ("other",)
    begun = await system.begin()
    await advance(system, 5 * SECOND)
    integration = system.row(begun.integration_id)
    assert (integration.status(system.clock()), integration.missing_scopes) == (Status.ERROR, ("read",))


async def test_an_account_that_is_connected_already_keeps_its_integration(system: FakeSystem) -> None:
    first = await system.begin()
    await advance(system, 5 * SECOND)
    second = await system.begin()
    await advance(system, 5 * SECOND)
    assert (await result_of(system, second)).integration_id == first.integration_id
    assert system.ids() == [first.integration_id]


async def test_an_authorization_is_pending_until_its_outcome_is_stored(system: FakeSystem) -> None:
    """The pending integration of an account that is connected already is gone before that."""
    first, attempts, stored = await system.begin(), system.stores.attempts, asyncio.Event()
    await advance(system, 5 * SECOND)
    second = await system.begin()
    finish = attempts.finish

    async def finish_later(attempt: AuthorizationAttempt, encrypted_outcome: bytes | None) -> None:
        async with asyncio.timeout(30):
            await stored.wait()
        await finish(attempt, encrypted_outcome)

    intercept(attempts, finish=finish_later)
    system.clock.advance(5 * SECOND)
    await system.worker.poll()
    await wait_until(lambda: system.ids() == [first.integration_id])
    assert (await result_of(system, second)).reason == "authorization_pending"
    system.clock.advance(MINUTE)
    with pytest.raises(StateUsed):  # the process that has the tokens is taken for dead
        await result_of(system, second)
    stored.set()
    await wait_until(lambda: not is_busy(system.worker))
    assert (await result_of(system, second)).integration_id == first.integration_id


# --- reconnecting ----------------------------------------------------------------------------------------------------


async def test_a_reconnection_rejects_another_account_and_revokes_its_tokens(system: FakeSystem) -> None:
    first = await system.begin()
    await advance(system, 5 * SECOND)
    before = system.stored(first.integration_id)
    system.provider.account = NewAccount("account-2", None)
    again = await system.begin(integration_id=first.integration_id)
    await advance(system, 5 * SECOND)
    with pytest.raises(AccountMismatch):
        await result_of(system, again)
    assert system.stored(first.integration_id) == before
    await advance(system, 5 * SECOND)
    (revoked,) = system.provider.revocations
    assert isinstance(revoked, OAuthTokens)
    assert revoked.access_token == "access-2"


async def test_a_new_reconnection_ends_the_polling_of_the_one_before(system: FakeSystem) -> None:
    first = await system.begin()
    await advance(system, 5 * SECOND)
    old = await system.begin(integration_id=first.integration_id)
    other = await system.begin(EVE)
    new = await system.begin(integration_id=first.integration_id)
    system.provider.decisions = [PENDING] * 4
    await advance(system, 10 * SECOND)
    assert [code for _, code in system.provider.polls[1:]] == ["device-3", "device-4"] * 2
    with pytest.raises(StateUsed):
        await result_of(system, old)
    assert (await result_of(system, new)).reason == "authorization_pending"
    assert (await system.call_back(other.state, code="", user_id=EVE)).reason == "authorization_pending"


# --- intervals -------------------------------------------------------------------------------------------------------


async def test_slow_down_adds_five_seconds_for_good(system: FakeSystem) -> None:
    await system.begin()
    system.provider.decisions = [PENDING, SLOW_DOWN, PENDING, SLOW_DOWN, PENDING]
    await advance(system, 60 * SECOND)
    assert seconds_between_polls(system.provider) == [5, 10, 10, 15, 15]


async def test_the_interval_and_the_retry_after_of_a_slow_down(system: FakeSystem) -> None:
    await system.begin()
    system.provider.decisions = [
        DecisionPending(True, min_interval=20 * SECOND),
        DecisionPending(True, retry_after=60 * SECOND),
        PENDING,
    ]
    await advance(system, 120 * SECOND)
    assert seconds_between_polls(system.provider) == [20, 60, 25]


async def test_requests_without_a_response_back_off_and_recover(system: FakeSystem) -> None:
    await system.begin()
    unavailable = ProviderUnavailable(outcome_unknown=True)
    system.provider.decisions = [*[unavailable] * 3, PENDING, PENDING]
    await advance(system, 90 * SECOND)
    assert seconds_between_polls(system.provider) == [10, 20, 40, 5, 5]


async def test_an_interval_longer_than_the_longest_pause_is_kept(system: FakeSystem) -> None:
    system.provider.device = replace(DEVICE, interval=5 * MINUTE)
    await system.begin()
    system.provider.decisions = [ProviderUnavailable(), PENDING]
    await advance(system, 20 * MINUTE, 10 * SECOND)
    assert seconds_between_polls(system.provider) == [300, 300]


# --- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ProviderRejected("device code", oauth_error="access_denied"),
        ProviderRejected("device code", oauth_error="expired_token"),
        ProviderMisconfigured(oauth_error="invalid_client"),
    ],
)
async def test_a_refusal_ends_the_attempt(system: FakeSystem, error: Exception) -> None:
    begun = await system.begin()
    system.provider.decisions = [PENDING, error]
    await advance(system, 60 * SECOND)
    assert len(system.provider.polls) == 2
    assert system.ids() == []
    for _ in range(2):
        with pytest.raises(type(error), match=str(error)):
            await result_of(system, begun)
    assert system.provider.revocations == []


async def test_a_lost_response_ends_the_attempt_at_the_next_request(system: FakeSystem) -> None:
    begun = await system.begin()
    spent = ProviderRejected("device code", oauth_error="invalid_grant")
    system.provider.decisions = [ProviderUnavailable(outcome_unknown=True), spent]
    await advance(system, 60 * SECOND)
    assert len(system.provider.polls) == 2
    with pytest.raises(ProviderRejected):
        await result_of(system, begun)


async def test_tokens_that_cannot_be_completed_are_revoked(system: FakeSystem) -> None:
    begun = await system.begin()
    error = ProviderUnavailable()
    error.issued_tokens = OAuthTokens("issued", "refresh")
    system.provider.decisions = [error]
    await advance(system, 10 * SECOND)
    assert [getattr(revocation, "access_token", None) for revocation in system.provider.revocations] == ["issued"]
    assert len(system.provider.polls) == 1
    with pytest.raises(ProviderUnavailable):
        await result_of(system, begun)


async def test_an_expired_attempt_is_not_polled_and_is_removed(system: FakeSystem) -> None:
    system.provider.device = replace(DEVICE, lifetime=12 * SECOND)
    begun = await system.begin()
    system.provider.decisions = [PENDING] * 9
    await advance(system, 20 * SECOND)
    assert len(system.provider.polls) == 2
    with pytest.raises(StateExpired):
        await result_of(system, begun)
    await advance(system, 2 * MINUTE)
    assert len(system.provider.polls) == 2
    assert await system.oauth_connection.remove_abandoned() == 1
    assert (system.ids(), system.attempt_rows()) == ([], [])
    with pytest.raises(StateUsed):
        await result_of(system, begun)


async def test_the_time_in_the_row_does_not_extend_an_attempt(system: FakeSystem) -> None:
    system.provider.device = replace(DEVICE, lifetime=12 * SECOND)
    await system.begin()
    system.provider.decisions = [PENDING] * 9
    (row,) = system.attempt_rows()
    system.alter_attempt(row.attempt_id, expire_time=system.clock() + timedelta(days=1))
    await advance(system, 3 * MINUTE)
    assert len(system.provider.polls) == 2
    assert system.ids() == []


async def test_a_disconnected_integration_is_not_polled(system: FakeSystem) -> None:
    begun = await system.begin()
    await advance(system, 4 * SECOND)
    await system.revocation_service.disconnect_integration(begun.integration_id, ADA)
    await advance(system, 2 * MINUTE)
    assert system.provider.polls == []
    with pytest.raises(StateUsed):
        await result_of(system, begun)


async def test_tokens_of_an_integration_that_was_disconnected_meanwhile_are_revoked(system: FakeSystem) -> None:
    begun = await system.begin()
    system.provider.gate = asyncio.Event()
    system.clock.advance(5 * SECOND)
    await system.worker.poll()
    await wait_until(lambda: system.provider.in_flight == 1)
    await system.revocation_service.disconnect_integration(begun.integration_id, ADA)
    system.provider.gate.set()
    await wait_until(lambda: not is_busy(system.worker))
    await work(system.worker)
    assert [getattr(revocation, "access_token", None) for revocation in system.provider.revocations] == ["access-1"]
    assert system.ids() == []


async def test_attempts_beyond_the_quota_are_not_polled() -> None:
    system = FakeSystem({"user_max_authorization_attempts": 3})
    system.provider.device = DEVICE
    async with system.tasks:
        for _ in range(5):
            await system.begin()
            system.clock.advance(SECOND / 10)
        system.provider.decisions = [PENDING] * 9
        await advance(system, 5 * SECOND)
        assert sorted(code for _, code in system.provider.polls) == ["device-3", "device-4", "device-5"]


async def test_a_provider_that_refuses_to_begin_leaves_nothing(system: FakeSystem) -> None:
    system.provider.authorize_error = ProviderUnavailable()
    with pytest.raises(ProviderUnavailable):
        await system.begin()
    assert (system.ids(), system.attempt_rows()) == ([], [])


async def test_tokens_are_stored_after_a_short_outage_of_the_database(system: FakeSystem) -> None:
    begun = await system.begin()
    system.provider.gate = asyncio.Event()
    system.clock.advance(5 * SECOND)
    await system.worker.poll()
    await wait_until(lambda: system.provider.in_flight == 1)
    system.database.is_unavailable = True
    system.provider.gate.set()
    await wait_until(lambda: system.provider.in_flight == 0)
    for _ in range(5):  # it tries again, after pauses that yield only
        await asyncio.sleep(0)
    system.database.is_unavailable = False
    await wait_until(lambda: not is_busy(system.worker))
    assert system.row(begun.integration_id).is_connected


async def test_polls_without_a_response_stop_no_refresh(system: FakeSystem) -> None:
    """Their circuit breaker is their own, also of the same type and client."""
    connected = await system.begin()
    await advance(system, 5 * SECOND)
    system.clock.advance(50 * MINUTE)
    system.provider.decisions = [ProviderUnavailable() for _ in range(99)]
    for user_id in (ADA, EVE) * 4:
        await system.begin(user_id)
    await advance(system, 5 * MINUTE, 10 * SECOND)
    assert system.worker.open_breakers() == [(JobKind.DEVICE_POLL, "fake")]
    assert system.provider.refreshes == ["refresh-1"]
    assert system.row(connected.integration_id).version == 2


# --- several processes -----------------------------------------------------------------------------------------------


async def test_concurrent_workers_ask_once(system: FakeSystem) -> None:
    await system.begin()
    system.provider.decisions = [PENDING] * 9
    services = [system.another_process() for _ in range(4)]
    system.clock.advance(5 * SECOND)
    await asyncio.gather(*(work(service.worker) for service in services))
    assert (len(system.provider.polls), system.provider.max_in_flight) == (1, 1)


async def poll_after_a_lost_claim(system: FakeSystem) -> int:
    """A process is suspended after its claim, another one polls, and the first goes on. The number of requests."""
    await system.begin()
    system.provider.decisions = [PENDING] * 9
    system.clock.advance(5 * SECOND)
    first, second = system.another_process(), system.another_process()  # each with its own circuit breakers
    (claim,) = await system.due_work.claim(JobKind.DEVICE_POLL, "fake", 1, claim_duration=CLAIM)
    system.clock.advance(CLAIM)
    await work(second.worker)
    assert len(system.provider.polls) == 1
    await first.device_poller.poll(claim)
    return len(system.provider.polls)


async def test_a_process_that_lost_its_claim_does_not_ask(system: FakeSystem) -> None:
    assert await poll_after_a_lost_claim(system) == 1


async def test_negative_control_without_the_fence_two_processes_ask() -> None:
    system = new_system(fences_polls=False)
    async with system.tasks:
        assert await poll_after_a_lost_claim(system) == 2


async def seconds_after_a_kill(system: FakeSystem, interval: timedelta) -> float:
    """The time from a request, during which its process dies, until the next one, by another process."""
    system.provider.device = replace(DEVICE, interval=interval)
    begun = await system.begin()
    system.provider.gate = suspended = asyncio.Event()
    system.clock.advance(interval)
    await system.worker.poll()
    await wait_until(lambda: system.provider.in_flight == 1)
    survivor = system.another_process()
    system.provider.gate = None
    while len(system.provider.polls) < 2:
        system.clock.advance(5 * SECOND)
        await work(survivor.worker)
    assert system.row(begun.integration_id).is_connected
    suspended.set()  # the first process was only suspended: the tokens that it has then are revoked
    await wait_until(lambda: not is_busy(system.worker))
    await work(system.worker)
    assert [getattr(revocation, "access_token", None) for revocation in system.provider.revocations] == ["access-1"]
    return seconds_between_polls(system.provider)[0]


@pytest.mark.parametrize("interval", [5 * SECOND, 3 * MINUTE])
async def test_after_a_kill_another_process_goes_on_and_not_too_early(system: FakeSystem, interval: timedelta) -> None:
    assert await seconds_after_a_kill(system, interval) >= max(interval, CLAIM) / SECOND


async def test_negative_control_without_the_fence_it_asks_too_early() -> None:
    system = new_system(fences_polls=False)
    async with system.tasks:
        assert await seconds_after_a_kill(system, 3 * MINUTE) < 3 * MINUTE / SECOND


# --- who may ask for the result --------------------------------------------------------------------------------------


async def test_only_the_user_who_began_learns_the_result(system: FakeSystem) -> None:
    begun = await system.begin()
    with pytest.raises(UserMismatch):
        await system.call_back(begun.state, code="", user_id=EVE)
    with pytest.raises(InvalidField, match="code is required"):  # a browser at the sidecar
        await system.call_back(begun.state, code="")
    for fields in ({"user_id": ADA}, {}):
        with pytest.raises(InvalidField, match="code must be empty"):
            await system.call_back(begun.state, code="c0de", **fields)
    await advance(system, 5 * SECOND)
    assert system.row(begun.integration_id).is_connected
    assert system.provider.exchanges == []


async def test_the_device_code_is_bound_to_its_attempt(system: FakeSystem) -> None:
    """Eve, who can write to the database, puts Ada's device code into her own attempt."""
    await system.begin()
    eves = await system.begin(EVE)
    system.provider.decisions = [PENDING]
    adas_row, eves_row = system.attempt_rows()
    assert b"device-1" not in repr(adas_row).encode()
    system.alter_attempt(eves_row.attempt_id, encrypted_details=adas_row.encrypted_details)
    await advance(system, 5 * SECOND)
    assert [code for _, code in system.provider.polls] == ["device-1"]
    with pytest.raises(CredentialsUnreadable):
        await system.call_back(eves.state, code="", user_id=EVE)
