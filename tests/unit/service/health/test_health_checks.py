import asyncio
from datetime import timedelta

import pytest

from integration_server.domain.errors import (
    IntegrationNotFound,
    IntegrationPending,
    InvalidField,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    StoreUnavailable,
)
from integration_server.domain.health import HealthCheck
from integration_server.domain.integration import Integration, IntegrationId, Status, UserId
from integration_server.service.integrations.ports import IntegrationUpdate
from tests.fakes.provider import HOUR, wait_until
from tests.fakes.system import ADA, EVE, FakeSystem


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    return await system.connect()


async def check(system: FakeSystem, integration_id: int, user_id: UserId = ADA) -> HealthCheck:
    return await system.health_checker.check_health(IntegrationId(integration_id), user_id)


async def deactivate(system: FakeSystem, integration: Integration) -> None:
    await system.integration_manager.update_integration(
        integration.integration_id, ADA, IntegrationUpdate(is_active=False)
    )


def advance_event_loop(time: timedelta, monkeypatch: pytest.MonkeyPatch) -> None:
    """Advance the clock of the running event loop."""
    loop = asyncio.get_running_loop()
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + time.total_seconds())


# --- CheckHealth -----------------------------------------------------------------------------------------------------


async def test_a_working_integration_is_healthy(system: FakeSystem, integration: Integration) -> None:
    system.provider.verifications.clear()
    result = await check(system, integration.integration_id)
    assert (result.healthy, result.status, result.error_class) == (True, Status.ACTIVE, None)
    assert result.check_time == system.clock()
    assert result.latency >= timedelta(0)
    assert system.provider.verifications == [await system.tokens(integration.integration_id)]


async def test_every_check_is_stored(system: FakeSystem, integration: Integration) -> None:
    first = await check(system, integration.integration_id)
    system.provider.verify_error = ProviderUnavailable()
    second = await check(system, integration.integration_id)
    rows = system.check_rows()
    assert [(row.check_time, row.error_class) for row in rows] == [
        (check.check_time, check.error_class) for check in (first, second)
    ]
    assert system.row(integration.integration_id).last_health_check == system.clock()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ProviderUnavailable(), Status.ERROR),
        (ProviderRejected("credentials"), Status.ERROR),
        (ProviderMisconfigured(), Status.ERROR),
    ],
    ids=lambda value: getattr(value, "reason", None),
)
async def test_an_error_is_recorded_and_cleared_by_the_next_success(
    system: FakeSystem, integration: Integration, error: ProviderUnavailable, status: Status
) -> None:
    system.provider.verify_error = error
    result = await check(system, integration.integration_id)
    row = system.row(integration.integration_id)
    assert (result.healthy, result.status, result.error_class) == (False, status, error.reason)
    assert result.message == str(error)
    assert row.last_error == result.integration.last_error
    assert (row.status(system.clock()), row.error_count) == (status, 1)

    system.provider.verify_error = None
    result = await check(system, integration.integration_id)
    row = system.row(integration.integration_id)
    assert result.healthy
    assert (row.last_error, row.error_count, row.status(system.clock())) == (None, 0, Status.ACTIVE)


async def test_a_check_refreshes_an_expired_token_first(system: FakeSystem, integration: Integration) -> None:
    system.clock.advance(HOUR)
    assert (await check(system, integration.integration_id)).healthy
    assert system.provider.verifications[-1] == await system.tokens(integration.integration_id)
    assert system.provider.refreshes == ["refresh-1"]


async def test_a_failure_after_a_refresh_is_recorded(system: FakeSystem, integration: Integration) -> None:
    system.clock.advance(HOUR)
    system.provider.verify_error = ProviderRejected("credentials")
    result = await check(system, integration.integration_id)
    row = system.row(integration.integration_id)
    assert result.status is row.status(system.clock()) is Status.ERROR
    assert row.last_error == result.integration.last_error
    assert row.version == integration.version + 1


async def test_a_failed_refresh_during_a_check_counts_once(system: FakeSystem, integration: Integration) -> None:
    system.clock.advance(HOUR)
    system.provider.refresh_error = ProviderUnavailable()
    await check(system, integration.integration_id)
    assert system.row(integration.integration_id).error_count == 1


