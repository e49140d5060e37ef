"""The contract of `HealthHistory`, which every implementation passes."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from integration_server.domain.health import ErrorRate, HealthCheck, HealthCounts
from integration_server.domain.integration import Failure, Integration, Status
from integration_server.service.health.ports import CompletedCheck, HealthHistory
from integration_server.service.integrations.ports import IntegrationUpdate
from tests.contracts.integration_rows import (
    ANN,
    BOB,
    FAILURE,
    LARGE_PAGE,
    LATER,
    NOW,
    IntegrationRows,
    account,
    create_connected,
    failed_check,
    list_connected,
    new_credentials,
    new_integration,
    reload,
    successful_check,
    update_settings,
)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


async def list_checks(
    history: HealthHistory, integration: Integration, before: int | None = None, limit: int = 10
) -> Sequence[tuple[int, HealthCheck]]:
    """The checks of a large page."""
    return (await history.list(integration, before, limit, LARGE_PAGE)).items


class HealthHistoryContract:
    """A subclass provides the fixtures `history` and `integrations`, views of one empty store."""

    async def test_a_check_sets_and_clears_the_last_error(
        self, integrations: IntegrationRows, history: HealthHistory
    ) -> None:
        integration = await create_connected(integrations)
        for count in (1, 2):
            check_time = LATER - timedelta(minutes=5 - count)
            await history.record([CompletedCheck(replace(failed_check(integration), check_time=check_time), LATER)])
            stored = await reload(integrations, integration)
            failure = Failure("PROVIDER_UNAVAILABLE", check_time, "the provider does not respond as expected")
            assert (stored.last_error, stored.error_count, stored.last_health_check) == (failure, count, check_time)
        await history.record([CompletedCheck(successful_check(integration), LATER)])
        assert await reload(integrations, integration) == replace(
            integration, last_health_check=LATER, check_due_time=LATER
        )

    async def test_a_failure_during_the_check_is_counted_once(
        self, integrations: IntegrationRows, history: HealthHistory
    ) -> None:
        integration = await create_connected(integrations)
        check = failed_check(integration)
        await integrations.record_failure(integration, replace(FAILURE, time=check.check_time))
        await history.record([CompletedCheck(check, None)])
        assert (await reload(integrations, integration)).error_count == 1

    async def test_a_check_of_previous_credentials_does_not_change_the_error(
        self, integrations: IntegrationRows, history: HealthHistory
    ) -> None:
        before = await create_connected(integrations)
        current = await integrations.commit_refresh(before, new_credentials(), NOW)
        assert current is not None
        await history.record([CompletedCheck(failed_check(before), LATER)])
        assert await reload(integrations, before) == replace(current, last_health_check=LATER, check_due_time=LATER)

        await integrations.record_failure(current, FAILURE)
        await history.record([CompletedCheck(successful_check(before), LATER)])
        assert (await reload(integrations, before)).last_error == FAILURE

    async def test_a_check_of_a_removed_integration_is_not_stored(
        self, integrations: IntegrationRows, history: HealthHistory
    ) -> None:
        integration = await create_connected(integrations)
        await integrations.remove(integration.integration_id, ANN)
        await history.record([CompletedCheck(successful_check(integration), LATER)])
        assert await integrations.find(integration.integration_id, ANN) is None

    async def test_concurrent_checks_and_removals_succeed(
        self, integrations: IntegrationRows, history: HealthHistory
    ) -> None:
        rows = [await create_connected(integrations) for _ in range(10)]
        await asyncio.gather(
            *(history.record([CompletedCheck(successful_check(row), LATER)]) for row in rows),
            *(integrations.remove(row.integration_id, ANN) for row in rows),
        )
        assert await list_connected(integrations) == []

    # --- queries -----------------------------------------------------------------------------------------------------

    async def test_lists_the_newest_first_and_continues_before_an_id(
        self, integrations: IntegrationRows, history: HealthHistory
    ) -> None:
        integration, other = await create_connected(integrations), await create_connected(integrations)
        checks = [successful_check(integration, latency=timedelta(milliseconds=number)) for number in range(5)]
        checks[3] = failed_check(integration)
        for check in checks:
            await history.record([CompletedCheck(check, None)])
            await history.record([CompletedCheck(successful_check(other), None)])
        first = await list_checks(history, integration, None, 3)
        rest = await list_checks(history, integration, first[-1][0], 3)
        assert [check for _, check in (*first, *rest)] == checks[::-1]
        assert await list_checks(history, integration, rest[-1][0], 3) == []

    async def test_reports_the_error_rates(self, integrations: IntegrationRows, history: HealthHistory) -> None:
        integration, other = await create_connected(integrations), await create_connected(integrations)
        for age, healthy in ((timedelta(0), False), (HOUR / 2, True), (2 * HOUR, False), (5 * DAY, False)):
            check = successful_check(integration) if healthy else failed_check(integration)
            await history.record([CompletedCheck(replace(check, check_time=NOW - age), None)])
        await history.record([CompletedCheck(replace(failed_check(other), check_time=NOW), None)])
        windows = (HOUR, DAY, 7 * DAY, timedelta(seconds=1))
        assert await history.error_rates(integration, windows, NOW) == [
            ErrorRate(HOUR, checks=2, failures=1),
            ErrorRate(DAY, checks=3, failures=2),
            ErrorRate(7 * DAY, checks=4, failures=3),
            ErrorRate(timedelta(seconds=1), checks=1, failures=1),
        ]
        no_checks = ErrorRate(HOUR, 0, 0)
        assert await history.error_rates(await create_connected(integrations), (HOUR,), NOW) == [no_checks]

    async def test_another_user_reads_nothing(self, integrations: IntegrationRows, history: HealthHistory) -> None:
        integration = await create_connected(integrations)
        await history.record([CompletedCheck(failed_check(integration), None)])
        as_bob = replace(integration, user_id=BOB)
        assert await list_checks(history, as_bob, None, 10) == []
        assert await history.error_rates(as_bob, (7 * DAY,), LATER) == [ErrorRate(7 * DAY, 0, 0)]

    async def test_prunes_old_checks(self, integrations: IntegrationRows, history: HealthHistory) -> None:
        integration = await create_connected(integrations)
        for age in range(5):
            await history.record(
                [CompletedCheck(replace(successful_check(integration), check_time=NOW - age * HOUR), None)]
            )
        while await history.prune(NOW - 2 * HOUR):
            pass
        assert [check.check_time for _, check in await list_checks(history, integration, None, 10)] == [
            NOW - 2 * HOUR,
            NOW - HOUR,
            NOW,
        ]

    @pytest.mark.parametrize(("max_bytes", "pages"), [(0, [1, 1, 1]), (7_000, [1, 2]), (100_000, [3])])
    async def test_a_page_is_bounded_in_bytes(
        self, integrations: IntegrationRows, history: HealthHistory, max_bytes: int, pages: list[int]
    ) -> None:
        integration = await create_connected(integrations)
        for size in (2_000, 0, 6_500):
            await history.record([CompletedCheck(replace(failed_check(integration), message="x" * size), None)])
        before, found, is_last = None, list[int](), False
        while not is_last:
            page = await history.list(integration, before, 10, max_bytes)
            found.append(len(page.items))
            before, is_last = page.items[-1][0], page.is_last
        assert found == pages

    # --- counts ------------------------------------------------------------------------------------------------------

    async def test_counts_integrations_by_their_last_check(
        self, integrations: IntegrationRows, history: HealthHistory
    ) -> None:
        await create_connected(integrations)  # connecting was its first check
        healthy, failing, ended, inactive = [await create_connected(integrations) for _ in range(4)]
        await history.record([CompletedCheck(failed_check(healthy), None)])
        await history.record([CompletedCheck(successful_check(healthy), None)])
        await history.record([CompletedCheck(failed_check(failing), None)])
        await integrations.record_failure(ended, None, reauthorization_required=True)
        await history.record([CompletedCheck(failed_check(inactive), None)])
        await update_settings(integrations, inactive, IntegrationUpdate(is_active=False))
        await create_connected(integrations, BOB)
        assert await history.counts(ANN, None, NOW) == HealthCounts(total=5, healthy=2, error=2, inactive=1)

    async def test_counts_agree_with_the_status_of_each_integration(
        self, integrations: IntegrationRows, history: HealthHistory
    ) -> None:
        credentials = {
            "works": new_credentials(),
            "lacks a scope": new_credentials(lacks_required_scope=True),
            "expires": new_credentials(is_renewable=False),
            "never expires": new_credentials(is_renewable=False, access_token_expire_time=None),
        }
        rows = [
            await integrations.add_connected(new_integration(), account(None), new, NOW) for new in credentials.values()
        ]
        for now in (NOW, NOW + HOUR - timedelta(microseconds=1), NOW + HOUR, NOW + DAY):
            statuses = [row.status(now) for row in rows if row is not None]
            healthy = statuses.count(Status.ACTIVE)
            assert await history.counts(ANN, None, now) == HealthCounts(4, healthy, 4 - healthy, 0)

    async def test_counts_only_the_given_types_and_no_pending_integrations(
        self, integrations: IntegrationRows, history: HealthHistory
    ) -> None:
        await create_connected(integrations)
        await create_connected(integrations, integration_type="other")
        assert await history.counts(ANN, ["other"], NOW) == HealthCounts(1, 1, 0, 0)
        assert await history.counts(ANN, [], NOW) == HealthCounts(0, 0, 0, 0)
        assert await history.counts(BOB, None, NOW) == HealthCounts(0, 0, 0, 0)
