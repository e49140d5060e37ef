"""Refreshing while processes crash, pause and lose the database. `FakeSystem.another_process()` is another process."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
import structlog
import structlog.testing
from sqlalchemy import update

from integration_server.domain.credentials import RefreshCause
from integration_server.domain.errors import (
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    ReauthorizationRequired,
    StoreUnavailable,
)
from integration_server.domain.integration import Failure, Integration, Status
from integration_server.service.credentials.ports import Lease
from integration_server.service.credentials.refresh_commit import RefreshResult
from integration_server.service.credentials.refresher import TokenRefresher
from integration_server.service.integrations.ports import NewCredentials
from integration_server.storage.tables import refresh_leases
from tests.fakes.provider import HOUR, wait_until
from tests.fakes.stores import InMemoryRefreshJournal, allow_shared_leases, intercept, restore
from tests.fakes.system import ADA, FORCED_INTERVAL, LEASE, FakeSystem

INVALID_GRANT = ProviderRejected("grant", oauth_error="invalid_grant")


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    """A connected integration whose token has expired."""
    integration = await system.connect()
    system.clock.advance(HOUR)
    return integration


async def crash_after_provider_call(system: FakeSystem, integration: Integration) -> Lease:
    """Simulate a process that crashes between the provider's response and the commit. Returns its expired lease."""
    lease = await system.leases.claim(integration, "crashed process")
    assert lease is not None
    system.clock.advance(LEASE)
    return lease


def status(system: FakeSystem, integration: Integration) -> Status:
    return system.row(integration.integration_id).status(system.clock())


# --- crashed lease owners --------------------------------------------------------------------------------------------


async def test_a_waiter_gives_up_on_an_owner_that_does_not_finish(integration: Integration, system: FakeSystem) -> None:
    system.sleep_advances_clock = True
    system.provider.gate = asyncio.Event()
    owner = asyncio.create_task(system.another_process().refresher.refresh(integration))
    await wait_until(lambda: system.provider.refreshes)
    system.database.execute(update(refresh_leases).values(expire_time=system.clock() + HOUR))
    with pytest.raises(ProviderUnavailable) as caught:
        await system.refresher.refresh(integration)
    assert caught.value.retry_after is not None
    system.provider.gate.set()
    await owner


async def test_a_used_refresh_token_is_not_sent_again_while_its_owner_may_return(
    system: FakeSystem, integration: Integration
) -> None:
    await crash_after_provider_call(system, integration)
    with pytest.raises(ProviderUnavailable) as caught:
        await system.refresher.refresh(integration)
    assert caught.value.retry_after == 2 * LEASE
    assert not system.provider.refreshes
    assert status(system, integration) is Status.ACTIVE


@pytest.mark.parametrize("is_spent", [False, True])
async def test_a_refresh_token_whose_owner_never_returns_is_sent_again_after_the_access_token_has_expired(
    system: FakeSystem, integration: Integration, is_spent: bool
) -> None:
    """Then nothing is lost by it, and only the provider can say whether the call had reached it."""
    processes = [system.another_process().refresher for _ in range(3)]
    await crash_after_provider_call(system, integration)
    system.clock.advance(2 * LEASE)
    system.provider.refresh_error = INVALID_GRANT if is_spent else None
    outcomes = await asyncio.gather(*(process.refresh(integration) for process in processes), return_exceptions=True)
    assert system.provider.refreshes == ["refresh-1"]
    assert {type(outcome) for outcome in outcomes} == {ReauthorizationRequired if is_spent else RefreshResult}
    assert status(system, integration) is (Status.EXPIRED if is_spent else Status.ACTIVE)


