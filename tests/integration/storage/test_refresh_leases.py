"""Tests of refresh leases on both databases, with the databases' clocks."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from integration_server.domain.credentials import RefreshCause
from integration_server.domain.integration import Integration
from integration_server.service.integrations.ports import IntegrationUpdate
from integration_server.storage.engine import Database, DatabaseTime
from integration_server.storage.refresh_leases import SqlRefreshLeases
from tests.contracts.integration_rows import (
    FAILURE,
    NOW,
    SqlRows,
    account,
    new_credentials,
    new_integration,
    update_settings,
)

LONG_DURATION, EXPIRED_DURATION = timedelta(minutes=1), timedelta(seconds=-1)


@pytest.fixture
async def integration(database: Database) -> Integration:
    """A connected integration."""
    row = await SqlRows(database).add_connected(new_integration(), account("account-1"), new_credentials(), NOW)
    assert row is not None
    return row


@pytest.fixture
def leases(database: Database) -> SqlRefreshLeases:
    """Leases that last longer than any test."""
    return SqlRefreshLeases(database, LONG_DURATION, LONG_DURATION)


@pytest.fixture
def expired_leases(database: Database) -> SqlRefreshLeases:
    """Leases that expire at once."""
    return SqlRefreshLeases(database, EXPIRED_DURATION, LONG_DURATION)


async def test_database_time_is_the_current_time_plus_the_delay(database: Database) -> None:
    async with database.read_connection() as connection:
        now, later = (await connection.execute(select(DatabaseTime(), DatabaseTime(LONG_DURATION)))).one()
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=30)
    assert abs(later - now - LONG_DURATION) < timedelta(seconds=1)


async def test_database_time_advances_within_a_transaction(database: Database) -> None:
    async with database.write_transaction() as connection:
        first = await connection.scalar(select(DatabaseTime()))
        await asyncio.sleep(0.01)
        second = await connection.scalar(select(DatabaseTime()))
    assert first is not None
    assert second is not None
    assert second > first


async def test_of_concurrent_claims_one_gets_the_lease(leases: SqlRefreshLeases, integration: Integration) -> None:
    claims = await asyncio.gather(*(leases.claim(integration, f"owner-{number}") for number in range(50)))
    assert sum(claim is not None for claim in claims) == 1
    assert not (await leases.state(integration)).is_free


async def test_only_an_expired_lease_can_be_taken_over(
    expired_leases: SqlRefreshLeases, leases: SqlRefreshLeases, integration: Integration
) -> None:
    assert await expired_leases.claim(integration, "first")
    assert (await leases.state(integration)).is_free
    assert await leases.claim(integration, "second")
    assert await leases.claim(integration, "third") is None


async def test_an_unresolved_call_of_an_expired_owner_is_reported(
    expired_leases: SqlRefreshLeases, leases: SqlRefreshLeases, integration: Integration
) -> None:
    lease = await leases.claim(integration, "lost")
    assert lease is not None
    assert lease.previous_call_age is None
    await leases.release(lease, outcome_known=False)
    for _ in range(2):  # a claim does not clear it
        next_lease = await expired_leases.claim(integration, "next")
        assert next_lease is not None
        assert next_lease.previous_call_age is not None
        assert timedelta(0) <= next_lease.previous_call_age < LONG_DURATION


async def test_a_call_with_known_outcome_is_not_reported(leases: SqlRefreshLeases, integration: Integration) -> None:
    lease = await leases.claim(integration, "first")
    assert lease is not None
    await leases.release(lease, outcome_known=True)
    next_lease = await leases.claim(integration, "second")
    assert next_lease is not None
    assert next_lease.previous_call_age is None


async def test_a_known_outcome_does_not_clear_an_earlier_unresolved_call(
    leases: SqlRefreshLeases, expired_leases: SqlRefreshLeases, integration: Integration
) -> None:
    assert await expired_leases.claim(integration, "lost")
    next_lease = await expired_leases.claim(integration, "next")
    assert next_lease is not None
    await leases.release(next_lease, outcome_known=True)
    next_lease = await leases.claim(integration, "next")
    assert next_lease is not None
    assert next_lease.previous_call_age is not None


async def test_only_the_owner_releases_a_lease(leases: SqlRefreshLeases, integration: Integration) -> None:
    lease = await leases.claim(integration, "owner")
    assert lease is not None
    other_lease = type(lease)(lease.integration_id, lease.version, "other owner", None)
    for outcome_known in (True, False):
        await leases.release(other_lease, outcome_known=outcome_known)
        assert not (await leases.state(integration)).is_free


async def test_new_credentials_end_leases_on_previous_credentials(
    database: Database, leases: SqlRefreshLeases, integration: Integration
) -> None:
    assert await leases.claim(integration, "old")
    reconnected = await SqlRows(database).commit_connection(integration, account("account-1"), new_credentials(), NOW)
    assert reconnected is not None
    assert (await leases.state(reconnected)).is_free
    next_lease = await leases.claim(reconnected, "new")
    assert next_lease is not None
    assert next_lease.previous_call_age is None
    assert await leases.claim(integration, "late") is None  # a claim on the previous version fails


async def test_a_claim_on_previous_credentials_does_not_clear_an_unresolved_call(
    database: Database, leases: SqlRefreshLeases, expired_leases: SqlRefreshLeases, integration: Integration
) -> None:
    refreshed = await SqlRows(database).commit_refresh(integration, new_credentials(), NOW)
    assert refreshed is not None
    lease = await leases.claim(refreshed, "lost")
    assert lease is not None
    await leases.release(lease, outcome_known=False)
    assert await expired_leases.claim(integration, "late") is None
    next_lease = await leases.claim(refreshed, "next")
    assert next_lease is not None
    assert next_lease.previous_call_age is not None


async def test_a_committed_refresh_ends_its_lease_and_clears_failures(
    database: Database, leases: SqlRefreshLeases, integration: Integration
) -> None:
    store = SqlRows(database)
    await leases.claim(integration, "owner")
    await store.record_failure(integration, FAILURE, reauthorization_required=True, retry_time=NOW, failures=3)
    stored = await store.find(integration.integration_id, integration.user_id)
    assert stored is not None
    assert (stored.integration.refresh_retry_time, stored.integration.refresh_failures) == (NOW, 3)
    refreshed = await store.commit_refresh(integration, new_credentials(), NOW)
    assert refreshed is not None
    assert (refreshed.refresh_retry_time, refreshed.refresh_failures, refreshed.reauthorization_required) == (
        None,
        0,
        False,
    )
    assert (await leases.state(refreshed)).is_free
    assert await leases.claim(refreshed, "next")


async def test_an_owner_that_lost_its_lease_before_the_call_leaves_no_unresolved_call(
    leases: SqlRefreshLeases, expired_leases: SqlRefreshLeases, integration: Integration
) -> None:
    paused = await expired_leases.claim(integration, "paused")
    waiting = await leases.claim(integration, "waiting")
    assert paused is not None
    assert waiting is not None
    assert waiting.previous_call_age is not None
    await leases.release(waiting, outcome_known=True)
    await leases.release(paused, outcome_known=True)
    next_lease = await leases.claim(integration, "next")
    assert next_lease is not None
    assert next_lease.previous_call_age is None


async def test_a_release_after_a_takeover_does_not_change_the_new_owners_call(
    leases: SqlRefreshLeases, expired_leases: SqlRefreshLeases, integration: Integration
) -> None:
    paused = await expired_leases.claim(integration, "paused")
    replaying = await leases.claim(integration, "replaying")
    assert paused is not None
    assert replaying is not None
    await leases.release(paused, outcome_known=True)
    assert not (await leases.state(integration)).is_free
    await leases.release(replaying, outcome_known=False)
    next_lease = await leases.claim(integration, "next")
    assert next_lease is not None
    assert next_lease.previous_call_age is not None


@pytest.mark.parametrize("change", ["deactivated", "invalid_grant", "refreshed"])
async def test_a_changed_integration_cannot_be_claimed(
    database: Database, leases: SqlRefreshLeases, integration: Integration, change: str
) -> None:
    store = SqlRows(database)
    if change == "deactivated":
        await update_settings(store, integration, IntegrationUpdate(is_active=False), NOW)
    elif change == "invalid_grant":
        await store.record_failure(integration, FAILURE, reauthorization_required=True)
    else:
        await store.commit_refresh(integration, new_credentials(), NOW)
    assert await leases.claim(integration, "late") is None


# --- forced refreshes ------------------------------------------------------------------------------------------------

FORCED = [RefreshCause.FORCE, RefreshCause.DEMAND]


@pytest.mark.parametrize("cause", FORCED)
async def test_a_forced_claim_waits_for_the_interval_after_any_claim(
    leases: SqlRefreshLeases, integration: Integration, cause: RefreshCause
) -> None:
    assert (await leases.state(integration)).forced_wait == timedelta(0)
    for first in (cause, RefreshCause.EXPIRY):
        lease = await leases.claim(integration, "first", first)
        assert lease is not None
        await leases.release(lease, outcome_known=True, failure="PROVIDER_UNAVAILABLE")
        state = await leases.state(integration)
        assert state.is_free
        assert timedelta(0) < state.forced_wait <= LONG_DURATION
        assert state.failure == "PROVIDER_UNAVAILABLE"
        assert await leases.claim(integration, "second", cause) is None
    lease = await leases.claim(integration, "necessary")  # never blocked
    assert lease is not None
    assert (await leases.state(integration)).failure is None


async def test_of_concurrent_forced_claims_one_calls_although_its_lease_is_released(
    leases: SqlRefreshLeases, integration: Integration
) -> None:
    async def refresh(number: int) -> bool:
        lease = await leases.claim(integration, f"owner-{number}", FORCED[number % 2])
        if lease is not None:
            await leases.release(lease, outcome_known=True)
        return lease is not None

    assert sum(await asyncio.gather(*(refresh(number) for number in range(40)))) == 1


async def test_negative_control_without_an_interval_every_released_lease_is_claimed_again(
    database: Database, integration: Integration
) -> None:
    leases = SqlRefreshLeases(database, LONG_DURATION, timedelta(0))
    for number in range(5):
        lease = await leases.claim(integration, f"owner-{number}", RefreshCause.FORCE)
        assert lease is not None
        await leases.release(lease, outcome_known=True)


async def test_the_interval_outlasts_new_credentials_and_a_failure_does_not(
    database: Database, leases: SqlRefreshLeases, integration: Integration
) -> None:
    lease = await leases.claim(integration, "first")
    assert lease is not None
    await leases.release(lease, outcome_known=True, failure="PROVIDER_REJECTED")
    refreshed = await SqlRows(database).commit_refresh(integration, new_credentials(), NOW)
    assert refreshed is not None
    state = await leases.state(refreshed)
    assert (state.is_free, state.failure) == (True, None)
    assert state.forced_wait > timedelta(0)
    assert await leases.claim(refreshed, "second", RefreshCause.DEMAND) is None


async def test_only_force_claims_for_a_grant_that_has_ended(database: Database, integration: Integration) -> None:
    leases = SqlRefreshLeases(database, EXPIRED_DURATION, timedelta(0))
    store = SqlRows(database)
    await store.record_failure(integration, FAILURE, reauthorization_required=True)
    for cause in (RefreshCause.EXPIRY, RefreshCause.DEMAND):
        assert await leases.claim(integration, "late", cause) is None
    assert await leases.claim(integration, "forced", RefreshCause.FORCE)
    await update_settings(store, integration, IntegrationUpdate(is_active=False))
    assert await leases.claim(integration, "forced", RefreshCause.FORCE) is None


# --- lost calls, and refusals ----------------------------------------------------------------------------------------


async def test_a_lost_call_is_reported_as_lost_until_there_are_new_credentials(
    database: Database, leases: SqlRefreshLeases, integration: Integration
) -> None:
    lease = await leases.claim(integration, "owner")
    assert lease is not None
    assert not lease.previous_call_is_lost
    await leases.release(lease, outcome_known=False, is_lost=True, failure="PROVIDER_UNAVAILABLE")
    for _ in range(2):  # a later call with a known outcome says nothing about the earlier one
        state = await leases.state(integration)
        assert (state.is_free, state.failure) == (True, "PROVIDER_UNAVAILABLE")
        assert (state.previous_call_is_lost, state.previous_call_age is not None) == (True, True)
        next_lease = await leases.claim(integration, "next")
        assert next_lease is not None
        assert (next_lease.previous_call_is_lost, next_lease.previous_call_age is not None) == (True, True)
        await leases.release(next_lease, outcome_known=True, failure="PROVIDER_UNAVAILABLE")
    refreshed = await SqlRows(database).commit_refresh(integration, new_credentials(), NOW)
    assert refreshed is not None
    state = await leases.state(refreshed)
    assert (state.previous_call_age, state.previous_call_is_lost) == (None, False)


async def test_a_repeated_call_that_is_lost_too_stays_lost(
    leases: SqlRefreshLeases, expired_leases: SqlRefreshLeases, integration: Integration
) -> None:
    assert await expired_leases.claim(integration, "crashed")
    repeating = await leases.claim(integration, "repeating")
    assert repeating is not None
    assert not repeating.previous_call_is_lost
    await leases.release(repeating, outcome_known=False, is_lost=True)
    assert (await leases.state(integration)).previous_call_is_lost


async def test_an_owner_without_its_lease_that_loses_its_response_leaves_the_new_owners_call(
    leases: SqlRefreshLeases, expired_leases: SqlRefreshLeases, integration: Integration
) -> None:
    paused = await expired_leases.claim(integration, "paused")
    assert paused is not None
    assert await leases.claim(integration, "replaying")
    await leases.release(paused, outcome_known=False, is_lost=True)
    state = await leases.state(integration)
    assert (state.is_free, state.previous_call_is_lost) == (False, False)


async def refuse(leases: SqlRefreshLeases, integration: Integration, failure: str = "REAUTHORIZATION_REQUIRED") -> None:
    lease = await leases.claim(integration, f"owner of {integration.integration_id}")
    assert lease is not None
    await leases.record_refusal(lease)
    await leases.release(lease, outcome_known=True, failure=failure)


async def test_the_latest_outcomes_of_a_type_are_those_of_all_owners(
    database: Database, leases: SqlRefreshLeases, integration: Integration
) -> None:
    store = SqlRows(database)

    async def connect(name: str) -> Integration:
        integration_type = "other" if name == "other type" else "acme"
        new = new_integration(integration_type=integration_type)
        row = await store.add_connected(new, account(name), new_credentials(), NOW)
        assert row is not None
        return row

    refused, spared, refreshed, failed, running, untouched, other_type = [
        await connect(name)
        for name in ("refused", "spared", "refreshed", "failed", "running", "untouched", "other type")
    ]
    for row in (refused, other_type, integration):
        await refuse(leases, row)
    await refuse(leases, spared, "PROVIDER_MISCONFIGURED")
    assert await leases.claim(refreshed, "owner")
    assert await store.commit_refresh(refreshed, new_credentials(), NOW)
    lease = await leases.claim(failed, "owner")
    assert lease is not None
    await leases.release(lease, outcome_known=True, failure="PROVIDER_UNAVAILABLE")
    assert await leases.claim(running, "owner")
    assert untouched.version == 0

    found = await leases.latest_outcomes(integration, LONG_DURATION, 10)
    assert [(outcome.integration.integration_id, outcome.is_refused) for outcome in found] == [
        (refreshed.integration_id, False),
        (spared.integration_id, True),
        (refused.integration_id, True),
    ]
    assert len(await leases.latest_outcomes(integration, LONG_DURATION, 2)) == 2
    assert not await leases.latest_outcomes(integration, timedelta(0), 10)


async def test_outcomes_are_sought_among_the_latest_claims_only(
    database: Database, leases: SqlRefreshLeases, integration: Integration
) -> None:
    """However many refreshes of the type have failed otherwise since: during an outage that is almost all of them."""
    store = SqlRows(database)
    rows = []
    for number in range(12):
        row = await store.add_connected(new_integration(), account(f"other-{number}"), new_credentials(), NOW)
        assert row is not None
        rows.append(row)
    await refuse(leases, rows[0])
    for number, row in enumerate(rows[1:], 1):
        assert len(await leases.latest_outcomes(integration, LONG_DURATION, 1)) == (number <= 10)
        lease = await leases.claim(row, "owner")
        assert lease is not None
        await leases.release(lease, outcome_known=True, failure="PROVIDER_UNAVAILABLE")
    assert await leases.latest_outcomes(integration, LONG_DURATION, 1) == []
    assert len(await leases.latest_outcomes(integration, LONG_DURATION, 2)) == 1  # negative control


async def test_a_refusal_is_remembered_by_the_next_claim_until_there_are_new_credentials(
    database: Database, leases: SqlRefreshLeases, integration: Integration
) -> None:
    await refuse(leases, integration)
    ages = []
    for number in range(2):
        lease = await leases.claim(integration, f"owner-{number}")
        assert lease is not None
        assert lease.refusal_age is not None
        ages.append(lease.refusal_age)
        await leases.record_refusal(lease)
        await leases.release(lease, outcome_known=True)
    assert timedelta(0) <= ages[0] <= ages[1] < LONG_DURATION  # since the first one
    refreshed = await SqlRows(database).commit_refresh(integration, new_credentials(), NOW)
    assert refreshed is not None
    lease = await leases.claim(refreshed, "owner")
    assert lease is not None
    assert lease.refusal_age is None


async def test_a_forced_refresh_of_an_ended_grant_is_no_outcome(
    database: Database, leases: SqlRefreshLeases, integration: Integration
) -> None:
    other = await SqlRows(database).add_connected(new_integration(), account("other"), new_credentials(), NOW)
    assert other is not None
    await refuse(leases, integration)
    await SqlRows(database).record_failure(integration, FAILURE, reauthorization_required=True)
    assert len(await leases.latest_outcomes(other, LONG_DURATION, 10)) == 1
    forced = await SqlRefreshLeases(database, LONG_DURATION, timedelta(0)).claim(
        integration, "forced", RefreshCause.FORCE
    )
    assert forced is not None
    await leases.release(forced, outcome_known=True, failure="REAUTHORIZATION_REQUIRED")
    assert not await leases.latest_outcomes(other, LONG_DURATION, 10)


# --- removal ---------------------------------------------------------------------------------------------------------


async def test_a_removed_integration_cannot_be_claimed(
    database: Database, leases: SqlRefreshLeases, integration: Integration
) -> None:
    await leases.claim(integration, "owner")
    await SqlRows(database).remove(integration.integration_id, integration.user_id)
    assert await leases.claim(integration, "late") is None


@pytest.mark.parametrize("outcome_known", [False, True])
async def test_a_removal_reports_an_unresolved_call(
    database: Database, leases: SqlRefreshLeases, integration: Integration, outcome_known: bool
) -> None:
    lease = await leases.claim(integration, "owner")
    assert lease is not None
    await leases.release(lease, outcome_known=outcome_known)
    removed = await SqlRows(database).remove(integration.integration_id, integration.user_id)
    assert removed is not None
    assert removed.is_refreshing is not outcome_known


async def test_a_removal_does_not_report_a_call_on_previous_credentials(
    database: Database, leases: SqlRefreshLeases, integration: Integration
) -> None:
    assert await leases.claim(integration, "owner")
    store = SqlRows(database)
    await store.commit_connection(integration, account("account-1"), new_credentials(), NOW)
    removed = await store.remove(integration.integration_id, integration.user_id)
    assert removed is not None
    assert not removed.is_refreshing


@pytest.mark.slow
async def test_a_removal_reports_a_concurrent_claim(database: Database, leases: SqlRefreshLeases) -> None:
    store = SqlRows(database)

    async def race(number: int) -> None:
        row = await store.add_connected(new_integration(), account(f"racer-{number}"), new_credentials(), NOW)
        assert row is not None
        if number % 2:  # with a lease on a previous version
            await leases.claim(row, "previous owner")
            refreshed = await store.commit_refresh(row, new_credentials(), NOW)
            assert refreshed is not None
            row = refreshed
        lease, removed = await asyncio.gather(leases.claim(row, "owner"), store.remove(row.integration_id, row.user_id))
        assert removed is not None
        assert removed.is_refreshing is (lease is not None)

    for first in range(0, 80, 8):  # limited to the number that can wait for one writer
        await asyncio.gather(*(race(number) for number in range(first, first + 8)))
