"""A token that ends early: a health check or an API call that gets 401 refreshes it once, and tries again."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import (
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    ReauthorizationRequired,
)
from integration_server.domain.health import HealthCheck
from integration_server.domain.integration import Integration, Status
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse
from integration_server.service.background.ports import JobKind
from tests.fakes.system import ADA, CHECK_INTERVAL, FORCED_INTERVAL, FakeSystem

INVALID_GRANT = ProviderRejected("grant", oauth_error="invalid_grant")
REJECTED = ProviderRejected("credentials", needs_new_token=True)


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    """A connected integration whose first access token has ended at the provider."""
    integration = await system.connect()
    system.clock.advance(timedelta(minutes=1))
    system.provider.rejected_access_tokens = ["access-1"]
    return integration


async def check(system: FakeSystem, integration: Integration) -> HealthCheck:
    checker = system.another_process().use_cases.health_checker
    return await checker.check_health(integration.integration_id, ADA)


async def check_all(system: FakeSystem, integration: Integration) -> HealthCheck:
    report = await system.health_checker.check_all_health(ADA, 50, "")
    (result,) = report.items
    return result


async def check_in_the_background(system: FakeSystem, integration: Integration) -> HealthCheck:
    system.clock.advance(1.1 * CHECK_INTERVAL)
    (claim,) = await system.due_work.claim(JobKind.CHECK, "fake", 10, claim_duration=CHECK_INTERVAL)
    assert await system.health_checker.check_due(claim)
    page = await system.health_checker.list_health_checks(integration.integration_id, ADA, 1, "")
    return page.items[0]


async def call_api(system: FakeSystem, integration: Integration) -> ApiResponse:
    request = ApiRequest("GET", "/things")
    return await system.api_proxy.call_provider(integration.integration_id, ADA, request)


async def get(system: FakeSystem, integration: Integration) -> str:
    usable = await system.credentials.get_credentials(integration.integration_id, ADA, None, [])
    assert isinstance(usable.credentials, OAuthTokens)
    return usable.credentials.access_token


@pytest.mark.parametrize("run", [check, check_all, check_in_the_background])
async def test_a_check_refreshes_a_rejected_token_and_verifies_the_new_one(
    system: FakeSystem, integration: Integration, run: Callable[[FakeSystem, Integration], Awaitable[HealthCheck]]
) -> None:
    result = await run(system, integration)
    assert (result.healthy, result.status, result.error_class) == (True, Status.ACTIVE, None)
    assert system.provider.refreshes == ["refresh-1"]
    verified = system.provider.verifications[-2:]
    assert [tokens.access_token for tokens in verified if isinstance(tokens, OAuthTokens)] == [
        "access-1",
        "renewed-access-1",
    ]
    assert await get(system, integration) == "renewed-access-1"
    row = system.row(integration.integration_id)
    assert (row.last_error, row.last_health_check) == (None, result.check_time)


async def test_a_call_that_gets_401_has_the_same_effect(system: FakeSystem, integration: Integration) -> None:
    system.provider.responses = [ApiResponse(401, (), b"")]
    assert (await call_api(system, integration)).status == 200
    assert await get(system, integration) == "renewed-access-1"


async def test_negative_control_a_rejection_that_is_no_401_refreshes_nothing(
    system: FakeSystem, integration: Integration
) -> None:
    """For example 403: another token of the same grant has the same permissions."""
    system.provider.verify_error = ProviderRejected("credentials")
    result = await check(system, integration)
    assert (result.healthy, result.error_class) == (False, "PROVIDER_REJECTED")
    assert not system.provider.refreshes
    assert await get(system, integration) == "access-1"


async def test_a_new_token_that_is_rejected_too_is_an_error_and_ends_no_grant(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.verify_error = REJECTED
    for number in range(3):
        result = await check(system, integration)
        assert (result.healthy, result.status, result.error_class) == (False, Status.ERROR, "PROVIDER_REJECTED")
        assert len(system.provider.refreshes) == number + 1
        system.clock.advance(FORCED_INTERVAL)
    row = system.row(integration.integration_id)
    assert (row.status(system.clock()), row.reauthorization_required) == (Status.ERROR, False)
    assert await get(system, integration) == "renewed-access-3"
    system.provider.verify_error = None
    assert (await check(system, integration)).healthy


async def test_checks_and_calls_of_all_replicas_refresh_once_per_interval(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.verify_error = REJECTED
    for _ in range(2):
        before = len(system.provider.refreshes)
        for _ in range(10):
            system.provider.responses = [ApiResponse(401, (), b"") for _ in range(4)]
            await asyncio.gather(
                *(check(system, integration) for _ in range(3)), *(call_api(system, integration) for _ in range(2))
            )
            system.clock.advance(FORCED_INTERVAL / 20)
        assert len(system.provider.refreshes) == before + 1
        system.clock.advance(FORCED_INTERVAL)


async def test_a_check_uses_a_token_that_another_replica_has_got_meanwhile(
    system: FakeSystem, integration: Integration
) -> None:
    await asyncio.gather(*(check(system, integration) for _ in range(5)))
    results = await asyncio.gather(*(check(system, integration) for _ in range(5)))
    assert all(result.healthy for result in results)
    assert system.provider.refreshes == ["refresh-1"]


@pytest.mark.parametrize(
    "error",
    [ProviderUnavailable(), ProviderMisconfigured(), ProviderRejected("grant", oauth_error="access_denied")],
    ids=lambda error: str(error.reason),
)
async def test_a_refresh_that_fails_leaves_the_rejection(
    system: FakeSystem, integration: Integration, error: ProviderError
) -> None:
    system.provider.refresh_error = error
    result = await check(system, integration)
    assert (result.status, result.error_class) == (Status.ERROR, "PROVIDER_REJECTED")
    system.clock.advance(FORCED_INTERVAL)
    system.provider.responses = [ApiResponse(401, (), b"")]
    assert (await call_api(system, integration)).status == 401  # the provider's own response
    assert not system.row(integration.integration_id).reauthorization_required


async def test_a_refused_grant_ends(system: FakeSystem, integration: Integration) -> None:
    """The proof is the response of the token endpoint, not the 401."""
    system.provider.refresh_error = INVALID_GRANT
    result = await check(system, integration)
    assert (result.status, result.error_class) == (Status.EXPIRED, ReauthorizationRequired.reason)
    assert system.row(integration.integration_id).reauthorization_required


async def test_a_token_without_a_refresh_token_stays_rejected(system: FakeSystem) -> None:
    system.provider.issues_refresh_token = False
    integration = await system.connect()
    system.provider.rejected_access_tokens = ["access-1"]
    assert (await check(system, integration)).error_class == "PROVIDER_REJECTED"
    assert not system.provider.refreshes


async def test_an_api_key_is_not_refreshed(system: FakeSystem) -> None:
    integration = await system.connect_key()
    system.key_provider.verify_error = REJECTED
    assert (await check(system, integration)).error_class == "PROVIDER_REJECTED"
    assert not system.key_provider.refreshes


async def test_a_missing_scope_is_found_after_the_refresh(system: FakeSystem, integration: Integration) -> None:
    system.provider.granted_scopes = ("write",)
    result = await check(system, integration)
    assert (result.status, result.error_class) == (Status.ERROR, "SCOPE_MISSING")
