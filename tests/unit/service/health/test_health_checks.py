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
from integration_server.domain.health import HealthCheck, HealthCounts
from integration_server.domain.integration import Integration, IntegrationId, Status, UserId
from integration_server.service.background.ports import Claim, JobKind
from integration_server.service.health.health_checks import HealthReport
from integration_server.service.integrations.ports import IntegrationUpdate
from tests.fakes.provider import HOUR, wait_until
from tests.fakes.stores import count_calls
from tests.fakes.system import ADA, EVE, FakeSystem
from tests.statements import captured_statements


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
    assert result.latency is not None
    assert result.latency >= timedelta(0)
    assert system.provider.verifications == [await system.tokens(integration.integration_id)]


async def test_a_type_without_verification_says_so(system: FakeSystem, integration: Integration) -> None:
    system.provider.has_verification = False
    result = await check(system, integration.integration_id)
    assert result.healthy
    assert result.message == "Not verified: the provider has no request that verifies credentials of this type"


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


@pytest.mark.parametrize("has_expired", [False, True])
async def test_a_refused_client_is_not_an_error_of_the_integration(
    system: FakeSystem, integration: Integration, has_expired: bool
) -> None:
    """Neither in the verification request nor in a refresh before it."""
    if has_expired:
        system.clock.advance(HOUR)
        system.provider.refresh_error = ProviderMisconfigured()
    system.provider.verify_error = ProviderMisconfigured()
    result = await check(system, integration.integration_id)
    row = system.row(integration.integration_id)
    assert (result.healthy, result.status, result.error_class) == (False, Status.ACTIVE, ProviderMisconfigured.reason)
    assert (row.status(system.clock()), row.last_error, row.error_count) == (Status.ACTIVE, None, 0)
    assert [check_row.error_class for check_row in system.check_rows()] == [ProviderMisconfigured.reason]


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


async def check_all(
    system: FakeSystem, page_size: int = 50, page_token: str = "", user_id: UserId = ADA
) -> HealthReport:
    return await system.health_checker.check_all_health(user_id, page_size, page_token)


def ids_of(report: HealthReport) -> list[int]:
    return [check.integration.integration_id for check in report.items]


async def test_counts_add_up_without_pending_integrations(system: FakeSystem) -> None:
    working = await system.connect_account("account-1")
    inactive = await system.connect_account("account-2")
    await deactivate(system, inactive)
    corrupt = await system.connect_account("account-3")
    system.corrupt(corrupt.integration_id)
    await system.begin()
    await system.connect_account("eves-account", EVE)

    report = await check_all(system)
    assert ids_of(report) == [working.integration_id, inactive.integration_id, corrupt.integration_id]
    assert report.counts == HealthCounts(total=3, healthy=1, error=1, inactive=1)
    assert report.check_time == system.clock()


async def test_without_integrations_the_report_is_empty(system: FakeSystem) -> None:
    report = await check_all(system)
    assert (report.items, report.next_page_token, report.counts) == ([], "", HealthCounts(0, 0, 0, 0))


async def test_only_the_integrations_of_the_page_are_checked_and_all_are_counted(system: FakeSystem) -> None:
    rows = [await system.connect_account(f"account-{number}") for number in range(5)]
    await system.begin()
    system.provider.verifications.clear()
    reports, token = [], ""
    for checked in (2, 4, 5):
        reports.append(await check_all(system, 2, token))
        token = reports[-1].next_page_token
        assert len(system.provider.verifications) == checked
    assert token == ""
    ids = [row.integration_id for row in rows]
    assert [ids_of(report) for report in reports] == [ids[:2], ids[2:4], ids[4:]]
    assert {report.counts for report in reports} == {HealthCounts(5, 5, 0, 0)}


async def test_the_counts_are_those_of_the_last_checks_also_of_other_pages(system: FakeSystem) -> None:
    rows = [await system.connect_account(f"account-{number}") for number in range(4)]
    system.provider.verify_error = ProviderUnavailable()
    await check(system, rows[3].integration_id)
    first = await check_all(system, 2)
    assert first.counts == HealthCounts(4, 1, 3, 0)
    system.provider.verify_error = None
    assert (await check_all(system, 2, first.next_page_token)).counts == HealthCounts(4, 2, 2, 0)


