import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest

from integration_server.domain.credentials import ApiKey, OAuthTokens
from integration_server.domain.errors import (
    CredentialsUnreadable,
    IntegrationInactive,
    IntegrationNotFound,
    IntegrationPending,
    IntegrationServerError,
    ProviderMisconfigured,
    ProviderNotConfigured,
    ProviderRejected,
    ProviderUnavailable,
    ReauthorizationRequired,
    ScopeMissing,
    StoreUnavailable,
)
from integration_server.domain.integration import Integration, IntegrationId, UserId
from integration_server.service.credentials.credential_service import TokenState, UsableCredentials
from integration_server.service.integrations.ports import IntegrationUpdate
from tests.fakes.provider import HOUR, wait_until
from tests.fakes.system import ADA, EVE, FakeSystem

MINUTE = timedelta(minutes=1)


@pytest.fixture
async def integration(system: FakeSystem) -> Integration:
    """A connected integration whose token is valid for an hour."""
    return await system.connect()


async def get(
    system: FakeSystem,
    integration_id: int,
    min_ttl: timedelta | None = None,
    scopes: Sequence[str] = (),
    user_id: UserId = ADA,
) -> UsableCredentials:
    return await system.credentials.get_credentials(IntegrationId(integration_id), user_id, min_ttl, scopes)


async def access_token(system: FakeSystem, integration_id: int, min_ttl: timedelta | None = None) -> str:
    usable = await get(system, integration_id, min_ttl)
    assert isinstance(usable.credentials, OAuthTokens)
    return usable.credentials.access_token


# --- returned credentials --------------------------------------------------------------------------------------------


async def test_credentials_come_with_scopes_and_request_auth(system: FakeSystem, integration: Integration) -> None:
    usable = await get(system, integration.integration_id)
    assert usable.credentials == await system.tokens(integration.integration_id)
    assert usable.scopes == ("read",)
    assert usable.request_auth.headers == {"Authorization": "Bearer access-1"}
    assert "access-1" not in repr(usable)


async def test_an_api_key_is_returned_without_a_refresh(system: FakeSystem) -> None:
    row = await system.connect_key(api_key="key-1")
    usable = await get(system, row.integration_id, timedelta(days=365))
    assert usable.credentials == ApiKey("key-1")
    assert usable.request_auth.query_params == {"key": "key-1"}
    assert not system.key_provider.refreshes


async def test_missing_scopes_are_reported_without_a_provider_call(
    system: FakeSystem, integration: Integration
) -> None:
    system.clock.advance(HOUR)
    with pytest.raises(ScopeMissing, match="write admin"):
        await get(system, integration.integration_id, scopes=["read", "write", "admin"])
    assert not system.provider.refreshes


async def test_granted_scopes_can_be_required(system: FakeSystem) -> None:
    system.provider.granted_scopes = ("read",)
    row = await system.connect(scopes=("offline_access",))
    assert set((await get(system, row.integration_id, scopes=["offline_access", "read"])).scopes) == {
        "offline_access",
        "read",
    }


async def test_a_scope_lost_by_the_refresh_is_reported_as_missing(system: FakeSystem, integration: Integration) -> None:
    system.clock.advance(HOUR)
    system.provider.granted_scopes = ("profile",)
    with pytest.raises(ScopeMissing, match="read"):
        await get(system, integration.integration_id, scopes=["read"])
    assert (await get(system, integration.integration_id)).scopes == ("profile",)


