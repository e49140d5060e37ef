"""Forced refreshes: all paths together call the provider once per integration and minimum interval."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from itertools import cycle

import pytest

from integration_server.domain.credentials import OAuthTokens, RefreshCause
from integration_server.domain.errors import (
    IntegrationInactive,
    IntegrationServerError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    ReauthorizationRequired,
    ScopeMissing,
)
from integration_server.domain.health import HealthCheck
from integration_server.domain.integration import Integration, Status, UserId
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse
from integration_server.service.credentials.credential_service import TokenState
from integration_server.service.integrations.ports import IntegrationUpdate
from tests.fakes.provider import HOUR, wait_until
from tests.fakes.system import ADA, EVE, FORCED_INTERVAL, FakeSystem

SECOND = timedelta(seconds=1)
TEN_THOUSAND_YEARS = timedelta(days=3_650_000)
INVALID_GRANT = ProviderRejected("grant", oauth_error="invalid_grant")

CallOfIntegration = Callable[[FakeSystem, Integration], Awaitable[object]]


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    """A connected integration, ten seconds old."""
    integration = await system.connect()
    system.clock.advance(10 * SECOND)
    return integration


async def ask_for_ten_thousand_years(system: FakeSystem, integration: Integration) -> object:
    return await get(system, integration, TEN_THOUSAND_YEARS)


async def ask_for_more_than_is_left(system: FakeSystem, integration: Integration) -> object:
    stored = await system.tokens(integration.integration_id)
    assert stored.expire_time is not None
    return await get(system, integration, stored.expire_time - system.clock() + SECOND)


async def force(system: FakeSystem, integration: Integration) -> TokenState:
    return await system.credentials.refresh_token(integration.integration_id, ADA, force=True)


async def get(system: FakeSystem, integration: Integration, min_ttl: timedelta | None = None) -> str:
    usable = await system.credentials.get_credentials(integration.integration_id, ADA, min_ttl, [])
    assert isinstance(usable.credentials, OAuthTokens)
    return usable.credentials.access_token


async def call_api_that_rejects_tokens(system: FakeSystem, integration: Integration) -> ApiResponse:
    system.provider.responses = [ApiResponse(401, (), b"{}") for _ in range(2)]
    request = ApiRequest("GET", "/things")
    return await system.api_proxy.call_provider(integration.integration_id, ADA, request)


async def check_health_of_a_rejected_token(system: FakeSystem, integration: Integration) -> HealthCheck:
    system.provider.verify_error = ProviderRejected("credentials", needs_new_token=True)
    return await system.another_process().use_cases.health_checker.check_health(integration.integration_id, ADA)


PATHS: tuple[CallOfIntegration, ...] = (
    force,
    check_health_of_a_rejected_token,
    ask_for_ten_thousand_years,
    ask_for_more_than_is_left,
    call_api_that_rejects_tokens,
)


async def repeat(system: FakeSystem, integration: Integration, *paths: CallOfIntegration) -> int:
    """Call by these paths in turn, forty times within ten seconds. Returns the number of refreshes."""
    before = len(system.provider.refreshes)
    for path, _ in zip(cycle(paths), range(40), strict=False):
        await asyncio.gather(path(system, integration), return_exceptions=True)
        system.clock.advance(SECOND / 4)
    return len(system.provider.refreshes) - before


# --- one call per interval -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "paths", [*((path,) for path in PATHS), PATHS], ids=lambda paths: "+".join(path.__name__ for path in paths)
)
async def test_forty_calls_refresh_once_per_interval(
    system: FakeSystem, integration: Integration, paths: tuple[CallOfIntegration, ...]
) -> None:
    assert await repeat(system, integration, *paths) == 1
    system.clock.advance(FORCED_INTERVAL)
    assert await repeat(system, integration, *paths) == 1


@pytest.mark.parametrize("path", PATHS)
async def test_negative_control_without_an_interval_every_call_refreshes(path: CallOfIntegration) -> None:
    system = FakeSystem({"forced_refresh_min_interval": timedelta(0)})
    async with system.tasks:
        integration = await system.connect()
        system.clock.advance(10 * SECOND)
        assert await repeat(system, integration, path) == 40


@pytest.mark.parametrize(
    "error",
    [
        ProviderUnavailable(),
        ProviderRejected("grant", oauth_error="access_denied"),
        INVALID_GRANT,
        ProviderMisconfigured(),
    ],
    ids=["outage", "refusal", "invalid_grant", "invalid_client"],
)
async def test_failed_refreshes_count(
    system: FakeSystem, integration: Integration, error: IntegrationServerError
) -> None:
    system.provider.refresh_error = error
    assert await repeat(system, integration, *PATHS) == 1


async def test_a_scope_that_is_missing_never_refreshes(system: FakeSystem, integration: Integration) -> None:
    for _ in range(3):
        with pytest.raises(ScopeMissing):
            await system.credentials.get_credentials(
                integration.integration_id, ADA, TEN_THOUSAND_YEARS, ["never granted"]
            )
        system.clock.advance(FORCED_INTERVAL)
    assert not system.provider.refreshes


async def test_health_checks_of_credentials_that_lack_a_permission_never_refresh(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.verify_error = ProviderRejected("credentials")
    for _ in range(3):
        await system.health_checker.check_health(integration.integration_id, ADA)
        system.clock.advance(FORCED_INTERVAL)
    assert not system.provider.refreshes


async def test_other_integrations_have_their_own_interval(system: FakeSystem, integration: Integration) -> None:
    other = await system.connect_account("other")
    assert (await force(system, integration)).refreshed
    assert (await force(system, other)).refreshed


async def test_another_users_call_neither_refreshes_nor_counts(system: FakeSystem, integration: Integration) -> None:
    with pytest.raises(IntegrationServerError):
        await system.credentials.refresh_token(integration.integration_id, EVE, force=True)
    assert (await force(system, integration)).refreshed


# --- the outcome within the interval ---------------------------------------------------------------------------------


async def test_within_the_interval_a_success_is_reported_with_the_time_to_wait(
    system: FakeSystem, integration: Integration
) -> None:
    first = await force(system, integration)
    assert first == TokenState(refreshed=True, expire_time=system.clock() + HOUR)
    system.clock.advance(10 * SECOND)
    assert await force(system, integration) == TokenState(False, first.expire_time, FORCED_INTERVAL - 10 * SECOND)
    assert await get(system, integration, TEN_THOUSAND_YEARS) == "renewed-access-1"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ProviderUnavailable(), ProviderUnavailable),
        (ProviderRejected("grant", oauth_error="invalid_request"), ProviderRejected),
        (ProviderMisconfigured(), ProviderMisconfigured),
        (INVALID_GRANT, ReauthorizationRequired),
    ],
)
async def test_within_the_interval_a_failure_is_reported_with_the_time_to_wait(
    system: FakeSystem, integration: Integration, error: Exception, expected: type[IntegrationServerError]
) -> None:
    system.provider.refresh_error = error
    for wait in (None, FORCED_INTERVAL - 10 * SECOND):
        with pytest.raises(expected) as caught:
            await force(system, integration)
        assert caught.value.retry_after == wait
        system.clock.advance(10 * SECOND)
    assert len(system.provider.refreshes) == 1


async def test_a_rejected_call_right_after_a_refresh_returns_the_rejection(
    system: FakeSystem, integration: Integration
) -> None:
    await force(system, integration)
    assert (await call_api_that_rejects_tokens(system, integration)).status == 401
    assert len(system.provider.calls) == 1  # with the same token a second call is useless


async def test_a_rejected_call_is_repeated_with_a_token_that_another_process_has_got(
    system: FakeSystem, integration: Integration
) -> None:
    rejected = await system.credentials.get_usable(integration.integration_id, ADA)
    await force(system, integration)
    refreshed = await system.another_process().use_cases.credentials.refreshed(rejected)
    assert refreshed is not None
    assert refreshed.tokens.access_token == "renewed-access-1"
    assert len(system.provider.refreshes) == 1


async def test_the_failure_of_previous_credentials_is_not_that_of_new_ones(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.refresh_error = INVALID_GRANT
    with pytest.raises(ReauthorizationRequired):
        await force(system, integration)
    await system.call_back((await system.begin(integration_id=integration.integration_id)).state, user_id=ADA)
    assert (await force(system, integration)).retry_after == FORCED_INTERVAL


# --- refreshes that are necessary ------------------------------------------------------------------------------------


async def test_a_token_that_expires_is_refreshed_within_the_interval(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.lifetime = 8 * SECOND
    await force(system, integration)
    for number in range(2, 6):
        system.clock.advance(5 * SECOND)  # past half of its lifetime
        assert await get(system, integration) == f"renewed-access-{number}"


async def test_force_refreshes_an_expired_token_within_the_interval(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.lifetime = 2 * SECOND
    await force(system, integration)
    system.clock.advance(3 * SECOND)
    assert (await force(system, integration)).refreshed


async def test_force_during_the_pause_after_failures_calls_once_per_interval(
    system: FakeSystem, integration: Integration
) -> None:
    system.clock.advance(HOUR)
    system.provider.refresh_error = ProviderUnavailable(retry_after=HOUR)
    with pytest.raises(ProviderUnavailable):
        await get(system, integration)
    assert await repeat(system, integration, force) == 0
    system.clock.advance(FORCED_INTERVAL)
    assert await repeat(system, integration, force) == 1


async def test_force_on_an_expired_token_calls_a_failing_provider_once_per_interval(
    system: FakeSystem, integration: Integration
) -> None:
    system.clock.advance(HOUR)
    system.provider.refresh_error = ProviderUnavailable()
    for _ in range(2):
        assert await repeat(system, integration, force) == 1
        system.clock.advance(FORCED_INTERVAL)


@pytest.mark.parametrize("path", [force, get])
async def test_a_provider_that_issues_expired_tokens_is_called_once_per_interval(
    system: FakeSystem, integration: Integration, path: CallOfIntegration
) -> None:
    system.provider.lifetime = timedelta(0)
    with pytest.raises(ProviderUnavailable):
        await force(system, integration)
    system.clock.advance(FORCED_INTERVAL)
    for _ in range(2):
        assert await repeat(system, integration, path) == 1
        with pytest.raises(ProviderUnavailable) as caught:
            await path(system, integration)
        assert caught.value.retry_after is not None
        system.clock.advance(FORCED_INTERVAL)
    system.provider.lifetime = HOUR
    assert await repeat(system, integration, path) == 1
    assert await get(system, integration)


async def test_negative_control_without_force_a_necessary_refresh_is_repeated_after_its_pause(
    system: FakeSystem, integration: Integration
) -> None:
    system.clock.advance(HOUR)
    system.provider.refresh_error = ProviderUnavailable()
    assert await repeat(system, integration, get) > 2


async def test_processes_that_wait_for_a_refresh_share_its_failure(
    system: FakeSystem, integration: Integration
) -> None:
    system.clock.advance(HOUR)
    system.provider.refresh_error = ProviderUnavailable()
    system.provider.gate = asyncio.Event()
    processes = [system.another_process().use_cases.credentials for _ in range(3)]
    calls = [
        asyncio.create_task(process.refresh_token(integration.integration_id, ADA, force=True))
        for process in processes
        for _ in range(5)
    ]
    await wait_until(lambda: system.provider.refreshes)
    await asyncio.sleep(0.1)  # the others find the lease taken
    system.provider.gate.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ProviderUnavailable}
    assert len(system.provider.refreshes) == 1


@pytest.mark.parametrize("path", PATHS)
async def test_a_forced_refresh_that_fails_is_not_repeated_in_the_background(
    system: FakeSystem, integration: Integration, path: CallOfIntegration
) -> None:
    due_time = system.row(integration.integration_id).refresh_due_time
    assert due_time is not None
    system.provider.refresh_error = ProviderUnavailable()
    await asyncio.gather(path(system, integration), return_exceptions=True)
    assert system.row(integration.integration_id).refresh_due_time == due_time


async def test_a_necessary_refresh_that_fails_is_soon_repeated_in_the_background(
    system: FakeSystem, integration: Integration
) -> None:
    system.clock.advance(HOUR)
    system.provider.refresh_error = ProviderUnavailable()
    with pytest.raises(ProviderUnavailable):
        await get(system, integration)
    due_time = system.row(integration.integration_id).refresh_due_time
    assert due_time is not None
    assert system.clock() < due_time < system.clock() + 2 * SECOND


async def test_a_necessary_refresh_does_not_join_a_forced_one_that_makes_no_call(
    system: FakeSystem, integration: Integration
) -> None:
    await force(system, integration)
    system.clock.advance(HOUR)
    forced, necessary = await asyncio.gather(
        call_api_that_rejects_tokens(system, integration), get(system, integration), return_exceptions=True
    )
    assert not isinstance(forced, BaseException)
    assert necessary == "renewed-access-2"


async def test_forced_and_necessary_refreshes_at_once_make_one_call(
    system: FakeSystem, integration: Integration
) -> None:
    system.clock.advance(HOUR)
    system.provider.gate = asyncio.Event()
    processes = [system.another_process().refresher for _ in range(3)]
    calls = [
        asyncio.create_task(process.refresh(integration, cause)) for process in processes for cause in RefreshCause
    ]
    await wait_until(lambda: system.provider.refreshes)
    system.provider.gate.set()
    assert {(await call).tokens.access_token for call in calls} == {"renewed-access-1"}
    assert len(system.provider.refreshes) == 1


# --- grants that have ended ------------------------------------------------------------------------------------------


async def end_grant(system: FakeSystem, integration: Integration) -> None:
    system.provider.refresh_error = INVALID_GRANT
    with pytest.raises(ReauthorizationRequired):
        await force(system, integration)
    assert system.row(integration.integration_id).status(system.clock()) is Status.EXPIRED
    system.clock.advance(FORCED_INTERVAL)


async def test_only_force_calls_the_provider_after_the_grant_has_ended(
    system: FakeSystem, integration: Integration
) -> None:
    await end_grant(system, integration)
    assert await repeat(system, integration, *(path for path in PATHS if path is not force)) == 0
    assert await repeat(system, integration, force) == 1
    with pytest.raises(ReauthorizationRequired):
        await system.credentials.refresh_token(integration.integration_id, ADA, force=False)


async def test_a_forced_refresh_that_succeeds_revives_the_grant(system: FakeSystem, integration: Integration) -> None:
    await end_grant(system, integration)
    system.provider.refresh_error = None
    assert (await force(system, integration)).refreshed
    assert system.row(integration.integration_id).status(system.clock()) is Status.ACTIVE
    assert await get(system, integration) == "renewed-access-2"


async def test_force_does_not_activate_an_integration_that_the_user_has_switched_off(
    system: FakeSystem, integration: Integration
) -> None:
    await end_grant(system, integration)
    update = IntegrationUpdate(is_active=False)
    await system.integration_manager.update_integration(integration.integration_id, ADA, update)
    with pytest.raises(IntegrationInactive):
        await force(system, integration)
    assert len(system.provider.refreshes) == 1


async def test_forced_refreshes_of_ended_grants_are_no_mass_failure(system: FakeSystem) -> None:
    ended = [await system.connect_account(f"account-{number}", UserId(f"user-{number}")) for number in range(25)]
    for integration in ended:
        system.set_columns(integration.integration_id, reauthorization_required=True)
    victim = await system.connect_account("victim")
    system.provider.refresh_error = INVALID_GRANT
    for integration in (*ended, victim):
        with pytest.raises(ReauthorizationRequired):
            await system.credentials.refresh_token(integration.integration_id, integration.user_id, force=True)
        assert system.row(integration.integration_id).reauthorization_required


async def test_force_revives_a_grant_whose_last_refresh_has_no_known_outcome(
    system: FakeSystem, integration: Integration
) -> None:
    assert await system.leases.claim(integration, "crashed process")
    system.clock.advance(HOUR)
    system.provider.refresh_error = INVALID_GRANT
    with pytest.raises(ReauthorizationRequired):
        await get(system, integration)
    system.provider.refresh_error = None
    system.clock.advance(FORCED_INTERVAL)
    assert (await force(system, integration)).refreshed
    assert system.row(integration.integration_id).status(system.clock()) is Status.ACTIVE
