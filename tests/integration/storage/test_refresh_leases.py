"""Leases on both databases, by the databases' own clocks."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from integration_server.domain.integration import Integration
from integration_server.storage.database_time import DatabaseTime
from integration_server.storage.engine import Database
from integration_server.storage.integrations import SqlIntegrations
from integration_server.storage.refresh_leases import SqlRefreshLeases
from tests.contracts.store_contract import FAILURE, NOW, account, new_credentials, new_integration

LONG, EXPIRED = timedelta(minutes=1), timedelta(seconds=-1)


@pytest.fixture
async def integration(database: Database) -> Integration:
    """A connected one."""
    row = await SqlIntegrations(database).add_connected(new_integration(), account("account-1"), new_credentials(), NOW)
    assert row is not None
    return row


@pytest.fixture
def leases(database: Database) -> SqlRefreshLeases:
    """Leases that last longer than any test."""
    return SqlRefreshLeases(database, LONG)


@pytest.fixture
def expired_leases(database: Database) -> SqlRefreshLeases:
    """Leases that have lapsed when they are given."""
    return SqlRefreshLeases(database, EXPIRED)


async def test_the_database_returns_its_own_time(database: Database) -> None:
    async with database.read_connection() as connection:
        now, later = (await connection.execute(select(DatabaseTime(), DatabaseTime(LONG)))).one()
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=30)
    assert abs(later - now - LONG) < timedelta(seconds=1)


async def test_the_database_time_moves_within_a_transaction(database: Database) -> None:
    async with database.write_transaction() as connection:
        first = await connection.scalar(select(DatabaseTime()))
        await asyncio.sleep(0.01)
        second = await connection.scalar(select(DatabaseTime()))
    assert first is not None
    assert second is not None
    assert second > first


async def test_one_of_many_gets_the_lease(leases: SqlRefreshLeases, integration: Integration) -> None:
    claims = await asyncio.gather(*(leases.claim(integration, f"owner-{number}") for number in range(50)))
    assert sum(claim is not None for claim in claims) == 1
    assert not await leases.is_free(integration)


async def test_a_lapsed_lease_can_be_taken_over_and_only_then(
    expired_leases: SqlRefreshLeases, leases: SqlRefreshLeases, integration: Integration
) -> None:
    assert await expired_leases.claim(integration, "first")
    assert await leases.is_free(integration)
    assert await leases.claim(integration, "second")
    assert await leases.claim(integration, "third") is None


async def test_an_unresolved_call_of_an_expired_owner_is_reported(
    expired_leases: SqlRefreshLeases, leases: SqlRefreshLeases, integration: Integration
) -> None:
    lease = await leases.claim(integration, "lost")
    assert lease is not None
    assert lease.previous_call_age is None
    await leases.release(lease, outcome_known=False)
    for _ in range(2):  # however many look at it
        follower = await expired_leases.claim(integration, "follower")
        assert follower is not None
        assert follower.previous_call_age is not None
        assert timedelta(0) <= follower.previous_call_age < LONG


async def test_what_is_settled_is_forgotten(leases: SqlRefreshLeases, integration: Integration) -> None:
    lease = await leases.claim(integration, "first")
    assert lease is not None
    await leases.release(lease, outcome_known=True)
    follower = await leases.claim(integration, "second")
    assert follower is not None
    assert follower.previous_call_age is None


async def test_who_settles_a_call_settles_no_earlier_one(
    leases: SqlRefreshLeases, expired_leases: SqlRefreshLeases, integration: Integration
) -> None:
    assert await expired_leases.claim(integration, "lost")
    follower = await expired_leases.claim(integration, "follower")
    assert follower is not None
    await leases.release(follower, outcome_known=True)
    next_one = await leases.claim(integration, "next")
    assert next_one is not None
    assert next_one.previous_call_age is not None


async def test_only_the_owner_releases(leases: SqlRefreshLeases, integration: Integration) -> None:
    lease = await leases.claim(integration, "owner")
    assert lease is not None
    stranger = type(lease)(lease.integration_id, lease.version, "stranger", None)
    for outcome_known in (True, False):
        await leases.release(stranger, outcome_known=outcome_known)
        assert not await leases.is_free(integration)


async def test_new_credentials_void_leases_on_the_old(
    database: Database, leases: SqlRefreshLeases, integration: Integration
) -> None:
    assert await leases.claim(integration, "old")
    reconnected = await SqlIntegrations(database).commit_connection(
        integration, account("account-1"), new_credentials(), NOW
    )
    assert reconnected is not None
    assert await leases.is_free(reconnected)
    follower = await leases.claim(reconnected, "new")
    assert follower is not None
    assert follower.previous_call_age is None
    assert await leases.claim(integration, "late") is None  # who has not seen the new version gets nothing


async def test_who_has_seen_old_credentials_only_takes_no_mark_of_the_new_away(
    database: Database, leases: SqlRefreshLeases, expired_leases: SqlRefreshLeases, integration: Integration
) -> None:
    renewed = await SqlIntegrations(database).commit_refresh(integration, new_credentials(), NOW)
    assert renewed is not None
    lease = await leases.claim(renewed, "lost")
    assert lease is not None
    await leases.release(lease, outcome_known=False)
    assert await expired_leases.claim(integration, "late") is None
    follower = await leases.claim(renewed, "next")
    assert follower is not None
    assert follower.previous_call_age is not None


async def test_a_committed_refresh_ends_its_lease_and_clears_what_befell_it(
    database: Database, leases: SqlRefreshLeases, integration: Integration
) -> None:
    store = SqlIntegrations(database)
    await leases.claim(integration, "owner")
    await store.record_failure(integration, FAILURE, reauthorization_required=True, retry_time=NOW, refusals=3)
    stored = await store.find(integration.integration_id, integration.user_id)
    assert stored is not None
    assert (stored.integration.refresh_retry_time, stored.integration.refresh_refusals) == (NOW, 3)
    renewed = await store.commit_refresh(integration, new_credentials(), NOW)
    assert renewed is not None
    assert (renewed.refresh_retry_time, renewed.refresh_refusals, renewed.reauthorization_required) == (None, 0, False)
    assert await leases.is_free(renewed)
    assert await leases.claim(renewed, "next")


async def test_who_lost_the_lease_before_the_call_leaves_no_mark(
    leases: SqlRefreshLeases, expired_leases: SqlRefreshLeases, integration: Integration
) -> None:
    sleeper = await expired_leases.claim(integration, "sleeper")
    waiting = await leases.claim(integration, "waiting")
    assert sleeper is not None
    assert waiting is not None
    assert waiting.previous_call_age is not None
    await leases.release(waiting, outcome_known=True)
    await leases.release(sleeper, outcome_known=True)
    follower = await leases.claim(integration, "follower")
    assert follower is not None
    assert follower.previous_call_age is None


async def test_who_lost_the_lease_leaves_the_mark_of_the_one_who_has_it(
    leases: SqlRefreshLeases, expired_leases: SqlRefreshLeases, integration: Integration
) -> None:
    sleeper = await expired_leases.claim(integration, "sleeper")
    replaying = await leases.claim(integration, "replaying")
    assert sleeper is not None
    assert replaying is not None
    await leases.release(sleeper, outcome_known=True)
    assert not await leases.is_free(integration)
    await leases.release(replaying, outcome_known=False)
    follower = await leases.claim(integration, "follower")
    assert follower is not None
    assert follower.previous_call_age is not None


@pytest.mark.parametrize("change", ["switched off", "invalid_grant", "renewed"])
async def test_an_integration_that_is_not_as_it_was_seen_gives_no_lease(
    database: Database, leases: SqlRefreshLeases, integration: Integration, change: str
) -> None:
    store = SqlIntegrations(database)
    if change == "switched off":
        await store.update(integration.integration_id, integration.user_id, NOW, is_active=False)
    elif change == "invalid_grant":
        await store.record_failure(integration, FAILURE, reauthorization_required=True)
    else:
        await store.commit_refresh(integration, new_credentials(), NOW)
    assert await leases.claim(integration, "late") is None


async def test_an_integration_that_is_gone_gives_no_lease(
    database: Database, leases: SqlRefreshLeases, integration: Integration
) -> None:
    await leases.claim(integration, "owner")
    await SqlIntegrations(database).remove(integration.integration_id, integration.user_id)
    assert await leases.claim(integration, "late") is None


@pytest.mark.parametrize("outcome_known", [False, True])
async def test_who_removes_learns_of_a_call_that_is_not_settled(
    database: Database, leases: SqlRefreshLeases, integration: Integration, outcome_known: bool
) -> None:
    lease = await leases.claim(integration, "owner")
    assert lease is not None
    await leases.release(lease, outcome_known=outcome_known)
    removed = await SqlIntegrations(database).remove(integration.integration_id, integration.user_id)
    assert removed is not None
    assert removed.is_refreshing is not outcome_known


async def test_a_call_on_former_credentials_is_none_of_the_removers(
    database: Database, leases: SqlRefreshLeases, integration: Integration
) -> None:
    assert await leases.claim(integration, "owner")
    store = SqlIntegrations(database)
    await store.commit_connection(integration, account("account-1"), new_credentials(), NOW)
    removed = await store.remove(integration.integration_id, integration.user_id)
    assert removed is not None
    assert not removed.is_refreshing


async def test_of_a_removal_and_a_claim_at_once_one_knows_of_the_other(
    database: Database, leases: SqlRefreshLeases
) -> None:
    store = SqlIntegrations(database)

    async def race(number: int) -> None:
        row = await store.add_connected(new_integration(), account(f"racer-{number}"), new_credentials(), NOW)
        assert row is not None
        if number % 2:  # then a former version's lease is there
            await leases.claim(row, "former owner")
            renewed = await store.commit_refresh(row, new_credentials(), NOW)
            assert renewed is not None
            row = renewed
        lease, removed = await asyncio.gather(leases.claim(row, "owner"), store.remove(row.integration_id, row.user_id))
        assert removed is not None
        assert removed.is_refreshing is (lease is not None)

    for first in range(0, 80, 8):  # no more at once than can wait for one writer
        await asyncio.gather(*(race(number) for number in range(first, first + 8)))