async def test_a_used_refresh_token_is_sent_again_within_the_grace_period(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.refresh_token_grace = HOUR
    await crash_after_provider_call(system, integration)
    await system.refresher.refresh(integration)
    assert system.provider.refreshes == ["refresh-1"]


async def test_a_used_refresh_token_is_not_sent_again_after_the_grace_period(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.refresh_token_grace = LEASE
    await crash_after_provider_call(system, integration)
    with pytest.raises(ProviderUnavailable):
        await system.refresher.refresh(integration)
    assert not system.provider.refreshes


async def test_a_failed_replay_does_not_make_the_refresh_token_unused(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.refresh_token_grace = LEASE + timedelta(seconds=1)
    await crash_after_provider_call(system, integration)
    system.provider.refresh_error = ProviderUnavailable()
    with pytest.raises(ProviderUnavailable):
        await system.refresher.refresh(integration)
    system.provider.refresh_error = None
    system.clock.advance(timedelta(seconds=1))
    with pytest.raises(ProviderUnavailable):
        await system.refresher.refresh(integration)
    assert system.provider.refreshes == ["refresh-1"]  # a replay after the grace period could end the grant


async def test_reconnecting_recovers_from_a_lost_refresh(system: FakeSystem, integration: Integration) -> None:
    await crash_after_provider_call(system, integration)
    system.clock.advance(2 * LEASE)
    system.provider.refresh_error = INVALID_GRANT
    with pytest.raises(ReauthorizationRequired):
        await system.refresher.refresh(integration)
    system.provider.refresh_error = None
    await system.call_back((await system.begin(integration_id=integration.integration_id)).state)
    system.clock.advance(HOUR)
    await system.refresher.refresh(system.row(integration.integration_id))
    assert status(system, integration) is Status.ACTIVE


# --- paused lease owners ---------------------------------------------------------------------------------------------


async def test_an_owner_paused_beyond_its_lease_commits_its_token_response(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.gate = asyncio.Event()
    paused = asyncio.create_task(system.another_process().refresher.refresh(integration))
    await wait_until(lambda: system.provider.refreshes)
    system.clock.advance(3 * LEASE)
    gate, system.provider.gate, system.provider.refresh_error = system.provider.gate, None, INVALID_GRANT
    with pytest.raises(ReauthorizationRequired):
        await system.refresher.refresh(integration)  # treats the call of the paused owner as lost
    system.provider.refresh_error = None
    gate.set()
    refreshed = await paused
    assert await system.tokens(integration.integration_id) == refreshed.tokens
    assert status(system, integration) is Status.ACTIVE


async def test_a_paused_owner_returns_the_tokens_that_another_process_committed(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.refresh_token_grace = HOUR
    system.provider.gate = asyncio.Event()
    paused = asyncio.create_task(system.another_process().refresher.refresh(integration))
    await wait_until(lambda: system.provider.refreshes)
    system.clock.advance(LEASE)
    gate, system.provider.gate = system.provider.gate, None
    refreshed_by_other = await system.refresher.refresh(integration)
    gate.set()
    assert (await paused).tokens == refreshed_by_other.tokens == await system.tokens(integration.integration_id)


async def test_an_owner_paused_before_its_call_does_not_call_after_a_takeover(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.refresh_token_grace = HOUR
    paused = system.another_process().refresher

    async def pause_after_claim(row: Integration, owner: str, _cause: RefreshCause) -> Lease | None:
        restore(system.leases)
        lease = await system.leases.claim(row, owner)
        system.clock.advance(LEASE)
        await system.refresher.refresh(row)
        return lease

    intercept(system.leases, claim=pause_after_claim)
    await paused.refresh(integration)
    assert system.provider.refreshes == ["refresh-1"]


@pytest.mark.parametrize(
    "pause", [LEASE, 3 * LEASE, 50 * timedelta(minutes=1)], ids=["wait", "lost", "until the last moment"]
)
async def test_an_owner_paused_before_its_call_does_not_lose_the_grant(system: FakeSystem, pause: timedelta) -> None:
    integration = await system.connect()
    system.clock.advance(timedelta(minutes=1))
    paused = system.another_process().refresher

    async def pause_after_claim(row: Integration, owner: str, _cause: RefreshCause) -> Lease | None:
        restore(system.leases)
        lease = await system.leases.claim(row, owner)
        system.clock.advance(pause)
        with pytest.raises(ProviderUnavailable):  # another process cannot know whether the call was made
            await system.refresher.refresh(row)
        return lease

    intercept(system.leases, claim=pause_after_claim)
    await paused.refresh(integration)
    assert system.provider.refreshes == ["refresh-1"]
    assert status(system, integration) is Status.ACTIVE


async def test_a_lease_is_released_only_by_its_owner(system: FakeSystem, integration: Integration) -> None:
    expired = await crash_after_provider_call(system, integration)
    assert await system.leases.claim(integration, "other process")
    await system.leases.release(expired, outcome_known=True)
    assert not (await system.leases.state(integration)).is_free


# --- database outages ------------------------------------------------------------------------------------------------


def refresher_on_another_machine(system: FakeSystem) -> TokenRefresher:
    """The refresher of a process with its own journal."""
    return system.another_process(journal=InMemoryRefreshJournal()).refresher


async def refresh_during_outage(system: FakeSystem, integration: Integration) -> str:
    """Refresh with a response that arrives during a database outage. Returns the access token."""
    system.provider.gate = asyncio.Event()
    waiting = asyncio.create_task(system.refresher.refresh(integration))
    await wait_until(lambda: system.provider.in_flight)
    system.database.is_unavailable = True
    system.provider.gate.set()
    return (await waiting).tokens.access_token


async def test_a_token_response_that_cannot_be_stored_is_journaled_and_stored_later(
    system: FakeSystem, integration: Integration
) -> None:
    assert await refresh_during_outage(system, integration) == "renewed-access-1"
    with pytest.raises(StoreUnavailable):
        await system.refresher.recover()
    system.database.is_unavailable = False
    await system.another_process().refresher.recover()  # as after a restart
    tokens = await system.tokens(integration.integration_id)
    assert (tokens.access_token, tokens.refresh_token) == ("renewed-access-1", "renewed-refresh-1")
    assert not system.journal.refreshes
    assert (await system.leases.state(system.row(integration.integration_id))).is_free


async def test_a_token_response_that_the_database_rejects_is_journaled(
    system: FakeSystem, integration: Integration
) -> None:
    async def reject(*_: object) -> None:
        raise LookupError("no such table")

    intercept(system.integrations, commit_refresh=reject)
    refreshed = await system.refresher.refresh(integration)
    assert refreshed.tokens.access_token == "renewed-access-1"
    with pytest.raises(ExceptionGroup):
        await system.refresher.recover()
    restore(system.integrations)
    await system.refresher.recover()
    assert (await system.tokens(integration.integration_id)).access_token == "renewed-access-1"


async def test_a_journal_entry_that_cannot_be_stored_does_not_block_others(system: FakeSystem) -> None:
    first, second = [await system.connect_account(name) for name in ("first", "second")]
    system.clock.advance(HOUR)
    for integration in (first, second):
        await refresh_during_outage(system, integration)
        system.database.is_unavailable = False
    commit = system.integrations.commit_refresh

    async def reject_first(integration: Integration, credentials: NewCredentials, now: datetime) -> Integration | None:
        if integration.integration_id == first.integration_id:
            raise LookupError
        return await commit(integration, credentials, now)

    intercept(system.integrations, commit_refresh=reject_first)
    with pytest.raises(ExceptionGroup):
        await system.refresher.recover()
    assert [pending.integration.integration_id for pending in await system.journal.pending()] == [first.integration_id]


async def test_a_journal_entry_of_another_database_changes_nothing(
    system: FakeSystem, integration: Integration
) -> None:
    await refresh_during_outage(system, integration)
    (pending,) = await system.journal.pending()
    system.journal.refreshes = [replace(pending, integration=replace(pending.integration, uid="other-uid"))]
    system.database.is_unavailable = False
    with pytest.raises(ExceptionGroup):
        await system.refresher.recover()
    assert (await system.tokens(integration.integration_id)).access_token == "access-1"
    assert len(await system.journal.pending()) == 1


async def test_a_lease_that_cannot_be_released_during_recovery_is_released_later(
    system: FakeSystem, integration: Integration
) -> None:
    other = await system.connect_account("other")
    system.clock.advance(HOUR)
    system.provider.refresh_error = ProviderUnavailable()

    async def fail(*_: object, **__: object) -> None:
        raise StoreUnavailable

    async def release_during_another_failure(lease: Lease, **outcome: Any) -> None:
        intercept(system.leases, release=fail)
        with pytest.raises(ProviderUnavailable):
            await system.refresher.refresh(other)
        restore(system.leases)
        await system.leases.release(lease, **outcome)

    intercept(system.leases, release=fail)
    with pytest.raises(ProviderUnavailable):
        await system.refresher.refresh(integration)
    intercept(system.leases, release=release_during_another_failure)
    await system.refresher.recover()
    for row in (integration, other):
        assert (await system.leases.state(system.row(row.integration_id))).is_free


async def test_negative_control_without_the_journal_the_token_response_is_lost(
    system: FakeSystem, integration: Integration
) -> None:
    await refresh_during_outage(system, integration)
    system.database.is_unavailable = False
    system.journal.refreshes.clear()
    await system.refresher.recover()
    system.clock.advance(3 * LEASE)
    await system.refresher.refresh(integration)
    assert system.provider.refreshes == ["refresh-1", "refresh-1"]


async def test_the_refresh_token_is_not_reused_before_the_journal_is_replayed(
    system: FakeSystem, integration: Integration
) -> None:
    await refresh_during_outage(system, integration)
    system.database.is_unavailable = False
    system.clock.advance(LEASE)
    with pytest.raises(ProviderUnavailable):
        await system.another_process().refresher.refresh(integration)
    await system.refresher.recover()
    assert (await system.refresher.refresh(integration)).tokens.access_token == "renewed-access-1"
    assert system.provider.refreshes == ["refresh-1"]


async def test_after_an_outage_a_process_waits_for_the_journals_of_others(
    system: FakeSystem, integration: Integration
) -> None:
    other = refresher_on_another_machine(system)
    await refresh_during_outage(system, integration)
    system.clock.advance(3 * LEASE)
    with pytest.raises(StoreUnavailable):
        await other.recover()
    system.database.is_unavailable = False
    with pytest.raises(ProviderUnavailable):
        await other.refresh(integration)
    assert status(system, integration) is Status.ACTIVE
    await system.refresher.recover()
    assert (await other.refresh(integration)).tokens.access_token == "renewed-access-1"


async def test_negative_control_a_process_that_saw_no_outage_treats_the_call_as_lost(
    system: FakeSystem, integration: Integration
) -> None:
    other = refresher_on_another_machine(system)
    await refresh_during_outage(system, integration)
    system.clock.advance(3 * LEASE)
    system.database.is_unavailable = False
    await other.refresh(integration)
    assert system.provider.refreshes == ["refresh-1", "refresh-1"]


async def test_a_refresh_in_the_local_journal_is_never_treated_as_lost(
    system: FakeSystem, integration: Integration
) -> None:
    other = system.another_process().refresher
    await refresh_during_outage(system, integration)
    system.clock.advance(3 * LEASE)
    system.database.is_unavailable = False
    with pytest.raises(ProviderUnavailable):
        await other.refresh(integration)
    assert status(system, integration) is Status.ACTIVE


@pytest.mark.parametrize("error", [StoreUnavailable, asyncio.CancelledError])
async def test_a_lease_whose_commit_is_unknown_does_not_count_as_a_call(
    system: FakeSystem, integration: Integration, error: type[BaseException]
) -> None:

    async def claim_and_fail(row: Integration, owner: str, _cause: RefreshCause) -> Lease | None:
        restore(system.leases)
        await system.leases.claim(row, owner)
        raise error

    intercept(system.leases, claim=claim_and_fail)
    with pytest.raises(error):
        await system.refresher.refresh(integration)
    await system.refresher.recover()
    await system.another_process().refresher.refresh(integration)
    assert system.provider.refreshes == ["refresh-1"]


async def test_an_earlier_call_is_not_cleared_by_a_lease_whose_commit_is_unknown(
    system: FakeSystem, integration: Integration
) -> None:
    await crash_after_provider_call(system, integration)

    async def claim_and_fail(row: Integration, owner: str, _cause: RefreshCause) -> Lease | None:
        restore(system.leases)
        await system.leases.claim(row, owner)
        raise StoreUnavailable

    intercept(system.leases, claim=claim_and_fail)
    with pytest.raises(StoreUnavailable):
        await system.refresher.refresh(integration)
    await system.refresher.recover()
    system.clock.advance(LEASE)
    with pytest.raises(ProviderUnavailable):
        await system.refresher.refresh(integration)
    assert not system.provider.refreshes


async def test_a_superseded_journal_entry_is_removed(system: FakeSystem, integration: Integration) -> None:
    await refresh_during_outage(system, integration)
    system.database.is_unavailable = False
    system.provider.gate = None
    await system.call_back((await system.begin(integration_id=integration.integration_id)).state)
    await system.refresher.recover()
    assert (await system.tokens(integration.integration_id)).access_token == "access-2"
    assert not system.journal.refreshes


async def test_a_failure_during_a_database_outage_is_not_a_lost_token_response(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.refresh_error = ProviderUnavailable()
    with pytest.raises(StoreUnavailable):
        await refresh_during_outage(system, integration)
    system.database.is_unavailable = False
    system.provider.refresh_error = None
    await system.refresher.recover()
    assert (await system.refresher.refresh(integration)).tokens.access_token == "renewed-access-2"


# --- failures --------------------------------------------------------------------------------------------------------


async def test_an_invalid_grant_is_checked_against_a_concurrent_refresh(
    system: FakeSystem, integration: Integration
) -> None:
    allow_shared_leases(system.leases)
    system.provider.gate = asyncio.Event()
    system.provider.refresh_error = INVALID_GRANT
    failing = asyncio.create_task(system.another_process().refresher.refresh(integration))
    await wait_until(lambda: system.provider.refreshes)
    gate, system.provider.gate = system.provider.gate, None
    system.provider.refresh_error = None
    winner = await system.refresher.refresh(integration)
    gate.set()
    assert (await failing).tokens == winner.tokens
    assert status(system, integration) is Status.ACTIVE


async def test_backoff_grows_with_failed_refreshes_only(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_error = ProviderUnavailable()
    for _ in range(30):
        await system.integrations.record_call(integration, Failure("X", system.clock(), "of a call"))
    with pytest.raises(ProviderUnavailable):
        await system.refresher.refresh(integration)
    assert system.row(integration.integration_id).refresh_retry_time is None
    for _ in range(5):
        await system.integrations.record_call(integration, None)  # API calls still succeed with the current token
        system.clock.advance(FORCED_INTERVAL)
        with pytest.raises(ProviderUnavailable):
            await system.refresher.refresh(integration, RefreshCause.FORCE)
    retry_time = system.row(integration.integration_id).refresh_retry_time
    assert retry_time is not None
    assert retry_time - system.clock() > timedelta(seconds=20)


async def test_a_refused_client_is_logged_with_its_name(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_error = ProviderMisconfigured(oauth_error="invalid_client")
    with structlog.testing.capture_logs() as logs, pytest.raises(ProviderMisconfigured):
        await system.another_process().refresher.refresh(integration)
    (logged,) = [entry for entry in logs if entry["event"] == "invalid_client"]
    assert (logged["log_level"], logged["integration_type"], logged["oauth_client"]) == ("error", "fake", "")
    assert status(system, integration) is Status.ACTIVE


async def test_backoff_grows_up_to_an_hour(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_error = ProviderUnavailable()
    pauses = []
    for _ in range(15):
        with pytest.raises(ProviderUnavailable):
            await system.refresher.refresh(integration)
        retry_time = system.row(integration.integration_id).refresh_retry_time
        pauses.append(timedelta(0) if retry_time is None else retry_time - system.clock())
        system.clock.advance(pauses[-1])
    assert pauses == sorted(pauses)
    assert pauses[0] == timedelta(0)
    assert timedelta(minutes=30) <= pauses[-1] <= timedelta(hours=1)
    assert len(system.provider.refreshes) == 15


async def test_the_provider_is_not_called_during_the_backoff(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_error = ProviderUnavailable(retry_after=timedelta(minutes=7))
    with pytest.raises(ProviderUnavailable):
        await system.refresher.refresh(integration)
    system.clock.advance(timedelta(minutes=6))
    with pytest.raises(ProviderUnavailable) as caught:
        await system.refresher.refresh(integration)
    assert caught.value.retry_after == timedelta(minutes=1)
    assert len(system.provider.refreshes) == 1
    system.provider.refresh_error = None
    await system.refresher.refresh(integration, RefreshCause.FORCE)
    assert system.row(integration.integration_id).refresh_retry_time is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        ProviderUnavailable(),
        *(
            pytest.param(ProviderRejected("grant", oauth_error=code), marks=pytest.mark.slow)
            for code in ("invalid_token", "access_denied", "40029")
        ),
        ProviderRejected("grant"),
        ProviderUnavailable(retry_after=timedelta(seconds=30)),
    ],
    ids=["no code", "invalid_token", "access_denied", "40029", "no code in a refusal", "Retry-After"],
)
async def test_only_proof_ends_a_grant(system: FakeSystem, integration: Integration, error: ProviderError) -> None:
    """However long another error lasts; the pauses grow to an hour."""
    system.provider.refresh_error = error
    for _ in range(12 * 60):
        with pytest.raises((ProviderRejected, ProviderUnavailable)):
            await system.credentials.get_credentials(integration.integration_id, ADA, None, [])
        system.clock.advance(timedelta(minutes=1))
    print(f"12 hours of {error.reason}: {len(system.provider.refreshes)} token calls")
    assert 12 <= len(system.provider.refreshes) <= 40
    assert status(system, integration) is Status.ERROR
    system.clock.advance(timedelta(hours=1))
    system.provider.refresh_error = None
    await system.credentials.get_credentials(integration.integration_id, ADA, None, [])
    assert status(system, integration) is Status.ACTIVE


async def test_the_error_of_a_refresh_is_not_its_own_cause(system: FakeSystem, integration: Integration) -> None:
    """Whoever follows the causes would never end."""
    system.provider.refresh_error = ProviderUnavailable()
    with pytest.raises(ProviderUnavailable) as raised:
        await system.refresher.refresh(integration)
    assert raised.value.__cause__ is None


async def test_negative_control_invalid_grant_ends_the_grant_at_once(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.refresh_error = INVALID_GRANT
    with pytest.raises(ReauthorizationRequired):
        await system.credentials.get_credentials(integration.integration_id, ADA, None, [])
    assert status(system, integration) is Status.EXPIRED


@pytest.mark.slow
async def test_the_first_success_ends_the_pauses_of_the_type(system: FakeSystem) -> None:
    """A provider recovers for all of its integrations at once."""
    integrations = [await system.connect_account(f"account-{number}") for number in range(20)]
    system.clock.advance(HOUR)
    system.provider.refresh_error = ProviderRejected("grant", oauth_error="access_denied")
    for _ in range(8):
        for integration in integrations:
            with pytest.raises(ProviderRejected):
                await system.refresher.refresh(system.row(integration.integration_id), RefreshCause.FORCE)
        system.clock.advance(FORCED_INTERVAL)
    system.provider.refresh_error = None
    first, *others = integrations
    await system.refresher.refresh(system.row(first.integration_id), RefreshCause.FORCE)
    for integration in others:
        row = system.row(integration.integration_id)
        assert row.refresh_retry_time is None
        assert row.refresh_due_time is not None
        assert row.refresh_due_time - system.clock() <= timedelta(seconds=30)