async def test_an_invalid_grant_is_expired(system: FakeSystem, integration: Integration) -> None:
    system.clock.advance(HOUR)
    system.provider.refresh_error = ProviderRejected("grant", oauth_error="invalid_grant")
    for _ in range(2):
        result = await check(system, integration.integration_id)
        assert (result.status, result.error_class) == (Status.EXPIRED, "REAUTHORIZATION_REQUIRED")
    assert system.row(integration.integration_id).status(system.clock()) is Status.EXPIRED
    assert len(system.provider.refreshes) == 1


async def test_an_expired_token_is_reported(system: FakeSystem) -> None:
    system.provider.issues_refresh_token = False
    integration = await system.connect()
    system.clock.advance(HOUR)
    result = await check(system, integration.integration_id)
    assert (result.healthy, result.status, result.error_class) == (False, Status.EXPIRED, "REAUTHORIZATION_REQUIRED")


async def test_a_missing_required_scope_is_an_error(system: FakeSystem) -> None:
    system.provider.granted_scopes = ("write",)
    integration = await system.connect(scopes=("write",))
    result = await check(system, integration.integration_id)
    assert (result.healthy, result.status, result.error_class) == (False, Status.ERROR, "SCOPE_MISSING")
    assert "read" in result.message


async def test_undecryptable_credentials_are_an_error(system: FakeSystem, integration: Integration) -> None:
    system.corrupt(integration.integration_id)
    result = await check(system, integration.integration_id)
    assert (result.status, result.error_class) == (Status.ERROR, "CREDENTIALS_UNREADABLE")


async def test_an_unknown_type_is_an_error(system: FakeSystem, integration: Integration) -> None:
    del system.providers.by_type["fake"]
    result = await check(system, integration.integration_id)
    assert (result.status, result.error_class) == (Status.ERROR, "UNKNOWN_INTEGRATION_TYPE")


async def test_inactive_integrations_are_not_checked(system: FakeSystem, integration: Integration) -> None:
    await deactivate(system, integration)
    system.provider.verifications.clear()
    result = await check(system, integration.integration_id)
    assert (result.healthy, result.status, result.error_class) == (False, Status.INACTIVE, None)
    assert not system.provider.verifications
    assert not system.check_rows()


async def test_an_api_key_is_checked(system: FakeSystem) -> None:
    row = await system.connect_key()
    assert (await check(system, row.integration_id)).healthy
    assert len(system.key_provider.verifications) == 2


async def test_pending_integrations_and_those_of_other_users_cannot_be_checked(
    system: FakeSystem, integration: Integration
) -> None:
    pending = await system.begin()
    with pytest.raises(IntegrationPending):
        await check(system, pending.integration_id)
    for integration_id, user_id in ((integration.integration_id, EVE), (999, ADA)):
        with pytest.raises(IntegrationNotFound):
            await check(system, integration_id, user_id)


async def test_a_database_outage_is_not_recorded_as_a_failure(system: FakeSystem, integration: Integration) -> None:
    system.clock.advance(HOUR)
    system.provider.gate = asyncio.Event()
    waiting = asyncio.create_task(check(system, integration.integration_id))
    await wait_until(lambda: system.provider.refreshes)
    system.database.is_unavailable = True
    system.provider.gate.set()
    with pytest.raises(StoreUnavailable):
        await waiting
    system.database.is_unavailable = False
    assert system.row(integration.integration_id).last_error is None
    assert not system.check_rows()


# --- CheckAllHealth --------------------------------------------------------------------------------------------------


async def test_counts_add_up_without_pending_integrations(system: FakeSystem) -> None:
    working = await system.connect_account("account-1")
    inactive = await system.connect_account("account-2")
    await deactivate(system, inactive)
    corrupt = await system.connect_account("account-3")
    system.corrupt(corrupt.integration_id)
    await system.begin()
    await system.connect_account("eves-account", EVE)

    report = await system.health_checker.check_all_health(ADA)
    assert [check.integration.integration_id for check in report.checks] == [
        working.integration_id,
        inactive.integration_id,
        corrupt.integration_id,
    ]
    assert (report.healthy_count, report.error_count, report.inactive_count) == (1, 1, 1)
    assert report.check_time == system.clock()


async def test_without_integrations_the_report_is_empty(system: FakeSystem) -> None:
    assert (await system.health_checker.check_all_health(ADA)).checks == ()


