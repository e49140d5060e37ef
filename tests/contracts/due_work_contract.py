"""The contract of `DueWork`, which every implementation passes."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from integration_server.domain.integration import Integration
from integration_server.service.background.ports import DueWork, JobKind
from integration_server.service.connections.ports import AuthorizationAttemptStore
from integration_server.service.integrations.ports import IntegrationStore, IntegrationUpdate, NewCredentials
from tests.contracts.store_contract import (
    BOB,
    EXPIRED_CLAIM,
    FAILURE,
    LATER,
    LONG_CLAIM,
    NOW,
    account,
    create_pending,
    find_stored,
    list_due_types,
    new_integration,
    reload,
    update_settings,
)

SECOND = timedelta(seconds=1)
PAST, FUTURE = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


async def add_due(
    integrations: IntegrationStore, due_time: datetime | None, integration_type: str = "acme"
) -> Integration:
    """Store an integration whose refresh and health check are due at this time."""
    integration = await integrations.add_connected(
        new_integration(integration_type=integration_type),
        account(None),
        NewCredentials(b"encrypted", is_renewable=True, refresh_due_time=due_time),
        NOW,
        check_due_time=due_time,
    )
    assert integration is not None
    return integration


@pytest.mark.parametrize("job_kind", [JobKind.REFRESH, JobKind.CHECK])
class DueWorkContract:
    """A subclass provides the fixtures `due_work`, `integrations` and `attempts`, views of one empty store."""

    async def test_claims_the_longest_due_first(
        self, due_work: DueWork, integrations: IntegrationStore, job_kind: JobKind
    ) -> None:
        rows = [await add_due(integrations, PAST - number * SECOND) for number in range(4)]
        claims = await due_work.claim(job_kind, "acme", 2, claim_duration=LONG_CLAIM)
        assert {claim.row_id for claim in claims} == {row.integration_id for row in rows[2:]}
        for claim in claims:
            assert claim.item == await find_stored(integrations, claim.item.integration.integration_id)
            assert getattr(claim.item.integration, f"{job_kind.value}_due_time") == claim.due_time > PAST

    async def test_a_claimed_row_is_due_again_when_the_claim_expires(
        self, due_work: DueWork, integrations: IntegrationStore, job_kind: JobKind
    ) -> None:
        await add_due(integrations, PAST)
        assert len(await due_work.claim(job_kind, "acme", 5, claim_duration=EXPIRED_CLAIM)) == 1
        assert len(await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM)) == 1
        assert await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM) == []

    async def test_lists_the_types_with_due_rows(
        self, due_work: DueWork, integrations: IntegrationStore, job_kind: JobKind
    ) -> None:
        for due_time, integration_type in (
            (FUTURE, "a future type"),
            (PAST, "acme"),
            (PAST, "acme"),
            (PAST, "another"),
            (None, "never"),
        ):
            await add_due(integrations, due_time, integration_type)
        assert await list_due_types(due_work, job_kind) == ["acme", "another"]
        await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM)
        assert await list_due_types(due_work, job_kind) == ["another"]
        for integration_type in ("a future type", "never", "unknown"):
            assert await due_work.claim(job_kind, integration_type, 5, claim_duration=LONG_CLAIM) == []

    async def test_concurrent_claims_do_not_share_rows(
        self, due_work: DueWork, integrations: IntegrationStore, job_kind: JobKind
    ) -> None:
        rows = [await add_due(integrations, PAST) for _ in range(20)]
        results = await asyncio.gather(
            *(due_work.claim(job_kind, "acme", 3, claim_duration=LONG_CLAIM) for _ in range(10))
        )
        claimed = [claim.row_id for claims in results for claim in claims]
        assert len(claimed) == len(set(claimed))
        while more := await due_work.claim(job_kind, "acme", 3, claim_duration=LONG_CLAIM):
            claimed += [claim.row_id for claim in more]
        assert sorted(map(int, claimed)) == [row.integration_id for row in rows]

    async def test_skips_inactive_expired_and_pending_integrations(
        self, due_work: DueWork, integrations: IntegrationStore, attempts: AuthorizationAttemptStore, job_kind: JobKind
    ) -> None:
        inactive, expired = await add_due(integrations, PAST), await add_due(integrations, PAST)
        await update_settings(integrations, inactive, IntegrationUpdate(is_active=False), NOW)
        await integrations.record_failure(expired, FAILURE, reauthorization_required=True, refresh_due_time=PAST)
        await create_pending(integrations, attempts, BOB)
        assert await list_due_types(due_work, job_kind) == []
        assert await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM) == []
        await update_settings(integrations, inactive, IntegrationUpdate(is_active=True), NOW)
        assert len(await due_work.claim(job_kind, "acme", 5, claim_duration=LONG_CLAIM)) == 1


class RefreshDueTimeContract:
    """The due time of the next refresh. A subclass provides the fixture `integrations`."""

    async def test_new_credentials_set_the_due_time(self, integrations: IntegrationStore) -> None:
        integration = await add_due(integrations, NOW)
        credentials = NewCredentials(b"new", is_renewable=True, refresh_due_time=LATER)
        committed = await integrations.commit_refresh(integration, credentials, NOW)
        assert committed is not None
        assert (committed.refresh_due_time, committed.check_due_time) == (LATER, NOW)

    async def test_a_failure_changes_only_a_due_time_that_was_set(self, integrations: IntegrationStore) -> None:
        proactive, on_demand = await add_due(integrations, NOW), await add_due(integrations, None)
        for integration in (proactive, on_demand):
            await integrations.record_failure(integration, FAILURE, refresh_due_time=LATER)
        assert (await reload(integrations, proactive)).refresh_due_time == LATER
        assert (await reload(integrations, on_demand)).refresh_due_time is None

    async def test_expiring_integrations_are_listed_by_expiry(self, integrations: IntegrationStore) -> None:
        async def expiring(*, refresh: datetime | None, access: datetime | None, renewable: bool) -> Integration:
            integration = await integrations.add_connected(
                new_integration(),
                account(None),
                NewCredentials(
                    b"encrypted",
                    is_renewable=renewable,
                    refresh_token_expire_time=refresh,
                    access_token_expire_time=access,
                ),
                NOW,
            )
            assert integration is not None
            return integration

        second = await expiring(refresh=NOW + 3 * SECOND, access=NOW, renewable=True)
        first = await expiring(refresh=None, access=NOW + SECOND, renewable=False)
        await expiring(refresh=None, access=NOW + SECOND, renewable=True)
        await expiring(refresh=NOW + 9 * SECOND, access=NOW, renewable=True)
        inactive = await expiring(refresh=NOW, access=NOW, renewable=True)
        await update_settings(integrations, inactive, IntegrationUpdate(is_active=False), NOW)
        assert await integrations.list_expiring(NOW + 5 * SECOND, 10) == [first, second]
        assert await integrations.list_expiring(NOW + 5 * SECOND, 1) == [first]