# --- refresh on demand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lifetime", "age", "min_ttl", "is_refreshed"),
    [
        # the buffer: five minutes
        (60 * MINUTE, 55 * MINUTE, None, False),
        (60 * MINUTE, 55 * MINUTE + timedelta.resolution, None, True),
        # the buffer is at most half of the lifetime
        (4 * MINUTE, 2 * MINUTE, None, False),
        (4 * MINUTE, 2 * MINUTE + timedelta.resolution, None, True),
        # an explicit min_ttl is lowered to the lifetime, and not raised
        (60 * MINUTE, 30 * MINUTE, 30 * MINUTE, False),
        (60 * MINUTE, 31 * MINUTE, 30 * MINUTE, True),
        (4 * MINUTE, timedelta(0), 30 * MINUTE, False),
        (4 * MINUTE, timedelta.resolution, 30 * MINUTE, True),
        (4 * MINUTE, timedelta.resolution, timedelta.max, True),
        (60 * MINUTE, 59 * MINUTE, timedelta(0), False),
        (60 * MINUTE, 60 * MINUTE, timedelta(0), True),
    ],
)
async def test_a_token_is_refreshed_only_below_its_buffer_or_min_ttl(
    system: FakeSystem, lifetime: timedelta, age: timedelta, min_ttl: timedelta | None, is_refreshed: bool
) -> None:
    system.provider.lifetime = lifetime
    integration = await system.connect()
    system.clock.advance(age)
    token = await access_token(system, integration.integration_id, min_ttl)
    assert token == ("renewed-access-1" if is_refreshed else "access-1")


async def test_a_token_without_expiry_is_never_refreshed(system: FakeSystem) -> None:
    system.provider.lifetime = None
    integration = await system.connect()
    system.clock.advance(timedelta(days=3650))
    assert await access_token(system, integration.integration_id, timedelta(days=365)) == "access-1"


@pytest.mark.parametrize("min_ttl", [timedelta.max, timedelta(days=3_650_000), 2 * HOUR])
async def test_a_token_whose_lifetime_is_not_known_is_served_for_any_min_ttl(
    system: FakeSystem, min_ttl: timedelta
) -> None:
    """A provider of a package may say only when its tokens expire."""
    system.provider.repeated_tokens = OAuthTokens("access", None, expire_time=system.clock() + HOUR)
    integration = await system.connect()
    usable = await get(system, integration.integration_id, min_ttl)
    assert isinstance(usable.credentials, OAuthTokens)
    assert usable.credentials.access_token == "access"
    assert usable.valid_until == system.clock()  # the response is not sent again