async def test_the_number_of_statements_for_all_integrations_is_constant(system: FakeSystem) -> None:
    statements = []
    for total in (2, 12):
        while len(system.ids()) < total:
            await system.connect_account(f"account-{len(system.ids())}")
        with captured_statements() as captured:
            await check_all(system, 1)
        statements.append(len(captured))
    assert statements[0] == statements[1]


async def test_a_page_token_is_valid_for_its_own_user_only(system: FakeSystem) -> None:
    for number in range(2):
        await system.connect_account(f"account-{number}")
    token = (await check_all(system, 1)).next_page_token
    other_list = (await system.integration_manager.list_integrations(ADA, "", 1, "")).next_page_token
    for user_id, invalid in ((EVE, token), (ADA, other_list), (ADA, "x")):
        with pytest.raises(InvalidField, match="page_token"):
            await check_all(system, 1, invalid, user_id)


async def test_equal_concurrent_calls_share_one_run(system: FakeSystem) -> None:
    for number in range(3):
        await system.connect_account(f"account-{number}")
    system.provider.verifications.clear()
    system.provider.gate = asyncio.Event()
    calls = [asyncio.create_task(check_all(system)) for _ in range(50)]
    await wait_until(lambda: system.provider.in_flight == 3)
    system.provider.gate.set()
    reports = await asyncio.gather(*calls)
    assert all(report is reports[0] for report in reports)
    assert len(system.provider.verifications) == 3
    assert count_calls(system.stores.integration_lists, "list_connected") == 1


async def test_different_concurrent_calls_share_the_checks_of_an_integration(system: FakeSystem) -> None:
    """Else a caller with another page size for each call would not be limited."""
    row, *_ = [await system.connect_account(f"account-{number}") for number in range(3)]
    system.provider.verifications.clear()
    system.provider.gate = asyncio.Event()
    calls = [asyncio.create_task(check_all(system, size)) for size in range(3, 20)]
    single = [asyncio.create_task(check(system, row.integration_id)) for _ in range(10)]
    await wait_until(lambda: system.provider.in_flight == 3)
    system.provider.gate.set()
    await asyncio.gather(*calls, *single)
    assert len(system.provider.verifications) == 3


async def test_a_call_that_shares_a_check_counts_its_stored_outcome(system: FakeSystem) -> None:
    await system.connect_account("account-1")
    row = await system.connect_account("account-2")
    system.provider.gate = asyncio.Event()
    system.provider.verify_error = ProviderUnavailable()
    first, second = [asyncio.create_task(check_all(system, size)) for size in (2, 3)]
    single = asyncio.create_task(check(system, row.integration_id))
    await wait_until(lambda: system.provider.in_flight == 2)
    system.provider.gate.set()
    assert not (await single).healthy
    assert (await first).counts == (await second).counts == HealthCounts(2, 0, 2, 0)
    assert len(system.check_rows()) == 2


async def test_a_check_without_a_database_does_not_lose_those_of_the_others(system: FakeSystem) -> None:
    other = system.add_provider("other")
    await system.connect(integration_type="other")
    row = await system.connect()
    other.verify_error = StoreUnavailable()
    with pytest.raises(StoreUnavailable):
        await check_all(system)
    assert [stored.integration_id for stored in system.check_rows()] == [row.integration_id]


async def test_the_caller_that_leaves_does_not_end_the_run_of_the_others(system: FakeSystem) -> None:
    await system.connect()
    system.provider.gate = asyncio.Event()
    leaving, staying = [asyncio.create_task(check_all(system)) for _ in range(2)]
    await wait_until(lambda: system.provider.in_flight == 1)
    leaving.cancel()
    system.provider.gate.set()
    assert (await staying).counts == HealthCounts(1, 1, 0, 0)


# --- how often -------------------------------------------------------------------------------------------------------