async def test_a_slow_provider_delays_only_its_own_checks(system: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_provider = system.add_provider("slow")
    slow = await system.connect(integration_type="slow")
    quick = await system.connect()
    slow_provider.gate = asyncio.Event()

    checking = asyncio.create_task(system.health_checker.check_all_health(ADA))
    await wait_until(lambda: [row.integration_id for row in system.check_rows()] == [quick.integration_id])
    advance_event_loop(HOUR, monkeypatch)
    report = await checking
    results = {check.integration.integration_id: (check.healthy, check.error_class) for check in report.checks}
    assert results == {
        slow.integration_id: (False, "PROVIDER_UNAVAILABLE"),
        quick.integration_id: (True, None),
    }
    assert slow_provider.in_flight == 0


async def test_a_refresh_continues_after_the_check_times_out(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    integration = await system.connect()
    system.clock.advance(HOUR)
    system.provider.gate = asyncio.Event()
    checking = asyncio.create_task(check(system, integration.integration_id))
    await wait_until(lambda: system.provider.in_flight)
    advance_event_loop(HOUR, monkeypatch)
    assert (await checking).error_class == "PROVIDER_UNAVAILABLE"
    system.provider.gate.set()
    await wait_until(lambda: system.row(integration.integration_id).version == integration.version + 1)


async def test_checks_of_a_provider_are_limited(system: FakeSystem) -> None:
    for number in range(20):
        await system.connect_account(f"account-{number}")
    system.provider.max_in_flight = 0
    system.provider.gate = asyncio.Event()
    checking = asyncio.create_task(system.health_checker.check_all_health(ADA))
    await wait_until(lambda: system.provider.in_flight == 8)
    system.provider.gate.set()
    assert (await checking).healthy_count == 20
    assert system.provider.max_in_flight == 8


# --- history ---------------------------------------------------------------------------------------------------------


async def test_the_history_is_listed_newest_first_in_pages(system: FakeSystem, integration: Integration) -> None:
    other = await system.connect_account("another")
    for _ in range(5):
        system.clock.advance(timedelta(minutes=1))
        await check(system, integration.integration_id)
        await check(system, other.integration_id)
    listed: list[HealthCheck] = []
    token = ""
    while True:
        history = await system.health_checker.list_health_checks(integration.integration_id, ADA, 2, token)
        listed += history.items
        token = history.next_page_token
        if not token:
            break
    stored = [row for row in system.check_rows() if row.integration_id == integration.integration_id]
    assert [check.check_time for check in listed] == [row.check_time for row in stored][::-1]


async def test_the_history_reports_the_error_rates(system: FakeSystem, integration: Integration) -> None:
    system.provider.verify_error = ProviderUnavailable()
    await check(system, integration.integration_id)
    system.clock.advance(timedelta(hours=2))
    system.provider.verify_error = None
    await check(system, integration.integration_id)
    history = await system.health_checker.list_health_checks(integration.integration_id, ADA, 10, "")
    assert [(rate.window, rate.checks, rate.failures, rate.rate) for rate in history.error_rates] == [
        (HOUR, 1, 0, 0.0),
        (timedelta(days=1), 2, 1, 0.5),
        (timedelta(days=7), 2, 1, 0.5),
    ]


async def test_a_page_token_is_valid_for_its_own_history_only(system: FakeSystem, integration: Integration) -> None:
    other = await system.connect_account("another")
    for _ in range(2):
        await check(system, integration.integration_id)
    token = (await system.health_checker.list_health_checks(integration.integration_id, ADA, 1, "")).next_page_token
    integrations = await system.integration_manager.list_integrations(ADA, "", 1, "")
    for invalid in (token + "x", integrations.next_page_token):
        with pytest.raises(InvalidField):
            await system.health_checker.list_health_checks(integration.integration_id, ADA, 1, invalid)
    with pytest.raises(InvalidField):
        await system.health_checker.list_health_checks(other.integration_id, ADA, 1, token)


async def test_another_user_sees_no_history(system: FakeSystem, integration: Integration) -> None:
    for integration_id, user_id in ((integration.integration_id, EVE), (IntegrationId(999), ADA)):
        with pytest.raises(IntegrationNotFound):
            await system.health_checker.list_health_checks(integration_id, user_id, 10, "")


async def test_old_checks_are_deleted(system: FakeSystem, integration: Integration) -> None:
    for _ in range(3):
        await check(system, integration.integration_id)
        system.clock.advance(timedelta(days=20))
    await system.health_checker.prune()
    assert [system.clock() - row.check_time for row in system.check_rows()] == [timedelta(days=20)]