async def test_a_refreshed_token_is_served_even_if_it_is_shorter_than_min_ttl(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.lifetime = timedelta(seconds=1)
    system.clock.advance(timedelta.resolution)
    assert await access_token(system, integration.integration_id, 2 * HOUR) == "renewed-access-1"


@pytest.mark.parametrize(
    "error", [ProviderUnavailable(), ProviderRejected("grant", oauth_error="invalid_request"), ProviderMisconfigured()]
)
async def test_a_valid_token_is_served_while_its_refresh_fails_and_an_expired_one_is_not(
    system: FakeSystem, integration: Integration, error: Exception
) -> None:
    system.provider.refresh_error = error
    system.clock.advance(HOUR - timedelta.resolution)
    assert await access_token(system, integration.integration_id) == "access-1"
    system.clock.advance(timedelta.resolution)
    with pytest.raises(type(error)):
        await get(system, integration.integration_id)


async def test_a_valid_token_is_served_while_the_type_is_not_configured(
    system: FakeSystem, integration: Integration
) -> None:
    system.provider.missing_settings = ["FAKE_CLIENT_SECRET"]
    system.clock.advance(HOUR - MINUTE)
    assert await access_token(system, integration.integration_id) == "access-1"
    system.clock.advance(MINUTE)
    with pytest.raises(ProviderNotConfigured):
        await get(system, integration.integration_id)
    assert not system.provider.refreshes


async def test_a_token_that_expires_while_its_refresh_fails_is_not_served(
    system: FakeSystem, integration: Integration
) -> None:
    system.clock.advance(HOUR - MINUTE)
    system.provider.gate = asyncio.Event()
    system.provider.refresh_error = ProviderUnavailable()
    waiting = asyncio.create_task(get(system, integration.integration_id))
    await wait_until(lambda: system.provider.refreshes)
    system.clock.advance(MINUTE)
    system.provider.gate.set()
    with pytest.raises(ProviderUnavailable):
        await waiting


async def test_a_token_without_refresh_token_is_served_until_it_expires(system: FakeSystem) -> None:
    system.provider.issues_refresh_token = False
    integration = await system.connect()
    system.clock.advance(HOUR - timedelta.resolution)
    assert await access_token(system, integration.integration_id) == "access-1"
    system.clock.advance(timedelta.resolution)
    with pytest.raises(ReauthorizationRequired):
        await get(system, integration.integration_id)


# --- errors ----------------------------------------------------------------------------------------------------------


async def test_integrations_of_other_users_and_unknown_ids_are_not_found(
    system: FakeSystem, integration: Integration
) -> None:
    for integration_id, user_id in ((integration.integration_id, EVE), (999, ADA)):
        with pytest.raises(IntegrationNotFound):
            await get(system, integration_id, user_id=user_id)
        with pytest.raises(IntegrationNotFound):
            await system.credentials.refresh_token(IntegrationId(integration_id), user_id, force=True)
    assert not system.provider.refreshes


async def test_pending_inactive_and_expired_integrations_return_no_credentials(
    system: FakeSystem, integration: Integration
) -> None:
    pending = await system.begin()
    with pytest.raises(IntegrationPending):
        await get(system, pending.integration_id)

    await system.integration_manager.update_integration(
        integration.integration_id, ADA, IntegrationUpdate(is_active=False)
    )
    with pytest.raises(IntegrationInactive):
        await get(system, integration.integration_id)

    system.set_columns(integration.integration_id, is_active=True, reauthorization_required=True)
    with pytest.raises(ReauthorizationRequired):
        await get(system, integration.integration_id)


async def test_corrupt_credentials_do_not_decrypt_and_the_others_still_serve(
    system: FakeSystem, integration: Integration
) -> None:
    other = await system.connect_account("other")
    system.corrupt(integration.integration_id)
    with pytest.raises(CredentialsUnreadable):
        await get(system, integration.integration_id)
    assert await access_token(system, other.integration_id) == "access-2"


async def test_a_database_outage_is_reported(system: FakeSystem, integration: Integration) -> None:
    system.database.is_unavailable = True
    with pytest.raises(StoreUnavailable):
        await get(system, integration.integration_id)


# --- RefreshToken ----------------------------------------------------------------------------------------------------


async def refresh(system: FakeSystem, integration_id: int, *, force: bool = False) -> TokenState:
    return await system.credentials.refresh_token(IntegrationId(integration_id), ADA, force=force)


async def test_a_valid_token_is_refreshed_only_if_forced(system: FakeSystem, integration: Integration) -> None:
    expire_time = system.clock() + HOUR
    assert await refresh(system, integration.integration_id) == TokenState(refreshed=False, expire_time=expire_time)
    system.clock.advance(MINUTE)
    forced = await refresh(system, integration.integration_id, force=True)
    assert forced == TokenState(refreshed=True, expire_time=expire_time + MINUTE)
    assert await access_token(system, integration.integration_id) == "renewed-access-1"


async def test_a_token_near_its_expiry_is_refreshed(system: FakeSystem, integration: Integration) -> None:
    system.clock.advance(56 * MINUTE)
    assert (await refresh(system, integration.integration_id)).refreshed


@pytest.mark.parametrize(
    "error", [ProviderUnavailable(), ProviderRejected("grant"), ProviderMisconfigured()], ids=lambda error: error.reason
)
async def test_a_failed_refresh_is_reported_to_the_caller(
    system: FakeSystem, integration: Integration, error: IntegrationServerError
) -> None:
    system.provider.refresh_error = error
    with pytest.raises(type(error)):
        await refresh(system, integration.integration_id, force=True)


async def test_a_forced_refresh_without_refresh_token_requires_reauthorization(system: FakeSystem) -> None:
    system.provider.issues_refresh_token = False
    integration = await system.connect()
    assert not (await refresh(system, integration.integration_id)).refreshed
    with pytest.raises(ReauthorizationRequired):
        await refresh(system, integration.integration_id, force=True)


async def test_an_api_key_is_not_refreshed(system: FakeSystem) -> None:
    row = await system.connect_key()
    not_refreshed = TokenState(refreshed=False, expire_time=None)
    assert await refresh(system, row.integration_id, force=True) == not_refreshed
