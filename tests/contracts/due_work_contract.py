"""What every `DueWork` must do, whatever it is made of."""

import asyncio
from datetime import datetime, timedelta

import pytest

from integration_server.domain.integration import Integration
from integration_server.service.background.ports import DueWork, JobKind
from integration_server.service.connections.ports import AuthorizationAttemptStore
from integration_server.service.integrations.ports import IntegrationStore, NewCredentials
from tests.contracts.store_contract import (
    ANN,
    BOB,
    FAILURE,
    NOW,
    account,
    found,
    new_integration,
    now_of,
    pending,
)

SECOND = timedelta(seconds=1)
CLAIMED_UNTIL = NOW + timedelta(minutes=1)


async def due(integrations: IntegrationStore, at: datetime | None, integration_type: str = "acme") -> Integration:
    """An integration with both kinds of work due then."""
    integration = await integrations.add_connected(
        new_integration(integration_type=integration_type),
        account(None),
        NewCredentials(b"sealed", is_renewable=True, refresh_due_time=at),
        NOW,
        check_due_time=at,
    )
    assert integration is not None
    return integration


@pytest.mark.parametrize("job_kind", JobKind)
class DueWorkContract:
    """The tests; who inherits them provides the fixtures `due_work`, `integrations` and `attempts`."""

    async def test_gives_what_has_waited_longest(
        self, due_work: DueWork, integrations: IntegrationStore, job_kind: JobKind
    ) -> None:
        rows = [await due(integrations, NOW - number * SECOND) for number in range(4)]
        claimed = await due_work.claim(job_kind, "acme", NOW, CLAIMED_UNTIL, 2)
        assert {stored.integration.integration_id for stored in claimed} == {row.integration_id for row in rows[2:]}
        for stored in claimed:
            assert stored == await found(integrations, stored.integration.integration_id)
            assert getattr(stored.integration, f"{job_kind.value}_due_time") == CLAIMED_UNTIL

    async def test_what_is_claimed_is_due_again_when_its_time_is_up(
        self, due_work: DueWork, integrations: IntegrationStore, job_kind: JobKind
    ) -> None:
        await due(integrations, NOW)
        assert len(await due_work.claim(job_kind, "acme", NOW, CLAIMED_UNTIL, 5)) == 1
        assert await due_work.claim(job_kind, "acme", CLAIMED_UNTIL - SECOND, CLAIMED_UNTIL, 5) == []
        assert len(await due_work.claim(job_kind, "acme", CLAIMED_UNTIL, CLAIMED_UNTIL + SECOND, 5)) == 1

    async def test_reports_the_types_with_due_work(
        self, due_work: DueWork, integrations: IntegrationStore, job_kind: JobKind
    ) -> None:
        for at, integration_type in ((NOW, "acme"), (NOW, "acme"), (NOW + SECOND, "later"), (None, "never")):
            await due(integrations, at, integration_type)
        assert await due_work.due_types(job_kind, NOW) == ["acme"]
        assert sorted(await due_work.due_types(job_kind, NOW + SECOND)) == ["acme", "later"]
        assert await due_work.claim(job_kind, "later", NOW, CLAIMED_UNTIL, 5) == []

    async def test_gives_each_to_one_of_many(
        self, due_work: DueWork, integrations: IntegrationStore, job_kind: JobKind
    ) -> None:
        rows = [await due(integrations, NOW) for _ in range(20)]
        results = await asyncio.gather(*(due_work.claim(job_kind, "acme", NOW, CLAIMED_UNTIL, 3) for _ in range(10)))
        claimed = [stored.integration.integration_id for answer in results for stored in answer]
        assert len(claimed) == len(set(claimed))
        while more := await due_work.claim(job_kind, "acme", NOW, CLAIMED_UNTIL, 3):
            claimed += [stored.integration.integration_id for stored in more]
        assert sorted(claimed) == [row.integration_id for row in rows]

    async def test_skips_inactive_expired_and_pending_integrations(
        self, due_work: DueWork, integrations: IntegrationStore, attempts: AuthorizationAttemptStore, job_kind: JobKind
    ) -> None:
        off, expired = await due(integrations, NOW), await due(integrations, NOW)
        await integrations.update(off.integration_id, ANN, NOW, is_active=False)
        await integrations.record_failure(expired, FAILURE, reauthorization_required=True, refresh_due_time=NOW)
        await pending(integrations, attempts, BOB)
        assert await due_work.due_types(job_kind, NOW) == []
        assert await due_work.claim(job_kind, "acme", NOW, CLAIMED_UNTIL, 5) == []
        await integrations.update(off.integration_id, ANN, NOW, is_active=True)
        assert len(await due_work.claim(job_kind, "acme", NOW, CLAIMED_UNTIL, 5)) == 1


class RefreshDueTimeContract:
    """When a refresh is due after the one before."""

    async def test_new_credentials_set_it(self, integrations: IntegrationStore) -> None:
        integration = await due(integrations, NOW)
        again = NewCredentials(b"new", is_renewable=True, refresh_due_time=CLAIMED_UNTIL)
        committed = await integrations.commit_refresh(integration, again, NOW)
        assert committed is not None
        assert (committed.refresh_due_time, committed.check_due_time) == (CLAIMED_UNTIL, NOW)

    async def test_a_failure_sets_it_where_it_was_set(self, integrations: IntegrationStore) -> None:
        by_itself, on_demand = await due(integrations, NOW), await due(integrations, None)
        for integration in (by_itself, on_demand):
            await integrations.record_failure(integration, FAILURE, refresh_due_time=CLAIMED_UNTIL)
        assert (await now_of(integrations, by_itself)).refresh_due_time == CLAIMED_UNTIL
        assert (await now_of(integrations, on_demand)).refresh_due_time is None

    async def test_those_that_end_are_listed_soonest_first(self, integrations: IntegrationStore) -> None:
        async def expiring(*, refresh: datetime | None, access: datetime | None, renewable: bool) -> Integration:
            integration = await integrations.add_connected(
                new_integration(),
                account(None),
                NewCredentials(
                    b"sealed",
                    is_renewable=renewable,
                    refresh_token_expire_time=refresh,
                    access_token_expire_time=access,
                ),
                NOW,
            )
            assert integration is not None
            return integration

        late = await expiring(refresh=NOW + 3 * SECOND, access=NOW, renewable=True)
        soon = await expiring(refresh=None, access=NOW + SECOND, renewable=False)
        await expiring(refresh=None, access=NOW + SECOND, renewable=True)
        await expiring(refresh=NOW + 9 * SECOND, access=NOW, renewable=True)
        off = await expiring(refresh=NOW, access=NOW, renewable=True)
        await integrations.update(off.integration_id, ANN, NOW, is_active=False)
        assert await integrations.list_expiring(NOW + 5 * SECOND, 10) == [soon, late]
        assert await integrations.list_expiring(NOW + 5 * SECOND, 1) == [soon]
