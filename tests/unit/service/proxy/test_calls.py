"""Calls: retries, token refreshes, and the effect on the integration."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from integration_server.domain.credentials import OAuthTokens
from integration_server.domain.errors import (
    IntegrationInactive,
    IntegrationNotFound,
    InvalidField,
    ProviderRejected,
    ProviderUnavailable,
    RateLimited,
    ReauthorizationRequired,
    ResponseTooLarge,
)
from integration_server.domain.integration import Integration
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse, RateLimit
from integration_server.service.integrations.ports import IntegrationUpdate
from tests.contracts.integration_rows import update_settings
from tests.fakes.system import ADA, EVE, FakeSystem

GET = ApiRequest("GET", "/things")
POST = ApiRequest("POST", "/things", body=b"{}")
UNAUTHORIZED = ApiResponse(401, (), b"")
OK = ApiResponse(200, (), b"ok")


def wait(seconds: float | None = None, status: int = 429) -> ApiResponse:
    return ApiResponse(status, (), b"", True, None if seconds is None else timedelta(seconds=seconds))


@pytest.fixture
async def system() -> AsyncIterator[FakeSystem]:
    system = FakeSystem({"proxy_timeout": timedelta(seconds=20)}, options={"monotonic": time.monotonic})
    async with system.tasks:
        yield system


@pytest.fixture
async def mine(system: FakeSystem) -> Integration:
    return await system.connect()


async def call(system: FakeSystem, integration: Integration, request: ApiRequest = GET, **by: Any) -> ApiResponse:
    return await system.api_proxy.call_provider(integration.integration_id, by.get("user_id", ADA), request)


async def settled(system: FakeSystem, integration: Integration) -> Integration:
    """The integration after all detached tasks have ended."""
    await asyncio.gather(*system.tasks._running)
    return system.row(integration.integration_id)


def tokens_of(system: FakeSystem) -> list[str]:
    return [
        credentials.access_token for credentials, _ in system.provider.calls if isinstance(credentials, OAuthTokens)
    ]


async def test_a_response_is_returned_whatever_its_status(system: FakeSystem, mine: Integration) -> None:
    for status in (200, 204, 301, 400, 403, 404, 409, 500, 502):
        system.provider.responses = [ApiResponse(status, (("x-a", "1"),), b"body")]
        response = await call(system, mine, POST)
        assert (response.status, response.headers, response.body) == (status, (("x-a", "1"),), b"body")
    assert (await settled(system, mine)).last_error is None


async def test_the_integration_must_be_the_users_and_usable(system: FakeSystem, mine: Integration) -> None:
    with pytest.raises(IntegrationNotFound):
        await call(system, mine, user_id=EVE)
    await update_settings(system.integrations, mine, IntegrationUpdate(is_active=False), system.clock())
    with pytest.raises(IntegrationInactive):
        await call(system, mine)
    assert system.provider.calls == []


async def test_an_invalid_request_is_not_sent(system: FakeSystem, mine: Integration) -> None:
    for request in (
        replace(GET, path="/../admin"),
        replace(GET, headers=[("Authorization", "Bearer mine")]),
        replace(POST, body=b"x" * ((1 << 20) + 1)),
    ):
        with pytest.raises(InvalidField):
            await call(system, mine, request)
    assert system.provider.calls == []


# --- 401 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [GET, POST], ids=["GET", "POST"])
async def test_a_rejected_token_is_refreshed_once(system: FakeSystem, mine: Integration, request_: ApiRequest) -> None:
    system.provider.responses = [UNAUTHORIZED, OK]
    assert await call(system, mine, request_) == OK
    assert tokens_of(system) == ["access-1", "renewed-access-1"]
    assert len(system.provider.refreshes) == 1


async def test_a_token_rejected_in_the_providers_own_way_is_refreshed(system: FakeSystem, mine: Integration) -> None:
    system.provider.responses = [replace(OK, rejects_access_token=True), OK]
    assert await call(system, mine) == OK
    assert tokens_of(system) == ["access-1", "renewed-access-1"]


async def test_a_token_rejected_twice_is_recorded_as_the_integrations_error(
    system: FakeSystem, mine: Integration
) -> None:
    system.provider.responses = [UNAUTHORIZED, UNAUTHORIZED]
    assert (await call(system, mine)).status == 401
    assert len(system.provider.refreshes) == 1
    row = await settled(system, mine)
    assert row.last_error is not None
    assert (row.last_error.error_class, row.error_count) == (ProviderRejected.reason, 1)

    await call(system, mine)
    row = await settled(system, mine)
    assert (row.last_error, row.error_count) == (None, 0)


async def test_many_rejected_calls_cause_one_refresh(system: FakeSystem, mine: Integration) -> None:
    system.provider.responses = [UNAUTHORIZED] * 20
    responses = await asyncio.gather(*(call(system, mine) for _ in range(20)))
    assert {response.status for response in responses} == {200}
    assert len(system.provider.refreshes) == 1


async def test_an_invalid_grant_is_reported(system: FakeSystem, mine: Integration) -> None:
    system.provider.responses = [UNAUTHORIZED]
    system.provider.refresh_error = ProviderRejected("grant", oauth_error="invalid_grant")
    with pytest.raises(ReauthorizationRequired):
        await call(system, mine)
    assert system.row(mine.integration_id).reauthorization_required


async def test_a_rejected_key_is_a_response(system: FakeSystem) -> None:
    mine = await system.connect_key()
    system.key_provider.responses = [UNAUTHORIZED]
    assert (await call(system, mine)).status == 401
    assert (await settled(system, mine)).error_count == 1


# --- wait, and connections that are lost -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
async def test_a_safe_call_waits_and_is_retried(system: FakeSystem, mine: Integration, status: int) -> None:
    for request in (GET, ApiRequest("DELETE", "/"), replace(POST, idempotency_key="k")):
        system.provider.responses = [wait(0.1, status), wait(0.1, status), OK]
        assert await call(system, mine, request) == OK
    keyed = replace(POST, headers=[("Idempotency-Key", "k")])
    system.provider.responses = [wait(0.1, status), OK]
    assert await call(system, mine, keyed) == OK


async def test_an_unsafe_call_is_not_retried(system: FakeSystem, mine: Integration) -> None:
    system.provider.responses = [wait(7)]
    with pytest.raises(ProviderUnavailable) as raised:
        await call(system, mine, POST)
    assert raised.value.retry_after is not None
    assert 0 < raised.value.retry_after.total_seconds() <= 7
    assert len(system.provider.calls) == 1


async def test_a_wait_beyond_the_deadline_is_reported_at_once(system: FakeSystem, mine: Integration) -> None:
    system.provider.responses = [wait(60)]
    async with asyncio.timeout(15):  # less than the deadline
        for _ in range(2):  # the second is not sent
            with pytest.raises(ProviderUnavailable) as raised:
                await call(system, mine)
            assert raised.value.retry_after is not None
            assert 30 < raised.value.retry_after.total_seconds() <= 60
    assert len(system.provider.calls) == 1
    row = await settled(system, mine)
    assert row.last_error is not None
    assert (row.last_error.error_class, row.error_count) == (ProviderUnavailable.reason, 1)


async def test_a_lost_connection_is_retried_once_if_safe(system: FakeSystem, mine: Integration) -> None:
    system.provider.responses = [ProviderUnavailable(), OK]
    assert await call(system, mine) == replace(OK, was_retried=True)
    system.provider.responses = [ProviderUnavailable(), ProviderUnavailable(), OK]
    with pytest.raises(ProviderUnavailable):
        await call(system, mine)
    system.provider.responses = [ProviderUnavailable(), OK]
    with pytest.raises(ProviderUnavailable):
        await call(system, mine, POST)


async def test_an_outage_does_not_cause_a_write_for_each_call(system: FakeSystem, mine: Integration) -> None:
    for number in range(1, 4):
        for _ in range(5):
            system.provider.responses = [ProviderUnavailable(), ProviderUnavailable()]
            with pytest.raises(ProviderUnavailable):
                await call(system, mine)
            assert (await settled(system, mine)).error_count == number
        system.clock.advance(timedelta(seconds=10))


async def test_an_exhausted_limit_is_reported_at_once_and_not_held_against_the_integration(
    system: FakeSystem, mine: Integration
) -> None:
    system.provider.rate_limits = (RateLimit(2, timedelta(minutes=1)),)
    await call(system, mine)
    await call(system, mine)
    with pytest.raises(RateLimited) as raised:
        await call(system, mine)
    assert raised.value.retry_after is not None
    assert 30 < raised.value.retry_after.total_seconds() <= 60
    assert len(system.provider.calls) == 2
    assert (await settled(system, mine)).last_error is None


async def test_a_response_that_is_too_large_is_reported(system: FakeSystem, mine: Integration) -> None:
    system.provider.responses = [ResponseTooLarge(10)]
    with pytest.raises(ResponseTooLarge):
        await call(system, mine)


async def test_the_token_is_in_no_header_of_the_response(system: FakeSystem, mine: Integration) -> None:
    leaky = (("location", "/next?token=access-1"), ("x-token", "renewed-access-1"), ("x-a", "1"))
    system.provider.responses = [UNAUTHORIZED, ApiResponse(302, leaky, b"")]
    assert (await call(system, mine)).headers == (("x-a", "1"),)
