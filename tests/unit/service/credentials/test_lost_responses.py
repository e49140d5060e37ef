"""A token response that is lost may have spent the refresh token: a second use may end the grant at once.

The access token that still works is served until it is about to expire; only then the refresh is repeated.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from sqlalchemy import update

from integration_server.domain.credentials import OAuthTokens, RefreshCause
from integration_server.domain.errors import (
    IntegrationServerError,
    ProviderError,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderUnavailable,
    ReauthorizationRequired,
)
from integration_server.domain.integration import Integration, Status
from integration_server.domain.proxy_messages import ApiRequest, ApiResponse
from integration_server.service.background.ports import JobKind
from integration_server.storage.tables import integrations
from tests.fakes.provider import HOUR, FakeProvider
from tests.fakes.system import ADA, BUFFER, FORCED_INTERVAL, LEASE, FakeSystem

MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
LOST = ProviderUnavailable(outcome_unknown=True)
INVALID_GRANT = ProviderRejected("grant", oauth_error="invalid_grant")
LAST_MOMENT = 2 * LEASE


@dataclass
class RotatingProvider(FakeProvider):
    """Rotates refresh tokens strictly: a second use ends the grant, with its access tokens (RFC 9700 §4.14.2).

    With `loses_response`, the response of a refresh that has taken place is lost.
    """

    loses_response: bool = False
    used: set[str] = field(default_factory=set)
    is_revoked: bool = False

    async def refresh(self, tokens: OAuthTokens) -> OAuthTokens:
        """The next tokens, once for each refresh token."""
        refreshed = await super().refresh(tokens)
        token = tokens.refresh_token or ""
        self.is_revoked = self.is_revoked or token in self.used
        self.used.add(token)
        if self.is_revoked:
            raise INVALID_GRANT
        if self.loses_response:
            raise LOST
        return refreshed


@pytest.fixture
def rotating(system: FakeSystem) -> RotatingProvider:
    provider = RotatingProvider(system.clock, supports_webhooks=True)
    system.provider = system.providers.by_type["fake"] = provider
    return provider


async def get(system: FakeSystem, integration: Integration, min_ttl: timedelta | None = None) -> str:
    """The access token, from another replica each time."""
    credentials = system.another_process().use_cases.credentials
    usable = await credentials.get_credentials(integration.integration_id, ADA, min_ttl, [])
    assert isinstance(usable.credentials, OAuthTokens)
    return usable.credentials.access_token


async def force(system: FakeSystem, integration: Integration) -> bool:
    credentials = system.another_process().use_cases.credentials
    return (await credentials.refresh_token(integration.integration_id, ADA, force=True)).refreshed


async def run_due_refreshes(system: FakeSystem) -> None:
    for claim in await system.due_work.claim(JobKind.REFRESH, "fake", 10, claim_duration=MINUTE):
        with suppress(IntegrationServerError):  # as the worker does
            await system.refresher.refresh_proactively(claim.item)


async def call_everything(system: FakeSystem, integration: Integration) -> None:
    """All that may refresh a token which lasts, but for a forced refresh."""
    assert await get(system, integration) == "access-1"
    assert await get(system, integration, 2 * HOUR) == "access-1"
    await run_due_refreshes(system)
    health = await system.another_process().use_cases.health_checker.check_health(integration.integration_id, ADA)
    assert (health.healthy, health.status) == (True, Status.ACTIVE)
    assert (await system.api_proxy.call_provider(integration.integration_id, ADA, ApiRequest("GET", "/"))).status == 200


async def lose_response(system: FakeSystem, integration: Integration, age: timedelta = HOUR - BUFFER + SECOND) -> None:
    """Refresh a token of this age, and lose the response."""
    system.clock.advance(age)
    if isinstance(system.provider, RotatingProvider):
        system.provider.loses_response = True
    with pytest.raises(ProviderUnavailable):
        await system.refresher.refresh(integration, RefreshCause.FORCE)
    if isinstance(system.provider, RotatingProvider):
        system.provider.loses_response = False


@pytest.mark.parametrize(
    "age", [timedelta(0), MINUTE, 30 * MINUTE, HOUR - BUFFER, HOUR - 2 * MINUTE], ids=lambda age: f"{age}"
)
async def test_the_access_token_is_served_until_it_is_about_to_expire(
    system: FakeSystem, rotating: RotatingProvider, age: timedelta
) -> None:
    integration = await system.connect()
    await lose_response(system, integration, age)
    expire_time = integration.access_token_expire_time
    assert expire_time is not None
    while system.clock() < expire_time - LAST_MOMENT - 10 * SECOND:
        await call_everything(system, integration)
        assert rotating.refreshes == ["refresh-1"]
        system.clock.advance(max(SECOND, (expire_time - LAST_MOMENT - system.clock()) / 2))
    system.clock.now = expire_time - LAST_MOMENT
    await run_due_refreshes(system)
    assert rotating.refreshes == ["refresh-1", "refresh-1"]
    assert system.row(integration.integration_id).status(system.clock()) is Status.EXPIRED  # the token was spent


@pytest.mark.parametrize("age", [timedelta(0), HOUR - BUFFER])
async def test_a_repeated_refresh_that_had_not_reached_the_provider_succeeds(
    system: FakeSystem, age: timedelta
) -> None:
    integration = await system.connect()
    system.provider.refresh_error = LOST
    await lose_response(system, integration, age)
    system.provider.refresh_error = None
    system.clock.advance(HOUR - LAST_MOMENT - age)
    await run_due_refreshes(system)
    assert await get(system, integration) == "renewed-access-2"
    assert system.row(integration.integration_id).status(system.clock()) is Status.ACTIVE


async def test_negative_control_a_provider_with_grace_is_asked_again_at_once(system: FakeSystem) -> None:
    """The same loss at a provider that declares that the used token still works: nothing waits."""
    system.provider.refresh_token_grace = HOUR
    integration = await system.connect()
    system.provider.refresh_error = LOST
    await lose_response(system, integration)
    system.provider.refresh_error = None
    assert await get(system, integration) == "renewed-access-2"


async def test_negative_control_with_a_false_grace_the_live_token_is_lost(
    system: FakeSystem, rotating: RotatingProvider
) -> None:
    rotating.refresh_token_grace = HOUR  # what the provider does not grant
    integration = await system.connect()
    await lose_response(system, integration)
    with pytest.raises(ReauthorizationRequired):
        await get(system, integration)


@pytest.mark.parametrize(
    "error",
    [
        ProviderUnavailable(),
        ProviderUnavailable(retry_after=3 * SECOND),
        ProviderRejected("grant", oauth_error="temporarily_odd"),
        ProviderMisconfigured(),
    ],
    ids=["not sent", "asked to wait", "an error", "our client"],
)
async def test_a_refresh_that_is_known_to_have_failed_is_repeated_soon(
    system: FakeSystem, error: ProviderError
) -> None:
    integration = await system.connect()
    system.clock.advance(HOUR - BUFFER + SECOND)
    system.provider.refresh_error = error
    assert await get(system, integration) == "access-1"
    system.provider.refresh_error = None
    system.clock.advance(3 * SECOND)
    assert await get(system, integration) == "renewed-access-2"


async def test_an_expired_token_has_nothing_to_lose(system: FakeSystem) -> None:
    integration = await system.connect()
    system.clock.advance(HOUR)
    system.provider.refresh_error = LOST
    for _ in range(2):
        with pytest.raises(ProviderUnavailable):
            await get(system, integration)
    assert len(system.provider.refreshes) == 2  # within seconds
    system.provider.refresh_error = None
    system.clock.advance(2 * SECOND)
    assert await get(system, integration) == "renewed-access-3"


@pytest.mark.parametrize("lifetime", [20 * SECOND, MINUTE, 10 * MINUTE])
async def test_short_lived_tokens_are_used_for_nine_tenths_of_their_life(
    system: FakeSystem, lifetime: timedelta
) -> None:
    system.provider.lifetime = lifetime
    integration = await system.connect()
    system.provider.refresh_error = LOST
    await lose_response(system, integration, lifetime / 2)
    system.provider.refresh_error = None
    system.clock.advance(lifetime * 0.35)
    assert await get(system, integration) == "access-1"
    system.clock.advance(lifetime * 0.06)
    assert await get(system, integration) == "renewed-access-2"


# --- explicit and necessary refreshes --------------------------------------------------------------------------------


async def test_force_repeats_at_once_within_the_minimum_interval(system: FakeSystem) -> None:
    integration = await system.connect()
    system.provider.refresh_error = LOST
    await lose_response(system, integration)
    system.provider.refresh_error = None
    with pytest.raises(ProviderUnavailable) as caught:
        await force(system, integration)
    assert caught.value.retry_after == FORCED_INTERVAL
    system.clock.advance(FORCED_INTERVAL)
    assert await force(system, integration)
    assert len(system.provider.refreshes) == 2


async def test_an_access_token_that_the_api_rejects_is_not_waited_for(system: FakeSystem) -> None:
    """Some providers end the previous access token when they issue a new one."""
    integration = await system.connect()
    system.provider.refresh_error = LOST
    await lose_response(system, integration, MINUTE)
    system.provider.refresh_error = None
    system.clock.advance(FORCED_INTERVAL)
    system.provider.rejected_access_tokens = ["access-1"]
    system.provider.responses = [ApiResponse(401, (), b""), ApiResponse(200, (), b"")]
    response = await system.api_proxy.call_provider(integration.integration_id, ADA, ApiRequest("GET", "/"))
    assert response.status == 200
    assert await get(system, integration) == "renewed-access-2"


@pytest.mark.parametrize(
    "verify_error",
    [None, ProviderUnavailable(), ProviderRejected("credentials")],
    ids=["it works", "not known", "it lacks a permission"],
)
async def test_a_resource_that_responds_401_to_every_token_does_not_spend_the_grant(
    system: FakeSystem, rotating: RotatingProvider, verify_error: ProviderError | None
) -> None:
    integration = await system.connect()
    await lose_response(system, integration, MINUTE)
    rotating.verify_error = verify_error
    for _ in range(5):
        system.clock.advance(FORCED_INTERVAL)
        rotating.responses = [ApiResponse(401, (), b"")]
        response = await system.api_proxy.call_provider(integration.integration_id, ADA, ApiRequest("GET", "/admin"))
        assert response.status == 401
    assert rotating.refreshes == ["refresh-1"]
    assert await get(system, integration) == "access-1"


async def test_a_token_without_known_expiry_is_used_until_the_api_rejects_it(system: FakeSystem) -> None:
    system.provider.lifetime = None
    integration = await system.connect()
    system.provider.refresh_error = LOST
    await lose_response(system, integration, MINUTE)
    for _ in range(3):
        system.clock.advance(24 * HOUR)
        await call_everything(system, integration)
    assert len(system.provider.refreshes) == 1
    system.provider.refresh_error = None
    system.provider.rejected_access_tokens = ["access-1"]
    check = await system.health_checker.check_health(integration.integration_id, ADA)
    assert check.healthy
    assert await get(system, integration) == "renewed-access-2"


async def test_the_success_of_another_integration_does_not_repeat_a_lost_refresh(
    system: FakeSystem, rotating: RotatingProvider
) -> None:
    lost, other = [await system.connect_account(name) for name in ("lost", "other")]
    await lose_response(system, lost)
    system.database.execute(
        update(integrations)
        .where(integrations.c.integration_id == lost.integration_id)
        .values(refresh_retry_time=system.clock() + HOUR)
    )
    rotating.refresh_error = ProviderUnavailable()
    for _ in range(2):
        await get(system, other)
    rotating.refresh_error = None
    system.clock.advance(3 * SECOND)
    await get(system, other)  # ends the pauses of all
    system.clock.advance(MINUTE)
    await run_due_refreshes(system)
    assert rotating.refreshes.count("refresh-1") == 1


# --- processes that disappear ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("age", [timedelta(0), 30 * MINUTE, HOUR - BUFFER])
async def test_after_a_restart_the_access_token_is_served_until_it_is_about_to_expire(
    system: FakeSystem, age: timedelta
) -> None:
    integration = await system.connect()
    system.clock.advance(age)
    assert await system.leases.claim(integration, "a process that was killed during its call")
    for _ in range(3):
        system.clock.advance(MINUTE)
        await call_everything(system, integration)
        with pytest.raises(IntegrationServerError):  # its process may come back with the response
            await force(system, integration)
    assert not system.provider.refreshes
    system.clock.advance(HOUR - LAST_MOMENT - age - 3 * MINUTE + SECOND)
    await run_due_refreshes(system)
    assert await get(system, integration) == "renewed-access-1"
    assert system.provider.refreshes == ["refresh-1"]


async def test_waiting_for_a_lost_call_writes_nothing(system: FakeSystem) -> None:
    integration = await system.connect()
    system.clock.advance(HOUR - BUFFER)
    assert await system.leases.claim(integration, "crashed")
    system.clock.advance(LEASE)
    await get(system, integration)
    row, lease = system.row(integration.integration_id), await system.leases.state(integration)
    for _ in range(5):
        await get(system, integration)
    assert system.row(integration.integration_id) == row
    assert await system.leases.state(integration) == lease


async def test_replicas_repeat_a_lost_refresh_once(system: FakeSystem) -> None:
    integration = await system.connect()
    system.provider.refresh_error = LOST
    await lose_response(system, integration)
    system.provider.refresh_error = None
    system.clock.advance(BUFFER - LAST_MOMENT)
    tokens = await asyncio.gather(*(get(system, integration) for _ in range(9)))
    assert set(tokens) == {"renewed-access-2"}
    assert len(system.provider.refreshes) == 2