async def test_an_integration_is_not_checked_for_each_of_many_calls(system: FakeSystem) -> None:
    row = await system.connect()
    system.provider.verifications.clear()
    checks = [await check(system, row.integration_id) for _ in range(20)]
    checks += [check for _ in range(20) for check in (await check_all(system)).items]
    assert len(system.provider.verifications) == len(system.check_rows()) == 3
    assert all(result.healthy for result in checks)
    assert {result.latency is None for result in checks[3:]} == {True}

    for seconds, total in ((9, 3), (1, 4), (0, 4), (10, 5), (60, 8)):  # one in ten seconds, and three after a pause
        system.clock.advance(timedelta(seconds=seconds))
        for _ in range(5):
            await check(system, row.integration_id)
        assert len(system.provider.verifications) == total


async def test_negative_control_without_an_interval_every_call_is_a_call_to_the_provider() -> None:
    system = FakeSystem({"health_check_min_interval": timedelta(0)})
    async with system.tasks:
        row = await system.connect()
        system.provider.verifications.clear()
        for _ in range(20):
            await check(system, row.integration_id)
            await check_all(system)
        assert len(system.provider.verifications) == 40


async def test_a_call_without_a_check_returns_the_last_known_health(system: FakeSystem) -> None:
    row = await system.connect()
    system.provider.verify_error = ProviderUnavailable()
    live = [await check(system, row.integration_id) for _ in range(3)][-1]
    system.provider.verify_error = None
    stored = await check(system, row.integration_id)
    assert (stored.healthy, stored.status, stored.error_class, stored.message, stored.check_time) == (
        False,
        Status.ERROR,
        "PROVIDER_UNAVAILABLE",
        live.message,
        live.check_time,
    )
    assert (await check_all(system)).counts == HealthCounts(1, 0, 1, 0)


async def test_other_integrations_are_checked_nevertheless(system: FakeSystem) -> None:
    first, second = [await system.connect_account(f"account-{number}") for number in range(2)]
    for _ in range(10):
        await check(system, first.integration_id)
    system.provider.verifications.clear()
    await check_all(system)
    assert system.provider.verifications == [await system.tokens(second.integration_id)]


async def test_background_checks_do_not_use_up_the_callers_budget(system: FakeSystem) -> None:
    row = await system.connect()
    for _ in range(5):
        claim = Claim(
            JobKind.CHECK, row.integration_id, system.clock(), system.clock(), system.stored(row.integration_id)
        )
        await system.health_checker.check_due(claim)
    system.provider.verifications.clear()
    await check(system, row.integration_id)
    assert len(system.provider.verifications) == 1


async def test_a_check_that_waits_too_long_for_others_is_not_recorded_as_a_failure(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        await system.connect_account(f"account-{number}")
    system.provider.gate = asyncio.Event()
    checking = asyncio.create_task(check_all(system))
    await wait_until(lambda: system.provider.in_flight == 8)
    advance_event_loop(HOUR, monkeypatch)
    report = await checking
    assert [result.error_class for result in report.items] == ["PROVIDER_UNAVAILABLE"] * 8 + [None] * 4
    assert report.counts == HealthCounts(12, 4, 8, 0)
    assert len(system.check_rows()) == 8


async def test_a_slow_provider_delays_only_its_own_checks(system: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_provider = system.add_provider("slow")
    slow = await system.connect(integration_type="slow")
    quick = await system.connect()
    slow_provider.gate = asyncio.Event()
    token = await system.tokens(quick.integration_id)
    system.provider.verifications.clear()

    checking = asyncio.create_task(check_all(system))
    await wait_until(lambda: slow_provider.in_flight and token in system.provider.verifications)
    advance_event_loop(HOUR, monkeypatch)
    report = await checking
    results = {check.integration.integration_id: (check.healthy, check.error_class) for check in report.items}
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
    checking = [asyncio.create_task(check_all(system, size)) for size in (20, 30)]  # also of different calls
    await wait_until(lambda: system.provider.in_flight == 8)
    system.provider.gate.set()
    assert [(await one).counts.healthy for one in checking] == [20, 20]
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
